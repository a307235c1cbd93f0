"""The noise of diffusion training."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_trainer.core.randomness import torch_rng


class NoiseSchedule:
    """The forward process q(x_t | x_0) of DDPM (Ho et al., 2020, eq. 4).

    Args:
        alphas_cumprod: ᾱ_t for t = 0 … T−1, (T,), fp32.
    """

    def __init__(self, alphas_cumprod: torch.Tensor) -> None:
        self.alphas_cumprod = alphas_cumprod.detach().float().cpu()

    @property
    def timesteps(self) -> int:
        """T, the number of noise levels."""
        return len(self.alphas_cumprod)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε. Latents and noise (B, C, H, W), t (B,)."""
        signal, sigma = self.factors(t, latents)
        return signal * latents + sigma * noise

    def snr(self, t: torch.Tensor) -> torch.Tensor:
        """Signal-to-noise ratio ᾱ_t / (1−ᾱ_t), (B,)."""
        alpha = self.alphas_cumprod[t.cpu()]
        return alpha / (1 - alpha)

    def factors(self, t: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """√ᾱ_t and √(1−ᾱ_t), (B, 1, 1, 1) each, on the device of ``like``."""
        alpha = self.alphas_cumprod[t.cpu()].to(like.device).view(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()


def keyed_noise(shape: Sequence[int], offset: float, *key: object) -> torch.Tensor:
    """Standard normal noise of one picture (C, H, W), with noise offset (Guttenberg, 2023) per channel."""
    rng = torch_rng(*key)
    noise = torch.randn(tuple(shape), generator=rng)
    if offset:
        noise += offset * torch.randn((shape[0], 1, 1), generator=rng)
    return noise
