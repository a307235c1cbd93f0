"""JSON that every program can read: no NaN, no infinity, no half characters. All JSON of ours is written and read here.

Python writes ``NaN`` and ``Infinity``, which are no JSON: browsers and other languages refuse the whole document. Such
a number becomes ``null``; so does one in what is read, since other programs write them into a LoRA file's metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

DEEPEST = 64
"""Lists and tables within each other; more is damage or an attack, and would exhaust the stack of whoever walks it."""


def json_text(value: Any, *, indent: int | None = None, compact: bool = False, ascii: bool = False) -> str:
    """A value as strict JSON: NaN and infinities are ``null``, half characters become U+FFFD.

    Args:
        value: plain values; mappings and tuples are taken too.
        indent: spaces a level, or ``None`` for one line.
        compact: without blanks, for what a program alone reads.
        ascii: every other character as ``\\u2588``.

    Raises:
        TypeError: it has something that JSON cannot say.
    """
    encoder = json.JSONEncoder(
        indent=indent, separators=(",", ":") if compact else None, ensure_ascii=ascii, allow_nan=False
    )
    try:
        text = encoder.encode(plain(value) if ascii else value)
        text.encode("utf-8")
    except (ValueError, TypeError):  # seldom, so that the usual document is not walked twice
        return encoder.encode(plain(value))
    return text


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, fit to be written again: see :func:`json_text`.

    Raises:
        ValueError: it is no JSON, no UTF-8, or nested deeper than :data:`DEEPEST`.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        value = json.loads(text, parse_constant=lambda name: None, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    may_be_deep = text.count("[") + text.count("{") > DEEPEST
    return plain(value) if may_be_deep or "\\u" in text or not _is_whole(text) else value


def plain(value: Any, depth: int = 0) -> Any:
    """A copy with nothing in it that strict JSON cannot say: for whoever serialises by other means.

    Raises:
        ValueError: it is nested deeper than :data:`DEEPEST`.
    """
    if depth > DEEPEST:
        raise ValueError("it is nested too deeply")
    if isinstance(value, str):
        return value if _is_whole(value) else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_key(key): plain(each, depth + 1) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each, depth + 1) for each in value]
    return value


def _key(key: Any) -> str:
    return plain(key) if isinstance(key, str) else json.dumps(key)


def _finite(text: str) -> float | None:
    """A number; ``1e999`` is infinite for Python."""
    number = float(text)
    return number if math.isfinite(number) else None


def _is_whole(text: str) -> bool:
    """Whether UTF-8 can say it; half a character (a lone surrogate) it cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
