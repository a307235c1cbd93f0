"""Repeats, epochs and held-out share for the pictures that were found: what a newcomer cannot know.

**The rule.** The guides' own example is 20 pictures × 10 repeats × 10 epochs at 2 a step: each picture is seen 100
times, in 1,000 steps at the rate 0.0001 ("猫耳老婆": ``10_catgirl``, ``--max_train_epochs=10 --train_batch_size=2
--learning_rate=1e-4``), and steps = pictures × repeats × epochs / batch. From there:

1. A figure or a thing is seen :data:`VIEWS` times, a style half as often: it has more pictures (50 to 200), and what
   they have in common is in all of them.
2. AdamW moves by about the rate at each step, however many pictures are in it. A few pictures at a large batch would
   give too few steps to learn anything, so views grow until there are :data:`STEPS` steps (fewer at a higher rate), up
   to :data:`MOST_VIEWS`. Many pictures would give more steps than anything is learned in, so views shrink down to
   :data:`FEWEST_VIEWS`, when there were more than :data:`MOST_STEPS`.
3. :data:`EPOCHS` epochs: the guides' start, so that there are files to compare; repeats do the rest. Folders with a
   number (``10_name``) have repeats of their own, so epochs do it there.
4. A tenth of the pictures is held out to measure overfitting, two at least, once there are
   :data:`ENOUGH_TO_HOLD_OUT`; with fewer each one is needed.
5. The resolution is the checkpoint's, where the one that is set would distort shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lora_trainer.config.train import SELF_ADJUSTING, DataConfig, TrainConfig
from lora_trainer.core.messages import Message
from lora_trainer.dataset.scan import Dataset, Item
from lora_trainer.training.advice import calculate

VIEWS = {"character": 100, "product": 100, "style": 50}
"""How often a picture is seen in a run, by what is trained."""
STEPS = 1000
"""Steps at :data:`RATE` in which the guides' example has learned."""
RATE = 1e-4
MOST_STEPS = 5000
FEWEST_VIEWS, MOST_VIEWS = 25, 250
EPOCHS = 10
ENOUGH_TO_HOLD_OUT = 10
_FEWEST_STEPS = 400


@dataclass(frozen=True)
class Proposal:
    """A value for one field; ``reason`` tells the field and why."""

    value: Any
    reason: Message

    @property
    def path(self) -> str:
        """The field's dotted key."""
        return self.reason.field or ""


def purpose_of(preset: str | None, config: TrainConfig) -> str:
    """What is trained, a key of :data:`VIEWS`: the shipped preset's name, else what the settings are usual for."""
    if preset in VIEWS:
        return str(preset)
    return "style" if config.training.text_lr == 0 and not config.data.trigger.strip() else "character"


def propose(config: TrainConfig, dataset: Dataset, purpose: str, native_resolution: int = 512) -> list[Proposal]:
    """What suits the pictures, by the rule above, whether the settings are so already or not.

    Args:
        config: the settings so far.
        dataset: the pictures that were found with them.
        purpose: a key of :data:`VIEWS`.
        native_resolution: side in pixels that the checkpoint was trained at.
    """
    pictures = len(dataset.items)
    count = _held_out_count(pictures)
    own = [item.repeats for item in dataset.items if _has_own_repeats(item, config.data)]
    views, why = _views(config, max(1, pictures - count), purpose)
    length = _by_epochs(views, why, sum(own) / len(own)) if own else _by_repeats(views, why)
    return [*_resolution(config.data, native_resolution), *length, *_steps(config), _share(config, pictures, count)]


def with_proposals(config: TrainConfig, proposals: Sequence[Proposal]) -> TrainConfig:
    """The settings with all proposed values in them."""
    return config.with_values({proposal.path: proposal.value for proposal in proposals})


