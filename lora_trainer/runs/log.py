"""A run's log, ``log.jsonl``: one JSON object a line, read from where the last reader stopped.

A run of half a million steps is asked for every second. So each line is looked at once: what is kept of it is where it
stands (for whoever asks for the entries behind a step) and its share of a curve of at most :data:`MOST_BINS` points.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from lora_trainer.core.documents import LARGEST, Damaged, checked, parsed
from lora_trainer.core.errors import InputError
from lora_trainer.core.files import append_line, patiently
from lora_trainer.core.plain_json import json_text
from lora_trainer.runs.manifest import LogEntry

MOST_BINS = 2000
_BLOCK_BYTES = 256 * 1024
_CHUNK_BYTES = 8 * 1024 * 1024


@dataclass
class _Block:
    """A piece of the file, and the lowest and highest step in it."""

    start: int
    end: int
    low: int = LARGEST
    high: int = -1


@dataclass
class _Bin:
    """Steps that are one point of the curve: first and last, sum and count of the losses, the last rates."""

    first: int
    last: int = 0
    total: float = 0.0
    count: int = 0
    rates: Any = None


@dataclass
class _Curve:
    """The losses over the steps, thinner the more there are."""

    width: int = 1
    bins: list[_Bin] = field(default_factory=list)
    tested: list[tuple[int, LogEntry]] = field(default_factory=list)

    def add(self, step: int, entry: dict[str, Any]) -> None:
        """Put an entry in. Steps that are done again, since a run was resumed, take the place of the earlier ones."""
        if "validation" in entry:
            while self.tested and self.tested[-1][0] >= step and not entry.get("base"):
                self.tested.pop()
            try:
                self.tested.append((step, checked(entry, LogEntry)))
            except Damaged:
                return
            if len(self.tested) > 2 * MOST_BINS:
                self.tested = self.tested[::2]
            return
        while self.bins and self.bins[-1].first >= step:
            self.bins.pop()
        if not self.bins or (step - 1) // self.width != (self.bins[-1].first - 1) // self.width:
            self._thin()
            self.bins.append(_Bin(step))
        last = self.bins[-1]
        last.last, last.rates = step, entry.get("lr")
        loss = entry.get("loss")
        if isinstance(loss, (int, float)) and not isinstance(loss, bool) and math.isfinite(loss):
            last.total, last.count = last.total + loss, last.count + 1

    def _thin(self) -> None:
        if len(self.bins) < 2 * MOST_BINS:
            return
        self.width *= 2
        kept: list[_Bin] = []
        for each in self.bins:
            if kept and (each.first - 1) // self.width == (kept[-1].first - 1) // self.width:
                before = kept[-1]
                total, count = before.total + each.total, before.count + each.count
                kept[-1] = _Bin(before.first, each.last, total, count, each.rates)
            else:
                kept.append(each)
        self.bins = kept

    def points(self) -> list[LogEntry]:
        """As log entries, in the order of their steps."""
        found = [entry for _, entry in self.tested]
        for each in self.bins:
            entry: dict[str, Any] = {"step": each.last, "lr": each.rates if isinstance(each.rates, dict) else {}}
            if each.count:
                entry["loss"] = each.total / each.count
            try:
                found.append(checked(entry, LogEntry))
            except Damaged:  # rates that are none
                found.append({"step": each.last, "loss": entry.get("loss")})
        return sorted(found, key=lambda entry: entry["step"])


class RunLog:
    """One log, read and written by any number of threads; other programs may write it too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._forget(None)

    def _forget(self, file: object) -> None:
        """Begin at the start of a file, ``None`` for none."""
        self._file = file
        self._read = 0
        self._blocks: list[_Block] = []
        self._curve = _Curve()

    def append(self, entry: dict[str, Any]) -> None:
        """Write one line; NaN and Infinity are written as ``null``.

        Raises:
            RunError: it cannot be written.
        """
        append_line(self._path, json_text(entry).encode())

    def entries(self, after: int = 0, limit: int | None = None) -> list[LogEntry]:
        """The entries behind step ``after`` by step; of steps done twice (resumed), the later ones.

        Args:
            after: a step.
            limit: about how many at most; all entries of the last step are among them, so one can ask for those
                behind it.

        Raises:
            InputError: the file cannot be read.
        """
        with self._lock:
            self._look()
            blocks = [block for block in self._blocks if block.high > after]
            blocks.append(_Block(self._read, -1, LARGEST, LARGEST))  # a last line without its end
        found: dict[tuple[int, bool], tuple[int, LogEntry]] = {}
        for block in sorted(blocks, key=lambda block: block.low):
            if limit is not None and len(found) >= limit and sorted(found)[limit - 1][0] < block.low:
                break
            for place, entry in self._entries_of(block):
                key = entry["step"], "validation" in entry
                if entry["step"] > after and (key not in found or found[key][0] < place):
                    found[key] = place, entry
        keys = sorted(found)
        if limit is not None and len(keys) > limit:
            last = keys[limit - 1][0]
            keys = [key for key in keys if key[0] <= last]
        return [found[key][1] for key in keys]

    def curve(self) -> list[LogEntry]:
        """The whole run in at most a few thousand points, each the mean of steps that follow each other.

        Raises:
            InputError: the file cannot be read.
        """
        with self._lock:
            self._look()
            return self._curve.points()

    # -------------------------------------------------------------- within
    def _look(self) -> None:
        """Look at what was written since the last time."""
        try:
            status = self._path.stat()
            known = (status.st_dev, status.st_ino)
            if self._file != known or status.st_size < self._read:
                self._forget(known)
            if status.st_size > self._read:
                with patiently(lambda: self._path.open("rb")) as file:
                    file.seek(self._read)
                    while chunk := file.read(_CHUNK_BYTES):
                        if not self._take(chunk):
                            break
                        file.seek(self._read)
        except FileNotFoundError:
            self._forget(None)
        except OSError as error:
            raise InputError(
                "The log {path} cannot be read: {error}.", path=self._path, error=error.strerror or error
            ) from error

    def _take(self, chunk: bytes) -> bool:
        """Take in the whole lines of a piece of the file; ``False`` when there is none."""
        end = chunk.rfind(b"\n") + 1
        if not end and len(chunk) < _CHUNK_BYTES:
            return False
        end = end or len(chunk)  # no line is that long: whatever it is, it is not ours
        for line in chunk[:end].split(b"\n")[:-1] if chunk[end - 1 : end] == b"\n" else [chunk[: end - 1]]:
            self._take_line(line)
        return True

    def _take_line(self, line: bytes) -> None:
        start, self._read = self._read, self._read + len(line) + 1
        if not self._blocks or self._read - self._blocks[-1].start > _BLOCK_BYTES:
            self._blocks.append(_Block(start, self._read))
        block = self._blocks[-1]
        block.end = self._read
        try:
            entry = json.loads(line)
            step = entry["step"]
        except (ValueError, TypeError, LookupError, RecursionError):
            return
        if type(step) is not int and not (isinstance(step, float) and step.is_integer()):
            return
        step = int(step)
        if not 0 <= step <= LARGEST:
            return
        block.low, block.high = min(block.low, step), max(block.high, step)
        self._curve.add(step, entry)

    def _entries_of(self, block: _Block) -> Iterator[tuple[int, LogEntry]]:
        """The readable entries of a block, each with its place in the file; a damaged line is left out."""
        try:
            with patiently(lambda: self._path.open("rb")) as file:
                file.seek(block.start)
                text = file.read(block.end - block.start if block.end >= 0 else _CHUNK_BYTES)
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(
                "The log {path} cannot be read: {error}.", path=self._path, error=error.strerror or error
            ) from error
        for number, line in enumerate(text.split(b"\n")):
            try:
                yield block.start + number, cast(LogEntry, parsed(line, LogEntry))
            except Damaged:
                continue
