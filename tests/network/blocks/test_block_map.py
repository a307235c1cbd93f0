"""The block map, held against LDM names made the other way and against the reference extension's rule."""

from __future__ import annotations

import pytest
from diffusers import UNet2DConditionModel
from safetensors import safe_open

from lora_trainer.core.errors import InputError
from lora_trainer.model.block_lists import ALL_BLOCKS, SD, SDXL
from lora_trainer.model.families import SD1
from lora_trainer.model.ldm_names import unet_to_ldm
from lora_trainer.network.blocks.block_map import (
    architecture_of,
    block_of,
    ldm_name,
    spellings,
    text_encoder_of,
)
from lora_trainer.network.ops.checkpoint_weights import kohya_name, open_checkpoint
from tests.helpers import CHECKPOINT

REFERENCE = {
    "BASE": ("encoder", "embedders", "transformer_resblocks"),
    "M00": ("diffusion_model_middle_block_",),
    **{f"IN{n:02d}": (f"diffusion_model_input_blocks_{n}_",) for n in range(12)},
    **{f"OUT{n:02d}": (f"diffusion_model_output_blocks_{n}_",) for n in range(12)},
}
"""BLOCKS of lora_block_weight.py: substrings of the WebUI's names."""


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    """SD1's layout, tiny."""
    return UNet2DConditionModel(
        block_out_channels=(8, 16, 16, 24), norm_num_groups=4, attention_head_dim=2, cross_attention_dim=8
    )


def weighted(unet: UNet2DConditionModel) -> list[str]:
    return [name for name, module in unet.named_modules() if getattr(module, "weight", None) is not None]


