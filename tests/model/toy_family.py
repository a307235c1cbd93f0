"""A family that no program knows: SD1's UNet with a wider context, which two text encoders of different widths fill."""

from __future__ import annotations

import re

from lora_trainer.model.block_lists import SDXL
from lora_trainer.model.family import LatentSpace, ModelFamily, clip_part

TOY = ModelFamily(
    name="Toy",
    marks=("second_stage.transformer.",),
    base_version="toy_v1",
    modelspec="toy-v1/lora",
    resolution=64,
    encoders=(
        clip_part("text", "lora_te1_", "cond_stage_model.transformer."),
        clip_part("text_2", "lora_te2_", "second_stage.transformer.", folder="second"),
    ),
    latent=LatentSpace(scale=0.25),
    blocks=SDXL,
    file_names=re.compile(r"lora_(unet|te[12])_"),
)
