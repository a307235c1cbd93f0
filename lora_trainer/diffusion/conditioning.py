"""Caption conditioning of a batch: encoded once while the text encoder is frozen, else each step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_trainer.model.precision import TYPES, without_autocast
from lora_trainer.model.text import TextEncoder


class FrozenConditioning:
    """Captions encoded by a text encoder that is not trained: each alone and once, when it is first needed.

    So a run with many shuffled captions begins at once, and a resumed one encodes no caption that it does not use. The
    states are kept on the CPU in the precision that they are used in.

    Args:
        encode: the frozen text encoder.
        device: where a batch is wanted.
        dtype: type that the states are kept in.
    """

    def __init__(self, encode: TextEncoder, device: torch.device, dtype: torch.dtype) -> None:
        self._encode = encode
        self._device = device
        self._dtype = dtype
        self._states: dict[str, torch.Tensor] = {}

    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        """(B, 77·n, C); shorter captions are filled up with the empty one, as the encoder does."""
        states = [self._state(caption) for caption in captions]
        length = max(s.shape[0] for s in states)
        empty = self._state("")
        filled = [torch.cat([s, *[empty] * ((length - s.shape[0]) // empty.shape[0])]) for s in states]
        return torch.stack(filled).to(self._device)

    def _state(self, caption: str) -> torch.Tensor:
        if caption not in self._states:
            with torch.no_grad(), without_autocast(self._device):  # as in the WebUI's own pictures
                self._states[caption] = self._encode([caption])[0].to("cpu", self._dtype)
        return self._states[caption]


def frozen_conditioning(text: TextEncoder, device: torch.device, precision: str) -> FrozenConditioning:
    """Of a text encoder that is not trained, for a run in ``precision`` (fp16, bf16 or fp32)."""
    return FrozenConditioning(text, device, TYPES[precision])
