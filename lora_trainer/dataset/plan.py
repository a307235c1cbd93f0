"""Which pictures are learned from at which step: a pure function of items, settings and seed.

Any step can be looked up without the ones before it, so a resumed run continues exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.randomness import python_rng
from lora_trainer.dataset.scan import Item


@dataclass(frozen=True)
class SampleUse:
    """One use of a picture: which item, mirrored or not, and which of its caption orders."""

    item: int
    flip: bool
    variant: int


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        number: counted from 1.
        epoch: counted from 1.
        batches: batches whose gradients are added up; the pictures of one batch share a bucket.
        ends_epoch: whether it is the last of its epoch.
    """

    number: int
    epoch: int
    batches: tuple[tuple[SampleUse, ...], ...]
    ends_epoch: bool

    @property
    def images(self) -> int:
        """Pictures in the step; the last group of an epoch may have fewer."""
        return sum(len(batch) for batch in self.batches)


class Plan:
    """All steps of a run. No picture is dropped: the last batch of a bucket may be smaller."""

    def __init__(self, items: Sequence[Item], config: TrainConfig) -> None:
        self._items = items
        self._data = config.data
        self._seed = config.training.seed
        self._batch = config.training.batch_size
        self._accumulate = config.training.accumulate
        uses: dict[tuple[int, int], int] = {}
        for item in items:
            uses[item.fit.bucket] = uses.get(item.fit.bucket, 0) + item.repeats
        batches = sum(math.ceil(count / self._batch) for count in uses.values())
        self.batches_per_epoch = batches
        self.steps_per_epoch = math.ceil(batches / self._accumulate)
        self.total_steps = config.training.steps or self.steps_per_epoch * config.training.epochs
        self.epochs = math.ceil(self.total_steps / self.steps_per_epoch)
        self._epoch = lru_cache(maxsize=2)(self._plan_epoch)

    def step(self, number: int) -> Step:
        """Step ``number`` of 1 … ``total_steps``."""
        epoch, index = divmod(number - 1, self.steps_per_epoch)
        groups = self._epoch(epoch + 1)
        ends = index == self.steps_per_epoch - 1 or number == self.total_steps
        return Step(number, epoch + 1, groups[index], ends)

    def _plan_epoch(self, epoch: int) -> list[tuple[tuple[SampleUse, ...], ...]]:
        rng = python_rng(self._seed, "epoch", epoch)
        buckets: dict[tuple[int, int], list[SampleUse]] = {}
        for index, item in enumerate(self._items):
            for _ in range(item.repeats):
                flip = self._data.flip and rng.random() < 0.5
                variant = rng.randrange(self._data.caption_variants)
                buckets.setdefault(item.fit.bucket, []).append(SampleUse(index, flip, variant))
        batches: list[tuple[SampleUse, ...]] = []
        for uses in buckets.values():
            rng.shuffle(uses)
            batches += [tuple(uses[i : i + self._batch]) for i in range(0, len(uses), self._batch)]
        rng.shuffle(batches)
        return [tuple(batches[i : i + self._accumulate]) for i in range(0, len(batches), self._accumulate)]


def held_out(items: Sequence[Item], share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Split ``items`` into those trained on and those kept aside (at least one of each when there are two)."""
    if share <= 0 or len(items) < 2:
        return list(items), []
    count = min(len(items) - 1, max(1, round(len(items) * share)))
    chosen = set(python_rng(seed, "held out").sample(range(len(items)), count))
    return (
        [item for i, item in enumerate(items) if i not in chosen],
        [item for i, item in enumerate(items) if i in chosen],
    )
