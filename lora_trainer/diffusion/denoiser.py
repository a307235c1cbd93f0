"""Running the model on noised latents, for training and for the held-out loss alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_trainer.dataset.latents import LatentCache
from lora_trainer.dataset.scan import Item
from lora_trainer.diffusion.conditioning import Encode
from lora_trainer.diffusion.noise import NoiseSchedule, keyed_noise
from lora_trainer.diffusion.objective import PREDICTIONS, Objective
from lora_trainer.model.compute import compute_in
from lora_trainer.model.conditioning import Conditioning
from lora_trainer.model.loaded import LoadedModel
from lora_trainer.model.precision import TYPES


class Denoiser:
    """The model's view with everything that its loss needs.

    Args:
        model: the view.
        encode: encodes captions; the model's text encoders themselves compute in the same precision.
        precision: fp16, bf16 or fp32.

    Attributes:
        schedule: of the noise.
        objective: what held-out pictures are measured with: every noise level counts alike.
        dtype: what it computes in.
    """

    def __init__(self, model: LoadedModel, encode: Encode, precision: str) -> None:
        self.schedule = NoiseSchedule(model.alphas_cumprod)
        self.objective = Objective(self.schedule, PREDICTIONS[model.info.prediction])
        self._model = model
        self._encode = encode
        self.dtype = TYPES[precision]
        for part in model.parts.values() if encode is model.text else (model.unet,):
            compute_in(part, self.dtype)

    def losses(
        self,
        latents: torch.Tensor,
        noise: torch.Tensor,
        t: torch.Tensor,
        captions: Sequence[str],
        objective: Objective | None = None,
    ) -> torch.Tensor:
        """Loss of each picture, (B,), fp32.

        Args:
            latents: (B, C, H, W) on the CPU.
            noise: (B, C, H, W) on the CPU.
            t: noise levels, (B,).
            captions: of each picture.
            objective: another than :attr:`objective`.
        """
        device = self._model.device
        latents, noise = latents.to(device), noise.to(device)
        noisy = self.schedule.add_noise(latents, noise, t)
        told = self._conditioning(captions, *latents.shape[-2:])
        output = self._model.unet(noisy.to(self.dtype), t.to(device), told.states, added_cond_kwargs=told.added).sample
        return (objective or self.objective).losses(output, latents, noise, t)

    def _conditioning(self, captions: Sequence[str], height: int, width: int) -> Conditioning:
        """Of captions and the size of their latents."""
        told = self._encode(captions).to(self._model.device, self.dtype)
        family = self._model.info.family
        if family.time_ids is None:
            return told
        return told.with_numbers(family.time_ids(height * family.latent.factor, width * family.latent.factor))

    @torch.no_grad()
    def held_out_loss(self, items: Sequence[Item], latents: LatentCache, levels: int) -> float:
        """Mean squared error of pictures that are not trained on, with fixed noise.

        Args:
            items: the pictures; their captions are used as they are.
            latents: their latents.
            levels: noise levels of each, from the middle of equal strata of the timesteps.
        """
        self._model.evaluate()
        strata = self.strata(levels)
        losses = [
            self.fixed_losses(index, latents[item.path, False], item.caption, strata).mean()
            for index, item in enumerate(items)
        ]
        return float(torch.stack(losses).mean())

    def strata(self, levels: int) -> list[int]:
        """Timesteps in the middle of so many equal strata."""
        return [int((k + 0.5) / levels * self.schedule.timesteps) for k in range(levels)]

    @torch.no_grad()
    def fixed_losses(self, index: int, latent: torch.Tensor, caption: str, timesteps: Sequence[int]) -> torch.Tensor:
        """Losses (T,) of one picture (C, H, W) with the noise of its ``index`` at T timesteps, the same each time."""
        noise = torch.stack([keyed_noise(latent.shape, 0.0, "validation", index, t) for t in timesteps])
        batch = latent.expand(len(timesteps), *latent.shape)
        return self.losses(batch, noise, torch.tensor(timesteps), [caption] * len(timesteps))
