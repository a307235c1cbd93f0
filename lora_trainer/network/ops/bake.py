"""Block weights written into a file, so that it does by itself what the prompt asked for.

Exact where a module's effect is proportional to a number in the file: alpha is scaled and written in fp32 (a halved
alpha changes 4 % of the layer weights), a factor of 0 leaves the module out. A preview in the host computes the same
bits. DoRA and OFT are not proportional to alpha: only 0 and 1 are exact there; a DoRA in between is written as its full
difference, which needs the checkpoint's weights. Each type says how it is scaled, in the file and in the host
(:mod:`lora_trainer.network.types`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lora_trainer.core.errors import InputError
from lora_trainer.network.modules import EMBEDDING, group
from lora_trainer.network.types import type_of
from lora_trainer.network.types.base import Base, Parts, with_exact_alpha
from lora_trainer.network.types.dora import is_dora

_ATTENTION = re.compile(r"(lora_te\d?_text_model_encoder_layers_\d+_self_attn_)(?:q|k|v|out)_proj")


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
        ratio = 1.0 if key == EMBEDDING else ratios.get(key, 1.0)
        if not math.isfinite(ratio):
            raise InputError("The weight of {key} is not a number; give one.", key=key)
        if ratio == 0 and not _is_needed(key, parts, groups, ratios):
            dropped.append(key)
            continue
        if key != EMBEDDING:
            type_of(key, parts).require_sound(key, parts)
        made[key] = with_exact_alpha(parts) if ratio == 1 else baked_parts(key, parts, ratio, base)
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
    return type_of(key, parts).scaled(key, parts, ratio, base)


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
