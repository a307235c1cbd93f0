"""``lbw=`` and ``lbwe=``: the reference extension's results, and sentences where it is silent."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.core.errors import InputError
from lora_trainer.model.block_lists import ALL_BLOCKS, SD, SDXL, Architecture
from lora_trainer.network.blocks.block_map import block_of, ldm_name
from lora_trainer.network.blocks.presets import load_presets, parse_elements, parse_lists, shipped_presets
from lora_trainer.network.blocks.weights import BlockWeights, factors, number_text, parse_rules, resolve, single_block

ARCHITECTURES = pytest.mark.parametrize("architecture", [SD, SDXL], ids=lambda a: a.name)
NAMES = ["NONE", "ALL", "INS", "IND", "INALL", "MIDD", "OUTD", "OUTS", "OUTALL", "ALL0.5"]
Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def key_in(block: str) -> str:
    """A module of a block, in LDM names."""
    if block == "BASE":
        return "lora_te_text_model_encoder_layers_0_mlp_fc1"
    side = {"IN": "input_blocks_", "OU": "output_blocks_", "M0": "middle_block_"}[block[:2]]
    return f"lora_unet_{side}{int(block[-2:]) or 1 if side[0] == 'm' else int(block[-2:])}_1_proj_in"


# ------------------------------------------------------------------ lists
@ARCHITECTURES
@pytest.mark.parametrize("longest", [False, True])
def test_list_gives_each_block_its_value_and_others_nothing(architecture: Architecture, longest: bool) -> None:
    blocks = architecture.convolutions if longest else architecture.attention
    weights = resolve(",".join(f"0.{n:02d}" for n in range(len(blocks))), architecture)
    for block in ALL_BLOCKS:
        wanted = blocks.index(block) / 100 if block in blocks else 0.0
        assert weights.ratio(key_in(block)) == pytest.approx(wanted)
    assert weights.ratio("lora_unet_out_2") == 1.0
    assert resolve(weights.text, architecture) == weights


@ARCHITECTURES
@pytest.mark.parametrize("name", NAMES)
def test_standard_presets_stand_for_every_architecture(architecture: Architecture, name: str) -> None:
    weights = resolve(name, architecture)
    assert weights.blocks == architecture.convolutions
    shorter = shipped_presets().lists[name][len(architecture.attention)].split(",")
    assert [weights.ratio(key_in(b)) for b in architecture.attention] == [float(v) for v in shorter]


def test_lists_of_17_are_the_references() -> None:
    shipped = {name: values[17] for name, values in shipped_presets().lists.items()}
    assert list(shipped) == NAMES
    assert shipped["MIDD"] == "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0"
    assert shipped["OUTS"] == "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1"
    assert shipped["INS"] == "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0"


@ARCHITECTURES
def test_all_is_really_all(architecture: Architecture) -> None:
    weights = resolve("ALL", architecture)
    assert all(weights.ratio(key_in(block)) == 1.0 for block in architecture.convolutions)


def test_nothing_given_is_1_everywhere() -> None:
    assert {resolve("", SD).ratio(key_in(block)) for block in ALL_BLOCKS} == {1.0}


@pytest.mark.parametrize(
    ("lbw", "architecture", "sentence"),
    [
        (",".join(["1"] * 17), SDXL, "has 17 values, as for SD1/SD2, but this LoRA is for SDXL; give 12 or 20"),
        (",".join(["1"] * 12), SD, "has 12 values, as for SDXL, but this LoRA is for SD1/SD2; give 17 or 26"),
        ("1,1,1", SD, "has 3 values; for SD1/SD2 give 17 or 26"),
        ("1," * 17, SD, "has 18 values"),
        ("NOPE", SD, "no block preset NOPE; give one of NONE, ALL, INS"),
        (",".join(["x"] * 17), SD, "must be a number, not x"),
        (",".join(["nan"] * 17), SD, "must be a number, not nan"),
        (",".join(["1"] * 16 + [""]), SD, "must be a number, not nothing"),
        ("1/1," + ",".join(["1"] * 16), SD, "is for 2 text encoders, but SD1/SD2 has 1"),
        ("1/1/1," + ",".join(["1"] * 11), SDXL, "is for 3 text encoders, but SDXL has 2"),
    ],
)
def test_wrong_list_is_one_sentence(lbw: str, architecture: Architecture, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        resolve(lbw, architecture)


def test_text_encoders_can_be_told_apart() -> None:
    weights = resolve("0.5/0.25," + ",".join(["1"] * 11), SDXL)
    assert weights.ratio("lora_te1_text_model_encoder_layers_0_mlp_fc1") == 0.5
    assert weights.ratio("lora_te2_text_model_encoder_layers_0_mlp_fc1") == 0.25
    assert weights.ratio("1_model_transformer_resblocks_0_mlp_c_fc") == 0.25
    assert resolve(weights.text, SDXL) == weights


# ------------------------------------------------------------------ R, U, X
def test_random_values_are_those_of_the_seed_and_written_out() -> None:
    spec = ",".join(["R"] * 8 + ["U"] * 9)
    one, same = (resolve(spec, SD, seed=1, name="a") for _ in range(2))
    assert one == same
    assert all(0 <= w <= 1 for w in one.weights[:8])
    assert all(-0.5 <= w <= 1.5 for w in one.weights[8:])
    assert all(w == round(w, 3) for w in one.weights)
    assert len(set(one.weights)) > 10
    assert resolve(one.text, SD, seed=9) == one
    assert resolve(spec, SD, seed=2, name="a") != one
    assert resolve(spec, SD, seed=1, name="b") != one


@pytest.mark.parametrize(
    ("value", "x", "weight"),
    [("X", 0.7, 0.7), ("X", None, 1.0), ("X+0.25", 0.5, 0.75), ("X-.25", 0.5, 0.25), ("X-2", None, -1.0)],
)
def test_x_is_taken_from_the_tag(value: str, x: float | None, weight: float) -> None:
    assert resolve(",".join([value] * 17), SD, x=x).weights[0] == pytest.approx(weight)


# ------------------------------------------------------------------ element rules
def reference_ratio(key: str, rules: str, ratio: float) -> float:
    """``ratiodealer`` of the reference, for a WebUI name."""
    block = block_of(key)
    name = key + (block or "")
    for rule in rules.replace("\n", ",").split(","):
        if rule.count(":") != 2:
            continue
        blocks, elements, weight = rule.split(":")
        words = []
        for word in blocks.split(" "):
            if "-" in word:
                low, high = sorted(ALL_BLOCKS.index(end) for end in word.split("-"))
                words += ALL_BLOCKS[low : high + 1]
            else:
                words.append(word)
        hit = True
        for listed in (words, elements.split(" ")):
            inverted = listed[0] == "NOT"
            found = any(word in name for word in (listed[1:] if inverted else listed))
            hit = hit and found != inverted
        if hit:
            ratio = float(weight)
    return ratio


@pytest.mark.parametrize(
    "rules",
    [
        "IN05-OUT05:attn:0.5",
        "OUT05-IN05:attn:0.5",
        "::0.25",
        "BASE:attn:0.5",
        "IN00-IN11::1,OUT04:attn1 ff_net:0.125",
        "NOT IN09-OUT02:proj:0.5",
        "NOT IN01 M00:NOT attn1 attn2:0.5",
        ":NOT:0.5",
        "NOT::0.5",
        "IN:attn1:0.5\nOUT:attn2:0.75",
        "OUT1:proj:0.75",
    ],
)
def test_rules_act_as_in_the_reference(rules: str) -> None:
    names = [f"{key_in(block).removesuffix('proj_in')}{part}" for block in ALL_BLOCKS[1:] for part in PARTS]
    text = "transformer_text_model_encoder_layers_0_"
    names = ["diffusion_model_" + name.removeprefix("lora_unet_") for name in names]
    names += [text + part for part in ("mlp_fc1", "self_attn_q_proj")] + ["diffusion_model_time_embed_0"]
    weights = resolve(",".join(["0.3"] * 26), SD, lbwe=rules)
    for name in names:
        base = 1.0 if block_of(name) is None else 0.3
        assert weights.ratio(name) == pytest.approx(reference_ratio(name, rules, base)), name


PARTS = ("proj_in", "proj_out", "transformer_blocks_0_attn1_to_q", "transformer_blocks_0_attn2_to_k", "ff_net_0_proj")


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ("NOPE", "neither an element preset nor a rule"),
        ("IN05:attn", "neither an element preset nor a rule"),
        ("IN05:attn:x", "must be a number"),
        ("IN12:attn:1", "no block IN12 in SDXL"),
        ("IN10:attn:1", "no block IN10 in SDXL"),
        ("IN09-IN11:attn:1", "no block IN09-IN11 in SDXL"),
        ("attn:IN05:1", "no block attn"),
        ("IN05-:attn:1", "no block IN05-"),
    ],
)
def test_wrong_rule_is_one_sentence(rules: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        resolve("ALL", SDXL, lbwe=rules)


def test_rules_know_the_text_encoders_and_print_themselves() -> None:
    weights = resolve("ALL", SDXL, lbwe="TE2:mlp:0.5")
    assert weights.ratio("lora_te1_text_model_encoder_layers_0_mlp_fc1") == 1
    assert weights.ratio("lora_te2_text_model_encoder_layers_0_mlp_fc1") == 0.5
    rules = parse_rules("NOT IN05-M00:attn ff:0.1,::1", SD)
    assert parse_rules(",".join(map(str, rules)), SD) == rules


def test_last_matching_rule_counts() -> None:
    assert resolve("", SD, lbwe="IN01:attn:0.5,IN01::0.75").ratio(Q) == 0.75


def test_shipped_element_presets_are_the_references() -> None:
    assert resolve("ALL", SD, lbwe="ATTNDEEPOFF").ratio(key_in("IN05").replace("proj_in", "attn1_to_q")) == 0
    assert set(shipped_presets().elements) == {"ATTNDEEPON", "ATTNDEEPOFF", "PROJDEEPOFF", "XYZ"}


# ------------------------------------------------------------------ presets files
def test_own_presets_come_first_but_repeated_defaults_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lbwpresets.txt"
    same = shipped_presets().lists["ALL"][17]
    path.write_text(
        "\n".join(
            [
                "ALL:" + same,
                "INS:" + ",".join(["0.5"] * 17),
                "MINE:" + ", ".join(["1"] * 12),
                "# C:" + same,
                "FLUXALL:" + ",".join(["1"] * 61),
                "a remark",
                ":" + same,
            ]
        ),
        encoding="utf-8-sig",
    )
    presets = load_presets(path)
    assert len(resolve("ALL", SD, presets).weights) == 26
    assert resolve("INS", SD, presets).weights == (0.5,) * 17
    assert resolve("INS", SDXL, presets) == resolve("INS", SDXL)
    assert resolve("MINE", SDXL, presets).weights == (1.0,) * 12
    assert "MINE" in presets.names(SDXL)
    assert "MINE" not in presets.names(SD)
    with pytest.raises(InputError, match="preset MINE has 12 values, but this LoRA is for SD1/SD2"):
        resolve("MINE", SD, presets)
    with pytest.raises(InputError, match="no block preset FLUXALL"):
        resolve("FLUXALL", SD, presets)


def test_own_element_presets_have_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "elempresets.txt"
    path.write_text("# remark\nA:IN01:attn:0.5\nIN02:attn:0.25\n\n\nB:::0\n", encoding="utf-8")
    presets = load_presets(elements=path)
    assert resolve("", SD, presets, lbwe="A").ratio(Q) == 0.5
    assert resolve("", SD, presets, lbwe="B").ratio(Q) == 0
    assert "XYZ" in presets.elements


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_unreadable_presets_are_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "p.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        load_presets(path)


@given(st.text())
def test_any_presets_file_is_read(text: str) -> None:
    parse_lists(text)
    parse_elements(text)


@given(st.text(), st.text(), st.sampled_from([SD, SDXL]))
def test_garbage_is_an_input_error(lbw: str, lbwe: str, architecture: Architecture) -> None:
    with suppress(InputError):
        assert resolve(lbw, architecture, lbwe=lbwe).weights


VALUES = st.one_of(st.sampled_from(["R", "U", "X", "X+0.3", "X-1"]), st.floats(-10, 10).map(number_text))


@given(
    st.sampled_from([(SD, 17), (SD, 26), (SDXL, 12), (SDXL, 20)]).flatmap(
        lambda case: st.tuples(st.just(case[0]), st.lists(VALUES, min_size=case[1], max_size=case[1]))
    ),
    st.integers(0, 2**32),
    st.floats(-2, 2),
)
def test_resolved_list_is_read_as_itself(case: tuple[Architecture, list[str]], seed: int, x: float) -> None:
    architecture, values = case
    weights = resolve(",".join(values), architecture, seed=seed, x=x)
    assert resolve(weights.text, architecture) == weights


# ------------------------------------------------------------------ single blocks and factors
@pytest.mark.parametrize(
    ("architecture", "block"), [(SD, "IN04"), (SDXL, "TE1"), (SDXL, "TE2"), (SD, "TE1"), (SD, "BASE")]
)
def test_single_block(architecture: Architecture, block: str) -> None:
    weights = single_block(block, architecture, inside=0.7, outside=0.1)
    prefix = {"TE2": "lora_te2_", "TE1": "lora_te1_", "BASE": "lora_te_"}.get(block)
    inside = f"{prefix}text_model_encoder_layers_0_mlp_fc1" if prefix else key_in(block)
    assert weights.ratio(inside) == 0.7
    assert weights.ratio(key_in("M00")) == 0.1
    if architecture is SDXL:
        other = {"TE1": "lora_te2_", "TE2": "lora_te1_"}[block]
        assert weights.ratio(f"{other}text_model_encoder_layers_0_mlp_fc1") == 0.1
    assert resolve(weights.text, architecture) == weights


def test_unknown_single_block_is_one_sentence() -> None:
    with pytest.raises(InputError, match="no block IN10 in SDXL; its blocks are BASE IN00"):
        single_block("IN10", SDXL)


def test_factors_have_the_weights_of_text_encoder_and_unet() -> None:
    text = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    found = factors([Q, text, "lora_unet_conv_out"], resolve("ALL0.5", SD), te=0.5, unet=2.0)
    assert found == {Q: 1.0, text: 0.25, "lora_unet_conv_out": 2.0}


def test_short_list_names_the_modules_it_silences() -> None:
    conv = "lora_unet_down_blocks_0_downsamplers_0_conv"
    assert resolve(",".join(["1"] * 17), SD).unlisted([Q, conv, "lora_unet_conv_out"]) == (conv,)
    assert resolve("ALL", SD).unlisted([Q, conv]) == ()
    assert BlockWeights().ratio(conv) == 1
    assert ldm_name(conv) == "diffusion_model_input_blocks_3_0_op"
