"""Verdicts on grids whose numbers are made up, so that what is right is known."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.validation.grid.verdict import COPYING, FEW, judge
from tests.helpers import ROOT

WEIGHTS = (0.3, 0.6, 1.0)
RESULTS = ROOT / "benchmarks" / "results"
STATES = {"good", "under", "over", "useless", "unknown"}
BASE = 0.2
Loss = Callable[[int, float], float]


def grid(columns: int, weights: Sequence[float] = WEIGHTS) -> dict[str, Any]:
    """A grid without numbers; the epochs are 2, 4, 6 …"""
    made = [
        {"label": f"epoch {2 * i}", "file": f"{i}", "name": f"zorp-{2 * i:06d}", "epoch": 2 * i}
        for i in range(columns + 1)
    ]
    made[0] |= {"label": "no LoRA", "file": None, "name": ""}
    places = [(0, 0.0), *((column, weight) for column in range(1, columns + 1) for weight in weights)]
    return {
        "columns": made,
        "weights": list(weights),
        "prompts": [{"text": "zorp", "trigger": True}, {"text": "a hat", "trigger": False}],
        "seeds": [1, 2, 3],
        "cells": [],
        "groups": [{"column": column, "weight": weight, "numbers": {}} for column, weight in places],
    }


def with_losses(
    loss: Loss, columns: int = 6, pictures: int = 8, spread: float = 0.002, held_out: bool = True
) -> dict[str, Any]:
    """``loss(column, weight)`` is the mean that the pictures vary around; they differ far more among themselves."""
    made, rng = grid(columns), random.Random(4)
    levels = [rng.uniform(-0.1, 0.1) for _ in range(pictures)]
    for group in made["groups"]:
        mean = loss(group["column"], group["weight"]) if group["column"] else BASE
        wobble = [rng.gauss(0, spread) for _ in levels]
        group["losses"] = [mean + level + noise for level, noise in zip(levels, wobble, strict=True)]
    made["measured"] = {"held_out": held_out, "pictures": pictures}
    return made


def with_pictures(made: dict[str, Any], **numbers: Callable[[int, float], float]) -> dict[str, Any]:
    """Cells with ``effect``, ``leak``, ``copy`` and ``clip`` as functions of column and weight, varied a little."""
    rng = random.Random(2)
    for group in made["groups"]:
        place = group["column"], group["weight"]
        for prompt, seed in ((p, s) for p in range(2) for s in range(3)):
            found = {
                name: value(*place) + rng.gauss(0, 0.003)
                for name, value in numbers.items()
                if name not in ("effect", "leak") or (place[0] and (name == "leak") == (prompt == 1))
            }
            cell = {"column": place[0], "weight": place[1], "prompt": prompt, "seed": seed, "numbers": found}
            made["cells"].append(cell)
    return made


def sentences(verdict: dict[str, Any]) -> str:
    return " ".join(s["template"].format(**s["values"]) for s in verdict["sentences"])


def strength(column: int, weight: float) -> float:
    """How far the LoRA has come: full after three files at weight 1."""
    return min(1.0, column / 3) * weight


# ------------------------------------------------------------------ by held-out losses
def test_a_run_that_was_trained_too_long_turns_and_an_earlier_file_is_recommended() -> None:
    verdict = judge(with_losses(lambda c, w: BASE - 0.08 * strength(c, w) + 0.02 * max(0, c - 4) * w))
    assert (verdict["state"], verdict["column"], verdict["weight"], verdict["turn"]) == ("over", 3, 1.0, 10)
    text = sentences(verdict)
    assert "Recommended: zorp-000006 (epoch 6) at weight 1." in text
    assert "Over-fitted from epoch 10 on" in text
    assert "fewer epochs or repeats, a lower learning rate" in text


def test_a_run_that_still_learns_is_under_fitted() -> None:
    verdict = judge(with_losses(lambda c, w: BASE - 0.02 * c * w))
    assert (verdict["state"], verdict["column"], verdict["weight"], verdict["turn"]) == ("under", 6, 1.0, None)
    assert "more epochs or steps, or with a higher learning rate" in sentences(verdict)


@pytest.mark.parametrize(("fall", "state"), [(0.02, "under"), (0.0002, "good")])
def test_a_last_fall_that_is_sure_but_tiny_is_no_reason_to_train_longer(fall: float, state: str) -> None:
    made = with_losses(lambda c, w: BASE - 0.02 * min(c, 5) * w - fall * (c == 6) * w, spread=1e-5)
    verdict = judge(made)
    assert (verdict["state"], verdict["column"]) == (state, 6)
    assert ("levelled out in the last epoch" in sentences(verdict)) == (state == "good")


def test_of_equally_good_files_the_earliest_is_recommended() -> None:
    verdict = judge(with_losses(lambda c, w: BASE - 0.08 * strength(c, w)))
    assert (verdict["state"], verdict["column"], verdict["weight"], verdict["turn"]) == ("good", 3, 1.0, None)


def test_of_equally_good_weights_the_nearest_to_1_is_recommended() -> None:
    verdict = judge(with_losses(lambda c, w: BASE - 0.08 * (c >= 2)))
    assert (verdict["column"], verdict["weight"]) == (2, 1.0)


def test_a_file_that_is_too_strong_is_recommended_at_a_lower_weight() -> None:
    verdict = judge(with_losses(lambda c, w: BASE - 0.08 * strength(c, w) + (0.05 if w == 1 else 0)))
    assert (verdict["state"], verdict["weight"]) == ("good", 0.6)
    assert "At weight 1 the same file is clearly worse" in sentences(verdict)


@pytest.mark.parametrize(
    ("loss", "weight", "edge"),
    [
        (lambda w: -0.08 * w, 1.0, "highest"),
        (lambda w: -0.08 + 0.03 * w, 0.3, "lowest"),
        (lambda w: -0.08 + abs(w - 0.6), 0.6, ""),
        (lambda w: -0.08, 1.0, ""),
        (lambda w: 0.02 * w, 0.3, ""),  # it never helps, so no weight will
    ],
)
def test_a_best_weight_at_the_edge_of_those_tried_is_told(loss: Any, weight: float, edge: str) -> None:
    verdict = judge(with_losses(lambda c, w: BASE + (loss(w) if c >= 2 else 0.01)))
    assert verdict["weight"] == weight
    assert ("that was tried" in sentences(verdict)) == bool(edge)
    assert f"At weight {weight:g}, the {edge} that was tried" in sentences(verdict) or not edge


def test_over_fitting_at_full_weight_is_told_though_a_lower_weight_hides_it() -> None:
    harm = {0.3: 0.0, 0.6: 0.0, 1.0: 0.05}
    verdict = judge(with_losses(lambda c, w: BASE - 0.02 * c * w + harm[w] * max(0, c - 2)))
    assert (verdict["state"], verdict["weight"], verdict["turn"]) == ("over", 0.6, 6)
    assert "at weight 1 the loss" in sentences(verdict)


@pytest.mark.parametrize("rise", [0.0, 0.03])
def test_a_run_that_never_helps_is_useless(rise: float) -> None:
    verdict = judge(with_losses(lambda c, w: BASE + 0.02 * w + rise * c * w))
    assert verdict["state"] == "useless"
    assert "no file is better than the checkpoint" in sentences(verdict)
    assert (verdict["turn"] is not None) == (rise > 0)


def test_one_bad_file_in_the_middle_is_no_turn() -> None:
    verdict = judge(with_losses(lambda c, w: BASE - 0.08 * strength(c, w) + (0.05 if c == 5 else 0)))
    assert (verdict["state"], verdict["turn"]) == ("good", None)


def test_pairs_show_what_is_far_below_the_spread_of_the_pictures() -> None:
    """The pictures' losses have a spread of 0.06, the rise is of 0.004."""
    verdict = judge(with_losses(lambda c, w: BASE - 0.08 * strength(c, w) + 0.004 * (c > 4), spread=0.0005))
    assert (verdict["state"], verdict["turn"]) == ("over", 10)


