from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    create_unet_diffusers_config_from_ldm,
    create_vae_diffusers_config_from_ldm,
)
from safetensors.torch import load_file

from lora_trainer.hosts.standalone.checkpoint import checkpoint_config
from lora_trainer.model.ldm_names import ldm_to_unet, unet_to_ldm, vae_to_ldm
from tests.helpers import CHECKPOINT

UNET, VAE = "model.diffusion_model.", "first_stage_model."


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return load_file(CHECKPOINT)


def part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name.startswith(prefix)}


def test_every_unet_name_goes_back_to_where_it_came_from(state: dict[str, torch.Tensor]) -> None:
    ldm = part(state, UNET)
    converted = convert_ldm_unet_checkpoint(
        dict(ldm), create_unet_diffusers_config_from_ldm(checkpoint_config(CHECKPOINT), ldm)
    )
    back = {UNET + unet_to_ldm(name): value for name, value in converted.items()}
    assert back.keys() == ldm.keys()
    assert all(back[name] is ldm[name] for name in ldm)
    assert len(back) == 686


LAYOUTS: dict[str, tuple[dict[str, Any], set[int], int]] = {
    "SD1": ({"cross_attention_dim": 768}, {1, 2, 3}, 686),
    "SDXL": (
        {
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "use_linear_projection": True,
            "cross_attention_dim": 2048,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        {0, 1},
        1676,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dot", [".", "_"])
def test_every_layer_of_full_size_models_has_the_name_of_diffusers_own_converter(layout: str, dot: str) -> None:
    """Without weights: tensors' names stand in for them, in both spellings and both ways."""
    settings, attention_up, count = LAYOUTS[layout]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**settings)
    names = [name for name, _ in unet.named_parameters() if not name.startswith("add_embedding")]
    ldm = {UNET + unet_to_ldm(name, attention_up): name for name in names}
    assert len(ldm) == len(names) == count
    config = {**unet.config, "addition_embed_type": None}  # its layers have no number of a block
    assert convert_ldm_unet_checkpoint(dict(ldm), config) == {name: name for name in names}
    for name in names:
        there = unet_to_ldm(name.replace(".", dot), attention_up, dot=dot)
        assert there == unet_to_ldm(name, attention_up).replace(".", dot)
        assert ldm_to_unet(there, attention_up, dot=dot) == name.replace(".", dot)


def test_every_vae_name_goes_back_to_where_it_came_from(state: dict[str, torch.Tensor]) -> None:
    ldm = part(state, VAE)
    config = create_vae_diffusers_config_from_ldm(checkpoint_config(CHECKPOINT), ldm)
    converted = convert_ldm_vae_checkpoint(dict(ldm), config)
    back = {VAE + vae_to_ldm(name): value for name, value in converted.items()}
    assert back.keys() == ldm.keys()
    assert all(torch.equal(back[name].flatten(), ldm[name].flatten()) for name in ldm)


@pytest.mark.parametrize(
    ("diffusers", "ldm"),
    [
        (
            "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k",
            "input_blocks.2.1.transformer_blocks.0.attn2.to_k",
        ),
        ("down_blocks.3.resnets.1.conv1", "input_blocks.11.0.in_layers.2"),
        ("down_blocks.2.downsamplers.0.conv", "input_blocks.9.0.op"),
        ("mid_block.attentions.0.proj_in", "middle_block.1.proj_in"),
        ("mid_block.resnets.1.conv2.weight", "middle_block.2.out_layers.3.weight"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.1.conv"),
        ("up_blocks.1.upsamplers.0.conv.bias", "output_blocks.5.2.conv.bias"),
        ("up_blocks.3.attentions.2.norm", "output_blocks.11.1.norm"),
        ("time_embedding.linear_2.weight", "time_embed.2.weight"),
        ("conv_out", "out.2"),
    ],
)
def test_names_of_modules(diffusers: str, ldm: str) -> None:
    assert unet_to_ldm(diffusers) == ldm


def test_upsampler_stands_behind_attention_where_there_is_any() -> None:
    name = "up_blocks.1.upsamplers.0.conv"
    assert unet_to_ldm(name, attention_up={0, 1}) == "output_blocks.5.2.conv"
    assert unet_to_ldm(name, attention_up={0}) == "output_blocks.5.1.conv"


@pytest.mark.parametrize("name", ["", "add_embedding.linear_1", "down_blocks.0.motion.0.weight", "conv_inner.weight"])
def test_unknown_part_is_an_error(name: str) -> None:
    for rename in (unet_to_ldm, ldm_to_unet):
        with pytest.raises(KeyError):
            rename(name)
