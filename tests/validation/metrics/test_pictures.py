"""Picture numbers against plain loops over pixels."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from lora_trainer.dataset.plan import held_out
from lora_trainer.dataset.scan import scan
from lora_trainer.demo import drawings
from lora_trainer.validation.metrics import pictures as metrics
from lora_trainer.validation.metrics.pictures import (
    SIDE,
    TrainingPictures,
    rms_difference,
    training_pictures,
)
from tests.helpers import config, draw_pictures


def noise(seed: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """Coarse coloured noise, so that thumbnails keep most of it."""
    values = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


# ------------------------------------------------------------------ differences
_pixels = st.integers(0, 255)


@given(st.lists(st.tuples(_pixels, _pixels, _pixels), min_size=6, max_size=6), st.data())
def test_rms_difference_is_that_of_the_pixels(first: list[tuple[int, int, int]], data: st.DataObject) -> None:
    second = data.draw(st.permutations(first))
    a, b = Image.new("RGB", (3, 2)), Image.new("RGB", (3, 2))
    a.putdata(first)
    b.putdata(second)
    squares = [((x - y) / 255) ** 2 for p, q in zip(first, second, strict=True) for x, y in zip(p, q, strict=True)]
    assert rms_difference(a, b) == pytest.approx(math.sqrt(sum(squares) / len(squares)), abs=1e-12)


def test_rms_difference_goes_from_nothing_to_one() -> None:
    black, white = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), "white")
    assert rms_difference(black, black) == 0
    assert rms_difference(black, white) == 1
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        rms_difference(black, Image.new("RGB", (4, 5)))


# ------------------------------------------------------------------ copies
def saved(folder: Path, *pictures: Image.Image) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{index}.png" for index in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    return paths


def plain_distance(first: Image.Image, second: Image.Image) -> float:
    """Of two pictures' thumbnails, by a loop over pixels and both mirrorings."""

    def values(picture: Image.Image, mirrored: bool = False) -> list[list[float]]:
        reduced = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        small = list((ImageOps.mirror(reduced) if mirrored else reduced).getdata())
        means = [sum(pixel[c] for pixel in small) / len(small) for c in range(3)]
        return [[(pixel[c] - means[c]) / 255 for c in range(3)] for pixel in small]

    here = values(first)
    found = []
    for mirrored in (False, True):
        there = values(second, mirrored)
        squares = [(x - y) ** 2 for p, q in zip(here, there, strict=True) for x, y in zip(p, q, strict=True)]
        found.append(math.sqrt(sum(squares) / len(squares)))
    return min(found)


def test_copy_ratio_is_the_distance_to_the_nearest_against_the_usual_one(tmp_path: Path) -> None:
    pictures = [noise(seed, size) for seed, size in enumerate([(40, 40), (64, 40), (40, 80), (33, 47)])]
    training = TrainingPictures(saved(tmp_path / "training", *pictures))
    nearest = [min(plain_distance(a, b) for b in pictures if b is not a) for a in pictures]
    assert training.count == 4
    assert training.typical == pytest.approx(statistics.median(nearest), rel=1e-9)
    drawn = noise(99, (48, 48))
    wanted = min(plain_distance(drawn, picture) for picture in pictures) / statistics.median(nearest)
    assert training.copy_ratio(drawn) == pytest.approx(wanted, rel=1e-9)


def test_typical_distance_does_not_depend_on_how_many_are_compared_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = saved(tmp_path / "training", *(noise(seed) for seed in range(7)))
    whole = TrainingPictures(paths).typical
    monkeypatch.setattr(metrics, "_ROWS", 3)
    assert TrainingPictures(paths).typical == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: picture,
        ImageOps.mirror,
        lambda picture: picture.resize((90, 70), Image.Resampling.LANCZOS),
        lambda picture: ImageEnhance.Brightness(picture).enhance(0.95),
    ],
    ids=["the same", "mirrored", "another size", "darker"],
)
def test_copies_are_near_0_and_new_pictures_near_1(
    tmp_path: Path, change: Callable[[Image.Image], Image.Image]
) -> None:
    pictures = [noise(seed) for seed in range(6)]
    training = TrainingPictures(saved(tmp_path / "training", *pictures))
    copied = training.copy_ratio(change(pictures[2]))
    assert copied is not None
    assert copied < 0.2
    fresh = training.copy_ratio(noise(77))
    assert fresh is not None
    assert 0.7 < fresh < 1.4


def test_drawn_scenes_of_the_same_kind_are_no_copies(tmp_path: Path) -> None:
    rng = random.Random(5)
    scenes = [drawings.draw(drawings.known_scene(rng), rng=rng) for _ in range(12)]
    training = TrainingPictures(saved(tmp_path / "training", *scenes))
    ratios = [training.copy_ratio(drawings.draw(drawings.known_scene(rng), rng=rng)) for _ in range(12)]
    assert statistics.median(ratios) > 0.6  # type: ignore[type-var]


def test_one_training_picture_gives_no_scale(tmp_path: Path) -> None:
    picture = noise(1)
    training = TrainingPictures(saved(tmp_path / "training", picture, picture, ImageOps.mirror(picture)))
    assert training.count == 3
    assert training.typical is None
    assert training.copy_ratio(picture) is None


def test_pictures_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    paths = saved(tmp_path / "training", *(noise(seed) for seed in range(4)))
    typical = TrainingPictures(paths).typical
    damaged, text = tmp_path / "damaged.png", tmp_path / "text.png"
    damaged.write_bytes(paths[0].read_bytes()[:100])
    text.write_text("no picture", encoding="utf-8")
    training = TrainingPictures([damaged, *paths, text, tmp_path / "gone.png"])
    assert (training.count, training.typical) == (4, typical)
    assert TrainingPictures([]).copy_ratio(noise(1)) is None


def test_training_pictures_are_those_that_are_learned_from(tmp_path: Path) -> None:
    paths = draw_pictures(tmp_path / "pictures", count=7)
    damaged = paths.pop(2)
    damaged.write_bytes(damaged.read_bytes()[:-200])
    values = {"data__folder": str(tmp_path / "pictures"), "data__resolution": 64, "validation__share": 0.5}
    chosen = training_pictures(config(**values))
    items = [item for item in scan(config(**values).data).items if item.path != damaged]
    kept = [item.path for item in held_out(items, 0.5, config(**values).training.seed)[1]]
    assert len(kept) == 3
    assert chosen == [path for path in paths if path not in kept]
    assert training_pictures(config(**{**values, "validation__share": 0})) == paths
