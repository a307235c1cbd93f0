"""Stacks: every way to write them is read to the same tags; mixes keep their bounds and can be made again."""

from __future__ import annotations

import json
import math
import os
import statistics
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from lora_trainer.cli.main import main
from lora_trainer.core.errors import InputError
from lora_trainer.network.blocks.lora_tag import LoraTag
from lora_trainer.network.blocks.stack import MAX_LORAS, METHODS, MixRule, Stack, mixes, parse_stack, require_constant
from tests.network.made import some_lora

BLOCKS = "1,0,0,0,0.5,1,1,1,1,1,1,1"
names = st.text(
    st.characters(codec="utf-8", exclude_characters=":=<>,，：\\/", exclude_categories=["C", "Z"]), min_size=1
)
weights = st.floats(-3, 3).map(lambda w: round(w, 3))
lists = st.sampled_from(["", "ALL", "OUTALL", BLOCKS])


@st.composite
def stacks(draw: st.DrawFn) -> Stack:
    found = draw(st.lists(names, min_size=1, max_size=6, unique=True))
    return Stack(tuple(LoraTag(name, draw(weights), lbw=draw(lists)) for name in found))


def line(tag: LoraTag, colon: str) -> str:
    return colon.join([tag.name, str(tag.te), *([tag.lbw] if tag.lbw else [])])


@given(stacks(), st.sampled_from([":", " : ", ": "]))
def test_lines_and_tags_are_read_to_the_same_stack(stack: Stack, colon: str) -> None:
    assert parse_stack("\n".join(line(tag, colon) for tag in stack.tags)) == stack
    assert parse_stack("\n\n".join(map(str, stack.tags))) == stack
    assert parse_stack(str(stack)) == stack


@given(st.text(max_size=60))
def test_any_text_is_a_stack_or_a_sentence(text: str) -> None:
    with suppress(InputError):
        stack = parse_stack(text)
        assert parse_stack(str(stack)) == stack


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("a", [LoraTag("a")]),
        ("a：0.7：ALL\nb：0.5，", [LoraTag("a", 0.7, lbw="ALL"), LoraTag("b", 0.5)]),
        (f"a: 0.7: {BLOCKS.replace(',', '，')}", [LoraTag("a", 0.7, lbw=BLOCKS)]),
        ("a: 0.7: 0.9", [LoraTag("a", 0.7, 0.9)]),
        ("a: 1: lbwe=IN05: lbw=ALL: start=5", None),
        ("a: 1: lbw=ALL: x=0.5: start=5", [LoraTag("a", 1, lbw="ALL", x=0.5, start=5)]),
        ("<lora:b:0.5>, <lyco:a:1:lbw=ALL>,", [LoraTag("b", 0.5), LoraTag("a", 1, lbw="ALL", kind="lyco")]),
        ("folder/a.b: 0.5", [LoraTag("folder/a.b", 0.5)]),
    ],
)
def test_what_lines_may_look_like(text: str, tags: list[LoraTag] | None) -> None:
    if tags is None:
        assert parse_stack(text).tags[0].lbwe == "IN05"
    else:
        assert list(parse_stack(text).tags) == tags


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (" \n ", "Name at least one LoRA"),
        ("a: 1\na: 2", "a is named twice"),
        ("a: heavy", "The weight of a must be a number, not heavy"),
        ("a: nan", "must be a number"),
        (": 1", "may not be empty"),
        ("1girl, <lora:a:1>", "“1girl” is no LoRA"),
        ("<lora:a", "not of the form name: weight"),
        ("a: 1: b>", "not of the form name: weight"),
        ("a=b: 1", "not of the form name: weight"),
        ("<lora:a:ALL>", "stands where a weight belongs"),
        ("\n".join(f"l{n}: 1" for n in range(MAX_LORAS + 1)), "is the most"),
    ],
)
def test_lines_that_cannot_be_read_are_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        parse_stack(text)


def test_order_is_kept_and_the_sum_is_checked() -> None:
    stack = parse_stack("person: 0.7\ndress: 0.5\nstyle: -0.1")
    assert stack.prompt(" 1girl ") == "1girl <lora:person:0.7> <lora:dress:0.5> <lora:style:-0.1>"
    assert stack.total == pytest.approx(1.3)
    (notice,) = stack.notices()
    assert str(notice).startswith("The weights sum up to 1.3; above 1.2")
    assert not parse_stack("person: 0.7\ndress: 0.5").notices()
    assert not parse_stack("alone: 1.5").notices()


@pytest.mark.parametrize("more", ["dyn=4", "start=5", "stop=9", "step=5-9"])
def test_what_only_the_webui_can_do_is_refused(more: str) -> None:
    (tag,) = parse_stack(f"a: 1: {more}").tags
    with pytest.raises(InputError, match="only in the WebUI"):
        require_constant(tag)


# ------------------------------------------------------------------ mixes
rules = st.builds(
    MixRule,
    st.sampled_from(METHODS),
    st.floats(0.01, 0.99),
    st.floats(0.01, 3),
    st.integers(0, 2**32 - 1),
)


