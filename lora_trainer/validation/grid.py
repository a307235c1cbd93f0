"""The epoch × weight grid: a picture for each file of a run at each weight, with each prompt and seed.

The grid's document, ``grid.json``, is what page, command line and REST read; DESIGN names the folder.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.config import TrainConfig
from lora_trainer.documents import Damaged
from lora_trainer.errors import InputError, LoraTrainError, NotFound, explain
from lora_trainer.files import patiently, remove, save_picture, write_error, write_json
from lora_trainer.hosts.base import DrawRequest, LoraUse, Session, draw_request
from lora_trainer.lists import parts
from lora_trainer.plain_json import plain
from lora_trainer.runs import Run, is_by_step
from lora_trainer.validation.axes import RunFiles, epoch_values
from lora_trainer.validation.cells import Cell, Drawn, OnCells, draw_cells
from lora_trainer.validation.documents import GRID_VERSION, read_grid
from lora_trainer.validation.sheet import Layout, sheets

if TYPE_CHECKING:
    from lora_trainer.model.families import CheckpointInfo

DEFAULT_WEIGHTS = (0.3, 0.6, 0.8, 1.0)
MAX_VALUES = 200
"""Of weights, prompts or seeds; so many that only a mistake has more."""
MAX_TOGETHER = 64
_WRITE_EVERY = 2.0
_SETTINGS = ("weights", "prompts", "seeds", "size", "negative", "sampler", "steps", "cfg")
"""Entries of a grid's document that make another grid of it; more files are only more columns."""


@dataclass(frozen=True)
class GridOptions:
    """What a person wants to see.

    Attributes:
        weights: LoRA weights; :data:`DEFAULT_WEIGHTS` when none are given.
        prompts: those of the run's samples, else its trigger word, when none are given.
        epochs: ``all``, ``every 2``, ``1-5``, ``last``, ``3``, ``step 40``, and several of these with commas between.
        seeds: the samples' seed when none are given.
        together: pictures drawn at once.
        numbers: measure losses and pictures too; then a prompt without the trigger word is added where all have it.
        clip: folder of a CLIP model to measure pictures with, empty for none.
    """

    weights: Sequence[float] = ()
    prompts: Sequence[str] = ()
    epochs: str = "all"
    seeds: Sequence[int] = ()
    together: int = 4
    numbers: bool = True
    clip: str = ""


@dataclass(frozen=True)
class Column:
    """A file of the run, or the checkpoint alone."""

    label: str
    file: Path | None = None
    epoch: int = 0
    step: int = 0
    content: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        name = self.file.stem if self.file else ""
        path = str(self.file) if self.file else None
        return {"label": self.label, "file": path, "name": name, "epoch": self.epoch, "step": self.step}


ALONE = Column("no LoRA")


@dataclass(frozen=True)
class GridPlan:
    """What a grid shows. The first column is the checkpoint alone.

    Attributes:
        run: its name.
        trigger: the run's trigger word.
        columns: the files.
        weights: of the LoRA.
        prompts: as they are drawn.
        seeds: of the pictures.
        request: everything else about a picture.
        base: what of the host changes a picture.
    """

    run: str
    trigger: str
    columns: list[Column]
    weights: list[float]
    prompts: list[str]
    seeds: list[int]
    request: DrawRequest
    base: str = ""

    def on(self, checkpoint: CheckpointInfo, settings: str = "") -> GridPlan:
        """The same grid on a checkpoint with a host's settings, whose pictures are kept apart from those of others."""
        known = (checkpoint.name, checkpoint.key, checkpoint.vae)
        return replace(self, base=repr((known, settings)))

    def cell(self, column: int, weight: float, prompt: int, seed: int) -> Cell:
        """One cell."""
        used = self.columns[column]
        request = replace(self.request, prompt=self.prompts[prompt], seed=self.seeds[seed])
        return Cell(LoraUse(used.file, float(weight)) if used.file else None, request, used.content, self.base)

    def places(self) -> list[tuple[int, float, int, int]]:
        """Column, weight, prompt and seed of all cells, file by file and weight by weight.

        So a file is loaded and put into the model once, and what differs in prompt and seed only is drawn together.
        """
        return [
            (column, weight, prompt, seed)
            for column, used in enumerate(self.columns)
            for weight in (self.weights if used.file else [0.0])
            for prompt in range(len(self.prompts))
            for seed in range(len(self.seeds))
        ]

    def has_trigger(self, prompt: str) -> bool:
        """Whether a prompt calls for what was learned; without a trigger word every prompt does."""
        return not self.trigger or self.trigger.lower() in prompt.lower()


