"""The ``<lora:…>`` tag: read as the WebUI reads it, written so that it is read again."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.core.errors import InputError
from lora_trainer.network.blocks.lora_tag import TAG, LoraTag, parse_tag

WORDS = st.text(st.characters(blacklist_characters=":=>", blacklist_categories=["Cs"]), min_size=1).filter(str.strip)
VALUES = st.text(string.ascii_letters + string.digits + ",./-+ _", min_size=1).map(str.strip)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
STEPS = st.none() | st.integers(0, 10**9)
OWN = {"te", "unet", "dyn", "lbw", "w", "lbwe", "x", "start", "stop", "step"}
EXTRA = st.lists(
    st.tuples(WORDS.filter(lambda w: w not in OWN), VALUES), max_size=3, unique_by=lambda pair: pair[0]
).map(tuple)
TAGS = st.builds(
    LoraTag,
    name=WORDS,
    te=NUMBERS,
    unet=st.none() | NUMBERS,
    dyn=st.none() | st.integers(1, 10**9),
    lbw=st.just("") | VALUES,
    lbwe=st.just("") | VALUES,
    x=st.none() | NUMBERS,
    start=STEPS,
    stop=STEPS,
    extra=EXTRA,
    kind=st.sampled_from(["lora", "lyco"]),
)


@given(TAGS)
def test_written_tag_is_read_as_itself(tag: LoraTag) -> None:
    assert parse_tag(str(tag)) == tag
    assert str(parse_tag(str(tag))) == str(tag)


@given(TAGS, st.text(st.characters(blacklist_characters="<>", blacklist_categories=["Cs"])))
def test_tags_are_found_in_a_prompt(tag: LoraTag, around: str) -> None:
    prompt = f"{around}{tag}{around}{tag}"
    found = [match[0] for match in TAG.finditer(prompt)]
    assert found == [str(tag), str(tag)]
    assert parse_tag(found[0]) == tag


@given(
    st.text()
    | st.text(string.printable).map(lambda t: f"<lora:{t}>")
    | st.text("abc:=.0123456789-<>lbwe").map("<lora:{}>".format)
)
def test_garbage_is_an_input_error(text: str) -> None:
    try:
        tag = parse_tag(text)
    except InputError:
        return
    assert parse_tag(str(tag)) == tag


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("<lora:a>", LoraTag("a")),
        ("<lora:a:0.8>", LoraTag("a", 0.8)),
        ("<lyco:a:0.8:0.5:4>", LoraTag("a", 0.8, 0.5, 4, kind="lyco")),
        ("<lora:a b,c:1:lbw=ALL>", LoraTag("a b,c", lbw="ALL")),
        ("<lora:a:1:w=ALL>", LoraTag("a", lbw="ALL")),
        ("<lora:a:te=0.3:unet=0.5:dyn=2>", LoraTag("a", 0.3, 0.5, 2)),
        ("<lora:a:unet=0.5>", LoraTag("a", 1.0, 0.5)),
        ("<lora:a:1:lbw=MIDD:lbwe=X:start=3:stop=9:x=0.5>", LoraTag("a", lbw="MIDD", lbwe="X", start=3, stop=9, x=0.5)),
        ("<lora:a:1:step=3-9>", LoraTag("a", start=3, stop=9)),
        ("<lora:a:lbw=1,0,R:hr=2>", LoraTag("a", lbw="1,0,R", extra=(("hr", "2"),))),
        ("<lora:a:lbw=>", LoraTag("a")),
    ],
)
def test_tags_people_write(text: str, tag: LoraTag) -> None:
    assert parse_tag(text) == tag


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lora:a", "is not a LoRA tag; write <lora:name:weight>"),
        ("<hypernet:a:1>", "is not a LoRA tag"),
        ("<lora:>", "is not a LoRA tag"),
        ("<lora: :1>", "may not be empty"),
        ("<lora:a=b:1>", "may not be empty or have : = > in them"),
        ("<lora:a:1:MIDD>", "MIDD stands where a weight belongs; block weights are written as lbw=MIDD"),
        ("<lora:a:1,0,1>", "written as lbw=1,0,1"),
        ("<lora:a:1:lora_block_weight>", "lora_block_weight stands where a weight belongs"),
        ("<lora:a:1:1:1:1>", "has too many values"),
        ("<lora:a:1:lbw=ALL:lbw=MIDD>", "has lbw= twice, and only one of them could count"),
        ("<lora:a:1:lbw=ALL: LBW =ALL>", "has lbw= twice"),
        ("<lora:a:1:te=1:te=0.5>", "has te= twice"),
        ("<lora:a:>", "has nothing behind a colon"),
        ("<lora:a:1: :lbw=ALL>", "has nothing behind a colon"),
        ("<lora:a:1:lbw=a=b>", "stands where a weight belongs"),
        ("<lora:a:nan>", "stands where a weight belongs"),
        ("<lora:a:te=x>", "te must be a number, not x"),
        ("<lora:a:dyn=0>", "dyn must be a whole number from 1, not 0"),
        ("<lora:a:start=1.5>", "start must be a whole number"),
        ("<lora:a:step=5>", "write the steps as step=5-10"),
        ("<lora:a:step=a-b>", "step must be a whole number"),
    ],
)
def test_wrong_tag_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        parse_tag(text)


def test_unet_follows_the_text_encoder() -> None:
    assert LoraTag("a", 0.5).unet_weight == 0.5
    assert LoraTag("a", 0.5, 0.0).unet_weight == 0.0


@pytest.mark.parametrize(
    ("tag", "steps"),
    [
        (LoraTag("a"), [1, 2, 3, 4, 5]),
        (LoraTag("a", start=3), [3, 4, 5]),
        (LoraTag("a", stop=3), [1, 2]),
        (LoraTag("a", start=2, stop=4), [2, 3]),
    ],
)
def test_steps_are_counted_from_1(tag: LoraTag, steps: list[int]) -> None:
    """The reference switches where its 0-based step exceeds start − 2 and stop − 2."""
    assert [step for step in range(1, 6) if tag.active(step)] == steps
