"""What can be done with LoRA files, from file to file: bake, merge, resize, extract. Nothing is ever overwritten.

The command line, the page and REST call the same functions; each writes one new file with a record of how it was made.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_trainer.core import files
from lora_trainer.core.messages import Message
from lora_trainer.network.blocks.block_map import architecture_of
from lora_trainer.network.blocks.lora_tag import LoraTag
from lora_trainer.network.blocks.presets import Presets
from lora_trainer.network.blocks.weights import BlockWeights, factors, resolve
from lora_trainer.network.card import copy_card
from lora_trainer.network.lora_file import read_lora, read_metadata
from lora_trainer.network.modules import group
from lora_trainer.network.ops import provenance as derived
from lora_trainer.network.ops.bake import bake, record
from lora_trainer.network.ops.checkpoint_weights import open_checkpoint
from lora_trainer.network.ops.extract import extract, metadata
from lora_trainer.network.ops.merge import Progress, Source, merge
from lora_trainer.network.ops.resize import Rule, resize
from lora_trainer.network.types.base import Base

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Made:
    """A new file.

    Attributes:
        path: where it is.
        sha256: of its bytes.
        facts: what a person wants to know of it, ready for JSON: ranks, the relative error, counts of modules …
        notices: remarks.
    """

    path: Path
    sha256: str
    facts: Mapping[str, Any]
    notices: tuple[Message, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with the notices as English sentences."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            **self.facts,
            "notices": [str(notice) for notice in self.notices],
        }


@dataclass(frozen=True)
class Ingredient:
    """A file of a merge: its weights, and block weights as in ``lbw=`` and ``lbwe=``.

    Attributes:
        path: the file.
        weight: of the UNet and, where ``te`` is not given, the text encoders.
        te: of the text encoders.
        lbw: a preset's name or a list; empty for none.
        lbwe: an element preset's name or rules; empty for none.
        x: the number for ``X``.
    """

    path: Path
    weight: float = 1.0
    te: float | None = None
    lbw: str = ""
    lbwe: str = ""
    x: float | None = None

    @classmethod
    def of(cls, tag: LoraTag, path: Path) -> Ingredient:
        """A file as a tag uses it."""
        return cls(path, tag.unet_weight, tag.te, tag.lbw, tag.lbwe, tag.x)

    def source(self, presets: Presets | None = None) -> Source:
        """The file read, with a factor for each module. Raises :class:`InputError`."""
        tensors, header = read_lora(self.path), read_metadata(self.path)
        te = self.weight if self.te is None else self.te
        if not self.lbw and not self.lbwe and te == self.weight:
            return Source(self.path.name, tensors, self.weight, metadata=header)
        keys = group(tensors)
        architecture = architecture_of(keys, header)
        blocks = resolve(self.lbw, architecture, presets, lbwe=self.lbwe, x=self.x, name=self.path.stem)
        return Source(self.path.name, tensors, self.weight, factors(keys, blocks, te, self.weight), header)


@dataclass(frozen=True)
class Baking:
    """What is baked into a file; fields as in the tag ``<lora:name:te:unet:lbw=…:lbwe=…:x=…>``.

    Attributes:
        te: weight of the text encoders.
        unet: weight of the UNet.
        lbw: a preset's name, or a list in which ``R`` and ``U`` are random.
        lbwe: an element preset's name or rules.
        x: the number for ``X``.
        seed: of ``R`` and ``U``.
        checkpoint: an SD1 checkpoint, needed for DoRA at other values than 0 and 1.
    """

    te: float = 1.0
    unet: float = 1.0
    lbw: str = ""
    lbwe: str = ""
    x: float | None = None
    seed: int = 0
    checkpoint: Path | None = None


def baked_name(path: Path) -> Path:
    """A free name beside a file for what is baked from it."""
    return files.free_path(path.with_name(f"{path.stem}-baked.safetensors"))


def bake_file(file: Path, output: Path, baking: Baking, presets: Presets | None = None) -> Made:
    """Write weights and block weights into a new file, with a card where the old one has one.

    Raises:
        InputError: see :func:`lora_trainer.network.ops.bake.bake`, or the output cannot be written.
        RunError: the disk is full.
    """
    derived.check_output(output, [file])
    tensors, header = read_lora(file), read_metadata(file)
    keys = group(tensors)
    blocks = resolve(
        baking.lbw,
        architecture_of(keys, header),
        presets,
        lbwe=baking.lbwe,
        x=baking.x,
        seed=baking.seed,
        name=file.stem,
    )
    ratios = factors(keys, blocks, baking.te, baking.unet)
    with _base(baking.checkpoint) as base:
        baked = bake(tensors, ratios, base)
    rules = ",".join(map(str, blocks.rules))
    source = derived.source_record(file, header)
    entry = record(blocks.text, rules, baking.te, baking.unet, baked, seed=baking.seed, sources=[source])
    made = derived.derived_metadata(header, output, entry, baked.modules)
    digest = derived.write_derived(output, baked.modules, made)
    copy_card(file, output, baking.unet)
    facts = {"lbw": blocks.text, "lbwe": rules, "te": baking.te, "unet": baking.unet, **baked.counts()}
    return Made(output, digest, facts, _unlisted(blocks, keys))


@contextmanager
def _base(checkpoint: Path | None) -> Iterator[Base | None]:
    if checkpoint is None:
        yield None
        return
    with open_checkpoint(checkpoint) as weights:
        yield weights


def _unlisted(blocks: BlockWeights, keys: Mapping[str, Any]) -> tuple[Message, ...]:
    modules = len(blocks.unlisted(keys))
    if not modules:
        return ()
    return (
        Message(
            "A list of {values} values leaves {modules} convolution modules of this LoRA at 0; use the longer list to "
            "keep them.",
            {"values": len(blocks.blocks), "modules": modules},
        ),
    )


def merge_files(
    ingredients: Sequence[Ingredient],
    output: Path,
    rank: int | None = None,
    conv_rank: int | None = None,
    precision: str | None = None,
    progress: Progress = lambda done, of: None,
    presets: Presets | None = None,
) -> Made:
    """Write the weighted sum of LoRAs into a new file.

    Args:
        ingredients: at least one.
        output: the new file.
        rank: see :func:`lora_trainer.network.ops.merge.merge`, as for the next two.
        conv_rank: of 3×3 convolutions.
        precision: ``fp16``, ``bf16`` or ``fp32``.
        progress: called with modules done and in all; may raise to stop.
        presets: named block lists; the shipped ones by default.

    Raises:
        InputError: the files cannot be merged, or the output cannot be written.
        RunError: the disk is full.
    """
    derived.check_output(output, [each.path for each in ingredients])
    merged = merge([each.source(presets) for each in ingredients], rank, conv_rank, precision, progress)
    headers = [read_metadata(each.path) for each in ingredients]
    entry = {
        "made": "merged",
        "rank": rank,
        "error": merged.error,
        "sources": [
            {**derived.source_record(each.path, header), **_weights(each)}
            for each, header in zip(ingredients, headers, strict=True)
        ],
    }
    header = derived.derived_metadata(headers[0], output, entry, merged.modules)
    header |= derived.network_entries(merged.ranks, merged.alphas)
    digest = derived.write_derived(output, merged.stored, header)
    return Made(output, digest, {"ranks": sorted(set(merged.ranks)), "error": merged.error}, merged.notices)


def _weights(ingredient: Ingredient) -> dict[str, Any]:
    """As the record has them; what is seldom used only where it is."""
    seldom = {"te": ingredient.te, "lbwe": ingredient.lbwe or None, "x": ingredient.x}
    return {
        "weight": ingredient.weight,
        "lbw": ingredient.lbw,
        **{key: value for key, value in seldom.items() if value is not None},
    }


def resize_file(
    file: Path,
    output: Path,
    rule: Rule,
    precision: str | None = None,
    progress: Progress = lambda done, of: None,
) -> Made:
    """Write a LoRA at a smaller rank into a new file, with a card where the old one has one.

    Raises:
        InputError: the file cannot be resized, or the output cannot be written.
        RunError: the disk is full.
    """
    derived.check_output(output, [file])
    header = read_metadata(file)
    resized = resize(read_lora(file), rule, precision, progress)
    entry = {
        "made": "resized",
        "rank": rule.rank,
        "conv_rank": rule.conv_rank,
        **({rule.method: rule.value} if rule.method else {}),
        "error": resized.error,
        "sources": [derived.source_record(file, header)],
    }
    made = derived.derived_metadata(header, output, entry, resized.modules)
    made |= derived.network_entries(resized.ranks, resized.alphas)
    digest = derived.write_derived(output, resized.stored, made)
    copy_card(file, output)
    return Made(output, digest, {"ranks": sorted(set(resized.ranks)), "error": resized.error}, resized.notices)


def extract_file(
    base: Path,
    tuned: Path,
    output: Path,
    rank: int,
    *,
    conv_rank: int | None = None,
    clamp_quantile: float = 1.0,
    text_threshold: float = 0.0,
    precision: str = "fp16",
    progress: Progress = lambda done, of: None,
) -> Made:
    """Write what distinguishes two SD1 checkpoints into a new LoRA file.

    Arguments are those of :func:`lora_trainer.network.ops.extract.extract`.

    Raises:
        InputError: not two such checkpoints, numbers out of range, or the output cannot be written.
        RunError: the disk is full.
    """
    derived.check_output(output, [base, tuned])
    with open_checkpoint(base) as first, open_checkpoint(tuned) as second:
        found = extract(
            first,
            second,
            rank,
            conv_rank=conv_rank,
            clamp_quantile=clamp_quantile,
            text_threshold=text_threshold,
            precision=precision,
            progress=progress,
        )
        entries = metadata(first.family, rank, conv_rank)
    entry = {
        "made": "extracted",
        "base": base.name,
        "tuned": tuned.name,
        "clamp_quantile": clamp_quantile,
        "error": found.error,
    }
    header = derived.derived_metadata(entries, output, entry, found.modules)
    digest = derived.write_derived(output, found.modules, header)
    facts = {"error": found.error, "covered": found.covered, "unchanged": found.unchanged}
    return Made(output, digest, facts)
