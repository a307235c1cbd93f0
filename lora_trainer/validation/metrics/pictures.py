"""Numbers from the drawn pictures: are they copies, does the LoRA do anything, and does it do so where it should not.

No model is needed for these. With a CLIP model in a local folder there is also how well picture and prompt fit.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lora_trainer.config.train import TrainConfig
from lora_trainer.dataset.images import PictureError, read_picture
from lora_trainer.dataset.plan import held_out
from lora_trainer.dataset.scan import check_dataset
from lora_trainer.validation.metrics.cache import NumberCache, cache_key
from lora_trainer.validation.metrics.clip import ClipScorer

SIDE = 32
_SAME = 0.005  # a step of 8 bits: what resizing and compressing again may change
_ROWS = 256
PICTURE_NUMBERS = ("effect", "leak", "copy", "clip")


def training_pictures(config: TrainConfig) -> list[Path]:
    """The pictures that a run learns from, without those that it keeps aside.

    Raises:
        InputError: the folder is gone, or there is no picture in it.
    """
    items, _ = held_out(check_dataset(config.data).items, config.validation.share, config.training.seed)
    return [item.path for item in items]


# ------------------------------------------------------------------ two pictures
def rms_difference(first: Image.Image, second: Image.Image) -> float:
    """Root of the mean squared difference of all RGB values of two pictures of one size, 0 (the same) … 1.

    Raises:
        ValueError: the sizes differ.
    """
    if first.size != second.size:
        raise ValueError(f"{first.size} is not {second.size}")
    a, b = (np.asarray(picture.convert("RGB"), dtype=np.float64) / 255 for picture in (first, second))
    return float(np.sqrt(np.mean((a - b) ** 2)))


def thumbnail(picture: Image.Image) -> np.ndarray:
    """A small picture without its mean colour, as one row (3 · SIDE²,): what is compared for copies.

    Without the mean, a copy that is brighter or tinted is still one.
    """
    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    values = np.asarray(small, dtype=np.float64) / 255
    return (values - values.mean(axis=(0, 1))).ravel()


class TrainingPictures:
    """Thumbnails of the training pictures, to find copies with; read when they are first needed.

    Files that are gone or damaged are left out.

    Args:
        paths: the pictures.

    Attributes:
        key: fingerprint of the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self.key = cache_key(SIDE, [_stamp(path) for path in paths])

    @property
    def count(self) -> int:
        """Pictures that could be read."""
        return len(self._rows) // 2

    def copy_ratio(self, picture: Image.Image) -> float | None:
        """Distance of a picture to the nearest training picture, mirrored or not, against :attr:`typical`.

        1: as different as the training pictures are among themselves; near 0: a copy. ``None`` when there are not two
        different training pictures to compare with.
        """
        if self.typical is None:
            return None
        return float(_distances(thumbnail(picture)[None], self._rows).min() / self.typical)

    @cached_property
    def _rows(self) -> np.ndarray:
        """All thumbnails, then all of them mirrored."""
        rows = [row for path in self._paths if (row := _thumbnail_of(path)) is not None]
        return np.array([*rows, *map(_mirrored, rows)]).reshape(-1, 3 * SIDE**2)

    @cached_property
    def typical(self) -> float | None:
        """Median distance of a training picture to the nearest other one that is not the same.

        ``None`` when there are no two different ones.
        """
        nearest: list[float] = []
        for start in range(0, self.count, _ROWS):
            block = self._rows[start : min(start + _ROWS, self.count)]
            to_each = _distances(block, self._rows).reshape(len(block), 2, self.count).min(axis=1)  # mirrored or not
            own = np.arange(len(block))
            to_each[own, start + own] = np.inf
            to_each[to_each < _SAME] = np.inf  # the same picture under another name
            nearest += to_each.min(axis=1).tolist()
        found = [distance for distance in nearest if distance < np.inf]
        return statistics.median(found) if found else None


