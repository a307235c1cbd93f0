"""The training configuration: form, TOML file, REST body, manifest and metadata are all this one document.

Every option carries its title, help, bounds and unit once (:func:`lora_trainer.config.schema.option`); widgets, the
JSON schema, the command line's help and the docs are made from them.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_trainer.config.schema import (
    Option,
    field_error,
    option,
    options_of,
    read_document,
    read_toml,
    schema_of,
    toml_value,
    unknown_field,
)
from lora_trainer.core.errors import ConfigErrors, InputError
from lora_trainer.core.reach import is_device

TARGETS = ("attention", "attention+conv")
OPTIMIZERS = ("AdamW", "AdamW8bit", "Adafactor", "Lion", "Prodigy")
SELF_ADJUSTING = ("Prodigy",)
SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
)
SAVE_PRECISIONS = ("fp16", "bf16", "fp32")
AUTO = "auto"
"""What it means is told where it may be chosen."""
PRECISIONS = (AUTO, *SAVE_PRECISIONS)

_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
"""Unicode's categories of control and formatting characters (right-to-left, zero-width), halves and private ones."""
_IGNORABLE = {*map(chr, range(0xFE00, 0xFE10)), *"\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"}
"""Letters and marks that are drawn as nothing: variation selectors, joiners and fillers."""


@dataclass
class DataConfig:
    """Pictures and captions."""

    folder: str = option(
        "",
        "Picture folder",
        "A folder of pictures with .txt captions, or kohya folders such as 10_name inside it.",
        path=True,
    )
    resolution: int = option(
        512,
        "Resolution",
        "Side of a square of the pictures' area after resizing. SD1 checkpoints know 512 best.",
        min=64,
        max=2048,
        unit="px",
    )
    trigger: str = option(
        "", "Trigger word", "A word of your own, e.g. hanfu_girl_, that calls the LoRA; put first in every caption."
    )
    repeats: int = option(
        1, "Repeats", "How often each picture counts in an epoch; a folder named 10_name sets its own.", min=1, max=1000
    )
    shuffle: bool = option(
        True, "Shuffle captions", "Order the tags anew each time, so that their place means nothing."
    )
    keep_tokens: int = option(
        1, "Keep tokens", "How many tags at the start stay there when shuffling.", min=0, max=100, unit="tags"
    )
    separator: str = option(
        ",",
        "Separator",
        "What stands between two tags of a caption. With the comma, ， and 、 and the ends of lines separate tags too; "
        "a caption with 。 is a text of sentences and stays whole between its ASCII commas.",
        advanced=True,
    )
    caption_dropout: float = option(
        0.0, "Caption dropout", "Share of the steps in which a picture has no caption.", min=0, max=1
    )
    flip: bool = option(False, "Horizontal flip", "Also learn each picture mirrored; not for asymmetric things.")
    buckets: bool = option(
        True, "Aspect buckets", "Keep each picture's shape (several sizes of one area) instead of a square crop."
    )
    bucket_step: int = option(
        64, "Bucket step", "Widths and heights are multiples of this.", min=8, max=256, unit="px", advanced=True
    )
    bucket_min: int = option(
        0, "Bucket minimum", "Smallest side; 0: half the resolution.", min=0, max=2048, unit="px", advanced=True
    )
    bucket_max: int = option(
        0, "Bucket maximum", "Largest side; 0: twice the resolution.", min=0, max=4096, unit="px", advanced=True
    )
    upscale: bool = option(
        True, "Enlarge small pictures", "Off: a small picture is trained at its own size.", advanced=True
    )
    caption_variants: int = option(
        8,
        "Caption orders kept",
        "Shuffled orders of a caption while the text encoder is not trained; each is encoded once and kept.",
        min=1,
        max=100,
        advanced=True,
    )


@dataclass
class NetworkConfig:
    """The LoRA."""

    rank: int = option(
        16,
        "Rank",
        "Size of the LoRA: 8–32 for a character, 32–128 for a style. Higher overfits sooner.",
        min=1,
        max=512,
    )
    alpha: float = option(
        8.0,
        "Alpha",
        "Strength of what is learned is alpha / rank; usually half the rank. 0: the rank.",
        min=0,
        max=1024,
    )
    dropout: float = option(0.0, "Dropout", "Share of the LoRA's inputs left out at random.", min=0, max=0.95)
    targets: str = option(
        "attention",
        "Layers",
        "attention: the 192 attention and feed-forward layers; attention+conv: convolutions too (larger file).",
        choices=TARGETS,
    )
    conv_rank: int = option(8, "Convolution rank", "Rank of the convolutions.", min=1, max=512, advanced=True)
    conv_alpha: float = option(
        4.0, "Convolution alpha", "Alpha of the convolutions. 0: their rank.", min=0, max=1024, advanced=True
    )
    continue_from: str = option(
        "", "Continue from", "A LoRA file to go on from; its rank and alpha must be the same.", path=True
    )


