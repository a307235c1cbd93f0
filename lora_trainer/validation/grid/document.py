"""What the documents of a validation hold: a grid's ``grid.json``, and ``analysis.json`` and ``tuning.json`` of a file.

Page, command line and REST show them; see :mod:`lora_trainer.core.documents` for how they are read back.
``docs/documents.md`` is written from the types and from what their docstrings say of each key.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict, cast

from lora_trainer.core.documents import Count, Damaged, PathText, read_document
from lora_trainer.core.errors import InputError, NotFound
from lora_trainer.core.files import patiently, write_error
from lora_trainer.core.messages import Sentence
from lora_trainer.core.plain_json import plain
from lora_trainer.runs.run import Run
from lora_trainer.runs.saved_files import SavedFile
from lora_trainer.validation.grid.cells import Drawn
from lora_trainer.validation.grid.plan import ALONE, GridPlan

GRID_VERSION = 2
"""Of a grid's document; one of another version counts as none, and is drawn anew."""
Numbers = dict[str, float | None]
"""Measured, by name; ``None`` was no number."""
Size = Annotated[list[Count], lambda value: len(value) == 2]
Key = Annotated[str, lambda value: value.isalnum() and len(value) <= 64]
"""Name of a picture, without its extension."""


# ------------------------------------------------------------------ the epoch × weight grid
class GridColumn(TypedDict):
    """A LoRA file, or the checkpoint alone, which is the first column.

    Attributes:
        label: what it is called: `epoch 3`, `step 40`, `no LoRA`.
        file: its path; `null` for the checkpoint alone.
        name: its name without the extension, as prompts call it.
        epoch: of the run; 0 for the checkpoint alone.
        step: of the run; 0 for the checkpoint alone.
    """

    label: str
    file: PathText | None
    name: str
    epoch: Count
    step: Count


class GridPrompt(TypedDict):
    """A prompt.

    Attributes:
        text: what is drawn.
        trigger: it calls for what was learned.
    """

    text: str
    trigger: bool


class GridCell(TypedDict):
    """A picture.

    Attributes:
        column: its place in `columns`.
        weight: of the LoRA; 0 for the checkpoint alone.
        prompt: its place in `prompts`.
        seed: its place in `seeds`.
        key: its name, which cells that show the same share.
        picture: its path; `null` while it is not drawn.
        numbers: what is measured of it: `effect` or `leak`, `copy`, `clip`.
    """

    column: Count
    weight: float
    prompt: Count
    seed: Count
    key: Key
    picture: PathText | None
    numbers: Numbers


class GridGroupStart(TypedDict):
    """A file at a weight.

    Attributes:
        column: its place in `columns`.
        weight: of the LoRA; 0 for the checkpoint alone.
        numbers: means over its cells with their spreads (`_sd`), and `loss` with its error (`loss_se`).
    """

    column: Count
    weight: float
    numbers: Numbers


class GridGroup(GridGroupStart, total=False):
    """A file at a weight.

    Attributes:
        losses: one for each picture that losses were measured on.
        broken: its losses are no numbers.
    """

    losses: list[float | None]
    broken: bool


class Verdict(TypedDict):
    """What the numbers say.

    Attributes:
        state: `good`, `under`, `over`, `useless` or `unknown`.
        column: the recommended column.
        weight: the recommended weight.
        turn: the epoch from which on it is over-fitted.
        sentences: what is told, the recommendation first.
    """

    state: str
    column: Count | None
    weight: float | None
    turn: Count | None
    sentences: list[Sentence]


class FileProblem(Sentence, total=False):
    """Why losses could not be measured.

    Attributes:
        file: path of the file that it was; empty for all of them.
    """

    file: str


class Measured(TypedDict, total=False):
    """On what losses were measured.

    Attributes:
        held_out: on pictures that were kept aside; else on those that were learned.
        pictures: how many.
        of: how many there were.
        timesteps: noise levels of each.
        problems: what could not be measured, and why.
    """

    held_out: bool
    pictures: Count
    of: Count
    timesteps: Any
    problems: list[FileProblem]


class GridStart(TypedDict):
    """The epoch × weight grid of a run: what was drawn and what was measured.

    Attributes:
        version: of this document; one of another version is drawn anew.
        run: name of the run.
        trigger: its trigger word.
        columns: the files.
        weights: of the LoRA: the rows.
        prompts: what is drawn.
        seeds: of the pictures.
        size: width and height in pixels.
        negative: the negative prompt.
        sampler: that the pictures are drawn with.
        steps: of the sampler.
        cfg: guidance scale.
        cells: the pictures.
        groups: the files at each weight, with their numbers.
        verdict: what the numbers say; `null` before they are measured.
        problems: what could not be drawn or measured, and why.
        sheets: paths of the pictures of the whole grid.
        csv: path of the table.
    """

    version: int
    run: str
    trigger: str
    columns: Annotated[list[GridColumn], len]
    weights: list[float]
    prompts: list[GridPrompt]
    seeds: list[Count]
    size: Size
    negative: str
    sampler: str
    steps: Count
    cfg: float
    cells: list[GridCell]
    groups: list[GridGroup]
    verdict: Verdict | None
    problems: list[Sentence]
    sheets: list[PathText]
    csv: PathText | None


