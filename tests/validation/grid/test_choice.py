"""What is done with the chosen cell: votes, the LoRA's card and picture, a baked file. Nobody's file is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError, NotFound, RunError
from lora_trainer.network.lora_file import read_metadata
from lora_trainer.network.ops.provenance import RECORD
from lora_trainer.runs.run import Run
from lora_trainer.runs.store import Runs
from lora_trainer.validation.grid import choice as choose
from lora_trainer.validation.grid.choice import Choice, find_cell
from tests.grids_made import make_files, make_grid
from tests.runs_helpers import document


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of three files with its grid, without seeds or prompts to choose from."""
    run = Runs(tmp_path / "runs").create(TrainConfig.from_dict(document(tmp_path)))
    make_files(run, tmp_path / "loras", 3)
    make_grid(run, weights=[0.5, 1.0], prompts=["zorp"], seeds=[1])
    return run


def choice(run: Run, column: int = 2, weight: float = 0.5) -> Choice:
    cells = json.loads((run.grids / "plain" / "grid.json").read_text(encoding="utf-8"))["cells"]
    (cell,) = (c for c in cells if (c["column"], c["weight"]) == (column, weight))
    return find_cell(run, cell["key"], column, weight)


def card(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


# ------------------------------------------------------------------ finding the cell
def test_a_cell_is_found_with_its_file_weight_and_picture(run: Run) -> None:
    found = choice(run)
    assert found.lora is not None
    assert (found.lora.path.name, found.lora.weight, found.trigger) == ("zorp-000002.safetensors", 0.5, "zorp")
    assert found.used() == found.lora
    assert found.picture.is_file()


@pytest.mark.parametrize(
    ("key", "column", "weight"),
    [("", 2, 0.5), ("0" * 16, 2, 0.5), (None, 1, 0.5), (None, 2, 1.0), (None, 99, 0.5), (None, -1, 0.5)],
)
def test_what_is_no_cell_of_the_grid_is_refused(run: Run, key: str | None, column: int, weight: float) -> None:
    with pytest.raises(InputError, match="has changed; choose the cell again"):
        find_cell(run, choice(run).key if key is None else key, column, weight)


def test_a_run_without_a_grid_says_so(tmp_path: Path) -> None:
    run = Runs(tmp_path / "runs").create(TrainConfig.from_dict(document(tmp_path)))
    with pytest.raises(NotFound, match="No grid of zorp"):
        find_cell(run, "0" * 16, 1, 0.5)


def test_a_document_cannot_name_files_that_are_not_the_runs(run: Run, tmp_path: Path) -> None:
    found = choice(run)
    path = run.grids / "plain" / "grid.json"
    path.write_text(path.read_text(encoding="utf-8").replace("zorp-000002", "elsewhere"), encoding="utf-8")
    with pytest.raises(InputError, match=r"elsewhere.safetensors is no file of the run zorp"):
        find_cell(run, found.key, 2, 0.5)


@pytest.mark.parametrize("action", [choose.write_card, choose.set_preview, choose.bake_cell])
def test_the_checkpoint_alone_has_no_card_picture_or_file(run: Run, action: Any) -> None:
    with pytest.raises(InputError, match="without a LoRA"):
        action(choice(run, 0, 0.0))


@pytest.mark.parametrize("action", [choose.write_card, choose.set_preview, choose.bake_cell])
def test_a_file_that_was_deleted_is_a_sentence(run: Run, action: Any) -> None:
    found = choice(run)
    found.used().path.unlink()
    with pytest.raises(InputError, match=r"zorp-000002.safetensors is gone"):
        action(found)
    assert not found.lora.path.with_suffix(".json").exists()  # type: ignore[union-attr]


# ------------------------------------------------------------------ votes
def test_votes_are_kept_changed_and_taken_back(run: Run) -> None:
    first, second = choice(run), choice(run, 1)
    assert choose.vote(first, 1) == {first.key: 1}
    assert choose.vote(second, -1) == {first.key: 1, second.key: -1}
    assert choose.vote(first, -1) == choose.votes(run) == {first.key: -1, second.key: -1}
    assert choose.vote(first, 0) == choose.votes(run) == {second.key: -1}


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([-1, 0, 1])), max_size=8))
def test_the_last_vote_of_each_cell_counts(run: Run, cast: list[tuple[int, int]]) -> None:
    (run.grids / "plain" / "votes.json").unlink(missing_ok=True)
    places = [choice(run, column) for column in (1, 2, 3)]
    for place, value in cast:
        choose.vote(places[place], value)
    last = {places[place].key: value for place, value in cast}
    assert choose.votes(run) == {key: value for key, value in last.items() if value}


