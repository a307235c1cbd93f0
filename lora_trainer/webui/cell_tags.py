"""The axes of a grid over LoRA files, weights and blocks: what their values mean, and how one cell's prompt is made.

All axes of a cell write into one :class:`CellTag`, which is put into the prompt once, at the end: so two of them never
fight over one tag, and other axes (a search and replace in the prompt) come before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from lora_trainer.core.errors import InputError
from lora_trainer.model.block_lists import BASE, TEXT_BLOCKS, Architecture
from lora_trainer.network.blocks.lora_tag import MARK, TAG, LoraTag, argument, parse_tag
from lora_trainer.network.blocks.presets import Presets, shipped_presets
from lora_trainer.network.blocks.weights import resolve, single_block
from lora_trainer.runs.saved_files import NO_LORA

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_LIST_VALUE = re.compile(rf"R|U|X|X[+-](?:\d+\.?\d*|\.\d+)|{_NUMBER}(?:/{_NUMBER})?")
_DECIMALS = 6


@dataclass(frozen=True)
class CellTag:
    """What the axes of one cell want of the LoRA tag; ``None`` leaves a part as the prompt has it.

    Attributes:
        file: a file's name without extension, :data:`NO_LORA` for none.
        family: names of files that stand for each other; a tag with one of them is the one that is meant.
        weight: of text encoders and UNet.
        te: of the text encoders.
        unet: of the UNet.
        lbw: a preset or list.
        block: only this block (``IN05``), or all but this one (``NOT IN05``), of the list.
    """

    file: str | None = None
    family: frozenset[str] = frozenset()
    weight: float | None = None
    te: float | None = None
    unet: float | None = None
    lbw: str | None = None
    block: str | None = None


# ------------------------------------------------------------------ the prompt of a cell
def compose(
    prompt: str, cell: CellTag, architecture: Architecture, presets: Presets | None = None, *, needed: bool = True
) -> str:
    """The prompt with the cell's tag.

    Changed is the tag marked with ``axis=…``, else one of the same family, else the first. A prompt without a tag gets
    one behind it when the cell names a file.

    Args:
        prompt: as it is drawn.
        cell: what the axes want.
        architecture: of the loaded checkpoint.
        presets: named block lists; the shipped ones by default.
        needed: raise when there is no tag and no file to make one; else the prompt stays as it is.

    Raises:
        InputError: no tag, or one that cannot be used.
    """
    place = _target(prompt, cell)
    if place is None:
        if not needed or cell.file == NO_LORA:
            return prompt
        if cell.file is None:
            raise InputError(
                "The prompt has no LoRA tag for this axis to change; write <lora:name:1> into it, or choose the file "
                "with an axis too."
            )
        return prompt + str(_changed(LoraTag(cell.file), cell, architecture, presets))
    begin, end = place
    tag = "" if cell.file == NO_LORA else str(_changed(parse_tag(prompt[begin:end]), cell, architecture, presets))
    return prompt[:begin] + tag + prompt[end:]


def _target(prompt: str, cell: CellTag) -> tuple[int, int] | None:
    found = [(match.start(), match.end(), match[2].split(":")) for match in TAG.finditer(prompt)]
    marked = [tag for tag in found if any((argument(item) or ("",))[0] == MARK for item in tag[2][1:])]
    related = [tag for tag in found if tag[2][0] in cell.family]
    return next(((begin, end) for begin, end, _ in (*marked, *related, *found)), None)


def _changed(tag: LoraTag, cell: CellTag, architecture: Architecture, presets: Presets | None) -> LoraTag:
    if cell.file is not None:
        tag = replace(tag, name=cell.file)
    if cell.weight is not None:
        tag = replace(tag, te=_rounded(cell.weight), unet=None)
    if cell.te is not None:  # the UNet's weight stays what it was, also where the tag did not name it
        tag = replace(tag, te=_rounded(cell.te), unet=tag.unet_weight)
    if cell.unet is not None:
        tag = replace(tag, unet=_rounded(cell.unet))
    if cell.lbw is not None:
        tag = replace(tag, lbw=cell.lbw)
    if cell.block is not None:
        tag = replace(tag, lbw=masked(tag.lbw, cell.block, architecture, presets))
    return tag


def _rounded(value: float) -> float:
    """Without the dust of a range such as 0.1-0.9(+0.2)."""
    return round(value, _DECIMALS)


def masked(lbw: str, block: str, architecture: Architecture, presets: Presets | None = None) -> str:
    """A list of block weights of which only one block is left, or all but one.

    Args:
        lbw: a preset or list; empty for all 1. Random values stay ``R`` and ``U``.
        block: ``IN05``, ``TE1`` or ``NOT IN05``.
        architecture: of the checkpoint.
        presets: named lists; the shipped ones by default.

    Raises:
        InputError: there is no such block, or the list is none.
    """
    word, _, rest = block.partition(" ")
    name, inverse = (rest.strip(), True) if word == "NOT" else (block, False)
    single_block(name, architecture)
    resolve(lbw, architecture, presets)
    known = presets or shipped_presets()
    values = (known.find(lbw, architecture) or lbw).split(",") if lbw else ["1"] * len(architecture.convolutions)
    blocks = architecture.lists[len(values)]
    if name in TEXT_BLOCKS and len(architecture.text_encoders) == 1:
        name = BASE
    kept = [value.strip() if (b == name) != inverse else "0" for b, value in zip(blocks, values, strict=True)]
    if name in TEXT_BLOCKS:
        parts = values[0].strip().split("/") * (1 if "/" in values[0] else 2)
        encoders = zip(TEXT_BLOCKS, parts, strict=True)
        kept[0] = "/".join(part if (encoder == name) != inverse else "0" for encoder, part in encoders)
    return ",".join(kept)


# ------------------------------------------------------------------ values of the axes
def block_lists(text: str) -> list[str]:
    """Presets and lists out of a text field.

    Lists have commas in them: write each in double quotes, or put ``;`` or a new line between the values. One list
    alone needs neither.
    """
    by_lines = ";" in text or "\n" in text.strip()
    parts = re.split(r"[;\n]", text) if by_lines else re.findall(r'"[^"]*"|[^,]+', text)
    values = [value for part in parts if (value := part.replace('"', " ").strip())]
    alone = len(values) > 1 and values == [part.strip() for part in text.split(",")]
    if alone and all(_LIST_VALUE.fullmatch(value) for value in values):
        return [",".join(values)]  # of a wrong length too: the sentence about it is clearer than one about presets
    return values


def block_choices(architecture: Architecture) -> list[str]:
    """The values of the axis for single blocks."""
    blocks = [*architecture.convolutions, *(architecture.text_encoders if len(architecture.text_encoders) > 1 else ())]
    return ["all", *blocks, *(f"NOT {block}" for block in blocks)]


def single_blocks(values: Iterable[str], architecture: Architecture) -> list[str]:
    """The blocks that are meant; ``all`` is each of them.

    Raises:
        InputError: an unknown block.
    """
    found: list[str] = []
    for value in values:
        words = " ".join(value.split())
        if words == "all":
            found += [block for block in block_choices(architecture)[1:] if not block.startswith("NOT ")]
        else:
            masked("", words, architecture)
            found.append(words)
    return list(dict.fromkeys(found))
