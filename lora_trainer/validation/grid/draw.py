"""A grid is drawn cell by cell; what is there already is kept."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

from lora_trainer.core.errors import LoraTrainError
from lora_trainer.core.files import remove, save_picture, write_json
from lora_trainer.hosts.base import Session
from lora_trainer.validation.grid.cells import Drawn, OnCells, draw_cells
from lora_trainer.validation.grid.document import GridDocument, describe, set_aside
from lora_trainer.validation.grid.plan import GridPlan
from lora_trainer.validation.grid.sheet import Layout, sheets

_WRITE_EVERY = 2.0


# ------------------------------------------------------------------ drawing
def draw_grid(
    plan: GridPlan,
    session: Session,
    folder: Path,
    on_cells: OnCells = lambda done, of: None,
    *,
    together: int = 1,
) -> GridDocument:
    """Draw what is missing, with the document beside it all the while; returns the document when all is drawn.

    Args:
        plan: the grid, made for the session's checkpoint with :meth:`GridPlan.on`.
        session: draws.
        folder: ``cells``, ``grid.json`` and the sheets ``grid.png``, ``grid-2.png`` … are in it.
        on_cells: called with the number of cells that are there, and of all; what it raises stops the drawing.
        together: cells with the same LoRA that are drawn at once.

    Raises:
        RunError: no memory for one picture, the disk is full, or the drawing was interrupted; what is drawn is kept.
        InputError: nothing could be drawn with any of the files.
    """
    places = plan.places()
    cells = [plan.cell(*place) for place in places]
    path = folder / "grid.json"
    drawn = Drawn(folder / "cells")
    set_aside(folder, describe(plan, drawn))
    written = -math.inf
    try:
        for _ in draw_cells(cells, session, drawn, together, on_cells):
            if time.monotonic() - written > _WRITE_EVERY:
                write_json(path, describe(plan, drawn))
                written = time.monotonic()
    except Exception:
        with contextlib.suppress(LoraTrainError):  # the first error is the one to tell
            write_json(path, describe(plan, drawn))
        raise
    if all(column.file in drawn.problems for column in plan.columns if column.file):
        raise next(iter(drawn.problems.values()))
    document = describe(plan, drawn)
    document["sheets"] = [str(sheet) for sheet in write_sheets(plan, drawn, folder)]
    write_json(path, document)
    return document


def write_sheets(plan: GridPlan, drawn: Drawn, folder: Path) -> list[Path]:
    """Put all pictures on labelled sheets, with the text of how they were made; sheets of before are replaced."""
    blocks = [(prompt, seed) for prompt in range(len(plan.prompts)) for seed in range(len(plan.seeds))]

    def picture(column: int, row: int, block: int) -> Path | None:
        weight = plan.weights[row] if plan.columns[column].file else 0.0
        return drawn.pictures.get(plan.cell(column, weight, *blocks[block]).key())

    layout = Layout(
        [column.label for column in plan.columns],
        [f"weight {weight:g}" for weight in plan.weights],
        [plan.prompts[p] + (f"  ·  seed {plan.seeds[s]}" if len(plan.seeds) > 1 else "") for p, s in blocks],
        _drawn_size(plan, drawn),
        picture,
    )
    text = _infotext(plan, drawn)
    paths = []
    for number, sheet in enumerate(sheets(layout), start=1):
        sheet.info["parameters"] = text
        paths.append(folder / ("grid.png" if number == 1 else f"grid-{number}.png"))
        save_picture(paths[-1], sheet)
    for stale in folder.glob("grid-*.png"):
        if stale not in paths:
            remove(stale)
    return paths


def _drawn_size(plan: GridPlan, drawn: Drawn) -> tuple[int, int]:
    """Width and height of the pictures: more than what was asked for where the host enlarges them."""
    from PIL import Image

    for path in drawn.pictures.values() if plan.request.more else ():
        with Image.open(path) as picture:
            return picture.size
    return plan.request.width, plan.request.height


def _infotext(plan: GridPlan, drawn: Drawn) -> str:
    """The text of the last picture, as the WebUI writes it, with the axes behind it as its X/Y/Z plot has them."""
    from PIL import Image

    last = plan.cell(*plan.places()[-1]).key()
    made = ""
    if last in drawn.pictures:
        with Image.open(drawn.pictures[last]) as picture:
            made = str(picture.info.get("parameters", ""))
    columns = ", ".join(column.label for column in plan.columns)
    weights = ", ".join(f"{weight:g}" for weight in plan.weights)
    axes = {"X Type": "LoRA run epoch", "X Values": columns, "Y Type": "LoRA weight", "Y Values": weights}
    if len(plan.seeds) > 1:
        axes |= {"Z Type": "Seed", "Z Values": ", ".join(map(str, plan.seeds))}
    told = ["Script: LoRA Train grid", *(f"{k}: {_quoted(v)}" for k, v in axes.items())]
    return ", ".join([made, *told] if made else told)


def _quoted(text: str) -> str:
    """As the WebUI quotes a value that has its separators in it (modules/infotext_utils.py, ``quote``)."""
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",\n:") else text


def pace(on_progress: Callable[[int, int, float | None], object]) -> OnCells:
    """Turn counts into counts with the seconds left, from the speed since the first cell that had to be drawn."""
    first: tuple[float, int] | None = None

    def note(done: int, of: int) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now, done
        began, before = first
        left = (now - began) / (done - before) * (of - done) if done > before else None
        on_progress(done, of, left)

    return note