@dataclass
class TrainingConfig:
    """The loop."""

    epochs: int = option(
        10, "Epochs", "How often all pictures are gone through; 10 is a good start.", min=1, max=10_000
    )
    steps: int = option(0, "Steps", "Stop after this many steps instead; 0: by epochs.", min=0, max=10_000_000)
    batch_size: int = option(1, "Batch size", "Pictures learned from at once; more needs more memory.", min=1, max=256)
    accumulate: int = option(
        1,
        "Gradient accumulation",
        "Batches added up before each step: a larger batch without its memory.",
        min=1,
        max=1024,
    )
    unet_lr: float = option(
        1e-4, "UNet learning rate", "How fast the picture model learns; 0: not at all.", min=0, max=10
    )
    text_lr: float = option(
        5e-6,
        "Text encoder learning rate",
        "How fast the words learn; 0: not at all. Much less than the UNet's.",
        min=0,
        max=10,
    )
    optimizer: str = option(
        "AdamW", "Optimizer", "How the steps are chosen. Prodigy finds its own rate: set both to 1.", choices=OPTIMIZERS
    )
    optimizer_args: dict[str, Any] = option(
        {}, "Optimizer arguments", "Passed to the optimizer, e.g. {weight_decay = 0.01}.", advanced=True
    )
    scheduler: str = option("cosine", "LR schedule", "How the learning rate goes down.", choices=SCHEDULERS)
    warmup: float = option(
        0.0, "Warm-up", "Steps at a rising learning rate; below 1: this share of all steps.", min=0, max=1_000_000
    )
    scheduler_cycles: int = option(1, "Restarts", "Cycles of cosine_with_restarts.", min=1, max=1000, advanced=True)
    scheduler_power: float = option(
        1.0, "Polynomial power", "Power of the polynomial schedule.", min=0.01, max=10, advanced=True
    )
    seed: int = option(
        42,
        "Seed",
        "The same seed and settings give the same weights, byte for byte; only times in the file's header differ.",
        min=0,
        max=2**32 - 1,
    )
    precision: str = option(
        "auto",
        "Precision",
        "auto: what the checkpoint is loaded in; for fp32 on a card bf16 where it has it.",
        choices=PRECISIONS,
    )
    checkpointing: bool = option(
        False, "Gradient checkpointing", "Half the memory, a third slower: for cards of 8 GB and less."
    )
    min_snr_gamma: float = option(
        5.0, "min-SNR γ", "Evens out easy and hard noise levels; 5 is usual, 0: off.", min=0, max=100
    )
    noise_offset: float = option(
        0.0, "Noise offset", "Lets the LoRA learn very dark or bright pictures; 0.05 is usual.", min=0, max=1
    )
    max_grad_norm: float = option(
        1.0, "Gradient clipping", "Longest step that is taken; 0: off.", min=0, max=1000, advanced=True
    )
    clip_skip: int = option(
        0, "Clip skip", "Which layer of the text encoder is used; 0: as the WebUI is set.", min=0, max=12, advanced=True
    )


@dataclass
class SaveConfig:
    """LoRA files."""

    every_epochs: int = option(
        1, "Save every", "A file every so many epochs; 0: only the last.", min=0, max=10_000, unit="epochs"
    )
    every_steps: int = option(
        0, "Save every", "A file every so many steps; 0: off.", min=0, max=10_000_000, unit="steps", advanced=True
    )
    precision: str = option("fp16", "File precision", "fp16 is what everybody uses.", choices=SAVE_PRECISIONS)
    state_minutes: float = option(
        5.0,
        "Save state every",
        "What an exact resume needs, in case the power fails; 0: only with the files.",
        min=0,
        max=1440,
        unit="minutes",
        advanced=True,
    )
    state_steps: int = option(
        0,
        "Save state every",
        "The same by steps instead; 0: by minutes.",
        min=0,
        max=1_000_000,
        unit="steps",
        advanced=True,
    )
    folder: str = option(
        "", "Output folder", "Empty: a folder with the LoRA's name where the WebUI finds it.", advanced=True, path=True
    )


