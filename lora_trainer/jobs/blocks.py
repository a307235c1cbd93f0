"""Analysis and tuning of a LoRA's blocks: as jobs of page and REST, or at once on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.core.documents import Damaged, read_document
from lora_trainer.core.errors import InputError, Interrupted
from lora_trainer.hosts.base import Host, ModelRequest
from lora_trainer.jobs.block_work import (
    ANALYSIS,
    TUNING,
    OnPart,
    Subject,
    analyzed,
    blocks_folder,
    effort_of,
    plan_of,
    tuned,
)
from lora_trainer.jobs.job import Progress
from lora_trainer.jobs.library import require_readable
from lora_trainer.jobs.requests import FITS, AnalysisDocument, TuningDocument, read
from lora_trainer.jobs.sections import Section, SectionJobs, tell_nobody
from lora_trainer.runs.run import Run
from lora_trainer.runs.store import Runs

if TYPE_CHECKING:
    from lora_trainer.validation.blocks.ablation import AnalysisPlan


class BlocksSection(Section):
    """How far a run's analysis or tuning is."""

    key = "blocks"

    def stopped(self) -> Interrupted:
        """What is said of it when a person has stopped it."""
        return Interrupted("It was stopped; finished pictures are kept.")

    def busy(self) -> InputError:
        """There is one already."""
        return InputError("The blocks of {name} are being looked at already.", name=self.run.name)

    def idle(self) -> InputError:
        """There is none."""
        return InputError("No blocks of {name} are being looked at.", name=self.run.name)


@dataclass(frozen=True)
class Cost:
    """What something would take.

    Attributes:
        count: pictures to draw, or to learn from.
        seconds: about so long; ``None`` when nothing tells yet.
    """

    count: int
    seconds: float | None


