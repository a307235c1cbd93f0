"""Telling models apart by their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch

_EACH_WAY = {0: 1, 1: 16, 2: 8}
"""Places that are looked at along each dimension of a tensor, by the number of these; of more, 4."""


def hash_tensors(tensors: Iterable[torch.Tensor]) -> str:
    """SHA-256 over the fp32 values of tensors, in order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def sampled_fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of some values of every tensor, for models whose file has no hash.

    It is the same on every device, in every memory layout, and whether the weights were loaded in fp32 or fp16. Two
    checkpoints that were trained or merged differently have different ones, since every tensor counts; a change of a
    few single numbers may be missed.

    Args:
        tensors: by name; of any shape, floating-point.

    Returns:
        ``"sampled:"`` and 64 hexadecimal digits.
    """
    samples = _on_cpu({name: _sample(tensor.detach()) for name, tensor in tensors.items()})
    digest = hashlib.sha256()
    for name in sorted(samples):
        digest.update(f"{name} {tuple(tensors[name].shape)}\n".encode())
        digest.update(samples[name].numpy().tobytes())
    return f"sampled:{digest.hexdigest()}"


def _on_cpu(samples: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of each device copied together: each copy waits for whatever is being computed there."""
    found: dict[str, torch.Tensor] = {}
    for device in {sample.device for sample in samples.values()}:
        names = [name for name, sample in samples.items() if sample.device == device]
        copied = torch.cat([samples[name] for name in names]).cpu()
        found.update(zip(names, copied.split([len(samples[name]) for name in names]), strict=True))
    return found


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """Values at even distances along each dimension, (n,), fp16; of a view, so the layout does not matter."""
    most = _EACH_WAY.get(tensor.dim(), 4)
    places = tuple(slice(None, None, max(1, -(-size // most))) for size in tensor.shape)
    return tensor[places].to(torch.float16).flatten()
