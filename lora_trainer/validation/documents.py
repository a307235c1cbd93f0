"""What the documents of a validation hold: a grid's ``grid.json``, and ``analysis.json`` and ``tuning.json`` of a file.

Page, command line and REST show them; see :mod:`lora_trainer.documents` for how they are read back.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, cast

from lora_trainer.documents import Count, Damaged, PathText, Sentence, read_document

GRID_VERSION = 2
Numbers = dict[str, float | None]
"""Measured, by name; ``None`` was no number."""
Size = Annotated[list[Count], lambda value: len(value) == 2]
Key = Annotated[str, lambda value: value.isalnum() and len(value) <= 64]
"""Name of a picture, without its extension."""


# ------------------------------------------------------------------ the epoch × weight grid
class GridColumn(TypedDict):
    """A file, or the checkpoint alone: then ``file`` is ``None``."""

    label: str
    file: PathText | None
    name: str
    epoch: Count
    step: Count


class GridPrompt(TypedDict):
    """A prompt, and whether it calls for what was learned."""

    text: str
    trigger: bool


class GridCell(TypedDict):
    """A picture: places in ``columns``, ``prompts`` and ``seeds``, its weight, its file when drawn, and numbers."""

    column: Count
    weight: float
    prompt: Count
    seed: Count
    key: Key
    picture: PathText | None
    numbers: Numbers


class GridGroupStart(TypedDict):
    """A file at a weight: the means over its cells, and its losses."""

    column: Count
    weight: float
    numbers: Numbers


class GridGroup(GridGroupStart, total=False):
    """What is there when losses were measured: one for each picture, or that they are no numbers."""

    losses: list[float | None]
    broken: bool


class Verdict(TypedDict):
    """What the numbers say: a state, the recommended cell, the epoch from which on it is over-fitted, sentences."""

    state: str
    column: Count | None
    weight: float | None
    turn: Count | None
    sentences: list[Sentence]


class Measured(TypedDict, total=False):
    """On what losses were measured."""

    held_out: bool
    pictures: Count
    of: Count
    timesteps: Any
    problems: list[Sentence]


class GridStart(TypedDict):
    """What every grid has."""

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
    """``grid.json``; ``more`` are the parameters that the host's own page has beside these."""

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


# ------------------------------------------------------------------ what blocks do, by pictures
class Effect(TypedDict):
    """How far pictures are apart: mean and spread of the RMS difference and of the share of changed samples."""

    rms: float
    rms_sd: float
    share: float
    share_sd: float


class BlockNumbers(TypedDict):
    """A block alone, and all but it."""

    only: Effect
    without: Effect


class BlockPictures(TypedDict):
    """Of one request: with only the block, without it, and what that takes away."""

    only: PathText
    without: PathText
    difference: PathText


class AnalysedBlock(BlockNumbers):
    """A block, the strongest first; ``leak`` is measured where no prompt asks for the subject."""

    block: str
    effect: float
    leak: BlockNumbers | None
    pictures: list[BlockPictures]


class AnalysedRequest(TypedDict):
    """A prompt and seed, with the pictures without the LoRA and with all of it."""

    prompt: str
    seed: Count
    none: PathText
    full: PathText


class Made(TypedDict):
    """What tells of which bytes a document is."""

    sha256: str


class Analysis(Made):
    """``analysis.json`` of a file."""

    requests: Annotated[list[AnalysedRequest], len]
    gain: float
    all: Effect
    all_leak: Effect | None
    blocks: list[AnalysedBlock]
    notes: list[Sentence]


# ------------------------------------------------------------------ learned block weights
class Compared(TypedDict):
    """Losses on pictures that the weights were not chosen on."""

    before: Annotated[float, lambda value: value > 0]
    after: float
    relative: float
    error: float


class NamedCompared(Compared):
    """The best of several that have names, and what to type for it."""

    name: str
    prompt: str


class TunedLosses(TypedDict):
    """Without the LoRA, with all blocks at 1, and with the weights on the pictures that they were fitted to."""

    base: float
    before: float
    fitted: float


class Tuning(Made):
    """``tuning.json`` of a file."""

    weight: float
    losses: TunedLosses
    weights: dict[str, float]
    lbw: str
    prompt: str
    tuned: Compared
    single: NamedCompared
    preset: NamedCompared
    recommended: Literal["single", "preset", "tuned", "none"]
    sentences: Annotated[list[Sentence], len]


def read_analysis(path: Path) -> dict[str, Any]:
    """The analysis in a file. Raises as :func:`read_grid`."""
    document = read_document(path, Analysis)
    for index, block in enumerate(document["blocks"]):
        if len(block["pictures"]) != len(document["requests"]):
            raise Damaged(f"blocks[{index}].pictures")
    return document


def read_tuning(path: Path) -> dict[str, Any]:
    """The tuning in a file. Raises as :func:`read_grid`."""
    return read_document(path, Tuning)
