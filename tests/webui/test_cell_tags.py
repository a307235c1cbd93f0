from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.core.errors import InputError
from lora_trainer.model.block_lists import SD, SDXL, Architecture
from lora_trainer.network.blocks.weights import resolve
from lora_trainer.runs.saved_files import NO_LORA, RunFiles, epoch_values
from lora_trainer.webui.cell_tags import CellTag, block_choices, block_lists, compose, masked, single_blocks

ONES = ",".join(["1"] * 17)


# ------------------------------------------------------------------ the prompt of a cell
@pytest.mark.parametrize(
    ("prompt", "cell", "made"),
    [
        ("a <lora:x:0.8> b", CellTag(weight=0.3), "a <lora:x:0.3> b"),
        ("<lora:x:0.8:0.5>", CellTag(weight=0.3), "<lora:x:0.3>"),
        ("<lora:x:0.8>", CellTag(te=0), "<lora:x:0:unet=0.8>"),
        ("<lora:x:0.8>", CellTag(unet=0), "<lora:x:0.8:unet=0>"),
        ("<lora:x>", CellTag(weight=0.5, te=0.1, unet=0.2), "<lora:x:0.1:unet=0.2>"),
        ("<lora:x:1:stop=5>", CellTag(file="y"), "<lora:y:1:stop=5>"),
        ("a", CellTag(file="y"), "a<lora:y:1>"),
        ("a", CellTag(file="y", weight=0.1 + 0.2, lbw="OUTD"), "a<lora:y:0.3:lbw=OUTD>"),
        ("a<lora:x:1>b", CellTag(file=NO_LORA, weight=1), "ab"),
        ("a", CellTag(file=NO_LORA, weight=1), "a"),
        ("<lora:x:1><lora:y:1>", CellTag(weight=0), "<lora:x:0><lora:y:1>"),
        ("<lora:x:1><lora:y:1:axis=1>", CellTag(weight=0), "<lora:x:1><lora:y:0:axis=1>"),
        ("<lora:x:1><lora:y-1:1>", CellTag(file="y-2", family=frozenset({"y-1", "y-2"})), "<lora:x:1><lora:y-2:1>"),
        ("<lyco:x:1>", CellTag(weight=0.5), "<lyco:x:0.5>"),
        ("<lora:x:1:lbw=OUTD:lbwe=NOTE:k=v>", CellTag(lbw="ALL"), "<lora:x:1:lbw=ALL:lbwe=NOTE:k=v>"),
    ],
)
def test_a_cells_tag_is_put_into_the_prompt(prompt: str, cell: CellTag, made: str) -> None:
    assert compose(prompt, cell, SD) == made
    assert compose(made, cell, SD) == made or cell.file is not None


def test_a_prompt_without_a_tag_needs_a_file() -> None:
    with pytest.raises(InputError, match="no LoRA tag"):
        compose("a <hypernet:x:1>", CellTag(weight=1), SD)
    assert compose("a", CellTag(weight=1), SD, needed=False) == "a"
    assert compose("a", CellTag(file="x"), SD, needed=False) == "a"