class GridDocument(GridStart, total=False):
    """The epoch × weight grid of a run: what was drawn and what was measured.

    Attributes:
        more: parameters that the host's own page has beside these.
        measured: on what losses were measured.
    """

    more: list[Any]
    measured: Measured


def read_grid(path: Path) -> GridDocument | None:
    """The grid in a file; ``None`` for one of another version.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
        Damaged: it is none, or what it says does not fit together.
    """
    try:
        document = cast(GridDocument, read_document(path, GridDocument))
    except Damaged:
        if _version_of(path) not in (None, GRID_VERSION):
            return None
        raise
    if document["version"] != GRID_VERSION:
        return None
    _require_places(document)
    return document


class _Versioned(TypedDict):
    version: int


def _version_of(path: Path) -> int | None:
    try:
        return int(read_document(path, _Versioned)["version"])
    except Damaged:
        return None


def _require_places(document: GridDocument) -> None:
    """Whether cells, groups and verdict point to columns, weights, prompts and seeds that are there."""
    columns, weights = len(document["columns"]), set(document["weights"])
    prompts, seeds = len(document["prompts"]), len(document["seeds"])
    for kind, entries in (("cells", document["cells"]), ("groups", document["groups"])):
        for index, entry in enumerate(cast("list[Mapping[str, Any]]", entries)):
            if entry["column"] >= columns or (entry["column"] and entry["weight"] not in weights):
                raise Damaged(f"{kind}[{index}]")
            if entry.get("prompt", 0) >= prompts or entry.get("seed", 0) >= seeds:
                raise Damaged(f"{kind}[{index}]")
    verdict = document["verdict"]
    column = verdict["column"] if verdict else None
    if column is not None and column >= columns:
        raise Damaged("verdict.column")


def grid_folder(run: Run) -> Path:
    """Where a run's grid is."""
    return run.grids / "plain"


def known_grid(run: Run) -> GridDocument:
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


def set_aside(folder: Path, document: GridDocument) -> Path | None:
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


def _is_another(path: Path, document: GridDocument) -> bool:
    """Whether a file has a finished grid with other settings, or one that cannot be read: nobody knows what it is."""
    try:
        before = read_grid(path)
    except OSError:
        return False
    except Damaged:
        return True
    if before is None or not before["sheets"]:
        return False
    files = [{column["name"] for column in each["columns"]} for each in (before, document)]
    return not (_settings(before) == plain(_settings(document)) and files[0] <= files[1])


def _settings(document: GridDocument) -> list[Any]:
    """What makes another grid of it when it is changed; more files are only more columns."""
    of_pictures = document["size"], document["negative"], document["sampler"], document["steps"], document["cfg"]
    return [document["weights"], document["prompts"], document["seeds"], *of_pictures, document.get("more", [])]


def _column(saved: SavedFile | None) -> GridColumn:
    if saved is None:
        return {"label": ALONE.label, "file": None, "name": "", "epoch": 0, "step": 0}
    name, path = saved.path.stem, str(saved.path)
    return {"label": saved.label, "file": path, "name": name, "epoch": saved.epoch, "step": saved.step}


def describe(plan: GridPlan, drawn: Drawn) -> GridDocument:
    """The grid's document: columns, weights, prompts, seeds and every cell's picture; numbers come later."""
    request = plan.request
    cells: list[GridCell] = []
    for column, weight, prompt, seed in plan.places():
        key = plan.cell(column, weight, prompt, seed).key()
        picture = drawn.pictures.get(key)
        cells.append({
            "column": column, "weight": weight, "prompt": prompt, "seed": seed,
            "key": key, "picture": str(picture) if picture else None, "numbers": {},
        })  # fmt: skip
    return {
        "version": GRID_VERSION,
        "run": plan.run,
        "trigger": plan.trigger,
        "columns": [_column(column.saved) for column in plan.columns],
        "weights": plan.weights,
        "prompts": [{"text": prompt, "trigger": plan.has_trigger(prompt)} for prompt in plan.prompts],
        "seeds": plan.seeds,
        "size": [request.width, request.height],
        "negative": request.negative,
        "sampler": request.sampler,
        "steps": request.steps,
        "cfg": request.cfg,
        "more": [list(each) for each in request.more],
        "cells": cells,
        "groups": [
            {"column": column, "weight": weight, "numbers": {}}
            for column, weight in dict.fromkeys(place[:2] for place in plan.places())
        ],
        "verdict": None,
        "problems": [error.message.to_dict() for error in drawn.problems.values()],
        "sheets": [],
        "csv": None,
    }
