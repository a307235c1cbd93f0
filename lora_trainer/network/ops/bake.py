"""Block weights written into a file, so that it does by itself what the prompt asked for.

Exact where a module's effect is proportional to a number in the file: alpha is scaled and written in fp32 (a halved
alpha changes 4 % of the layer weights), a factor of 0 leaves the module out. A preview that uses :func:`baked_scale`
computes the same bits. DoRA and OFT are not proportional to alpha: only 0 and 1 are exact there; a DoRA in between is
written as its full difference, which needs the checkpoint's weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lora_trainer.core.errors import InputError
from lora_trainer.network import modules as kinds
from lora_trainer.network.modules import Parts, damaged, dim_of, full_delta, group, is_dora, kind_of, require_sound

Base = Callable[[str], "torch.Tensor | None"]
"""The checkpoint's weight for a module name, or ``None``."""

_ATTENTION = re.compile(r"(lora_te\d?_text_model_encoder_layers_\d+_self_attn_)(?:q|k|v|out)_proj")
_PROPORTIONAL = {
    kinds.GLORA: ("a1.weight", "b1.weight", "bias"),
    kinds.IA3: ("weight", "bias"),
    kinds.FULL: ("diff", "diff_b", "bias"),
    kinds.NORM: ("w_norm", "b_norm", "bias"),
    kinds.LOKR: ("lokr_w1", "bias"),
}
"""For kinds where the WebUI disregards alpha: the tensors that the effect is proportional to."""


@dataclass(frozen=True)
class Baked:
    """A baked network.

    Attributes:
        modules: name → part → tensor, types as they will be stored.
        changed: modules whose scale was changed.
        dropped: modules with the factor 0, which are left out (but for parts of an attention that others need).
        expanded: DoRA modules that became full differences.
    """

    modules: dict[str, dict[str, torch.Tensor]]
    changed: tuple[str, ...]
    dropped: tuple[str, ...]
    expanded: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """How many modules were kept, changed, dropped and expanded."""
        return {
            "kept": len(self.modules),
            "changed": len(self.changed),
            "dropped": len(self.dropped),
            "expanded": len(self.expanded),
        }


def bake(tensors: Mapping[str, torch.Tensor], ratios: Mapping[str, float], base: Base | None = None) -> Baked:
    """Scale each module by its factor.

    Args:
        tensors: of the file.
        ratios: module name → factor, as :func:`lora_trainer.network.blocks.weights.factors` makes them; 1 for others.
        base: needed for DoRA modules at factors other than 0 and 1.

    Raises:
        InputError: nothing would be left, an unknown kind of module, or a factor that cannot be written exactly.
    """
    made: dict[str, dict[str, torch.Tensor]] = {}
    changed: list[str] = []
    dropped: list[str] = []
    expanded: list[str] = []
    groups = group(tensors)
    for key, parts in groups.items():
        ratio = 1.0 if key == kinds.EMBEDDING else ratios.get(key, 1.0)
        if not math.isfinite(ratio):
            raise InputError("The weight of {key} is not a number; give one.", key=key)
        if ratio == 0 and not _is_needed(key, parts, groups, ratios):
            dropped.append(key)
            continue
        if key != kinds.EMBEDDING:
            require_sound(key, parts)
        made[key] = _alpha_fp32(parts) if ratio == 1 else baked_parts(key, parts, ratio, base)
        if ratio != 1:
            (expanded if is_dora(parts) else changed).append(key)
    if not made:
        raise InputError(
            "With these weights nothing of the LoRA is left; give at least one block a weight other than 0."
        )
    return Baked(made, tuple(changed), tuple(dropped), tuple(expanded))


def baked_parts(key: str, parts: Parts, ratio: float, base: Base | None = None) -> dict[str, torch.Tensor]:
    """One module's tensors with its effect multiplied by ``ratio`` (not 0).

    Raises:
        InputError: an unknown kind, an OFT, or a DoRA without ``base``.
    """
    kind = kind_of(key, parts)
    if kind == kinds.OFT or is_dora(parts):
        return {"diff": _full_difference(key, kind, parts, ratio, base)}
    if "scale" in parts:  # stands before alpha in the WebUI
        return {**_alpha_fp32(parts), "scale": parts["scale"].float() * ratio}
    dim = dim_of(kind, parts)
    if dim:
        return {**parts, "alpha": torch.tensor(scaled_alpha(_number(parts, "alpha"), dim, ratio))}
    made = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in parts.items()}
    # All of the module's tensors are in fp32 then: the WebUI multiplies them with each other.
    return {name: tensor * ratio if name in _PROPORTIONAL[kind] else tensor for name, tensor in made.items()}


