"""Sentences in the person's language.

The catalogue is ``localization/zh_CN.json`` in this package: English text → Chinese text. Sentences with values in them
stand there as templates with ``{names}``. The WebUI does not read it, since its script would put every text of its
whole page that equals one of ours into our words; what it reads is ``localizations/zh_CN.json`` of the extension, with
the few texts that only its script can translate.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from lora_trainer.core.errors import ConfigErrors, LoraTrainError

log = logging.getLogger(__name__)
CATALOGUES = {"zh": Path(__file__).parent.parent / "localization" / "zh_CN.json"}
Translate = Callable[..., str]
OWN_WORDS = frozenset({"wanted", "state", "half", "kind", "detail"})
"""Names of values that hold words of the program, which are translated too; names and paths never stand in these."""


@lru_cache(maxsize=4)
def catalogue(language: str) -> dict[str, str]:
    """The catalogue of a language; empty for English."""
    path = CATALOGUES.get(language)
    if path is None:
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        log.warning("The translation %s cannot be read: %s", path, error)
        return {}


def translator(language: str) -> Translate:
    """A function that puts a text or template into ``language`` and fills in its values."""
    known = catalogue(language)

    def translate(text: str, /, **values: Any) -> str:
        template = known.get(text, text)
        return template.format(**{name: own(name, value) for name, value in values.items()}) if values else template

    def own(name: str, value: Any) -> Any:
        """The value; put into the language when it is a word of ours. The catalogue has words without outer spaces."""
        return known.get(value.strip(), value) if name in OWN_WORDS and isinstance(value, str) else value

    return translate


def error_sentence(error: LoraTrainError, translate: Translate) -> str:
    """An error's sentence in the person's language."""
    if isinstance(error, ConfigErrors):
        return " ".join(error_sentence(e, translate) for e in error.errors)
    return translate(error.template, **error.values)


def message_sentence(manifest: Mapping[str, Any], translate: Translate) -> str:
    """A manifest's message in the person's language."""
    parts = manifest.get("error") or {}
    if parts.get("template"):
        return filled(parts, translate)
    return translate(str(manifest.get("message") or ""))


def filled(sentence: Mapping[str, Any], translate: Translate = lambda text: text) -> str:
    """A sentence of a document, ``{"template": …, "values": …}``, in the person's language.

    The document may be anybody's, so its template is not given to :meth:`str.format`, which reaches into values and
    pads them to any width: only plain ``{name}`` and the few formats of our own sentences are filled in, with values
    of a bounded length. Whatever does not fit stands there as it is.
    """
    values = sentence.get("values")
    known = values if isinstance(values, Mapping) else {}

    def fill(place: re.Match[str]) -> str:
        name, form = place[1], place[2] or ""
        if place[0] in _BRACES:
            return _BRACES[place[0]]
        return _shown(_own_word(name, known[name], translate), form) if name in known else place[0]

    template = str(sentence.get("template") or "")[:_LONGEST]
    return _PLACE.sub(fill, translate(template))[:_MOST] if known else translate(template)


_LONGEST, _MOST = 4000, 20_000
"""Characters of a template or a value, and of a sentence."""
_BRACES = {"{{": "{", "}}": "}"}
_PLACE = re.compile(r"\{\{|\}\}|\{([A-Za-z_]\w*)(?::(\+?(?:\.\d)?[efg%]?))?\}", re.ASCII)


def _own_word(name: str, value: Any, translate: Translate) -> Any:
    """The value; put into the language when it is a word of ours."""
    if name not in OWN_WORDS or not isinstance(value, str):
        return value
    word = value.strip()
    return found if (found := translate(word)) != word else value


def _shown(value: Any, form: str) -> str:
    """A value in a format such as ``.3f``; one that is no number as it is."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return format(float(value) if form else value, form)[:_LONGEST]
        except OverflowError:
            pass
    return ("–" if value is None else str(value))[:_LONGEST]