@dataclass
class SamplesConfig:
    """Pictures drawn while training."""

    prompts: list[str] = option(
        [], "Sample prompts", "One a line; drawn with the LoRA as it is then. Use the trigger word."
    )
    negative: str = option("", "Negative prompt", "What the samples should not show.")
    every_epochs: int = option(
        1, "Sample every", "Draw every so many epochs; 0: off.", min=0, max=10_000, unit="epochs"
    )
    every_steps: int = option(
        0, "Sample every", "Draw every so many steps; 0: off.", min=0, max=10_000_000, unit="steps", advanced=True
    )
    weight: float = option(1.0, "LoRA weight", "Weight of the LoRA in the samples.", min=-2, max=2, advanced=True)
    steps: int = option(20, "Sampling steps", "As in txt2img.", min=1, max=150, advanced=True)
    cfg: float = option(7.0, "CFG scale", "As in txt2img.", min=1, max=30, advanced=True)
    sampler: str = option("Euler a", "Sampler", "As in txt2img.", advanced=True)
    width: int = option(0, "Width", "0: the training resolution.", min=0, max=2048, unit="px", advanced=True)
    height: int = option(0, "Height", "0: the training resolution.", min=0, max=2048, unit="px", advanced=True)
    seed: int = option(
        1,
        "Sample seed",
        "The same for every sample, so that epochs can be compared.",
        min=0,
        max=2**32 - 1,
        advanced=True,
    )


@dataclass
class ValidationConfig:
    """A validation loss on pictures that are not trained on."""

    share: float = option(
        0.0,
        "Held-out share",
        "Share of the pictures kept aside to measure overfitting; 0: off, 0.1 is usual.",
        min=0,
        max=0.5,
    )
    every_epochs: int = option(1, "Validate every", "Every so many epochs.", min=1, max=10_000, unit="epochs")
    timesteps: int = option(8, "Noise levels", "Noise levels a picture is tested at.", min=1, max=100, advanced=True)


@dataclass
class TrainConfig:
    """One training run."""

    name: str = option("", "LoRA name", "Name of the run and its files: what you will type as <lora:name:0.8>.")
    checkpoint: str = option(
        "",
        "Checkpoint",
        "Standalone only: the checkpoint file. In the WebUI it is the one that is loaded.",
        advanced=True,
        path=True,
    )
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> TrainConfig:
        """Read a document; fields left out keep their defaults.

        Raises:
            ConfigErrors: unknown keys, wrong types or values out of bounds, all of them at once.
        """
        errors: list[InputError] = []
        config = read_document(cls, document, "", errors)
        if not errors:
            errors += list(_problems(config))
        if errors:
            raise ConfigErrors(errors)
        return config

    @classmethod
    def from_toml(cls, path: Path | str) -> TrainConfig:
        """Read a TOML file. Raises :class:`InputError` when it is missing, unreadable or not valid."""
        return cls.from_dict(read_toml(path))

    def to_dict(self) -> dict[str, Any]:
        """The whole document as plain values."""
        return dataclasses.asdict(self)

    def to_toml(self) -> str:
        """The whole document as TOML, each field with its help as a comment."""
        return "\n".join(_toml_lines(self)) + "\n"

    def with_values(self, values: Mapping[str, Any]) -> TrainConfig:
        """A checked copy with dotted keys replaced, e.g. ``{"network.rank": 8}``."""
        document = self.to_dict()
        for key, value in values.items():
            section, _, name = key.rpartition(".")
            target = document.get(section) if section else document
            if not isinstance(target, dict) or name not in target:
                raise unknown_field(key, [o.path for o in options()])
            target[name] = value
        return TrainConfig.from_dict(document)


def options() -> list[Option]:
    """Every field of :class:`TrainConfig` in the form's order."""
    return list(options_of(TrainConfig, ""))


def json_schema() -> dict[str, Any]:
    """The JSON schema of the document, for REST and editors."""
    return schema_of(TrainConfig) | {"required": ["name"]}


