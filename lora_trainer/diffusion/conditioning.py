"""Caption conditioning of a batch: encoded once while the text encoders are frozen, else each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lora_trainer.model.conditioning import Conditioning
from lora_trainer.model.precision import TYPES, without_autocast

Encode = Callable[[Sequence[str]], Conditioning]
"""Captions → what the UNet is told of them."""


class FrozenConditioning:
    """Captions encoded by text encoders that are not trained: each alone and once, when it is first needed.

    So a run with many shuffled captions begins at once, and a resumed one encodes no caption that it does not use. The
    states are kept on the CPU in the precision that they are used in.

    Args:
        encode: the frozen text encoders.
        device: where a batch is wanted.
        dtype: type that states and pooled embeddings are kept in.
    """

    def __init__(self, encode: Encode, device: torch.device, dtype: torch.dtype) -> None:
        self._encode = encode
        self._device = device
        self._dtype = dtype
        self._known: dict[str, Conditioning] = {}

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """States (B, 77·n, C); shorter captions are filled up with the empty one, as the encoder does."""
        known = [self._caption(caption) for caption in captions]
        length = max(each.states.shape[1] for each in known)
        empty = self._caption("").states
        filled = [_filled(each.states, empty, length) for each in known]
        pooled = [each.pooled for each in known if each.pooled is not None]
        return Conditioning(torch.cat(filled).to(self._device), torch.cat(pooled).to(self._device) if pooled else None)

    def _caption(self, caption: str) -> Conditioning:
        if caption not in self._known:
            with torch.no_grad(), without_autocast(self._device):  # as in the WebUI's own pictures
                self._known[caption] = self._encode([caption]).to("cpu", self._dtype)
        return self._known[caption]


def _filled(states: torch.Tensor, empty: torch.Tensor, length: int) -> torch.Tensor:
    """(1, 77·m, C), filled up with empty chunks (1, 77, C) to (1, length, C)."""
    return torch.cat([states, *[empty] * ((length - states.shape[1]) // empty.shape[1])], dim=1)


def frozen_conditioning(encode: Encode, device: torch.device, precision: str) -> FrozenConditioning:
    """Of text encoders that are not trained, for a run in ``precision`` (fp16, bf16 or fp32)."""
    return FrozenConditioning(encode, device, TYPES[precision])
