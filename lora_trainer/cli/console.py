"""Standard output: results that no library prints into, in whatever encoding the console has."""

from __future__ import annotations

import io
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any, TextIO

from lora_trainer.core.plain_json import json_text

_TURNING = frozenset(("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"))
_results: list[TextIO] = []
"""Where results go while standard output is kept for them; the innermost last."""


def prepare_streams() -> None:
    """Let both streams take every character: what their encoding lacks is written as ``\\u2588``.

    Files and pipes on Windows are cp1252, cp936 or cp437, which have no █ or no Chinese.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def results_only() -> Iterator[None]:
    """Keep standard output for :func:`print_json`; whatever else is printed within goes to standard error.

    Python's ``print`` and what libraries in C write to the file with number 1 alike.
    """
    with ExitStack() as stack:
        _results.append(stack.enter_context(_own_file(sys.stdout)))
        stack.callback(_results.pop)
        stack.enter_context(redirect_stdout(sys.stderr))
        yield


@contextmanager
def _own_file(stream: TextIO) -> Iterator[TextIO]:
    """The stream under another number while number 1 is standard error; itself where it is no file."""
    try:
        is_output = stream.fileno() == 1
    except (OSError, ValueError, AttributeError):  # in a test, or in a program without a console
        is_output = False
    if not is_output:
        yield stream
        return
    stream.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with open(kept, "w", encoding=stream.encoding, errors=stream.errors, closefd=False) as file:
            yield file
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def print_json(value: Any) -> None:
    """Print a result that a program can read: one JSON value, in ASCII where standard output is not UTF-8."""
    stream = _results[-1] if _results else sys.stdout
    unicode = (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"
    print(json_text(value, indent=1, ascii=not unicode), file=stream, flush=True)


def one_line(text: str) -> str:
    """A sentence on one line, whatever stands in the names that it tells: of another's file they may be anything.

    Line breaks, control characters (which move the cursor or colour a terminal) and those that turn the direction of
    writing are written as Python does: ``\\n``, ``\\x1b``, ``\\u202e``.
    """
    return "".join(c.encode("unicode_escape").decode() if _moves(c) else c for c in text)


def _moves(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Zl", "Zp") or unicodedata.bidirectional(character) in _TURNING


def can_print(text: str) -> bool:
    """Whether standard output has these characters."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
