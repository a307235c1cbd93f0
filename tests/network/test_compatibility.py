"""The files as other programs read them: diffusers' own loader, and ComfyUI's key map written out."""

from __future__ import annotations

import copy
import sys
import types
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open
from torch import nn

from lora_trainer.hosts.base import ModelRequest
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.model.families import SD1
from lora_trainer.model.loaded import LoadedModel
from lora_trainer.network.adapters import add_adapters
from lora_trainer.network.lora_file import save_lora
from lora_trainer.network.types.base import Shape
from tests.helpers import CHECKPOINT
from tests.network.plain import of_model, outputs, randomise, relative_error

WITH_CONVOLUTIONS = pytest.mark.parametrize("convolutions", [None, Shape(3, 2.0)], ids=["attention", "attention+conv"])


def trained_file(folder: Path, model: LoadedModel, convolutions: Shape | None) -> Path:
    adapters = add_adapters(model.parts, SD1, rank=4, alpha=1.0, convolutions=convolutions)
    save_lora(folder / "trained.safetensors", randomise(adapters), {}, "fp32")
    return folder / "trained.safetensors"


# ------------------------------------------------------------------ diffusers
def load_adapter(
    self: nn.Module, adapter_name: str, adapter_state_dict: dict[str, torch.Tensor], peft_config: object
) -> None:
    """What newer versions of transformers have as ``PeftAdapterMixin.load_adapter``; 4.30, the WebUI's, has not."""
    inject_adapter_in_model(peft_config, self, adapter_name)
    assert not set_peft_model_state_dict(self, adapter_state_dict, adapter_name).unexpected_keys


@pytest.fixture
def pipeline(standalone: StandaloneHost, monkeypatch: pytest.MonkeyPatch) -> StableDiffusionPipeline:
    """A diffusers pipeline with weights of its own, able to load LoRAs whatever transformers' version."""
    for name, module in list(sys.modules.items()):
        if name.startswith("diffusers") and "USE_PEFT_BACKEND" in vars(module):
            monkeypatch.setattr(module, "USE_PEFT_BACKEND", True)
    with standalone.session(ModelRequest()) as session:
        model = session.model
    unet = UNet2DConditionModel.from_config(model.unet.config)
    unet.load_state_dict({name: value.clone() for name, value in model.unet.state_dict().items()})
    text = copy.deepcopy(model.text[0].model)
    if not hasattr(text, "load_adapter"):
        text.load_adapter = types.MethodType(load_adapter, text)
    return StableDiffusionPipeline(
        vae=AutoencoderKL(),
        text_encoder=text,
        tokenizer=model.text[0].tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@WITH_CONVOLUTIONS
def test_diffusers_loader_computes_the_same(
    tmp_path: Path, model: LoadedModel, pipeline: StableDiffusionPipeline, convolutions: Shape | None
) -> None:
    before = of_model(model)
    path = trained_file(tmp_path, model, convolutions)
    wanted = of_model(model)
    assert torch.equal(outputs(pipeline.unet, pipeline.text_encoder), before)
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    assert relative_error(outputs(pipeline.unet, pipeline.text_encoder), wanted) <= 1e-5
    assert relative_error(before, wanted) > 1e-3


# ------------------------------------------------------------------ ComfyUI
RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def comfy_key_map(weights: set[str]) -> dict[str, str]:
    """LoRA key → weight of an SD1 checkpoint, as ComfyUI makes it (``comfy/lora.py``, ``comfy/utils.py``).

    For every UNet weight in diffusers' naming: ``lora_unet_`` and the name without ``.weight``, dots as underscores;
    for the text encoder ``lora_te_text_model_encoder_layers_{n}_`` with ``mlp_fc1``, ``self_attn_k_proj`` and so on.
    """
    places: dict[str, str] = {"mid_block.resnets.0": "middle_block.0", "mid_block.resnets.1": "middle_block.2"}
    places["mid_block.attentions.0"] = "middle_block.1"
    for block in range(4):
        for layer in range(2):
            places[f"down_blocks.{block}.resnets.{layer}"] = f"input_blocks.{1 + 3 * block + layer}.0"
            places[f"down_blocks.{block}.attentions.{layer}"] = f"input_blocks.{1 + 3 * block + layer}.1"
        places[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{3 + 3 * block}.0.op"
        for layer in range(3):
            places[f"up_blocks.{block}.resnets.{layer}"] = f"output_blocks.{3 * block + layer}.0"
            places[f"up_blocks.{block}.attentions.{layer}"] = f"output_blocks.{3 * block + layer}.1"
        places[f"up_blocks.{block}.upsamplers.0.conv"] = f"output_blocks.{3 * block + 2}.{2 if block else 1}.conv"
    inner = [f"attn{n}.to_{part}" for n in (1, 2) for part in ("q", "k", "v", "out.0")] + ["ff.net.0.proj", "ff.net.2"]
    attention = ["proj_in", "proj_out", *(f"transformer_blocks.0.{name}" for name in inner)]
    keys: dict[str, str] = {}
    for place, ldm in places.items():
        parts = RESNET if "resnets" in place else dict.fromkeys(attention) if "attentions" in place else {"": ""}
        for part, renamed in parts.items():
            name = f"{place}.{part}".strip(".").replace(".", "_")
            weight = f"model.diffusion_model.{ldm}.{renamed or part}".strip(".") + ".weight"
            if weight in weights:
                keys[f"lora_unet_{name}"] = weight
    for layer in range(12):
        for part in ("mlp.fc1", "mlp.fc2", *(f"self_attn.{p}_proj" for p in ("q", "k", "v", "out"))):
            key = f"lora_te_text_model_encoder_layers_{layer}_{part.replace('.', '_')}"
            keys[key] = f"cond_stage_model.transformer.text_model.encoder.layers.{layer}.{part}.weight"
    return keys


@WITH_CONVOLUTIONS
def test_comfyui_finds_a_weight_of_the_right_size_for_every_key(
    tmp_path: Path, model: LoadedModel, convolutions: Shape | None
) -> None:
    path = trained_file(tmp_path, model, convolutions)
    with safe_open(CHECKPOINT, "pt") as checkpoint, safe_open(path, "pt") as lora:
        key_map = comfy_key_map(set(checkpoint.keys()))
        names = {name.partition(".")[0] for name in lora.keys()}  # noqa: SIM118
        assert names == key_map.keys() & names
        assert names == key_map.keys() or convolutions is None
        for name in names:
            down, up = (lora.get_slice(f"{name}.lora_{part}.weight").get_shape() for part in ("down", "up"))
            weight = checkpoint.get_slice(key_map[name]).get_shape()
            assert (up[0], down[1:]) == (weight[0], weight[1:])
            assert f"{name}.alpha" in lora.keys()  # noqa: SIM118
