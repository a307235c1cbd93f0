"""What may be asked for, and what each option means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from lora_trainer.config.schema import Flag, Option, option, options_of, read_document
from lora_trainer.config.train import AUTO, PRECISIONS, SAVE_PRECISIONS
from lora_trainer.core.errors import ConfigErrors, InputError
from lora_trainer.network.blocks.stack import METHODS

SV_METHODS = {
    "sv_fro": Flag("keep this share of the norm, e.g. 0.95", "SHARE", given="optional"),
    "sv_cumulative": Flag("keep this share of the singular values' sum", "SHARE", given="optional"),
    "sv_ratio": Flag("keep singular values down to the largest divided by N", "N", given="optional"),
}
"""How much of a LoRA is kept; the command line has a flag for each, in place of method and value."""

RESIZE_METHODS = ("rank", *SV_METHODS)


MAX_RANK = 4096


def _file_option() -> str:
    flag = Flag("the LoRA file, which stays as it is", "FILE", given="argument")
    return option("", "LoRA file", "Its name, as in the LoRA folder.", path=True, flag=flag)


def _part_weight_option(title: str, told: str) -> float:
    return option(1.0, title, "Empty: the weight.", min=-10, max=10, flag=Flag(told, given="optional"))


def _conv_rank_option(zero: str = "0: as the others.") -> int:
    flag = Flag("rank of 3×3 convolutions", given="optional")
    return option(0, "Rank of convolutions", zero, min=0, max=MAX_RANK, advanced=True, flag=flag)


def _precision_option() -> str:
    return option(
        AUTO,
        "Precision",
        "Of the new file's weights; auto: as in the old one.",
        choices=PRECISIONS,
        advanced=True,
        flag=Flag("of the result (default: that of the files)", given="optional"),
    )


def _output_option(flag: Flag | None = None) -> str:
    flag = flag or Flag("the new file", given="required")
    return option("", "Name of the new file", "Empty: a free one. Nothing is ever overwritten.", path=True, flag=flag)


@dataclass
class BakeDocument:
    """Weights and block weights written into a new file."""

    file: str = _file_option()
    weight: float = option(1.0, "Weight", "Of everything.", min=-10, max=10, flag=Flag("of everything (default: 1)"))
    te: float = _part_weight_option("Text encoder weight", "weight of the text encoders (default: --weight)")
    unet: float = _part_weight_option("UNet weight", "weight of the UNet (default: --weight)")
    lbw: str = option(
        "",
        "Block weights",
        "A preset, or a list of numbers; R and U are random, X is the number given below. Empty: none.",
        flag=Flag("preset, or values; R and U are random, X is --x", "LIST"),
    )
    lbwe: str = option(
        "",
        "Element weights",
        "A preset, or rules such as IN05-OUT05:attn:0. Empty: none.",
        advanced=True,
        flag=Flag("element preset, or rules like IN05-OUT05:attn:0", "RULES"),
    )
    x: float = option(
        1.0,
        "Number for X",
        "What X in the list stands for.",
        min=-10,
        max=10,
        advanced=True,
        flag=Flag("the number for X", given="optional"),
    )
    seed: int = option(
        0,
        "Seed of R and U",
        "Of these two in the list.",
        min=0,
        max=2**32 - 1,
        advanced=True,
        flag=Flag("of R and U"),
    )
    checkpoint: str = option(
        "",
        "Checkpoint",
        "Only for DoRA at other weights than 0 and 1: the SD1 checkpoint file.",
        advanced=True,
        path=True,
        flag=Flag("the SD1 checkpoint, needed for DoRA at other values than 0 and 1"),
    )
    output: str = _output_option(Flag("the new file (default: beside the old one)"))


@dataclass
class MergeDocument:
    """Several LoRAs in one new file."""

    files: list[str] = option(
        [], "LoRAs and weights", "One a line: name: weight, or name: weight: block weights. Tags are read too."
    )
    rank: int = option(
        0,
        "Rank of the result",
        "0: exact, the LoRAs stand side by side and their ranks add up. Otherwise reduced by SVD; the error is told.",
        min=0,
        max=MAX_RANK,
        flag=Flag("rank of the result; without it the ranks add up and nothing is lost", given="optional"),
    )
    conv_rank: int = _conv_rank_option()
    precision: str = _precision_option()
    output: str = _output_option()


@dataclass
class ResizeDocument:
    """A LoRA at a smaller rank."""

    file: str = _file_option()
    method: str = option(
        "rank",
        "Method",
        "rank: one for all. sv_fro: keep this share of the norm. sv_cumulative: of the sum of singular values. "
        "sv_ratio: values down to the largest divided by this number.",
        choices=RESIZE_METHODS,
    )
    rank: int = option(
        0,
        "Rank",
        "With a method of the kind sv_…: the largest; 0: no limit.",
        min=0,
        max=MAX_RANK,
        flag=Flag("the rank, or with --sv-… the largest one", given="optional"),
    )
    keep: float = option(
        0.95, "How much to keep", "For sv_fro and sv_cumulative up to 1, for sv_ratio from 1.", min=0, max=1e6
    )
    conv_rank: int = _conv_rank_option()
    precision: str = _precision_option()
    output: str = _output_option()


@dataclass
class ExtractDocument:
    """A LoRA of what distinguishes two SD1 checkpoints."""

    base: str = option(
        "",
        "Base checkpoint",
        "The one that was tuned.",
        path=True,
        flag=Flag("the checkpoint that was tuned", given="argument"),
    )
    tuned: str = option(
        "",
        "Tuned checkpoint",
        "What became of it.",
        path=True,
        flag=Flag("the tuned checkpoint", given="argument"),
    )
    rank: int = option(32, "Rank", "Of the LoRA.", min=1, max=MAX_RANK, flag=Flag("of the LoRA", given="required"))
    conv_rank: int = _conv_rank_option("0: without convolutions.")
    clamp_quantile: float = option(
        1.0,
        "Clamp quantile",
        "Cut off larger values; 0.99 in sd-scripts, 1: none.",
        min=0,
        max=1,
        advanced=True,
        flag=Flag("cut off outliers (sd-scripts: 0.99)"),
    )
    text_threshold: float = option(
        0.0,
        "Text threshold",
        "The text encoder counts as unchanged below this difference; 0.01 in sd-scripts.",
        min=0,
        max=1,
        advanced=True,
        flag=Flag("smaller changes of the text encoder are none"),
    )
    precision: str = option(
        "fp16",
        "Precision",
        "Of the new file's weights.",
        choices=SAVE_PRECISIONS,
        advanced=True,
        flag=Flag("of the result (default: fp16)"),
    )
    output: str = _output_option()


DOCUMENTS: dict[str, type] = {
    "bake": BakeDocument,
    "merge": MergeDocument,
    "resize": ResizeDocument,
    "extract": ExtractDocument,
}


def tool_options(kind: str) -> list[Option]:
    """The fields of a tool's document in order."""
    return list(options_of(DOCUMENTS[kind], ""))


