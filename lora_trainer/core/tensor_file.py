"""Tensor files of our own (latents, training states) that tell when a bit of them has changed.

A safetensors file that lost a bit still loads, as other numbers. So each carries a checksum of what it holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes

from lora_trainer.core.files import replace_atomically

_CHECKSUM = "sha256"


def write_checked(
    path: Path, tensors: Mapping[str, torch.Tensor], texts: Mapping[str, str], *, durable: bool = True
) -> None:
    """Write tensors and texts with their checksum, atomically.

    Args:
        path: the file.
        tensors: of any device and memory layout; written contiguous and from the CPU, their types as they are.
        texts: what else belongs to them.
        durable: as for :func:`lora_trainer.core.files.replace_atomically`.

    Raises:
        RunError: the disk is full, or the file cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = safetensors_bytes(plain, {**texts, _CHECKSUM: _checksum(plain, texts)})
    replace_atomically(path, lambda temporary: temporary.write_bytes(content), durable=durable)


def read_checked(
    path: Path, *, unchecked: frozenset[str] = frozenset()
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and texts of a file of :func:`write_checked`.

    Args:
        path: the file.
        unchecked: the names of the texts of files of earlier versions, which had no checksum; none when empty.

    Raises:
        SafetensorError, OSError: not readable.
        ValueError: not what was written.
    """
    with safe_open(path, framework="pt") as file:
        texts = dict(file.metadata() or {})
        # A copy: what safetensors gives is the file itself in memory, which changes with it, and which Windows does not
        # let anybody delete or replace while it is used.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    if unchecked and texts.keys() == unchecked:
        return tensors, texts
    if texts.pop(_CHECKSUM, "") != _checksum(tensors, texts):
        raise ValueError("its content does not match its checksum")
    return tensors, texts


def _checksum(tensors: Mapping[str, torch.Tensor], texts: Mapping[str, str]) -> str:
    """SHA-256 over names, types, shapes and bytes of contiguous CPU tensors, and over the texts."""
    digest = hashlib.sha256(json.dumps(sorted(texts.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
