"""Caption conditioning of a batch: encoded once in advance while the text encoder is frozen, else each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from lora_trainer.config import DataConfig
from lora_trainer.dataset.captions import shuffled
from lora_trainer.dataset.plan import Step, Use
from lora_trainer.dataset.scan import Item
from lora_trainer.model.text import TextEncoder
from lora_trainer.randomness import python_rng


class Captions:
    """The captions of a run's steps.

    Args:
        items: the pictures.
        data: shuffling and dropout.
        seed: of the run.
        variants: how many orders a caption may have; ``None`` for a new one each step.
    """

    def __init__(self, items: Sequence[Item], data: DataConfig, seed: int, variants: int | None) -> None:
        self._items = items
        self._data = data
        self._seed = seed
        self._variants = variants

    def of_step(self, step: Step) -> list[list[str]]:
        """The captions of each batch of a step; dropped ones are empty."""
        rng = python_rng(self._seed, "caption dropout", step.number)
        return [[self._caption(step, use, rng.random()) for use in batch] for batch in step.batches]

    def every(self) -> set[str]:
        """All captions that :meth:`of_step` can give, when their number is limited."""
        orders = range(self._variants or 1) if self._data.shuffle else range(1)
        captions = {self._order(index, v) for index in range(len(self._items)) for v in orders}
        return captions | ({""} if self._data.caption_dropout else set())

    def _caption(self, step: Step, use: Use, chance: float) -> str:
        if chance < self._data.caption_dropout:
            return ""
        return self._order(use.item, use.variant if self._variants else ("step", step.number))

    def _order(self, index: int, variant: object) -> str:
        rng = python_rng(self._seed, "caption", index, variant)
        return shuffled(self._items[index].caption, self._data, rng)


class FrozenConditioning:
    """Encoded captions kept on the CPU in the precision that they are used in.

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

    def prepare(self, captions: set[str], turn: Callable[[], object]) -> Iterator[int]:
        """Encode what is not yet known, each in a turn of its own; yields how many are done."""
        for count, caption in enumerate(sorted(captions | {""}), start=1):
            if caption not in self._states:
                with turn(), torch.no_grad():  # type: ignore[attr-defined]
                    self._states[caption] = self._encode([caption])[0].to("cpu", self._dtype)
            yield count

    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        """(B, 77·n, C); shorter captions are filled up with the empty one, as the encoder does."""
        states = [self._states[c] for c in captions]
        length = max(s.shape[0] for s in states)
        empty = self._states[""]
        filled = [torch.cat([s, *[empty] * ((length - s.shape[0]) // empty.shape[0])]) for s in states]
        return torch.stack(filled).to(self._device)
