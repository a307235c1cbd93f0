"""A grid's way through the line."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lora_trainer.core.errors import InputError, Interrupted, LoraTrainError, explain
from lora_trainer.hosts.base import Host
from lora_trainer.runs.control import Control
from lora_trainer.runs.run import Run

if TYPE_CHECKING:
    from lora_trainer.validation.grid.document import GridDocument
    from lora_trainer.validation.grid.plan import GridOptions, GridPlan

log = logging.getLogger(__name__)


def grid_stopped() -> InputError:
    """What a grid says that somebody stopped."""
    return InputError("The grid was stopped; its finished pictures are kept.")


class GridDrawing:
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
            stopped = self._control.request or isinstance(error, Interrupted)
            self._note("stopped" if stopped else "failed", **explain(error))
        except BaseException as error:
            log.exception("The grid of %s failed", self._run.name)
            self._note("failed", **explain(error))

    def _draw(self, plan: GridPlan, options: GridOptions) -> GridDocument:
        from lora_trainer.validation.grid.document import grid_folder
        from lora_trainer.validation.grid.draw import draw_grid, pace
        from lora_trainer.validation.grid.measure import measure_grid

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
        if self._control.request:
            raise grid_stopped()

    def _note(self, state: str, **values: Any) -> None:
        self._run.update(grid={**self._run.manifest.get("grid", {}), "state": state, **values}, now=True)
        self._on_change(self._run)
