"""Numbers from the drawn pictures: are they copies, does the LoRA do anything, and does it do so where it should not.

No model is needed for these. With a CLIP model in a local folder there is also how well picture and prompt fit.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from lora_trainer.config.train import TrainConfig
from lora_trainer.dataset.images import PictureError, read_picture
from lora_trainer.dataset.plan import held_out
from lora_trainer.dataset.scan import check_dataset
from lora_trainer.validation.metrics.cache import cache_key

SIDE = 32
_SAME = 0.005  # a step of 8 bits: what resizing and compressing again may change
_ROWS = 256


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
        self.key = cache_key(SIDE, [stamp_of(path) for path in paths])

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


def stamp_of(path: Path) -> tuple[str, int, int]:
    """Tells whether a file has changed without reading it."""
    try:
        stat = path.stat()
    except OSError:
        return str(path), 0, 0
    return str(path), stat.st_mtime_ns, stat.st_size
