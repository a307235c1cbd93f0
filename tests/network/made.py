"""Modules of every kind with random weights, and their ΔW in numpy float64, element by element where that is short."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

Parts = dict[str, torch.Tensor]
KEYS = [
    "lora_te_text_model_encoder_layers_0_mlp_fc1",
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    "lora_unet_mid_block_attentions_0_proj_in",
    "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_ff_net_2",
]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 31 * sum(shape))).to(dtype)


def lora(
    out: int, into: int, rank: int, alpha: float | None, seed: int = 0, kernel: int = 0, tucker: bool = False
) -> Parts:
    tail = (kernel, kernel) if kernel else ()
    ones = (1, 1) if kernel else ()
    parts = {"lora_up.weight": randn(out, rank, *ones, seed=seed)}
    if tucker:
        parts["lora_down.weight"] = randn(rank, into, 1, 1, seed=seed + 1)
        parts["lora_mid.weight"] = randn(rank, rank, *tail, seed=seed + 2)
    else:
        parts["lora_down.weight"] = randn(rank, into, *tail, seed=seed + 1)
    if alpha is not None:
        parts["alpha"] = torch.tensor(alpha)
    return parts


def loha(out: int, into: int, rank: int, alpha: float, seed: int = 0) -> Parts:
    shapes = {"w1_a": (out, rank), "w1_b": (rank, into), "w2_a": (out, rank), "w2_b": (rank, into)}
    parts = {f"hada_{n}": randn(*s, seed=seed + i) for i, (n, s) in enumerate(shapes.items())}
    return {**parts, "alpha": torch.tensor(alpha)}


def lokr(decomposed: str, alpha: float, seed: int = 0) -> Parts:
    """8 × 6 from 2 × 3 and 4 × 2; ``decomposed`` names the factors that are two matrices of rank 2."""
    parts: Parts = {}
    for number, shape in (("1", (2, 3)), ("2", (4, 2))):
        if number in decomposed:
            parts[f"lokr_w{number}_a"] = randn(shape[0], 2, seed=seed + int(number))
            parts[f"lokr_w{number}_b"] = randn(2, shape[1], seed=seed + 5 + int(number))
        else:
            parts[f"lokr_w{number}"] = randn(*shape, seed=seed + int(number))
    return {**parts, "alpha": torch.tensor(alpha)}


EVERY: dict[str, Parts] = {
    "linear": lora(8, 6, 3, 1.5),
    "no alpha": lora(8, 6, 3, None),
    "own scale": {**lora(8, 6, 3, 1.5), "scale": torch.tensor(0.7)},
    "1x1": lora(8, 6, 3, 1.5, kernel=1),
    "3x3": lora(8, 6, 3, 1.5, kernel=3),
    "tucker": lora(8, 6, 3, 1.5, kernel=3, tucker=True),
    "loha": loha(8, 6, 2, 1.0),
    "lokr": lokr("", 99.0),
    "lokr 1": lokr("1", 1.0),
    "lokr 2": lokr("2", 1.0),
    "lokr 12": lokr("12", 1.0),
    "full": {"diff": randn(8, 6), "diff_b": randn(8)},
    "norm": {"w_norm": randn(8), "b_norm": randn(8)},
}
"""Kinds whose ΔW does not depend on the base."""


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


def delta(parts: Mapping[str, torch.Tensor]) -> np.ndarray:
    """ΔW by the definition, in the layer's shape."""
    p = {name: array(part) for name, part in parts.items()}
    if "diff" in p or "w_norm" in p:
        return p.get("diff", p.get("w_norm"))
    if "lora_up.weight" in p:
        up, down = p["lora_up.weight"], p["lora_down.weight"]
        rank = down.shape[0]
        scale = p["scale"] if "scale" in p else p.get("alpha", rank) / rank
        up = up.reshape(up.shape[0], rank)
        if "lora_mid.weight" in p:
            down = np.einsum("nmkl,mj->njkl", p["lora_mid.weight"], down.reshape(down.shape[0], -1))
        return scale * np.tensordot(up, down, axes=1)
    if "hada_w1_a" in p:
        rank = p["hada_w1_b"].shape[0]
        return p["alpha"] / rank * (p["hada_w1_a"] @ p["hada_w1_b"]) * (p["hada_w2_a"] @ p["hada_w2_b"])
    first = p["lokr_w1"] if "lokr_w1" in p else p["lokr_w1_a"] @ p["lokr_w1_b"]
    second = p["lokr_w2"] if "lokr_w2" in p else p["lokr_w2_a"] @ p["lokr_w2_b"]
    whole = "lokr_w1" in p and "lokr_w2" in p
    return (1.0 if whole else p["alpha"] / 2) * np.kron(first, second)


def tensors(modules: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """As a file has them."""
    return {f"{key}.{part}": tensor for key, parts in modules.items() for part, tensor in parts.items()}


def some_lora(
    rank: int = 4, alpha: float = 2.0, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """A small LoRA with a text, a UNet, a 1×1 and a wide layer."""
    shapes = [(12, 8, 0), (10, 14, 0), (9, 9, 1), (8, 24, 0)]
    made = {k: lora(*s[:2], rank, alpha, seed + 7 * i, s[2]) for i, (k, s) in enumerate(zip(KEYS, shapes, strict=True))}
    return {name: t if name.endswith("alpha") else t.to(dtype) for name, t in tensors(made).items()}
