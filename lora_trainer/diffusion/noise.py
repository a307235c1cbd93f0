"""Noise, targets and loss weights of diffusion training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from lora_trainer.core.randomness import torch_rng


class NoiseSchedule:
    """The forward process q(x_t | x_0) of DDPM (Ho et al., 2020, eq. 4).

    Args:
        alphas_cumprod: ᾱ_t for t = 0 … T−1, (T,), fp32.
        prediction: ``"epsilon"`` or ``"v_prediction"`` (Salimans & Ho, 2022, appendix D).
    """

    def __init__(self, alphas_cumprod: torch.Tensor, prediction: str) -> None:
        self.alphas_cumprod = alphas_cumprod.detach().float().cpu()
        self.prediction = prediction

    @property
    def timesteps(self) -> int:
        """T, the number of noise levels."""
        return len(self.alphas_cumprod)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε. Latents and noise (B, C, H, W), t (B,)."""
        signal, sigma = self._factors(t, latents)
        return signal * latents + sigma * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the model should say: ε, or v = √ᾱ_t ε − √(1−ᾱ_t) x_0."""
        if self.prediction == "epsilon":
            return noise
        signal, sigma = self._factors(t, latents)
        return signal * noise - sigma * latents

    def snr(self, t: torch.Tensor) -> torch.Tensor:
        """Signal-to-noise ratio ᾱ_t / (1−ᾱ_t), (B,)."""
        alpha = self.alphas_cumprod[t.cpu()]
        return alpha / (1 - alpha)

    def min_snr_weight(self, t: torch.Tensor, gamma: float) -> torch.Tensor:
        """Loss weights of min-SNR-γ (Hang et al., 2023, eq. 4 and appendix A), (B,).

        ε: min(SNR, γ) / SNR; v: min(SNR, γ) / (SNR + 1).
        """
        snr = self.snr(t)
        return snr.clamp(max=gamma) / (snr if self.prediction == "epsilon" else snr + 1)

    def _factors(self, t: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alpha = self.alphas_cumprod[t.cpu()].to(like.device).view(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()


def keyed_noise(shape: Sequence[int], offset: float, *key: object) -> torch.Tensor:
    """Standard normal noise of one picture (C, H, W), with noise offset (Guttenberg, 2023) per channel."""
    rng = torch_rng(*key)
    noise = torch.randn(tuple(shape), generator=rng)
    if offset:
        noise += offset * torch.randn((shape[0], 1, 1), generator=rng)
    return noise


def picture_losses(prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Mean squared error of each picture in fp32, weighted: (B, C, H, W) → (B,)."""
    losses = F.mse_loss(prediction.float(), target.float(), reduction="none").mean(dim=(1, 2, 3))
    return losses if weights is None else losses * weights.to(losses.device)
