"""What a person does with a cell of a grid: vote for it, write it into the LoRA's card, bake it, use its picture."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora_trainer.core.documents import Damaged, read_document
from lora_trainer.core.errors import InputError
from lora_trainer.core.files import patiently, replace_atomically, write_error, write_json
from lora_trainer.hosts.base import LoraUse
from lora_trainer.network.card import card_to_change, write_card_file
from lora_trainer.runs.run import Run

log = logging.getLogger(__name__)
PREVIEW_TYPES = ("png", "jpg", "jpeg", "webp", "gif")
"""Pictures that the WebUI takes for a card's, as ``name.png`` or ``name.preview.png`` (ui_extra_networks.py:652)."""
_voting = threading.Lock()


@dataclass(frozen=True)
class Choice:
    """A cell of a run's grid.

    Attributes:
        run: whose grid it is.
        key: name of its picture.
        lora: the file and weight; ``None`` for the checkpoint alone.
        trigger: the run's trigger word, which may be empty.
    """

    run: Run
    key: str
    lora: LoraUse | None
    trigger: str

    @property
    def picture(self) -> Path:
        """The cell's picture, which is there once it is drawn."""
        from lora_trainer.validation.grid.document import grid_folder

        return grid_folder(self.run) / "cells" / f"{self.key}.png"

    def used(self) -> LoraUse:
        """The file and weight, where there are any.

        Raises:
            InputError: the cell shows the checkpoint alone, or the file was deleted.
        """
        if self.lora is None or not self.lora.weight:
            raise InputError("This cell shows the checkpoint without a LoRA; choose one with a LoRA.", field="cell")
        if not self.lora.path.is_file():
            raise InputError("{path} is gone; train it again, or choose another epoch.", path=self.lora.path)
        return self.lora


def find_cell(run: Run, key: str, column: int, weight: float) -> Choice:
    """A cell of the run's grid as the page names it.

    Args:
        run: the run.
        key: name of the cell's picture, which cells that show the same share.
        column: place of its file.
        weight: its weight.

    Raises:
        NotFound: the run has no grid.
        InputError: the grid has no such cell (any more).
    """
    from lora_trainer.validation.grid.document import known_grid

    document = known_grid(run)
    wanted = {"key": key, "column": column, "weight": weight}
    if not any(wanted.items() <= cell.items() for cell in document["cells"]):
        raise InputError("The grid of {name} has changed; choose the cell again.", field="cell", name=run.name)
    file = document["columns"][column]["file"]
    if file and file not in [entry["path"] for entry in run.manifest["files"]]:
        raise InputError("{path} is no file of the run {name}.", field="cell", path=file, name=run.name)
    return Choice(run, key, LoraUse(Path(file), weight) if file else None, document["trigger"])


# ------------------------------------------------------------------ votes
def votes(run: Run) -> dict[str, int]:
    """Votes by the cells' keys, 1 or -1; none when the file is damaged."""
    path = _votes_path(run)
    try:
        return _read_votes(path)
    except (OSError, Damaged) as error:
        log.warning("The votes in %s cannot be read: %s", path, error)
        return {}


def _read_votes(path: Path) -> dict[str, int]:
    try:
        return read_document(path, dict[str, Literal[1, -1]])
    except FileNotFoundError:
        return {}


def vote(choice: Choice, value: int) -> dict[str, int]:
    """Keep a vote for a cell, 1 or -1; 0 takes it back. Returns all votes.

    Raises:
        InputError: another value, or the votes so far are damaged.
    """
    if value not in (-1, 0, 1):
        raise InputError("A vote is 1, -1, or 0 to take it back, not {value}.", field="value", value=value)
    path = _votes_path(choice.run)
    with _voting:
        try:
            known = _read_votes(path)
        except Damaged as error:
            raise InputError(
                "The votes in {path} are damaged ({place}), and a new one would replace them all; repair that file, or "
                "delete it.",
                path=path,
                place=error.place,
            ) from error
        known.pop(choice.key, None)
        if value:
            known[choice.key] = int(value)
        write_json(path, known)
    return known


