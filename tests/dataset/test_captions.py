from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.dataset.captions import (
    base_caption,
    decode,
    join_tags,
    read_caption,
    shuffled,
    split_tags,
    tag_frequency,
)
from tests.helpers import data

CHINESE = "一个女孩，长发，站在花园里，穿着红色汉服"
TRADITIONAL = "一個女孩，長髮，穿著紅色漢服"
JAPANESE = "魔法少女、長い髪、ひまわり、カタカナ"
TAG = st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=6)
TAGS = st.lists(TAG, max_size=8)


# ------------------------------------------------------------------ files
@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        *[
            (text, encoding)
            for text in (CHINESE, TRADITIONAL)
            for encoding in ("utf-8", "utf-8-sig", "utf-16", "gb18030")
        ],
        *[(text, "gbk") for text in (CHINESE, TRADITIONAL)],
        *[(JAPANESE, encoding) for encoding in ("utf-8", "utf-8-sig", "utf-16", "cp932", "shift_jis")],
        *[("少女, 青空, 制服", "cp932"), ("plain words", "ascii"), ("naïve café", "utf-8"), ("😀 emoji", "utf-16")],
    ],
)
def test_encodings_that_people_have(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding)) == text


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"], ids=["little", "big"])
def test_utf16_of_both_orders(mark: bytes) -> None:
    order = "utf-16-le" if mark == b"\xff\xfe" else "utf-16-be"
    assert decode(mark + CHINESE.encode(order)) == CHINESE
    assert decode(mark + CHINESE.encode(order) + b"\x00").startswith(CHINESE)


@given(st.binary(max_size=60))
def test_any_bytes_are_some_text(raw: bytes) -> None:
    assert isinstance(decode(raw), str)


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_utf8_is_never_taken_for_anything_else(text: str) -> None:
    assert decode(text.encode("utf-8-sig")) == text


@pytest.mark.parametrize("name", ["a.txt", "a.caption", "a.png.txt", "a.png.caption"])
def test_caption_stands_beside_the_picture(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a  girl,\n red\tdress \r\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("another", encoding="utf-8")
    assert read_caption(tmp_path / "a.png") == "a girl, red dress"


def test_txt_comes_before_caption(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("txt")
    (tmp_path / "a.caption").write_text("caption")
    assert read_caption(tmp_path / "a.png") == "txt"


@pytest.mark.parametrize(("content", "caption"), [(None, None), (b"", ""), (b"\xef\xbb\xbf \r\n", "")])
def test_no_caption_and_an_empty_one(tmp_path: Path, content: bytes | None, caption: str | None) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    assert read_caption(tmp_path / "a.png") == caption


# ------------------------------------------------------------------ tags
@pytest.mark.parametrize(
    ("caption", "separator", "tags"),
    [
        ("a, b ,c", ",", ["a", "b", "c"]),
        (",, a,,", ",", ["a"]),
        ("", ",", []),
        ("a, b; c", ";", ["a, b", "c"]),
        ("a, b", " ", ["a, b"]),
        ("a, b", "", ["a, b"]),
        ("一，二", "，", ["一", "二"]),
    ],
)
def test_tags_are_split_at_the_separator(caption: str, separator: str, tags: list[str]) -> None:
    assert split_tags(caption, separator) == tags


@given(TAGS, st.sampled_from([",", ";", "|", "，"]))
def test_joined_tags_split_into_the_same(tags: list[str], separator: str) -> None:
    assert split_tags(join_tags(tags, separator), separator) == tags


@pytest.mark.parametrize(
    ("trigger", "caption", "result"),
    [
        ("sks_", "girl, red dress", "sks_, girl, red dress"),
        ("sks_", "girl, SKS_, red", "sks_, girl, red"),
        ("sks_", "sks_, girl, sks_", "sks_, girl"),
        ("sks_", "", "sks_"),
        ("  ", "girl,red", "girl, red"),
        ("sks_", "girl in sks_dress", "sks_, girl in sks_dress"),
        ("sks_, girl", "girl, red", "sks_, girl, red"),
        ("sks_, girl", "sks_, girl, red", "sks_, girl, red"),
        (" sks_ girl ", "red", "sks_ girl, red"),
    ],
)
def test_trigger_stands_in_front_once(trigger: str, caption: str, result: str) -> None:
    assert base_caption(caption, data(trigger=trigger)) == result


@given(TAGS, st.lists(TAG, max_size=2))
def test_adding_the_trigger_twice_is_adding_it_once(tags: list[str], trigger: list[str]) -> None:
    settings = data(trigger=", ".join(trigger))
    once = base_caption(", ".join(tags), settings)
    assert base_caption(once, settings) == once
    assert split_tags(once)[: len(trigger)] == trigger
    assert {t.lower() for t in split_tags(once)} == {t.lower() for t in tags + trigger}


@given(TAGS, st.integers(0, 9), st.integers(0, 1000))
def test_shuffling_keeps_the_first_tags_and_loses_none(tags: list[str], keep: int, seed: int) -> None:
    caption = ", ".join(tags)
    result = split_tags(shuffled(caption, data(keep_tokens=keep), random.Random(seed)))
    assert result[:keep] == tags[:keep]
    assert Counter(result) == Counter(tags)


@pytest.mark.parametrize(("trigger", "kept"), [("sks_", 1), ("sks_, girl", 2)])
def test_trigger_stays_in_front_when_no_tag_is_kept(trigger: str, kept: int) -> None:
    settings = data(trigger=trigger, keep_tokens=0)
    caption = base_caption("a, b, c, d", settings)
    results = {shuffled(caption, settings, random.Random(seed)) for seed in range(50)}
    assert len(results) > 10
    assert {tuple(split_tags(r)[:kept]) for r in results} == {tuple(split_tags(trigger))}


def test_every_order_comes_up() -> None:
    found = Counter(shuffled("x, a, b, c", data(keep_tokens=1), random.Random(seed)) for seed in range(600))
    assert len(found) == 6
    assert min(found.values()) > 60


def test_shuffling_can_be_off() -> None:
    assert shuffled("c,b , a", data(shuffle=False), random.Random(0)) == "c,b , a"


def test_tags_are_counted_most_frequent_first() -> None:
    assert list(tag_frequency(["a, b", "b", "c, b, a"]).items()) == [("b", 3), ("a", 2), ("c", 1)]
