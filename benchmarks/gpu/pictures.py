"""Pictures that are drawn between the steps of a run: whether they are the same, and what they cost the steps."""

from __future__ import annotations

import statistics
import threading
import time
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.gpu.bench import Bench, spread
from benchmarks.gpu.notes import Notes
from benchmarks.gpu.setting import Setting
from lora_trainer.hosts.base import DrawRequest, ModelRequest
from lora_trainer.jobs.service import Jobs


def check(setting: Setting, notes: Notes) -> None:
    """One part: the figures need each other."""
    notes.part("drawn beside a run", beside, setting)


def beside(setting: Setting) -> dict[str, Any]:
    """Draw without a run, run without a drawing, then both at once."""
    bench = Bench(setting)
    jobs, watch = Jobs(bench.host), StepWatch(bench.device)
    painter = Painter(bench)
    wanted = [painter.draw(seed) for seed in (1, 2)]
    began = time.monotonic()
    painter.draw(1)
    picture = time.monotonic() - began
    alone = _run(bench, jobs, watch, "alone", None)
    together = _run(bench, jobs, watch, "together", painter)
    same = [painter.found[seed] == wanted[seed - 1] for seed in sorted(painter.found)]
    return {
        "pictures": len(same),
        "picture_seconds": picture,
        "waited": painter.waited,
        "steps_alone": spread(alone),
        "steps_beside": spread(together),
        "says": f"{len(same)} pictures; step {statistics.median(alone) * 1000:.1f} ms alone, "
        f"{statistics.median(together) * 1000:.1f} beside; a picture took {picture:.2f} s alone, "
        f"{max(painter.waited):.2f} with its waiting beside a run",
        "holds": {"every picture is the same": all(same), "both were drawn during the run": painter.during == 2},
    }


def _run(bench: Bench, jobs: Jobs, watch: StepWatch, name: str, painter: Painter | None) -> list[float]:
    """A run, beside which a painter draws two pictures; seconds of its steps without the waits between them."""
    watch.seconds = []
    steps = 8 if bench.setting.cpu else 60
    run = jobs.submit(bench.config.with_values({"name": name, "training.steps": steps}))
    if painter is not None:
        watch.begun.clear()
        thread = threading.Thread(target=painter.draw_during, args=(watch.begun, lambda: run.state == "running"))
        thread.start()
        thread.join()
    jobs.wait(run)
    if run.state != "done":
        raise RuntimeError(f"The run ended as {run.state}: {run.manifest['message']}")
    return watch.seconds[2:]


class StepWatch:
    """Seconds from the UNet's call in training to the end of the optimizer's step, with the card's work done.

    Args:
        device: of the steps.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: list[float] = []
        self.begun = threading.Event()
        self._device = device
        self._start = 0.0
        register_module_forward_pre_hook(self._called)
        register_optimizer_step_post_hook(self._ended)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _called(self, module: torch.nn.Module, _: object) -> None:
        if type(module).__name__ == "UNet2DConditionModel" and module.training:
            self._start = self._now()

    def _ended(self, *_: object) -> None:
        self.seconds.append(self._now() - self._start)
        self.begun.set()


class Painter:
    """Draws with the host's own pipeline, as its samples are.

    Args:
        bench: gives the host.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.found: dict[int, bytes] = {}
        self.waited: list[float] = []
        self.during = 0

    def draw(self, seed: int) -> bytes:
        """The bytes of one picture."""
        steps, side = (2, 64) if self._bench.setting.cpu else (20, 512)
        request = DrawRequest("a red circle", width=side, height=side, steps=steps, seed=seed)
        with self._bench.host.session(ModelRequest.of(self._bench.config)) as session, session.turn(drawing=True):
            return session.draw([request], None)[0].tobytes()

    def draw_during(self, begun: threading.Event, running: Any) -> None:
        """Two pictures, once steps are being done; ``during`` counts those that the run outlasted."""
        begun.wait(60)
        for seed in (1, 2):
            began = time.monotonic()
            self.found[seed] = self.draw(seed)
            self.waited.append(time.monotonic() - began)
            self.during += running()