class BlockJobs:
    """Starts, stops and tells of both as jobs about a run's file, and does them at once.

    Args:
        host: where the model is.
        jobs: starts them.
        runs: that files may be of.
        find: a run by its name; raises :class:`NotFound`.
        on_change: called when a manifest changed, from the working thread.
    """

    def __init__(
        self,
        host: Host,
        jobs: SectionJobs,
        runs: Runs,
        find: Callable[[str], Run],
        on_change: Callable[[Run], object] = tell_nobody,
    ) -> None:
        self._host = host
        self._jobs = jobs
        self._runs = runs
        self._find = find
        self._on_change = on_change
        self._seconds_each: dict[str, float] = {}

    def section(self, run: Run) -> BlocksSection:
        """Where it stands how far a run's is."""
        return BlocksSection(run, self._on_change)

    def analyze(self, name: str, body: Mapping[str, Any]) -> Run:
        """Draw a file's pictures with each block alone and without each.

        Args:
            name: of the run whose file it is.
            body: an :class:`AnalysisDocument`.

        Raises:
            InputError: one clear sentence, with the field's path.
        """
        run = self._find(name)
        subject, wanted, plan = self._analysis(run, body)
        plan = plan.on(self._host.check(ModelRequest.of(subject.config)))

        def work(on_part: OnPart) -> None:
            analyzed(self._host, subject, plan, subject.folder, wanted.together, on_part)

        return self._start(run, subject.file, ANALYSIS, len(plan.cells()), work)

    def tune(self, name: str, body: Mapping[str, Any]) -> Run:
        """Learn a file's block weights.

        Args:
            name: of the run whose file it is.
            body: a :class:`TuningDocument`.

        Raises:
            InputError: one clear sentence, with the field's path.
        """
        run, wanted = self._find(name), read(TuningDocument, body)
        subject = Subject.of_run(run, wanted.file)
        require_readable(self._host, "pictures", wanted.pictures)
        effort = effort_of(wanted)
        self._host.check(ModelRequest.of(subject.config))

        def work(on_part: OnPart) -> None:
            tuned(self._host, subject, wanted, effort, on_part)

        return self._start(run, subject.file, TUNING, 0, work)

    def cost(self, name: str, body: Mapping[str, Any]) -> dict[str, Cost]:
        """What :meth:`analyze` and :meth:`tune` would take, by :data:`ANALYSIS` and :data:`TUNING`.

        Args:
            name: of the run whose file it is.
            body: as for :meth:`analyze`.

        Raises:
            InputError: as :meth:`analyze` raises it.
        """
        from lora_trainer.validation.blocks.effort import Effort

        subject, _, plan = self._analysis(self._find(name), body)
        effort = Effort()
        counts = {ANALYSIS: len(plan.cells()), TUNING: FITS * effort.steps * effort.batch}
        return {kind: Cost(count, self._estimated(subject, kind, count)) for kind, count in counts.items()}

    def _analysis(self, run: Run, body: Mapping[str, Any]) -> tuple[Subject, AnalysisDocument, AnalysisPlan]:
        """What is wanted, checked, and the pictures to draw for it."""
        wanted = read(AnalysisDocument, body)
        subject = Subject.of_run(run, wanted.file)
        return subject, wanted, plan_of(self._host, subject, wanted)

    def _estimated(self, subject: Subject, kind: str, count: int) -> float | None:
        """Seconds, from the last work of the kind, or else from the run's own steps, which learning weights is like."""
        if kind in self._seconds_each:
            return count * self._seconds_each[kind]
        pace = subject.run.manifest.get("steps_per_second") if subject.run else None
        if kind != TUNING or not isinstance(pace, (int, float)) or pace <= 0:
            return None
        training = subject.config.training
        return count / (pace * training.batch_size * training.accumulate)

    def stop(self, name: str) -> Run:
        """Stop what is done for the blocks of a run; finished pictures are kept.

        Raises:
            InputError: nothing is done.
        """
        run = self._find(name)
        self._jobs.stop(self.section(run))
        return run

    def progress(self, run: Run) -> dict[str, Any]:
        """How far a run's analysis or tuning is: ``state``, ``kind``, ``file``, ``done``, ``of``, ``message``, and
        ``stopping`` once it was asked to.
        """
        return self._jobs.progress(self.section(run))

    def report(self, name: str, file: str = "") -> dict[str, Any]:
        """Everything that is known of the blocks of a run's file.

        Args:
            name: of the run.
            file: the file's name without extension; the last one when empty.

        Returns:
            ``progress``, the heat map ``heat`` of all files, ``file``, and the documents ``analysis`` and ``tuning``,
            ``None`` for what was not done with this very file; ``problems`` has a sentence for what is damaged.

        Raises:
            InputError: no such file.
        """
        from lora_trainer.runs.saved_files import find_file, run_files
        from lora_trainer.validation.blocks.norms import heat_map

        run = self._find(name)
        found = find_file(run, file)
        problems = []
        results: dict[str, Any] = {}
        for kind in (ANALYSIS, TUNING):
            try:
                results[kind] = read_result(run, found.path, kind)
            except InputError as error:
                results[kind] = None
                problems.append(str(error))
        return {
            "progress": self.progress(run),
            "heat": heat_map(run.name, run_files(run)),
            "file": found.path.stem,
            **results,
            "problems": problems,
        }

    def _start(self, run: Run, file: Path, kind: str, of: int, work: Callable[[OnPart], object]) -> Run:
        from lora_trainer.validation.grid.draw import pace

        def paced(progress: Progress) -> None:
            def note(done: int, of: int, seconds_left: float | None) -> None:
                if seconds_left and of > done:
                    self._seconds_each[kind] = seconds_left / (of - done)
                progress(done, of, seconds_left=seconds_left)

            work(pace(note))

        begun = {"kind": kind, "file": file.stem, "of": of, "seconds_left": None, "message": "", "error": {}}
        self._jobs.start(self.section(run), paced, **begun)
        return run

    # -------------------------------------------------------------- at once
    def subject_of_run(self, name: str, epoch: int | None = None) -> Subject:
        """A file of a run by its epoch, the last one by default; raises :class:`InputError`."""
        return Subject.of_run(self._find(name), epoch=epoch)

    def subject_of_file(self, file: Path) -> Subject:
        """A file by its path; raises :class:`InputError` when there is none."""
        return Subject.of_file(file, self._runs)

    def plan(self, subject: Subject, wanted: AnalysisDocument, trigger: str | None) -> AnalysisPlan:
        """The pictures of an analysis on the host's checkpoint; see :func:`plan_of`."""
        return plan_of(self._host, subject, wanted, trigger).on(self._host.check(ModelRequest.of(subject.config)))

    def analyze_now(
        self, subject: Subject, plan: AnalysisPlan, folder: Path, together: int, on_cells: OnPart
    ) -> dict[str, Any]:
        """Carry an analysis out and return its document; see :func:`analyzed`."""
        return analyzed(self._host, subject, plan, folder, together, on_cells)

    def tune_now(self, subject: Subject, wanted: TuningDocument, on_part: OnPart, **places: Any) -> dict[str, Any]:
        """Learn block weights and return their document; see :func:`tuned`."""
        effort = effort_of(wanted)
        self._host.check(ModelRequest.of(subject.config))
        return tuned(self._host, subject, wanted, effort, on_part, **places)


def read_result(run: Run, file: Path, kind: str) -> dict[str, Any] | None:
    """The document of a file, :data:`ANALYSIS` or :data:`TUNING`; ``None`` when it is about other bytes, or none.

    Raises:
        InputError: it is damaged.
    """
    from lora_trainer.validation.blocks.documents import Made, read_analysis, read_tuning

    path = blocks_folder(run) / file.stem / f"{kind}.json"
    known = {str(entry["path"]): entry.get("sha256") for entry in run.manifest["files"]}
    try:
        if read_document(path, Made)["sha256"] != known.get(str(file)):
            return None
        return read_analysis(path) if kind == ANALYSIS else read_tuning(path)
    except FileNotFoundError:
        return None
    except (OSError, Damaged) as error:
        raise InputError(
            "What is known of the blocks of {file} cannot be read: {path} is damaged ({place}); do it again.",
            file=file.stem,
            path=path,
            place=error.place if isinstance(error, Damaged) else error.strerror or error,
        ) from error


def known_result(run: Run, file: Path, kind: str) -> dict[str, Any] | None:
    """As :func:`read_result`, and ``None`` for one that is damaged."""
    try:
        return read_result(run, file, kind)
    except InputError:
        return None
