"""What captions become for the UNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told of each picture besides the noisy latent and its noise level.

    Attributes:
        states: what cross-attention looks at, (B, 77·n, C), n being chunks of 75 tokens.
        pooled: an embedding of each whole caption, (B, P); ``None`` where the family has none.
        time_ids: numbers about each picture, such as its size in pixels, (B, N); ``None`` where the family has none.
    """

    states: torch.Tensor
    pooled: torch.Tensor | None = None
    time_ids: torch.Tensor | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Conditioning:
        """The same on a device and in a type; the numbers about pictures stay in fp32, since sizes exceed bf16."""
        pooled = None if self.pooled is None else self.pooled.to(device, dtype)
        numbers = None if self.time_ids is None else self.time_ids.to(device)
        return Conditioning(self.states.to(device, dtype), pooled, numbers)

    def repeated(self, count: int) -> Conditioning:
        """That of one caption, (1, …), for so many pictures, (count, …), without a copy."""
        pooled = None if self.pooled is None else self.pooled.expand(count, -1)
        numbers = None if self.time_ids is None else self.time_ids.expand(count, -1)
        return Conditioning(self.states.expand(count, -1, -1), pooled, numbers)

    def with_numbers(self, numbers: Sequence[float]) -> Conditioning:
        """With the same numbers about every picture."""
        row = torch.tensor([numbers], dtype=torch.float32, device=self.states.device)
        return replace(self, time_ids=row.expand(len(self.states), -1))

    @property
    def added(self) -> dict[str, torch.Tensor] | None:
        """What diffusers' UNets take as ``added_cond_kwargs``; ``None`` where there is nothing to add."""
        found = {"text_embeds": self.pooled, "time_ids": self.time_ids}
        return {name: value for name, value in found.items() if value is not None} or None