@pytest.mark.parametrize("pictures", [1, 2, 3])
def test_few_pictures_are_not_taken_for_proof(pictures: int) -> None:
    verdict = judge(with_losses(lambda c, w: BASE + 0.001 * c, pictures=pictures, spread=0.01))
    assert verdict["state"] == "unknown"
    assert f"Few pictures were kept aside ({pictures})" in sentences(verdict)


def test_with_one_picture_the_lowest_loss_is_recommended_and_nothing_claimed() -> None:
    verdict = judge(with_losses(lambda c, w: BASE - 0.08 * strength(c, w) + 0.05 * max(0, c - 4), pictures=1, spread=0))
    assert (verdict["state"], verdict["column"], verdict["weight"], verdict["turn"]) == ("unknown", 3, 1.0, None)


@pytest.mark.parametrize("pictures", [3, 8, 24])
def test_runs_without_over_fitting_are_seldom_called_over_fitted(pictures: int) -> None:
    """Ten files whose losses wander from file to file, each picture's its own way, with no trend."""
    wrong = 0
    for seed in range(150):
        rng = random.Random(seed)
        made = grid(10, [1.0])
        steps = [[rng.gauss(0, 0.5) for _ in range(pictures)] for _ in made["groups"]]
        path = [[sum(s[i] for s in steps[: k + 1]) + rng.gauss(0, 0.3) for i in range(pictures)] for k in range(11)]
        for group, losses in zip(made["groups"], path, strict=True):
            group["losses"] = [loss - 9 * (group["column"] > 0) for loss in losses]
        made["measured"] = {"held_out": True}
        wrong += judge(made)["state"] == "over"
    assert wrong <= 0.1 * 150


