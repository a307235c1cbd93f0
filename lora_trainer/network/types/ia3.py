"""IA³: ΔW = diag(v) W or W diag(v), a vector that scales outputs or inputs (Liu et al., 2022)."""

from __future__ import annotations

from lora_trainer.network.types.base import NetworkType


class IA3(NetworkType):
    """``weight``, the vector, and ``on_input``, which tells the sides apart."""

    name = "IA3"
    signatures = (("weight", "on_input"),)
    proportional = ("weight", "bias")
    host_class = "NetworkModuleIa3"
    host_tensors = ("w", "bias")
