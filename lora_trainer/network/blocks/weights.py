"""What ``lbw=`` and ``lbwe=`` mean: one factor for each module of a LoRA."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lora_trainer.core.errors import InputError
from lora_trainer.core.randomness import python_rng
from lora_trainer.model.block_lists import ALL_BLOCKS, ARCHITECTURES, BASE, TEXT_BLOCKS, Architecture
from lora_trainer.network.blocks.block_map import block_of, spellings, text_encoder_of
from lora_trainer.network.blocks.presets import LENGTHS, Presets, shipped_presets

_FROM_TAG = re.compile(r"X(?:([+-])(\d+\.?\d*|\.\d+))?")
_RANDOM = {"R": (0.0, 1.0), "U": (-0.5, 1.5)}


@dataclass(frozen=True)
class ElementRule:
    """One rule of ``lbwe=``: modules in these blocks whose name has one of these elements get this weight.

    Attributes:
        blocks: block names, or beginnings such as ``IN``; empty for every module.
        not_blocks: everywhere but in these.
        elements: parts of module names (``attn``, ``ff_net``); empty for all.
        not_elements: all but these.
        weight: replaces the block's weight.
    """

    blocks: tuple[str, ...]
    not_blocks: bool
    elements: tuple[str, ...]
    not_elements: bool
    weight: float

    def matches(self, label: str, names: str) -> bool:
        """Is a module meant, with this block label (``"BASE TE1"``, ``"IN05"``, ``""``) and these spellings?"""
        in_blocks = (not self.blocks and not self.not_blocks) or any(block in label for block in self.blocks)
        of_kind = (not self.elements and not self.not_elements) or any(element in names for element in self.elements)
        return in_blocks != self.not_blocks and of_kind != self.not_elements

    def __str__(self) -> str:
        blocks = ("NOT", *self.blocks) if self.not_blocks else self.blocks
        elements = ("NOT", *self.elements) if self.not_elements else self.elements
        return f"{' '.join(blocks)}:{' '.join(elements)}:{number_text(self.weight)}"


@dataclass(frozen=True)
class BlockWeights:
    """Resolved block weights: numbers only.

    Attributes:
        blocks: the blocks that the list is for, in its order.
        weights: as many numbers; blocks of the architecture that are not listed are 0.
        text_encoders: the factors of TE1 and TE2 where they differ from BASE, else empty.
        rules: element rules, applied after the blocks; the last that matches counts.
    """

    blocks: tuple[str, ...] = ALL_BLOCKS
    weights: tuple[float, ...] = (1.0,) * len(ALL_BLOCKS)
    text_encoders: tuple[float, ...] = ()
    rules: tuple[ElementRule, ...] = ()

    def ratio(self, key: str) -> float:
        """The factor of a module, named as in the file or as in the WebUI; 1 for what belongs to no block."""
        block, encoder = block_of(key), text_encoder_of(key)
        ratio = 1.0 if block is None else self._of_block(block, encoder)
        if self.rules:
            label = " ".join(part for part in (block, encoder if block else None) if part)
            names = spellings(key)
            for rule in self.rules:
                if rule.matches(label, names):
                    ratio = rule.weight
        return ratio

    def unlisted(self, keys: Iterable[str]) -> tuple[str, ...]:
        """The modules that are 0 only because the list is for a LoRA without convolutions."""
        return tuple(key for key in keys if (block_of(key) or BASE) not in self.blocks)

    @property
    def text(self) -> str:
        """The list for ``lbw=``, with every random value written out."""
        first = "/".join(map(number_text, self.text_encoders)) if self.text_encoders else number_text(self.weights[0])
        return ",".join([first, *(number_text(weight) for weight in self.weights[1:])])

    def _of_block(self, block: str, encoder: str | None) -> float:
        if encoder and self.text_encoders:
            return self.text_encoders[TEXT_BLOCKS.index(encoder)]
        return self.weights[self.blocks.index(block)] if block in self.blocks else 0.0


def resolve(
    lbw: str,
    architecture: Architecture,
    presets: Presets | None = None,
    *,
    lbwe: str = "",
    x: float | None = None,
    seed: int = 0,
    name: str = "",
) -> BlockWeights:
    """Block weights as a prompt or command line gives them.

    Args:
        lbw: a preset's name, or 12, 17, 20 or 26 values: numbers, ``R`` (uniform in 0…1), ``U`` (−0.5…1.5), ``X``,
            ``X+0.2``; for SDXL the first may be ``TE1/TE2``. Empty: all 1. Shorter lists leave the other blocks at 0.
        architecture: what the LoRA is for.
        presets: named lists; the shipped ones by default.
        lbwe: an element preset's name, or rules ``blocks:elements:weight`` with commas between them.
        x: the number for ``X`` (``x=`` in the tag); 1 by default.
        seed: of ``R`` and ``U``; the values are in the result's ``text``.
        name: of the LoRA, so that two in one prompt do not get the same random numbers.

    Raises:
        InputError: unknown preset, wrong length, wrong architecture, or no number.
    """
    if x is not None:
        parse_number(str(x), "x")
    known = presets or shipped_presets()
    rules = parse_rules(known.elements.get(lbwe, lbwe), architecture) if lbwe else ()
    if not lbw:
        return BlockWeights(architecture.convolutions, (1.0,) * len(architecture.convolutions), rules=rules)
    values = _values(lbw, architecture, known)
    blocks = architecture.lists[len(values)]
    rng = python_rng("block weights", seed, name)
    encoders = _text_encoders(values[0], architecture, x, rng)
    if encoders:
        values = [number_text(encoders[0]), *values[1:]]
    return BlockWeights(blocks, tuple(_weight(value, x, rng) for value in values), encoders, rules)


def single_block(block: str, architecture: Architecture, inside: float = 1.0, outside: float = 0.0) -> BlockWeights:
    """One block at ``inside`` and all others at ``outside``.

    Raises:
        InputError: the architecture has no such block.
    """
    if block not in (*architecture.convolutions, *architecture.text_encoders):
        raise _unknown_block(block, architecture)
    weights = tuple(inside if b == block else outside for b in architecture.convolutions)
    if block not in TEXT_BLOCKS:
        return BlockWeights(architecture.convolutions, weights)
    encoders = tuple(inside if encoder == block else outside for encoder in architecture.text_encoders)
    if len(encoders) == 1:
        return single_block(BASE, architecture, inside, outside)
    return BlockWeights(architecture.convolutions, (encoders[0], *weights[1:]), encoders)


def parse_rules(text: str, architecture: Architecture) -> tuple[ElementRule, ...]:
    """Rules ``blocks:elements:weight`` between commas or line ends; ranges ``IN05-OUT05``, several by spaces, ``NOT``.

    Raises:
        InputError: not a rule, an unknown block, or no number.
    """
    return tuple(_rule(part.strip(), architecture) for part in re.split(r"[,\n]", text) if part.strip())


def number_text(value: float) -> str:
    """The shortest text that is read as the same number again: ``1``, ``0.8``."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def parse_number(text: str, what: str) -> float:
    """A finite number.

    Raises:
        InputError: ``what`` is not one.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError("{what} must be a number, not {text}.", what=what, text=text[:100] or "nothing")
    return value


def _values(lbw: str, architecture: Architecture, presets: Presets) -> list[str]:
    """The list's values; fitting the architecture."""
    values = [value.strip() for value in (presets.find(lbw, architecture) or lbw).split(",")]
    if len(values) in architecture.lists:
        return values
    if len(values) == 1:
        raise InputError(
            "There is no block preset {name}; give one of {known}, or a list of {lengths} values.",
            name=lbw[:100],
            known=", ".join(presets.names(architecture)),
            lengths=architecture.lengths,
        )
    others = [a.name for a in ARCHITECTURES if len(values) in a.lists] if len(values) in LENGTHS else []
    if others:
        raise InputError(
            "The list of block weights has {count} values, as for {other}, but this LoRA is for {architecture}; give "
            "{lengths}.",
            count=len(values),
            other=others[0],
            architecture=architecture.name,
            lengths=architecture.lengths,
        )
    raise InputError(
        "The list of block weights has {count} values; for {architecture} give {lengths}.",
        count=len(values),
        architecture=architecture.name,
        lengths=architecture.lengths,
    )


