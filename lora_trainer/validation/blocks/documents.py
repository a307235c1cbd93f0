"""What an analysis and a tuning write: ``analysis.json`` and ``tuning.json``. Page, command line and REST show them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from lora_trainer.core.documents import Count, Damaged, PathText, read_document
from lora_trainer.core.messages import Sentence


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
