"""Block analysis and block tuning as page and REST ask for them: in the drawing line, told in the run's manifest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.core.documents import Damaged, read_document
from lora_trainer.core.errors import InputError, Interrupted, LoraTrainError, concerning, explain
from lora_trainer.hosts.base import Host, ModelRequest, draw_request
from lora_trainer.jobs.library import require_readable
from lora_trainer.jobs.queue import JobQueue, QueuedJob
from lora_trainer.jobs.requests import FITS, AnalysisDocument, TuningDocument, read, read_seeds
from lora_trainer.runs.control import Control, StopRequest
from lora_trainer.runs.run import UNFINISHED, Run

if TYPE_CHECKING:
    from lora_trainer.config.train import TrainConfig
    from lora_trainer.validation.blocks.ablation import AnalysisPlan

log = logging.getLogger(__name__)
ANALYSIS, TUNING = "analysis", "tuning"


@dataclass(frozen=True)
class Cost:
    """What something would take.

    Attributes:
        count: pictures to draw, or to learn from.
        seconds: about so long; ``None`` when nothing tells yet.
    """

    count: int
    seconds: float | None


@dataclass(eq=False)
class _Work:
    """What a run's tasks are found by in the line."""

    run: Run


class BlockJobs:
    """Starts, stops and tells of them.

    Args:
        host: where the model is.
        settled: the run of a name; raises :class:`NotFound`.
        line: that they wait in.
        on_change: called when a manifest changed, from the working thread.
    """

    def __init__(
        self, host: Host, settled: Callable[[str], Run], line: JobQueue, on_change: Callable[[Run], object]
    ) -> None:
        self._host = host
        self._settled = settled
        self._line = line
        self._on_change = on_change
        self._works: dict[str, _Work] = {}
        self._seconds_each: dict[str, float] = {}

    def analyze(self, name: str, body: Mapping[str, Any]) -> Run:
        """Draw a file's pictures with each block alone and without each.

        Args:
            name: the run.
            body: an :class:`AnalysisDocument`, and ``seeds``, whole numbers; the samples' seed when there are none.

        Raises:
            InputError: one clear sentence, with the field's path.
        """
        from lora_trainer.validation.blocks.ablation import analyze

        run = self._settled(name)
        config = run.config()
        wanted, plan = self._analysis(run, config, body)
        plan = plan.on(self._host.check(ModelRequest.of(config)))
        file = plan.file

        def work(progress: Callable[[int, int], None]) -> None:
            with self._host.session(ModelRequest.of(config)) as session:
                settled = plan.on(self._host.check(ModelRequest.of(config)), session.draw_settings())
                analyze(settled, session, blocks_folder(run), together=wanted.together, on_cells=progress)

        self._start(run, ANALYSIS, file, len(plan.cells()), work)
        return run

    def tune(self, name: str, body: Mapping[str, Any]) -> Run:
        """Learn a file's block weights.

        Args:
            name: the run.
            body: a :class:`TuningDocument`.

        Raises:
            InputError: one clear sentence, with the field's path.
        """
        from lora_trainer.runs.saved_files import find_file

        wanted = read(TuningDocument, body)
        run = self._settled(name)
        config = run.config()
        file = find_file(run, wanted.file)
        require_readable(self._host, "pictures", wanted.pictures)
        self._host.check(ModelRequest.of(config))

        def work(progress: Callable[[int, int], None]) -> None:
            from lora_trainer.validation.blocks.report import tune
            from lora_trainer.validation.blocks.tuner import Effort
            from lora_trainer.validation.metrics.evaluation_set import find_pictures

            with self._host.session(ModelRequest.of(config)) as session:
                with concerning("pictures"):
                    pictures = find_pictures(
                        self._host,
                        session,
                        config,
                        wanted.pictures,
                        fingerprint=run.fingerprint,
                        seed=wanted.seed,
                    )
                tune(
                    session,
                    file.path,
                    pictures,
                    precision=config.training.precision,
                    weight=wanted.weight,
                    effort=Effort(steps=wanted.steps, l1=wanted.pull, seed=wanted.seed),
                    presets=self._host.block_presets(),
                    output=blocks_folder(run) / file.path.stem / f"{TUNING}.json",
                    on_part=progress,
                )

        self._start(run, TUNING, file.path, 0, work)
        return run

    def cost(self, name: str, body: Mapping[str, Any]) -> dict[str, Cost]:
        """What :meth:`analyze` and :meth:`tune` would take, by :data:`ANALYSIS` and :data:`TUNING`.

        Args:
            name: the run.
            body: as for :meth:`analyze`.

        Raises:
            InputError: as :meth:`analyze` raises it.
        """
        from lora_trainer.validation.blocks.effort import Effort

        run = self._settled(name)
        _, plan = self._analysis(run, run.config(), body)
        effort = Effort()
        counts = {ANALYSIS: len(plan.cells()), TUNING: FITS * effort.steps * effort.batch}
        return {kind: Cost(count, self._estimated(run, kind, count)) for kind, count in counts.items()}

    def _analysis(
        self, run: Run, config: TrainConfig, body: Mapping[str, Any]
    ) -> tuple[AnalysisDocument, AnalysisPlan]:
        """What is wanted, checked, and the pictures to draw for it."""
        from lora_trainer.runs.saved_files import find_file
        from lora_trainer.validation.blocks.ablation import plan_analysis
        from lora_trainer.validation.grid.plan import trigger_of

        wanted = read(AnalysisDocument, {key: value for key, value in body.items() if key != "seeds"})
        seeds = read_seeds(body.get("seeds"))
        samples = config.samples
        prompts = wanted.prompts or samples.prompts or [config.data.trigger or config.name]
        plan = plan_analysis(
            find_file(run, wanted.file).path,
            prompts,
            seeds or [samples.seed],
            draw_request(samples, "", config.data.resolution),
            weight=wanted.weight,
            trigger=trigger_of(config, prompts),
        )
        return wanted, plan

    def _estimated(self, run: Run, kind: str, count: int) -> float | None:
        """Seconds, from the last work of the kind, or else from the run's own steps, which learning weights is like."""
        if kind in self._seconds_each:
            return count * self._seconds_each[kind]
        pace = run.manifest.get("steps_per_second")
        if kind != TUNING or not isinstance(pace, (int, float)) or pace <= 0:
            return None
        training = run.config().training
        return count / (pace * training.batch_size * training.accumulate)

    def stop(self, name: str) -> Run:
        """Stop what is done for a run; finished pictures are kept.

        Raises:
            InputError: nothing is done.
        """
        run = self._settled(name)
        job = self._job(run)
        if job is None:
            raise InputError("No blocks of {name} are being looked at.", name=name)
        if self._line.remove(job):
            self._note(run, state="stopped", **explain(_stopped()))
        job.control.ask(StopRequest.STOP)
        return run

    def progress(self, run: Run) -> dict[str, Any]:
        """How far a run's analysis or tuning is: ``state``, ``kind``, ``file``, ``done``, ``of``, ``message``, and
        ``stopping`` once it was asked to.
        """
        known = dict(run.manifest.get("blocks") or {})
        job = self._job(run)
        if known.get("state") in UNFINISHED and job is None:  # its program ended
            known |= {"state": "stopped", **explain(_stopped())}
        return {**known, "stopping": True} if job and job.control.request else known

    def report(self, name: str, file: str = "") -> dict[str, Any]:
        """Everything that is known of the blocks of a run's file.

        Args:
            name: the run.
            file: the file's name without extension; the last one when empty.

        Returns:
            ``progress``, the heat map ``heat`` of all files, ``file``, and the documents ``analysis`` and ``tuning``,
            ``None`` for what was not done with this very file; ``problems`` has a sentence for what is damaged.

        Raises:
            InputError: no such run or file.
        """
        from lora_trainer.runs.saved_files import find_file, run_files
        from lora_trainer.validation.blocks.norms import heat_map

        run = self._settled(name)
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

    def wait(self, run: Run, timeout: float | None = None) -> bool:
        """Wait until nothing is done or to be done for a run; ``False`` when the time ran out before."""
        return self._line.wait(self._work(run), timeout)

    # -------------------------------------------------------------- within
    def _work(self, run: Run) -> _Work:
        return self._works.setdefault(run.name, _Work(run))

    def _job(self, run: Run) -> QueuedJob | None:
        return self._line.find(self._work(run))

    def _start(
        self, run: Run, kind: str, file: Path, of: int, work: Callable[[Callable[[int, int], None]], None]
    ) -> None:
        if self._job(run):
            raise InputError("The blocks of {name} are being looked at already.", name=run.name)

        def carry_out(control: Control) -> None:
            self._carry_out(run, work, control)

        self._note(
            run, state="queued", kind=kind, file=file.stem, done=0, of=of, seconds_left=None, message="", error={}
        )
        self._line.add(QueuedJob(self._work(run), carry_out))

    def _carry_out(self, run: Run, work: Callable[[Callable[[int, int], None]], None], control: Control) -> None:
        """Do the work; whatever goes wrong ends up as a sentence in the manifest."""
        from lora_trainer.validation.grid.draw import pace

        kind = run.manifest["blocks"]["kind"]

        def note(done: int, of: int, seconds_left: float | None) -> None:
            self._note(run, now=False, state="running", done=done, of=of, seconds_left=seconds_left)
            if seconds_left and of > done:
                self._seconds_each[kind] = seconds_left / (of - done)
            if control.request:
                raise _stopped()

        progress = pace(note)

        self._note(run, state="running")
        try:
            work(progress)
            self._note(run, state="done")
        except LoraTrainError as error:
            stopped = control.request or isinstance(error, Interrupted)
            self._note(run, state="stopped" if stopped else "failed", **explain(error))
        except BaseException as error:
            log.exception("The blocks of %s could not be looked at", run.name)
            self._note(run, state="failed", **explain(error))

    def _note(self, run: Run, *, now: bool = True, **values: Any) -> None:
        run.update(blocks={**(run.manifest.get("blocks") or {}), **values}, now=now)
        self._on_change(run)


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


def _stopped() -> LoraTrainError:
    return LoraTrainError("It was stopped; finished pictures are kept.")
