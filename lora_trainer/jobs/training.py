"""A run's way through the line."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import CheckpointChanged, explain
from lora_trainer.core.process import this_process
from lora_trainer.hosts.base import Host
from lora_trainer.jobs.job import Progress, Record
from lora_trainer.jobs.waiting import WAITS_FOR_CHECKPOINT
from lora_trainer.runs.control import StopRequest
from lora_trainer.runs.run import Run

if TYPE_CHECKING:
    from lora_trainer.dataset.scan import Dataset


@dataclass(frozen=True)
class RunRecord(Record):
    """How far a run is: its manifest.

    Attributes:
        run: whose.
        on_change: called when it changed, from the working thread.
    """

    run: Run
    on_change: Callable[[Run], object]

    def __str__(self) -> str:
        return f"The run {self.run.name}"

    def started(self) -> None:
        """Its turn has come; a resumed run's files tell when it began."""
        began = self.run.manifest.get("started") or time.time()
        self.run.update(state="running", message="", started=began, process=this_process(), now=True)

    def finished(self, result: Any) -> None:
        """It is over, and has written its own end: done, stopped or paused."""
        self.on_change(self.run)

    def ended(self, state: str, error: BaseException) -> None:
        """It is over before its end, for this reason; or it waits for its checkpoint."""
        waits = {"waits": WAITS_FOR_CHECKPOINT} if state == "paused" else {}
        try:
            self.run.update(
                phase="", waiting=False, finished=time.time(), **explain(error), state=state, **waits, now=True
            )
        finally:
            self.on_change(self.run)

    def state_after(self, error: BaseException, asked: StopRequest | None) -> str:
        """A run waits for a checkpoint that is gone. What it was asked for it does itself, so all else has failed."""
        return "paused" if isinstance(error, CheckpointChanged) else "failed"


@dataclass
class ToTrain:
    """What a run begins with.

    Attributes:
        run: the run.
        config: its settings, where they were read just now; else those in its ``config.toml`` when its turn comes.
        dataset: its data set, the same.
    """

    run: Run
    config: TrainConfig | None = None
    dataset: Dataset | None = None

    def work(self, host: Host, progress: Progress, on_change: Callable[[Run], object]) -> None:
        """Do the run's work, which tells of itself in the manifest."""
        from lora_trainer.training.loop import TrainingRun

        dataset, self.dataset = self.dataset, None  # its memory is the run's alone
        TrainingRun(self.run, host, progress.control, on_change, config=self.config, dataset=dataset).execute()
