"""What a type of network is: how its modules are told in a file, and everything that is done with one of them.

A *type* is a formula for ΔW and the tensors that a file stores for it: LoRA, LoHa, IA³ … One file of this package has
one type, as PEFT has one folder a tuner; :data:`lora_trainer.network.types.TYPES` registers them. Nothing outside of
this package asks for a type by its name or its tensors: reading, norms, block weights, baking, merging, the host's
view, training and metadata ask :class:`NetworkType`.

Kinds and formulas are those of the WebUI's built-in Lora extension (v1.10.1, ``network_*.py``), which is where the
files are used: ΔW = scale · f(tensors) with scale = alpha / dim, or 1 where a type has no dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lora_trainer.core.errors import InputError
from lora_trainer.network.types.lowrank import Factors

Parts = Mapping[str, torch.Tensor]
"""The tensors of one module: what stands behind the first dot of their names → tensor."""
Base = Callable[[str], "torch.Tensor | None"]
"""The checkpoint's weight for a module name, or ``None``."""
MAGNITUDE = "dora_scale"
"""The tensor that makes a DoRA of a module."""
NUMBERS = ("alpha", "scale")
"""Tensors of one number, which modules of all types may have."""
_LARGEST = 1e150
"""Norms beyond it cannot be squared, and mean nothing."""


@dataclass(frozen=True)
class Shape:
    """Rank and alpha of one adapted module; a type without a rank has 1 and 1."""

    rank: int
    alpha: float

    def is_stored_as(self, stored: Shape) -> bool:
        """Whether a file with these numbers is one of this shape.

        Kohya stores alpha in the weights' type: 0.7 comes back from fp16 as 0.7001953. And what a person reads of it in
        a sentence of ours has six digits.
        """
        rounded = (
            float(torch.tensor(self.alpha).to(dtype)) for dtype in (torch.float32, torch.float16, torch.bfloat16)
        )
        return self.rank == stored.rank and (
            stored.alpha in rounded or math.isclose(self.alpha, stored.alpha, rel_tol=1e-5)
        )


