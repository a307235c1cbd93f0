"""The page's HTML is made by one function alone, and no value passes it as markup."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.ui.html.markup import joined, markup, single_quoted
from tests.helpers import ROOT
from tests.ui.markup import HOSTILE, Page

UI = ROOT / "lora_trainer" / "ui"
TAG = re.compile(r'</?(?!lora\b|hypernet)[a-z]|\b[a-z-]+="|<!--')


def made_elsewhere(source: str) -> Iterator[int]:
    """Lines with HTML that is not the literal template of :func:`markup`, and uses of what could pass it by."""
    tree = ast.parse(source)
    allowed: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "markup":
            if node.args and isinstance(node.args[0], ast.Constant):
                allowed.add(id(node.args[0]))
            else:
                yield node.lineno
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            allowed.add(id(node.body[0].value))  # type: ignore[attr-defined]
        if isinstance(node, ast.Expr):  # a docstring of a constant
            allowed.add(id(node.value))
        if isinstance(node, ast.Name) and node.id in ("Markup", "escape"):
            yield node.lineno
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        if TAG.search(text) and id(node) not in allowed:
            yield node.lineno


@pytest.mark.parametrize("path", sorted(UI.glob("*.py")), ids=lambda path: path.name)
def test_html_is_made_by_one_function(path: Path) -> None:
    if path.name == "markup.py":
        return
    assert list(made_elsewhere(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        'x = f"<b>{y}</b>"',
        'x = "<b>" + y',
        'x = "<i style={}>".format(y)',
        "x = f'<td title=\"{y}\">'",
        "x = markup(y)",
        'x = markup(f"<b>{y}</b>")',
        "x = Markup(y)",
        'x = "%s</li>" % y',
    ],
)
def test_html_made_otherwise_is_found(source: str) -> None:
    assert list(made_elsewhere(source))


@pytest.mark.parametrize("value", HOSTILE)
def test_values_are_never_markup(value: str) -> None:
    page = Page(markup('<div title="{value}"><b>{value}</b></div>', value=value))
    assert [(e.tag, e.attributes.get("title")) for e in page.elements] == [("div", value), ("b", None)]
    assert page.text == value
    assert Page(joined([markup("<i>{a}</i>", a=1), value])).text == "1" + value


@given(st.recursive(st.text() | st.sampled_from(HOSTILE), lambda inner: st.lists(inner, max_size=3)))
def test_json_in_single_quotes_comes_back(value: object) -> None:
    text = json.dumps(value)
    page = Page(markup("<div data-view='{view}'></div>", view=single_quoted(text)))
    assert json.loads(page.elements[0].attributes["data-view"]) == value
