from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from lora_trainer.diffusion.noise import NoiseSchedule, keyed_noise
from lora_trainer.model.loaded import LoadedModel


@pytest.fixture(scope="module")
def ddpm() -> DDPMScheduler:
    """Stable Diffusion 1's schedule as diffusers has it."""
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, noise and steps from both ends and the middle."""
    rng = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(5, 4, 6, 8, generator=rng), torch.randn(5, 4, 6, 8, generator=rng)
    return latents, noise, torch.tensor([0, 1, 400, 998, 999])


def test_small_checkpoint_has_sd1s_schedule(model: LoadedModel, ddpm: DDPMScheduler) -> None:
    torch.testing.assert_close(model.alphas_cumprod, ddpm.alphas_cumprod, rtol=1e-5, atol=1e-7)


def test_noise_is_added_as_ddpm_does(ddpm: DDPMScheduler, batch) -> None:
    schedule = NoiseSchedule(ddpm.alphas_cumprod)
    assert schedule.timesteps == 1000
    torch.testing.assert_close(schedule.add_noise(*batch), ddpm.add_noise(*batch), rtol=1e-6, atol=1e-6)


def test_schedule_is_a_copy_in_fp32(ddpm: DDPMScheduler) -> None:
    original = ddpm.alphas_cumprod.double().requires_grad_(True)
    schedule = NoiseSchedule(original)
    assert schedule.alphas_cumprod.dtype == torch.float32
    assert not schedule.alphas_cumprod.requires_grad


# ------------------------------------------------------------------ noise
SHAPE = (4, 16, 16)


def test_noise_is_standard_normal_and_keyed() -> None:
    noise = torch.stack([keyed_noise(SHAPE, 0.0, 42, "noise", 1, n) for n in range(64)])
    assert noise.mean().abs() < 0.02
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert len({float(n.sum()) for n in noise}) == 64
    assert torch.equal(noise[3], keyed_noise(SHAPE, 0.0, 42, "noise", 1, 3))


def test_noise_leaves_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    keyed_noise(SHAPE, 0.1, 42)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("offset", [0.05, 0.5])
def test_noise_offset_moves_each_channel_as_a_whole(offset: float) -> None:
    moves = []
    for n in range(200):
        move = keyed_noise(SHAPE, offset, "k", n) - keyed_noise(SHAPE, 0.0, "k", n)
        assert move.std(dim=(1, 2)).max() < 1e-5
        moves.append(move.mean(dim=(1, 2)))
    found = torch.stack(moves)
    assert found.std() == pytest.approx(offset, rel=0.1)
    assert found.mean().abs() < offset * 0.15
    assert torch.corrcoef(found.T).triu(1).abs().max() < 0.25
