"""Lists as people type them into one line."""

from __future__ import annotations

from typing import Any

from lora_trainer.config.schema import field_error


def parts(text: str) -> list[str]:
    """What stands between commas, Chinese ones too."""
    for comma in "，、":
        text = text.replace(comma, ",")
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(field: str, kind: type, text: str) -> list[Any]:
    """The numbers of a field.

    Args:
        field: that an error is about.
        kind: ``int`` or ``float``.
        text: the line.

    Raises:
        InputError: a part of it is no such number.
    """
    found = []
    for part in parts(text):
        try:
            found.append(kind(part))
        except ValueError:
            if kind is int:
                sentence = field_error(field, "“{text}” is not a whole number; write 1, 2, 3.", text=part[:40])
            else:
                sentence = field_error(field, "“{text}” is not a number; write 0.3, 0.6, 0.8.", text=part[:40])
            raise sentence from None
    return found


def weights(text: str) -> list[float]:
    """LoRA weights; raises :class:`InputError` for what is no number."""
    return numbers("weights", float, text)


def seeds(text: str) -> list[int]:
    """Seeds; raises :class:`InputError` for what is no whole number."""
    return numbers("seeds", int, text)
