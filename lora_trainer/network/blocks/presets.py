"""Named block weights: the shipped lists, and the person's own in the format of sd-webui-lora-block-weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from lora_trainer.core.errors import InputError
from lora_trainer.model.block_lists import ARCHITECTURES, Architecture

SHIPPED_LISTS = Path(__file__).parent / "block_presets.txt"
SHIPPED_ELEMENTS = Path(__file__).parent / "element_presets.txt"
OWN_LISTS, OWN_ELEMENTS = "lbwpresets.txt", "elempresets.txt"
"""What sd-webui-lora-block-weight calls the person's own files."""
LENGTHS = frozenset(n for architecture in ARCHITECTURES for n in architecture.lists)

Lists = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True)
class Presets:
    """Block lists and element rules by name.

    Attributes:
        lists: name → number of values → the values as written.
        own: as ``lists``, only what the person's file adds or changes; it comes first.
        elements: name → rules as written.
    """

    lists: Lists
    own: Lists = field(default_factory=dict)
    elements: Mapping[str, str] = field(default_factory=dict)

    def names(self, architecture: Architecture) -> list[str]:
        """The names that have a list for this architecture, the shipped ones first."""
        names = dict.fromkeys([*self.lists, *self.own])
        return [name for name in names if self._fitting(name, architecture)]

    def find(self, name: str, architecture: Architecture) -> str | None:
        """The values of a preset, the longest fitting list; ``None`` when there is no such name.

        Raises:
            InputError: the name exists, but only for another architecture.
        """
        fitting = self._fitting(name, architecture)
        if fitting:
            return fitting
        lengths = sorted({*self.lists.get(name, ()), *self.own.get(name, ())})
        if not lengths:
            return None
        raise InputError(
            "The block preset {name} has {count} values, but this LoRA is for {architecture}, which needs {lengths}; "
            "add a line of that length to the presets.",
            name=name,
            count=" and ".join(map(str, lengths)),
            architecture=architecture.name,
            lengths=architecture.lengths,
        )

    def _fitting(self, name: str, architecture: Architecture) -> str | None:
        for lists in (self.own, self.lists):
            found = {n: values for n, values in lists.get(name, {}).items() if n in architecture.lists}
            if found:
                return found[max(found)]
        return None


@lru_cache(maxsize=1)
def shipped_presets() -> Presets:
    """The presets that come with LoRA Train: every name for every length of list."""
    return Presets(
        parse_lists(SHIPPED_LISTS.read_text(encoding="utf-8")),
        elements=parse_elements(SHIPPED_ELEMENTS.read_text(encoding="utf-8")),
    )


def load_presets(lists: Path | None = None, elements: Path | None = None) -> Presets:
    """The shipped presets and the person's own files (``lbwpresets.txt`` and ``elempresets.txt`` of the extension).

    An own line that only repeats a shipped one changes nothing: the extension writes its defaults, of 17 values, into
    everybody's file, and with these ALL would not be all.

    Raises:
        InputError: a file cannot be read.
    """
    shipped = shipped_presets()
    own: dict[str, dict[int, str]] = {}
    for name, found in (parse_lists(_text(lists)) if lists else {}).items():
        changed = {n: v for n, v in found.items() if v != shipped.lists.get(name, {}).get(n)}
        if changed:
            own[name] = changed
    rules = parse_elements(_text(elements)) if elements else {}
    return Presets(shipped.lists, own, {**shipped.elements, **rules})


def chosen_presets(lists: Path | None = None, elements: Path | None = None) -> Presets:
    """As :func:`load_presets`, of files that the person has just named: one without any preset is the wrong file.

    Raises:
        InputError: a file cannot be read, or has no preset in it.
    """
    asked = (
        (lists, parse_lists, "NAME:1,0.5,… (12, 17, 20 or 26 values)"),
        (elements, parse_elements, "NAME:IN05-OUT05:attn:0"),
    )
    for path, parse, form in asked:
        if path and not parse(_text(path)):
            raise InputError(
                "There is no preset in {path}; write them as {form}, or name another file.", path=path, form=form
            )
    return load_presets(lists, elements)


def parse_lists(text: str) -> dict[str, dict[int, str]]:
    """Lines ``NAME:values`` of 12, 17, 20 or 26 values; all other lines are remarks, as in the extension."""
    found: dict[str, dict[int, str]] = {}
    for line in text.splitlines():
        name, colon, values = line.partition(":")
        count = values.count(",") + 1
        if colon and name.strip() and count in LENGTHS and "#" not in line:
            found.setdefault(name.strip(), {})[count] = ",".join(value.strip() for value in values.split(","))
    return found


def parse_elements(text: str) -> dict[str, str]:
    """Rules ``NAME:blocks:elements:weight``, with a blank line between two names; ``#`` begins a remark."""
    kept = "\n".join(line.strip() for line in text.splitlines() if not line.lstrip().startswith("#"))
    found = {}
    for section in kept.split("\n\n"):
        name, colon, rules = section.strip().partition(":")
        if colon and name.strip():
            found[name.strip()] = rules.strip()
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError("The presets {path} cannot be read: {error}.", path=path, error=error) from error
