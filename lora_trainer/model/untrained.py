"""Families that cannot be trained here yet: told from each other, and named in sentences.

To make one trainable, move it to a module of its own and give it its text encoders; see
:mod:`lora_trainer.model.sd1`.
"""

from __future__ import annotations

from lora_trainer.model import block_lists
from lora_trainer.model.family import LatentSpace, ModelFamily

SD3 = ModelFamily("SD3", ("model.diffusion_model.x_embedder", "model.diffusion_model.joint_blocks"))
FLUX = ModelFamily("Flux", ("model.diffusion_model.double_blocks",))
SDXL = ModelFamily(
    "SDXL",
    ("conditioner.embedders.1", "model.diffusion_model.label_emb"),
    base_version="sdxl_base_v1-0",
    modelspec="stable-diffusion-xl-v1-base/lora",
    resolution=1024,
    latent=LatentSpace(scale=0.13025),
    blocks=block_lists.SDXL,
    pipeline="StableDiffusionXLPipeline",
)
SDXL_REFINER = ModelFamily("SDXL refiner", ("conditioner.embedders.0.model.",))
SD2 = ModelFamily(
    "SD2",
    ("cond_stage_model.model.",),
    base_version="sd_v2",
    modelspec="stable-diffusion-v2-512/lora",
    is_v2=True,
    blocks=block_lists.SD,
)
