"""The one state machine: whatever work does, its record tells how it ended."""

from __future__ import annotations

from typing import Any

import pytest

from lora_trainer.core.errors import CheckpointChanged, InputError, Interrupted, LoraTrainError, RunError
from lora_trainer.jobs.job import Progress, Record, carry_out
from lora_trainer.runs.control import Control, StopRequest


class Noted(Record):
    """Keeps what it is told; ``refuses`` are calls that fail, as those of a manifest on a full disk do."""

    def __init__(self, *refuses: str) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._refuses = refuses

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        if call[0] in self._refuses:
            raise RunError("The disk is full.")

    def started(self) -> None:
        self._note("started")

    def told(self, done: int, of: int, **values: Any) -> None:
        self._note("told", done, of, values)

    def finished(self, result: Any) -> None:
        self._note("finished", result)

    def ended(self, state: str, error: BaseException) -> None:
        self._note(state, str(error))


def carried_out(work: Any, *, asked: StopRequest | None = None, refuses: str = "") -> list[tuple[Any, ...]]:
    record, control = Noted(refuses), Control()
    if asked:
        control.ask(asked)
    carry_out(record, work, control)
    return record.calls


def failing(error: BaseException) -> Any:
    def work(progress: Progress) -> None:
        raise error

    return work


def test_a_job_from_its_start_to_its_result() -> None:
    def work(progress: Progress) -> str:
        progress(1, 2, phase="losses")
        progress(2, 2, "half")
        return "all"

    told = [("told", 1, 2, {"phase": "losses"}), ("told", 2, 2, {"result": "half"})]
    assert carried_out(work) == [("started",), *told, ("finished", "all")]


@pytest.mark.parametrize(
    ("error", "asked", "state"),
    [
        (RunError("a"), None, "failed"),
        (InputError("a"), None, "failed"),
        (CheckpointChanged("a"), None, "failed"),
        (Interrupted("a"), None, "stopped"),
        (RunError("a"), StopRequest.STOP, "stopped"),
        (ValueError("a"), None, "failed"),
        (ValueError("a"), StopRequest.STOP, "failed"),
        (SystemExit("a"), None, "failed"),
        (KeyboardInterrupt("a"), None, "failed"),
    ],
)
def test_what_goes_wrong_ends_it_in_a_state(error: BaseException, asked: StopRequest | None, state: str) -> None:
    assert carried_out(failing(error), asked=asked) == [("started",), (state, "a")]


def test_one_that_is_asked_to_stop_does_so_when_it_next_tells_how_far_it_is() -> None:
    calls = carried_out(lambda progress: progress(1, 2), asked=StopRequest.STOP)
    assert calls == [("started",), ("told", 1, 2, {}), ("stopped", "It was stopped.")]


@pytest.mark.parametrize("refuses", ["started", "finished"])
def test_a_record_that_cannot_be_written_is_a_failure(refuses: str) -> None:
    assert carried_out(lambda progress: "all", refuses=refuses)[-1] == ("failed", "The disk is full.")


def test_an_end_that_cannot_be_told_is_logged_and_the_queue_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    assert carried_out(failing(LoraTrainError("a")), refuses="failed")[-1] == ("failed", "a")
    assert "cannot be told" in caplog.text