@pytest.mark.parametrize("architecture", [SD, SDXL], ids=["SD", "SDXL"])
def test_one_block_and_all_but_it_make_the_whole_list(architecture: Architecture) -> None:
    keys = {
        "IN05": "diffusion_model_input_blocks_5_1_proj_in",
        "M00": "diffusion_model_middle_block_1_proj_in",
        "BASE": "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    }
    for lbw in ("", "OUTD", "MIDD"):
        whole = resolve(lbw, architecture)
        for block, key in keys.items():
            only = resolve(masked(lbw, block, architecture), architecture)
            rest = resolve(masked(lbw, f"NOT {block}", architecture), architecture)
            assert only.blocks == whole.blocks
            assert (only.ratio(key), rest.ratio(key)) == (whole.ratio(key), 0)
            for other in set(keys.values()) - {key}:
                assert (only.ratio(other), rest.ratio(other)) == (0, whole.ratio(other))


def test_text_encoders_are_told_apart_where_there_are_two() -> None:
    first, second = "lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    only = resolve(masked("", "TE2", SDXL), SDXL)
    rest = resolve(masked(",".join(["0.5/0.25", *["1"] * 11]), "NOT TE2", SDXL), SDXL)
    assert (only.ratio(first), only.ratio(second)) == (0, 1)
    assert (rest.ratio(first), rest.ratio(second)) == (0.5, 0)
    assert masked(ONES, "TE1", SD) == "1" + ",0" * 16
    assert masked(ONES.replace("1", "R"), "BASE", SD) == "R" + ",0" * 16


@pytest.mark.parametrize(
    ("lbw", "block"), [("", "IN12"), ("", "NOT IN77"), ("", "in05"), ("NOSUCH", "IN05"), ("1,2", "M00")]
)
def test_unknown_blocks_and_lists_are_refused(lbw: str, block: str) -> None:
    with pytest.raises(InputError):
        masked(lbw, block, SDXL)


# ------------------------------------------------------------------ values
@pytest.mark.parametrize(
    ("text", "lists"),
    [
        ("OUTD, INS", ["OUTD", "INS"]),
        (ONES, [ONES]),
        (f'OUTD,"{ONES}"', ["OUTD", ONES]),
        (f"{ONES};OUTD", [ONES, "OUTD"]),
        (f"{ONES}\n{ONES}\n", [ONES, ONES]),
        ("R,U,X,X-0.2,1,0,0,0,0,0,0,0", ["R,U,X,X-0.2,1,0,0,0,0,0,0,0"]),
        ("0.5/1,1,1,1,1,1,1,1,1,1,1,1", ["0.5/1,1,1,1,1,1,1,1,1,1,1,1"]),
        ("1, 2, 3", ["1,2,3"]),
        (" , ,", []),
        ("", []),
    ],
)
def test_presets_and_lists_come_out_of_one_text(text: str, lists: list[str]) -> None:
    assert block_lists(text) == lists


@given(st.text('01.,;"\n XRUA-', max_size=40))
def test_any_text_gives_values_without_blanks_around(text: str) -> None:
    assert all(value == value.strip() and value for value in block_lists(text))


def test_all_blocks_and_some() -> None:
    assert len(single_blocks(["all"], SD)) == 26
    assert len(single_blocks(["all"], SDXL)) == 20 + 2
    assert single_blocks(["IN05", "NOT  M00", "IN05"], SD) == ["IN05", "NOT M00"]
    assert all(single_blocks([choice], SDXL) for choice in block_choices(SDXL))
    with pytest.raises(InputError, match="IN09"):
        single_blocks(["IN09"], SDXL)


@pytest.fixture
def runs(tmp_path: Path) -> list[RunFiles]:
    """A run of four epochs and two files by steps, an older one, and one without files."""

    def run(name: str, *files: tuple[str, int, int]) -> RunFiles:
        for file, _, _ in files:
            (tmp_path / f"{file}.safetensors").touch()
        entries = [{"path": str(tmp_path / f"{f}.safetensors"), "epoch": epoch, "step": s} for f, epoch, s in files]
        return RunFiles.of(name, entries)

    return [
        run("empty"),
        run(
            "b", ("b-000001", 1, 10), ("b-step00000015", 1, 15), ("b-000002", 2, 20), ("b-000003", 3, 30), ("b", 4, 40)
        ),
        run("a: x", ("ax-000001", 1, 5), ("ax", 2, 10)),
    ]


@pytest.mark.parametrize(
    ("values", "prompt", "found"),
    [
        (["b: all"], "", ["b: 1", "b: step 15", "b: 2", "b: 3", "b: 4"]),
        (["all"], "", ["b: 1", "b: step 15", "b: 2", "b: 3", "b: 4"]),
        (["all"], "<lora:ax:1>", ["a: x: 1", "a: x: 2"]),
        (["a: x: 1", "2", "b: last"], "", ["a: x: 1", "a: x: 2", "b: 4"]),
        (["b: every 2"], "", ["b: 2", "b: 4"]),
        (["b: every 3"], "", ["b: 3", "b: 4"]),
        (["b: 3-2"], "", ["b: 2", "b: 3"]),
        (["b: 2 - 9"], "", ["b: 2", "b: 3", "b: 4"]),
        (["b: step  15", "none", "None"], "", ["b: step 15", "None"]),
        (["b: 2", "b: all"], "", ["b: 2", "b: 1", "b: step 15", "b: 3", "b: 4"]),
    ],
)
def test_values_name_epochs(runs: list[RunFiles], values: list[str], prompt: str, found: list[str]) -> None:
    made = epoch_values(values, runs, prompt)
    assert made == found
    assert all((value.file is None) == (value == NO_LORA) for value in made)


def test_every_choice_can_be_chosen(runs: list[RunFiles]) -> None:
    for run in runs[1:]:
        for choice in run.choices():
            assert epoch_values([choice], runs)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        (["c: all"], "There is no run named c"),
        (["b: 5"], "has no epoch 5; it has 1, step 15, 2, 3, 4"),
        (["b: 6-7"], "has no epoch 6-7"),
        (["b: some"], "has no epoch some"),
        (["b:"], "has no epoch of no number"),
        (["empty: all"], "no file any more for all: every one is gone"),
        (["empty: 1"], "it has no files yet"),
    ],
)
def test_unknown_epochs_are_one_sentence(runs: list[RunFiles], values: list[str], part: str) -> None:
    with pytest.raises(InputError) as error:
        epoch_values(values, runs)
    assert part in str(error.value)


def test_a_file_that_is_gone_is_named_when_asked_for_and_left_out_of_many(runs: list[RunFiles]) -> None:
    runs[1].files["2"].path.unlink()
    assert epoch_values(["b: 1-3"], runs) == ["b: 1", "b: 3"]
    with pytest.raises(InputError, match=r"b-000002\.safetensors is gone"):
        epoch_values(["b: 2"], runs)


def test_without_any_run_there_is_a_sentence() -> None:
    with pytest.raises(InputError, match="no run with LoRA files yet"):
        epoch_values(["all"], [])


@pytest.mark.parametrize("name", ["two-step dance", "cat-steps100"])
def test_a_runs_name_with_step_in_it_leaves_its_files_their_epochs(name: str) -> None:
    entries = [{"path": f"{name}-000001.safetensors", "epoch": 1, "step": 2}]
    entries += [{"path": f"{name}-step00000003.safetensors", "epoch": 2, "step": 3}]
    entries += [{"path": f"{name}.safetensors", "epoch": 2, "step": 4}]
    found = RunFiles.of(name, entries)
    assert [(value, file.epoch, file.by_step) for value, file in found.files.items()] == [
        ("1", 1, False), ("step 3", 2, True), ("2", 2, False),
    ]  # fmt: skip
    assert [file.path.stem for file in found.files.values()] == [f"{name}-000001", f"{name}-step00000003", name]
