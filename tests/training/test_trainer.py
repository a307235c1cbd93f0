"""The mathematics of a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_trainer.dataset.plan import SampleUse, Step
from lora_trainer.hosts.standalone.host import StandaloneHost
from tests.training.bench import Bench


@pytest.fixture
def bench(standalone: StandaloneHost, tmp_path: Path) -> Bench:
    return Bench(standalone, tmp_path)


@pytest.mark.parametrize("batches", [(2, 2), (3, 1), (1, 1, 1, 1)])
def test_batches_added_up_equal_one_batch(bench: Bench, batches: tuple[int, ...]) -> None:
    loss, gradient = bench.gradient(4)
    added_loss, added = bench.gradient(*batches)
    assert added_loss == pytest.approx(loss, rel=1e-4)
    assert float((added - gradient).norm() / gradient.norm()) < 1e-4


def test_a_smaller_last_group_is_divided_by_its_own_count(bench: Bench) -> None:
    """The mean over one picture, not a quarter of it."""
    single = [bench.gradient(1)[0]]
    assert bench.gradient(1)[0] == single[0]
    pair = bench.gradient(1, 1)[0]
    assert pair != pytest.approx(single[0] / 2, rel=0.2)


def test_the_gradient_is_that_of_the_loss(bench: Bench) -> None:
    """Against a central difference in the direction of the gradient, in fp32."""
    _, gradient = bench.gradient(3)
    length = gradient.norm()
    losses = []
    for sign in (1, -2):
        offset = 0
        for parameter in bench.trainer.parameters:
            part = gradient[offset : offset + parameter.numel()].view_as(parameter) / length
            offset += parameter.numel()
            with torch.no_grad():
                parameter.add_(part * sign * 1e-2)
        losses.append(bench.gradient(3)[0])
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(float(length), rel=2e-2)


def test_only_the_adapters_have_gradients(bench: Bench) -> None:
    bench.gradient(2)
    own = {id(p) for p in bench.trainer.parameters}
    others = [p for p in bench.model.unet.parameters() if id(p) not in own]
    assert len(others) == 686
    assert not any(p.requires_grad or p.grad is not None for p in others)


@pytest.mark.parametrize("rate", [0.0, 1e-4])
def test_only_what_is_trained_is_in_training_mode(standalone: StandaloneHost, tmp_path: Path, rate: float) -> None:
    bench = Bench(standalone, tmp_path, training__text_lr=rate)
    bench.gradient(2)
    assert bench.model.unet.training
    assert bench.model.text[0].model.training == bool(rate)


def test_gradients_are_clipped_to_the_length_asked_for(standalone: StandaloneHost, tmp_path: Path) -> None:
    bench = Bench(standalone, tmp_path, training__max_grad_norm=1e-3)
    seen: list[float] = []
    original = bench.trainer.optimizer.step

    def look(*arguments: object, **options: object) -> None:
        seen.append(float(torch.cat([p.grad.flatten() for p in bench.trainer.parameters]).norm()))
        original()

    bench.trainer.optimizer.step = look  # type: ignore[method-assign]
    bench.trainer.step(Step(1, 1, ((SampleUse(0, False, 0), SampleUse(1, False, 0)),), True))
    assert seen == [pytest.approx(1e-3, rel=1e-3)]


def test_min_snr_weights_the_loss(standalone: StandaloneHost, tmp_path: Path) -> None:
    weighted = Bench(standalone, tmp_path / "a", training__min_snr_gamma=1.0).gradient(4)[0]
    plain = Bench(standalone, tmp_path / "b", training__min_snr_gamma=0.0).gradient(4)[0]
    assert weighted < plain


def test_a_held_out_loss_is_the_same_each_time_and_leaves_no_gradient(bench: Bench) -> None:
    first = bench.trainer.denoiser.held_out_loss(bench.items[:2], bench.latents, 3)
    assert bench.trainer.denoiser.held_out_loss(bench.items[:2], bench.latents, 3) == first
    assert all(p.grad is None for p in bench.trainer.parameters)


def test_without_adapters_the_loss_is_the_checkpoints(bench: Bench) -> None:
    trained = bench.trainer.denoiser.held_out_loss(bench.items[:2], bench.latents, 3)
    with bench.trainer.adapters.disabled():
        base = bench.trainer.denoiser.held_out_loss(bench.items[:2], bench.latents, 3)
    bench.trainer.adapters.set_multiplier(0.0)
    assert bench.trainer.denoiser.held_out_loss(bench.items[:2], bench.latents, 3) == pytest.approx(base, rel=1e-6)
    assert trained != pytest.approx(base, rel=1e-6)
