from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_trainer.config import presets
from lora_trainer.config.train import TrainConfig
from lora_trainer.dataset.plan import held_out
from lora_trainer.dataset.scan import Dataset
from lora_trainer.training.advice import advise, calculate
from lora_trainer.training.proposals import (
    ENOUGH_TO_HOLD_OUT,
    EPOCHS,
    FEWEST_VIEWS,
    MOST_STEPS,
    MOST_VIEWS,
    STEPS,
    VIEWS,
    propose,
    proposed_steps,
    purpose_of,
    with_proposals,
)
from tests.helpers import config, draw_pictures, item


def dataset(count: int, **values: Any) -> Dataset:
    return Dataset(Path("pictures"), [item(f"{index:03d}.png", **values) for index in range(count)])


def shipped(name: str, tmp_path: Path, **values: Any) -> TrainConfig:
    own = {key.replace("__", "."): value for key, value in values.items()}
    return TrainConfig(name="a").with_values({**presets.load(name, tmp_path), "data.trigger": "sks_", **own})


def proposed(made: TrainConfig, pictures: Dataset, purpose: str = "character", native: int = 512) -> dict[str, Any]:
    return {each.path: each.value for each in propose(made, pictures, purpose, native)}


def test_the_readmes_way_has_as_many_steps_as_the_guides_example(tmp_path: Path) -> None:
    """Character preset, 16 pictures: 40 steps before."""
    made, pictures = shipped("character", tmp_path), dataset(16)
    assert calculate(made, pictures).steps < 50
    wanted = propose(made, pictures, "character")
    steps = proposed_steps(made, pictures, wanted)
    assert 800 <= steps <= 1200
    taken = with_proposals(made, wanted)
    assert advise(taken, dataset(16, repeats=taken.data.repeats)) == []
    trained, kept = held_out(pictures.items, taken.validation.share, 42)
    assert (len(trained), len(kept)) == (14, 2)


@pytest.mark.parametrize("purpose", VIEWS)
@pytest.mark.parametrize("count", [1, 2, 3, 9, 10, 11, 15, 20, 37, 64, 150, 400, 3000])
def test_any_number_of_pictures_gets_a_run_within_bounds(purpose: str, count: int, tmp_path: Path) -> None:
    made, pictures = shipped(purpose, tmp_path), dataset(count)
    wanted = propose(made, pictures, purpose)
    taken = with_proposals(made, wanted)
    times = taken.data.repeats * taken.training.epochs
    steps = proposed_steps(made, pictures, wanted)
    assert FEWEST_VIEWS <= times <= MOST_VIEWS
    assert times <= FEWEST_VIEWS + EPOCHS or times == MOST_VIEWS or 400 <= steps <= 1.1 * MOST_STEPS
    found = advise(taken, dataset(count, repeats=taken.data.repeats))
    assert not [each for each in found if each.field in ("training.epochs", "training.batch_size")]


@pytest.mark.parametrize("count", [*range(ENOUGH_TO_HOLD_OUT - 2, 60), 99, 100, 101, 250, 999])
def test_held_out_are_a_tenth_two_at_least_and_none_of_a_few(count: int) -> None:
    share = proposed(config(), dataset(count))["validation.share"]
    kept = len(held_out(dataset(count).items, share, 1)[1])
    assert kept == (0 if count < ENOUGH_TO_HOLD_OUT else max(2, round(count / 10)))


def test_a_share_that_does_the_same_is_left_as_it_is() -> None:
    assert proposed(config(validation__share=0.1), dataset(16))["validation.share"] == 0.1


@pytest.mark.parametrize(
    ("rate", "optimizer", "steps"), [(1e-4, "AdamW", 1000), (5e-4, "AdamW", 400), (1, "Prodigy", 1000)]
)
def test_a_higher_rate_needs_fewer_steps(rate: float, optimizer: str, steps: int) -> None:
    text = 1 if optimizer == "Prodigy" else 0
    made = config(training__unet_lr=rate, training__text_lr=text, training__optimizer=optimizer, training__batch_size=2)
    pictures = dataset(9)
    assert abs(proposed_steps(made, pictures, propose(made, pictures, "style")) - steps) < 0.2 * steps


def test_steps_to_learn_are_reached_at_any_batch() -> None:
    for batch, accumulate in ((1, 1), (2, 1), (4, 2)):
        made = config(training__batch_size=batch, training__accumulate=accumulate)
        assert proposed_steps(made, dataset(40), propose(made, dataset(40), "product")) >= 0.85 * STEPS


def test_numbered_folders_keep_their_repeats_and_epochs_make_up_for_it(tmp_path: Path) -> None:
    for number, epochs in ((10, 10), (25, 4), (1, 100)):
        pictures = dataset(40, repeats=number, concept=f"{number}_cat")
        wanted = proposed(config(training__accumulate=4, data__repeats=1), pictures)
        assert "data.repeats" not in wanted
        assert abs(wanted["training.epochs"] - 1.1 * epochs) <= 0.1 * epochs + 1


def test_a_number_in_a_name_that_does_not_count_is_not_taken_for_repeats() -> None:
    assert "data.repeats" in proposed(config(data__repeats=3), dataset(40, repeats=3, concept="512_cropped"))


def test_steps_that_would_end_the_run_are_taken_out() -> None:
    made = config(training__steps=40)
    wanted = propose(made, dataset(20), "character")
    assert {p.path: p.value for p in wanted}["training.steps"] == 0
    assert proposed_steps(made, dataset(20), wanted) > 500
    assert "training.steps" not in proposed(config(), dataset(20))


@pytest.mark.parametrize(
    ("resolution", "native", "wanted"),
    [(512, 512, None), (640, 512, None), (512, 64, 64), (512, 768, 768), (512, 1024, 1024)],
)
def test_the_resolution_is_the_checkpoints(resolution: int, native: int, wanted: int | None) -> None:
    found = proposed(config(data__resolution=resolution), dataset(20), native=native)
    assert found.get("data.resolution") == wanted


@pytest.mark.parametrize(
    ("preset", "values", "purpose"),
    [
        ("style", {}, "style"),
        ("product", {}, "product"),
        ("mine", {"training__text_lr": 0}, "style"),
        (None, {"training__text_lr": 0, "data__trigger": "sks"}, "character"),
        ("", {}, "character"),
    ],
)
def test_the_purpose_is_the_presets_or_guessed_from_the_settings(preset: Any, values: Any, purpose: str) -> None:
    assert purpose_of(preset, config(**values)) == purpose


def test_taking_the_proposals_leaves_nothing_to_propose(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    draw_pictures(folder, count=12)
    from lora_trainer.dataset.scan import scan

    made = shipped("character", tmp_path, data__folder=str(folder), training__steps=7)
    taken = with_proposals(made, propose(made, scan(made.data), "character", 64))
    assert with_proposals(taken, propose(taken, scan(taken.data), "character", 64)) == taken
    assert taken.data.resolution == 64


def test_every_reason_can_be_said(tmp_path: Path) -> None:
    for count in (4, 20, 60, 2000):
        for each in propose(shipped("character", tmp_path, training__steps=5), dataset(count), "character", 64):
            sentence = str(each.reason)
            assert sentence.endswith(".")
            assert "{" not in sentence
