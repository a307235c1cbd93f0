"""Jobs about a run: how far each is stands in a section of its own in the run's manifest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lora_trainer.core.errors import InputError, explain
from lora_trainer.core.process import is_alive, this_process
from lora_trainer.jobs.job import Record, Work
from lora_trainer.jobs.queue import JobQueue
from lora_trainer.runs.run import UNFINISHED, Run


def tell_nobody(run: Run) -> None:
    """For jobs whose manifest is looked at from time to time."""


@dataclass(frozen=True)
class Section(Record):
    """One section of a run's manifest.

    Attributes:
        run: whose manifest it is.
        on_change: called when it changed, from the working thread.
        key: of the section.
    """

    run: Run
    on_change: Callable[[Run], object] = field(default=tell_nobody, compare=False, repr=False)
    key: ClassVar[str]

    def __str__(self) -> str:
        return f"{self.key} of {self.run.name}"

    @property
    def known(self) -> dict[str, Any]:
        """What the section holds."""
        manifest: Mapping[str, Any] = self.run.manifest
        return dict(manifest.get(self.key) or {})

    def queued(self, **values: Any) -> None:
        """Begin the section anew with these values; the job waits."""
        self.run.update(**{self.key: {"state": "queued", "done": 0, **values}}, now=True)

    def started(self) -> None:
        """The job's turn has come."""
        self._note(state="running")

    def told(self, done: int, of: int, **values: Any) -> None:
        """So much of it is done; that is written at most once a second, but another ``phase`` at once."""
        is_new = values.get("phase") != self.known.get("phase")
        self._note(now=is_new, state="running", done=done, of=of, **values)

    def finished(self, result: Any) -> None:
        """It is over; ``result`` has what the section shall tell of it."""
        self._note(state="done", **(result or {}))

    def ended(self, state: str, error: BaseException) -> None:
        """It is over in another state, for this reason."""
        self._note(state=state, **explain(error))

    @abstractmethod
    def busy(self) -> InputError:
        """What is said when another job of this kind is asked for."""

    @abstractmethod
    def idle(self) -> InputError:
        """What is said when there is none to be stopped."""

    def _note(self, *, now: bool = True, **values: Any) -> None:
        self.run.update(**{self.key: {**self.known, **values}}, now=now)
        self.on_change(self.run)


class SectionJobs:
    """Starts and stops such jobs, and tells how far they are.

    Args:
        queue: that they wait in.
    """

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue

    def start(self, section: Section, work: Work, **begun: Any) -> None:
        """Put a job into the queue.

        Args:
            section: where it is told how far it is.
            work: does it; what it returns, a mapping or nothing, is added to the section.
            begun: what the section tells while the job waits.

        Raises:
            InputError: the run has such a job already.
        """
        if self._queue.find(section):
            raise section.busy()
        section.queued(**begun)
        self._queue.start(section, work)

    def stop(self, section: Section) -> None:
        """Stop the job; what is finished of it is kept. Raises :class:`InputError` when there is none."""
        if not self._queue.stop(section):
            raise section.idle()

    def goes_on(self, section: Section) -> bool:
        """Whether the job waits or is worked on here."""
        return self._queue.find(section) is not None

    def settled(self, section: Section) -> dict[str, Any]:
        """What is known of the job: the section, and ``stopped`` when its program ended before it did."""
        known = section.known
        is_over = known.get("state") not in UNFINISHED or self.goes_on(section) or _is_others(known.get("process"))
        return known if is_over else {**known, "state": "stopped", **explain(section.stopped())}

    def progress(self, section: Section) -> dict[str, Any]:
        """The same, and ``stopping`` once it was asked to."""
        job = self._queue.find(section)
        known = self.settled(section)
        return {**known, "stopping": True} if job and job.control.request else known

    def wait(self, section: Section, timeout: float | None = None) -> bool:
        """Wait until the job is over; ``False`` when the time ran out before."""
        return self._queue.wait(section, timeout)


def _is_others(process: Any) -> bool:
    """Whether another program does a job, as far as its section can tell."""
    return process != this_process() and is_alive(process)