def plan_grid(run: Run, options: GridOptions | None = None, config: TrainConfig | None = None) -> GridPlan:
    """The grid of a run's finished files.

    Args:
        run: the run; it may go on.
        options: what to show.
        config: the run's settings, when they are at hand.

    Raises:
        InputError: no files, no such epochs, or weights, prompts or seeds that cannot be used.
    """
    options, config = options or GridOptions(), config or run.config()
    samples = config.samples
    prompts = [p for p in options.prompts if p.strip()] or samples.prompts or [config.data.trigger or config.name]
    weights = _numbers("weights", options.weights or DEFAULT_WEIGHTS, -2, 2)
    seeds = [int(s) for s in _numbers("seeds", options.seeds or [samples.seed], 0, 2**32 - 1)]
    _check_count("prompts", prompts)
    if not 1 <= options.together <= MAX_TOGETHER:
        raise _out_of_range("together", 1, MAX_TOGETHER)
    plan = GridPlan(
        run.name,
        trigger_of(config, prompts),
        [ALONE, *_columns(run, options.epochs)],
        weights,
        list(dict.fromkeys(prompts)),
        seeds,
        draw_request(samples, "", config.data.resolution),
    )
    return replace(plan, prompts=_with_leak(plan)) if options.numbers else plan


def trigger_of(config: TrainConfig, prompts: Sequence[str]) -> str:
    """The trigger word of a run. With several concepts its settings have none; then the name, if a prompt has it."""
    is_called_so = any(config.name.lower() in prompt.lower() for prompt in prompts)
    return config.data.trigger or (config.name if is_called_so else "")


def _columns(run: Run, epochs: str) -> list[Column]:
    entries = run.manifest["files"]
    if not any(Path(entry["path"]).is_file() for entry in entries):
        raise InputError("The run {name} has no LoRA files (yet), so there is nothing to compare.", name=run.name)
    chosen = {value.file for value in epoch_values(parts(epochs) or ["all"], [RunFiles.of(run.name, entries)])}
    last = {Path(entry["path"]): entry for entry in entries}
    return [_column(run.name, path, entry) for path, entry in last.items() if path in chosen]


def _column(run: str, path: Path, entry: dict[str, Any]) -> Column:
    label = f"step {entry['step']}" if is_by_step(run, entry) else f"epoch {entry['epoch']}"
    return Column(label, path, int(entry["epoch"]), int(entry["step"]), str(entry.get("sha256", "")))


def _numbers(key: str, values: Sequence[float], low: float, high: float) -> list[float]:
    _check_count(key, values)
    if not all(low <= value <= high for value in values):
        raise _out_of_range(key, low, high)
    return list(dict.fromkeys(map(float, values)))


def _check_count(key: str, values: Sequence[object]) -> None:
    if len(values) > MAX_VALUES:
        raise InputError("{key}: {most} are the most.", field=key, key=key, most=MAX_VALUES)


def _out_of_range(key: str, low: float, high: float) -> InputError:
    return InputError(
        "{key}: use numbers from {low} to {high}.", field=key, key=key, low=f"{low:.10g}", high=f"{high:.10g}"
    )


def _with_leak(plan: GridPlan) -> list[str]:
    """The prompts, and where all have the trigger word one without it, which shows what the LoRA does unasked."""
    if not all(plan.has_trigger(prompt) for prompt in plan.prompts) or not plan.trigger:
        return plan.prompts
    for prompt in plan.prompts:
        words = [word.strip() for word in prompt.split(",") if plan.trigger.lower() not in word.lower()]
        if any(words):
            return [*plan.prompts, ", ".join(word for word in words if word)]
    return plan.prompts


