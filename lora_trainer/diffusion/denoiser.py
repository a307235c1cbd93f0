"""Running the model on noised latents, for training and for the held-out loss alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lora_trainer.dataset.latents import LatentCache
from lora_trainer.dataset.scan import Item
from lora_trainer.diffusion.noise import NoiseSchedule, keyed_noise, picture_losses
from lora_trainer.model.compute import compute_in
from lora_trainer.model.loaded import LoadedModel
from lora_trainer.model.precision import TYPES

Conditioning = Callable[[Sequence[str]], torch.Tensor]
"""Captions → states (B, 77·n, C)."""


class Denoiser:
    """The model's view with everything that its loss needs.

    Args:
        model: the view.
        conditioning: encodes captions; the model's text encoder itself computes in the same precision.
        precision: fp16, bf16 or fp32.

    Attributes:
        dtype: what it computes in.
    """

    def __init__(self, model: LoadedModel, conditioning: Conditioning, precision: str) -> None:
        self.schedule = NoiseSchedule(model.alphas_cumprod, model.info.prediction)
        self._model = model
        self._conditioning = conditioning
        self.dtype = TYPES[precision]
        compute_in(model.unet, self.dtype)
        if conditioning is model.text:
            compute_in(model.text.model, self.dtype)

    def losses(
        self,
        latents: torch.Tensor,
        noise: torch.Tensor,
        t: torch.Tensor,
        captions: Sequence[str],
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Loss of each picture: latents and noise (B, C, H, W) on the CPU, t and weights (B,) → (B,)."""
        device = self._model.device
        latents, noise = latents.to(device), noise.to(device)
        noisy = self.schedule.add_noise(latents, noise, t)
        states = self._conditioning(captions).to(self.dtype)
        output = self._model.unet(noisy.to(self.dtype), t.to(device), states).sample
        return picture_losses(output, self.schedule.target(latents, noise, t), weights)

    @torch.no_grad()
    def held_out_loss(self, items: Sequence[Item], latents: LatentCache, levels: int) -> float:
        """Mean squared error of pictures that are not trained on, with fixed noise.

        Args:
            items: the pictures; their captions are used as they are.
            latents: their latents.
            levels: noise levels of each, from the middle of equal strata of the timesteps.
        """
        self.evaluate()
        strata = self.strata(levels)
        losses = [
            self.fixed_losses(index, latents[item.path, False], item.caption, strata).mean()
            for index, item in enumerate(items)
        ]
        return float(torch.stack(losses).mean())

    def evaluate(self) -> None:
        """Switch dropout off."""
        self._model.unet.eval()
        self._model.text.model.eval()

    def strata(self, levels: int) -> list[int]:
        """Timesteps in the middle of so many equal strata."""
        return [int((k + 0.5) / levels * self.schedule.timesteps) for k in range(levels)]

    @torch.no_grad()
    def fixed_losses(self, index: int, latent: torch.Tensor, caption: str, timesteps: Sequence[int]) -> torch.Tensor:
        """Losses (T,) of one picture (C, H, W) with the noise of its ``index`` at T timesteps, the same each time."""
        noise = torch.stack([keyed_noise(latent.shape, 0.0, "validation", index, t) for t in timesteps])
        batch = latent.expand(len(timesteps), *latent.shape)
        return self.losses(batch, noise, torch.tensor(timesteps), [caption] * len(timesteps))
