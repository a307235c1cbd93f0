"""What the page calls the fields that errors are about, and where they stand on it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from lora_trainer.config.train import options
from lora_trainer.core.errors import ConfigErrors, LoraTrainError
from lora_trainer.core.i18n import Translate

_PATH = re.compile(r"(?<![\w.{])[a-z]+\.[a-z_]+(?![\w}])")


@dataclass(frozen=True)
class Shown:
    """A field of the page: its English label, and the ``elem_id`` of its widget."""

    label: str
    widget: str


Fields = Mapping[str, Shown]
"""Path in errors → what stands on the page."""


@lru_cache(maxsize=1)
def form_fields() -> Fields:
    """The fields of a run's settings."""
    return {item.path: Shown(item.title, form_widget(item.path)) for item in options()}


def form_widget(path: str) -> str:
    """The ``elem_id`` of a setting's widget."""
    return "lora_train_" + path.replace(".", "_")


def field_sentences(error: LoraTrainError, fields: Fields, translate: Translate) -> list[tuple[str, str]]:
    """The widget and the sentence of each thing that is wrong, the fields in it by the labels that the person sees.

    Args:
        error: one, or several at once.
        fields: those that stand on the page; the settings of a run are known besides.
        translate: into the person's language.
    """
    errors = error.errors if isinstance(error, ConfigErrors) else [error]
    return [_field_sentence(each, fields, translate) for each in errors]


def _field_sentence(error: LoraTrainError, fields: Fields, t: Translate) -> tuple[str, str]:
    def label(found: re.Match[str]) -> str:
        known = form_fields().get(found[0])
        return f"“{t(known.label)}”" if known else found[0]

    shown = fields.get(error.field)
    template = t(error.message.template)
    begins = template.startswith(f"{error.field}:")
    head, rest = (error.field, template[len(error.field) :]) if begins else ("", template)
    sentence = head + replace(error.message, template=_PATH.sub(label, rest)).text(t)
    if shown and sentence.startswith(error.field):
        sentence = t(shown.label) + sentence[len(error.field) :]
    return (shown.widget if shown else ""), sentence
