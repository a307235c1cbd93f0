"""A LoRA from two checkpoints: the best low-rank approximation of what tuning changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from lora_trainer.core.errors import InputError
from lora_trainer.model.family import ModelFamily
from lora_trainer.network.ops.checkpoint_weights import CheckpointWeights
from lora_trainer.network.ops.merge import Progress
from lora_trainer.network.ops.provenance import in_precision
from lora_trainer.network.types import LORA, lowrank
from lora_trainer.network.types.base import Shape, is_finite
from lora_trainer.network.types.lora import lora_parts


@dataclass(frozen=True)
class Extracted:
    """The LoRA of a difference.

    Attributes:
        modules: name → part → tensor in the stored precision.
        error: ‖LoRA − difference‖ / ‖difference‖ over the layers it covers.
        covered: ‖difference in these layers‖ / ‖difference in all linear and convolution layers‖.
        unchanged: layers without any difference, which are left out.
    """

    modules: dict[str, dict[str, torch.Tensor]]
    error: float
    covered: float
    unchanged: int


def extract(
    base: CheckpointWeights,
    tuned: CheckpointWeights,
    rank: int,
    *,
    conv_rank: int | None = None,
    clamp_quantile: float = 1.0,
    text_threshold: float = 0.0,
    precision: str = "fp16",
    progress: Progress = lambda done, of: None,
) -> Extracted:
    """The truncated singular value decomposition of tuned − base, layer by layer.

    Args:
        base: the checkpoint that was tuned.
        tuned: the result.
        rank: of the LoRA, at most a layer's smaller side.
        conv_rank: of the 3×3 convolutions; ``None`` leaves the resnets out, as a plain LoRA does.
        clamp_quantile: values beyond this quantile of both factors are cut off (sd-scripts: 0.99); 1 leaves them.
        text_threshold: the text encoder counts as unchanged when no weight differs by more (sd-scripts: 0.01).
        precision: ``fp16``, ``bf16`` or ``fp32``.
        progress: called with layers done and in all.

    Raises:
        InputError: numbers out of range, checkpoints of different shapes, or no difference.
    """
    _check(rank, conv_rank, clamp_quantile)
    shared = _shared(base, tuned)
    skip_text = not _text_differs(base, tuned, shared, text_threshold)
    modules: dict[str, dict[str, torch.Tensor]] = {}
    wrong = inside = everything = 0.0
    unchanged = 0
    for done, key in enumerate(shared, 1):
        change = _difference(base, tuned, key)
        size = float(torch.linalg.norm(change)) ** 2
        everything += size
        ours = _wanted(base.family, key, conv_rank is not None) and not (skip_text and _is_text(base.family, key))
        if ours and size:
            parts = in_precision(_decomposed(change, rank, conv_rank, clamp_quantile), precision)
            modules[key] = parts
            (up, down), _ = LORA.factors(key, parts, finite=False)
            wrong += float(torch.linalg.norm(up @ down - change.flatten(1))) ** 2
            inside += size
        unchanged += ours and not size
        progress(done, len(shared))
    if not modules:
        raise InputError(
            "{tuned} does not differ from {base} in any layer that a LoRA has; choose two different checkpoints.",
            tuned=tuned.path,
            base=base.path,
        )
    return Extracted(modules, math.sqrt(wrong / inside), math.sqrt(inside / everything), unchanged)


def metadata(family: ModelFamily, rank: int, conv_rank: int | None) -> dict[str, str]:
    """The entries that other programs look for in a LoRA file."""
    convolutions = None if conv_rank is None else Shape(conv_rank, float(conv_rank))
    entries = LORA.metadata(Shape(rank, float(rank)), convolutions)
    return {
        "ss_v2": str(family.is_v2),
        "ss_base_model_version": family.base_version,
        **{key: str(value) for key, value in entries.items()},
    }


def _check(rank: int, conv_rank: int | None, clamp_quantile: float) -> None:
    least = min(n for n in (rank, conv_rank) if n is not None)
    if least < 1:
        raise InputError("A rank must be at least 1, not {rank}.", rank=least)
    if not 0.5 < clamp_quantile <= 1:
        raise InputError("The clamp quantile must be above 0.5 and at most 1, not {value:g}.", value=clamp_quantile)


def _wanted(family: ModelFamily, key: str, convolutions: bool) -> bool:
    return any(part.adapts(key, convolutions=convolutions) for part in family.parts)


def _is_text(family: ModelFamily, key: str) -> bool:
    return key.startswith(tuple(part.prefix for part in family.encoders))


def _shared(base: CheckpointWeights, tuned: CheckpointWeights) -> list[str]:
    """The layers of both.

    Raises:
        InputError: one has layers that the other lacks.
    """
    apart = sorted(base.keys.keys() ^ tuned.keys.keys())
    if apart:
        raise _other_shape(apart[0], base, tuned)
    return list(base.keys)


def _difference(base: CheckpointWeights, tuned: CheckpointWeights, key: str) -> torch.Tensor:
    """Tuned − base of a layer, float64. Raises :class:`InputError` where it cannot be computed."""
    before, after = base(key), tuned(key)
    if before is None or after is None or before.shape != after.shape:
        raise _other_shape(key, base, tuned)
    change = after.double() - before.double()
    if not is_finite(change):
        broken = tuned if is_finite(before.double()) else base
        raise InputError(
            "{path} has weights that are no numbers (NaN or infinity) in {key}; get the checkpoint again.",
            path=broken.path,
            key=key,
        )
    return change


def _text_differs(base: CheckpointWeights, tuned: CheckpointWeights, keys: list[str], threshold: float) -> bool:
    text = [key for key in keys if _is_text(base.family, key)]
    return any(float(_difference(base, tuned, key).abs().max()) > threshold for key in text)


def _decomposed(
    change: torch.Tensor, rank: int, conv_rank: int | None, clamp_quantile: float
) -> Mapping[str, torch.Tensor]:
    row = tuple(change.shape[1:])
    wanted = conv_rank or rank if row[1:] not in ((), (1, 1)) else rank
    u, s, vh = lowrank.truncated_svd(change.flatten(1), min(wanted, change.shape[0], change.shape[1]))
    if clamp_quantile == 1:
        return lora_parts(lowrank.balanced(u, s, vh), row, len(s))
    up = u * s  # the quantile is meant for U·S and Vh, as sd-scripts splits them
    # numpy, since torch.quantile takes no more than 16 million values
    limit = float(np.quantile(torch.cat([up.flatten(), vh.flatten()]).numpy(), clamp_quantile))
    return lora_parts((up.clamp(-limit, limit), vh.clamp(-limit, limit)), row, len(s))


def _other_shape(key: str, base: CheckpointWeights, tuned: CheckpointWeights) -> InputError:
    return InputError(
        "{base} and {tuned} are not of one shape ({key} differs); choose a checkpoint and what was tuned from it.",
        base=base.path,
        tuned=tuned.path,
        key=key,
    )
