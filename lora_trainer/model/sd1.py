"""Stable Diffusion 1."""

from __future__ import annotations

import re
from typing import Any

from lora_trainer.model.block_lists import SD
from lora_trainer.model.family import LatentSpace, ModelFamily, clip_part

V1_CONFIG: dict[str, Any] = {
    "model": {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": {
            "linear_start": 0.00085,
            "linear_end": 0.0120,
            "timesteps": 1000,
            "scale_factor": 0.18215,
            "unet_config": {
                "params": {
                    "in_channels": 4,
                    "out_channels": 4,
                    "model_channels": 320,
                    "attention_resolutions": [4, 2, 1],
                    "num_res_blocks": 2,
                    "channel_mult": [1, 2, 4, 4],
                    "num_heads": 8,
                    "use_spatial_transformer": True,
                    "transformer_depth": 1,
                    "context_dim": 768,
                }
            },
            "first_stage_config": {
                "params": {
                    "embed_dim": 4,
                    "ddconfig": {
                        "double_z": True,
                        "z_channels": 4,
                        "resolution": 256,
                        "in_channels": 3,
                        "out_ch": 3,
                        "ch": 128,
                        "ch_mult": [1, 2, 4, 4],
                        "num_res_blocks": 2,
                        "attn_resolutions": [],
                    },
                }
            },
            "cond_stage_config": {"params": {}},
        },
    }
}
"""Stable Diffusion 1's own configuration, for checkpoints that have no yaml beside them."""

CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
"""CLIP ViT-L/14's text encoder (Radford et al., 2021, table 20)."""
SD1 = ModelFamily(
    name="SD1",
    base_version="sd_v1",
    modelspec="stable-diffusion-v1/lora",
    resolution=512,
    encoders=(clip_part("text", "lora_te_", "cond_stage_model.transformer.", config=CLIP_L),),
    latent=LatentSpace(channels=4, scale=0.18215),
    blocks=SD,
    file_names=re.compile(r"lora_(unet_(down|mid|up)_blocks?_|unet_conv_|unet_time_|te_text_model_)"),
    config=V1_CONFIG,
)