def _text_encoders(value: str, architecture: Architecture, x: float | None, rng: random.Random) -> tuple[float, ...]:
    """The numbers of ``TE1/TE2``; nothing when one number stands for both."""
    if "/" not in value:
        return ()
    parts = value.split("/")
    if len(parts) != len(architecture.text_encoders):
        raise InputError(
            "The first block weight {value} is for {count} text encoders, but {architecture} has {has}; give as many.",
            value=value[:100],
            count=len(parts),
            architecture=architecture.name,
            has=len(architecture.text_encoders),
        )
    return tuple(_weight(part, x, rng) for part in parts)


def _weight(text: str, x: float | None, rng: random.Random) -> float:
    if text in _RANDOM:
        return round(rng.uniform(*_RANDOM[text]), 3)  # three decimals, as the reference
    if match := _FROM_TAG.fullmatch(text):
        offset = float(match[2] or 0)
        return (1.0 if x is None else x) + (-offset if match[1] == "-" else offset)
    return parse_number(text, "A block weight")


def _rule(text: str, architecture: Architecture) -> ElementRule:
    parts = text.split(":")
    if len(parts) != 3:
        raise InputError(
            "{text} is neither an element preset nor a rule; write blocks:elements:weight, e.g. IN05-OUT05:attn:0.",
            text=text[:100],
        )
    blocks, not_blocks = _negated(parts[0])
    elements, not_elements = _negated(parts[1])
    named = tuple(dict.fromkeys(name for token in blocks for name in _blocks(token, architecture)))
    return ElementRule(named, not_blocks, elements, not_elements, parse_number(parts[2], "An element's weight"))


