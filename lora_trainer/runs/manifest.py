"""What a run's documents hold: ``manifest.json``, which REST answers too, and the lines of ``log.jsonl``.

``docs/documents.md`` is written from these types and from what their docstrings say of each key.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
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
    """A LoRA file of the run, in the order in which they were written.

    Attributes:
        path: where it is.
        epoch: the epoch that was going on or had just ended.
        step: the optimizer steps that were done.
    """

    path: PathText
    epoch: Count
    step: Count


class FileEntry(FileStart, total=False):
    """A LoRA file of the run, in the order in which they were written.

    Attributes:
        sha256: of its bytes.
        tensors_sha256: of its tensors alone, which are the same for the same seed and settings.
        by_step: it was saved for its step, and not as its epoch's or the run's last.
        metrics: its losses: `loss` is the training's mean, `validation` that on held-out pictures.
    """

    sha256: str
    tensors_sha256: str
    by_step: bool
    metrics: dict[str, float | None]


class Sample(TypedDict):
    """A sample picture.

    Attributes:
        path: where it is.
        step: the steps that were done.
        epoch: the epoch that was going on.
        prompt: what it was drawn with.
    """

    path: PathText
    step: Count
    epoch: Count
    prompt: str


class HeldOut(TypedDict, total=False):
    """Losses on pictures that are not learned from; `null` is one that was no number.

    Attributes:
        base: without the LoRA.
        last: the last one.
        best: the lowest so far.
        best_epoch: the epoch of the lowest.
        best_step: the step of the lowest.
    """

    base: float | None
    last: float | None
    best: float
    best_epoch: Count
    best_step: Count


class KnownCheckpoint(TypedDict, total=False):
    """The checkpoint that the run is trained on; see :func:`lora_trainer.model.families.is_same_checkpoint`.

    Attributes:
        name: of its file.
        sha256: of its file; empty where the host does not compute it.
        fingerprint: of its weights, where there is no `sha256`.
        family: SD1 and so on.
    """

    name: str
    sha256: str
    fingerprint: str
    family: str


class KnownVae(TypedDict):
    """The VAE that the run began with.

    Attributes:
        key: tells it apart from others.
        name: as the host calls it.
    """

    key: str
    name: str


class DatasetSummary(TypedDict, total=False):
    """What the pictures were when the run began.

    Attributes:
        pictures: how many there are.
        images_per_epoch: the same with repeats.
        skipped: why pictures could not be read, a sentence each.
        remarks: what was told of the folder, a sentence each.
        concepts: by the name of a folder its `pictures` and `repeats`.
        buckets: by a size such as `512x640` the pictures in it, with repeats.
        held_out: pictures that are not learned from.
        fingerprint: changes with the pictures.
    """

    pictures: Count
    images_per_epoch: Count
    skipped: list[str]
    remarks: list[str]
    concepts: dict[str, Any]
    buckets: dict[str, Any]
    held_out: Count
    fingerprint: str


class Progress(TypedDict):
    """How far a grid, an analysis or a tuning is.

    Attributes:
        state: as a run's.
        done: pictures, or parts of the work, that are done.
        of: how many there are.
    """

    state: WorkState
    done: Count
    of: Count


class GridProgress(Progress, total=False):
    """How far the run's grid is.

    Attributes:
        phase: `pictures`, `losses` or `numbers`: what is counted; empty when it is done.
        seconds_left: about how long it still takes.
        path: its first sheet.
        document: its `grid.json`.
        message: what is told of it in English: why it failed or was stopped.
        error: the same for a translation.
        process: number and start of the program that draws it.
        finished: when it was done, in seconds since 1970.
    """

    phase: str
    seconds_left: float | None
    path: PathText
    document: PathText
    message: str
    error: Sentence
    process: list[float] | None
    finished: float


class BlocksStart(Progress):
    """How far the analysis or tuning of blocks is.

    Attributes:
        kind: `analysis` or `tuning`.
        file: name of the LoRA file.
    """

    kind: str
    file: str


class BlocksProgress(BlocksStart, total=False):
    """How far the analysis or tuning of blocks is.

    Attributes:
        seconds_left: about how long it still takes.
        message: what is told of it in English: why it failed or was stopped.
        error: the same for a translation.
        process: number and start of the program that does it.
    """

    seconds_left: float | None
    message: str
    error: Sentence
    process: list[float] | None


class ManifestStart(TypedDict):
    """A run as page, REST and command line tell of it.

    Attributes:
        version: of this document; an older program does not read one of a higher version. New keys do not raise it.
        program: what has written it, with its version.
        name: of the run and its folder.
        state: what is going on.
        message: what is told of it in English: a warning, or why it failed or was stopped.
        created: when it was submitted, in seconds since 1970.
        step: optimizer steps that are done.
        steps: of the whole run; 0 before its pictures were looked at.
        epoch: the epoch that is going on.
        epochs: of the whole run.
        loss: of the last step.
        files: the LoRA files.
        samples: the sample pictures.
        validation: losses on held-out pictures.
    """

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
    files: list[FileEntry]
    samples: list[Sample]
    validation: HeldOut


class Manifest(ManifestStart, total=False):
    """A run as page, REST and command line tell of it.

    Attributes:
        host: the program that it is trained in: `a1111`, `standalone`.
        error: `message` for a translation.
        checkpoint: what it is trained on.
        vae: the VAE that it began with.
        process: number and start of the program that works on it or has it in line.
        place: its place among those that wait: the lower, the earlier.
        waits: what a paused run waits for to go on by itself: `checkpoint`.
        waiting: it waits just now until a picture or other work is done.
        phase: what it is doing: `pictures`, `latents`, `training`, `validation`, `samples` …
        phase_done: of what the phase counts.
        phase_total: the same, of how many.
        started: when it began, in seconds since 1970.
        finished: when it ended.
        seconds: that it has trained so far.
        seconds_left: about how long it still takes.
        steps_per_second: how fast it is.
        steps_per_epoch: optimizer steps of an epoch.
        loss_average: mean of the last losses.
        lr: learning rate of each part, `unet` and `text`.
        precision: that it computes in.
        dataset: its pictures.
        grid: how far its grid is; empty when none was begun.
        blocks: how far the analysis or tuning of its blocks is; empty when none was begun.
    """

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
    """A line: a step, or a held-out loss; `null` is no number.

    Attributes:
        step: the optimizer steps that are done.
    """

    step: Count


class LogEntry(LogStart, total=False):
    """A line: a step, or a held-out loss; `null` is no number.

    Attributes:
        epoch: the epoch that it belongs to.
        loss: of the step.
        lr: learning rate of each part, `unet` and `text`.
        seconds: that the run has trained so far.
        validation: the held-out loss.
        base: the held-out loss is that without the LoRA.
    """

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


def stand_in(name: str, problem: Mapping[str, Any]) -> Manifest:
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
