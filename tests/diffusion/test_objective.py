from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from lora_trainer.diffusion.noise import NoiseSchedule
from lora_trainer.diffusion.objective import PREDICTIONS, MinSnr, Objective, mean_squared


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


def test_target_is_the_noise_or_the_velocity(ddpm: DDPMScheduler, batch) -> None:
    schedule = NoiseSchedule(ddpm.alphas_cumprod)
    assert torch.equal(PREDICTIONS["epsilon"].target(schedule, *batch), batch[1])
    velocity = PREDICTIONS["v_prediction"].target(schedule, *batch)
    torch.testing.assert_close(velocity, ddpm.get_velocity(*batch), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction", list(PREDICTIONS))
@pytest.mark.parametrize("gamma", [0.5, 1.0, 5.0, 20.0])
def test_min_snr_weights_are_the_papers(ddpm: DDPMScheduler, prediction: str, gamma: float) -> None:
    alpha = ddpm.alphas_cumprod.double()
    snr = alpha / (1 - alpha)
    wanted = torch.minimum(snr, torch.full_like(snr, gamma)) / (snr if prediction == "epsilon" else snr + 1)
    found = MinSnr(gamma)(NoiseSchedule(ddpm.alphas_cumprod).snr(torch.arange(1000)), PREDICTIONS[prediction])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-7)
    assert torch.all(found > 0)
    assert torch.all(found <= 1)


def test_min_snr_leaves_noisy_steps_alone_and_weighs_easy_ones_down(ddpm: DDPMScheduler) -> None:
    weights = MinSnr(5.0)(NoiseSchedule(ddpm.alphas_cumprod).snr(torch.arange(1000)), PREDICTIONS["epsilon"])
    assert torch.all(weights[500:] == 1)
    assert weights[0] < 0.01
    assert torch.all(weights.diff() >= 0)


# ------------------------------------------------------------------ the loss
def test_loss_is_the_mean_square_of_each_picture() -> None:
    said, target = torch.zeros(3, 4, 2, 2), torch.zeros(3, 4, 2, 2)
    said[1] = 2
    said[2, 0] = 4
    assert mean_squared(said, target).tolist() == [0, 4, 4]


def test_loss_is_computed_in_fp32() -> None:
    said = torch.full((1, 4, 8, 8), 300.0, dtype=torch.float16)
    loss = mean_squared(said, torch.zeros_like(said))
    assert loss.dtype == torch.float32
    assert loss.item() == 90_000


@pytest.mark.parametrize("prediction", list(PREDICTIONS))
def test_objective_weighs_the_error_in_the_clean_latent(ddpm: DDPMScheduler, prediction: str, batch) -> None:
    """What the model says is off by δ in x_0: γ = ∞ gives the loss SNR · δ², whatever the model predicts."""
    latents, noise, _ = batch
    t = torch.tensor([20, 100, 400, 700, 998])
    alpha = ddpm.alphas_cumprod.double()[t].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents.double() + (1 - alpha).sqrt() * noise.double()
    wrong = latents.double() + 0.1
    said = (noisy - alpha.sqrt() * wrong) / (1 - alpha).sqrt()  # the noise that would be left
    if prediction == "v_prediction":
        said = alpha.sqrt() * said - (1 - alpha).sqrt() * wrong
    objective = Objective(NoiseSchedule(ddpm.alphas_cumprod), PREDICTIONS[prediction], MinSnr(float("inf")))
    wanted = 0.01 * (alpha / (1 - alpha)).flatten()
    torch.testing.assert_close(objective.losses(said, latents, noise, t).double(), wanted, rtol=1e-3, atol=1e-7)


def test_without_a_weighting_every_noise_level_counts_alike(ddpm: DDPMScheduler, batch) -> None:
    latents, noise, t = batch
    objective = Objective(NoiseSchedule(ddpm.alphas_cumprod), PREDICTIONS["epsilon"])
    torch.testing.assert_close(objective.losses(noise + 2, latents, noise, t), torch.full((5,), 4.0))


def test_another_loss_is_one_function(ddpm: DDPMScheduler, batch) -> None:
    def absolute(said: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (said.float() - target.float()).abs().mean(dim=(1, 2, 3))

    latents, noise, t = batch
    schedule = NoiseSchedule(ddpm.alphas_cumprod)
    objective = Objective(schedule, PREDICTIONS["epsilon"], MinSnr(5.0), loss=absolute)
    snr = ddpm.alphas_cumprod[t] / (1 - ddpm.alphas_cumprod[t])
    torch.testing.assert_close(objective.losses(noise + 2, latents, noise, t), 2 * snr.clamp(max=5) / snr)
