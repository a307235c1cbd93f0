"""What tab, REST and command line ask for: runs go into one line, grids into another.

Both lines take turns at the host's model, so a grid can be drawn from the finished files of a run that goes on.
"""

from __future__ import annotations

import atexit
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.access import require_readable
from lora_trainer.block_jobs import BlockJobs
from lora_trainer.chores import Chores
from lora_trainer.config import DataConfig, TrainConfig, require_warmup
from lora_trainer.control import Control
from lora_trainer.errors import CheckpointChanged, InputError, Interrupted, LoraTrainError, explain
from lora_trainer.file_tools import FileTools, concerning
from lora_trainer.files import write_text
from lora_trainer.hosts.base import Host
from lora_trainer.line import Line, Task
from lora_trainer.mixing import Mixing
from lora_trainer.paths import clean_path, expand
from lora_trainer.process import is_alive, this_process
from lora_trainer.runs import RESUMABLE, UNFINISHED, Run, Runs, output_folder
from lora_trainer.suspended import WAITS_FOR_CHECKPOINT, Suspended
from lora_trainer.sweep import variants

if TYPE_CHECKING:
    from lora_trainer.dataset.scan import Dataset
    from lora_trainer.training.preflight import Estimate
    from lora_trainer.validation.grid import GridOptions, GridPlan

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
        self.training = Line("lora-train runs")
        self.drawing = Line("lora-train grids")
        self.files = FileTools(host, Chores(Line("lora-train files")))
        self.mixing = Mixing(host, Chores(self.drawing))
        self.blocks = BlockJobs(host, self.settled, self.drawing, on_change)
        self._suspended = Suspended(self.resume)
        self._on_change = on_change
        self._confined = confined

    # -------------------------------------------------------------- asked by tab, REST and command line
    def check(self, config: TrainConfig) -> Dataset:
        """Find what is wrong with a run before anything is changed; returns its data set.

        Raises:
            InputError: one clear sentence.
        """
        self._check_output(config)
        return self._usable(config)

    def _usable(self, config: TrainConfig) -> Dataset:
        from lora_trainer.advice import calculate

        self.host.check(config)
        dataset = self.dataset(config.data)
        self._require_readable("network.continue_from", config.network.continue_from)
        _check_parts(config)
        require_warmup(config, calculate(config, dataset).steps)
        return dataset

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

        return measure(config, self._usable(config), self.host)

    def submit(self, config: TrainConfig) -> Run:
        """Check a run, make its folder and put it into the line. Raises :class:`InputError`."""
        self.check(config)
        checkpoint = self.host.check(config)
        known = {"name": checkpoint.name, "sha256": checkpoint.sha256, "family": checkpoint.family.name}
        run = self.runs.create(config, host=self.host.name, checkpoint=known)
        self._train(run)
        return run

    def sweep(self, config: TrainConfig, values: Mapping[str, Sequence[Any]]) -> list[Run]:
        """Put a run for every combination of the values into the line, or none when one of them is wrong.

        Raises:
            InputError: a setting, a value or one of the runs' names cannot be used.
        """
        configs = variants(config, values)
        for each in configs:
            self.check(each)
        return [self.submit(each) for each in configs]

    def resume(self, name: str, config: TrainConfig | None = None) -> Run:
        """Put a stopped, paused or failed run into the line again; it goes on from its last state.

        Args:
            name: of the run.
            config: settings for the rest of it; without them those in its ``config.toml``. What may change is written
                there, see :data:`lora_trainer.training.resuming.MAY_CHANGE`.

        Raises:
            InputError: no such run, it is not stopped, another checkpoint is loaded, or settings differ that may not.
        """
        from lora_trainer.training.resuming import require_resumable, take_over

        run = self.settled(name)
        if run.state == "done":
            raise InputError(
                "The run {name} is done; to train on, start a new run that continues from its last file "
                "(network.continue_from).",
                name=name,
            )
        if run.state not in RESUMABLE:
            raise InputError(
                "The run {name} is {state}; only a stopped one can be resumed.", name=name, state=run.state
            )
        require_resumable(run, run.config())
        changed = take_over(run, config) if config else []
        settings = config if config and changed else run.config()
        checkpoint = self.host.check(settings)
        wanted = run.manifest.get("checkpoint", {})
        if wanted.get("sha256") and checkpoint.sha256 and wanted["sha256"] != checkpoint.sha256:
            raise InputError(
                "The run {name} was trained on {checkpoint}; load that checkpoint to resume it.",
                name=name,
                checkpoint=wanted.get("name"),
            )
        if changed:
            write_text(run.folder / "config.toml", settings.to_toml())
        self._suspended.remove(run)
        run.update(state="queued", message="", error={}, waits="", now=True)
        self._train(run)
        return run

    def load_checkpoint(self, name: str) -> Run:
        """Let the host load the checkpoint that a run was trained on; one that waits for it goes on then.

        Raises:
            InputError: no such run, or the host has no such checkpoint any more.
        """
        run = self.settled(name)
        known = run.manifest.get("checkpoint", {})
        self.host.load_checkpoint(str(known.get("name", "")), str(known.get("sha256", "")))
        return run

    def stop(self, name: str, wish: str = "stop") -> Run:
        """Ask a run to ``"stop"``, stop after the ``"epoch"``, ``"pause"`` or ``"discard"``; a waiting one leaves."""
        run = self.runs.get(name)
        task = self.training.find(run)
        if task is None:
            run = self.settled(name)
            if self._suspended.remove(run):
                self._give_up(run, wish)
                return run
            if run.state in UNFINISHED:
                raise InputError("The run {name} is worked on by another program; stop it there.", name=name)
            raise InputError("The run {name} is not running; it is {state}.", name=name, state=run.state)
        if self.training.remove(task):
            run.update(state="paused" if wish == "pause" else "stopped", now=True)
        else:
            task.control.ask(wish)
        return run

    def grid(self, name: str, **wishes: Any) -> Run:
        """Draw the epoch × weight grid of a run's finished files; how far it is stands in its manifest.

        Args:
            name: of the run, which may go on.
            wishes: fields of :class:`~lora_trainer.validation.grid.GridOptions`.

        Raises:
            InputError: no such run, no files, wrong weights, or one is drawn already.
        """
        from lora_trainer.validation.grid import GridOptions, plan_grid

        run = self.settled(name)
        config = run.config()
        options = GridOptions(**{**wishes, "clip": clean_path(wishes.get("clip", ""))})
        plan = plan_grid(run, options, config)
        self._require_readable("clip", options.clip)
        if self.drawing.find(run):
            raise InputError("A grid of {name} is being drawn already.", name=name)
        self.host.check(config)

        def work(control: Control) -> None:
            _Drawing(run, self.host, control, self._on_change).draw(plan, options)

        run.update(grid={"state": "queued", "done": 0, "of": len(plan.places()), "message": ""}, now=True)
        self.drawing.add(Task(run, work))
        return run

    def grid_document(self, name: str) -> dict[str, Any]:
        """What is known of a run's grid, drawn or being drawn; raises :class:`NotFound` when there is none."""
        from lora_trainer.validation.grid import read_document

        return read_document(self.settled(name))

    def stop_grid(self, name: str) -> Run:
        """Stop drawing a run's grid; its finished pictures are kept and used when it is drawn again."""
        run = self.runs.get(name)
        task = self.drawing.find(run)
        if task is None:
            raise InputError("No grid of {name} is being drawn.", name=name)
        if self.drawing.remove(task):
            run.update(grid={**run.manifest["grid"], "state": "stopped", **explain(_grid_stopped())}, now=True)
        task.control.ask("stop")
        return run

    def move(self, name: str, position: int) -> Run:
        """Give a waiting run another place in line, 1 for the next; raises :class:`InputError` when it has none."""
        run = self.runs.get(name)
        task = self.training.find(run)
        if task is None or not self.training.move(task, position - 1):
            raise InputError("The run {name} does not wait in line.", name=name)
        waiting = [task.run for task in self.training.waiting()]
        for each, place in zip(waiting, sorted(map(_place, waiting)), strict=True):
            each.update(place=place, now=True)  # so that the order outlives the program
        return run

    def restore(self) -> None:
        """Put runs that waited, in line or for their checkpoint, when their program ended into the line again."""
        runs = [run for run in self.runs.list() if run.state == "queued" or run.manifest.get("waits")]
        waiting = [run for run in runs if not self._is_worked_on(run)]
        for run in sorted(waiting, key=_place):
            run.update(state="paused", waits=WAITS_FOR_CHECKPOINT, process=this_process(), now=True)
            self._suspended.add(run)

    def _is_worked_on(self, run: Run) -> bool:
        return self.training.find(run) is not None or is_alive(run.manifest.get("process"))

    def settled(self, name: str) -> Run:
        """The run, after making sure that one whose program ended says so."""
        run = self.runs.get(name)
        if run.state in UNFINISHED and not self._is_worked_on(run):
            run.update(state="stopped", message="The program ended while this run was going on; resume it.", now=True)
        return run

    def list(self) -> list[Run]:
        """All runs, newest first."""
        return [self.settled(run.name) for run in self.runs.list()]

    def wait(self, run: Run, timeout: float | None = None) -> bool:
        """Wait until nothing is done or to be done for ``run``."""
        return self.training.wait(run, timeout) and self.drawing.wait(run, timeout)

    def shutdown(self, timeout: float = 30.0) -> None:
        """Ask the current run to pause and wait for it; called when the program ends."""
        task = self.training.current()
        if task is not None:
            task.control.ask("pause")
            self.training.wait(task.run, timeout)

    # -------------------------------------------------------------- within
    def _train(self, run: Run) -> None:
        run.update(process=this_process(), place=time.time(), now=True)
        self.training.add(Task(run, lambda control: self._carry_out(run, control)))

    def _carry_out(self, run: Run, control: Control) -> None:
        carry_out(run, self.host, control, self._on_change)
        if not run.manifest.get("waits"):
            return
        if control.wish:  # asked for while the run was being put aside
            self._give_up(run, control.wish)
        else:
            self._suspended.add(run)

    @staticmethod
    def _give_up(run: Run, wish: str) -> None:
        run.update(state="paused" if wish == "pause" else "stopped", waits="", now=True)

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

        def place(name: str) -> Path | None:
            taken = (self.runs.root / name, loras / name, folder / f"{name}.safetensors")
            return next((path for path in taken if path.exists()), None)

        if found := place(config.name):
            number = 2
            while place(f"{config.name}-{number}"):
                number += 1
            raise InputError(
                "name: “{name}” exists already ({folder}); choose another, for example {free}.",
                field="name",
                name=config.name,
                folder=found,
                free=f"{config.name}-{number}",
            )


