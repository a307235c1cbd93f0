"""The small file beside a LoRA that the WebUI's Lora tab reads."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_trainer.core.documents import Damaged, read_document
from lora_trainer.core.errors import InputError, LoraTrainError
from lora_trainer.core.files import read_json, write_json

log = logging.getLogger(__name__)


def copy_card(source: Path, output: Path, weight: float = 1.0) -> None:
    """Give a file the card (``.json``: activation text, notes …) of the one it was made from.

    Args:
        source: whose card it is; without one nothing is done.
        output: the new file; a card that it has is left alone.
        weight: that was baked in. The preferred weight becomes so much less, so that it means the same strength.
    """
    new = output.with_suffix(".json")
    card = read_card(source)
    if new.exists() or not card:
        return
    preferred = card.get("preferred weight")
    if weight and isinstance(preferred, (int, float)) and not isinstance(preferred, bool):
        card["preferred weight"] = round(preferred / weight, 3)
    try:
        write_json(new, card)
    except LoraTrainError as error:  # the file itself is there, and that is what was asked for
        log.warning("%s", error)


def read_card(path: Path) -> dict[str, Any]:
    """The card beside a LoRA file, ``.json`` with activation text, notes …; empty where none can be read."""
    card = path.with_suffix(".json")
    try:
        found = read_json(card)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("The card %s cannot be read: %s", card, error)
        return {}
    return found if isinstance(found, dict) else {}


def card_to_change(file: Path) -> dict[str, Any]:
    """The card beside a LoRA file, to be written again with more in it; empty where there is none.

    Raises:
        InputError: it cannot be read, so what stands in it would be lost.
    """
    path = file.with_suffix(".json")
    try:
        return read_document(path, dict[str, Any])
    except FileNotFoundError:
        return {}
    except (OSError, Damaged) as error:
        raise InputError(
            "{path} is no readable JSON, so it is left as it is; repair or delete it.", path=path
        ) from error


def write_card_file(file: Path, card: Mapping[str, Any]) -> Path:
    """Write the card beside a LoRA file; returns where. Raises :class:`RunError`."""
    path = file.with_suffix(".json")
    write_json(path, dict(card))
    return path
