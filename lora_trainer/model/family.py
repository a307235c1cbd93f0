"""What a model family is: everything that sets it apart from others, in one record.

A family is added with a module that holds its record and a line in
:data:`lora_trainer.model.families.FAMILIES` (or a call of :func:`lora_trainer.model.families.register`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from lora_trainer.model.block_lists import Architecture
from lora_trainer.model.targets import ATTENTION, CONVOLUTION, TEXT


@dataclass(frozen=True)
class Part:
    """A module of the model that a LoRA can adapt.

    Attributes:
        name: of its learning rate in optimizer, log and manifest, e.g. ``"unet"``.
        prefix: of its layers in LoRA files, as kohya has it, with the underscore at the end.
        stored: what the names of its tensors begin with in checkpoint files.
        layers: the layers that are always adapted, by their dotted names.
        convolutions: those that ``network.targets = "attention+conv"`` adapts too; ``None`` for none.
    """

    name: str
    prefix: str
    stored: str
    layers: re.Pattern[str]
    convolutions: re.Pattern[str] | None = None

    def adapts(self, key: str, *, convolutions: bool = False) -> bool:
        """Whether a module of a LoRA file, in kohya's spelling, is one of the adapted layers."""
        patterns = (self.layers, self.convolutions if convolutions else None)
        return any(_in_files(self.prefix, pattern).fullmatch(key) for pattern in patterns if pattern is not None)


@lru_cache
def _in_files(prefix: str, pattern: re.Pattern[str]) -> re.Pattern[str]:
    """The pattern for kohya's spelling, which has underscores for dots."""
    return re.compile(prefix + pattern.pattern.replace(r"\.", "_"))


@dataclass(frozen=True)
class TextPart(Part):
    """A CLIP text encoder.

    Attributes:
        config: numbers of its ``CLIPTextConfig``, for checkpoints that have no ``config.json`` beside them.
        folder: with its ``config.json``, below the folder of the tokenizer; empty for that folder itself.
    """

    config: Mapping[str, int] = field(default_factory=dict, hash=False)
    folder: str = ""


@dataclass(frozen=True)
class LatentSpace:
    """What the VAE makes of pictures.

    Attributes:
        channels: of a latent.
        scale: that the VAE's values are multiplied with.
        factor: pixels a side of a latent pixel.
    """

    channels: int = 4
    scale: float = 0.18215
    factor: int = 8

    def shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, H/8, W/8) of a picture of so many pixels."""
        return self.channels, height // self.factor, width // self.factor


UNET = Part("unet", "lora_unet_", "model.diffusion_model.", ATTENTION, CONVOLUTION)
"""The UNet as all families up to SDXL have it."""


@dataclass(frozen=True)
class ModelFamily:
    """A family of checkpoints. Of those that cannot be trained here only what tells and names them is known.

    Attributes:
        name: as the WebUI's cards and our sentences call it.
        marks: names of tensors begin with one of these in its checkpoints only; none for the family that a checkpoint
            without any mark belongs to.
        base_version: ``ss_base_model_version``.
        modelspec: ``modelspec.architecture`` of a LoRA.
        is_v2: ``ss_v2``.
        resolution: side in pixels that it was trained at.
        encoders: its text encoders, in the order in which their states are joined.
        unet: its UNet.
        latent: its latent space.
        prediction: what its UNet says when nothing tells otherwise.
        blocks: its block lists; ``None`` where block weights are not known.
        file_names: how the names of layers begin in LoRA files for it.
        config: its LDM configuration, for checkpoints that have no yaml beside them.
        pipeline: the class of diffusers that draws with it.
        time_ids: (height, width) of a picture in pixels → the numbers that the UNet is told of it, such as SDXL's
            original size, crop and target size; ``None`` where it is told none.
    """

    name: str
    marks: tuple[str, ...] = ()
    base_version: str = ""
    modelspec: str = ""
    is_v2: bool = False
    resolution: int = 512
    encoders: tuple[TextPart, ...] = ()
    unet: Part = UNET
    latent: LatentSpace = LatentSpace()
    prediction: str = "epsilon"
    blocks: Architecture | None = None
    file_names: re.Pattern[str] = field(default=re.compile(r"lora_(unet|te)"))
    config: Mapping[str, Any] = field(default_factory=dict, compare=False)
    pipeline: str = "StableDiffusionPipeline"
    time_ids: Callable[[int, int], tuple[float, ...]] | None = None

    @property
    def trainable(self) -> bool:
        """Whether it can be trained here: its text encoders are known."""
        return bool(self.encoders)

    @property
    def parts(self) -> tuple[Part, ...]:
        """What a LoRA can adapt, the UNet first."""
        return self.unet, *self.encoders

    def part(self, prefix: str) -> Part:
        """The part whose layers have this prefix in LoRA files."""
        return next(part for part in self.parts if part.prefix == prefix)


def clip_part(name: str, prefix: str, stored: str, **more: Any) -> TextPart:
    """A CLIP text encoder of which attention and MLP are adapted.

    Args:
        name: as :attr:`Part.name`.
        prefix: as :attr:`Part.prefix`.
        stored: as :attr:`Part.stored`.
        more: fields of :class:`TextPart`.
    """
    return TextPart(name, prefix, stored, TEXT, **more)