def proposed_steps(config: TrainConfig, dataset: Dataset, proposals: Sequence[Proposal]) -> int:
    """Steps of a run with the proposed values, on a data set that was scanned with those before."""
    wanted = with_proposals(config, proposals)
    items = [
        item if _has_own_repeats(item, config.data) else replace(item, repeats=wanted.data.repeats)
        for item in dataset.items
    ]
    return calculate(wanted, replace(dataset, items=items)).steps


def _views(config: TrainConfig, pictures: int, purpose: str) -> tuple[int, Message]:
    """How often each picture is to be seen, and why."""
    batch = config.training.batch_size * config.training.accumulate
    steps = _steps_to_learn(config)
    usual, needed, allowed = VIEWS[purpose], math.ceil(steps * batch / pictures), MOST_STEPS * batch // pictures
    if needed > usual:
        views = min(needed, MOST_VIEWS)
        return views, Message(
            "Each picture is seen {seen:.0f} times: {pictures} pictures at {batch} a step need that for about {steps} "
            "steps, and fewer teach little.",
            {"seen": views, "pictures": pictures, "batch": batch, "steps": steps},
        )
    if allowed < usual:
        views = max(allowed, FEWEST_VIEWS)
        return views, Message(
            "Each picture is seen {seen:.0f} times: with {pictures} pictures more would take over {most} steps.",
            {"seen": views, "pictures": pictures, "most": MOST_STEPS},
        )
    return usual, Message("Each picture is seen {seen:.0f} times; 50 to 150 is usual.", {"seen": usual})


def _steps_to_learn(config: TrainConfig) -> int:
    """A higher rate needs fewer steps. An optimizer that finds its own has no rate to reckon with."""
    rate = config.training.unet_lr
    if config.training.optimizer in SELF_ADJUSTING or not rate:
        return STEPS
    return min(STEPS, max(_FEWEST_STEPS, round(STEPS * RATE / rate)))


def _by_repeats(views: int, why: Message) -> list[Proposal]:
    repeats = math.ceil(views / EPOCHS)
    return [
        Proposal(repeats, _about("data.repeats", why, repeats * EPOCHS)),
        Proposal(EPOCHS, Message("The usual start: enough files to choose the best from.", field="training.epochs")),
    ]


def _by_epochs(views: int, why: Message, repeats: float) -> list[Proposal]:
    epochs = max(1, round(views / repeats))
    return [Proposal(epochs, _about("training.epochs", why, repeats * epochs))]


def _about(path: str, why: Message, seen: float) -> Message:
    return replace(why, field=path, values={**why.values, "seen": seen})


def _has_own_repeats(item: Item, data: DataConfig) -> bool:
    """Whether the folder's number counts, not the setting; they may be the same."""
    number = re.match(r"(\d+)_", item.concept)
    return item.repeats != data.repeats or (number is not None and int(number[1]) == item.repeats)


def _steps(config: TrainConfig) -> list[Proposal]:
    if not config.training.steps:
        return []
    return [Proposal(0, Message("A number of steps would end the run before its epochs.", field="training.steps"))]


def _resolution(data: DataConfig, native: int) -> list[Proposal]:
    if 0.75 * native <= data.resolution <= 1.5 * native:
        return []
    return [
        Proposal(
            native, Message("The checkpoint was trained at {native} px.", {"native": native}, field="data.resolution")
        )
    ]


def _held_out_count(pictures: int) -> int:
    return max(2, round(0.1 * pictures)) if pictures >= ENOUGH_TO_HOLD_OUT else 0


def _share(config: TrainConfig, pictures: int, count: int) -> Proposal:
    if not count:
        reason = Message(
            "With {pictures} pictures each one is needed for learning.",
            {"pictures": pictures},
            field="validation.share",
        )
        return Proposal(0.0, reason)
    reason = Message(
        "{count} of {pictures} pictures are not trained on; they show when the LoRA learns the others by heart.",
        {"count": count, "pictures": pictures},
        field="validation.share",
    )
    now = config.validation.share
    return Proposal(now if now and round(now * pictures) == count else round(count / pictures, 2), reason)
