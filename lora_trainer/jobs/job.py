"""A piece of work's way from the queue to its end: one for runs, grids, blocks, file tools and mixes.

A new kind of work is a function that does it, and a :class:`Record` where it is told how far it is.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from lora_trainer.core.errors import Interrupted, LoraTrainError
from lora_trainer.runs.control import Control, StopRequest

log = logging.getLogger(__name__)


class Record(ABC):
    """Where it stands how far a job is: in memory, or in the manifest of the run that it is about.

    The states are queued → running → done, stopped, paused or failed. Two records of the same job are equal, so that
    the queue finds it by either.
    """

    @abstractmethod
    def started(self) -> None:
        """The job's turn has come."""

    def told(self, done: int, of: int, **values: Any) -> None:  # noqa: B027 - work may write for itself what is told
        """So much of it is done.

        Args:
            done: parts.
            of: parts in all.
            values: what else is known by now.
        """

    @abstractmethod
    def finished(self, result: Any) -> None:
        """It is over, and this is what came of it."""

    @abstractmethod
    def ended(self, state: str, error: BaseException) -> None:
        """It is over in another state than done, for this reason."""

    def stopped(self) -> LoraTrainError:
        """What is said of it when a person has stopped it."""
        return Interrupted("It was stopped.")

    def state_after(self, error: BaseException, asked: StopRequest | None) -> str:
        """The state that an error leaves it in; what a person ``asked`` for has not failed."""
        is_stopped = isinstance(error, Interrupted) or (asked and isinstance(error, LoraTrainError))
        return "stopped" if is_stopped else "failed"


class Progress:
    """Given to work: it tells through this how far it is, and learns that it shall end.

    Attributes:
        record: where that stands.
        control: what a person asked for.
    """

    def __init__(self, record: Record, control: Control) -> None:
        self.record = record
        self.control = control

    def __call__(self, done: int, of: int, result: Any = None, **values: Any) -> None:
        """Tell how far it is.

        Args:
            done: parts.
            of: parts in all.
            result: what there is of it so far, where that is of use by itself.
            values: what else is known by now.

        Raises:
            LoraTrainError: somebody has stopped it.
        """
        self.record.told(done, of, **({} if result is None else {"result": result}), **values)
        if self.control.request:
            raise self.record.stopped()


Work = Callable[[Progress], Any]
"""Does a job and returns what came of it, for :meth:`Record.finished`."""


def carry_out(record: Record, work: Work, control: Control) -> None:
    """Do a job; whatever goes wrong ends up as a sentence in its record, and nothing is raised."""
    try:
        record.started()
        record.finished(work(Progress(record, control)))
    except BaseException as error:  # a library's SystemExit, too
        if not isinstance(error, LoraTrainError):
            log.exception("%s failed", record)
        _end(record, error, control)


def _end(record: Record, error: BaseException, control: Control) -> None:
    try:
        record.ended(record.state_after(error, control.request), error)
    except Exception:
        log.exception("How %s ended cannot be told", record)