@pytest.mark.parametrize(
    ("key", "block"),
    [
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", "IN01"),
        ("lora_unet_down_blocks_0_resnets_1_conv1", "IN02"),
        ("lora_unet_down_blocks_0_downsamplers_0_conv", "IN03"),
        ("lora_unet_down_blocks_2_attentions_1_proj_out", "IN08"),
        ("lora_unet_down_blocks_3_resnets_1_time_emb_proj", "IN11"),
        ("lora_unet_conv_in", "IN00"),
        ("lora_unet_mid_block_attentions_0_proj_in", "M00"),
        ("lora_unet_mid_block_resnets_1_conv2", "M00"),
        ("lora_unet_up_blocks_0_resnets_2_conv1", "OUT02"),
        ("lora_unet_up_blocks_0_upsamplers_0_conv", "OUT02"),
        ("lora_unet_up_blocks_1_attentions_0_proj_in", "OUT03"),
        ("lora_unet_up_blocks_3_attentions_2_proj_in", "OUT11"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k", "IN04"),
        ("lora_unet_input_blocks_10_0_in_layers_2", "IN10"),
        ("lora_unet_middle_block_1_proj_in", "M00"),
        ("lora_unet_output_blocks_5_1_proj_in", "OUT05"),
        ("oft_unet_output_blocks_5_1_proj_in", "OUT05"),
        ("diffusion_model_output_blocks_11_1_proj_in", "OUT11"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", "BASE"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "BASE"),
        ("lora_te2_text_model_encoder_layers_31_self_attn_q_proj", "BASE"),
        ("transformer_text_model_encoder_layers_0_mlp_fc1", "BASE"),
        ("1_model_transformer_resblocks_0_attn_q_proj", "BASE"),
        ("lora_unet_conv_out", None),
        ("lora_unet_out_2", None),
        ("lora_unet_time_embed_0", None),
        ("lora_unet_time_embedding_linear_1", None),
        ("lora_unet_label_emb_0_0", None),
        ("lora_te2_text_projection", None),
        ("lora_te_text_model_final_layer_norm", None),
        ("lora_unet_double_blocks_0_img_attn_qkv", None),
        ("lora_unet_output_blocks_12_1_proj_in", None),
        ("bundle_emb", None),
        ("", None),
    ],
)
def test_module_belongs_to_a_block(key: str, block: str | None) -> None:
    assert block_of(key) == block
    matching = [name for name, parts in REFERENCE.items() if any(part in ldm_name(key) for part in parts)]
    assert matching == ([block] if block else [])


def test_every_layer_of_the_unet_has_its_ldm_name(unet: UNet2DConditionModel) -> None:
    names = weighted(unet)
    for name in names:
        wanted = "diffusion_model_" + unet_to_ldm(name).replace(".", "_")
        assert ldm_name("lora_unet_" + name.replace(".", "_")) == wanted
    blocks = {block_of("lora_unet_" + name.replace(".", "_")) for name in names}
    assert blocks == {*ALL_BLOCKS[1:], None}


def test_checkpoint_names_lead_back_to_kohyas(unet: UNet2DConditionModel) -> None:
    ours = {"lora_unet_" + name.replace(".", "_") for name in weighted(unet) if "norm" not in name}
    with open_checkpoint(CHECKPOINT) as weights:
        assert {key for key in weights.keys if key.startswith("lora_unet_")} == ours
        for key, name in weights.keys.items():
            if key.startswith("lora_unet_"):
                wanted = name.removeprefix("model.").removesuffix(".weight").replace(".", "_")
                assert ldm_name(key) == wanted
        key = "lora_unet_mid_block_attentions_0_proj_in"
        with safe_open(CHECKPOINT, "pt") as file:
            assert weights(key).equal(file.get_tensor("model.diffusion_model.middle_block.1.proj_in.weight"))
        assert weights("lora_unet_middle_block_1_proj_in").equal(weights(key))
        assert weights("lora_unet_nothing") is None
    assert kohya_name("first_stage_model.decoder.conv_in.weight", SD1) is None


TE1 = "lora_te1_text_model_encoder_layers_0_mlp_fc1"


@pytest.mark.parametrize(
    ("keys", "metadata", "architecture"),
    [
        (["lora_unet_down_blocks_0_attentions_0_proj_in"], {}, SD),
        (["lora_te_text_model_encoder_layers_0_mlp_fc1"], {}, SD),
        (["lora_te1_text_model_encoder_layers_0_mlp_fc1"], {}, SDXL),
        (["lora_te2_text_model_encoder_layers_0_mlp_fc1"], {}, SDXL),
        (["lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"], {}, SDXL),
        (["lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn1_to_q"], {}, SDXL),
        (["lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"], {}, SD),
        (["lora_unet_input_blocks_4_1_proj_in"], {"ss_base_model_version": "sdxl_base_v1-0"}, SDXL),
        (["lora_te1_text_model_encoder_layers_0_mlp_fc1"], {"ss_base_model_version": "sd_v1"}, SD),
        ([TE1, "lora_unet_down_blocks_0_attentions_0_proj_in"], {}, SD),
        ([TE1, "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"], {}, SD),
        ([TE1, "lora_unet_up_blocks_3_resnets_2_conv1"], {}, SD),
        ([TE1, "lora_unet_input_blocks_2_1_proj_in"], {}, SD),
        ([TE1, "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"], {}, SD),
        ([TE1, "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"], {}, SDXL),
        ([TE1, "lora_unet_input_blocks_4_1_proj_in"], {}, SDXL),
        ([TE1], {"modelspec.architecture": "stable-diffusion-v1/lora"}, SD),
        ([TE1], {"modelspec.architecture": "flux-1-dev/lora"}, SDXL),
        (["lora_unet_middle_block_1_proj_in"], {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, SDXL),
    ],
)
def test_architecture_is_told(keys: list[str], metadata: dict[str, str], architecture: object) -> None:
    assert architecture_of(keys, metadata) is architecture


@pytest.mark.parametrize("keys", [[], ["lora_unet_double_blocks_0_img_attn_qkv"], ["model.diffusion_model.out.0"]])
def test_other_architecture_is_one_sentence(keys: list[str]) -> None:
    with pytest.raises(InputError, match="belongs to a block of SD1, SD2 or SDXL"):
        architecture_of(keys)


@pytest.mark.parametrize(("architecture", "lengths"), [(SD, [17, 26]), (SDXL, [12, 20])])
def test_lists_have_the_lengths_people_know(architecture: object, lengths: list[int]) -> None:
    assert list(architecture.lists) == lengths
    assert all(set(blocks) <= set(ALL_BLOCKS) for blocks in architecture.lists.values())


@pytest.mark.parametrize(
    ("file", "webui"),
    [
        ("lora_te2_text_model_encoder_layers_3_mlp_fc1", "1_model_transformer_resblocks_3_mlp_c_fc"),
        ("lora_te2_text_model_encoder_layers_3_self_attn_q_proj", "1_model_transformer_resblocks_3_attn_q_proj"),
        ("lora_te_text_model_encoder_layers_3_mlp_fc2", "model_transformer_resblocks_3_mlp_c_proj"),
        ("lora_te_text_model_encoder_layers_3_mlp_fc2", "transformer_text_model_encoder_layers_3_mlp_fc2"),
        ("lora_te1_text_model_encoder_layers_3_mlp_fc2", "0_transformer_text_model_encoder_layers_3_mlp_fc2"),
        ("lora_unet_down_blocks_0_resnets_0_conv1", "diffusion_model_input_blocks_1_0_in_layers_2"),
    ],
)
def test_file_and_webui_spell_alike_for_element_rules(file: str, webui: str) -> None:
    assert spellings(file) == spellings(webui)
    assert block_of(file) == block_of(webui)
    assert text_encoder_of(file) == text_encoder_of(webui)


@pytest.mark.parametrize(("number", "sd1", "sdxl"), [(0, "2_1", "2_2"), (1, "5_2", "5_2")])
def test_the_first_upsampler_stands_behind_an_attention_in_sdxl(number: int, sd1: str, sdxl: str) -> None:
    """LDM: ``output_blocks.2`` is resnet, [attention,] upsampler."""
    key = f"lora_unet_up_blocks_{number}_upsamplers_0_conv"
    assert ldm_name(key) == f"diffusion_model_output_blocks_{sd1}_conv"
    assert ldm_name(key, SDXL) == f"diffusion_model_output_blocks_{sdxl}_conv"
    assert block_of(key) == f"OUT0{2 + 3 * number}"
