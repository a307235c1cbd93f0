"""A line of jobs that are done one after another on a thread of their own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lora_trainer.jobs.job import Record, Work, carry_out
from lora_trainer.runs.control import Control, StopRequest

log = logging.getLogger(__name__)


@dataclass(eq=False)
class QueuedJob:
    """One piece of work; ``run`` is what it is for, a run or a :class:`Record`, by which it is found."""

    run: Any
    work: Callable[[Control], object]
    control: Control = field(default_factory=Control)


class JobQueue:
    """Tasks that are done one after another on a thread of their own."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: list[QueuedJob] = []
        self._current: QueuedJob | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, job: QueuedJob) -> bool:
        """Put a task at the end; returns whether its turn comes at once."""
        with self._changed:
            is_next = self._current is None and not self._waiting
            self._waiting.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._go, name=self._name, daemon=True)
                self._thread.start()
            return is_next

    def start(self, record: Record, work: Work) -> None:
        """Put work at the end whose way is told in ``record``."""
        self.add(QueuedJob(record, lambda control: carry_out(record, work, control)))

    def stop(self, record: Record) -> bool:
        """Stop the job of a record: one that waits is over at once, one that is worked on is asked to end.

        Returns:
            ``False`` when there is none.
        """
        job = self.find(record)
        if job is None:
            return False
        if self.remove(job):
            record.ended("stopped", record.stopped())
        job.control.ask(StopRequest.STOP)
        return True

    def find(self, run: object) -> QueuedJob | None:
        """The task of a run, waiting or worked on."""
        with self._changed:
            tasks = [self._current, *self._waiting] if self._current else self._waiting
            return next((job for job in tasks if job.run == run), None)

    def remove(self, job: QueuedJob) -> bool:
        """Take a waiting task out; ``False`` when it is worked on already."""
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                return True
            return False

    def move(self, job: QueuedJob, place: int) -> bool:
        """Give a waiting task another place, 0 for the next; ``False`` when it does not wait."""
        with self._changed:
            if job not in self._waiting:
                return False
            self._waiting.remove(job)
            self._waiting.insert(max(0, place), job)
            return True

    def current(self) -> QueuedJob | None:
        """The task that is worked on."""
        return self._current

    def waiting(self) -> list[QueuedJob]:
        """The tasks in line."""
        with self._changed:
            return list(self._waiting)

    def wait(self, run: object, timeout: float | None = None) -> bool:
        """Wait until no task of ``run`` is left; ``False`` when the time ran out before."""
        until = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while any(job.run == run for job in (self._current, *self._waiting) if job):
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(1.0 if left is None else min(left, 1.0))
        return True

    def _go(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._thread = None
                    return
                self._current = self._waiting.pop(0)
            try:
                self._current.work(self._current.control)
            except BaseException:  # a library's SystemExit, too, would end the thread and the line with it
                log.exception("%s: unexpected error", self._name)
            finally:
                with self._changed:
                    self._current = None
                    self._changed.notify_all()
