"""LoHa: ΔW = scale · (A₁B₁) ⊙ (A₂B₂), an elementwise product of two low-rank matrices (Hyeon-Woo et al., 2022)."""

from __future__ import annotations

import torch

from lora_trainer.network.types.base import NetworkType, Parts, tucker


class LoHa(NetworkType):
    """``hada_w1_a`` and ``hada_w1_b``, ``hada_w2_a`` and ``hada_w2_b``; with cores ``hada_t1`` and ``hada_t2``."""

    name = "LoHa"
    signatures = (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),)
    optional = ("hada_t1", "hada_t2")
    matrices = True
    host_class = "NetworkModuleHada"

    def dim(self, parts: Parts) -> int | None:
        """The rank of both matrices."""
        return parts["hada_w1_b"].shape[0]

    def _delta(self, key: str, parts: Parts, weight: torch.Tensor) -> torch.Tensor:
        return _factor(parts, 1) * _factor(parts, 2) * self.scale(parts)

    def _norm(self, key: str, parts: Parts) -> float | None:
        return abs(self.scale(parts)) * float(torch.linalg.norm(_factor(parts, 1) * _factor(parts, 2)))


def _factor(parts: Parts, number: int) -> torch.Tensor:
    a, b = parts[f"hada_w{number}_a"], parts[f"hada_w{number}_b"]
    core = parts.get(f"hada_t{number}")
    if core is not None:
        return tucker(core, a, b)
    return a.double().flatten(1) @ b.double().flatten(1)
