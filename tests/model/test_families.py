from __future__ import annotations

from typing import Any

import pytest
from safetensors import safe_open

from lora_trainer.core.errors import InputError
from lora_trainer.model.families import SD1, family_of, native_resolution, prediction_type
from lora_trainer.model.sd1 import V1_CONFIG
from tests.helpers import CHECKPOINT

UNET = ["model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.out.2.weight"]
CLIP = ["cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"]


def test_small_checkpoint_is_sd1() -> None:
    with safe_open(CHECKPOINT, framework="pt") as file:
        assert family_of(list(file.keys()), 4, name="m") is SD1


@pytest.mark.parametrize("channels", [None, 4])
def test_unet_with_clip_is_sd1(channels: int | None) -> None:
    assert family_of([*UNET, *CLIP], channels, name="m") is SD1


@pytest.mark.parametrize(
    ("keys", "channels", "kind"),
    [
        (["model.diffusion_model.x_embedder.proj.weight"], None, "SD3"),
        (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], None, "SD3"),
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], None, "Flux"),
        ([*UNET, "conditioner.embedders.1.model.ln_final.weight"], 4, "SDXL"),
        ([*UNET, "model.diffusion_model.label_emb.0.0.weight"], 4, "SDXL"),
        ([*UNET, "conditioner.embedders.0.model.ln_final.weight"], 4, "SDXL refiner"),
        ([*UNET, "cond_stage_model.model.ln_final.weight"], 4, "SD2"),
        ([*UNET, "cond_stage_model.model.ln_final.weight"], 9, "SD2"),
        ([*UNET, *CLIP], 9, "Inpainting"),
        ([*UNET, *CLIP], 8, "Instruct-pix2pix"),
        ([*UNET, *CLIP], 5, "5-channel"),
    ],
)
def test_kinds_that_cannot_be_trained_are_said_by_name(keys: list[str], channels: int | None, kind: str) -> None:
    with pytest.raises(InputError) as caught:
        family_of(keys, channels, name="m")
    assert str(caught.value).startswith(f"{kind} checkpoints cannot be trained yet")
    assert caught.value.field == "checkpoint"


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (["lora_unet_down_blocks_0.lora_up.weight"], "a.safetensors is a LoRA, not a checkpoint; choose the SD1"),
        (["lora_te_text_model_x.hada_w1_a"], "a.safetensors is a LoRA, not a checkpoint; choose the SD1"),
        (["unet.down_blocks.0.to_q.lora_A.weight"], "a.safetensors is a LoRA, not a checkpoint; choose the SD1"),
        ([*CLIP], "a.safetensors is a text encoder, not a whole checkpoint; choose an SD1"),
        (["emb_params"], "a.safetensors is an embedding (textual inversion), not a whole checkpoint; choose"),
        ([], "a.safetensors is not a checkpoint: it has no Stable Diffusion UNet in it; choose"),
        ([*UNET], "a.safetensors is not a whole checkpoint: it has no CLIP text encoder in it; choose"),
    ],
)
def test_what_is_no_checkpoint_is_said_by_its_name(keys: list[str], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        family_of(keys, 4, name="a.safetensors")
    assert str(caught.value).startswith(sentence)
    assert caught.value.field == "checkpoint"


@pytest.mark.parametrize(
    ("params", "prediction"),
    [({}, "epsilon"), ({"parameterization": "v"}, "v_prediction"), ({"parameterization": "eps"}, "epsilon")],
)
def test_prediction_is_told_by_the_yaml(params: dict[str, Any], prediction: str) -> None:
    assert prediction_type({"model": {"params": params}}) == prediction


@pytest.mark.parametrize(("params", "side"), [({}, 512), ({"image_size": 96}, 768), ({"image_size": 16}, 128)])
def test_resolution_is_told_by_the_yaml(params: dict[str, Any], side: int) -> None:
    assert native_resolution({"model": {"params": params}}) == side


def test_built_in_yaml_is_sd1s() -> None:
    assert (prediction_type(V1_CONFIG), native_resolution(V1_CONFIG)) == ("epsilon", 512)
    assert (SD1.base_version, SD1.modelspec) == ("sd_v1", "stable-diffusion-v1/lora")
