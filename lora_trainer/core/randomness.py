"""Randomness that depends on nothing but (seed, what for, step): never on a global generator.

So a run that was interrupted, resumed, or interleaved with picture generation draws the same numbers.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def key_seed(*key: object) -> int:
    """A 63-bit seed made from ``key``, the same on every machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def python_rng(*key: object) -> random.Random:
    """A Python generator for ``key``."""
    return random.Random(key_seed(*key))


def torch_rng(*key: object) -> torch.Generator:
    """A torch CPU generator for ``key``."""
    import torch

    return torch.Generator().manual_seed(key_seed(*key))


@contextmanager
def global_rng(device: torch.device, *key: object) -> Iterator[None]:
    """Seed torch's global generators for code that cannot take one (dropout, an adapter's init); restored after."""
    import torch

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(key_seed(*key))
        yield