def _place(run: Run) -> float:
    """Where a run stands in line: when it came, or the place that it was given."""
    return float(run.manifest.get("place") or run.manifest.get("created", 0))


def carry_out(run: Run, host: Host, control: Control, on_change: Callable[[Run], object]) -> None:
    """Do a run's work; whatever goes wrong ends up as a sentence in its manifest."""
    from lora_trainer.training.run import TrainingRun

    run.update(state="running", message="", started=time.time(), process=this_process(), now=True)
    try:
        TrainingRun(run, host, control, on_change).execute()
    except CheckpointChanged as error:
        _end(run, error, state="paused", waits=WAITS_FOR_CHECKPOINT)
    except LoraTrainError as error:
        _end(run, error, state="failed")
    except Exception as error:
        log.exception("The run %s failed", run.name)
        _end(run, error, state="failed")
    on_change(run)


def _end(run: Run, error: Exception, **values: str) -> None:
    try:
        run.update(phase="", waiting=False, finished=time.time(), **explain(error), **values, now=True)
    except LoraTrainError:
        log.exception("The manifest of %s could not be written", run.name)


def _grid_stopped() -> InputError:
    return InputError("The grid was stopped; its finished pictures are kept.")


class _Drawing:
    """A grid's way through the line; how far it is, and what goes wrong, stands in the run's manifest."""

    def __init__(self, run: Run, host: Host, control: Control, on_change: Callable[[Run], object]) -> None:
        self._run = run
        self._host = host
        self._control = control
        self._on_change = on_change

    def draw(self, plan: GridPlan, options: GridOptions) -> None:
        """Draw the grid and measure it."""
        try:
            document = self._draw(plan, options)
            self._note("done", path=document["sheets"][0], phase="")
        except LoraTrainError as error:
            stopped = self._control.wish or isinstance(error, Interrupted)
            self._note("stopped" if stopped else "failed", **explain(error))
        except Exception as error:
            log.exception("The grid of %s failed", self._run.name)
            self._note("failed", **explain(error))

    def _draw(self, plan: GridPlan, options: GridOptions) -> dict[str, Any]:
        from lora_trainer.validation.grid import draw_grid, grid_folder, pace
        from lora_trainer.validation.measure import measure_grid

        config = self._run.config()
        folder = grid_folder(self._run)
        self._note("running", phase="pictures", document=str(folder / "grid.json"))
        with self._host.session(config) as session:
            plan = plan.on(self._host.check(config), session.draw_settings())
            document = draw_grid(plan, session, folder, pace(self._pictures), together=options.together)
            if options.numbers:
                measure_grid(
                    document, self._host, session, config, folder,
                    clip=options.clip, fingerprint=self._run.fingerprint, on_phase=self._phase,
                )  # fmt: skip
        return document

    def _pictures(self, done: int, of: int, seconds_left: float | None) -> None:
        self._phase("pictures", done, of, seconds_left)

    def _phase(self, phase: str, done: int, of: int, seconds_left: float | None = None) -> None:
        self._note("running", phase=phase, done=done, of=of, seconds_left=seconds_left)
        if self._control.wish:
            raise _grid_stopped()

    def _note(self, state: str, **values: Any) -> None:
        self._run.update(grid={**self._run.manifest.get("grid", {}), "state": state, **values}, now=True)
        self._on_change(self._run)


def _check_parts(config: TrainConfig) -> None:
    """That the optimizer is installed and the file to continue from can be read."""
    from lora_trainer.training.optimizers import require_installed

    require_installed(config.training.optimizer)
    if config.network.continue_from:
        from lora_trainer.network.lora_file import require_sd1

        with concerning("network.continue_from"):
            require_sd1(expand(config.network.continue_from))


_shared: list[Jobs] = []


def shared_jobs(make_host: Callable[[], Host]) -> Jobs:
    """The one line of work of a server process; paused when the process ends."""
    if not _shared:
        _shared.append(Jobs(make_host(), confined=True))
        atexit.register(_shared[0].shutdown)
    return _shared[0]
