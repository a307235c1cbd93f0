"""Lists as people type them into one line."""

from __future__ import annotations

from lora_trainer.core.errors import InputError


def parts(text: str) -> list[str]:
    """What stands between commas, Chinese ones too."""
    for comma in "，、":
        text = text.replace(comma, ",")
    return [part.strip() for part in text.split(",") if part.strip()]


def weights(text: str) -> list[float]:
    """LoRA weights; raises :class:`InputError` for what is no number."""
    found = []
    for part in parts(text):
        try:
            found.append(float(part))
        except ValueError:
            raise InputError(
                "weights: “{text}” is not a number; write 0.3, 0.6, 0.8.", field="weights", text=part[:40]
            ) from None
    return found


def seeds(text: str) -> list[int]:
    """Seeds; raises :class:`InputError` for what is no whole number."""
    found = []
    for part in parts(text):
        try:
            found.append(int(part))
        except ValueError:
            raise InputError(
                "seeds: “{text}” is not a whole number; write 1, 2, 3.", field="seeds", text=part[:40]
            ) from None
    return found