def _negated(text: str) -> tuple[tuple[str, ...], bool]:
    words = tuple(text.split())
    return (words[1:], True) if words[:1] == ("NOT",) else (words, False)


def _blocks(token: str, architecture: Architecture) -> tuple[str, ...]:
    """The blocks that a word means: a name, the beginning of names, or a range over the order of the 26."""
    present = (*architecture.convolutions, *architecture.text_encoders)
    first, dash, last = token.replace("MID", "M00").partition("-")
    if not dash:
        if re.fullmatch(r"[A-Z]+\d*", first) and any(block.startswith(first) for block in present):
            return (first,)
        raise _unknown_block(token, architecture)
    if first not in ALL_BLOCKS or last not in ALL_BLOCKS:
        raise _unknown_block(token, architecture)
    low, high = sorted((ALL_BLOCKS.index(first), ALL_BLOCKS.index(last)))
    found = tuple(block for block in ALL_BLOCKS[low : high + 1] if block in present)
    if not found:
        raise _unknown_block(token, architecture)
    return found


def _unknown_block(block: str, architecture: Architecture) -> InputError:
    return InputError(
        "There is no block {block} in {architecture}; its blocks are {known}.",
        block=block[:100],
        architecture=architecture.name,
        known=" ".join((*architecture.convolutions, *architecture.text_encoders)),
    )


def factors(keys: Iterable[str], weights: BlockWeights, te: float = 1.0, unet: float = 1.0) -> Mapping[str, float]:
    """Each module's factor: its block weight times the weight of the text encoder or the UNet."""
    return {key: weights.ratio(key) * (te if text_encoder_of(key) else unet) for key in keys}


def of_blocks(
    values: Mapping[str, float], keys: Iterable[str], architecture: Architecture, default: float = 1.0
) -> BlockWeights:
    """Block weights from a number for each block (``TE1``, ``IN05``, …), as the shortest list that fits a LoRA.

    Args:
        values: the numbers.
        keys: the LoRA's modules; the long list is only made when one of them needs it.
        architecture: what the LoRA is for.
        default: for blocks without a number.
    """
    used = {block_of(key) for key in keys} - {None}
    blocks = architecture.attention if used <= set(architecture.attention) else architecture.convolutions
    encoders = tuple(values.get(encoder, default) for encoder in architecture.text_encoders)
    unet = tuple(values.get(block, default) for block in blocks[1:])
    return BlockWeights(blocks, (encoders[0], *unet), encoders if len(set(encoders)) > 1 else ())
