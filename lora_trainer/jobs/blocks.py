"""Analysis and tuning of a LoRA's blocks: as jobs of page and REST, or at once on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.documents import Damaged, read_document
from lora_trainer.core.errors import InputError, Interrupted, concerning
from lora_trainer.core.paths import is_file
from lora_trainer.hosts.base import Host, ModelRequest, draw_request
from lora_trainer.jobs.job import Progress
from lora_trainer.jobs.library import require_readable
from lora_trainer.jobs.requests import FITS, AnalysisDocument, TuningDocument, read
from lora_trainer.jobs.sections import Section, SectionJobs, tell_nobody
from lora_trainer.runs.run import Run
from lora_trainer.runs.store import Runs

if TYPE_CHECKING:
    from lora_trainer.network.blocks.presets import Presets
    from lora_trainer.runs.saved_files import SavedFile
    from lora_trainer.validation.blocks.ablation import AnalysisPlan
    from lora_trainer.validation.blocks.effort import Effort
    from lora_trainer.validation.metrics.evaluation_set import Pictures

ANALYSIS, TUNING = "analysis", "tuning"
OnPart = Callable[[int, int], None]
"""Told how much is done, and of how much; may raise to stop."""


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


@dataclass(frozen=True)
class Subject:
    """What is looked at: a run's file, or a file by itself.

    Attributes:
        name: of run or file.
        run: that it is, or that has the file.
        file: the LoRA.
        files: all that a heat map has.
        config: checkpoint, size, sampler, pictures.
        folder: where results go.
    """

    name: str
    run: Run | None
    file: Path
    files: Sequence[SavedFile]
    config: TrainConfig
    folder: Path

    @classmethod
    def of_run(cls, run: Run, name: str = "", epoch: int | None = None) -> Subject:
        """A file of a run by its name or epoch; the last one when neither is given.

        Raises:
            InputError: the run has no such file, or it is gone.
        """
        from lora_trainer.runs.saved_files import find_file, run_files

        file = find_file(run, name, epoch)
        files = run_files(run) if epoch is None else [file]
        return cls(run.name, run, file.path, files, run.config(), blocks_folder(run))

    @classmethod
    def of_file(cls, file: Path, runs: Runs) -> Subject:
        """A file by its path; when one of the runs has written it, its pictures and settings count.

        Raises:
            InputError: there is no such file.
        """
        from lora_trainer.runs.saved_files import SavedFile, run_of

        if not is_file(file):
            raise InputError("{path} does not exist; check the path.", path=file)
        run = run_of(file, runs.list())
        config = run.config() if run else TrainConfig(name="blocks")
        folder = blocks_folder(run) if run else runs.root.parent / "blocks"
        return cls(file.stem, run, file, [SavedFile(file, file.stem)], config, folder)

    def changed(self, **values: Any) -> Subject:
        """The same with other settings, by dotted key with ``__`` for the dot; ``None`` changes nothing."""
        given = {key.replace("__", "."): value for key, value in values.items() if value is not None}
        return replace(self, config=self.config.with_values(given))


# ------------------------------------------------------------------ the work
def plan_of(host: Host, subject: Subject, wanted: AnalysisDocument, trigger: str | None = None) -> AnalysisPlan:
    """The pictures of an analysis.

    Args:
        host: knows the size of a file's pictures that is of no run.
        subject: the file.
        wanted: without prompts those of the samples, else the trigger word; without seeds the samples' one.
        trigger: the word that asks for its subject; the run's when none is given.

    Raises:
        InputError: one clear sentence, with the field's path.
    """
    from lora_trainer.validation.blocks.ablation import plan_analysis
    from lora_trainer.validation.grid.plan import trigger_of

    config, samples = subject.config, subject.config.samples
    prompts = wanted.prompts or samples.prompts or [config.data.trigger or config.name]
    size = config.data.resolution if subject.run else host.native_resolution(ModelRequest.of(config))
    return plan_analysis(
        subject.file,
        prompts,
        wanted.seeds or [samples.seed],
        draw_request(samples, "", size),
        weight=wanted.weight,
        trigger=trigger_of(config, prompts) if trigger is None else trigger,
    )


def analyzed(
    host: Host, subject: Subject, plan: AnalysisPlan, folder: Path, together: int, on_cells: OnPart
) -> dict[str, Any]:
    """Draw what is missing of an analysis and measure it; see :func:`lora_trainer.validation.blocks.ablation.analyze`.

    Args:
        host: draws.
        subject: the file.
        plan: the pictures.
        folder: where they go.
        together: pictures drawn at once.
        on_cells: told how many are there.
    """
    from lora_trainer.validation.blocks.ablation import analyze

    with host.session(ModelRequest.of(subject.config)) as session:
        settled = plan.on(host.check(ModelRequest.of(subject.config)), session.draw_settings())
        return analyze(settled, session, folder, together=together, on_cells=on_cells)


def effort_of(wanted: TuningDocument) -> Effort:
    """How thoroughly weights are looked for; raises :class:`InputError`."""
    from lora_trainer.validation.blocks.effort import Effort

    return Effort(steps=wanted.steps, l1=wanted.pull, seed=wanted.seed)


def tuned(
    host: Host,
    subject: Subject,
    wanted: TuningDocument,
    effort: Effort,
    on_part: OnPart,
    *,
    presets: Presets | None = None,
    output: Path | None = None,
    on_pictures: Callable[[Pictures], object] = lambda pictures: None,
) -> dict[str, Any]:
    """Learn block weights; see :func:`lora_trainer.validation.blocks.report.tune`.

    Args:
        host: has the model.
        subject: the file.
        wanted: weight, pictures and seed.
        effort: how thoroughly, see :func:`effort_of`.
        on_part: told how much is done.
        presets: to try too; the host's when none are given.
        output: file of the result; by default where the page looks for it.
        on_pictures: given what is learned from, before that begins.
    """
    from lora_trainer.validation.blocks.report import tune
    from lora_trainer.validation.metrics.evaluation_set import find_pictures

    config = subject.config
    fingerprint = subject.run.fingerprint if subject.run else ""
    with host.session(ModelRequest.of(config)) as session:
        with concerning("pictures"):
            pictures = find_pictures(host, session, config, wanted.pictures, fingerprint=fingerprint, seed=wanted.seed)
        on_pictures(pictures)
        return tune(
            session,
            subject.file,
            pictures,
            precision=config.training.precision,
            weight=wanted.weight,
            effort=effort,
            presets=presets or host.block_presets(),
            output=output or subject.folder / subject.file.stem / f"{TUNING}.json",
            on_part=on_part,
        )


# ------------------------------------------------------------------ as jobs
class BlockJobs:
    """Starts, stops and tells of both as jobs about a run's file.

    Args:
        host: where the model is.
        jobs: starts them.
        on_change: called when a manifest changed, from the working thread.
    """

    def __init__(self, host: Host, jobs: SectionJobs, on_change: Callable[[Run], object] = tell_nobody) -> None:
        self._host = host
        self._jobs = jobs
        self._on_change = on_change
        self._seconds_each: dict[str, float] = {}

    def section(self, run: Run) -> BlocksSection:
        """Where it stands how far a run's is."""
        return BlocksSection(run, self._on_change)

    def analyze(self, run: Run, body: Mapping[str, Any]) -> None:
        """Draw a file's pictures with each block alone and without each.

        Args:
            run: whose file it is.
            body: an :class:`AnalysisDocument`.

        Raises:
            InputError: one clear sentence, with the field's path.
        """
        subject, wanted, plan = self._analysis(run, body)
        plan = plan.on(self._host.check(ModelRequest.of(subject.config)))

        def work(on_part: OnPart) -> None:
            analyzed(self._host, subject, plan, subject.folder, wanted.together, on_part)

        self._start(run, subject.file, ANALYSIS, len(plan.cells()), work)

    def tune(self, run: Run, body: Mapping[str, Any]) -> None:
        """Learn a file's block weights.

        Args:
            run: whose file it is.
            body: a :class:`TuningDocument`.

        Raises:
            InputError: one clear sentence, with the field's path.
        """
        wanted = read(TuningDocument, body)
        subject = Subject.of_run(run, wanted.file)
        require_readable(self._host, "pictures", wanted.pictures)
        effort = effort_of(wanted)
        self._host.check(ModelRequest.of(subject.config))

        def work(on_part: OnPart) -> None:
            tuned(self._host, subject, wanted, effort, on_part)

        self._start(run, subject.file, TUNING, 0, work)

    def cost(self, run: Run, body: Mapping[str, Any]) -> dict[str, Cost]:
        """What :meth:`analyze` and :meth:`tune` would take, by :data:`ANALYSIS` and :data:`TUNING`.

        Args:
            run: whose file it is.
            body: as for :meth:`analyze`.

        Raises:
            InputError: as :meth:`analyze` raises it.
        """
        from lora_trainer.validation.blocks.effort import Effort

        subject, _, plan = self._analysis(run, body)
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

    def report(self, run: Run, file: str = "") -> dict[str, Any]:
        """Everything that is known of the blocks of a run's file.

        Args:
            run: the run.
            file: the file's name without extension; the last one when empty.

        Returns:
            ``progress``, the heat map ``heat`` of all files, ``file``, and the documents ``analysis`` and ``tuning``,
            ``None`` for what was not done with this very file; ``problems`` has a sentence for what is damaged.

        Raises:
            InputError: no such file.
        """
        from lora_trainer.runs.saved_files import find_file, run_files
        from lora_trainer.validation.blocks.norms import heat_map

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
            "progress": self._jobs.progress(self.section(run)),
            "heat": heat_map(run.name, run_files(run)),
            "file": found.path.stem,
            **results,
            "problems": problems,
        }

    def _start(self, run: Run, file: Path, kind: str, of: int, work: Callable[[OnPart], object]) -> None:
        from lora_trainer.validation.grid.draw import pace

        def paced(progress: Progress) -> None:
            def note(done: int, of: int, seconds_left: float | None) -> None:
                if seconds_left and of > done:
                    self._seconds_each[kind] = seconds_left / (of - done)
                progress(done, of, seconds_left=seconds_left)

            work(pace(note))

        begun = {"kind": kind, "file": file.stem, "of": of, "seconds_left": None, "message": "", "error": {}}
        self._jobs.start(self.section(run), paced, **begun)


def blocks_folder(run: Run) -> Path:
    """Where pictures and documents about a run's blocks are."""
    return run.grids / "blocks"


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
