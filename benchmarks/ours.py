"""Our trainer with the stopwatch in it, on the standalone host: ``-m benchmarks.ours SETTINGS``.

The checkpoint is loaded first, as it is in the WebUI; then Train is pressed several times.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

from benchmarks.clock import Clock, hand_in
from lora_trainer.runs.control import StopRequest


def main() -> None:
    settings = json.loads(sys.argv[1])
    clock = Clock()
    from lora_trainer.config.train import TrainConfig
    from lora_trainer.hosts.standalone.host import StandaloneHost
    from lora_trainer.jobs.service import Jobs

    config = TrainConfig.from_dict(settings["config"])
    jobs = Jobs(StandaloneHost(Path(settings["root"])))
    clock.mark("imported")
    _load(jobs, config)
    clock.mark("loaded")
    runs = {}
    for press in settings["presses"]:
        runs[press["name"]] = _press(jobs, clock, config.with_values({"name": press["name"], **press["values"]}), press)
    hand_in(runs)


def _load(jobs: Any, config: Any) -> None:
    """Load the checkpoint as the WebUI does, in a thread that ends.

    With a second pool of OpenMP threads in the process, libgomp lets all of them wait passively, and every operation
    on the processor begins late.
    """

    def load() -> None:
        from lora_trainer.hosts.base import ModelRequest

        with jobs.host.session(ModelRequest.of(config)):
            pass

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()


def _press(jobs: Any, clock: Clock, config: Any, press: dict[str, Any]) -> dict[str, Any]:
    """Press Train, and Stop after some steps."""
    from lora_trainer.core.errors import RunError

    def stop_in_time(count: int) -> None:
        if count == press["steps"]:
            jobs.stop(config.name, StopRequest.DISCARD)

    clock.watch()
    clock.on_step = stop_in_time
    clock.mark("pressed")
    run = jobs.submit(config)
    jobs.wait(run)
    if run.state != "stopped":
        raise RunError("The run ended as {state}: {message}", state=run.state, message=run.manifest["message"])
    return clock.result()


if __name__ == "__main__":
    main()
