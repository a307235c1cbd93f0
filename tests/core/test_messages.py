"""Sentences for people: kept in documents, filled in and translated."""

from __future__ import annotations

import ast
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.core.errors import InputError, explain, explained
from lora_trainer.core.messages import _PLACE, Message
from tests.core.test_i18n import error_names
from tests.helpers import ROOT


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (Message("So it is."), "So it is."),
        (Message("weights {0.3}"), "weights {0.3}"),
        (Message("{a} and {b:g}", {"a": Path("x"), "b": 0.50}), "x and 0.5"),
        (Message("{a:.3f} {b:+.1%} {c:.0f}", {"a": 1, "b": 0.123, "c": 2.4}), "1.000 +12.3% 2"),
        (Message("{{x}} {a}", {"a": "{a}"}), "{x} {a}"),
        (Message("{a} of {b}", {"a": None}), "– of {b}"),
        (Message("{a:g} {b:g}", {"a": "much", "b": True}), "much True"),
    ],
)
def test_values_stand_in_the_sentence(message: Message, sentence: str) -> None:
    assert str(message) == message.text() == sentence


@pytest.mark.parametrize("template", ["{a.__class__}", "{a[0]}", "{a!r}", "{a:>999999999}", "{a:.999999999f}", "{0}"])
def test_a_template_of_anybody_reaches_into_nothing_and_pads_nothing(template: str) -> None:
    assert Message.from_dict({"template": template, "values": {"a": 1.5}}).text() == template


def test_what_is_filled_in_is_bounded() -> None:
    assert len(Message("{a}" * 1000, {"a": "x" * 10**6}).text()) == 20_000
    assert len(Message("x" * 10**6).text()) == 8000


def test_it_is_translated_with_its_own_words_but_not_with_a_persons() -> None:
    chinese = {"{name}: expected {wanted}.": "{name}：应为{wanted}。", "a number": "数字"}.get
    message = Message("{name}: expected {wanted}.", {"name": "a number", "wanted": " a number"})
    assert message.text(lambda text: chinese(text, text)) == "a number：应为数字。"


@given(
    st.text(),
    st.dictionaries(st.text(), st.one_of(st.none(), st.booleans(), st.integers(), st.text())),
    st.none() | st.text(),
)
def test_a_document_keeps_it(template: str, values: dict[str, Any], field: str | None) -> None:
    message = Message(template, values, field)
    assert Message.from_dict(json.loads(json.dumps(message.to_dict()))) == message


def test_what_a_document_has_of_an_error_and_of_a_remark() -> None:
    error = InputError("{path} is full.", path=Path("disk"))
    assert explain(error) == {
        "message": "disk is full.",
        "error": {"template": "{path} is full.", "field": "", "values": {"path": "disk"}},
    }
    assert explained(explain(error)) == Message("{path} is full.", {"path": "disk"}, "")
    assert Message("{n} pictures.", {"n": 2}).to_dict() == {"template": "{n} pictures.", "values": {"n": 2}}


@pytest.mark.parametrize("sentence", [{}, {"template": None}, {"template": "", "values": [], "field": 3}])
def test_what_is_no_sentence_is_an_empty_one(sentence: dict[str, Any]) -> None:
    assert Message.from_dict(sentence) == Message("")


# ------------------------------------------------------------------ the program's own
def written() -> Iterator[tuple[str, str, set[str] | None]]:
    """Where each sentence of the program stands, its template, and the names of its values where they are written."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "lora_trainer").rglob("*.py")}
    errors = error_names(trees.values())
    for path, tree in trees.items():
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            kind = getattr(call.func, "id", "")
            if kind in errors | {"Message"} and call.args and isinstance(call.args[0], ast.Constant):
                yield f"{path.name}:{call.lineno}", str(call.args[0].value), names(call, kind == "Message")


def names(call: ast.Call, of_message: bool) -> set[str] | None:
    if not of_message:
        given = {keyword.arg for keyword in call.keywords if keyword.arg != "field"}
        return None if None in given else {name for name in given if name}
    if len(call.args) == 1:
        return set()
    keys = getattr(call.args[1], "keys", [None])
    known = [key.value if isinstance(key, ast.Constant) else None for key in keys]
    return None if None in known else {str(key) for key in known}


def test_every_sentence_has_its_values_and_only_formats_that_are_filled_in() -> None:
    found = list(written())
    assert len(found) > 300
    for place, template, given_names in found:
        parts = [part for part in string.Formatter().parse(template) if part[1] is not None] if given_names else []
        assert given_names is None or {str(name) for _, name, _, _ in parts} == given_names, place
        for _, name, form, conversion in parts:
            assert conversion is None, place
            assert _PLACE.fullmatch(f"{{{name}{':' + form if form else ''}}}"), place
