"""What tab, REST and command line ask for: runs go into one line, grids into another.

Both lines take turns at the host's model, so a grid can be drawn from the finished files of a run that goes on.
"""

from __future__ import annotations

import atexit
import builtins
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.config.schema import typed_value
from lora_trainer.config.sweep import variants
from lora_trainer.config.train import DataConfig, TrainConfig, require_warmup
from lora_trainer.core.errors import InputError, LoraTrainError, concerning, explain
from lora_trainer.core.files import remove_unfinished, write_text
from lora_trainer.core.paths import expand
from lora_trainer.core.process import this_process
from lora_trainer.hosts.base import DrawRequest, Host, ModelRequest
from lora_trainer.jobs.background import BackgroundTask, BackgroundTasks
from lora_trainer.jobs.blocks import BlockJobs, Cost, OnPart, Subject, analyzed, effort_of, plan_of, tuned
from lora_trainer.jobs.grids import Grid, GridSection, Hold
from lora_trainer.jobs.job import carry_out
from lora_trainer.jobs.kinds import DRAWING, FILES, KINDS, NewFile
from lora_trainer.jobs.library import LoraFolder, require_readable
from lora_trainer.jobs.lora_files import lora_info, preset_names
from lora_trainer.jobs.mixes import drawn_mixes, mix_plan, read_stack
from lora_trainer.jobs.naming import require_free
from lora_trainer.jobs.queue import JobQueue, QueuedJob
from lora_trainer.jobs.requests import AnalysisDocument, MixDocument, TuningDocument, read
from lora_trainer.jobs.sections import Section, SectionJobs
from lora_trainer.jobs.training import RunRecord, ToTrain
from lora_trainer.jobs.waiting import WAITS_FOR_CHECKPOINT, CheckpointWatcher
from lora_trainer.model.families import CheckpointInfo, is_same_checkpoint, unknown_checkpoint
from lora_trainer.runs.control import Control, StopRequest, only_telling
from lora_trainer.runs.manifest import DAMAGED
from lora_trainer.runs.run import RESUMABLE, UNFINISHED, Run, output_folder
from lora_trainer.runs.store import Runs
from lora_trainer.validation.grid.options import GridOptions

if TYPE_CHECKING:
    from lora_trainer.dataset.scan import Dataset
    from lora_trainer.model.family import ModelFamily
    from lora_trainer.network.blocks.stack import Stack
    from lora_trainer.training.preflight import Estimate
    from lora_trainer.validation.blocks.ablation import AnalysisPlan
    from lora_trainer.validation.grid.document import GridDocument
    from lora_trainer.validation.grid.plan import GridPlan
    from lora_trainer.validation.mixes import Mixed, MixPlan

log = logging.getLogger(__name__)