class NetworkType:
    """One type of network. Its objects have no state: the modules of files are given to each method.

    Every method has a default, so that a type says only where it differs.

    Attributes:
        name: as a person calls it.
        signatures: sets of tensors; a module that has all of one set is of this type.
        optional: its other tensors.
        matrices: whether the tensors of a signature have at least two dimensions.
        proportional: the tensors that the effect is proportional to where there is no dim; ``None`` where it is
            proportional to no number in the file.
        host_class: how the WebUI's Lora extension calls its modules of this type.
        host_tensors: attributes of these modules that stand for ``proportional``.
    """

    name: ClassVar[str] = ""
    signatures: ClassVar[tuple[tuple[str, ...], ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()
    matrices: ClassVar[bool] = False
    proportional: ClassVar[tuple[str, ...] | None] = ()
    host_class: ClassVar[str] = ""
    host_tensors: ClassVar[tuple[str, ...]] = ()

    # -------------------------------------------------------------- in a file
    def called(self) -> str:
        """The name of a module's type for a person."""
        return self.name

    def tensor_names(self) -> frozenset[str]:
        """All tensors that a module of this type may have, but for those of all types."""
        return frozenset(self.optional).union(*self.signatures)

    def recognises(self, key: str, parts: Parts) -> bool:
        """Whether a module is of this type.

        Raises:
            InputError: it is, but its tensors have impossible sizes.
        """
        for needed in self.signatures:
            if all(part in parts for part in needed):
                if any(parts[number].numel() != 1 for number in NUMBERS if number in parts):
                    raise damaged(key)
                if self.matrices and any(not parts[part].numel() or parts[part].ndim < 2 for part in needed):
                    raise damaged(key)
                return True
        return False

    def require_sound(self, key: str, parts: Parts) -> None:
        """Refuse a module that the WebUI could not load: a copy would be as damaged, and nobody would know why.

        Raises:
            InputError: NaN or infinity, or tensors that do not fit each other.
        """
        self.norm(key, parts)

    # -------------------------------------------------------------- numbers
    def dim(self, parts: Parts) -> int | None:
        """What alpha is divided by, which is the rank that a person chose; ``None`` where alpha is disregarded."""
        return None

    def scale(self, parts: Parts) -> float:
        """``scale`` if the module has one, else alpha / dim, else 1."""
        if "scale" in parts:
            return float(parts["scale"])
        dim = self.dim(parts)
        return float(parts["alpha"]) / dim if dim and "alpha" in parts else 1.0

    # -------------------------------------------------------------- ΔW
    def delta(self, key: str, parts: Parts, weight: torch.Tensor) -> torch.Tensor:
        """ΔW of a layer at weight 1, float64 in the layer's shape.

        Args:
            key: the module's name.
            parts: its tensors.
            weight: the layer's weight in the checkpoint; types that do not depend on it take its shape alone.

        Raises:
            InputError: damaged, or a type whose ΔW nobody needs here.
        """
        try:
            return self._delta(key, parts, weight).reshape(weight.shape)
        except RuntimeError as error:
            raise damaged(key) from error

    def norm(self, key: str, parts: Parts) -> float | None:
        """‖ΔW‖ (Frobenius) at weight 1; ``None`` where it depends on the checkpoint.

        Raises:
            InputError: damaged, or no numbers.
        """
        require_finite(key, parts)
        try:
            size = self._norm(key, parts)
        except RuntimeError as error:
            raise damaged(key) from error
        if size is not None and size > _LARGEST:
            raise _no_numbers(key)
        return size

    def factors(self, key: str, parts: Parts, *, finite: bool = True) -> tuple[Factors, tuple[int, ...]]:
        """ΔW as up [out, rank] and down [rank, in·kernel] with the scale in ``up``, float64.

        Types that have it can be merged with each other and resized; what comes out is a LoRA.

        Args:
            key: the module's name.
            parts: its tensors.
            finite: refuse NaN and infinity.

        Returns:
            The factors, and the shape of one row of ``down`` ([in] or [in, kh, kw]).

        Raises:
            InputError: a type whose ΔW has no low rank, or damaged.
        """
        raise no_factors(key, self.name)

    def _delta(self, key: str, parts: Parts, weight: torch.Tensor) -> torch.Tensor:
        raise InputError(
            "{key}: {kind} is a factor of the checkpoint's weights and has no difference of its own.",
            key=key,
            kind=self.name,
        )

    def _norm(self, key: str, parts: Parts) -> float | None:
        return None

    # -------------------------------------------------------------- block weights
    def scaled(self, key: str, parts: Parts, ratio: float, base: Base | None = None) -> dict[str, torch.Tensor]:
        """The tensors with the module's effect multiplied by ``ratio`` (not 0).

        Args:
            key: the module's name.
            parts: its tensors.
            ratio: the block weight.
            base: the checkpoint's weights, for what depends on them.

        Raises:
            InputError: a type that cannot be scaled exactly, or not without ``base``.
        """
        if "scale" in parts:  # stands before alpha in the WebUI
            return {**with_exact_alpha(parts), "scale": parts["scale"].float() * ratio}
        dim = self.dim(parts)
        if dim:
            alpha = float(parts["alpha"]) if "alpha" in parts else None
            return {**parts, "alpha": torch.tensor(scaled_alpha(alpha, dim, ratio))}
        # All of the module's tensors are in fp32 then: the WebUI multiplies them with each other.
        made = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in parts.items()}
        proportional = self.proportional or ()
        return {name: tensor * ratio if name in proportional else tensor for name, tensor in made.items()}

    def scale_in_host(self, module: Any, ratio: float) -> None:
        """Multiply the effect of a module of the host (a copy of its own) by ``ratio``, to the bit as baked."""
        if module.scale is not None:
            module.scale = preview_scale(module.alpha, module.scale, module.dim, ratio)
        elif module.dim:
            module.alpha = scaled_alpha(module.alpha, module.dim, ratio)
        else:
            for name, value in vars(module).items():
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    setattr(module, name, value.float() * ratio if name in self.host_tensors else value.float())


def preview_scale(alpha: float | None, scale: float | None, dim: int | None, ratio: float) -> float:
    """Alpha / dim of a module after baking, to the bit; numbers that it does not have are ``None``.

    Modules without a dim give 1: their tensors are scaled instead (see :meth:`NetworkType.scaled`).
    """
    if scale is not None:
        return float(torch.tensor(scale, dtype=torch.float32) * ratio)
    return scaled_alpha(alpha, dim, ratio) / dim if dim else 1.0


def scaled_alpha(alpha: float | None, dim: int, ratio: float) -> float:
    """The alpha that is written, rounded to fp32; a missing one counts as the dim."""
    value = float(dim) if alpha is None else alpha
    return float(torch.tensor(value * ratio, dtype=torch.float64).float())


def with_exact_alpha(parts: Parts) -> dict[str, torch.Tensor]:
    """The tensors with alpha in fp32: a halved alpha changes 4 % of the layer weights."""
    return {name: part.float() if name == "alpha" else part for name, part in parts.items()}


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether it has neither NaN nor infinity; torch cannot tell that of eight-bit floats."""
    return bool(torch.isfinite(tensor.float() if tensor.dtype.itemsize == 1 else tensor).all())


def require_finite(key: str, parts: Parts) -> None:
    """Refuse weights that nothing can be computed from; all that fp32 can say, float64 can multiply.

    Raises:
        InputError: NaN or infinity in it, which a training leaves that went wrong.
    """
    if not all(is_finite(part.float()) for part in parts.values()):
        raise _no_numbers(key)


def _no_numbers(key: str) -> InputError:
    return InputError(
        "{key} has weights that are no numbers (NaN or infinity), as a training leaves them that went wrong; use an "
        "earlier file of it.",
        key=key,
    )


def damaged(key: str) -> InputError:
    """The sentence for tensors of impossible sizes."""
    return InputError("{key} is damaged: its tensors do not fit each other; get the file again.", key=key)


def no_factors(key: str, name: str) -> InputError:
    """The sentence for a type that cannot be merged or resized."""
    return InputError(
        "{key} is not a plain LoRA module ({kind}); only LoRA and LoCon files can be merged, resized or joined.",
        key=key,
        kind=name,
    )


def tucker(core: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Tucker product: core [i, j, k, l], a [i, p], b [j, r] → [p, r, k, l], float64."""
    return torch.einsum("ijkl,jr,ip->prkl", core.double(), b.double(), a.double())
