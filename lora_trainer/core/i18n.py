"""Sentences in the person's language.

The catalogue is ``localization/zh_CN.json`` in this package: English text → Chinese text. Sentences with values in them
stand there as templates with ``{names}``. The WebUI does not read it, since its script would put every text of its
whole page that equals one of ours into our words; what it reads is ``localizations/zh_CN.json`` of the extension, with
the few texts that only its script can translate.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from lora_trainer.core.messages import OWN_WORDS

log = logging.getLogger(__name__)
CATALOGUES = {"zh": Path(__file__).parent.parent / "localization" / "zh_CN.json"}
Translate = Callable[..., str]


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
