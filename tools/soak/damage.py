"""Every way in which a document of plain values can be damaged."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

DEEP: Any = "x"
for _ in range(200):
    DEEP = [DEEP]
WRONG: list[Any] = [
    None, True, -1, 3, 10**30, 0.5, 1e308, float("nan"), float("inf"), "", "x", "a\0b", "a" * 5000, "\ud800", "<b>",
    "../../x", "{x:9999999999}", "{0.__class__}", [], [None], [[]], ["x", 1], {}, {"x": 1}, {"": {"": None}}, DEEP,
]  # fmt: skip
"""What stands where something else was meant."""
BROKEN = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"0",
    b'"x"',
    b"\xff\xfe",
    b"\0" * 64,
    b"[" * 100_000,
    b"1" * 10_000,
    b'{"a": NaN}',
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of a document: every key, and the first and last of every list."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, each in value.items():
            yield from places(each, (*path, key))
    elif isinstance(value, list) and value:
        for index in sorted({0, len(value) - 1}):
            yield from places(value[index], (*path, index))


def damages(value: Any) -> Iterator[tuple[str, Any]]:
    """Copies of a document with one place removed, replaced, or put a level deeper; each with its name."""
    for path in places(value):
        name = ".".join(map(str, path))
        for number in range(-3, len(WRONG)):
            made = copy.deepcopy(value)
            parent = made
            for key in path[:-1]:
                parent = parent[key]
            kept = parent[path[-1]]
            if number == -3:
                del parent[path[-1]]
            else:
                parent[path[-1]] = [kept] if number == -2 else {"x": kept} if number == -1 else WRONG[number]
            yield f"{name} {number}", made
