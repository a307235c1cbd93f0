"""Aspect buckets: sizes of about one area, so that pictures keep their shape.

NovelAI's aspect ratio bucketing (https://github.com/NovelAI/novelai-aspect-ratio-bucketing), with the
sizes of kohya's sd-scripts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lora_trainer.config.train import DataConfig, bucket_bounds

Size = tuple[int, int]


@dataclass(frozen=True)
class Fit:
    """How a picture is brought to its bucket.

    Attributes:
        bucket: width and height in pixels that are trained.
        scale: factor on the picture's sides before cropping; above 1 it is enlarged.
        crop: left, top, right, bottom of what is kept, in the original picture's pixels.
    """

    bucket: Size
    scale: float
    crop: tuple[float, float, float, float]

    @property
    def lost(self) -> float:
        """Share of the picture's area that is cropped away."""
        left, top, right, bottom = self.crop
        whole = (left + right) * (top + bottom)  # the crop is centred, so the sides add up to the size
        return 1 - (right - left) * (bottom - top) / whole


def bucket_sizes(data: DataConfig) -> list[Size]:
    """All buckets, narrow to wide; only the square one when buckets are off."""
    step = data.bucket_step
    side = max(step, data.resolution // step * step)
    if not data.buckets:
        return [(side, side)]
    low, high = bucket_bounds(data)
    area = max(data.resolution, side) ** 2
    sizes = set() if not low <= side <= high else {(side, side)}
    for width in range(low, high + 1, step):
        height = min(high, area // width // step * step)
        if height >= low:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes or {(side, side)}, key=lambda s: (s[0] / s[1], s))


def fit(width: int, height: int, data: DataConfig, sizes: list[Size] | None = None) -> Fit:
    """The bucket of a picture of ``width`` × ``height`` pixels, and its centred crop."""
    sizes = sizes or bucket_sizes(data)
    if not data.upscale and data.buckets:
        bucket = _natural_bucket(width, height, data)
    else:
        bucket = min(sizes, key=lambda s: (abs(math.log(width / height * s[1] / s[0])), -s[0] * s[1]))
    scale = max(bucket[0] / width, bucket[1] / height)
    kept_w, kept_h = min(width, bucket[0] / scale), min(height, bucket[1] / scale)  # rounding may add a hair
    left, top = (width - kept_w) / 2, (height - kept_h) / 2
    return Fit(bucket, scale, (left, top, left + kept_w, top + kept_h))


def _natural_bucket(width: int, height: int, data: DataConfig) -> Size:
    """The picture's own size, cut to the step; a larger picture shrunk to the area before, as sd-scripts does it.

    Of a picture that is shrunk, one side can be made a multiple of the step without cropping. Both are tried, and the
    one is taken whose bucket is nearer to the picture's shape.
    """
    step = data.bucket_step
    _, high = bucket_bounds(data)
    shrink = min(data.resolution / math.sqrt(width * height), high / max(width, height))
    if shrink >= 1:
        return _cut(width, step), _cut(height, step)
    shape = width / height
    by_width, by_height = _rounded(width * shrink, step), _rounded(height * shrink, step)
    sizes = (
        (min(high, _rounded(by_height * shape, step)), by_height),
        (by_width, min(high, _rounded(by_width / shape, step))),
    )
    return min(sizes, key=lambda size: abs(size[0] / size[1] - shape))


def _rounded(side: float, step: int) -> int:
    """The multiple of ``step`` below the whole number next to ``side``."""
    return _cut(int(side + 0.5), step)


def _cut(side: float, step: int) -> int:
    """The multiple of ``step`` below ``side``, which rounding may have made a hair too small."""
    return max(step, int(side + 1e-6) // step * step)


def bucket_counts(fits: Iterable[tuple[Fit, int]]) -> dict[Size, int]:
    """Pictures (repeats counted) in each bucket, fullest first."""
    counts: dict[Size, int] = {}
    for item, repeats in fits:
        counts[item.bucket] = counts.get(item.bucket, 0) + repeats
    return dict(sorted(counts.items(), key=lambda c: (-c[1], c[0])))
