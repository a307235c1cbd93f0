"""Picture numbers against plain loops over pixels."""

from __future__ import annotations

import copy
import json
import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from lora_trainer.core.errors import InputError
from lora_trainer.dataset.plan import held_out
from lora_trainer.dataset.scan import scan
from lora_trainer.demo import drawings
from lora_trainer.validation.metrics import pictures as metrics
from lora_trainer.validation.metrics.pictures import (
    SIDE,
    TrainingPictures,
    add_picture_numbers,
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


# ------------------------------------------------------------------ a grid's document
TRAINED = 5


@pytest.fixture
def training(tmp_path: Path) -> list[Path]:
    return saved(tmp_path / "training", *(noise(seed) for seed in range(TRAINED)))


@pytest.fixture
def grid(tmp_path: Path) -> dict[str, Any]:
    """Two files at two weights, two prompts, two seeds; the second prompt is without the trigger."""
    prompts = [{"text": "zorp, a hat <lora:other:1>", "trigger": True}, {"text": "a hat", "trigger": False}]
    places = [(0, 0.0), (1, 0.5), (1, 1.0), (2, 0.5), (2, 1.0)]
    cells = []
    for number, (column, weight) in enumerate(places):
        for prompt in range(2):
            for seed in range(2):
                path = tmp_path / f"{column}-{weight}-{prompt}-{seed}.png"
                Image.blend(noise(100 + 10 * prompt + seed), noise(200 + seed), 0.2 * number).save(path)
                cells.append({"column": column, "weight": weight, "prompt": prompt, "seed": seed, "picture": str(path)})
    groups = [{"column": c, "weight": w, "numbers": {"loss": 0.5}} for c, w in places]
    return {"prompts": prompts, "seeds": [3, 4], "cells": cells, "groups": groups}


def differences(grid: dict[str, Any], column: int, weight: float, prompt: int) -> list[float]:
    """From the pictures without LoRA, by seed."""
    found = {(c["column"], c["weight"], c["prompt"], c["seed"]): c["picture"] for c in grid["cells"]}
    return [
        rms_difference(Image.open(found[column, weight, prompt, seed]), Image.open(found[0, 0.0, prompt, seed]))
        for seed in range(2)
    ]


def test_each_cell_gets_its_numbers_and_each_group_their_mean_and_spread(
    grid: dict[str, Any], training: list[Path]
) -> None:
    seen: list[tuple[int, int]] = []
    add_picture_numbers(grid, training, on_cell=lambda *count: seen.append(count))
    assert seen == [(n, 20) for n in range(1, 21)]
    pictures = TrainingPictures(training)
    for cell in grid["cells"]:
        wanted = {"copy"} | ({"effect" if cell["prompt"] == 0 else "leak"} if cell["column"] else set())
        assert cell["numbers"].keys() == wanted
        assert cell["numbers"]["copy"] == pytest.approx(pictures.copy_ratio(Image.open(cell["picture"])))
    for group in grid["groups"]:
        numbers, place = group["numbers"], (group["column"], group["weight"])
        assert numbers.pop("loss") == 0.5
        expected = {
            "copy": [
                c["numbers"]["copy"] for c in grid["cells"] if (c["column"], c["weight"], c["prompt"]) == (*place, 0)
            ]
        }
        if group["column"]:
            expected |= {"effect": differences(grid, *place, 0), "leak": differences(grid, *place, 1)}
        assert numbers.keys() == {f"{name}{part}" for name in expected for part in ("", "_sd")}
        for name, values in expected.items():
            assert numbers[name] == pytest.approx(np.mean(values))
            assert numbers[f"{name}_sd"] == pytest.approx(np.std(values, ddof=1))
    json.dumps(grid, allow_nan=False)


def test_without_a_trigger_all_prompts_count(grid: dict[str, Any], training: list[Path]) -> None:
    grid["prompts"][0]["trigger"] = False
    add_picture_numbers(grid, training)
    last = grid["groups"][-1]["numbers"]
    assert "effect" not in last
    assert last["copy"] == pytest.approx(np.mean([c["numbers"]["copy"] for c in grid["cells"][-4:]]))
    assert last["leak"] == pytest.approx(np.mean([c["numbers"]["leak"] for c in grid["cells"][-4:]]))


def test_cells_that_are_missing_damaged_or_of_another_size_are_skipped(
    grid: dict[str, Any], training: list[Path], tmp_path: Path
) -> None:
    not_drawn, gone, damaged, larger, plain = grid["cells"][4:9]
    not_drawn["picture"] = None
    gone["picture"] = str(tmp_path / "gone.png")
    Path(damaged["picture"]).write_bytes(Path(damaged["picture"]).read_bytes()[:200])
    noise(1, (44, 40)).save(larger["picture"])
    add_picture_numbers(grid, training)
    assert not_drawn["numbers"] == gone["numbers"] == damaged["numbers"] == {}
    assert larger["numbers"].keys() == {"copy"}
    assert plain["numbers"].keys() == {"copy", "effect"}
    one = grid["groups"][1]["numbers"]
    assert one == {"loss": 0.5}  # both pictures with the trigger are missing, and those without it say nothing


def test_without_the_picture_of_the_checkpoint_there_is_no_difference(
    grid: dict[str, Any], training: list[Path]
) -> None:
    grid["cells"][0]["picture"] = None
    add_picture_numbers(grid, training)
    same = [c for c in grid["cells"] if (c["prompt"], c["seed"]) == (0, 0) and c["column"]]
    assert all(cell["numbers"].keys() == {"copy"} for cell in same)
    assert "effect_sd" not in grid["groups"][1]["numbers"]  # one seed has no spread
    assert "effect" in grid["groups"][1]["numbers"]


def test_numbers_of_an_earlier_time_are_replaced(grid: dict[str, Any], training: list[Path]) -> None:
    add_picture_numbers(grid, training)
    once = copy.deepcopy(grid)
    add_picture_numbers(grid, training)
    assert grid == once
    for cell in grid["cells"][4:]:
        cell["picture"] = None
    add_picture_numbers(grid, [])
    assert [group["numbers"] for group in grid["groups"]] == [{"loss": 0.5}] * 5


def test_what_is_known_is_not_measured_again(
    grid: dict[str, Any], training: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "numbers.json"
    add_picture_numbers(grid, training, cache=cache)
    once = copy.deepcopy(grid)
    measured: list[object] = []
    plain = metrics._difference
    monkeypatch.setattr(metrics, "_difference", lambda a, b: measured.append(a) or plain(a, b))
    monkeypatch.setattr(TrainingPictures, "copy_ratio", lambda self, picture: pytest.fail("measured again"))
    monkeypatch.setattr(metrics, "thumbnail", lambda picture: pytest.fail("read again"))
    add_picture_numbers(grid, training, cache=cache)
    assert grid == once
    assert not measured
    monkeypatch.undo()
    monkeypatch.setattr(metrics, "_difference", lambda a, b: measured.append(a) or plain(a, b))
    noise(300).save(grid["cells"][5]["picture"])  # drawn anew
    noise(301).save(grid["cells"][0]["picture"])  # and a picture without LoRA, on which four others depend
    add_picture_numbers(grid, training, cache=cache)
    assert len(measured) == 1 + 4
    changed = [a["numbers"] != b["numbers"] for a, b in zip(grid["cells"], once["cells"], strict=True)]
    assert [i for i, different in enumerate(changed) if different] == [0, 4, 5, 8, 12, 16]


def test_training_pictures_are_read_once_and_other_ones_give_other_numbers(
    grid: dict[str, Any], training: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "numbers.json"
    reads: list[Path] = []
    plain = metrics.read_picture
    monkeypatch.setattr(metrics, "read_picture", lambda path: reads.append(path) or plain(path))
    add_picture_numbers(grid, training, cache=cache)
    assert [reads.count(path) for path in training] == [1] * TRAINED
    before = [cell["numbers"]["copy"] for cell in grid["cells"]]
    add_picture_numbers(grid, draw_pictures(tmp_path / "others"), cache=cache)
    assert [cell["numbers"]["copy"] for cell in grid["cells"]] != before


def test_a_stop_keeps_what_was_measured(grid: dict[str, Any], training: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "numbers.json"

    def stop(done: int, of: int) -> None:
        if done == 3:
            raise InputError("stopped")

    with pytest.raises(InputError):
        add_picture_numbers(grid, training, cache=cache, on_cell=stop)
    assert len(json.loads(cache.read_text(encoding="utf-8"))["numbers"]) == 3