class Jobs:
    """Takes runs and grids for a host.

    Args:
        host: where the model is.
        on_change: called when a run's manifest changed, from the working thread.
        confined: keep output folders within the host's LoRA folder, as everything served over a network must.
    """

    def __init__(
        self, host: Host, on_change: Callable[[Run], object] = lambda run: None, *, confined: bool = False
    ) -> None:
        self.host = host
        self.runs = Runs(host.folders.runs)
        self.training = JobQueue("lora-train runs")
        self.drawing = JobQueue("lora-train grids")
        self.loras = LoraFolder(host)
        self._tasks = {
            FILES: BackgroundTasks(JobQueue("lora-train files")),
            DRAWING: BackgroundTasks(self.drawing),
        }
        self._naming = threading.Lock()
        """Held while a new file gets its name."""
        self._sections = SectionJobs(self.drawing)
        self._blocks = BlockJobs(host, self._sections, self._tell)
        self._suspended = CheckpointWatcher(self.resume)
        self._order = threading.RLock()
        """Held while it is decided who goes on with a run."""
        self._restored = False
        self._on_change = on_change
        self._confined = confined

    # -------------------------------------------------------------- asked by tab, REST and command line
    def check(self, config: TrainConfig) -> Dataset:
        """Find what is wrong with a run before anything is changed; returns its data set.

        Raises:
            InputError: one clear sentence.
        """
        return self._checked(config).dataset

    def _checked(self, config: TrainConfig, before: Sequence[_Checked] = ()) -> _Checked:
        self._check_output(config)
        return self._usable(config, before)

    def _usable(self, config: TrainConfig, before: Sequence[_Checked] = ()) -> _Checked:
        """What ``config`` would train on; a data set that one ``before`` has too is looked at once."""
        from lora_trainer.training.advice import calculate

        checkpoint = self.host.check(ModelRequest.of(config))
        known = next((each.dataset for each in before if each.config.data == config.data), None)
        dataset = known or self.dataset(config.data)
        self._require_readable("network.continue_from", config.network.continue_from)
        _check_parts(config, checkpoint.family)
        require_warmup(config, calculate(config, dataset).steps)
        return _Checked(config, checkpoint, dataset)

    def dataset(self, data: DataConfig, *, decode: bool = False) -> Dataset:
        """The pictures and captions of a folder; with ``decode`` every picture is read to its end.

        Raises:
            InputError: no such folder, nothing in it, or one that may not be read.
        """
        from lora_trainer.dataset.scan import check_dataset, scan

        self._require_readable("data.folder", data.folder)
        return check_dataset(data) if decode else scan(data)

    def _require_readable(self, field: str, name: str) -> None:
        require_readable(self.host, field, name)

    def measure(self, config: TrainConfig) -> Estimate:
        """Measure the memory and time that a run would take; raises :class:`InputError`."""
        from lora_trainer.training.preflight import measure

        return measure(config, self._usable(config).dataset, self.host)

    def submit(self, config: TrainConfig) -> Run:
        """Check a run, make its folder and put it into the line. Raises :class:`InputError`."""
        return self._submit(self._checked(config))

    def _submit(self, checked: _Checked) -> Run:
        now = {"process": this_process(), "place": time.time()}
        run = self.runs.create(checked.config, host=self.host.name, checkpoint=checked.checkpoint.to_dict(), **now)
        self._require_ours(run)
        self._train(ToTrain(run, checked.config, checked.dataset))
        return run

    def sweep(self, config: TrainConfig, values: Mapping[str, Sequence[Any]]) -> list[Run]:
        """Put a run for every combination of the values into the line, or none when one of them is wrong.

        Raises:
            InputError: a setting, a value or one of the runs' names cannot be used.
        """
        checked: list[_Checked] = []
        for each in variants(config, values):
            checked.append(self._checked(each, checked))
        return [self._submit(each) for each in checked]

    def resume(self, name: str, config: TrainConfig | None = None) -> Run:
        """Put a stopped, paused or failed run into the line again; it goes on from its last state.

        Args:
            name: of the run.
            config: settings for the rest of it; without them those in its ``config.toml``. What may change is written
                there, see :data:`lora_trainer.training.resuming.MAY_CHANGE`.

        Raises:
            InputError: no such run, it is not stopped, another program has it, another checkpoint is loaded, or
                settings differ that may not.
            RunError: the manifest cannot be written.
        """
        with self._order:
            run = self.settled(name)
            self._require_resumable(run)
            had = run.is_taken
            self._require_ours(run)
            try:
                self._resume(run, config)
            except BaseException:
                if not had:
                    run.give_up()
                raise
        return run

    def _resume(self, run: Run, config: TrainConfig | None) -> None:
        """Put a run into the line that no other program can work on any more."""
        from lora_trainer.training.resuming import require_resumable, take_over

        if self.training.find(run) is None:
            run.reread()  # it may be another program that has done it meanwhile
            self._settle(run)
        self._require_resumable(run)
        settings = run.config()
        require_resumable(run, settings)
        changed = take_over(run, config) if config else []
        if config and changed:
            settings = config
        require_its_checkpoint(run, self.host.check(ModelRequest.of(settings)))
        if changed:
            write_text(run.folder / "config.toml", settings.to_toml())
        values = {"process": this_process(), "place": time.time()}
        run.change(state="queued", message="", error={}, waits="", **values)
        self._suspended.remove(run)
        self._train(ToTrain(run, settings))

    def _require_resumable(self, run: Run) -> None:
        if run.state == "done":
            raise InputError(
                "The run {name} is done; to train on, start a new run that continues from its last file "
                "(network.continue_from).",
                name=run.name,
            )
        if run.state not in RESUMABLE and self._is_worked_on(run):
            raise InputError(
                "The run {name} is {state}; only a stopped one can be resumed.", name=run.name, state=run.state
            )

    @staticmethod
    def _require_ours(run: Run) -> None:
        if not run.take():
            raise _elsewhere(run)

    def load_checkpoint(self, name: str) -> Run:
        """Let the host load the checkpoint that a run was trained on; one that waits for it goes on then.

        Raises:
            InputError: no such run, or the host has no such checkpoint any more.
        """
        run = self.settled(name)
        known = run.manifest.get("checkpoint", {})
        self.host.load_checkpoint(str(known.get("name", "")), str(known.get("sha256", "")))
        return run

    def stop(self, name: str, request: StopRequest = StopRequest.STOP) -> Run:
        """Ask a run to end; a waiting one leaves the line."""
        run = self.runs.get(name)
        job = self.training.find(run)
        if job is None:
            return self._stop_waiting(name, request)
        if self.training.remove(job):
            self._give_up(run, request)
        else:
            job.control.ask(request)
        return run

    def _stop_waiting(self, name: str, request: StopRequest) -> Run:
        """Stop a run that is not in line: it waits for its checkpoint, or its program ended while it waited."""
        with self._order:
            run = self.settled(name)
            if not self._suspended.remove(run):
                if run.state not in UNFINISHED and not run.manifest.get("waits"):
                    raise InputError("The run {name} is not running; it is {state}.", name=name, state=run.state)
                self._require_ours(run)
            self._give_up(run, request)
        return run

    def grid(self, name: str, /, **wishes: Any) -> Run:
        """Draw the epoch × weight grid of a run's finished files; how far it is stands in its manifest.

        Args:
            name: of the run, which may go on.
            wishes: fields of :class:`~lora_trainer.validation.grid.options.GridOptions`.

        Raises:
            InputError: no such run, no files, wrong weights, or one is drawn already.
        """
        options = read(GridOptions, wishes, typed_value)  # bounds are the plan's to check
        grid = Grid.of(self.host, self.settled(name), options)
        self._require_readable("clip", options.clip)
        self.host.check(ModelRequest.of(grid.config))
        begun = {"of": grid.cells, "message": "", "process": this_process()}
        self._sections.start(self._grid_of(grid.run), grid.work, **begun)
        return grid.run

    def draw_grid_now(
        self,
        name: str,
        options: GridOptions,
        request: DrawRequest,
        hold: Hold,
        on_plan: Callable[[GridPlan], object],
    ) -> GridDocument:
        """Draw a run's grid in the thread that asks, as another page draws; see :meth:`Grid.draw_now`.

        Args:
            name: of the run.
            options: what to show.
            request: prompt, size, sampler and the like of that page.
            hold: on the model.
            on_plan: given the plan before anything is drawn.

        Raises:
            LoraTrainError: as :meth:`grid` and :meth:`Grid.draw` raise it.
        """
        grid = Grid.of(self.host, self.settled(name), options).like(request)
        return grid.draw_now(hold, on_plan)

    def require_no_grid(self, name: str) -> Run:
        """The run, of which no grid is being drawn; raises :class:`InputError`."""
        section = self._grid_of(self.settled(name))
        if self._sections.goes_on(section):
            raise section.busy()
        return section.run

    def _grid_of(self, run: Run) -> GridSection:
        return GridSection(run, self._tell)

    def grid_document(self, name: str) -> dict[str, Any]:
        """What is known of a run's grid, drawn or being drawn; raises :class:`NotFound` when there is none."""
        from lora_trainer.validation.grid.document import known_grid

        return dict(known_grid(self.settled(name)))

    def stop_grid(self, name: str) -> Run:
        """Stop drawing a run's grid; its finished pictures are kept and used when it is drawn again."""
        run = self.runs.get(name)
        self._sections.stop(self._grid_of(run))
        return run

    def analyze_blocks(self, name: str, body: Mapping[str, Any]) -> Run:
        """Draw a file's pictures with each block alone and without each; see :meth:`BlockJobs.analyze`.

        Raises:
            InputError: one clear sentence, with the field's path.
        """
        run = self.settled(name)
        self._blocks.analyze(run, body)
        return run

    def tune_blocks(self, name: str, body: Mapping[str, Any]) -> Run:
        """Learn a file's block weights; see :meth:`BlockJobs.tune`.

        Raises:
            InputError: one clear sentence, with the field's path.
        """
        run = self.settled(name)
        self._blocks.tune(run, body)
        return run

    def blocks_cost(self, name: str, body: Mapping[str, Any]) -> dict[str, Cost]:
        """What both would take; see :meth:`BlockJobs.cost`."""
        return self._blocks.cost(self.settled(name), body)

    def stop_blocks(self, name: str) -> Run:
        """Stop what is done for the blocks of a run; finished pictures are kept.

        Raises:
            InputError: nothing is done.
        """
        run = self.settled(name)
        self._sections.stop(self._blocks.section(run))
        return run

    def blocks_progress(self, run: Run) -> dict[str, Any]:
        """How far a run's analysis or tuning is: ``state``, ``kind``, ``file``, ``done``, ``of``, ``message``, and
        ``stopping`` once it was asked to.
        """
        return self._sections.progress(self._blocks.section(run))

    def blocks_report(self, name: str, file: str = "") -> dict[str, Any]:
        """Everything that is known of the blocks of a run's file; see :meth:`BlockJobs.report`."""
        return self._blocks.report(self.settled(name), file)

    # -------------------------------------------------------------- blocks of a file, at once
    def subject_of_run(self, name: str, epoch: int | None = None) -> Subject:
        """A file of a run by its epoch, the last one by default; raises :class:`InputError`."""
        return Subject.of_run(self.runs.get(name), epoch=epoch)

    def subject_of_file(self, file: Path) -> Subject:
        """A file by its path; raises :class:`InputError` when there is none."""
        return Subject.of_file(file, self.runs)

    def plan_analysis(self, subject: Subject, wanted: AnalysisDocument, trigger: str | None) -> AnalysisPlan:
        """The pictures of an analysis on the host's checkpoint; see :func:`lora_trainer.jobs.blocks.plan_of`."""
        return plan_of(self.host, subject, wanted, trigger).on(self.host.check(ModelRequest.of(subject.config)))

    def analyze_now(
        self, subject: Subject, plan: AnalysisPlan, folder: Path, together: int, on_cells: OnPart
    ) -> dict[str, Any]:
        """Carry an analysis out and return its document; see :func:`lora_trainer.jobs.blocks.analyzed`."""
        return analyzed(self.host, subject, plan, folder, together, on_cells)

    def tune_now(self, subject: Subject, wanted: TuningDocument, on_part: OnPart, **places: Any) -> dict[str, Any]:
        """Learn block weights and return their document; see :func:`lora_trainer.jobs.blocks.tuned`."""
        effort = effort_of(wanted)
        self.host.check(ModelRequest.of(subject.config))
        return tuned(self.host, subject, wanted, effort, on_part, **places)

    # -------------------------------------------------------------- file tools and mixes
    def start(self, name: str, body: Mapping[str, Any], *, outside: bool = False) -> BackgroundTask:
        """Do work of one of :data:`~lora_trainer.jobs.kinds.KINDS`; what can be checked is checked at once.

        Args:
            name: of the kind.
            body: a document of its kind.
            outside: LoRA files outside of the LoRA folder may be read too, where the host lets people read.

        Raises:
            InputError: one clear sentence, with the field's path.
        """
        kind = KINDS[name]
        prepared = kind.prepared(self.host, body, outside=outside)
        with self._naming:
            if isinstance(prepared, NewFile):
                awaited = [task.title for task in self.tasks(kind.queue) if task.is_working]
                prepared = prepared.named(self.host, awaited)
            return self._tasks[kind.queue].start(name, prepared.title, prepared.work)

    def tasks(self, queue: str = FILES) -> list[BackgroundTask]:
        """Such work that waits in a queue, goes on or is over, newest first."""
        return self._tasks[queue].list()

    def task(self, name: str, queue: str = FILES) -> BackgroundTask:
        """A piece of it by its id; raises :class:`NotFound`."""
        return self._tasks[queue].get(name)

    def stop_task(self, name: str, queue: str = FILES) -> BackgroundTask:
        """Stop it, nothing half-made is left; raises :class:`InputError` when it is over."""
        return self._tasks[queue].stop(name)

    def wait_for(self, task: BackgroundTask, timeout: float | None = None) -> bool:
        """Wait until it is over; ``False`` when the time ran out before."""
        return self._tasks[KINDS[task.kind].queue].wait(task, timeout)

    def lora_info(self, name: str, *, outside: bool = False) -> dict[str, Any]:
        """What is in a LoRA file, ready for JSON; raises :class:`InputError` when there is none or it is damaged."""
        return lora_info(self.loras.find(name, "name", outside=outside))

    def block_preset_names(self, name: str) -> list[str]:
        """Names of the block presets for a LoRA file; raises :class:`InputError`."""
        return preset_names(self.host, self.loras.find(name, outside=True))

    def stack(self, text: str) -> Stack:
        """The LoRAs of some lines as a prompt names them; raises :class:`InputError`."""
        return read_stack(self.host, text)[0]

    def mix_plan(self, body: Mapping[str, Any], *, outside: bool = False) -> tuple[MixPlan, ModelRequest]:
        """Random mixes that are not drawn; see :func:`lora_trainer.jobs.mixes.mix_plan`."""
        return mix_plan(self.host, read(MixDocument, body), outside)

    def draw_mixes_now(
        self, plan: MixPlan, model: ModelRequest, progress: Callable[[int, int, Mixed], object]
    ) -> Mixed:
        """Draw them and return their folder and documents; see :func:`lora_trainer.jobs.mixes.drawn_mixes`."""
        return drawn_mixes(self.host, plan, model, progress)

    # -------------------------------------------------------------- the line of runs
    def run_names(self) -> builtins.list[str]:
        """Names of all runs, newest first."""
        return self.runs.names()

    def current(self) -> Run | None:
        """The run that is worked on."""
        job = self.training.current()
        return job.run if job else None

    def waiting(self) -> builtins.list[Run]:
        """The runs in line, the next first."""
        return [job.run for job in self.training.waiting()]

    def request(self, run: Run) -> StopRequest | None:
        """How a run that is worked on was asked to end."""
        job = self.training.find(run)
        return job.control.request if job else None

    def can_be_asked(self, run: Run) -> bool:
        """Whether a run waits or goes on, and was not asked to end at once."""
        job = self.training.find(run)
        return job is not None and not job.control.wants_end_now

    def keep_current(self, timeout: float = 30.0) -> None:
        """Save the run that is worked on, and leave it in line: it goes on when the program is there again.

        Args:
            timeout: seconds that the run has for it.
        """
        for waiting in self.training.waiting():
            self.training.remove(waiting)  # it stays in line on disk, and must not begin in the program's last second
        run = self.current()
        self.shutdown(timeout)
        if run is not None and run.state == "paused":
            run.update(state="queued", now=True)

    def stop_sections(self, run: Run) -> None:
        """Stop the grid of a run, and what is done for its blocks, where there is any."""
        for section in self._sections_of(run):
            if self._sections.goes_on(section):
                self._sections.stop(section)

    def is_worked_on(self, run: Run) -> bool:
        """Whether a run trains, waits, is drawn, or its blocks are looked at."""
        is_busy = self.training.find(run) is not None or any(map(self._sections.goes_on, self._sections_of(run)))
        return is_busy or bool(run.manifest.get("waits")) or run.state in UNFINISHED

    def _sections_of(self, run: Run) -> list[Section]:
        return [self._grid_of(run), self._blocks.section(run)]

    def move(self, name: str, position: int) -> Run:
        """Give a waiting run another place in line, 1 for the next; raises :class:`InputError` when it has none."""
        run = self.runs.get(name)
        job = self.training.find(run)
        if job is None or not self.training.move(job, position - 1):
            raise InputError("The run {name} does not wait in line.", name=name)
        waiting = self.waiting()
        for each, place in zip(waiting, sorted(map(_place, waiting)), strict=True):
            each.update(place=place, now=True)  # so that the order outlives the program
        return run

    def restore(self) -> None:
        """Go on where the program before this one ended, however it ended; for a server, once, at its start.

        Runs that waited, in line or for their checkpoint, come into the line again in their order; one that was being
        trained is told to have stopped; what was not finished writing is deleted. Whoever looks at the runs before
        changes nothing of that.
        """
        for run in sorted(self.runs.list(), key=_place):
            try:
                with self._order:
                    self._restore(run)
            except LoraTrainError as error:
                log.warning("%s", error)
        self._restored = True
        folders = self.host.folders
        for folder in (folders.runs, folders.loras, folders.cache, folders.presets):
            remove_unfinished(folder, below=True)

    def _restore(self, run: Run) -> None:
        if self._is_worked_on(run) or not run.take():
            return
        keep = False
        try:
            run.reread()
            if run.state == "queued" or run.manifest.get("waits"):
                run.change(state="paused", waits=WAITS_FOR_CHECKPOINT, process=this_process())
                self._suspended.add(run)
                keep = True
            elif run.state == "running":
                run.change(**_PROGRAM_ENDED)
        finally:
            if not keep:
                run.give_up()

    def _is_worked_on(self, run: Run) -> bool:
        return self.training.find(run) is not None or self._suspended.has(run) or run.is_elsewhere

    def settled(self, name: str) -> Run:
        """The run, after making sure that one whose program ended says so; nothing is written."""
        run = self.runs.get(name)
        self._settle(run)
        return run

    def _settle(self, run: Run) -> None:
        """Tell of what its program cannot tell any more; a run that waits is left to :meth:`restore`."""
        waits_for_nobody = run.state == "queued" and self._restored
        if (run.state == "running" or waits_for_nobody) and not self._is_worked_on(run):
            run.show(**_PROGRAM_ENDED)
        grid = self._grid_of(run)
        if (known := self._sections.settled(grid)) != grid.known:
            run.show(grid=known)

    def shown(self, name: str) -> Run:
        """The run as :meth:`settled`, or one of the state ``damaged`` in place of one that cannot be read.

        Raises:
            NotFound: there is none.
        """
        run = self.runs.shown(name)
        return run if run.state == DAMAGED else self.settled(name)

    def list(self, offset: int = 0, limit: int | None = None) -> list[Run]:
        """All runs, newest first, as :meth:`shown`; ``limit`` of them behind the first ``offset``."""
        return [self.shown(run.name) for run in self.runs.list(offset, limit)]

    def wait(self, run: Run, timeout: float | None = None) -> bool:
        """Wait until nothing is done or to be done for ``run``."""
        sections = self._sections_of(run)
        return self.training.wait(run, timeout) and all(self._sections.wait(each, timeout) for each in sections)

    def shutdown(self, timeout: float = 30.0) -> None:
        """Ask the current run to pause and wait for it; called when the program ends."""
        job = self.training.current()
        if job is not None:
            job.control.ask(StopRequest.PAUSE)
            self.training.wait(job.run, timeout)

    # -------------------------------------------------------------- within
    def _train(self, job: ToTrain) -> None:
        if not self.training.add(QueuedJob(job.run, lambda control: self._carry_out(job, control))):
            job.config = job.dataset = None  # settings and folder may be others when its turn comes

    def _carry_out(self, job: ToTrain, control: Control) -> None:
        run = job.run
        if not run.take():  # it was resumed while an earlier part of it was ending, and another program was faster
            log.warning("%s", _elsewhere(run))
            return
        carry_out(RunRecord(run, self._tell), lambda progress: job.work(self.host, progress, self._tell), control)
        with self._order:
            if not run.manifest.get("waits"):
                run.give_up()
            elif control.request:  # asked for while the run was being put aside
                self._give_up(run, control.request)
            else:
                self._suspended.add(run)

    def _give_up(self, run: Run, request: StopRequest) -> None:
        try:
            run.update(state="paused" if request is StopRequest.PAUSE else "stopped", waits="", now=True)
        finally:
            run.give_up()

    def _tell(self, run: Run) -> None:
        with only_telling():
            self._on_change(run)

    def _check_output(self, config: TrainConfig) -> None:
        loras = self.host.folders.loras
        folder = output_folder(config, loras)
        if self._confined and loras.resolve() not in (folder.resolve(), *folder.resolve().parents):
            raise InputError(
                "save.folder: {folder} is outside of {loras}; leave it empty or name a folder in there.",
                field="save.folder",
                folder=folder,
                loras=loras,
            )
        require_free(config, self.host, self.runs.root)


