"""What page, REST, command line and the txt2img script ask for: runs go into one line, grids into another.

Both lines take turns at the host's model, so a grid can be drawn from the finished files of a run that goes on. What
is asked about grids, blocks and LoRA files stands in classes of their own, which :class:`Jobs` has as attributes.
"""

from __future__ import annotations

import atexit
import builtins
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_trainer.config.sweep import variants
from lora_trainer.config.train import DataConfig, TrainConfig
from lora_trainer.core.errors import InputError, LoraTrainError, explain
from lora_trainer.core.files import remove_unfinished, write_text
from lora_trainer.core.process import this_process
from lora_trainer.hosts.base import Host, ModelRequest
from lora_trainer.jobs.blocks import BlockJobs
from lora_trainer.jobs.checks import Checked, RunChecks, require_its_checkpoint
from lora_trainer.jobs.grids import GridJobs
from lora_trainer.jobs.job import carry_out
from lora_trainer.jobs.library import LoraFolder
from lora_trainer.jobs.queue import JobQueue, QueuedJob
from lora_trainer.jobs.sections import Section, SectionJobs
from lora_trainer.jobs.tools import Tools
from lora_trainer.jobs.training import RunRecord, ToTrain
from lora_trainer.jobs.waiting import WAITS_FOR_CHECKPOINT, CheckpointWatcher
from lora_trainer.runs.control import Control, StopRequest, only_telling
from lora_trainer.runs.manifest import DAMAGED
from lora_trainer.runs.run import RESUMABLE, UNFINISHED, Run
from lora_trainer.runs.store import Runs

if TYPE_CHECKING:
    from lora_trainer.dataset.scan import Dataset
    from lora_trainer.training.preflight import Estimate

log = logging.getLogger(__name__)


class Jobs:
    """Takes runs and grids for a host.

    Args:
        host: where the model is.
        on_change: called when a run's manifest changed, from the working thread.
        confined: keep output folders within the host's LoRA folder, as everything served over a network must.

    Attributes:
        runs: all runs on disk.
        training: the line of runs.
        drawing: the line of what needs the model to draw.
        loras: the host's LoRA folder.
        tools: work on LoRA files.
        grids: the runs' grids.
        blocks: analysis and tuning of their blocks.
    """

    def __init__(
        self, host: Host, on_change: Callable[[Run], object] = lambda run: None, *, confined: bool = False
    ) -> None:
        self.host = host
        self.runs = Runs(host.folders.runs)
        self.training = JobQueue("lora-train runs")
        self.drawing = JobQueue("lora-train grids")
        self.loras = LoraFolder(host)
        self.tools = Tools(host, self.drawing)
        self._sections = SectionJobs(self.drawing)
        self.grids = GridJobs(host, self._sections, self.settled, self._tell)
        self.blocks = BlockJobs(host, self._sections, self.runs, self.settled, self._tell)
        self._suspended = CheckpointWatcher(self.resume)
        self._order = threading.RLock()
        """Held while it is decided who goes on with a run."""
        self._restored = False
        self._on_change = on_change
        self._checks = RunChecks(host, self.runs.root, confined=confined)

    # -------------------------------------------------------------- asked by tab, REST and command line
    def check(self, config: TrainConfig) -> Dataset:
        """Find what is wrong with a run before anything is changed; returns its data set.

        Raises:
            InputError: one clear sentence.
        """
        return self._checks.startable(config).dataset

    def dataset(self, data: DataConfig, *, decode: bool = False) -> Dataset:
        """The pictures and captions of a folder; see :meth:`RunChecks.dataset`."""
        return self._checks.dataset(data, decode=decode)

    def measure(self, config: TrainConfig) -> Estimate:
        """Measure the memory and time that a run would take; raises :class:`InputError`."""
        from lora_trainer.training.preflight import measure

        return measure(config, self._checks.usable(config).dataset, self.host)

    def submit(self, config: TrainConfig) -> Run:
        """Check a run, make its folder and put it into the line. Raises :class:`InputError`."""
        return self._submit(self._checks.startable(config))

    def _submit(self, checked: Checked) -> Run:
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
        checked: builtins.list[Checked] = []
        for each in variants(config, values):
            checked.append(self._checks.startable(each, checked))
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
        return [self.grids.section(run), self.blocks.section(run)]

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
        grid = self.grids.section(run)
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


_shared: list[Jobs] = []


def shared_jobs(make_host: Callable[[], Host]) -> Jobs:
    """The one line of work of a server process; paused when the process ends."""
    if not _shared:
        _shared.append(Jobs(make_host(), confined=True))
        atexit.register(_shared[0].shutdown)
    return _shared[0]
