"""LoKr: ΔW = scale · W₁ ⊗ W₂, a Kronecker product whose factors may be of low rank (Yeh et al., 2024)."""

from __future__ import annotations

import torch

from lora_trainer.network.types.base import NetworkType, Parts, tucker


class LoKr(NetworkType):
    """``lokr_w1`` and ``lokr_w2``, each whole or as ``_a`` and ``_b``; the second with a core ``lokr_t2``."""

    name = "LoKr"
    signatures = (
        ("lokr_w1", "lokr_w2"),
        ("lokr_w1_a", "lokr_w1_b", "lokr_w2"),
        ("lokr_w1", "lokr_w2_a", "lokr_w2_b"),
        ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"),
    )
    optional = ("lokr_t1", "lokr_t2")
    matrices = True
    proportional = ("lokr_w1", "bias")
    host_class = "NetworkModuleLokr"
    host_tensors = ("w1", "bias")

    def dim(self, parts: Parts) -> int | None:
        """The rank of what is decomposed; ``None`` when both factors are whole."""
        inner = parts.get("lokr_w2_b", parts.get("lokr_w1_b"))
        return None if inner is None else inner.shape[0]

    def _delta(self, key: str, parts: Parts, weight: torch.Tensor) -> torch.Tensor:
        first, second = _factor(parts, 1), _factor(parts, 2).contiguous()  # torch.kron fails at a permuted one
        return torch.kron(first[:, :, None, None] if second.ndim == 4 else first, second) * self.scale(parts)

    def _norm(self, key: str, parts: Parts) -> float | None:
        """‖A ⊗ B‖ = ‖A‖·‖B‖."""
        size = torch.linalg.norm(_factor(parts, 1)) * torch.linalg.norm(_factor(parts, 2))
        return abs(self.scale(parts)) * float(size)


def _factor(parts: Parts, number: int) -> torch.Tensor:
    whole = parts.get(f"lokr_w{number}")
    if whole is not None:
        return whole.double()
    a, b = parts[f"lokr_w{number}_a"], parts[f"lokr_w{number}_b"]
    core = parts.get("lokr_t2") if number == 2 else None
    return a.double() @ b.double() if core is None else tucker(core, a, b)
