"""The axes of a grid over LoRA files, weights and blocks: what their values mean, and how one cell's prompt is made.

All axes of a cell write into one :class:`CellTag`, which is put into the prompt once, at the end: so two of them never
fight over one tag, and other axes (a search and replace in the prompt) come before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_trainer.errors import InputError
from lora_trainer.network.block_presets import Presets, shipped_presets
from lora_trainer.network.block_weights import resolve, single_block
from lora_trainer.network.blocks import BASE, TEXT_BLOCKS, Architecture
from lora_trainer.network.lora_tag import MARK, TAG, LoraTag, argument, parse_tag
from lora_trainer.runs import is_by_step

NO_LORA = "None"
"""The value of a file axis for the picture without the LoRA."""
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_LIST_VALUE = re.compile(rf"R|U|X|X[+-](?:\d+\.?\d*|\.\d+)|{_NUMBER}(?:/{_NUMBER})?")
_EVERY = re.compile(r"every\s+(\d+)")
_RANGE = re.compile(r"(\d+)\s*-\s*(\d+)")
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


@dataclass(frozen=True)
class RunFiles:
    """A run's finished files in their order.

    Attributes:
        run: its name.
        files: ``3`` or ``step 40`` → the file.
        epochs: of the same labels, the epoch; ``None`` for files saved by steps.
    """

    run: str
    files: dict[str, Path]
    epochs: dict[str, int | None]

    @classmethod
    def of(cls, run: str, entries: Iterable[dict[str, Any]]) -> RunFiles:
        """From the manifest's ``files``; of several of one epoch the last counts."""
        files: dict[str, Path] = {}
        epochs: dict[str, int | None] = {}
        for entry in entries:
            by_step = is_by_step(run, entry)
            label = f"step {entry['step']}" if by_step else str(entry["epoch"])
            files[label], epochs[label] = Path(entry["path"]), None if by_step else int(entry["epoch"])
        return cls(run, files, epochs)

    @property
    def names(self) -> frozenset[str]:
        """The names by which prompts call them."""
        return frozenset(path.stem for path in self.files.values())

    def choices(self) -> list[str]:
        """What the axis offers: each file, and the ways to name several."""
        several = ["all", "every 2", "last"] if len(self.files) > 2 else ["all"]
        return [f"{self.run}: {label}" for label in (*several, *self.files)]


class EpochValue(str):
    """A value of the axis *LoRA run epoch* as it is shown, with the file that it stands for."""

    file: Path | None
    family: frozenset[str]

    def __new__(cls, text: str, file: Path | None = None, family: frozenset[str] = frozenset()) -> EpochValue:
        """The value; ``file`` is ``None`` for the picture without the LoRA."""
        value = super().__new__(cls, text)
        value.file, value.family = file, family
        return value


def epoch_values(texts: Iterable[str], runs: Sequence[RunFiles], prompt: str = "") -> list[EpochValue]:
    """The files that the values mean.

    Args:
        texts: ``run: 3``, ``run: all``, ``run: every 2``, ``run: 1-5``, ``run: last``, ``run: step 40``; without a run
            that of the value before, else the one whose file is in the prompt, else the newest. ``None`` is the
            picture without the LoRA.
        runs: the newest first.
        prompt: of the grid.

    Raises:
        InputError: no such run or epoch, or a file that is named is gone. Of ``all``, ``every`` and ranges, files that
            are gone are left out while others are there.
    """
    run = next((r for r in runs if any(tag[2].split(":")[0] in r.names for tag in TAG.finditer(prompt))), None)
    run = run or next((r for r in runs if r.files), None)
    found: dict[str, EpochValue] = {}
    for text in (" ".join(text.split()) for text in texts):
        if text.lower() == NO_LORA.lower():
            found[NO_LORA] = EpochValue(NO_LORA, None, run.names if run else frozenset())
            continue
        name, colon, wanted = text.rpartition(":")
        if colon:
            run = next((r for r in runs if r.run == name.strip()), None)
            if run is None:
                raise InputError("There is no run named {name}.", field="name", name=name.strip()[:100])
        if run is None:
            raise InputError("There is no run with LoRA files yet; train one, or use the axis for files.")
        for label in _labels(run, wanted.strip()):
            value = EpochValue(f"{run.run}: {label}", run.files[label], run.names)
            found.setdefault(value, value)
    return list(found.values())


def _labels(run: RunFiles, wanted: str) -> list[str]:
    """The files of a run that a value means."""
    several = _several(run, wanted)
    if several is None:
        if wanted not in run.files:
            raise InputError(
                "The run {run} has no epoch {wanted}; it has {known}.",
                run=run.run,
                wanted=wanted[:50] or "of no number",
                known=", ".join(run.files) or "no files yet",
            )
        several = [wanted]
    there = [label for label in several if run.files[label].is_file()]
    if not there:
        raise InputError(
            "The run {run} has no file any more for {wanted}: {path} is gone.",
            run=run.run,
            wanted=wanted[:50],
            path=run.files[several[0]].name if several else "every one",
        )
    return there


def _several(run: RunFiles, wanted: str) -> list[str] | None:
    """The files that ``all``, ``last``, ``every N`` and ``A-B`` mean; ``None`` for anything else."""
    labels = list(run.files)
    epochs = {label: epoch for label, epoch in run.epochs.items() if epoch is not None}
    if wanted == "all":
        return labels
    if wanted == "last":
        return labels[-1:]
    if match := _EVERY.fullmatch(wanted):
        every = max(1, int(match[1]))
        return [label for label, epoch in epochs.items() if epoch % every == 0 or label == labels[-1]]
    if match := _RANGE.fullmatch(wanted):
        first, last = sorted((int(match[1]), int(match[2])))
        chosen = [label for label, epoch in epochs.items() if first <= epoch <= last]
        if not chosen:
            return None
        return chosen
    return None