@dataclass(frozen=True)
class _Checked:
    """A run that can be started, and what was found on the way."""

    config: TrainConfig
    checkpoint: CheckpointInfo
    dataset: Dataset


_PROGRAM_ENDED = {
    "state": "stopped",
    "phase": "",
    "waiting": False,
    **explain(InputError("The program ended while this run was going on; resume it.")),
}


def _place(run: Run) -> float:
    """Where a run stands in line: when it came, or the place that it was given."""
    place = run.manifest.get("place") or run.manifest.get("created", 0)
    return float(place) if isinstance(place, (int, float)) else 0.0


def _elsewhere(run: Run) -> InputError:
    return InputError("The run {name} is worked on by another program; stop it there.", name=run.name)


def require_its_checkpoint(run: Run, loaded: CheckpointInfo) -> None:
    """Whether a run can go on with a checkpoint.

    Raises:
        InputError: it was trained on another one, or nobody can tell.
    """
    wanted = run.manifest.get("checkpoint", {})
    same = is_same_checkpoint(wanted, loaded.to_dict())
    if same is None:
        raise unknown_checkpoint(run.name, wanted)
    if not same:
        raise InputError(
            "The run {name} was trained on {checkpoint}; load that checkpoint to resume it.",
            name=run.name,
            checkpoint=wanted.get("name", ""),
        )


def _check_parts(config: TrainConfig, family: ModelFamily) -> None:
    """That the optimizer is installed and the file to continue from can be read."""
    from lora_trainer.training.optimizers import require_installed

    require_installed(config.training.optimizer)
    if config.network.continue_from:
        from lora_trainer.network.lora_file import require_family

        with concerning("network.continue_from"):
            require_family(expand(config.network.continue_from), family)


_shared: list[Jobs] = []


def shared_jobs(make_host: Callable[[], Host]) -> Jobs:
    """The one line of work of a server process; paused when the process ends."""
    if not _shared:
        _shared.append(Jobs(make_host(), confined=True))
        atexit.register(_shared[0].shutdown)
    return _shared[0]