def _problems(config: TrainConfig) -> Iterator[InputError]:
    """What is wrong between fields."""
    if message := name_problem(config.name):
        yield InputError(message, field="name", name=shown_name(config.name))
    data, training = config.data, config.training
    low, high = bucket_bounds(data)
    if low > high:
        yield field_error(
            "data.bucket_min",
            "{low} px is more than the largest side, {high} px; lower it or raise data.bucket_max.",
            low=low,
            high=high,
        )
    if data.resolution < data.bucket_step:
        yield field_error(
            "data.bucket_step",
            "{step} px is more than the resolution, {resolution} px.",
            step=data.bucket_step,
            resolution=data.resolution,
        )
    if data.bucket_step % 8:
        yield field_error("data.bucket_step", "{step} px is not a multiple of 8.", step=data.bucket_step)
    if training.unet_lr == 0 and training.text_lr == 0:
        yield field_error(
            "training.unet_lr", "both learning rates are 0, so nothing would be learned; set one of them."
        )
    if training.optimizer in SELF_ADJUSTING and len({training.unet_lr, training.text_lr} - {0.0}) > 1:
        yield field_error(
            "training.text_lr",
            "{optimizer} has one learning rate for all; set both to 1 (or one of them to 0).",
            optimizer=training.optimizer,
        )
    if training.warmup > training.steps > 0:
        yield field_error(
            "training.warmup",
            "{warmup:g} steps of warm-up are more than the run's {steps} steps.",
            warmup=training.warmup,
            steps=training.steps,
        )
    for side in ("width", "height"):
        size = getattr(config.samples, side)
        if size % 8:
            yield field_error(f"samples.{side}", "{size} px is not a multiple of 8.", size=size)


def require_warmup(config: TrainConfig, steps: int) -> None:
    """See that the warm-up can be done; called where the number of steps is known.

    Runs that were begun before are read and go on whatever they have, so this is no part of reading.

    Raises:
        InputError: it is longer than the run, or the schedule has none.
    """
    training = config.training
    if training.warmup and training.scheduler == "constant":
        raise field_error(
            "training.warmup",
            "the schedule constant has no warm-up; choose constant_with_warmup, or set the warm-up to 0.",
        )
    if training.warmup > steps:
        raise field_error(
            "training.warmup",
            "{warmup:g} steps of warm-up are more than the run's {steps} steps.",
            warmup=training.warmup,
            steps=steps,
        )


def name_problem(name: str) -> str:
    """Why ``name`` cannot be the name of a new run and its files, or an empty string."""
    if not name:
        return "name: give the LoRA a name; it is what you will type as <lora:name:0.8>."
    if len(name) > 100 or len(name.encode("utf-8", "replace")) > 200:  # file systems count bytes, up to 255
        return "name: “{name}…” is too long for a file; use at most 100 letters or 60 Chinese characters."
    if any(map(_is_unseen, name)):
        return "name: “{name}” has characters that nobody sees, such as a change of direction; type it anew."
    if not is_file_name(name):
        return "name: “{name}” cannot be a file name; use letters, digits, - and _, and no folder."
    if name.startswith("-"):  # programs would take it for an option
        return "name: “{name}” begins with -; begin it with a letter or a digit."
    if is_device(name):
        return "name: “{name}” is a reserved name on Windows; choose another."
    return ""


def is_file_name(name: str) -> bool:
    """Whether ``name`` is one entry of a folder; older runs may have names that no new one can have."""
    if not name or name.startswith(".") or name != name.strip(" .") or len(name.encode("utf-8", "replace")) > 255:
        return False
    return not re.search(r'[\\/:*?"<>|,\x00-\x1f\ud800-\udfff]', name) and not is_device(name)


def shown_name(name: str) -> str:
    """A name as a sentence can show it: shortened, and ``�`` for what nobody sees or what turns the text around it."""
    return "".join("�" if _is_unseen(c) else c for c in name[:80])


def _is_unseen(c: str) -> bool:
    return unicodedata.category(c) in _UNSEEN or c in _IGNORABLE


def bucket_bounds(data: DataConfig) -> tuple[int, int]:
    """Smallest and largest side of a bucket in pixels, multiples of the step."""
    step = data.bucket_step
    low = data.bucket_min or data.resolution // 2
    high = data.bucket_max or data.resolution * 2
    return max(step, low // step * step), max(step, high // step * step)


def _toml_lines(config: TrainConfig) -> Iterator[str]:
    section = None
    document = config.to_dict()
    for item in options():
        head, _, name = item.path.rpartition(".")
        if head != section:
            section = head
            if head:
                yield f"\n[{head}]"
        value = document[head][name] if head else document[name]
        yield f"{name} = {toml_value(value)}  # {item.help}"
