"""A run's way through the line."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from lora_trainer.core.errors import CheckpointChanged, LoraTrainError, explain
from lora_trainer.core.process import this_process
from lora_trainer.hosts.base import Host
from lora_trainer.jobs.waiting import WAITS_FOR_CHECKPOINT
from lora_trainer.runs.control import Control
from lora_trainer.runs.run import Run

log = logging.getLogger(__name__)


def carry_out(run: Run, host: Host, control: Control, on_change: Callable[[Run], object]) -> None:
    """Do a run's work; whatever goes wrong ends up as a sentence in its manifest."""
    from lora_trainer.training.loop import TrainingRun

    try:
        started = run.manifest.get("started") or time.time()  # a resumed run's files tell when it began
        run.update(state="running", message="", started=started, process=this_process(), now=True)
        TrainingRun(run, host, control, on_change).execute()
    except CheckpointChanged as error:
        _end(run, error, state="paused", waits=WAITS_FOR_CHECKPOINT)
    except LoraTrainError as error:
        _end(run, error, state="failed")
    except BaseException as error:  # a library's SystemExit, too
        log.exception("The run %s failed", run.name)
        _end(run, error, state="failed")
    on_change(run)


def _end(run: Run, error: BaseException, **values: str) -> None:
    try:
        run.update(phase="", waiting=False, finished=time.time(), **explain(error), **values, now=True)
    except Exception:
        log.exception("The manifest of %s could not be written", run.name)
