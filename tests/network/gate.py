"""A type of network that is not in the package: all that a new type takes is a file like this and its line in TYPES.

ΔW = diag(v) W, a learned vector that multiplies the outputs of a layer (as IA³, Liu et al., 2022).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from lora_trainer.network.types.base import Parts, Shape
from lora_trainer.network.types.trainable import AdapterLayer, TrainableType, incomplete

ONE = Shape(1, 1.0)


class Gate(TrainableType):
    """``gate_v``, one number for each output."""

    name = "Gate"
    signatures = (("gate_v",),)
    proportional = ("gate_v",)
    host_class = "NetworkModuleGate"
    host_tensors = ("v",)
    stored = ("gate_v",)
    module = "networks.gate"

    def layer(self, base: nn.Module, shape: Shape, dropout: float) -> AdapterLayer:
        return GateLayer(base, ONE)

    def shapes(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Shape]:
        if not tensors or any(tensor.ndim != 1 for tensor in tensors.values()):
            raise incomplete("no vectors in it")
        return {name.partition(".")[0]: ONE for name in tensors}

    def _delta(self, key: str, parts: Parts, weight: torch.Tensor) -> torch.Tensor:
        return parts["gate_v"].double().reshape(-1, *(1,) * (weight.ndim - 1)) * weight.double()


class GateLayer(AdapterLayer):
    names = ("gate_v",)

    def __init__(self, base: nn.Module, shape: Shape) -> None:
        super().__init__(base, shape)
        self.gate = nn.Parameter(torch.zeros(self.weight.shape[0], device=self.weight.device))

    def trained(self) -> tuple[nn.Parameter, ...]:
        return (self.gate,)

    def adapted(self, x: torch.Tensor, result: torch.Tensor, weights: tuple[torch.Tensor, ...]) -> torch.Tensor:
        tail = (1, 1) if self.weight.ndim == 4 else ()
        product = result if self.bias is None else result - self.bias.to(result.dtype).reshape(-1, *tail)
        return result + product * (self.scaling * weights[0].reshape(-1, *tail))

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        self.gate.zero_()
