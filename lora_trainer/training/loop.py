"""A training run: prepare, learn in slices between which others have the model, and write what is due."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lora_trainer.core.errors import CheckpointChanged, RunError
from lora_trainer.dataset.plan import Step
from lora_trainer.hosts.base import Host, ModelRequest, Session
from lora_trainer.model.memory import out_of_memory
from lora_trainer.runs.control import Control, StopRequest, only_telling
from lora_trainer.runs.run import Run
from lora_trainer.training.artifacts import Artifacts
from lora_trainer.training.preparation import Preparation, PreparedRun, Stopped
from lora_trainer.training.state import save_state
from lora_trainer.training.trainer import StepOutOfMemory

if TYPE_CHECKING:
    from lora_trainer.config.train import TrainConfig
    from lora_trainer.dataset.scan import Dataset

SLICE_SECONDS = 0.2
"""Short steps are done together for this long, so that the hand-over costs nothing."""


@dataclass(frozen=True)
class Learned:
    """A step that was done: its loss (still on the device) and its learning rates."""

    step: Step
    loss: torch.Tensor
    rates: dict[str, float]


class TrainingRun:
    """Carries a run out, or goes on with it from its last state.

    Args:
        run: its folder.
        host: where the model is.
        control: asked between steps.
        on_change: called after every slice and phase, for a progress bar.
        config: the run's settings, when they are at hand.
        dataset: its data set, when it was looked at just now.
    """

    def __init__(
        self,
        run: Run,
        host: Host,
        control: Control,
        on_change: Callable[[Run], object] = lambda run: None,
        *,
        config: TrainConfig | None = None,
        dataset: Dataset | None = None,
    ) -> None:
        self._run = run
        self._host = host
        self._control = control
        self._changed = on_change
        self._config = config or run.config()
        self._dataset = dataset
        self._outputs = Artifacts(run, self._config, host, self._note)
        self._began = self._slice_end = self._state_at = time.monotonic()
        self._before = float(run.manifest.get("seconds", 0.0))
        self._losses: deque[float] = deque(maxlen=200)
        self._paces: deque[tuple[int, float]] = deque(maxlen=30)

    def execute(self) -> str:
        """Do the work; returns the run's final state, which is also in the manifest.

        Raises:
            CheckpointChanged: the host has another checkpoint now; what was learned is kept.
        """
        self._outputs.remove_unfinished()
        with self._host.session(ModelRequest.of(self._config)) as session:
            session.on_wait = lambda waits: self._note(waiting=waits, now=True)
            try:
                state = self._work(session)
            except Stopped:
                state = self._wished_state()
        return self._end(state)  # not before the session is closed: then the host is as it was

    def _work(self, session: Session) -> str:
        """Prepare the run and learn; returns the state that it ends in."""
        work = Preparation(self._run, self._config, self._host, session, self._control, self._note).make(self._dataset)
        if work.held_out and "base" not in self._run.manifest["validation"]:
            self._outputs.validate(work, work.done, 0, base=True)
        number = work.done
        self._losses.extend(self._earlier_losses(number))
        if number:
            self._write_what_is_due(work, work.plan.step(number), again=True)
        while number < work.plan.total_steps:
            if number and self._should_end(work.plan.step(number)):
                return self._stop(work, number)
            number = self._slice(work, number + 1)
        return "done"

    # -------------------------------------------------------------- the steps
    def _slice(self, work: PreparedRun, first: int) -> int:
        """Learn until something is due, wanted by others, or the slice is over; returns the last step's number."""
        learned: list[Learned] = []
        try:
            with work.session.turn():
                until = time.monotonic() + SLICE_SECONDS
                for number in range(first, work.plan.total_steps + 1):
                    step = work.plan.step(number)
                    rates = work.trainer.learning_rates
                    learned.append(Learned(step, self._learn(work, step), rates))
                    if self._is_over(work, step, until):
                        break
            self._record(work, learned)
            self._write_what_is_due(work, learned[-1].step)
        except CheckpointChanged:
            self._keep(work, learned[-1].step.number if learned else first - 1)
            raise
        if work.session.interrupted():
            self._control.ask(StopRequest.STOP)
        return learned[-1].step.number

    def _learn(self, work: PreparedRun, step: Step) -> torch.Tensor:
        """One step; when memory runs out, it is tried again in a way that needs less."""
        while True:
            try:
                return work.trainer.step(step)
            except StepOutOfMemory as error:
                change = work.trainer.need_less_memory()
                if not change:
                    raise out_of_memory(error) from error
                self._note(message=f"Memory ran out at step {step.number}: {change}", now=True)

    def _is_over(self, work: PreparedRun, step: Step, until: float) -> bool:
        last = step.number == work.plan.total_steps
        due = self._outputs.is_due(step, last) or self._should_end(step) or work.session.wanted()
        return due or time.monotonic() >= until or self._state_is_due(step)

    def _should_end(self, step: Step) -> bool:
        return self._control.wants_end_now or (self._control.request is StopRequest.AFTER_EPOCH and step.ends_epoch)

    def _record(self, work: PreparedRun, learned: list[Learned]) -> None:
        """Read the losses, stop at one that is not finite, and tell log and manifest."""
        losses = [float(entry.loss) for entry in learned]  # waits for the device
        now = time.monotonic()
        self._paces.append((len(learned), now - self._slice_end))
        self._slice_end = now
        seconds = self._before + now - self._began
        for entry, loss in zip(learned, losses, strict=True):
            if not math.isfinite(loss):
                raise not_finite(entry.step.number, work.precision)
            self._losses.append(loss)
            step = entry.step
            self._run.log(step=step.number, epoch=step.epoch, loss=loss, lr=entry.rates, seconds=round(seconds, 3))
        pace = sum(count for count, _ in self._paces) / max(1e-9, sum(spent for _, spent in self._paces))
        last, total = learned[-1].step, work.plan.total_steps
        with only_telling():
            work.session.show_progress(self._run.name, last.number, total)
        self._note(
            step=last.number,
            epoch=last.epoch,
            loss=losses[-1],
            loss_average=self._loss_average(),
            lr=learned[-1].rates,
            seconds=seconds,
            steps_per_second=pace,
            seconds_left=(total - last.number) / pace,
        )

    def _write_what_is_due(self, work: PreparedRun, step: Step, *, again: bool = False) -> None:
        last = step.number == work.plan.total_steps
        saved = self._outputs.after(work, step, last, self._loss_average(), again=again)
        if saved or (self._state_is_due(step) and not again):
            self._save_state(work, step.number)

    def _state_is_due(self, step: Step) -> bool:
        save = self._config.save
        if save.state_steps:
            return step.number % save.state_steps == 0
        return bool(save.state_minutes) and time.monotonic() - self._state_at >= 60 * save.state_minutes

    def _save_state(self, work: PreparedRun, number: int) -> None:
        save_state(self._run.states, work.trainer, number, self._config.to_dict())
        self._state_at = time.monotonic()

    def _earlier_losses(self, done: int) -> list[float]:
        """Those of the steps up to ``done``, from where the run goes on: its average is as if it had never ended."""
        kept = self._losses.maxlen or 0
        earlier = (entry for entry in self._run.entries(max(0, done - kept)) if entry["step"] <= done)
        return [loss for entry in earlier if (loss := entry.get("loss")) is not None]

    def _loss_average(self) -> float | None:
        return sum(self._losses) / len(self._losses) if self._losses else None

    # -------------------------------------------------------------- the end
    def _wished_state(self) -> str:
        return "paused" if self._control.request is StopRequest.PAUSE else "stopped"

    def _stop(self, work: PreparedRun, number: int) -> str:
        """Keep what is learned, unless the person does not want it."""
        if self._control.request is not StopRequest.DISCARD:
            self._save_state(work, number)
            written = any(entry["step"] == number for entry in self._run.manifest["files"])
            if self._control.request is not StopRequest.PAUSE and not written:
                metrics = {"loss": self._loss_average(), "validation": None}
                self._outputs.save(work, work.plan.step(number), {"step": number}, metrics)
        return self._wished_state()

    def _keep(self, work: PreparedRun, number: int) -> None:
        if number > 0:
            self._save_state(work, number)

    def _end(self, state: str) -> str:
        seconds = self._before + time.monotonic() - self._began
        self._note(state=state, finished=time.time(), seconds=seconds, phase="", waiting=False, now=True)
        return state

    def _note(self, *, now: bool = False, **values: Any) -> None:
        self._run.update(now=now, **values)
        with only_telling():
            self._changed(self._run)


def not_finite(step: int, precision: str) -> RunError:
    """The sentence for a NaN or Inf loss, with the likely causes."""
    half = "fp16 overflow (try bf16 or fp32), " if precision == "fp16" else ""
    return RunError(
        "The loss became NaN or Inf at step {step}; the files saved before it are kept. Likely causes: {half}a "
        "learning rate that is too high (try a tenth), or a damaged checkpoint or VAE.",
        step=step,
        half=half,
    )
