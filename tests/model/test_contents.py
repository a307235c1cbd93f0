"""Files given in place of a LoRA or checkpoint are called what they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_trainer.model.contents import is_lora, kind_of_names, unreadable

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "a checkpoint"),
        ("conditioner.embedders.1.model.ln_final.weight", "a text encoder"),
        ("emb_params", "an embedding (textual inversion)"),
        ("clip_g", "an embedding (textual inversion)"),
        ("<cat>", "an embedding (textual inversion)"),
        ("control_model.zero_convs.0.0.weight", "a ControlNet"),
        ("controlnet_down_blocks.0.weight", "a ControlNet"),
        ("lllite_unet_input_blocks_4_1.down.0.weight", "a ControlNet"),
        ("ip_adapter.1.to_k_ip.weight", "an IP-Adapter"),
        ("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight", "a motion module of AnimateDiff"),
        ("adapter.body.0.block1.weight", "a T2I-Adapter"),
        ("decoder.up_blocks.0.resnets.0.conv1.weight", "a VAE"),
        ("first_stage_model.encoder.conv_in.weight", "a VAE"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "a text encoder"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "a text encoder"),
        (f"{BLOCK}.weight", "a diffusion model without its other parts"),
        ("double_blocks.0.img_attn.qkv.weight", "a diffusion model without its other parts"),
        ("params_ema.conv_first.weight", "an upscaler"),
        ("model.0.weight", "an upscaler"),
        ("768.0.linear1.weight", "a hypernetwork"),
        (f"base_model.model.{BLOCK}.ia3_l", "an adapter of PEFT of another kind (IA3, OFT, VeRA …)"),
        (f"base_model.model.{BLOCK}.oft_R.weight", "an adapter of PEFT of another kind (IA3, OFT, VeRA …)"),
        ("state.0.exp_avg", ""),
        ("latent", ""),
    ],
)
def test_kinds_by_a_name(name: str, kind: str) -> None:
    assert kind_of_names([name]) == kind
    assert not is_lora([name])


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight",
        "lora_unet_mid_block_attentions_0_proj_in.on_input",
        "oft_unet_mid_block_attentions_0_proj_in.oft_blocks",
        "bundle_emb.cat.string_to_param.*",
        f"unet.{BLOCK}.lora_A.weight",
        f"unet.{BLOCK}.processor.to_q_lora.down.weight",
        "double_blocks.0.processor.proj_lora1.down.weight",
        "diffusion_model.input_blocks.1.1.proj_in.diff",
        f"base_model.model.{BLOCK}.hada_w1_a",
    ],
)
def test_loras_of_all_programs_are_loras(name: str) -> None:
    assert is_lora([name])
    assert kind_of_names([name, "model.diffusion_model.x"]) == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "is a web page, not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS, not"),
        (b"PK\x03\x04" + bytes(60), "is a file of PyTorch with another ending (it can hold code), not"),
        (b"\x80\x02}q\x00.", "is a file of PyTorch"),
        (b"GGUF\x03", "is a GGUF file"),
        (b"\x89PNG\r\n", "is a picture"),
        (b'{"error": "no access"}', "is a text"),
        (b"\xff" * 100, "is damaged or not a safetensors file: it"),
    ],
)
def test_what_is_no_safetensors_file_is_called_what_it_is(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    for field, begins in (("", str(path)), ("checkpoint", f"checkpoint: {path}")):
        error = unreadable(path, "it", field)
        assert str(error).startswith(f"{begins} {said}")
        assert str(error).endswith("; get the file again.")
        assert error.field == field


def test_a_broken_off_download_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(9)}, path)
    path.write_bytes(path.read_bytes()[:-1])
    assert "is incomplete or damaged" in str(unreadable(path, "header: MetadataIncompleteBuffer"))


def test_a_file_that_cannot_be_opened_is_told_by_the_error(tmp_path: Path) -> None:
    assert "no such thing; get" in str(unreadable(tmp_path / "a.safetensors", "no such thing."))
