"""DoRA: a module of another type with a magnitude; DoRA(W) = m · V / ‖V‖ with V = W + ΔW (Liu et al., 2024)."""

from __future__ import annotations

import torch

from lora_trainer.core.errors import InputError
from lora_trainer.network.types.base import (
    MAGNITUDE,
    Base,
    NetworkType,
    Parts,
    damaged,
    no_factors,
    require_finite,
)
from lora_trainer.network.types.lowrank import Factors


class DoRA(NetworkType):
    """``dora_scale`` beside the tensors of another type. Its effect is proportional to no number in the file.

    Args:
        inner: the other type.
    """

    name = "DoRA"
    optional = (MAGNITUDE,)
    proportional = None

    def __init__(self, inner: NetworkType) -> None:
        self.inner = inner

    def called(self) -> str:
        """``DoRA (LoRA)``."""
        return f"{self.name} ({self.inner.called()})"

    def require_sound(self, key: str, parts: Parts) -> None:
        """Refuse it where the other type would, and a magnitude that is empty or no numbers."""
        self.inner.require_sound(key, _without_magnitude(parts))
        require_finite(key, parts)
        if not parts[MAGNITUDE].numel():
            raise damaged(key)

    def dim(self, parts: Parts) -> int | None:
        """That of the other type."""
        return self.inner.dim(parts)

    def factors(self, key: str, parts: Parts, *, finite: bool = True) -> tuple[Factors, tuple[int, ...]]:
        """Refuse it: what a DoRA adds has no low rank; raises :class:`InputError`."""
        raise no_factors(key, self.name)

    def scaled(self, key: str, parts: Parts, ratio: float, base: Base | None = None) -> dict[str, torch.Tensor]:
        """The whole difference, ratio · (DoRA(W) − W).

        Raises:
            InputError: ``base`` does not have the weight, the other type cannot be scaled, or damaged.
        """
        if self.inner.proportional is None:
            return self.inner.scaled(key, parts, ratio, base)
        weight = base(key) if base else None
        if weight is None:
            raise InputError(
                "{key} is a DoRA module, whose effect at {ratio:g} depends on the checkpoint; name the checkpoint, or "
                "set its block to 0 or 1.",
                key=key,
                ratio=ratio,
            )
        if weight.ndim not in (2, 4) or parts[MAGNITUDE].numel() not in weight.shape[:2]:
            raise damaged(key)
        return {"diff": (self.delta(key, parts, weight) * ratio).to(parts[MAGNITUDE].dtype)}

    def _delta(self, key: str, parts: Parts, weight: torch.Tensor) -> torch.Tensor:
        """DoRA(W) − W."""
        weight, magnitude = weight.double(), parts[MAGNITUDE].double()
        moved = weight + self.inner.delta(key, _without_magnitude(parts), weight)
        # The magnitude is of each input (as kohya and LyCORIS write it), or of each output (LyCORIS' wd_on_out).
        per_output = magnitude.shape[:1] == weight.shape[:1] and magnitude.numel() == weight.shape[0]
        over = [axis for axis in range(weight.ndim) if axis != (0 if per_output else 1)]
        length = torch.linalg.vector_norm(moved, dim=over, keepdim=True)
        shape = [1] * weight.ndim
        shape[0 if per_output else 1] = -1
        return moved * (magnitude.reshape(shape) / length) - weight


def _without_magnitude(parts: Parts) -> Parts:
    return {name: part for name, part in parts.items() if name != MAGNITUDE}


def is_dora(parts: Parts) -> bool:
    """Does it hold a magnitude, so that its effect is not proportional to its scale?"""
    return MAGNITUDE in parts
