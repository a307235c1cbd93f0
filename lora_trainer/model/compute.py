"""Frozen layers that compute in another type than their weights have, and keep no copy of them.

Autocast casts a layer's weight and autograd keeps the cast copy until backward: over all layers a second copy of the
model (+ 1.7 GB for SD1.5, + 5.1 GB for SDXL). Here autograd keeps the parameter itself, and backward casts it again.
Gradients flow to the inputs only. A layer whose weights have the wanted type is left as it is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.grad import conv2d_input


def compute_in(part: nn.Module, dtype: torch.dtype) -> None:
    """Let the frozen layers of a view compute in ``dtype``, whatever type their weights have.

    Args:
        part: a view of the UNet or the text encoder, with or without adapters; their weights keep their own type.
        dtype: of inputs, outputs and arithmetic. The weights stay as they are.
    """
    for module in part.modules():
        if type(module) in _CASTING and module.weight.dtype != dtype:
            module.__class__ = _CASTING[type(module)]
        if isinstance(module, _Casting):
            module.compute_type = dtype


class _Casting:
    """A layer that casts its input and, each time that it is used, its weights."""

    compute_type: torch.dtype

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        """What the layer computes, in ``compute_type``."""
        return self._function.apply(x.to(self.compute_type), self.weight, self.bias, self)


def _cast(weight: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    return None if weight is None else weight.to(like.dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, layer: Any) -> Any:
        ctx.save_for_backward(weight)
        return F.linear(x, weight.to(x.dtype), _cast(bias, x))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return grad @ weight.to(grad.dtype), None, None, None


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, layer: Any) -> Any:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.layer = x.shape, layer
        return layer._conv_forward(x, weight.to(x.dtype), _cast(bias, x))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (weight,), layer = ctx.saved_tensors, ctx.layer
        casted = weight.to(grad.dtype)
        found = conv2d_input(ctx.shape, casted, grad, layer.stride, layer.padding, layer.dilation, layer.groups)
        return found, None, None, None


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, layer: Any) -> Any:
        x = x.contiguous()
        ctx.sizes = (x.shape[0], x.shape[1], x[0, 0].numel(), layer.num_groups)
        weights = (weight.to(x.dtype), _cast(bias, x))
        output, mean, rstd = torch.ops.aten.native_group_norm(x, *weights, *ctx.sizes, layer.eps)
        ctx.save_for_backward(x, mean, rstd, weight)
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, mean, rstd, weight = ctx.saved_tensors
        found = torch.ops.aten.native_group_norm_backward(
            grad.contiguous(), x, mean, rstd, weight.to(x.dtype), *ctx.sizes, [True, False, False]
        )
        return found[0], None, None, None


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, layer: Any) -> Any:
        ctx.shape = layer.normalized_shape
        output, mean, rstd = torch.native_layer_norm(x, ctx.shape, weight.to(x.dtype), _cast(bias, x), layer.eps)
        ctx.save_for_backward(x, mean, rstd, weight, bias)
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, mean, rstd, weight, bias = ctx.saved_tensors
        found = torch.ops.aten.native_layer_norm_backward(
            grad, x, ctx.shape, mean, rstd, weight.to(x.dtype), _cast(bias, x), [True, False, False]
        )
        return found[0], None, None, None


class CastingLinear(_Casting, nn.Linear):
    """y = x Wᵀ + b."""

    _function = _Linear


class CastingConv2d(_Casting, nn.Conv2d):
    """A convolution, padded with zeros."""

    _function = _Conv2d


class CastingGroupNorm(_Casting, nn.GroupNorm):
    """Group normalisation (Wu & He, 2018)."""

    _function = _GroupNorm


class CastingLayerNorm(_Casting, nn.LayerNorm):
    """Layer normalisation (Ba et al., 2016)."""

    _function = _LayerNorm


class CastingEmbedding(_Casting, nn.Embedding):
    """Rows of a table; autograd keeps their numbers only."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Numbers (…) → rows (…, C) in ``compute_type``."""
        return nn.Embedding.forward(self, ids).to(self.compute_type)


_CASTING: dict[type, type] = {
    nn.Linear: CastingLinear,
    nn.Conv2d: CastingConv2d,
    nn.GroupNorm: CastingGroupNorm,
    nn.LayerNorm: CastingLayerNorm,
    nn.Embedding: CastingEmbedding,
}