def _votes_path(run: Run) -> Path:
    from lora_trainer.validation.grid.document import grid_folder

    return grid_folder(run) / "votes.json"


# ------------------------------------------------------------------ the LoRA's card
def write_card(choice: Choice) -> Path:
    """Write the cell's weight and the trigger word into the ``.json`` beside its file; returns its path.

    All other entries stay. An activation text that has the trigger word in it stays as it is; before any other one the
    trigger word is put.

    Raises:
        InputError: no file, or the card that is there is damaged.
    """
    lora = choice.used()
    card = card_to_change(lora.path)
    card["preferred weight"] = lora.weight
    text = str(card.get("activation text") or "")
    if choice.trigger.lower() not in text.lower():
        card["activation text"] = ", ".join(filter(None, (choice.trigger, text)))
    return write_card_file(lora.path, card)


# ------------------------------------------------------------------ its picture
def set_preview(choice: Choice) -> tuple[Path, list[Path]]:
    """Make the cell's picture the one on the LoRA's card.

    A picture that was there is kept under another name, unless it is one of the run's own samples or cells.

    Returns:
        The card's picture, and those that were kept.

    Raises:
        InputError: no file, or the cell is not drawn yet.
    """
    return _place_preview(choice, choice.used().path)


def _place_preview(choice: Choice, file: Path) -> tuple[Path, list[Path]]:
    path = file.with_suffix(".png")
    kept = []
    try:
        picture = choice.picture.read_bytes()
        for old in _previews(file):
            if not _is_of_run(choice.run, old, picture):
                kept.append(_set_aside(old))
            elif old != path:  # the WebUI would show either of the two
                patiently(old.unlink)
    except FileNotFoundError as error:
        raise InputError("This cell is not drawn yet; wait for its picture.", field="cell") from error
    except OSError as error:
        raise write_error(path, error) from error
    replace_atomically(path, lambda temporary: temporary.write_bytes(picture))
    return path, kept


def _previews(file: Path) -> list[Path]:
    """Pictures that the WebUI may show on the file's card."""
    names = (f"{file.stem}{middle}.{kind}" for kind in PREVIEW_TYPES for middle in ("", ".preview"))
    return [path for path in map(file.with_name, names) if path.is_file()]


def _is_of_run(run: Run, picture: Path, new: bytes) -> bool:
    """Whether a picture is the new one, or a copy of one that the run keeps."""
    content = picture.read_bytes()
    return content == new or any(
        path.stat().st_size == len(content) and path.read_bytes() == content for path in _pictures(run)
    )


def _pictures(run: Run) -> Iterator[Path]:
    yield from run.samples.glob("*.png")
    yield from run.grids.glob("*/cells/*.png")


def _set_aside(picture: Path) -> Path:
    """Give a picture a name that is free, and that no card shows."""
    from lora_trainer.core.files import free_path

    stem = picture.name.partition(".preview.")[0] if ".preview." in picture.name else picture.stem
    kept = free_path(picture.with_name(f"{stem}-preview-kept{picture.suffix}"))
    return patiently(lambda: picture.rename(kept))


# ------------------------------------------------------------------ a new file
def bake_cell(choice: Choice) -> Path:
    """Write the cell's weight into a new file beside its own, which at 1 does what the cell shows; returns its path.

    It gets a card with the weight 1 and the cell's picture.

    Raises:
        InputError: no file, a damaged card, or a network that cannot be baked at this weight.
        RunError: the disk is full.
    """
    from lora_trainer.core.files import free_path
    from lora_trainer.network.blocks.weights import number_text
    from lora_trainer.network.ops.files import Baking, bake_file

    lora = choice.used()
    output = free_path(lora.path.with_name(f"{lora.path.stem}-weight{number_text(lora.weight)}.safetensors"))
    card = {**card_to_change(lora.path), **card_to_change(output)}  # one may be left of a file that was deleted
    bake_file(lora.path, output, Baking(lora.weight, lora.weight))
    text = str(card.get("activation text") or choice.trigger)
    write_card_file(output, {**card, "activation text": text, "preferred weight": 1.0})
    if choice.picture.is_file():
        _place_preview(choice, output)
    return output
