"""LoRA: ΔW = alpha / rank · up @ down (Hu et al., 2021); of convolutions (LoCon) too, some with a Tucker core."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from lora_trainer.core.errors import InputError
from lora_trainer.network.types.base import Parts, Shape, damaged, require_finite
from lora_trainer.network.types.lowrank import Factors, norm
from lora_trainer.network.types.trainable import AdapterLayer, TrainableType, incomplete


class LoRA(TrainableType):
    """``lora_down.weight``, ``lora_up.weight``, and ``lora_mid.weight`` between them in a Tucker decomposition."""

    name = "LoRA"
    signatures = (("lora_up.weight", "lora_down.weight"),)
    optional = ("lora_mid.weight",)
    matrices = True
    host_class = "NetworkModuleLora"
    stored = ("lora_down.weight", "lora_up.weight", "alpha")
    module = "networks.lora"

    def dim(self, parts: Parts) -> int | None:
        """The rank."""
        return parts["lora_down.weight"].shape[0]

    def factors(self, key: str, parts: Parts, *, finite: bool = True) -> tuple[Factors, tuple[int, ...]]:
        """As :meth:`NetworkType.factors`; a Tucker core is multiplied into ``down``, which keeps the rank."""
        if finite:
            require_finite(key, parts)
        up, down = parts["lora_up.weight"].double(), parts["lora_down.weight"].double()
        if "lora_mid.weight" in parts:
            try:
                down = torch.einsum("nmkl,mj->njkl", parts["lora_mid.weight"].double(), down.flatten(1))
            except RuntimeError as error:
                raise damaged(key) from error
        up = up.flatten(1)
        if down.ndim not in (2, 4) or up.shape[1] != down.shape[0] or not down.numel():
            raise damaged(key)
        return (up * self.scale(parts), down.flatten(1)), tuple(down.shape[1:])

    def layer(self, base: nn.Module, shape: Shape, dropout: float) -> AdapterLayer:
        """``base`` with new, zero weights of this shape."""
        return LoRALayer(base, shape, dropout)

    def shapes(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Shape]:
        """As :meth:`TrainableType.shapes`; a missing or zero alpha is the rank."""
        shapes: dict[str, Shape] = {}
        for name, tensor in tensors.items():
            key, _, part = name.partition(".")
            if part == "lora_down.weight":
                shapes[key] = _shape(key, tensor, tensors.get(f"{key}.alpha"))
        ups = {name.partition(".")[0] for name in tensors if name.endswith(".lora_up.weight")}
        alone = sorted(ups ^ shapes.keys())
        if alone or not shapes:
            raise incomplete(f"{alone[0]} lacks lora_up or lora_down" if alone else "no LoRA weights in it")
        return shapes

    def require(self, names: Iterable[str]) -> None:
        """Refuse what is no LoRA or LoCon: LoHa, LoKr, DoRA and others.

        Raises:
            InputError: a tensor that such a file has not.
        """
        name = self.foreign(names)
        if name is not None:
            raise InputError(
                "This file is not a plain LoRA (it has {name}); only LoRA and LoCon files can be used here.",
                field="network.continue_from",
                name=name[:200],
            )

    def _delta(self, key: str, parts: Parts, weight: torch.Tensor) -> torch.Tensor:
        (up, down), _ = self.factors(key, parts)
        return up @ down

    def _norm(self, key: str, parts: Parts) -> float | None:
        return norm(*self.factors(key, parts)[0])


def lora_parts(factors: Factors, row: tuple[int, ...], alpha: float) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA module; convolutions with a 1×1 ``up``, as kohya writes them.

    Args:
        factors: up [out, rank] and down [rank, in·kernel].
        row: the shape of one row of ``down``.
        alpha: what is divided by the rank to scale them.
    """
    up, down = factors
    rank = down.shape[0]
    return {
        "lora_down.weight": down.reshape(rank, *row),
        "lora_up.weight": up.reshape(up.shape[0], rank, *(1 for _ in row[1:])),
        "alpha": torch.tensor(float(alpha)),
    }


def _shape(key: str, down: torch.Tensor, alpha: torch.Tensor | None) -> Shape:
    if down.ndim < 2 or not down.numel() or (alpha is not None and alpha.numel() != 1):
        raise incomplete(f"{key} is damaged")
    rank = down.shape[0]
    return Shape(rank, (float(alpha) if alpha is not None else 0.0) or float(rank))


class LoRALayer(AdapterLayer):
    """W x + B (s A x), the scaling s on the few inner values instead of all outputs.

    Args:
        base: a linear, W [out, in], or a convolution, W [out, in, kh, kw].
        shape: rank r and alpha.
        dropout: share of the inputs of A that are left out while training.

    Attributes:
        lora_down: A, [r, in] or [r, in, kh, kw].
        lora_up: B, [out, r] or [out, r, 1, 1].
    """

    names = ("lora_down.weight", "lora_up.weight")

    def __init__(self, base: nn.Module, shape: Shape, dropout: float) -> None:
        super().__init__(base, shape)
        weight = self.weight
        made = {"dtype": torch.float32, "device": weight.device}
        ones = (1,) * (weight.ndim - 2)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.lora_down = nn.Parameter(torch.zeros(shape.rank, *weight.shape[1:], **made))
        self.lora_up = nn.Parameter(torch.zeros(weight.shape[0], shape.rank, *ones, **made))

    def trained(self) -> tuple[nn.Parameter, ...]:
        """A and B."""
        return self.lora_down, self.lora_up

    def adapted(self, x: torch.Tensor, result: torch.Tensor, weights: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The base layer's ``result`` and the low-rank product."""
        down, up = weights
        inner = self._inner(self.dropout(x), down) * self.scaling
        return result + (nn.functional.conv2d(inner, up) if up.ndim == 4 else nn.functional.linear(inner, up))

    def _inner(self, x: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        """A x; a convolution strides and pads as the base layer does."""
        if down.ndim == 2:
            return nn.functional.linear(x, down)
        return self.base_layer._conv_forward(x, down, None)  # type: ignore[operator]

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """A uniform in ±1/√inputs (Kaiming with a = √5), B zero."""
        bound = 1 / math.sqrt(self.lora_down[0].numel())
        drawn = torch.rand(self.lora_down.shape, generator=generator)
        self.lora_down.copy_((2 * drawn - 1) * bound)
        self.lora_up.zero_()

    def constants(self) -> dict[str, torch.Tensor]:
        """Alpha, a number in fp32."""
        return {"alpha": torch.tensor(float(self.shape.alpha))}
