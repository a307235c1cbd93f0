"""Numbers that were measured before, in one JSON file."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from lora_trainer.core.documents import Damaged, read_document
from lora_trainer.core.files import write_json

log = logging.getLogger(__name__)
_VERSION = 1
_WRITE_EVERY = 5.0


class _Numbers(TypedDict):
    """The file; ``None`` was measured and is no number."""

    version: int
    numbers: dict[str, list[float | None]]


class NumberCache:
    """Lists of numbers under keys. What cannot be read is measured again.

    Args:
        path: the file; ``None`` keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._values = _read(path) if path else {}
        self._changed = False
        self._written = time.monotonic()

    def get(self, key: str) -> list[float] | None:
        """The numbers of a key, or ``None``."""
        return self._values.get(key)

    def put(self, key: str, numbers: Sequence[float]) -> None:
        """Note numbers; the file is written now and then.

        Raises:
            RunError: the file cannot be written.
        """
        self._values[key] = list(numbers)
        self._changed = True
        if time.monotonic() - self._written >= _WRITE_EVERY:
            self.write()

    def write(self) -> None:
        """Write the file if there is anything new. Raises as :meth:`put`."""
        if self._path is not None and self._changed:
            write_json(self._path, {"version": _VERSION, "numbers": self._values})
        self._changed = False
        self._written = time.monotonic()


def cache_key(*parts: object) -> str:
    """A key for everything that numbers depend on."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _read(path: Path) -> dict[str, list[float]]:
    try:
        document = read_document(path, _Numbers)
        if document["version"] != _VERSION:
            return {}
        found = document["numbers"].items()
        return {key: [math.nan if n is None else n for n in numbers] for key, numbers in found}
    except FileNotFoundError:
        return {}
    except (OSError, Damaged) as error:
        log.warning("%s is damaged (%s); its numbers are measured again.", path, error)
        return {}
