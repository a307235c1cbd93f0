"""The modules of a LoRA or LyCORIS file: its tensors by the layers that they change."""

from __future__ import annotations

from collections.abc import Mapping

import torch

Tensors = Mapping[str, torch.Tensor]

EMBEDDING = "bundle_emb"


def group(tensors: Tensors) -> dict[str, dict[str, torch.Tensor]]:
    """Module name → part → tensor; a name ends at its first dot, as the WebUI has it."""
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        key, _, part = name.partition(".")
        modules.setdefault(key, {})[part] = tensor
    return modules


def embeddings(*files: Tensors) -> dict[str, dict[str, torch.Tensor]]:
    """The embeddings that come with LoRAs, as one module; of two with one name the first stays."""
    found = [parts for tensors in files for key, parts in group(tensors).items() if key == EMBEDDING]
    together: dict[str, torch.Tensor] = {}
    for parts in found:
        together = {**parts, **together}
    return {EMBEDDING: together} if together else {}
