"""Sentences for people, apart from the language they are read in."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypedDict, Union

Scalar = Union[str, bool, float, None]  # noqa: UP007 - looked into while the program runs
OWN_WORDS = frozenset({"wanted", "state", "half", "kind", "detail"})
"""Names of values that hold words of the program, which are translated too; names and paths never stand in these."""


class Sentence(TypedDict, total=False):
    """A sentence for a person, apart from its values; see :meth:`Message.to_dict`.

    Attributes:
        template: English, with `{names}` where values stand.
        field: the dotted config field that an error concerns; empty for none.
        values: what stands in the template.
    """

    template: str
    field: str
    values: dict[str, Scalar]


@dataclass(frozen=True)
class Message:
    """One sentence: an error's, a remark's, a piece of advice, or one that was read from a document.

    Attributes:
        template: English, with ``{names}`` where values stand.
        values: what stands there.
        field: the dotted config field it concerns, ``""`` for an error of none; ``None`` where there are no fields.
    """

    template: str
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    field: str | None = None

    @classmethod
    def from_dict(cls, sentence: Mapping[str, Any]) -> Message:
        """A sentence of a document, which may be anybody's: what is no sentence is an empty one."""
        values, field = sentence.get("values"), sentence.get("field")
        return cls(
            str(sentence.get("template") or ""),
            values if isinstance(values, Mapping) else {},
            field if isinstance(field, str) else None,
        )

    def to_dict(self) -> Sentence:
        """Plain values for a document; what is neither a number nor a text stands there as one."""
        values = {name: _plain(value) for name, value in self.values.items()}
        if self.field is None:
            return {"template": self.template, "values": values}
        return {"template": self.template, "field": self.field, "values": values}

    def text(self, translate: Callable[[str], str] = lambda text: text) -> str:
        """The sentence in the language of ``translate``.

        The template may be out of anybody's document, so it is not given to :meth:`str.format`, which reaches into
        values and pads them to any width: only plain ``{name}`` and the few formats of our own sentences are filled
        in, with values of a bounded length. Whatever does not fit stands there as it is, and so does a template that
        has no values.
        """
        template = translate(self.template[:_LONGEST])
        return _PLACE.sub(lambda place: self._filled(place, translate), template)[:_MOST] if self.values else template

    def __str__(self) -> str:
        return self.text()

    def _filled(self, place: re.Match[str], translate: Callable[[str], str]) -> str:
        if place[0] in _BRACES:
            return _BRACES[place[0]]
        if place[1] not in self.values:
            return place[0]
        return _shown(_own_word(place[1], self.values[place[1]], translate), place[2] or "")


_LONGEST, _MOST = 8000, 20_000
"""Characters of a template or a value, and of a sentence."""
_BRACES = {"{{": "{", "}}": "}"}
_PLACE = re.compile(r"\{\{|\}\}|\{([A-Za-z_]\w*)(?::(\+?(?:\.\d)?[efg%]?))?\}", re.ASCII)


def _plain(value: Any) -> Scalar:
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def _own_word(name: str, value: Any, translate: Callable[[str], str]) -> Any:
    """The value; put into the language when it is a word of ours. The catalogue has words without outer spaces."""
    if name not in OWN_WORDS or not isinstance(value, str):
        return value
    word = value.strip()
    return found if (found := translate(word)) != word else value


def _shown(value: Any, form: str) -> str:
    """A value in a format such as ``.3f``; one that is no number as it is."""
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            return format(float(value) if form else value, form)[:_LONGEST]
        except OverflowError:
            pass
    return ("–" if value is None else str(value))[:_LONGEST]
