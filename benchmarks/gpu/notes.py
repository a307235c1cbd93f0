"""What a check has found, written to disk after every part, so that a killed check keeps what it has."""

from __future__ import annotations

import gc
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

LAST_LINES = 6


class Notes:
    """The parts of one check.

    A part is a dictionary of plain values. ``says`` is its line in the table; ``holds`` has sentences that should be
    true, and whether they are.

    Args:
        path: the JSON file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.parts: dict[str, dict[str, Any]] = {}
        self._write(finished=False)

    def part(self, name: str, work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        """Do one part; one that fails costs only itself. Returns what it found, empty when it failed."""
        try:
            found = work(*arguments)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - libraries raise whatever they like, exit() too
            self.parts[name] = {"failed": last_lines("".join(traceback.format_exception(error)))}
            found = {}
        else:
            self.parts[name] = found
        _free_memory()
        self._write(finished=False)
        return found

    def finish(self) -> None:
        """Say that nothing is to come."""
        self._write(finished=True)

    def _write(self, *, finished: bool) -> None:
        temporary = self._path.with_suffix(".part")
        temporary.write_text(json.dumps({"finished": finished, "parts": self.parts}), encoding="utf-8")
        temporary.replace(self._path)


def last_lines(text: str) -> list[str]:
    """The end of what a program said."""
    return [line[:300] for line in text.splitlines() if line.strip()][-LAST_LINES:]


def _free_memory() -> None:
    """A failed part must not take memory from the next."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
