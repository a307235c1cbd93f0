"""Types that can be trained here: an :class:`AdapterLayer` in the place of each layer of the model.

The layers are our own, where PEFT has classes for the same: its forward casts every input to the adapter's fp32 and
scales all outputs instead of the few inner values, which its classes cannot be told to leave; a custom class can be
registered only since PEFT 0.12, privately, and importing PEFT takes seconds. A layer here is what torchtune calls an
``AdapterModule``: it says which of its parameters are trained, and the rest of training asks for no more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from lora_trainer.core.errors import InputError
from lora_trainer.core.plain_json import json_text
from lora_trainer.network.types.base import NetworkType, Shape


class AdapterLayer(nn.Module, ABC):
    """A frozen layer of the model and trained weights that change what it computes.

    The trained weights are parameters of the layer itself, fp32, never of layers within it: so nothing that goes
    through a model's layers (:func:`lora_trainer.model.compute.compute_in`) takes them for the model's own.

    Args:
        base: the layer, a linear or a convolution.
        shape: rank and alpha.

    Attributes:
        names: how a file calls the trained weights, in their order.
        scaling: what the effect is multiplied by; a tensor's gradient flows through.
        disabled: whether the base layer computes alone.
        cast: the trained weights in the type that is computed in, while
            :meth:`lora_trainer.network.adapters.Adapters.cast_once` holds them.
    """

    names: ClassVar[tuple[str, ...]]

    def __init__(self, base: nn.Module, shape: Shape) -> None:
        super().__init__()
        self.base_layer = base
        self.shape = shape
        self.scaling: float | torch.Tensor = shape.alpha / shape.rank
        self.disabled = False
        self.cast: tuple[torch.Tensor, ...] | None = None
        self.training = base.training

    @property
    def weight(self) -> Any:
        """The base layer's, as libraries ask for it."""
        return self.base_layer.weight

    @property
    def bias(self) -> Any:
        """The base layer's, as libraries ask for it."""
        return self.base_layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, out), or (B, in, H, W) → (B, out, H', W'), in the type that the base layer computes in."""
        result = self.base_layer(x)
        if self.disabled:
            return result
        weights = self.cast or tuple(weight.to(result.dtype) for weight in self.trained())
        return self.adapted(x.to(result.dtype), result, weights)

    @abstractmethod
    def trained(self) -> tuple[nn.Parameter, ...]:
        """The trained weights, in the order of :attr:`names`."""

    @abstractmethod
    def adapted(self, x: torch.Tensor, result: torch.Tensor, weights: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The layer's output.

        Args:
            x: its input.
            result: what the base layer makes of it.
            weights: the trained weights; all are of one type.
        """

    @abstractmethod
    def start(self, generator: torch.Generator) -> None:
        """Give the weights their initial values, which change nothing; what is drawn comes from ``generator``."""

    def constants(self) -> dict[str, torch.Tensor]:
        """What a file has of the module beside its trained weights."""
        return {}


class TrainableType(NetworkType, ABC):
    """A type that a run can train.

    Attributes:
        stored: the tensors of a file that can be trained on from.
        module: what ``ss_network_module`` calls it.
    """

    stored: ClassVar[tuple[str, ...]]
    module: ClassVar[str]

    @abstractmethod
    def layer(self, base: nn.Module, shape: Shape, dropout: float) -> AdapterLayer:
        """The layer that takes the place of ``base``.

        Args:
            base: a linear or a convolution of the model.
            shape: rank and alpha.
            dropout: share of its inputs that are left out while training.
        """

    @abstractmethod
    def shapes(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Shape]:
        """Rank and alpha of each module of a file, all of whose tensors have names of :attr:`stored`.

        Raises:
            InputError: the file is not complete, or damaged.
        """

    def foreign(self, names: Iterable[str]) -> str | None:
        """The first tensor of a file that this type has not."""
        return next((name for name in names if name.partition(".")[2] not in self.stored), None)

    def require(self, names: Iterable[str]) -> None:
        """Refuse a file of another type.

        Raises:
            InputError: a tensor that this type has not.
        """
        name = self.foreign(names)
        if name is not None:
            raise InputError(
                "network.continue_from: the file has {name}, which is not of the type {type} that this run trains; "
                "choose a file of this type.",
                field="network.continue_from",
                name=name[:200],
                type=self.name,
            )

    def metadata(self, shape: Shape, convolutions: Shape | None) -> dict[str, Any]:
        """``ss_network_…`` as sd-scripts writes them, but for the drop-out.

        Args:
            shape: rank and alpha of the run.
            convolutions: of its 3×3 convolutions, where it trains them.
        """
        arguments = {}
        if convolutions is not None:
            arguments = {"conv_dim": str(convolutions.rank), "conv_alpha": str(convolutions.alpha)}
        return {
            "ss_network_module": self.module,
            "ss_network_dim": shape.rank,
            "ss_network_alpha": shape.alpha,
            "ss_network_args": json_text(arguments),
        }


def incomplete(detail: str) -> InputError:
    """The sentence for a file that lacks something."""
    return InputError("This is not a complete LoRA file ({detail}).", field="network.continue_from", detail=detail)
