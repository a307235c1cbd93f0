"""LoRA's definition applied to plain weights, without PEFT and without the package: what everything is held against."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from lora_trainer.model.loaded import LoadedModel
from lora_trainer.network.adapters import TEXT_PREFIX, UNET_PREFIX, Adapters

Tensors = Mapping[str, torch.Tensor]


def both_parts(model: LoadedModel) -> dict[str, nn.Module]:
    """UNet and text encoder of a view by the prefix of their names in files."""
    return {UNET_PREFIX: model.unet, TEXT_PREFIX: model.text.model}


def randomise(adapters: Adapters, scale: float = 0.05) -> dict[str, torch.Tensor]:
    """Give the adapters weights as if they were trained; returns their tensors."""
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * scale)
    return adapters.state_dict()


def delta(down: torch.Tensor, up: torch.Tensor, alpha: float, like: torch.Tensor) -> torch.Tensor:
    """ΔW = alpha / rank · up @ down, for linear layers and for convolutions with a 1×1 ``up``."""
    rank = down.shape[0]
    product = up.reshape(up.shape[0], rank).double() @ down.reshape(rank, -1).double()
    return (alpha / rank * product).reshape(like.shape)


def key_of(prefix: str, name: str) -> str:
    """A module's key in files; transformers 5 leaves the level ``text_model`` out of its own names."""
    level = "text_model_" if prefix == "lora_te_" and not name.startswith("text_model") else ""
    return prefix + level + name.replace(".", "_")


def merged(module: nn.Module, tensors: Tensors, prefix: str, multiplier: float = 1.0) -> nn.Module:
    """A copy of a module without adapters, whose weights have ΔW added."""
    made = copy.deepcopy(module)
    for name, part in made.named_modules():
        key = key_of(prefix, name)
        if f"{key}.lora_down.weight" in tensors:
            down, up = tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"]
            change = delta(down, up, float(tensors[f"{key}.alpha"]), part.weight)
            part.weight = nn.Parameter((part.weight.double() + multiplier * change).float())
    return made


@torch.no_grad()
def outputs(unet: nn.Module, text: nn.Module) -> torch.Tensor:
    """What UNet and text encoder make of a fixed input, one after the other."""
    rng = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 8, 8, generator=rng)
    ids = torch.randint(0, 600, (2, 77), generator=rng)
    states = text.eval()(ids).last_hidden_state
    return unet.eval()(latents, torch.tensor([10, 700]), states).sample


def of_model(model: LoadedModel) -> torch.Tensor:
    """:func:`outputs` of a view."""
    return outputs(model.unet, model.text.model)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference against the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())
