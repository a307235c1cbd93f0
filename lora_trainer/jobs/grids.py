"""The epoch × weight grid of a run: as a job of the page, REST or the command line, or drawn at once in txt2img."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.config.schema import typed_value
from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError, Interrupted
from lora_trainer.core.process import this_process
from lora_trainer.hosts.base import DrawRequest, Host, ModelRequest, Session
from lora_trainer.jobs.job import Progress
from lora_trainer.jobs.library import require_readable
from lora_trainer.jobs.requests import read
from lora_trainer.jobs.sections import Section, SectionJobs
from lora_trainer.runs.run import Run

if TYPE_CHECKING:
    from lora_trainer.validation.grid.document import GridDocument
    from lora_trainer.validation.grid.options import GridOptions
    from lora_trainer.validation.grid.plan import GridPlan

Hold = Callable[[ModelRequest], AbstractContextManager[Session]]
"""Takes hold of the model for a run's settings, as :meth:`Host.session` does."""


class GridSection(Section):
    """How far a run's grid is."""

    key = "grid"

    def stopped(self) -> Interrupted:
        """What is said of it when a person has stopped it."""
        return Interrupted("The grid was stopped; its finished pictures are kept.")

    def busy(self) -> InputError:
        """There is one already."""
        return InputError("A grid of {name} is being drawn already.", name=self.run.name)

    def idle(self) -> InputError:
        """There is none."""
        return InputError("No grid of {name} is being drawn.", name=self.run.name)


@dataclass(frozen=True)
class Grid:
    """A grid to be drawn and measured.

    Attributes:
        host: measures.
        run: whose files it compares.
        config: the run's settings.
        plan: its cells.
        options: what was asked for.
    """

    host: Host
    run: Run
    config: TrainConfig
    plan: GridPlan
    options: GridOptions

    @classmethod
    def of(cls, host: Host, run: Run, options: GridOptions) -> Grid:
        """The grid of a run's finished files.

        Raises:
            InputError: no files, no such epochs, or values that cannot be used.
        """
        from lora_trainer.validation.grid.plan import plan_grid

        config = run.config()
        return cls(host, run, config, plan_grid(run, options, config), options)

    def like(self, request: DrawRequest) -> Grid:
        """The same grid, drawn with another page's prompt, size, sampler, steps and the like."""
        plan = replace(self.plan, request=replace(request, prompt=""))
        if not request.prompt:
            plan = replace(plan, prompts=[""])  # the page's, and not the run's, which stands in where there is none
        return replace(self, plan=plan)

    @property
    def folder(self) -> Path:
        """Where it lies."""
        from lora_trainer.validation.grid.document import grid_folder

        return grid_folder(self.run)

    @property
    def cells(self) -> int:
        """How many pictures it has."""
        return len(self.plan.places())

    def work(self, progress: Progress) -> dict[str, Any]:
        """Draw and measure it as a job; returns what the manifest tells of it then."""
        from lora_trainer.validation.grid.draw import pace

        def tell(phase: str, done: int, of: int, seconds_left: float | None = None) -> None:
            progress(done, of, phase=phase, seconds_left=seconds_left)

        progress(0, self.cells, phase="pictures", document=str(self.folder / "grid.json"))
        on_pictures = pace(lambda done, of, left: tell("pictures", done, of, left))
        document = self.draw(self.host.session, on_pictures, tell)
        return {"path": document["sheets"][0], "phase": ""}

    def draw_now(self, hold: Hold, on_plan: Callable[[GridPlan], object]) -> GridDocument:
        """Draw it in the thread that asks, as a script of txt2img does; the manifest tells of it when it is done.

        Args:
            hold: on the model.
            on_plan: as for :meth:`draw`.

        Returns:
            The document; of an interrupted grid as far as it came.

        Raises:
            LoraTrainError: as :meth:`draw` raises it.
        """
        from lora_trainer.validation.grid.document import known_grid

        try:
            document = self.draw(hold, on_plan=on_plan)
        except Interrupted:
            return known_grid(self.run)
        facts = {
            "state": "done", "done": self.cells, "of": self.cells, "message": "",
            "path": document["sheets"][0], "document": str(self.folder / "grid.json"), "finished": time.time(),
        }  # fmt: skip
        self.run.update(grid=facts, now=True)
        return document

    def draw(
        self,
        hold: Hold,
        on_pictures: Callable[[int, int], None] = lambda done, of: None,
        on_phase: Callable[[str, int, int], object] = lambda phase, done, of: None,
        on_plan: Callable[[GridPlan], object] = lambda plan: None,
    ) -> GridDocument:
        """Draw it and measure it now; returns its document.

        Args:
            hold: on the model.
            on_pictures: told how many pictures are there, and of how many; may raise to stop.
            on_phase: the same of what is measured, with its name.
            on_plan: given the plan for the host's checkpoint and settings, before anything is drawn.

        Raises:
            LoraTrainError: as :func:`draw_grid` and :func:`measure_grid` raise it.
        """
        from lora_trainer.validation.grid.draw import draw_grid
        from lora_trainer.validation.grid.measure import measure_grid

        model = ModelRequest.of(self.config)
        with hold(model) as session:
            plan = self.plan.on(self.host.check(model), session.draw_settings())
            on_plan(plan)
            document = draw_grid(plan, session, self.folder, on_pictures, together=self.options.together)
            if self.options.numbers:
                measure_grid(
                    document, self.host, session, self.config, self.folder,
                    clip=self.options.clip, fingerprint=self.run.fingerprint, on_phase=on_phase,
                )  # fmt: skip
        return document


