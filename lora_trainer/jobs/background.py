"""Work that a page or REST starts and looks after later: file tools, random mixes. Kept in memory only.

Runs are folders with a manifest (:mod:`lora_trainer.runs.run`); a task is over in minutes, and what it makes is a file
that speaks for itself.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from lora_trainer.core.errors import InputError, LoraTrainError, NotFound, unexpected
from lora_trainer.jobs.job import Progress, Record
from lora_trainer.jobs.queue import JobQueue
from lora_trainer.runs.run import UNFINISHED

REMEMBERED = 50


class Outcome(Protocol):
    """What a task makes."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""


@dataclass(eq=False)
class BackgroundTask(Record):
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

    def __str__(self) -> str:
        return self.id

    @property
    def is_working(self) -> bool:
        """Whether it waits or goes on."""
        return self.state in UNFINISHED

    def started(self) -> None:
        """Its turn has come."""
        self.state = "running"

    def told(self, done: int, of: int, result: Outcome | None = None, **values: Any) -> None:
        """So much of it is done; ``result`` is what there is of it so far."""
        self.done, self.of, self.result = done, of, result or self.result

    def finished(self, result: Outcome) -> None:
        """It is over."""
        self.result = result
        self.state = "done"

    def ended(self, state: str, error: BaseException) -> None:
        """It is over in another state, for this reason."""
        self.error = error if isinstance(error, LoraTrainError) else unexpected(error)
        self.state = state

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


class BackgroundTasks:
    """Chores that are done one after another.

    Args:
        line: that they wait in.
    """

    def __init__(self, line: JobQueue) -> None:
        self._line = line
        self._tasks: dict[str, BackgroundTask] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def start(self, kind: str, title: str, work: Callable[[Progress], Outcome]) -> BackgroundTask:
        """Put a task into the line.

        Args:
            kind: see :class:`BackgroundTask`.
            title: see :class:`BackgroundTask`.
            work: does it, and tells how far it is.
        """
        task = BackgroundTask(f"{kind}-{next(self._numbers)}", kind, title)
        with self._lock:
            self._tasks[task.id] = task
            over = [each.id for each in self._tasks.values() if not each.is_working]
            for old in over[: max(0, len(self._tasks) - REMEMBERED)]:
                del self._tasks[old]
        self._line.start(task, work)
        return task

    def get(self, name: str) -> BackgroundTask:
        """A task by its id.

        Raises:
            NotFound: there is none; the newest :data:`REMEMBERED` are known until the program ends.
        """
        with self._lock:
            task = self._tasks.get(name)
        if task is None:
            raise NotFound(
                "There is no work {name}; it may be from before the last start.", field="id", name=name[:100]
            )
        return task

    def list(self) -> list[BackgroundTask]:
        """All that are remembered, newest first."""
        with self._lock:
            return list(reversed(self._tasks.values()))

    def stop(self, name: str) -> BackgroundTask:
        """Stop a task; nothing half-made is left.

        Raises:
            NotFound: there is none of this id.
            InputError: it is over already.
        """
        task = self.get(name)
        if not self._line.stop(task):
            raise InputError("{name} is over already; there is nothing to stop.", field="id", name=task.title)
        return task

    def wait(self, task: BackgroundTask, timeout: float | None = None) -> bool:
        """Wait until a task is over; ``False`` when the time ran out before."""
        return self._line.wait(task, timeout)
