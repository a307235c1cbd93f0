"""GLoRA: ΔW = B₂B₁ + W A₂A₁, a LoRA and one that is multiplied with the weight (Chavan et al., 2023)."""

from __future__ import annotations

from lora_trainer.network.types.base import NetworkType


class GLoRA(NetworkType):
    """``a1``, ``a2``, ``b1`` and ``b2``; the WebUI disregards its alpha."""

    name = "GLoRA"
    signatures = (("a1.weight", "a2.weight", "b1.weight", "b2.weight"),)
    proportional = ("a1.weight", "b1.weight", "bias")
    host_class = "NetworkModuleGLora"
    host_tensors = ("w1a", "w1b", "bias")
