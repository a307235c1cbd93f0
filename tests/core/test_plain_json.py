"""JSON that every program can read, whatever is put into it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lora_trainer
from lora_trainer.core.plain_json import DEEPEST, json_text, parse_json, plain

CALL = re.compile(r"\bjson\.(loads?|dumps?)\(")
NUMBERS = st.floats() | st.integers() | st.booleans() | st.none()
TEXTS = st.text(st.characters()) | st.text(st.characters(categories=["Cs"]), min_size=1)
VALUES = st.recursive(NUMBERS | TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=20)


def strict(text: str) -> Any:
    """Read as a browser does: no NaN, no Infinity, and bytes that are UTF-8."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text.encode("utf-8"), parse_constant=refuse)


@given(VALUES)
@settings(max_examples=300, deadline=None)
def test_what_is_written_is_strict_and_reads_back_the_same(value: Any) -> None:
    for options in ({}, {"indent": 1}, {"compact": True}):
        text = json_text(value, **options)
        assert strict(text) == plain(value) == parse_json(text)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_null(number: float) -> None:
    assert strict(json_text({"a": [number, (1.5, number)]})) == {"a": [None, [1.5, None]]}


def test_half_a_character_is_replaced_as_value_and_key() -> None:
    assert strict(json_text({"\ud800": "a\udfff", "b": "\ud83d\ude00"})) == {"\ufffd": "a\ufffd", "b": "😀"}


@pytest.mark.parametrize("text", ["NaN", "[Infinity, -Infinity]", '{"a": 1e999}', '{"a": [-1e999, NaN]}'])
def test_numbers_of_other_programs_that_are_none_are_null(text: str) -> None:
    assert strict(json_text(parse_json(text))) == plain(json.loads(text))


@pytest.mark.parametrize("text", ['"\\ud800"', '{"\\udc00": 1}', '["\\uD83D", "\\ud83d\\ude00"]'])
def test_half_characters_of_other_programs_are_replaced(text: str) -> None:
    json_text(parse_json(text)).encode("utf-8")
    assert "\ufffd" in json_text(parse_json(text))


@pytest.mark.parametrize("depth", [DEEPEST + 2, 500, 20_000, 200_000])
@pytest.mark.parametrize("brackets", ["[]", ('{"a":', "}")])
def test_what_is_nested_absurdly_deep_is_a_value_error(depth: int, brackets: str) -> None:
    opening = brackets[0] + ('"a":' if brackets == "{}" else "")
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(opening * depth + "1" + brackets[1] * depth)


def test_many_lists_beside_each_other_are_not_deep() -> None:
    assert parse_json("[" + ",".join(["[]"] * 1000) + "]") == [[]] * 1000


@pytest.mark.parametrize("text", ["", "{", "[1,]", b"\xff\xfe\x00"])
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"Expecting|Illegal|decode"):
        parse_json(text)


def test_a_byte_order_mark_is_read() -> None:
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]


def test_what_json_cannot_say_is_told() -> None:
    with pytest.raises(TypeError):
        json_text({"a": object()})


ELSEWHERE = {
    "core/documents.py": "reads with a check of every value, which refuses what is no JSON",
    "core/i18n.py": "reads our own file",
    "model/clip.py": "writes a tokenizer's files for transformers",
    "runs/log.py": "looks at a million lines, and checks those that it shows",
    "config/schema.py": "quotes texts for TOML and shows what a person typed",
    "core/tensor_file.py": "makes the text that a checksum is of",
    "training/state.py": "keeps an optimizer's arguments for itself, which may be infinite",
    "validation/grid/draw.py": "quotes a text as the WebUI does",
}
"""Where the standard library is called, and why it is harmless."""


def test_nobody_else_writes_or_reads_json() -> None:
    root = Path(lora_trainer.__file__).parent
    users = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if CALL.search(path.read_text(encoding="utf-8"))
    }
    assert users - {"core/plain_json.py"} <= ELSEWHERE.keys()
