"""Norm: the differences of a normalisation layer's weight and bias, as LyCORIS' ``train_norm`` writes them."""

from __future__ import annotations

import torch

from lora_trainer.network.types.base import NetworkType, Parts


class Norm(NetworkType):
    """``w_norm`` and ``b_norm``."""

    name = "Norm"
    signatures = (("w_norm", "b_norm"),)
    proportional = ("w_norm", "b_norm", "bias")
    host_class = "NetworkModuleNorm"
    host_tensors = ("w_norm", "b_norm", "bias")

    def _delta(self, key: str, parts: Parts, weight: torch.Tensor) -> torch.Tensor:
        return parts["w_norm"].double() * self.scale(parts)

    def _norm(self, key: str, parts: Parts) -> float | None:
        return abs(self.scale(parts)) * float(torch.linalg.norm(parts["w_norm"].double()))
