"""Analysis and tuning of a LoRA's blocks: of which file, and the work itself, in the thread that asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError, concerning
from lora_trainer.core.paths import is_file
from lora_trainer.hosts.base import Host, ModelRequest, draw_request
from lora_trainer.jobs.requests import AnalysisDocument, TuningDocument
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


def blocks_folder(run: Run) -> Path:
    """Where pictures and documents about a run's blocks are."""
    return run.grids / "blocks"
