"""LoRA and LyCORIS files of every kind for the small checkpoint, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

Shapes = Mapping[str, Sequence[int]]
Parts = dict[str, torch.Tensor]

LAYERS = """
import torch
from modules import shared
kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm)
result = {
    name: list(layer.weight.shape)
    for name, layer in shared.sd_model.network_layer_mapping.items()
    if type(layer) in kinds and name.startswith(("diffusion_model_", "transformer_text_model_encoder_"))
}
"""
"""For the probe: the host's layers with their shapes."""


def randn(*shape: int, rng: torch.Generator, scale: float = 0.05) -> torch.Tensor:
    return torch.randn(shape, generator=rng) * scale


def lora(shape: Sequence[int], rng: torch.Generator, rank: int = 3, alpha: float = 1.7) -> Parts:
    ones = [1] * (len(shape) - 2)
    return {
        "lora_down.weight": randn(rank, *shape[1:], rng=rng, scale=0.2),
        "lora_up.weight": randn(shape[0], rank, *ones, rng=rng, scale=0.2),
        "alpha": torch.tensor(alpha),
    }


def dora(shape: Sequence[int], rng: torch.Generator) -> Parts:
    return {**lora(shape, rng), "dora_scale": 1 + randn(1, shape[1], *[1] * (len(shape) - 2), rng=rng).abs()}


def loha(shape: Sequence[int], rng: torch.Generator, rank: int = 3) -> Parts:
    into = shape[1] * (shape[2] * shape[3] if len(shape) == 4 else 1)
    sizes = {"w1_a": (shape[0], rank), "w1_b": (rank, into), "w2_a": (shape[0], rank), "w2_b": (rank, into)}
    return {f"hada_{name}": randn(*size, rng=rng, scale=0.3) for name, size in sizes.items()} | {
        "alpha": torch.tensor(1.3)
    }


def lokr(shape: Sequence[int], rng: torch.Generator, whole: bool = False, rank: int = 2) -> Parts:
    """W1 is 2 × 2 and W2 the rest, which is two matrices unless ``whole``."""
    rest = (shape[0] // 2, shape[1] // 2, *shape[2:])
    parts = {"lokr_w1": randn(2, 2, rng=rng, scale=0.5)}
    if whole or len(shape) == 4:
        parts["lokr_w2"] = randn(*rest, rng=rng)
    else:
        parts["lokr_w2_a"] = randn(rest[0], rank, rng=rng, scale=0.3)
        parts["lokr_w2_b"] = randn(rank, rest[1], rng=rng, scale=0.3)
    return {**parts, "alpha": torch.tensor(1.1)}


def full(shape: Sequence[int], rng: torch.Generator) -> Parts:
    """With a bias where layers have one: the host cannot take one out of the others again (networks.py:449)."""
    bias = {"diff_b": randn(shape[0], rng=rng)} if len(shape) == 4 else {}
    return {"diff": randn(*shape, rng=rng), **bias}


def ia3(shape: Sequence[int], rng: torch.Generator) -> Parts:
    return {"weight": randn(shape[0], rng=rng), "on_input": torch.tensor(False)}


def glora(shape: Sequence[int], rng: torch.Generator, rank: int = 3) -> Parts:
    return {
        "a1.weight": randn(rank, shape[1], rng=rng),
        "a2.weight": randn(shape[1], rank, rng=rng),
        "b1.weight": randn(rank, shape[1], rng=rng),
        "b2.weight": randn(shape[0], rank, rng=rng),
        "alpha": torch.tensor(1.0),
    }


def oft(shape: Sequence[int], rng: torch.Generator, size: int = 4) -> Parts:
    blocks = shape[0] // size
    return {"oft_blocks": randn(blocks, size, size, rng=rng), "alpha": torch.tensor(0.0)}


def norm(shape: Sequence[int], rng: torch.Generator) -> Parts:
    return {"w_norm": randn(*shape, rng=rng), "b_norm": randn(*shape, rng=rng)}


KINDS: dict[str, tuple[Callable[[Sequence[int], torch.Generator], Parts], tuple[int, ...], str]] = {
    "LoRA": (lora, (2,), ""),
    "LoCon": (lora, (2, 4), ""),
    "LoHa": (loha, (2, 4), ""),
    "LoKr": (lokr, (2, 4), ""),
    "LoKr whole": (lambda shape, rng: lokr(shape, rng, whole=True), (2, 4), ""),
    "DoRA": (dora, (2,), ""),
    "Full": (full, (2, 4), ""),
    "IA3": (ia3, (2,), ""),
    "GLoRA": (glora, (2,), ""),
    "OFT": (oft, (2,), "diffusion_model_"),
    "Norm": (norm, (1,), ""),
}
"""Kind → how a module is made, for layers with how many dimensions, and which."""


def write_kind(
    path: Path, kind: str, layers: Shapes, dtype: torch.dtype = torch.float16, seed: int = 3
) -> dict[str, torch.Tensor]:
    """Write a file of a kind with a module for each fitting layer; returns its tensors."""
    make, dimensions, only = KINDS[kind]
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer, shape in sorted(layers.items()):
        if len(shape) in dimensions and layer.startswith(only):
            key = layer.replace("diffusion_model_", "oft_unet_" if kind == "OFT" else "lora_unet_")
            for name, part in make(shape, rng).items():
                key = key.replace("transformer_text_model", "lora_te_text_model")
                tensors[f"{key}.{name}"] = (part.to(dtype) if part.is_floating_point() else part).contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"ss_output_name": path.stem, "ss_base_model_version": "sd_v1"})
    return tensors
