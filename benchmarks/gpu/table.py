"""The result as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def table(document: Mapping[str, Any]) -> str:
    """A line for each check and each of its parts; what does not hold is marked."""
    return "\n".join(line for name, check in document["checks"].items() for line in _lines(name, check))


def _lines(name: str, check: Mapping[str, Any]) -> Iterator[str]:
    seconds = f"{check['seconds']:.0f} s" if "seconds" in check else ""
    yield f"\n{name:15}{check['title']:46}{check['state']:>16}{seconds:>8}"
    for part, found in check["parts"].items():
        yield f"  {part:28}{_says(found)}"
        yield from (f"  {'':28}DOES NOT HOLD: {sentence}" for sentence, holds in _holds(found) if not holds)
    if check.get("error"):
        yield f"  {check['state']}: {check['error'][-1]}"


def _says(found: Mapping[str, Any]) -> str:
    if "failed" in found:
        return f"FAILED: {found['failed'][-1]}"
    return str(found.get("says", ""))


def _holds(found: Mapping[str, Any]) -> list[tuple[str, bool]]:
    return list(found.get("holds", {}).items())


def all_well(document: Mapping[str, Any]) -> bool:
    """Whether every check was done and everything holds that should."""
    checks = document["checks"].values()
    parts = [part for check in checks for part in check["parts"].values()]
    return all(check["state"] == "done" for check in checks) and all(h for p in parts for _, h in _holds(p))