def test_a_file_whose_loss_is_no_number_is_not_recommended() -> None:
    made = with_losses(lambda c, w: BASE - 0.02 * c * w)
    made["groups"][-1]["losses"][0] = math.nan
    verdict = judge(made)
    assert (verdict["column"], verdict["weight"]) != (6, 1.0)
    json.dumps(verdict, allow_nan=False)


def test_of_equally_good_files_one_that_copies_is_not_recommended() -> None:
    made = with_losses(lambda c, w: BASE - 0.08 * strength(c, w))
    assert judge(made)["column"] == 3
    with_pictures(made, copy=lambda c, w: 1.0 - 0.7 * (c == 3 and w == 1))
    verdict = judge(made)
    assert verdict["column"] > 3
    assert "close to training pictures" not in sentences(verdict)


def test_the_choice_in_a_real_run_that_was_trained_too_long_holds_on_fresh_pictures() -> None:
    """Losses that ``python -m benchmarks.overtrained`` measured; nothing of the fresh ones is used to choose."""
    measured = json.loads(max(RESULTS.glob("*-overtrained.json")).read_text(encoding="utf-8"))
    held_out, fresh = measured["held_out_loss"], measured["fresh"]["by_epoch"]
    cells = held_out["by_epoch_and_weight"]
    weights = sorted({cell["weight"] for cell in cells})
    made = grid(len(cells) // len(weights), weights)
    for group, losses in zip(made["groups"], held_out["by_picture"], strict=True):
        group["losses"] = losses
    for column, cell in enumerate(cells[:: len(weights)], start=1):
        made["columns"][column]["epoch"] = cell["epoch"]
    made["measured"] = {"held_out": True}
    verdict = judge(made)
    epoch = made["columns"][verdict["column"]]["epoch"]
    assert verdict["state"] == "over"
    assert epoch < verdict["turn"]
    last = str(cells[-1]["epoch"])
    assert fresh[str(epoch)] < fresh[str(verdict["turn"])] < fresh[last]
    assert fresh[str(epoch)] < fresh["0"]


# ------------------------------------------------------------------ by the drawn pictures
def plain(column: int, weight: float) -> float:
    return 1.0


def test_a_loss_on_training_pictures_never_says_over_fitted() -> None:
    verdict = judge(with_losses(lambda c, w: BASE - 0.08 * strength(c, w) + 0.02 * max(0, c - 4) * w, held_out=False))
    assert (verdict["state"], verdict["turn"]) == ("unknown", None)
    assert "trained on" in sentences(verdict)


def test_not_even_the_training_pictures_were_learned() -> None:
    made = with_losses(lambda c, w: BASE + 0.01 * w, held_out=False)
    assert judge(made)["state"] == "useless"
    with_pictures(made, effect=lambda c, w: 0.2, copy=plain)
    assert judge(made)["state"] == "useless"


def test_pictures_that_become_copies_look_over_fitted() -> None:
    made = with_pictures(
        grid(6), effect=lambda c, w: 0.2 * strength(c, w), copy=lambda c, w: 0.2 if c > 4 and w == 1 else 1.0
    )
    verdict = judge(made)
    assert (verdict["state"], verdict["column"], verdict["weight"], verdict["turn"]) == ("over", 3, 1.0, 10)
    assert "Looks over-fitted from epoch 10 on" in sentences(verdict)


def test_what_is_near_to_the_training_pictures_without_lora_too_is_no_copy() -> None:
    made = with_pictures(grid(4), effect=lambda c, w: 0.2 * strength(c, w), copy=lambda c, w: COPYING - 0.1)
    verdict = judge(made)
    assert (verdict["state"], verdict["turn"]) == ("good", None)
    assert "close to training pictures" not in sentences(verdict)


def test_when_all_are_copies_it_is_said_of_the_recommended_one_too() -> None:
    made = with_pictures(grid(4), effect=lambda c, w: 0.2 * strength(c, w), copy=lambda c, w: 0.2 if c else 1.0)
    verdict = judge(made)
    assert (verdict["state"], verdict["turn"]) == ("over", 2)
    assert "lower the weight, take an earlier epoch, and train with more varied pictures" in sentences(verdict)


def test_a_lora_that_changes_nothing_is_useless() -> None:
    verdict = judge(with_pictures(grid(4), effect=lambda c, w: 0.01, copy=plain))
    assert verdict["state"] == "useless"


def test_a_leak_costs_and_is_told_with_its_remedies() -> None:
    made = with_pictures(grid(6), effect=lambda c, w: 0.2 * strength(c, w), leak=lambda c, w: 0.05 * w * c, copy=plain)
    verdict = judge(made)
    assert (verdict["column"], verdict["weight"]) == (3, 1.0)
    text = sentences(verdict)
    assert "keep tokens" in text
    assert "what shall not belong to it" in text
    assert "regularisation" not in text  # nothing here makes such pictures
    quiet = with_pictures(grid(6), effect=lambda c, w: 0.2 * strength(c, w), leak=lambda c, w: 0.03, copy=plain)
    assert "keep tokens" not in sentences(judge(quiet))


def test_a_worse_fit_to_the_prompt_is_told() -> None:
    made = with_pictures(grid(3), effect=lambda c, w: 0.2 * w, copy=plain, clip=lambda c, w: 0.3 - 0.05 * (c > 0))
    assert "CLIP 0.2" in sentences(judge(made))
    same = with_pictures(grid(3), effect=lambda c, w: 0.2 * w, copy=plain, clip=lambda c, w: 0.3)
    assert "CLIP" not in sentences(judge(same))


def test_files_that_are_not_drawn_to_the_end_are_not_compared() -> None:
    made = with_pictures(grid(3), effect=lambda c, w: 0.1 * c * w, copy=plain)
    made["cells"] = [c for c in made["cells"] if c["column"] < 3 or c["seed"] == 0]
    assert judge(made)["column"] == 2


def test_without_the_trigger_in_any_prompt_copies_are_found_all_the_same() -> None:
    made = with_losses(lambda c, w: BASE - 0.08 * strength(c, w))
    made["prompts"][0]["trigger"] = False
    with_pictures(made, leak=lambda c, w: 0.2, copy=lambda c, w: 0.2 if c else 1.0)
    assert "close to training pictures" in sentences(judge(made))


def test_without_numbers_the_last_file_is_shown_and_nothing_claimed() -> None:
    verdict = judge(grid(3))
    assert (verdict["state"], verdict["column"], verdict["weight"], verdict["turn"]) == ("unknown", 3, 1.0, None)
    assert "no numbers" in sentences(verdict)


@pytest.mark.parametrize("columns", [0, 1])
def test_a_grid_without_a_cell_that_has_a_lora(columns: int) -> None:
    verdict = judge(grid(columns, [0.0]))
    assert (verdict["state"], verdict["column"], verdict["weight"]) == ("unknown", 0, 0.0)


# ------------------------------------------------------------------ whatever the numbers are
_number = st.one_of(st.floats(0, 2), st.sampled_from([math.nan, math.inf, 0.0]))


@st.composite
def any_grid(draw: st.DrawFn) -> dict[str, Any]:
    made = grid(
        draw(st.integers(0, 4)),
        draw(st.lists(st.sampled_from([-1.0, 0.0, 0.3, 1.0, 1.5]), min_size=1, max_size=3, unique=True)),
    )
    pictures = draw(st.integers(0, 5))
    for group in made["groups"]:
        if draw(st.integers(0, 5)):
            group["losses"] = draw(st.lists(_number, min_size=pictures, max_size=pictures))
        for prompt in range(2):
            names = draw(st.sets(st.sampled_from(["effect" if prompt == 0 else "leak", "copy", "clip"])))
            place = {"column": group["column"], "weight": group["weight"], "prompt": prompt, "seed": 0}
            made["cells"].append({**place, "numbers": {name: draw(_number) for name in names}})
    made["measured"] = {"held_out": draw(st.booleans())}
    made["prompts"][0]["trigger"] = draw(st.booleans())
    return made


@given(any_grid())
def test_any_verdict_names_a_cell_of_the_grid_and_does_not_contradict_itself(made: dict[str, Any]) -> None:
    before = json.dumps(made)
    verdict = judge(made)
    assert json.dumps(made) == before
    json.dumps(verdict, allow_nan=False)
    groups = [(g["column"], g["weight"]) for g in made["groups"]]
    assert (verdict["column"], verdict["weight"]) in groups
    if any(column and weight for column, weight in groups):
        assert verdict["column"] > 0
        assert verdict["weight"] != 0
    assert verdict["state"] in STATES
    turn = verdict["turn"]
    assert (turn is not None) or verdict["state"] != "over"
    assert turn is None or verdict["state"] in ("over", "useless")
    assert turn is None or turn in [column["epoch"] for column in made["columns"][1:]]
    if verdict["state"] == "under":
        assert verdict["column"] == len(made["columns"]) - 1
    if not made["measured"]["held_out"]:
        assert "Over-fitted" not in sentences(verdict)
    assert sentences(verdict)


@given(
    st.lists(st.floats(0.05, 0.3), min_size=2, max_size=8),
    st.integers(FEW, 12),
    st.floats(0.0001, 0.02),
)
def test_a_recommended_epoch_is_before_the_turn_and_no_worse_than_the_best(
    means: list[float], pictures: int, spread: float
) -> None:
    made = with_losses(lambda c, w: means[c - 1], len(means), pictures, spread)
    verdict = judge(made)
    found = {(g["column"], g["weight"]): g["losses"] for g in made["groups"] if g["column"]}
    chosen = found[verdict["column"], verdict["weight"]]
    best = min(found.values(), key=sum)
    apart = [a - b for a, b in zip(chosen, best, strict=True)]
    mean = sum(apart) / pictures
    error = math.sqrt(sum((a - mean) ** 2 for a in apart) / (pictures - 1) / pictures)
    assert mean <= error + 1e-12
    if verdict["turn"] is not None and verdict["weight"] == 1.0:
        assert made["columns"][verdict["column"]]["epoch"] < verdict["turn"]


def test_a_number_that_nothing_is_judged_by_changes_nothing() -> None:
    """So a new metric is shown before anything is decided by it."""
    made = with_pictures(grid(6), effect=lambda c, w: 0.05 * c * w, leak=lambda c, w: 0.01, copy=lambda c, w: 2.0)
    before = judge(made)
    for cell in made["cells"]:
        cell["numbers"]["lpips"] = 0.5
    assert judge(made) == before