def grid_folder(run: Run) -> Path:
    """Where a run's grid is."""
    return run.grids / "plain"


def known_grid(run: Run) -> dict[str, Any]:
    """The document of a run's grid.

    Raises:
        NotFound: none was begun, or it was made by another version.
        InputError: it is damaged.
    """
    path = grid_folder(run) / "grid.json"
    try:
        document = read_grid(path)
    except FileNotFoundError:
        document = None
    except (OSError, Damaged) as error:
        raise InputError(
            "The grid of {name} cannot be read: {path} is damaged ({place}); draw it again, its pictures are kept.",
            name=run.name,
            path=path,
            place=error.place if isinstance(error, Damaged) else error.strerror or error,
        ) from error
    if document is None:
        raise NotFound("No grid of {name} has been drawn yet.", field="name", name=run.name)
    return {**document, "run": run.name}


def set_aside(folder: Path, document: Mapping[str, Any]) -> Path | None:
    """Move what another grid has left, its sheets, numbers and document, into a folder of their own.

    The pictures stay where they are, since grids share them.

    Args:
        folder: of the run's grid.
        document: of the grid that is begun now; the same one with more files goes on in place.

    Returns:
        ``earlier-1``, ``earlier-2`` … within ``folder``; ``None`` when there was nothing to keep.

    Raises:
        RunError: a file cannot be moved.
    """
    if not _is_another(folder / "grid.json", document):
        return None
    place = next(p for n in itertools.count(1) if not (p := folder / f"earlier-{n}").exists())
    path = place
    try:
        patiently(place.mkdir)
        for path in [*folder.glob("grid*.png"), *folder.glob("grid*.csv"), folder / "grid.json"]:
            patiently(lambda path=path: os.replace(path, place / path.name))  # type: ignore[misc]
    except OSError as error:
        raise write_error(path, error) from error
    return place


def _is_another(path: Path, document: Mapping[str, Any]) -> bool:
    """Whether a file has a finished grid with other settings, or one that cannot be read: nobody knows what it is."""
    try:
        before: Mapping[str, Any] | None = read_grid(path)
    except OSError:
        return False
    except Damaged:
        return True
    if before is None or not before["sheets"]:
        return False
    files = [{column["name"] for column in each["columns"]} for each in (before, document)]
    same = before.get("more", []) == plain(document["more"]) and all(before[key] == document[key] for key in _SETTINGS)
    return not (same and files[0] <= files[1])


# ------------------------------------------------------------------ drawing
def draw_grid(
    plan: GridPlan,
    session: Session,
    folder: Path,
    on_cells: OnCells = lambda done, of: None,
    *,
    together: int = 1,
) -> dict[str, Any]:
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


def describe(plan: GridPlan, drawn: Drawn) -> dict[str, Any]:
    """The grid's document: columns, weights, prompts, seeds and every cell's picture; numbers come later."""
    request = plan.request
    cells: list[dict[str, Any]] = []
    for column, weight, prompt, seed in plan.places():
        key = plan.cell(column, weight, prompt, seed).key()
        picture = drawn.pictures.get(key)
        place = {"column": column, "weight": weight, "prompt": prompt, "seed": seed}
        cells.append({**place, "key": key, "picture": str(picture) if picture else None, "numbers": {}})
    return {
        "version": GRID_VERSION,
        "run": plan.run,
        "trigger": plan.trigger,
        "columns": [column.to_dict() for column in plan.columns],
        "weights": plan.weights,
        "prompts": [{"text": prompt, "trigger": plan.has_trigger(prompt)} for prompt in plan.prompts],
        "seeds": plan.seeds,
        "size": [request.width, request.height],
        **{name: getattr(request, name) for name in ("negative", "sampler", "steps", "cfg")},
        "more": [list(each) for each in request.more],
        "cells": cells,
        "groups": [
            {"column": column, "weight": weight, "numbers": {}}
            for column, weight in dict.fromkeys(place[:2] for place in plan.places())
        ],
        "verdict": None,
        "problems": [explain(error)["error"] for error in drawn.problems.values()],
        "sheets": [],
        "csv": None,
    }


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
