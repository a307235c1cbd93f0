from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.config.train import TrainConfig
from lora_trainer.dataset.plan import Plan, Step, held_out
from lora_trainer.dataset.scan import Item
from tests.helpers import config, item

SIZES = st.sampled_from([(512, 512), (300, 600), (900, 500), (600, 300)])


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, list[Item], TrainConfig]:
    pictures = draw(st.lists(st.tuples(SIZES, st.integers(1, 4)), min_size=1, max_size=8))
    items = [item(f"{i}.png", size, repeats=repeats) for i, (size, repeats) in enumerate(pictures)]
    settings = config(
        training__epochs=draw(st.integers(1, 4)),
        training__steps=draw(st.integers(0, 20)),
        training__batch_size=draw(st.integers(1, 5)),
        training__accumulate=draw(st.integers(1, 4)),
        training__seed=draw(st.integers(0, 99)),
        data__flip=draw(st.booleans()),
        data__caption_variants=draw(st.integers(1, 4)),
    )
    return Plan(items, settings), items, settings


def steps(plan: Plan) -> list[Step]:
    return [plan.step(number) for number in range(1, plan.total_steps + 1)]


@given(plans())
def test_every_picture_is_used_exactly_its_repeats_in_every_epoch(made) -> None:
    plan, items, _ = made
    epochs: dict[int, Counter[int]] = {}
    for step in (plan.step(n) for n in range(1, 3 * plan.steps_per_epoch + 1)):
        epochs.setdefault(step.epoch, Counter()).update(use.item for batch in step.batches for use in batch)
    wanted = Counter({i: one.repeats for i, one in enumerate(items)})
    assert epochs == {1: wanted, 2: wanted, 3: wanted}


@given(plans())
def test_pictures_of_a_batch_share_a_bucket_and_no_batch_is_too_large(made) -> None:
    plan, items, settings = made
    for step in steps(plan):
        for batch in step.batches:
            assert len({items[use.item].fit.bucket for use in batch}) == 1
            assert 1 <= len(batch) <= settings.training.batch_size


@given(plans(), st.randoms(use_true_random=False))
def test_any_step_can_be_looked_up_alone(made, rng: random.Random) -> None:
    plan, items, settings = made
    in_order = steps(plan)
    order = list(range(len(in_order)))
    rng.shuffle(order)
    assert all(plan.step(index + 1) == in_order[index] for index in order)
    assert all(Plan(items, settings).step(index + 1) == in_order[index] for index in order[:3])


@given(plans())
def test_totals_are_those_of_the_steps(made) -> None:
    plan, items, settings = made
    all_steps = steps(plan)
    one_epoch = [plan.step(n) for n in range(1, plan.steps_per_epoch + 1)]
    assert plan.total_steps == (settings.training.steps or plan.steps_per_epoch * settings.training.epochs)
    assert plan.batches_per_epoch == sum(len(step.batches) for step in one_epoch)
    assert sum(step.images for step in one_epoch) == sum(one.repeats for one in items)
    assert plan.epochs == all_steps[-1].epoch == math.ceil(plan.total_steps / plan.steps_per_epoch)
    assert [step.number for step in all_steps] == list(range(1, plan.total_steps + 1))


@given(plans())
def test_accumulation_groups_are_full_but_for_the_last_of_an_epoch(made) -> None:
    plan, _, settings = made
    for step in (plan.step(n) for n in range(1, 2 * plan.steps_per_epoch + 1)):
        full = settings.training.accumulate
        if step.number % plan.steps_per_epoch:
            assert len(step.batches) == full
        else:
            assert len(step.batches) == plan.batches_per_epoch - full * (plan.steps_per_epoch - 1)


@given(plans())
def test_epochs_end_where_they_end(made) -> None:
    plan, *_ = made
    ends = [step.number for step in steps(plan) if step.ends_epoch]
    assert ends == sorted({*range(plan.steps_per_epoch, plan.total_steps + 1, plan.steps_per_epoch), plan.total_steps})


@given(plans())
def test_flips_and_caption_orders_stay_within_their_settings(made) -> None:
    plan, _, settings = made
    uses = [use for step in steps(plan) for batch in step.batches for use in batch]
    assert settings.data.flip or not any(use.flip for use in uses)
    assert all(0 <= use.variant < settings.data.caption_variants for use in uses)


def test_epochs_and_seeds_differ_in_order() -> None:
    items = [item(f"{i}.png") for i in range(30)]
    orders = set()
    for seed in (1, 2):
        plan = Plan(items, config(training__seed=seed))
        for epoch in (0, 1):
            orders.add(tuple(plan.step(epoch * 30 + n).batches[0][0].item for n in range(1, 31)))
    assert len(orders) == 4


def test_half_of_the_uses_are_mirrored() -> None:
    plan = Plan([item(f"{i}.png") for i in range(50)], config(data__flip=True, training__epochs=20))
    flips = sum(plan.step(n).batches[0][0].flip for n in range(1, 1001))
    assert 430 < flips < 570


def test_every_caption_order_is_used() -> None:
    plan = Plan([item(f"{i}.png") for i in range(40)], config(data__caption_variants=4))
    assert {plan.step(n).batches[0][0].variant for n in range(1, 41)} == {0, 1, 2, 3}


# ------------------------------------------------------------------ held-out pictures
@given(st.integers(0, 60), st.floats(0, 0.5), st.integers(0, 50))
def test_held_out_pictures_are_a_share_and_no_picture_is_lost(count: int, share: float, seed: int) -> None:
    items = [item(f"{i:02d}.png") for i in range(count)]
    trained, kept = held_out(items, share, seed)
    assert sorted([*trained, *kept], key=lambda i: i.path) == items
    assert [i.path for i in trained] == sorted(i.path for i in trained)
    if share == 0 or count < 2:
        assert not kept
    else:
        assert trained
        assert len(kept) == min(count - 1, max(1, round(count * share)))
    assert held_out(items, share, seed) == (trained, kept)


def test_other_seed_holds_out_other_pictures() -> None:
    items = [item(f"{i:02d}.png") for i in range(40)]
    assert len({tuple(i.path for i in held_out(items, 0.1, seed)[1]) for seed in range(5)}) == 5


@pytest.mark.parametrize(("seed", "wanted"), [(0, [0, 3, 1, 2, 4, 5]), (42, [3, 5, 0, 4, 2, 1])])
def test_plan_of_a_seed_never_changes(seed: int, wanted: list[int]) -> None:
    plan = Plan([item(f"{i}.png") for i in range(6)], config(training__seed=seed))
    assert [plan.step(n).batches[0][0].item for n in range(1, 7)] == wanted
