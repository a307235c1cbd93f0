"""Work that a page or REST starts and looks after later: file tools, random mixes. Kept in memory only.

Runs are folders with a manifest (:mod:`lora_trainer.runs.run`); a chore is over in minutes, and what it makes is a file
that speaks for itself.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from lora_trainer.core.errors import InputError, Interrupted, LoraTrainError, NotFound, unexpected
from lora_trainer.jobs.queue import Line, Task
from lora_trainer.runs.control import Control
from lora_trainer.runs.run import UNFINISHED

log = logging.getLogger(__name__)
REMEMBERED = 50


class Outcome(Protocol):
    """What a chore makes."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""


class Progress(Protocol):
    """Tells how far a chore is; raises :class:`Interrupted` once somebody has stopped it."""

    def __call__(self, done: int, of: int, result: Outcome | None = None) -> object:
        """``result`` is what there is so far, where that is of use by itself."""


@dataclass(eq=False)
class Chore:
    """One piece of such work.

    Attributes:
        id: as it is asked for, e.g. ``merge-3``.
        kind: what is done: ``bake``, ``merge``, ``resize``, ``extract`` or ``mix``.
        title: name of what is made.
        state: one of :data:`lora_trainer.runs.run.STATES`, but for ``paused``.
        done: how much of it is done.
        of: how much there is; 0 while nobody knows.
        result: what it made, once it is done; or what there is of it so far.
        error: why it failed or stopped.
    """

    id: str
    kind: str
    title: str
    state: str = "queued"
    done: int = 0
    of: int = 0
    result: Any = None
    error: LoraTrainError | None = None

    @property
    def is_working(self) -> bool:
        """Whether it waits or goes on."""
        return self.state in UNFINISHED

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "id": self.id,
            "kind": self.kind,
            "title": self.title,
            "state": self.state,
            "done": self.done,
            "of": self.of,
            "message": str(self.error) if self.error else "",
            "result": self.result.to_dict() if self.result else None,
        }


class Chores:
    """Chores that are done one after another.

    Args:
        line: that they wait in.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        self._chores: dict[str, Chore] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def start(self, kind: str, title: str, work: Callable[[Progress], Outcome]) -> Chore:
        """Put a chore into the line.

        Args:
            kind: see :class:`Chore`.
            title: see :class:`Chore`.
            work: does it, and tells how far it is.
        """
        task = Task(None, lambda control: _carry_out(chore, work, control))
        chore = task.run = Chore(f"{kind}-{next(self._numbers)}", kind, title)
        with self._lock:
            self._chores[chore.id] = chore
            over = [each.id for each in self._chores.values() if not each.is_working]
            for old in over[: max(0, len(self._chores) - REMEMBERED)]:
                del self._chores[old]
        self._line.add(task)
        return chore

    def get(self, name: str) -> Chore:
        """A chore by its id.

        Raises:
            NotFound: there is none; the newest :data:`REMEMBERED` are known until the program ends.
        """
        with self._lock:
            chore = self._chores.get(name)
        if chore is None:
            raise NotFound(
                "There is no work {name}; it may be from before the last start.", field="id", name=name[:100]
            )
        return chore

    def list(self) -> list[Chore]:
        """All that are remembered, newest first."""
        with self._lock:
            return list(reversed(self._chores.values()))

    def stop(self, name: str) -> Chore:
        """Stop a chore; nothing half-made is left.

        Raises:
            NotFound: there is none of this id.
            InputError: it is over already.
        """
        chore = self.get(name)
        task = self._line.find(chore)
        if task is None:
            raise InputError("{name} is over already; there is nothing to stop.", field="id", name=chore.title)
        if self._line.remove(task):
            chore.error, chore.state = _stopped(), "stopped"
        task.control.ask("stop")
        return chore

    def wait(self, chore: Chore, timeout: float | None = None) -> bool:
        """Wait until a chore is over; ``False`` when the time ran out before."""
        return self._line.wait(chore, timeout)


def _stopped() -> Interrupted:
    return Interrupted("It was stopped.")


def _carry_out(chore: Chore, work: Callable[[Progress], Outcome], control: Control) -> None:
    """Do the work; whatever goes wrong ends up as a sentence in the chore."""

    def progress(done: int, of: int, result: Outcome | None = None) -> None:
        chore.done, chore.of, chore.result = done, of, result or chore.result
        if control.wish:
            raise _stopped()

    chore.state = "running"
    try:
        chore.result = work(progress)
        chore.state = "done"
    except Interrupted as error:
        chore.error, chore.state = error, "stopped"
    except LoraTrainError as error:
        chore.error, chore.state = error, "failed"
    except BaseException as error:
        log.exception("%s failed", chore.id)
        chore.error = unexpected(error)
        chore.state = "failed"