def _distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Root mean squared differences of each row (A, D) to each row (B, D), as (A, B)."""
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None] - 2 * first @ second.T
    return np.sqrt(np.maximum(squares, 0) / first.shape[1])


def _mirrored(row: np.ndarray) -> np.ndarray:
    return row.reshape(SIDE, SIDE, 3)[:, ::-1].ravel()


def _thumbnail_of(path: Path) -> np.ndarray | None:
    try:
        return thumbnail(read_picture(path))
    except PictureError:
        return None


def _stamp(path: Path) -> tuple[str, int, int]:
    """Tells whether a file has changed without reading it."""
    try:
        stat = path.stat()
    except OSError:
        return str(path), 0, 0
    return str(path), stat.st_mtime_ns, stat.st_size


# ------------------------------------------------------------------ a grid's document
def add_picture_numbers(
    document: dict[str, Any],
    training_pictures: Sequence[Path],
    *,
    clip: Path | None = None,
    clip_device: str = "cpu",
    cache: Path | None = None,
    on_cell: Callable[[int, int], object] = lambda done, of: None,
) -> None:
    """Fill ``cells[].numbers``, and their means and spreads over prompts and seeds into ``groups[].numbers``.

    A cell has ``effect`` (prompts with the trigger) or ``leak`` (prompts without), the difference from the picture
    without LoRA; and ``copy`` and ``clip``, whose means are of the prompts with the trigger, or of all when none has
    it. Cells that are not drawn yet, or whose picture cannot be read, have no numbers.

    Args:
        document: of a grid; changed in place.
        training_pictures: of the run; those that cannot be read are left out.
        clip: folder of a CLIP model; without one there is no ``clip``.
        clip_device: where CLIP is computed.
        cache: JSON file with the numbers of earlier calls.
        on_cell: told how many cells are done; may raise to stop.

    Raises:
        InputError: ``clip`` is no folder of a CLIP model that can be used.
        RunError: the cache cannot be written.
    """
    scorer = ClipScorer(clip, clip_device) if clip is not None else None
    known = NumberCache(cache)
    measure = _Measure(document, TrainingPictures(training_pictures), scorer, known)
    try:
        for done, cell in enumerate(document["cells"], start=1):
            cell["numbers"] = measure(cell)
            on_cell(done, len(document["cells"]))
    finally:
        known.write()
    _average(document)


class _Measure:
    """Measures cells; what was measured before is known by what it depends on."""

    def __init__(
        self, document: dict[str, Any], training: TrainingPictures, scorer: ClipScorer | None, known: NumberCache
    ) -> None:
        self._prompts = document["prompts"]
        self._bases = {
            (cell["prompt"], cell["seed"]): Path(cell["picture"])
            for cell in document["cells"]
            if cell["column"] == 0 and cell["picture"]
        }
        self._training = training
        self._scorer = scorer
        self._known = known

    def __call__(self, cell: dict[str, Any]) -> dict[str, float]:
        """The numbers of a cell that can be measured."""
        if not cell["picture"]:
            return {}
        path, prompt = Path(cell["picture"]), self._prompts[cell["prompt"]]
        base = self._bases.get((cell["prompt"], cell["seed"]))
        wanted: dict[str, tuple[object, Callable[[], float | None]]] = {
            "copy": (self._training.key, lambda: self._training.copy_ratio(_read(path)))
        }
        if base and cell["column"]:
            name = "effect" if prompt["trigger"] else "leak"
            wanted[name] = (_stamp(base), lambda: _difference(_read(path), _read_base(base, _stamp(base))))
        if scorer := self._scorer:
            wanted["clip"] = ((scorer.key, prompt["text"]), lambda: scorer.score(_read(path), prompt["text"]))
        return {
            n: value for n, (on, measure) in wanted.items() if (value := self._value(n, path, on, measure)) is not None
        }

    def _value(self, name: str, path: Path, depends_on: object, measure: Callable[[], float | None]) -> float | None:
        key = cache_key("difference" if name in ("effect", "leak") else name, _stamp(path), depends_on)
        numbers = self._known.get(key)
        if numbers is None:
            try:
                value = measure()
            except PictureError:
                return None
            numbers = [] if value is None else [value]
            self._known.put(key, numbers)
        return numbers[0] if numbers else None


def _difference(first: Image.Image, second: Image.Image) -> float | None:
    return rms_difference(first, second) if first.size == second.size else None


def _read(path: Path) -> Image.Image:
    return _read_once(path, _stamp(path))


@lru_cache(maxsize=1)
def _read_once(path: Path, stamp: object) -> Image.Image:
    """The picture that is being measured, for all of its numbers."""
    return read_picture(path)


@lru_cache(maxsize=16)
def _read_base(path: Path, stamp: object) -> Image.Image:
    """The pictures without LoRA, which all columns and weights are compared with."""
    return read_picture(path)


def _average(document: dict[str, Any]) -> None:
    """Means and sample standard deviations of the cells of each group."""
    called = any(prompt["trigger"] for prompt in document["prompts"])
    found: dict[tuple[int, float], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in document["cells"]:
        counts = document["prompts"][cell["prompt"]]["trigger"] or not called
        for name, value in cell["numbers"].items():
            if counts or name == "leak":
                found[cell["column"], cell["weight"]][name].append(value)
    for group in document["groups"]:
        numbers = group["numbers"]
        for name in PICTURE_NUMBERS:
            numbers.pop(name, None)
            numbers.pop(f"{name}_sd", None)
        for name, values in found[group["column"], group["weight"]].items():
            numbers[name] = statistics.fmean(values)
            if len(values) > 1:
                numbers[f"{name}_sd"] = statistics.stdev(values)
