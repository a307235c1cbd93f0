"""The caption that a picture has at a step."""

from __future__ import annotations

from collections.abc import Sequence

from lora_trainer.config.train import DataConfig
from lora_trainer.core.randomness import python_rng
from lora_trainer.dataset.captions import shuffled
from lora_trainer.dataset.plan import SampleUse, Step
from lora_trainer.dataset.scan import Item


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

    def _caption(self, step: Step, use: SampleUse, chance: float) -> str:
        if chance < self._data.caption_dropout:
            return ""
        return self._order(use.item, use.variant if self._variants else ("step", step.number))

    def _order(self, index: int, variant: object) -> str:
        rng = python_rng(self._seed, "caption", index, variant)
        return shuffled(self._items[index].caption, self._data, rng)
