"""Paths as people type and paste them: in quotes, with blanks around them, with ``~`` in front."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

_QUOTES = ('""', "''", "“”", "‘’", "„“", "””", "’’", "‚‘", "＂＂")
_UNSEEN = "\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
"""Stand before a path that is copied from Windows' properties dialog, and behind what is copied from a chat."""


def clean_path(text: str) -> str:
    """The path that a text means: without blanks, quotes around it, and characters that nobody sees at its ends.

    Windows' “Copy as path” puts it into quotes, word processors into curly ones. A double quote at one end alone is
    what the Windows shell makes of ``"C:\\my pictures\\"``.
    """
    while True:
        before = text
        text = text.strip().strip(_UNSEEN)
        quoted = len(text) > 1 and text[0] + text[-1] in _QUOTES
        text = text[1:-1] if quoted else text.strip('"')
        if text == before:
            return text


def expand(text: str | Path) -> Path:
    """The path that a text means, with the home folder for ``~``.

    Never raises: a name that only begins with ``~``, and is no person's here, stays as it is.
    """
    path = Path(clean_path(str(text)))
    if os.name == "nt" and path.parts and path.parts[0] != "~":
        return path  # there any ~name would be taken for a folder beside the home, whether it exists or not
    try:
        return path.expanduser()
    except (RuntimeError, ValueError):
        return path


def exists(path: Path) -> bool:
    """Whether there is something at a path; ``False`` also for what can be none, as it is too long."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Whether there is a file at a path; ``False`` also for what can be none, as it is too long."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def impossible(path: Path) -> str:
    """Why nothing can be at a path, as a sentence with a place for the ``{text}``; empty where something may be.

    A missing file is none of these: what it is for says so better.
    """
    try:
        path.stat()
    except ValueError:
        return "“{text}” has characters that no file name can have; check the path."
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "“{text}” is a link that leads to itself; name the file or folder itself."
        if error.errno == errno.ENAMETOOLONG:
            return "“{text}” is longer than a path can be; check the path."
    return ""


def free_name(wanted: str, is_taken: Callable[[str], bool]) -> str:
    """``wanted``, or the first of ``wanted-2``, ``wanted-3`` … that is not taken."""
    number, free = 2, wanted
    while is_taken(free):
        free, number = f"{wanted}-{number}", number + 1
    return free