Document = TypeVar("Document")


def read(kind: type[Document], body: Mapping[str, Any], check: Callable[[Option, Any], Any] | None = None) -> Document:
    """A document from plain values; ``None`` counts as left out.

    Args:
        kind: which.
        body: the values by name.
        check: of a value; :func:`lora_trainer.config.schema.check_value` by default.

    Raises:
        ConfigErrors: unknown fields, wrong types or values out of bounds, all of them at once.
    """
    errors: list[InputError] = []
    values = {key: value for key, value in body.items() if value is not None}
    found = read_document(kind, values, "", errors, check)
    if errors:
        raise ConfigErrors(errors)
    return found


MAX_SEED = 2**32 - 1


FITS = 3
"""Weights are learned on each half of the pictures, and on all (validation/blocks/tuner.py)."""


@dataclass
class AnalysisDocument:
    """Which blocks move the picture."""

    file: str = option("", "LoRA file", "Its name, as in the LoRA folder.", path=True)
    weight: float = option(1.0, "Weight", "Of everything.", min=-2, max=2)
    prompts: list[str] = option(
        [],
        "Prompts",
        "One a line; empty: the sample prompts.",
        flag=Flag("draw pictures with each block alone and without each; repeatable", name="prompt"),
    )
    together: int = option(
        4,
        "Pictures at once",
        "Fewer need less memory.",
        min=1,
        max=64,
        flag=Flag("pictures drawn at once (default: 4)"),
    )
    seeds: list[int] = option(
        [],
        "Seeds",
        "Of the pictures; empty: the samples' seed.",
        min=0,
        max=MAX_SEED,
        flag=Flag("of the pictures (default: that of the samples)", "SEED", "seed"),
    )