def test_votes_that_are_damaged_are_not_replaced_by_a_new_one(run: Run) -> None:
    path = run.grids / "plain" / "votes.json"
    for damage in ('{"a": 1', "[1]", '{"a": 2}', '{"a": 1, "b": [1]}', "[" * 100_000):
        path.write_text(damage, encoding="utf-8")
        with pytest.raises(InputError, match="would replace them all"):
            choose.vote(choice(run), 1)
        assert path.read_text(encoding="utf-8") == damage


@pytest.mark.parametrize("value", [2, -5, "1", None, 0.5, [1]])
def test_a_vote_is_one_up_or_down(run: Run, value: Any) -> None:
    with pytest.raises(InputError, match="A vote is 1, -1, or 0"):
        choose.vote(choice(run), value)
    assert choose.votes(run) == {}


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 7, "b": "1"}'])
def test_damaged_votes_are_none(run: Run, content: str) -> None:
    (run.grids / "plain" / "votes.json").write_text(content, encoding="utf-8")
    assert choose.votes(run) == {}


# ------------------------------------------------------------------ the card
def test_the_card_gets_weight_and_trigger_and_keeps_everything_else(run: Run) -> None:
    path = choice(run).used().path
    theirs = {"description": "汉服 <b>", "notes": "mine", "sd version": "SD1", "preferred weight": 0.8, "own": [1]}
    path.with_suffix(".json").write_text(json.dumps(theirs), encoding="utf-8")
    assert choose.write_card(choice(run)) == path.with_suffix(".json")
    assert card(path) == {**theirs, "preferred weight": 0.5, "activation text": "zorp"}


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, "zorp"), ("", "zorp"), ("zorp, hat", "zorp, hat"), ("a Zorp", "a Zorp"), ("hat", "zorp, hat")],
)
def test_what_the_person_wrote_as_activation_text_is_kept(run: Run, before: str | None, after: str) -> None:
    path = choice(run).used().path
    path.with_suffix(".json").write_text(json.dumps({"activation text": before}), encoding="utf-8")
    choose.write_card(choice(run))
    assert card(path)["activation text"] == after
    choose.write_card(choice(run))
    assert card(path)["activation text"] == after


@pytest.mark.parametrize("content", [b"{", b"[1, 2]", b"\xff\xfe\x00"])
def test_a_damaged_card_is_left_as_it_is(run: Run, content: bytes) -> None:
    path = choice(run).used().path.with_suffix(".json")
    path.write_bytes(content)
    for action in (choose.write_card, choose.bake_cell):
        with pytest.raises(InputError, match=r"zorp-000002.json is no readable JSON"):
            action(choice(run))
    assert path.read_bytes() == content


# ------------------------------------------------------------------ the picture
def previews(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.parent.iterdir() if p.suffix in (".png", ".jpg", ".webp")}


def paint(path: Path, color: str) -> bytes:
    Image.new("RGB", (8, 8), color).save(path)
    return path.read_bytes()


def test_the_cells_picture_becomes_the_preview(run: Run) -> None:
    found = choice(run)
    path, kept = choose.set_preview(found)
    assert (path.name, kept) == ("zorp-000002.png", [])
    assert path.read_bytes() == found.picture.read_bytes()
    assert choose.set_preview(found) == (path, [])
    assert list(previews(path)) == ["zorp-000002.png"]


