from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.dataset.captions import (
    base_caption,
    caption_path,
    join_tags,
    read_captions,
    shuffled,
    split_tags,
    tag_frequency,
)
from tests.helpers import data

TAG = st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=6)
TAGS = st.lists(TAG, max_size=8)


# ------------------------------------------------------------------ files
def read_caption(picture: Path) -> str | None:
    path = caption_path(picture)
    return None if path is None else read_captions([path])[0].text


@pytest.mark.parametrize("name", ["a.txt", "a.caption", "a.png.txt", "a.png.caption", "a.TXT"])
def test_caption_stands_beside_the_picture(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a  girl,\n red\tdress \r\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("another", encoding="utf-8")
    assert read_caption(tmp_path / "a.png") == "a girl,\nred dress"


def test_txt_comes_before_caption(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("txt")
    (tmp_path / "a.caption").write_text("caption")
    assert read_caption(tmp_path / "a.png") == "txt"


@pytest.mark.parametrize(("content", "caption"), [(None, None), (b"", ""), (b"\xef\xbb\xbf \r\n", "")])
def test_no_caption_and_an_empty_one(tmp_path: Path, content: bytes | None, caption: str | None) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    assert read_caption(tmp_path / "a.png") == caption


def test_caption_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    gone, there = read_captions([tmp_path / "b.txt", tmp_path / "a.txt"])
    assert (gone.text, gone.error) == ("", "No such file or directory")
    assert (there.text, there.error) == ("words", "")


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
        ("zorp，红裙，街道", ",", ["zorp", "红裙", "街道"]),
        ("zorp、赤いドレス、街", ",", ["zorp", "赤いドレス", "街"]),
        ("zorp﹐a﹑b､c، d", ",", ["zorp", "a", "b", "c", "d"]),
        ("zorp\nred dress\n\nstreet", ",", ["zorp", "red dress", "street"]),
        ("1girl, solo\nred dress，smile", ",", ["1girl", "solo", "red dress", "smile"]),
        ("zorp，红裙，街道", ";", ["zorp，红裙，街道"]),
        ("red\ndress;smile", ";", ["red dress", "smile"]),
        ("一个女孩站在街上，穿着红裙。", ",", ["一个女孩站在街上，穿着红裙。"]),
        ("少女は街に立ち、\n赤い服を着ている。, zorp", ",", ["少女は街に立ち、 赤い服を着ている。", "zorp"]),
        ("A woman stands in the\nstreet, in a red dress.", ",", ["A woman stands in the street", "in a red dress."]),
        ("Mr. x\nred dress", ",", ["Mr. x", "red dress"]),
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
        ("zorp", "zorp，红裙，街道", "zorp, 红裙, 街道"),
        ("zorp", "zorp、赤いドレス、街", "zorp, 赤いドレス, 街"),
        ("zorp", "红裙，ZORP，街道，zorp", "zorp, 红裙, 街道"),
        ("zorp", "zorp\nred dress\nstreet", "zorp, red dress, street"),
        ("zorp", "zorp，一个女孩站在街上，穿着红裙。", "zorp, 一个女孩站在街上，穿着红裙。"),
        ("zorp", "zorp , zorp、一个女孩，站着！", "zorp, 一个女孩，站着！"),
        ("zorp，红裙", "街道，红裙", "zorp, 红裙, 街道"),
        ("zorp", "zorpion，红裙", "zorp, zorpion, 红裙"),
        ("", "一个女孩，\n站着。", "一个女孩， 站着。"),
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


@pytest.mark.parametrize("caption", ["zorp，甲，乙，丙，丁", "zorp、あ、い、う、え", "zorp\na\nb\nc\nd"])
def test_tags_of_other_commas_are_shuffled_too(caption: str) -> None:
    base = base_caption(caption, data(trigger="zorp"))
    results = {shuffled(base, data(trigger="zorp"), random.Random(seed)) for seed in range(60)}
    assert len(results) > 10
    assert {Counter(split_tags(result)) == Counter(split_tags(caption)) for result in results} == {True}
    assert all(result.startswith("zorp, ") for result in results)


@given(TAGS, st.sampled_from("，、﹐﹑､،\n"))
def test_any_comma_is_the_same_as_the_ascii_one(tags: list[str], comma: str) -> None:
    assert base_caption(comma.join(tags), data()) == base_caption(", ".join(tags), data())


def test_shuffling_can_be_off() -> None:
    assert shuffled("c,b , a", data(shuffle=False), random.Random(0)) == "c,b , a"


def test_tags_are_counted_most_frequent_first() -> None:
    assert list(tag_frequency(["a, b", "b", "c, b, a"]).items()) == [("b", 3), ("a", 2), ("c", 1)]