@given(stacks(), rules, st.integers(1, 5))
def test_mixes_keep_their_bounds(stack: Stack, rule: MixRule, count: int) -> None:
    if not any(stack.weights.values()):
        with pytest.raises(InputError, match="nothing to mix"):
            mixes(stack, count, rule)
        return
    for made in mixes(stack, count, rule):
        assert made.total <= rule.most + 1e-9
        for name, weight in stack.weights.items():
            drawn = made.weights[name]
            assert drawn * weight >= 0
            assert weight or not drawn
            if rule.method == "uniform":
                assert abs(drawn) <= abs(weight) * (1 + rule.spread) + 1e-9
        assert [(t.name, t.lbw) for t in made.tags] == [(t.name, t.lbw) for t in stack.tags]
        assert parse_stack(str(made)) == made


@given(stacks().filter(lambda s: any(s.weights.values())), rules)
def test_mixes_are_the_same_again_however_many_there_are(stack: Stack, rule: MixRule) -> None:
    assert mixes(stack, 5, rule)[:3] == mixes(stack, 3, rule)


def test_uniform_weights_have_the_uniform_distributions_moments() -> None:
    drawn = [m.weights["a"] for m in mixes(parse_stack("a: 0.6\nb: 0.3"), 4000, MixRule("uniform", 0.5, 9.0, 1))]
    assert statistics.fmean(drawn) == pytest.approx(0.6, abs=0.01)
    assert statistics.stdev(drawn) == pytest.approx(0.6 / math.sqrt(12), abs=0.005)


def test_dirichlet_shares_have_the_moments_of_the_docstring() -> None:
    made = mixes(parse_stack("a: 0.6\nb: 0.3\nc: -0.1"), 4000, MixRule("dirichlet", 0.3, 9.0, 1))
    assert all(m.total == pytest.approx(1.0, abs=0.004) for m in made)
    for name, share in (("a", 0.6), ("b", 0.3), ("c", -0.1)):
        drawn = [m.weights[name] for m in made]
        assert statistics.fmean(drawn) == pytest.approx(share, abs=0.01)
        assert statistics.stdev(drawn) == pytest.approx(0.3 * math.sqrt(abs(share) * (1 - abs(share))), abs=0.01)


def test_two_weights_of_one_lora_keep_their_proportion() -> None:
    for made in mixes(parse_stack("a: 0.4: 0.8\nb: 0.3"), 20, MixRule()):
        tag = made.tags[0]
        assert tag.te == pytest.approx(tag.unet_weight / 2, abs=6e-4)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"method": "normal"}, "no method normal"),
        ({"spread": 0.0}, "above 0 and below 1"),
        ({"spread": 1.0}, "above 0 and below 1"),
        ({"spread": math.nan}, "above 0 and below 1"),
        ({"most": 0.0}, "most: must be above 0"),
        ({"most": math.inf}, "most: must be above 0"),
    ],
)
def test_rules_out_of_range_are_a_sentence(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        MixRule(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["a: 0.7: lwb=OUTD", "a: 0.7: foo=1", "<lora:a:0.7:blw=OUTD>"])
def test_an_argument_that_nobody_reads_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="there is no argument"):
        parse_stack(text)


@pytest.mark.parametrize("text", ["a: 0.7: LBW=OUTD", "a: 0.7: lbw = OUTD", "<lora:a:0.7: Lbw=OUTD>"])
def test_blanks_and_capitals_of_an_argument_mean_nothing(text: str) -> None:
    assert parse_stack(text).tags[0].lbw == "OUTD"


@pytest.mark.parametrize(
    "path", [r"C:\loras\a.safetensors", "d:/loras/a.safetensors", r"\\?\C:\x\a", r"C:\my loras\a b"]
)
@pytest.mark.parametrize(
    "line", ["{}", "{}:0.7", "{}: 0.7 : lbw=OUTD", '"{}":0.7', "'{}' : 0.7", "<lora:{}:0.7>", "{}：0.7"]
)
def test_the_colon_of_a_drive_ends_no_name(path: str, line: str) -> None:
    """The case drive-letter of tests/cases, as the command line reads it too."""
    (tag,) = parse_stack(line.format(path)).tags
    assert tag.name == path
    assert tag.te == (1.0 if line == "{}" else 0.7)
    assert tag.lbw == ("OUTD" if "OUTD" in line else "")


def test_a_name_of_one_letter_is_no_drive() -> None:
    assert [(tag.name, tag.te) for tag in parse_stack("C:0.7\nd: .5").tags] == [("C", 0.7), ("d", 0.5)]


@pytest.mark.parametrize("text", [r"C:\loras\a:b:0.7", r"C:\a.safetensors:much", r"C:\a: 0.7: lwb=OUTD"])
def test_what_is_wrong_behind_a_path_is_one_sentence(text: str) -> None:
    with pytest.raises(InputError):
        parse_stack(text)


@pytest.mark.skipif(os.name == "nt", reason="there it would be a place outside of the folder")
def test_the_case_of_a_drive_letter_is_a_mix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without Windows: there the path is the name of a file in this folder."""
    name = r"C:\loras\a.safetensors"
    monkeypatch.chdir(tmp_path)
    assert main(["lora", "mix", f"{name}:0.7", "--count", "1", "--root", "."]) == 2
    assert f"there is no LoRA file {name}" in capsys.readouterr().err
    save_file(some_lora(), tmp_path / name)
    assert main(["lora", "mix", f"{name}:0.7", "--count", "1", "--root", ".", "--json"]) == 0
    (lora,) = json.loads(capsys.readouterr().out)["loras"]
    assert (lora["file"], lora["weight"]) == (name, 0.7)
