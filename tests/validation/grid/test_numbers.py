"""Losses and picture numbers in a grid's document."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lora_trainer.core.errors import InputError
from lora_trainer.validation.grid import numbers as grid_numbers
from lora_trainer.validation.grid.numbers import add_losses, add_picture_numbers
from lora_trainer.validation.metrics import pictures as metrics
from lora_trainer.validation.metrics.held_out_loss import HeldOutLoss, Losses
from lora_trainer.validation.metrics.paired import Difference
from lora_trainer.validation.metrics.pictures import TrainingPictures, rms_difference
from tests.helpers import draw_pictures
from tests.validation.metrics.test_pictures import noise, saved


# ------------------------------------------------------------------ losses
def entry(file: str | None, weight: float, losses: tuple[float, ...], se: float | None = 0.1) -> HeldOutLoss:
    return HeldOutLoss(file, weight, losses, Difference(0.0, se, len(losses)))


def test_losses_are_put_beside_their_cells() -> None:
    groups = [{"column": c, "weight": w, "numbers": {"copy": 1.0}} for c, w in ((0, 0.0), (1, 0.5), (1, 1.0), (2, 0.5))]
    grid = {"columns": [{"file": None}, {"file": "a"}, {"file": "b"}], "groups": groups}
    problem = ("b", InputError("{path} does not exist; check the path.", path=Path("b")))
    entries = [entry(None, 0.0, (0.5, 0.7)), entry("a", 0.5, (0.2, 0.4)), entry("a", 1.0, (math.nan, 0.4))]
    for _ in range(2):  # a second time changes nothing
        add_losses(grid, Losses(entries, True, 2, 9, 2, [problem]))
        assert groups == [
            {"column": 0, "weight": 0.0, "numbers": {"copy": 1.0, "loss": pytest.approx(0.6)}, "losses": [0.5, 0.7]},
            {
                "column": 1,
                "weight": 0.5,
                "numbers": {"copy": 1.0, "loss": pytest.approx(0.3), "loss_se": 0.1},
                "losses": [0.2, 0.4],
            },
            {"column": 1, "weight": 1.0, "numbers": {"copy": 1.0}, "broken": True},
            {"column": 2, "weight": 0.5, "numbers": {"copy": 1.0}},
        ]
    assert json.loads(json.dumps(grid, allow_nan=False))["measured"] == {
        "held_out": True,
        "pictures": 2,
        "of": 9,
        "timesteps": 2,
        "problems": [
            {"file": "b", "template": "{path} does not exist; check the path.", "field": "", "values": {"path": "b"}},
        ],
    }


def test_losses_that_are_not_known_any_more_are_taken_out() -> None:
    group = {"column": 0, "weight": 0.0, "numbers": {"loss": 1.0, "loss_se": 1.0, "copy": 1.0}, "losses": [1.0]}
    add_losses({"columns": [{"file": None}], "groups": [group]}, Losses([], False, 1, 1, 2))
    assert group == {"column": 0, "weight": 0.0, "numbers": {"copy": 1.0}}


# ------------------------------------------------------------------ pictures
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
    plain = grid_numbers._difference
    monkeypatch.setattr(grid_numbers, "_difference", lambda a, b: measured.append(a) or plain(a, b))
    monkeypatch.setattr(TrainingPictures, "copy_ratio", lambda self, picture: pytest.fail("measured again"))
    monkeypatch.setattr(metrics, "thumbnail", lambda picture: pytest.fail("read again"))
    add_picture_numbers(grid, training, cache=cache)
    assert grid == once
    assert not measured
    monkeypatch.undo()
    monkeypatch.setattr(grid_numbers, "_difference", lambda a, b: measured.append(a) or plain(a, b))
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