@dataclass
class TuningDocument:
    """Block weights found for the person."""

    file: str = option("", "LoRA file", "Its name, as in the LoRA folder.", path=True)
    weight: float = option(1.0, "Weight", "Of everything.", min=-2, max=2)
    pictures: str = option(
        "",
        "Other pictures",
        "Folder of pictures with captions that the LoRA was not trained on; empty: those that the run kept aside.",
        path=True,
        flag=Flag("folder of pictures with captions (default: the run's held-out ones)"),
    )
    steps: int = option(
        48,
        "Steps",
        "Of the optimizer; more are slower and surer.",
        min=1,
        max=1000,
        flag=Flag("of the optimizer (default: 48)"),
    )
    pull: float = option(
        0.01,
        "Pull towards 1",
        "Higher: fewer blocks are changed.",
        min=0,
        max=1,
        flag=Flag("towards 1; higher changes fewer blocks"),
    )
    seed: int = option(0, "Seed", "Of noise and halves.", min=0, max=MAX_SEED, flag=Flag("of noise and halves"))


MAX_MIXES = 500


@dataclass
class MixDocument:
    """Random mixes of several LoRAs."""

    stack: str = option(
        "",
        "LoRAs and weights",
        "One a line: name: weight, or name: weight: block weights. Tags are read too. The order is kept.",
    )
    count: int = option(8, "Mixes", "How many.", min=1, max=MAX_MIXES)
    method: str = option(
        "uniform",
        "Method",
        "uniform: each weight by itself around its own. dirichlet: the sum stays, the shares change.",
        choices=METHODS,
    )
    spread: float = option(0.5, "Spread", "How far the weights go; above 0 and below 1.", min=0, max=1)
    most: float = option(1.2, "Largest sum", "Of the weights; the guides advise 1.2.", min=0, max=100)
    seed: int = option(1, "Seed of the mixes", "The same seed gives the same weights.", min=0, max=2**32 - 1)
    prompt: str = option("", "Prompt", "Without the tags.")
    negative: str = option("", "Negative prompt", "As in txt2img.")
    picture_seed: int = option(
        1, "Seed of the pictures", "The same for all, so that they differ in the weights alone.", min=0, max=2**32 - 1
    )
    width: int = option(0, "Width", "0: the size of the checkpoint.", min=0, max=2048, unit="px", advanced=True)
    height: int = option(0, "Height", "0: the size of the checkpoint.", min=0, max=2048, unit="px", advanced=True)
    steps: int = option(20, "Sampling steps", "As in txt2img.", min=1, max=150, advanced=True)
    cfg: float = option(7.0, "CFG scale", "As in txt2img.", min=1, max=30, advanced=True)
    sampler: str = option("Euler a", "Sampler", "As in txt2img.", advanced=True)
    checkpoint: str = option("", "Checkpoint", "Standalone only: the checkpoint file.", advanced=True, path=True)


def mix_options() -> list[Option]:
    """The fields of the document in order."""
    return list(options_of(MixDocument, ""))
