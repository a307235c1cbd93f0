from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lora_trainer.config.train import TrainConfig
from lora_trainer.dataset.captions import split_tags
from lora_trainer.dataset.plan import Plan, Step
from lora_trainer.dataset.step_captions import Captions
from lora_trainer.diffusion.conditioning import FrozenConditioning, frozen_conditioning
from lora_trainer.diffusion.denoiser import Denoiser
from lora_trainer.model.conditioning import Conditioning
from lora_trainer.model.loaded import LoadedModel
from tests.helpers import config, item

ITEMS = [item(f"{n}.png", caption=f"sks_, a{n}, b{n}, c{n}, d{n}") for n in range(4)]
LONG = ", ".join(f"red circle {n}" for n in range(60))


def steps(settings: TrainConfig) -> list[Step]:
    plan = Plan(ITEMS, settings)
    return [plan.step(n) for n in range(1, plan.total_steps + 1)]


def captions(variants: int | None, **values: Any) -> tuple[Captions, list[Step]]:
    settings = config(
        **{"training__batch_size": 2, "training__epochs": 30, "data__caption_variants": variants or 8, **values}
    )
    return Captions(ITEMS, settings.data, settings.training.seed, variants), steps(settings)


def flat(made: Captions, of: list[Step]) -> list[str]:
    return [caption for step in of for batch in made.of_step(step) for caption in batch]


# ------------------------------------------------------------------ which captions
@pytest.mark.parametrize("variants", [None, 3])
def test_each_use_has_its_own_pictures_caption(variants: int | None) -> None:
    made, of = captions(variants)
    for step in of:
        for batch, texts in zip(step.batches, made.of_step(step), strict=True):
            for use, text in zip(batch, texts, strict=True):
                assert Counter(split_tags(text)) == Counter(split_tags(ITEMS[use.item].caption))
                assert text.startswith("sks_, ")


@pytest.mark.parametrize("variants", [None, 3])
def test_captions_of_a_step_are_the_same_each_time_and_in_any_order(variants: int | None) -> None:
    made, of = captions(variants, data__caption_dropout=0.3)
    again, _ = captions(variants, data__caption_dropout=0.3)
    assert [made.of_step(s) for s in of] == [again.of_step(s) for s in reversed(of)][::-1]


@pytest.mark.parametrize(("variants", "dropout"), [(1, 0), (3, 0), (3, 0.5)])
def test_a_caption_has_no_more_orders_than_are_kept(variants: int, dropout: float) -> None:
    made, of = captions(variants, data__caption_dropout=dropout)
    found = set(flat(made, of))
    assert len(found) == variants * len(ITEMS) + (dropout > 0)


def test_without_a_limit_orders_go_on_changing() -> None:
    made, of = captions(None)
    assert len(set(flat(made, of))) > 30


def test_without_shuffling_captions_are_as_written() -> None:
    made, of = captions(3, data__shuffle=False)
    assert set(flat(made, of)) == {one.caption for one in ITEMS}


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_share_of_dropped_captions(share: float) -> None:
    made, of = captions(2, data__caption_dropout=share, training__epochs=100)
    found = flat(made, of)
    assert found.count("") / len(found) == pytest.approx(share, abs=0.05)


def test_dropping_does_not_change_the_other_captions() -> None:
    with_all, of = captions(3)
    with_some, _ = captions(3, data__caption_dropout=0.5)
    pairs = list(zip(flat(with_all, of), flat(with_some, of), strict=True))
    assert all(b in ("", a) for a, b in pairs)


# ------------------------------------------------------------------ encoded once
def frozen(model: LoadedModel, precision: str = "fp32") -> FrozenConditioning:
    return frozen_conditioning(model.text, torch.device("cpu"), precision)


@torch.no_grad()
@pytest.mark.parametrize("batch", [["red circle"], ["red circle", ""], ["red circle", LONG, "a"], [LONG, LONG]])
def test_kept_states_are_those_of_the_encoder(model: LoadedModel, batch: list[str]) -> None:
    states = frozen(model)(batch).states
    assert states.shape == (len(batch), 77 * len(model.text[0].chunks(max(batch, key=len))), 64)
    torch.testing.assert_close(states, model.text(batch).states, rtol=1e-5, atol=1e-5)


def test_each_caption_is_encoded_alone_and_once(model: LoadedModel) -> None:
    asked: list[Sequence[str]] = []

    def encode(texts: Sequence[str]) -> Conditioning:
        asked.append(texts)
        return model.text(texts)

    made = FrozenConditioning(encode, torch.device("cpu"), torch.float32)
    for batch in (["red", "blue"], ["blue", "red", "red"], ["green", ""]):
        assert not made(batch).states.requires_grad
    assert asked == [["red"], ["blue"], [""], ["green"]]


def test_what_a_caption_is_encoded_beside_does_not_change_it(model: LoadedModel) -> None:
    assert torch.equal(frozen(model)(["red", LONG]).states[0, :77], frozen(model)(["red"]).states[0])


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_states_are_kept_in_the_runs_precision(model: LoadedModel, precision: str, dtype: torch.dtype) -> None:
    states = frozen(model, precision)(["red"]).states
    assert states.dtype == dtype
    torch.testing.assert_close(states.float(), model.text(["red"]).states, rtol=1e-2, atol=1e-2)


def test_they_are_encoded_in_the_encoders_own_precision(model: LoadedModel) -> None:
    exact = model.text(["red"]).states
    encode = frozen(model, "bf16")
    Denoiser(model, encode, "bf16")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encode(["red"]).states, exact.bfloat16())