@pytest.mark.parametrize("name", ["zorp-000002.png", "zorp-000002.preview.png", "zorp-000002.jpg", "zorp-000002.webp"])
def test_a_picture_of_the_person_is_kept_under_another_name(run: Run, name: str) -> None:
    found = choice(run)
    folder = found.used().path.parent
    theirs = paint(folder / name, "red")
    earlier = paint(folder / f"zorp-000002-preview-kept{Path(name).suffix}", "blue")
    path, kept = choose.set_preview(found)
    assert [k.read_bytes() for k in kept] == [theirs]
    assert set(previews(path).values()) == {theirs, earlier, found.picture.read_bytes()}
    assert [p.name for p in choose._previews(path)] == ["zorp-000002.png"]


def test_one_of_the_runs_own_pictures_is_replaced(run: Run) -> None:
    found = choice(run)
    path = found.used().path.with_suffix(".png")
    run.samples.mkdir(exist_ok=True)
    path.write_bytes(paint(run.samples / "00000002-00.png", "green"))
    assert choose.set_preview(found) == (path, [])
    path.with_suffix(".jpg").write_bytes(choice(run, 1).picture.read_bytes())  # of another cell
    assert choose.set_preview(found) == (path, [])
    assert previews(path) == {path.name: found.picture.read_bytes()}


def test_a_cell_that_is_not_drawn_yet_has_no_picture_to_give(run: Run) -> None:
    found = choice(run)
    found.picture.unlink()
    theirs = paint(found.used().path.with_suffix(".png"), "red")
    with pytest.raises(InputError, match="not drawn yet"):
        choose.set_preview(found)
    assert found.used().path.with_suffix(".png").read_bytes() == theirs


def test_a_folder_that_cannot_be_written_is_a_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = choice(run)
    theirs = paint(found.used().path.with_suffix(".png"), "red")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(RunError, match="could not be written: Permission denied"):
        choose.set_preview(found)
    assert found.used().path.with_suffix(".png").read_bytes() == theirs


# ------------------------------------------------------------------ baking
def delta(path: Path) -> torch.Tensor:
    """The file's ΔW by kohya's formula, in float64."""
    t = {key.rpartition("proj_in.")[2]: value.double() for key, value in load_file(path).items()}
    down, up = t["lora_down.weight"], t["lora_up.weight"]
    return float(t["alpha"]) / down.shape[0] * up @ down


def test_the_baked_file_does_at_1_what_the_cell_shows(run: Run) -> None:
    found = choice(run)
    source = found.used().path
    before = source.read_bytes()
    source.with_suffix(".json").write_text('{"notes": "mine", "preferred weight": 0.7}', encoding="utf-8")
    made = choose.bake_cell(found)
    assert made.name == "zorp-000002-weight0.5.safetensors"
    torch.testing.assert_close(delta(made), 0.5 * delta(source), rtol=1e-6, atol=0)
    assert source.read_bytes() == before
    assert card(made) == {"notes": "mine", "preferred weight": 1.0, "activation text": "zorp"}
    assert card(source)["preferred weight"] == 0.7
    assert made.with_suffix(".png").read_bytes() == found.picture.read_bytes()
    metadata = read_metadata(made)
    assert metadata["ss_output_name"] == "zorp-000002-weight0.5"
    (record,) = json.loads(metadata[RECORD])
    assert (record["made"], record["te"], record["unet"]) == ("baked", 0.5, 0.5)


def test_a_second_baking_gets_a_free_name_and_what_lies_there_stays(run: Run) -> None:
    found = choice(run)
    first = choose.bake_cell(found)
    folder = first.parent
    (folder / "zorp-000002-weight0.5-2.json").write_text('{"notes": "of a deleted file"}', encoding="utf-8")
    theirs = paint(folder / "zorp-000002-weight0.5-2.png", "red")
    content = first.read_bytes()
    second = choose.bake_cell(found)
    assert second.name == "zorp-000002-weight0.5-2.safetensors"
    assert first.read_bytes() == content
    assert card(second) == {"notes": "of a deleted file", "activation text": "zorp", "preferred weight": 1.0}
    assert theirs in previews(second).values()