class GridJobs:
    """Starts, stops and tells of the grids of runs.

    Args:
        host: where the model is.
        jobs: starts them.
        find: a run by its name; raises :class:`NotFound`.
        on_change: called when a manifest changed, from the working thread.
    """

    def __init__(
        self, host: Host, jobs: SectionJobs, find: Callable[[str], Run], on_change: Callable[[Run], object]
    ) -> None:
        self._host = host
        self._jobs = jobs
        self._find = find
        self._on_change = on_change

    def section(self, run: Run) -> GridSection:
        """Where it stands how far a run's is."""
        return GridSection(run, self._on_change)

    def draw(self, name: str, /, **wishes: Any) -> Run:
        """Draw the epoch × weight grid of a run's finished files; how far it is stands in its manifest.

        Args:
            name: of the run, which may go on.
            wishes: fields of :class:`~lora_trainer.validation.grid.options.GridOptions`.

        Raises:
            InputError: no such run, no files, wrong weights, or one is drawn already.
        """
        from lora_trainer.validation.grid.options import GridOptions

        options = read(GridOptions, wishes, typed_value)  # bounds are the plan's to check
        grid = Grid.of(self._host, self._find(name), options)
        require_readable(self._host, "clip", options.clip)
        self._host.check(ModelRequest.of(grid.config))
        begun = {"of": grid.cells, "message": "", "process": this_process()}
        self._jobs.start(self.section(grid.run), grid.work, **begun)
        return grid.run

    def draw_now(
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
            LoraTrainError: as :meth:`draw` and :meth:`Grid.draw` raise it.
        """
        grid = Grid.of(self._host, self._find(name), options).like(request)
        return grid.draw_now(hold, on_plan)

    def require_none(self, name: str) -> Run:
        """The run, of which no grid is being drawn; raises :class:`InputError`."""
        section = self.section(self._find(name))
        if self._jobs.goes_on(section):
            raise section.busy()
        return section.run

    def document(self, name: str) -> dict[str, Any]:
        """What is known of a run's grid, drawn or being drawn; raises :class:`NotFound` when there is none."""
        from lora_trainer.validation.grid.document import known_grid

        return dict(known_grid(self._find(name)))

    def stop(self, name: str) -> Run:
        """Stop drawing a run's grid; its finished pictures are kept and used when it is drawn again."""
        run = self._find(name)
        self._jobs.stop(self.section(run))
        return run
