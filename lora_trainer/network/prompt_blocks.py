"""What one ``<lora:…>`` tag of a prompt asks for beyond its weights: block weights, and the steps at which it works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_trainer.errors import InputError
from lora_trainer.network.block_presets import Presets
from lora_trainer.network.block_weights import BlockWeights, resolve
from lora_trainer.network.blocks import Architecture
from lora_trainer.network.lora_tag import LoraTag, parse_tag

ARGUMENTS = ("lbw", "w", "lbwe", "start", "stop", "step")
"""Named arguments that make a tag ours; the WebUI reads all others itself."""


@dataclass(frozen=True)
class BlockUse:
    """A tag with something for us in it.

    Attributes:
        tag: as written; ``None`` when it cannot be read.
        weights: resolved; ``None`` when the tag names only steps, or when there is a problem.
        problem: why the block weights or steps are not used.
    """

    tag: LoraTag | None
    weights: BlockWeights | None = None
    problem: InputError | None = None

    @property
    def text(self) -> str:
        """For the infotext: the name and every number that is used, or why none is; empty for a tag with steps only."""
        if self.problem is not None:
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
        ``None`` for a tag that says nothing of blocks or steps and that the WebUI can read.
    """
    if not is_ours(items):
        return None
    try:
        tag = parse_tag(f"<lora:{':'.join(items)}>")
    except InputError as error:
        return BlockUse(None, problem=error)
    if not (tag.lbw or tag.lbwe):
        return BlockUse(tag)
    try:
        return BlockUse(tag, _weights(tag, architecture, presets, seed))
    except InputError as error:
        return BlockUse(tag, problem=error)


def is_ours(items: Sequence[str]) -> bool:
    """Does the tag ask for block weights or steps, or has it something that the WebUI cannot read?"""
    named = {text.partition("=")[0] for text in items[1:] if text.count("=") == 1}
    return bool(named.intersection(ARGUMENTS)) or not webui_reads(items)


def webui_reads(items: Sequence[str]) -> bool:
    """Can the WebUI make numbers of the weights? Where it cannot, no LoRA of the prompt is loaded at all."""
    positional = [text for text in items if text.count("=") != 1]
    named = {key: value for text in items if text.count("=") == 1 for key, _, value in [text.partition("=")]}
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
