"""What an experienced friend would say before Train is pressed: the guides' warnings, and the step calculator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_trainer.config.train import SELF_ADJUSTING, TrainConfig
from lora_trainer.core.messages import Message

if TYPE_CHECKING:
    from lora_trainer.dataset.scan import Dataset


@dataclass(frozen=True)
class Calculation:
    """The step calculator's numbers."""

    images: int
    batches_per_epoch: int
    steps_per_epoch: int
    epochs: int
    steps: int
    files: int


def calculate(config: TrainConfig, dataset: Dataset) -> Calculation:
    """How many steps a run takes: batches are filled bucket by bucket, and none is dropped."""
    from lora_trainer.dataset.plan import Plan, held_out

    items, _ = held_out(dataset.items, config.validation.share, config.training.seed)
    plan = Plan(items, config)
    before_last = plan.total_steps - 1
    every = [n for n in (config.save.every_epochs * plan.steps_per_epoch, config.save.every_steps) if n]
    files = sum(before_last // n for n in every)
    if len(every) == 2:
        files -= before_last // math.lcm(*every)  # a step that both ask for is written once
    return Calculation(
        sum(item.repeats for item in items),
        plan.batches_per_epoch,
        plan.steps_per_epoch,
        plan.epochs,
        plan.total_steps,
        files + 1,
    )


def advise(
    config: TrainConfig,
    dataset: Dataset | None = None,
    native_resolution: int = 512,
    is_common_word: Callable[[str], bool] = lambda word: False,
    words: Callable[[str], Sequence[tuple[str, str]]] = lambda trigger: (),
) -> list[Message]:
    """Everything worth saying about a configuration, each with its field; an empty list is a good one."""
    found = [*_about_network(config, dataset), *_about_rates(config), *_about_warmup(config, dataset), *idle(config)]
    found += _about_words(config.data.trigger.strip(), words)
    found += _about_data(config, dataset, native_resolution, is_common_word)
    return found + list(_about_length(config, dataset))


def idle(config: TrainConfig) -> Iterator[Message]:
    """Settings that were changed, but that nothing looks at beside the others."""
    defaults = TrainConfig()
    for path, user, is_used in _USED_BY:
        section, _, key = path.partition(".")
        if getattr(getattr(config, section), key) != getattr(getattr(defaults, section), key) and not is_used(config):
            yield Message("{path} is not used: it is for {user} only.", {"path": path, "user": user}, field=path)


_USED_BY: tuple[tuple[str, str, Callable[[TrainConfig], bool]], ...] = (
    (
        "training.scheduler_cycles",
        "training.scheduler = cosine_with_restarts",
        lambda c: c.training.scheduler == "cosine_with_restarts",
    ),
    ("training.scheduler_power", "training.scheduler = polynomial", lambda c: c.training.scheduler == "polynomial"),
    ("network.conv_rank", "network.targets = attention+conv", lambda c: c.network.targets == "attention+conv"),
    ("network.conv_alpha", "network.targets = attention+conv", lambda c: c.network.targets == "attention+conv"),
    ("data.keep_tokens", "data.shuffle = true", lambda c: c.data.shuffle),
    ("data.caption_variants", "training.text_lr = 0", lambda c: not c.training.text_lr),
)


def _about_warmup(config: TrainConfig, dataset: Dataset | None) -> Iterator[Message]:
    """What is refused when the run is started, where its steps are known."""
    warmup = config.training.warmup
    if warmup and config.training.scheduler == "constant":
        yield Message(
            "The schedule constant has no warm-up; choose constant_with_warmup, or set the warm-up to 0.",
            field="training.warmup",
        )
    elif dataset is not None and warmup > (steps := calculate(config, dataset).steps):
        yield Message(
            "{warmup:g} steps of warm-up are more than the run's {steps} steps: it would never learn at the full rate. "
            "Below 1 it is a share of all steps; 0.05 is usual.",
            {"warmup": warmup, "steps": steps},
            field="training.warmup",
        )


def _about_network(config: TrainConfig, dataset: Dataset | None) -> Iterator[Message]:
    rank, alpha = config.network.rank, config.network.alpha or config.network.rank
    pictures = len(dataset.items) if dataset else 0
    sensible = 16 if pictures < 20 else 32 if pictures < 50 else 64 if pictures < 150 else 128
    if dataset and rank > sensible:
        yield Message(
            "Rank {rank} is high for {pictures} pictures: it learns them by heart and shows artifacts. Try {sensible}.",
            {"rank": rank, "pictures": pictures, "sensible": sensible},
            field="network.rank",
        )
    if alpha > 1.5 * rank:
        yield Message(
            "Alpha {alpha:g} is more than the rank {rank}: the effect is multiplied and blurs easily. Usual is half "
            "the rank, {half:g}.",
            {"alpha": alpha, "rank": rank, "half": rank / 2},
            field="network.alpha",
        )
    if alpha < rank / 8:
        yield Message(
            "Alpha {alpha:g} is small against the rank {rank}: it learns little at the usual rates. Usual is half the "
            "rank, {half:g}.",
            {"alpha": alpha, "rank": rank, "half": rank / 2},
            field="network.alpha",
        )


def _about_rates(config: TrainConfig) -> Iterator[Message]:
    training = config.training
    unet, text = training.unet_lr, training.text_lr
    if training.optimizer in SELF_ADJUSTING:
        if {unet, text} - {0.0, 1.0}:
            yield Message(
                "Prodigy finds the rate itself: set both rates to 1 (or 0 for off).", field="training.unet_lr"
            )
        return
    scale = training.batch_size * training.accumulate
    if unet > 5e-4 * max(1.0, math.sqrt(scale)):
        yield Message(
            "UNet learning rate {rate:g} is high; usual is 0.0001 to 0.0005.", {"rate": unet}, field="training.unet_lr"
        )
    if text and (text > 1e-4 or (unet and text > unet / 2)):
        yield Message(
            "Text encoder learning rate {rate:g} is high: prompts stop working. Usual is 0.000005 to 0.00005, at most "
            "half of the UNet's.",
            {"rate": text},
            field="training.text_lr",
        )


_MEANINGS = {
    "embedding": (
        "The WebUI has an embedding named “{name}”, which takes the place of the trigger “{trigger}” in txt2img and in "
        "samples, but not in training; choose another word, or rename the embedding."
    ),
    "style": (
        "The WebUI has a style named “{name}”, like the trigger: choosing it adds its own words, not what is trained; "
        "choose another word."
    ),
    "wildcard": (
        "The trigger “{trigger}” has the wildcard {name} in it, which is replaced by other words in txt2img, but not "
        "in training; choose another word."
    ),
    "syntax": (
        "“{name}” in the trigger “{trigger}” is not read as a word in the WebUI's prompts, but in training it is; use "
        "letters, digits and _."
    ),
}


def _about_words(trigger: str, words: Callable[[str], Sequence[tuple[str, str]]]) -> Iterator[Message]:
    """What the host takes parts of the trigger for (:meth:`~lora_trainer.hosts.base.Host.words`)."""
    for kind, name in words(trigger) if trigger else ():
        yield Message(_MEANINGS[kind], {"name": name, "trigger": trigger}, field="data.trigger")


def _about_data(
    config: TrainConfig, dataset: Dataset | None, native: int, is_common_word: Callable[[str], bool]
) -> Iterator[Message]:
    data = config.data
    trigger = data.trigger.strip()
    if not trigger:
        yield Message(
            "There is no trigger word: the LoRA changes every picture. Right for a style only.", field="data.trigger"
        )
    elif all(is_common_word(word) for word in trigger.replace(",", " ").split()):
        yield Message(
            "The trigger “{trigger}” is a common word that the checkpoint knows; use one of your own, like {better}.",
            {"trigger": trigger, "better": f"{trigger.split()[0].lower()}_xx"},
            field="data.trigger",
        )
    if not 0.75 * native <= data.resolution <= 1.5 * native:
        yield Message(
            "Resolution {resolution} is not the checkpoint's ({native}): bodies and shapes get distorted.",
            {"resolution": data.resolution, "native": native},
            field="data.resolution",
        )
    if dataset is None:
        return
    yield from (replace(remark.message, field="data.folder") for remark in dataset.remarks)
    enlarged = [item for item in dataset.items if item.fit.scale > 1.5]
    if enlarged:
        yield Message(
            "{count} pictures are small and would be enlarged ({name} by {scale:.1f}×); replace them or lower the "
            "resolution.",
            {"count": len(enlarged), "name": enlarged[0].path.name, "scale": enlarged[0].fit.scale},
            field="data.folder",
        )
    cropped = [item for item in dataset.items if item.fit.lost > 0.2]
    if cropped:
        yield Message(
            "{count} pictures lose more than a fifth of their area by cropping, for example {name}.",
            {"count": len(cropped), "name": cropped[0].path.name},
            field="data.folder",
        )
    if dataset.uncaptioned:
        yield Message(
            "{count} pictures have no caption; they are learned with the trigger word or folder name alone.",
            {"count": len(dataset.uncaptioned)},
            field="data.folder",
        )


def _about_length(config: TrainConfig, dataset: Dataset | None) -> Iterator[Message]:
    if dataset is None:
        return
    calculation = calculate(config, dataset)
    seen = calculation.steps * config.training.batch_size * config.training.accumulate / max(1, len(dataset.items))
    if seen < 20:
        yield Message(
            "Each picture is seen only {seen:.0f} times; 50 to 150 is usual. Add epochs or repeats.",
            {"seen": seen},
            field="training.epochs",
        )
    if seen > 500:
        yield Message(
            "Each picture is seen {seen:.0f} times; from 50 to 150 is usual, more overfits.",
            {"seen": seen},
            field="training.epochs",
        )
    if config.training.batch_size > calculation.images:
        yield Message(
            "The batch is larger than the {images} pictures of an epoch; smaller batches give more steps.",
            {"images": calculation.images},
            field="training.batch_size",
        )
