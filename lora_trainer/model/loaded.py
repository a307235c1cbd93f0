"""The loaded checkpoint as training and validation see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel
    from torch import nn

    from lora_trainer.model.families import CheckpointInfo
    from lora_trainer.model.text import TextEncoders


@dataclass
class LoadedModel:
    """The checkpoint as the trainer sees it; all parameters are the host's own objects.

    Attributes:
        info: what it is.
        unet: view of the UNet.
        text: views of the family's text encoders with their tokenizers; together they make conditionings of captions.
        alphas_cumprod: ᾱ_t of the training schedule, (T,), fp32, on the CPU.
        encode: (1, 3, H, W) pixels in −1…1 → (1, C, H/8, W/8) scaled latents; call it in a turn.
        vae_key: fingerprint of the VAE's weights.
        device: where steps are computed.
        clip_skip: the text encoder's layer that is used, 1 for the last.
    """

    info: CheckpointInfo
    unet: UNet2DConditionModel
    text: TextEncoders
    alphas_cumprod: torch.Tensor
    encode: Callable[[torch.Tensor], torch.Tensor]
    vae_key: str
    device: torch.device
    clip_skip: int

    @cached_property
    def parts(self) -> Mapping[str, nn.Module]:
        """What a LoRA can adapt, the UNet first: prefix in LoRA files → module."""
        modules = (self.unet, *(encoder.model for encoder in self.text))
        return {part.prefix: module for part, module in zip(self.info.family.parts, modules, strict=True)}

    def evaluate(self) -> None:
        """Switch all parts to evaluation: dropout is off."""
        for part in self.parts.values():
            part.eval()
