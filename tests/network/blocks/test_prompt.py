from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.model.block_lists import SD, SDXL
from lora_trainer.network.blocks.lora_tag import BLOCK_ARGUMENTS
from lora_trainer.network.blocks.presets import Presets
from lora_trainer.network.blocks.prompt import as_the_webui_reads, block_use, is_ours, webui_reads

ALL17 = ",".join(["1"] * 17)


def items(tag: str) -> list[str]:
    return tag.split(":")


@pytest.mark.parametrize(
    "tag",
    ["a", "a:1", "a:0.5:0.7", "a:1:1:8", "a:te=0.5:unet=1", "a:1:dyn=4", "a:1:axis=1", "a:1:x=0.5", "a:1:hrte=0.5"],
)
def test_plain_tags_are_left_to_the_webui(tag: str) -> None:
    assert not is_ours(items(tag))
    assert block_use(items(tag), SD) is None


def test_numbers_of_a_tag_are_resolved_and_written_down() -> None:
    use = block_use(items(f"a:0.5:0.7:lbw={ALL17.replace('1,1', 'X,0.25', 1)}:x=0.75:lbwe=ATTNDEEPOFF"), SD)
    assert use is not None
    assert use.tag is not None
    assert (use.tag.te, use.tag.unet_weight, use.problem) == (0.5, 0.7, None)
    assert use.text.startswith("a: 0.75,0.25,1,1")
    assert use.text.endswith("OUT05:attn:0")


def test_a_tag_with_steps_only_has_no_weights_and_no_text() -> None:
    use = block_use(items("a:1:step=3-8"), SD)
    assert use is not None
    assert use.tag is not None
    assert (use.tag.start, use.tag.stop, use.weights, use.text) == (3, 8, None, "")


def test_random_values_are_the_seeds_and_the_names() -> None:
    def text(seed: int, name: str = "a") -> str:
        use = block_use(items(f"{name}:1:lbw={ALL17.replace('1', 'R')}"), SD, seed=seed)
        assert use is not None
        return use.text.removeprefix(f"{name}: ")

    assert text(1) == text(1)
    assert len({text(1), text(2), text(1, "b")}) == 3


def test_presets_of_the_person_count() -> None:
    mine = Presets({"MINE": {17: ALL17.replace("1", "0.5")}})
    use = block_use(items("a:1:lbw=MINE"), SD, mine)
    assert use is not None
    assert use.text == "a: " + ",".join(["0.5"] * 17)


@pytest.mark.parametrize(
    ("tag", "part", "read"),
    [
        ("a:1:lbw=NOSUCH", "There is no block preset NOSUCH", True),
        ("a:1:lbw=1,2", "has 2 values", True),
        (f"a:1:lbw={ALL17}", "as for SD1/SD2, but this LoRA is for SDXL", True),
        ("a:1:lbw=ALL:lbwe=what", "neither an element preset nor a rule", True),
        ("a:1:stop=never", "stop must be a whole number", True),
        ("a:1:OUTD", "block weights are written as lbw=OUTD", False),
        ("a:OUTD", "block weights are written as lbw=OUTD", False),
        ("a:1:1:OUTD", "dyn must be a whole number", False),
        ("a:much:lbw=ALL", "block weights are written as lbw=much", False),
    ],
)
def test_what_cannot_be_used_is_one_sentence(tag: str, part: str, read: bool) -> None:
    use = block_use(items(tag), SDXL)
    assert use is not None
    assert use.weights is None
    assert part in str(use.problem)
    assert part in use.text
    assert webui_reads(items(tag)) is read


def test_another_kind_of_checkpoint_has_no_blocks() -> None:
    use = block_use(items("a:1:lbw=ALL"), None)
    assert use is not None
    assert "another kind is loaded" in str(use.problem)


@given(
    st.lists(st.text("ab01.,=-:XRU ", max_size=8), max_size=6), st.sampled_from(BLOCK_ARGUMENTS), st.text(max_size=8)
)
def test_any_tag_is_read_or_refused_with_a_sentence(parts: list[str], argument: str, value: str) -> None:
    use = block_use([*parts, f"{argument}={value}"], SD)
    if use is not None and use.problem is not None:
        assert str(use.problem).endswith((".", "?"))


# ------------------------------------------------------------------ slips of the pen
# The cases lbw-key-typo and lbw-key-typo-2 of tests/cases.
@pytest.mark.parametrize(
    "tag",
    [
        *(
            "a:0.8: lbw=OUTD",
            "a:0.8:LBW=OUTD",
            "a:0.8:lbw =OUTD",
            "a:0.8:lbw= OUTD ",
            "a:0.8:\tLbw = OUTD",
            "a:0.8: W=OUTD",
        ),
        "a:0.8:lbw=OUTD: X=0.5",
    ],
)
def test_blanks_and_capitals_of_an_argument_mean_nothing(tag: str) -> None:
    use = block_use(items(tag), SD)
    wanted = block_use(items("a:0.8:lbw=OUTD"), SD)
    assert use is not None
    assert wanted is not None
    assert (use.weights, use.problem) == (wanted.weights, None)


@pytest.mark.parametrize("tag", ["a:1: start=5", "a:1:START=5", "a:1: Step =5-9"])
def test_steps_are_read_with_blanks_and_capitals(tag: str) -> None:
    use = block_use(items(tag), SD)
    assert use is not None
    assert use.tag is not None
    assert (use.tag.start, use.problem) == (5, None)


@pytest.mark.parametrize(
    ("tag", "part"),
    [
        ("a:0.8:lwb=OUTD", "no argument lwb= of a LoRA tag, so it does nothing; did you mean lbw=?"),
        ("a:0.8:blw=OUTD", "did you mean lbw=?"),
        ("a:0.8:lbws=OUTD", "did you mean lbw=?"),
        ("a:0.8:strat=5", "did you mean start=?"),
        ("a:0.8: unit=0.5", "did you mean unet=?"),
        ("a:0.8:b=c", "so it does nothing; there are te, unet, dyn, lbw"),
        ("a:0.8:=5", "so it does nothing"),
    ],
)
def test_an_argument_that_nobody_reads_is_told(tag: str, part: str) -> None:
    use = block_use(items(tag), SD)
    assert use is not None
    assert part in str(use.problem)
    assert part in use.text


def test_an_unknown_argument_leaves_the_block_weights_beside_it() -> None:
    use = block_use(items("a:0.8:lbw=OUTD:begin=5"), SD)
    assert use is not None
    assert use.weights is not None
    assert "begin" in str(use.problem)
    assert use.text == "a: " + use.weights.text


@pytest.mark.parametrize("tag", ["a:1: te=0.5", "a:1:UNET=0.5", "a:1:dyn =4", "a: Te=x"])
def test_the_webuis_own_arguments_are_put_right_for_it(tag: str) -> None:
    assert is_ours(items(tag))
    assert webui_reads(items(tag)) is ("x" not in tag)


def test_other_names_reach_the_webui_as_they_were_written() -> None:
    named = {" TE": "0.5", "unet": "1", "Dyn ": "4", "HrTe": "x", " foo": "1", "LBW": "OUTD"}
    wanted = {"te": "0.5", "unet": "1", "dyn": "4", "HrTe": "x", " foo": "1", "LBW": "OUTD"}
    assert as_the_webui_reads(named) == wanted
