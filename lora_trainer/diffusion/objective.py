"""What a model learns to say of noised latents, and how far off it is: prediction, loss and weighting.

Each of the three is one function or small class. Another weighting (debiased estimation, soft min-SNR) or loss (Huber)
is one more of them, and the setting that chooses it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from lora_trainer.diffusion.noise import NoiseSchedule


# ------------------------------------------------------------------ what the model says
@dataclass(frozen=True)
class Prediction:
    """A quantity that a model can be trained to say.

    Attributes:
        name: in metadata.
        target: (schedule, latents (B, C, H, W), noise (B, C, H, W), t (B,)) → what is right, (B, C, H, W).
        error: signal-to-noise ratio (B,) → its squared error for a squared error of 1 in x_0, (B,).
    """

    name: str
    target: Callable[[NoiseSchedule, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    error: Callable[[torch.Tensor], torch.Tensor]


def _noise(schedule: NoiseSchedule, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """ε (Ho et al., 2020)."""
    return noise


def _velocity(schedule: NoiseSchedule, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The velocity v = √ᾱ_t ε − √(1−ᾱ_t) x_0 (Salimans & Ho, 2022, appendix D)."""
    signal, sigma = schedule.factors(t, latents)
    return signal * noise - sigma * latents


PREDICTIONS = {
    made.name: made
    for made in (
        Prediction("epsilon", _noise, lambda snr: snr),
        Prediction("v_prediction", _velocity, lambda snr: snr + 1),
    )
}
"""By the name that :attr:`lora_trainer.model.families.CheckpointInfo.prediction` has."""


# ------------------------------------------------------------------ how far off it is
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""What was said and what is right, (B, C, H, W) each → the loss of each picture, (B,), fp32."""


def mean_squared(said: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each picture in fp32: (B, C, H, W) → (B,)."""
    return F.mse_loss(said.float(), target.float(), reduction="none").mean(dim=(1, 2, 3))


# ------------------------------------------------------------------ how much that counts
Weighting = Callable[[torch.Tensor, Prediction], torch.Tensor]
"""Signal-to-noise ratios (B,) and what is predicted → weights of the losses, (B,)."""


@dataclass(frozen=True)
class MinSnr:
    """Min-SNR-γ (Hang et al., 2023, eq. 4 and appendix A): min(SNR, γ) on the squared error in x_0.

    That is min(SNR, γ) / SNR on the one in ε, and min(SNR, γ) / (SNR + 1) on the one in v.

    Attributes:
        gamma: γ, above 0.
    """

    gamma: float

    def __call__(self, snr: torch.Tensor, prediction: Prediction) -> torch.Tensor:
        """Weights of the losses, (B,)."""
        return snr.clamp(max=self.gamma) / prediction.error(snr)


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
        schedule: of the noise.
        prediction: what the model says.
        weighting: of the losses by noise level; ``None`` lets all count alike.
        loss: of one picture.
    """

    schedule: NoiseSchedule
    prediction: Prediction
    weighting: Weighting | None = None
    loss: Loss = mean_squared

    def losses(self, said: torch.Tensor, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The weighted loss of each picture, (B,), fp32.

        Args:
            said: by the model of the noised latents, (B, C, H, W).
            latents: without noise, (B, C, H, W).
            noise: that was added, (B, C, H, W).
            t: noise levels, (B,).
        """
        losses = self.loss(said, self.prediction.target(self.schedule, latents, noise, t))
        if self.weighting is None:
            return losses
        return losses * self.weighting(self.schedule.snr(t), self.prediction).to(losses.device)
