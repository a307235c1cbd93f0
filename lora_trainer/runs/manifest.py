"""What a run's documents hold: ``manifest.json``, which REST answers too, and the lines of ``log.jsonl``."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, cast

from lora_trainer.core.documents import Count, Damaged, PathText, read_document
from lora_trainer.core.messages import Sentence

VERSION = 1
"""Of the manifest. It changes when an older program could not read it; new keys alone do not change it."""
DAMAGED = "damaged"
"""The state of a run whose manifest cannot be read; it stands in no file."""
WorkState = Literal["queued", "running", "stopped", "failed", "done"]


Nothing = Annotated[dict[str, Any], operator.not_]
"""An empty table."""


class FileStart(TypedDict):
    """A LoRA file."""

    path: PathText
    epoch: Count
    step: Count


class SavedFile(FileStart, total=False):
    """What else is known of it: hashes of its bytes and of its tensors alone, what it was saved for, its losses."""

    sha256: str
    tensors_sha256: str
    by_step: bool
    metrics: dict[str, float | None]


class Sample(TypedDict):
    """A sample picture."""

    path: PathText
    step: Count
    epoch: Count
    prompt: str


class HeldOut(TypedDict, total=False):
    """Losses on pictures that are not learned from: without the LoRA, the last one, and the lowest so far.

    ``None`` is a loss that was no number.
    """

    base: float | None
    last: float | None
    best: float
    best_epoch: Count
    best_step: Count


class KnownCheckpoint(TypedDict, total=False):
    """What the run is trained on; see :func:`lora_trainer.model.families.is_same_checkpoint`."""

    name: str
    sha256: str
    fingerprint: str
    family: str


class KnownVae(TypedDict):
    """The VAE that it began with."""

    key: str
    name: str


class DatasetSummary(TypedDict, total=False):
    """What its pictures were when it began."""

    pictures: Count
    images_per_epoch: Count
    skipped: list[str]
    concepts: dict[str, Any]
    buckets: dict[str, Any]
    held_out: Count
    fingerprint: str


class Progress(TypedDict):
    """How far a grid, an analysis or a tuning is."""

    state: WorkState
    done: Count
    of: Count


class GridProgress(Progress, total=False):
    """How far the grid is; ``path`` is its first sheet, ``document`` its ``grid.json``."""

    phase: str
    seconds_left: float | None
    path: PathText
    document: PathText
    message: str
    error: Sentence


class BlocksStart(Progress):
    """How far an analysis or a tuning of blocks is, and of which file."""

    kind: str
    file: str


class BlocksProgress(BlocksStart, total=False):
    """The same, with what is told of it."""

    message: str
    error: Sentence


class ManifestStart(TypedDict):
    """What every manifest has."""

    version: Annotated[int, lambda value: value >= 1]
    program: str
    name: str
    state: Literal["queued", "running", "paused", "stopped", "failed", "done"]
    message: str
    created: float
    step: Count
    steps: Count
    epoch: Count
    epochs: Count
    loss: float | None
    files: list[SavedFile]
    samples: list[Sample]
    validation: HeldOut


class Manifest(ManifestStart, total=False):
    """A run's ``manifest.json``: what page, REST and command line tell of it."""

    host: str
    error: Sentence
    checkpoint: KnownCheckpoint
    vae: KnownVae
    process: list[float] | None
    place: float
    waits: str
    waiting: bool
    phase: str
    phase_done: Count
    phase_total: Count
    started: float
    finished: float
    seconds: Annotated[float, lambda value: value >= 0]
    seconds_left: float | None
    steps_per_second: float | None
    steps_per_epoch: Count
    loss_average: float | None
    lr: dict[str, float | None]
    precision: str
    dataset: DatasetSummary
    grid: Nothing | GridProgress
    blocks: Nothing | BlocksProgress


class LogStart(TypedDict):
    """What every line of a log has."""

    step: Count


class LogEntry(LogStart, total=False):
    """A line of ``log.jsonl``: a step, or a held-out loss (``base``: without the LoRA). ``None`` is no number."""

    epoch: Count
    loss: float | None
    lr: dict[str, float | None]
    seconds: float
    validation: float | None
    base: bool


class Newer(Exception):
    """A document of a later version of this program."""


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
        Damaged: it is none.
        Newer: a later version has written it.
    """
    try:
        manifest = cast(Manifest, read_document(path, Manifest))
    except Damaged:
        if _version_of(path) > VERSION:
            raise Newer from None
        raise
    if manifest["version"] > VERSION:
        raise Newer
    return manifest


def _version_of(path: Path) -> int:
    """The version of a document that is otherwise not to be read; 0 when it tells none."""
    try:
        return int(read_document(path, _Versioned)["version"])
    except Damaged:
        return 0


class _Versioned(TypedDict):
    version: int


def stand_in(name: str, problem: dict[str, Any]) -> Manifest:
    """What is shown in place of a manifest that cannot be read.

    Args:
        name: of the run's folder.
        problem: ``message`` and ``error``, see :func:`lora_trainer.core.errors.explain`.
    """
    shown: dict[str, Any] = {
        "version": VERSION, "program": "", "name": name, "state": DAMAGED, "created": 0.0, "step": 0, "steps": 0,
        "epoch": 0, "epochs": 0, "loss": None, "files": [], "samples": [], "validation": {}, **problem,
    }  # fmt: skip
    return cast(Manifest, shown)
