"""What one ``<lora:…>`` tag of a prompt asks for beyond its weights: block weights, and the steps at which it works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_trainer.core.errors import InputError
from lora_trainer.model.block_lists import Architecture
from lora_trainer.network.blocks.lora_tag import BLOCK_ARGUMENTS, KNOWN, WEBUI_ARGUMENTS, LoraTag, argument, parse_tag
from lora_trainer.network.blocks.presets import Presets
from lora_trainer.network.blocks.weights import BlockWeights, resolve


@dataclass(frozen=True)
class BlockUse:
    """A tag with something for us in it.

    Attributes:
        tag: as written; ``None`` when it cannot be read.
        weights: resolved; ``None`` when the tag names only steps, or when they cannot be used.
        problem: what of the tag is not used, and why.
    """

    tag: LoraTag | None
    weights: BlockWeights | None = None
    problem: InputError | None = None

    @property
    def text(self) -> str:
        """For the infotext: the name and every number that is used, or why none is; empty for a tag with steps only."""
        if self.problem is not None and self.weights is None:
            return f"{self.tag.name}: not used, {self.problem}" if self.tag else f"not used, {self.problem}"
        if self.tag is None or self.weights is None:
            return ""
        rules = ",".join(map(str, self.weights.rules))
        return f"{self.tag.name}: {self.weights.text}" + (f" lbwe={rules}" if rules else "")


def block_use(
    items: Sequence[str], architecture: Architecture | None, presets: Presets | None = None, seed: int = 0
) -> BlockUse | None:
    """Read a tag as the WebUI has taken it apart.

    Args:
        items: what stood between the colons behind ``lora``.
        architecture: of the loaded checkpoint; ``None`` when it has no blocks that are known here.
        presets: named lists; the shipped ones by default.
        seed: the picture's, for ``R`` and ``U``.

    Returns:
        ``None`` for a tag that says nothing of blocks or steps and of which the WebUI reads everything.
    """
    if not is_ours(items):
        return None
    try:
        tag = parse_tag(f"<lora:{':'.join(items)}>")
    except InputError as error:
        return BlockUse(None, problem=error)
    if not (tag.lbw or tag.lbwe):
        return BlockUse(tag, problem=tag.unknown())
    try:
        return BlockUse(tag, _weights(tag, architecture, presets, seed), tag.unknown())
    except InputError as error:
        return BlockUse(tag, problem=error)


def is_ours(items: Sequence[str]) -> bool:
    """Does the tag ask for block weights or steps, or has it something that the WebUI cannot read or passes over?"""
    found = [(text, named[0]) for text in items[1:] if (named := argument(text))]
    if any(key in BLOCK_ARGUMENTS or key not in KNOWN for _, key in found) or not webui_reads(items):
        return True
    return any(key in WEBUI_ARGUMENTS and not text.startswith(f"{key}=") for text, key in found)


def as_the_webui_reads(named: Mapping[str, str]) -> dict[str, str]:
    """A tag's named arguments with those of the WebUI under the names that it looks for: ``te`` for `` TE``."""
    found = {key: argument(f"{key}=") for key in named}
    return {each[0] if each and each[0] in WEBUI_ARGUMENTS else key: named[key] for key, each in found.items()}


def webui_reads(items: Sequence[str]) -> bool:
    """Can the WebUI make numbers of the weights? Where it cannot, no LoRA of the prompt is loaded at all."""
    positional = [text for text in items if argument(text) is None]
    named = dict(found for text in items if (found := argument(text)))
    weights = [*positional[1:3], *(named[key] for key in ("te", "unet") if key in named)]
    ranks = [*positional[3:4], *(named[key] for key in ("dyn",) if key in named)]
    try:
        for text in weights:
            float(text)
        for text in ranks:
            int(text)
    except ValueError:
        return False
    return bool(positional)


def _weights(tag: LoraTag, architecture: Architecture | None, presets: Presets | None, seed: int) -> BlockWeights:
    if architecture is None:
        raise InputError("Block weights are for checkpoints of SD1, SD2 and SDXL, and another kind is loaded.")
    return resolve(tag.lbw, architecture, presets, lbwe=tag.lbwe, x=tag.x, seed=seed, name=tag.name)
