"""Full: ΔW itself, as LyCORIS' ``full`` and our own baking of a DoRA write it."""

from __future__ import annotations

import torch

from lora_trainer.network.types.base import NetworkType, Parts


class Full(NetworkType):
    """``diff``, and ``diff_b`` for the bias."""

    name = "Full"
    signatures = (("diff",),)
    optional = ("diff_b",)
    proportional = ("diff", "diff_b", "bias")
    host_class = "NetworkModuleFull"
    host_tensors = ("weight", "ex_bias", "bias")

    def _delta(self, key: str, parts: Parts, weight: torch.Tensor) -> torch.Tensor:
        return parts["diff"].double() * self.scale(parts)

    def _norm(self, key: str, parts: Parts) -> float | None:
        return abs(self.scale(parts)) * float(torch.linalg.norm(parts["diff"].double()))