def baked_scale(kind: str, parts: Parts, ratio: float) -> float:
    """Alpha / dim of the module after baking, to the bit: what a preview must use in place of ``calc_scale``.

    Kinds that have no dim give 1 here: their tensors are scaled instead (see :func:`baked_parts`).
    """
    return preview_scale(_number(parts, "alpha"), _number(parts, "scale"), dim_of(kind, parts), ratio)


def preview_scale(alpha: float | None, scale: float | None, dim: int | None, ratio: float) -> float:
    """:func:`baked_scale` from a module's numbers; those that it does not have are ``None``."""
    if scale is not None:
        return float(torch.tensor(scale, dtype=torch.float32) * ratio)
    return scaled_alpha(alpha, dim, ratio) / dim if dim else 1.0


def scaled_alpha(alpha: float | None, dim: int, ratio: float) -> float:
    """The alpha that is written, rounded to fp32; a missing one counts as the dim."""
    value = float(dim) if alpha is None else alpha
    return float(torch.tensor(value * ratio, dtype=torch.float64).float())


def record(lbw: str, lbwe: str, te: float, unet: float, baked: Baked, **more: Any) -> dict[str, Any]:
    """What the metadata says about a baking; ``lbw`` with every random value written out."""
    return {"made": "baked", "lbw": lbw, "lbwe": lbwe, "te": te, "unet": unet, **more, **baked.counts()}


def _is_needed(key: str, parts: Parts, others: Iterable[str], ratios: Mapping[str, float]) -> bool:
    """Must a module stay although it does nothing?

    OpenCLIP's attention is one layer, and the WebUI uses its parts only when all four are there (networks.py:492).
    """
    match = _ATTENTION.fullmatch(key)
    if not match or is_dora(parts):
        return False
    same = [other for other in others if other.startswith(match[1]) and _ATTENTION.fullmatch(other)]
    return any(ratios.get(other, 1.0) for other in same)


def _number(parts: Parts, name: str) -> float | None:
    return float(parts[name]) if name in parts else None


def _alpha_fp32(parts: Parts) -> dict[str, torch.Tensor]:
    return {name: part.float() if name == "alpha" else part for name, part in parts.items()}


def _full_difference(key: str, kind: str, parts: Parts, ratio: float, base: Base | None) -> torch.Tensor:
    """Ratio · (DoRA(W) − W), with DoRA(W) = m · V / ‖V‖ and V = W + ΔW (Liu et al., 2024)."""
    if kind == kinds.OFT:
        raise InputError(
            "{key} is an OFT module, which can only be baked at 0 or 1; set its block to one of these.", key=key
        )
    weight = base(key) if base else None
    if weight is None:
        raise InputError(
            "{key} is a DoRA module, whose effect at {ratio:g} depends on the checkpoint; name the checkpoint, or set "
            "its block to 0 or 1.",
            key=key,
            ratio=ratio,
        )
    weight = weight.double()
    magnitude = parts["dora_scale"].double()
    if weight.ndim not in (2, 4) or magnitude.numel() not in weight.shape[:2]:
        raise damaged(key)
    moved = weight + full_delta(key, kind, parts, tuple(weight.shape))
    # The magnitude is of each input (as kohya and LyCORIS write it), or of each output (LyCORIS' wd_on_out).
    per_output = magnitude.shape[:1] == weight.shape[:1] and magnitude.numel() == weight.shape[0]
    over = [axis for axis in range(weight.ndim) if axis != (0 if per_output else 1)]
    length = torch.linalg.vector_norm(moved, dim=over, keepdim=True)
    shape = [1] * weight.ndim
    shape[0 if per_output else 1] = -1
    changed = moved * (magnitude.reshape(shape) / length) - weight
    return (changed * ratio).to(parts["dora_scale"].dtype)
