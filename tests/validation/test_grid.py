"""The epoch × weight grid, drawn by a session that paints what it was asked for."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_trainer.config import TrainConfig
from lora_trainer.errors import InputError, RunError
from lora_trainer.hosts.base import DrawRequest, LoraUse
from lora_trainer.model.families import SD1, CheckpointInfo
from lora_trainer.runs import Run, Runs
from lora_trainer.validation import grid
from lora_trainer.validation.grid import DEFAULT_WEIGHTS, GridPlan, draw_grid, plan_grid
from tests.helpers import config, temporary_files

SIZE = (40, 24)


class Painter:
    """A session whose pictures are one colour: that of file, weight and prompt."""

    def __init__(self, size: tuple[int, int] | None = None) -> None:
        self.drawn: list[tuple[str, float, str]] = []
        self._size = size
        self._in_turn = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        assert not self._in_turn
        self._in_turn = True
        yield
        self._in_turn = False

    def draw(self, requests: Sequence[DrawRequest], lora: LoraUse | None) -> list[Image.Image]:
        assert self._in_turn, "drawing outside of a turn"
        for request in requests:
            self.drawn.append((lora.path.name if lora else "", lora.weight if lora else 0.0, request.prompt))
        return [Image.new("RGB", self._size or (r.width, r.height), colour(r, lora)) for r in requests]


def colour(request: DrawRequest, lora: LoraUse | None) -> tuple[int, int, int]:
    content = lora.path.read_bytes() if lora else b""
    digest = hashlib.sha256(repr((content, lora and lora.weight, request)).encode()).digest()
    return digest[0] // 2, digest[1] // 2, digest[2] // 2  # dark, so that no cell is taken for paper


def make_run(root: Path, files: int = 2, **changes: Any) -> Run:
    settings = config(samples__width=SIZE[0], samples__height=SIZE[1], samples__prompts=["zorp"], **changes)
    run = Runs(root / "runs").create(settings)
    for epoch in range(1, files + 1):
        add_file(run, root / f"test-{epoch:06d}.safetensors", b"%d" % epoch, epoch)
    return run


def add_file(run: Run, path: Path, content: bytes, epoch: int) -> Path:
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    run.add_file({"path": str(path), "epoch": epoch, "step": 10 * epoch, "sha256": digest})
    return path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path)


# ------------------------------------------------------------------ the plan
def test_every_file_stands_at_every_weight_with_every_prompt_beside_the_checkpoint_alone(run: Run) -> None:
    plan = plan_grid(run, [0.5, 1], ["a", "b", "c"])
    assert [label for label, _ in plan.columns] == ["no LoRA", "epoch 1", "epoch 2"]
    cells = plan.cells()
    wanted = {(c, w, p) for c in range(3) for w in (0.5, 1.0) for p in "abc"}
    assert {([c for c, _ in plan.columns].index(cell.label), cell.weight, cell.request.prompt) for cell in cells} == (
        wanted
    )
    assert len(cells) == len(wanted) == 18
    assert [cell.file for cell in cells] == sorted((c.file for c in cells), key=lambda f: f.name if f else "")


def test_a_file_written_at_a_step_is_labelled_by_its_step(tmp_path: Path) -> None:
    run = make_run(tmp_path, files=0)
    add_file(run, tmp_path / "test-step00000010.safetensors", b"x", 1)
    assert plan_grid(run).columns[1][0] == "step 10"


def test_without_wishes_it_takes_the_usual_weights_and_the_samples_prompts(tmp_path: Path) -> None:
    run = make_run(tmp_path, samples__negative="blurry", samples__steps=3, samples__seed=9, samples__cfg=2.5)
    plan = plan_grid(run)
    assert plan.weights == list(DEFAULT_WEIGHTS)
    assert plan.requests == [DrawRequest("zorp", "blurry", *SIZE, 3, 2.5, "Euler a", 9)]


@pytest.mark.parametrize(("trigger", "prompt"), [("zorp_", "zorp_"), ("", "test")])
def test_without_prompts_it_draws_the_trigger_or_the_name(tmp_path: Path, trigger: str, prompt: str) -> None:
    settings = config(data__trigger=trigger, data__resolution=256)
    run = make_run(tmp_path)
    (request,) = plan_grid(run, config=settings).requests
    assert (request.prompt, request.width, request.height) == (prompt, 256, 256)


def test_files_that_were_deleted_are_left_out(run: Run) -> None:
    Path(run.manifest["files"][0]["path"]).unlink()
    assert [label for label, _ in plan_grid(run).columns] == ["no LoRA", "epoch 2"]


def test_a_run_without_files_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"test has no LoRA files"):
        plan_grid(make_run(tmp_path, files=0))


@pytest.mark.parametrize("weight", [2.01, -2.01, float("inf"), float("-inf"), float("nan"), 1e300])
def test_a_weight_that_makes_no_picture_is_one_sentence(run: Run, weight: float) -> None:
    with pytest.raises(InputError, match="from -2 to 2") as caught:
        plan_grid(run, [0.5, weight])
    assert caught.value.field == "weights"
    assert "\n" not in str(caught.value)


def test_the_most_pictures_are_planned_and_one_more_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "MAX_CELLS", 12)
    assert len(plan_grid(run, [0, 0.5, 1, 2], ["a"]).cells()) == 12
    with pytest.raises(InputError, match="15 pictures; 12 is the most"):
        plan_grid(run, [0, 0.5, 1, 1.5, 2], ["a"])


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=4), st.lists(st.text(max_size=5), min_size=1, max_size=3))
def test_cells_have_one_name_exactly_when_they_show_the_same(weights: list[float], prompts: list[str]) -> None:
    columns = [("no LoRA", None), ("epoch 1", Path("a.safetensors")), ("epoch 2", Path("b.safetensors"))]
    requests = [DrawRequest(prompt) for prompt in prompts]
    shown: dict[str, set[object]] = {}
    for cell in GridPlan(columns, weights, requests).cells():
        lora = (cell.file, cell.weight) if cell.file and cell.weight else None
        shown.setdefault(cell.key(), set()).add((lora, cell.request))
    assert all(len(things) == 1 for things in shown.values())
    everything = [thing for things in shown.values() for thing in things]
    assert len(everything) == len(set(everything))


@pytest.mark.parametrize(
    "change",
    [
        {"negative": "x"},
        {"width": 8},
        {"height": 8},
        {"steps": 1},
        {"cfg": 1.0},
        {"sampler": "Euler"},
        {"seed": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_the_picture_changes_the_cells_name(change: dict[str, Any]) -> None:
    def key(request: DrawRequest) -> str:
        return GridPlan([("", None)], [1.0], [request]).cells()[0].key()

    assert key(DrawRequest("a", **change)) != key(DrawRequest("a"))


# ------------------------------------------------------------------ drawing
def test_the_checkpoint_alone_is_drawn_once_a_prompt_whatever_the_weights(run: Run, tmp_path: Path) -> None:
    painter = Painter()
    draw_grid(plan_grid(run, [0, 0.5, 1, -0.0], ["a", "b"]), painter, tmp_path / "grid")
    alone = [prompt for file, _, prompt in painter.drawn if not file]
    assert alone == ["a", "b"]
    assert len(painter.drawn) == len(set(painter.drawn)) == 2 + 2 * 2 * 2
    assert len(list((tmp_path / "grid" / "cells").iterdir())) == 10


def test_each_cell_is_where_its_labels_say(run: Run, tmp_path: Path) -> None:
    plan = plan_grid(run, [0.5, 1], ["a", "b"])
    with Image.open(draw_grid(plan, Painter(), tmp_path / "grid")) as image:
        sheet = image.convert("RGB")
    width, height = SIZE
    left, pad, line = sheet.width - 3 * (width + 6), 6, 14
    for row, request in enumerate(plan.requests):
        for number, weight in enumerate(plan.weights):
            y = 2 * pad + line + row * (line + 2 * pad + 2 * (height + pad)) + line + pad + number * (height + pad)
            for column, (_, path) in enumerate(plan.columns):
                x = left + column * (width + pad)
                wanted = colour(request, LoraUse(path, weight) if path else None)
                corners = [sheet.getpixel((x + dx, y + dy)) for dx in (0, width - 1) for dy in (0, height - 1)]
                assert corners == [wanted] * 4
                assert sheet.getpixel((x + width, y)) == sheet.getpixel((x, y + height)) == (255, 255, 255)


def test_labels_are_written_beside_the_cells(run: Run, tmp_path: Path) -> None:
    plan = plan_grid(run, [0.5], ["a"])
    with Image.open(draw_grid(plan, Painter(), tmp_path / "grid")) as image:
        sheet = image.convert("L")
    left = sheet.width - 3 * (SIZE[0] + 6)
    assert left > 2 * 6 + 20  # room for "weight 0.5"
    for box in ((left, 0, sheet.width, 20), (0, 20, sheet.width, 38), (0, 46, left, sheet.height)):
        assert min(sheet.crop(box).getdata()) < 128


@pytest.mark.parametrize("prompt", ["", "wide " * 2000, "汉服少女,正面", "\n\t", "\U0001f600 {} <b>", "a\x00b"])
def test_any_prompt_is_a_label_that_does_not_widen_the_sheet(run: Run, tmp_path: Path, prompt: str) -> None:
    with Image.open(draw_grid(plan_grid(run, [1], ["a"]), Painter(), tmp_path / "plain")) as plain:
        usual = plain.size
    with Image.open(draw_grid(plan_grid(run, [1], [prompt]), Painter(), tmp_path / "grid")) as sheet:
        assert sheet.size == usual


def test_a_label_that_fits_is_whole_and_a_longer_one_ends_in_dots() -> None:
    font = grid._font()
    assert grid._shorten("epoch 1", 1000, font) == "epoch 1"
    short = grid._shorten("a very long label indeed", 60, font)
    assert short.endswith("…")
    assert "a very long label indeed".startswith(short[:-1])
    assert font.getlength(short) <= 60
    assert grid._shorten("abc", 0, font) == ""


def test_pillows_own_font_writes_what_it_cannot_as_question_marks() -> None:
    class LatinOnly:
        def getlength(self, text: str) -> float:
            text.encode("latin-1")
            return 6.0 * len(text)

    assert grid._shorten("汉服 x", 1000, LatinOnly()) == "?? x"
    assert grid._shorten("汉服" * 2000, 60, LatinOnly()) == "???????..."


def test_pictures_of_another_size_than_asked_for_still_make_a_sheet(run: Run, tmp_path: Path) -> None:
    sheet = draw_grid(plan_grid(run, [1], ["a"]), Painter(size=(16, 8)), tmp_path / "grid")
    with Image.open(sheet) as image:
        assert image.width > 3 * SIZE[0]


def test_progress_counts_every_cell_to_the_last(run: Run, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    draw_grid(plan_grid(run, [0.5, 1], ["a"]), Painter(), tmp_path / "grid", lambda done, of: seen.append((done, of)))
    assert seen == [(n, 6) for n in range(1, 7)]


def test_the_description_names_every_cells_picture(run: Run, tmp_path: Path) -> None:
    plan = plan_grid(run, [0.5, 1], ["a", "b"])
    draw_grid(plan, Painter(), tmp_path / "grid")
    told = json.loads((tmp_path / "grid" / "grid.json").read_text(encoding="utf-8"))
    assert (told["weights"], told["prompts"]) == ([0.5, 1.0], ["a", "b"])
    assert [c["file"] for c in told["columns"]] == [None, *(f["path"] for f in run.manifest["files"])]
    assert len(told["cells"]) == len(plan.cells())
    for entry, cell in zip(told["cells"], plan.cells(), strict=True):
        assert (entry["label"], entry["weight"], entry["prompt"]) == (cell.label, cell.weight, cell.request.prompt)
        with Image.open(entry["picture"]) as picture:
            lora = LoraUse(cell.file, cell.weight) if cell.file else None
            assert picture.getpixel((0, 0)) == colour(cell.request, lora)
        assert DrawRequest(**entry["request"]) == cell.request


# ------------------------------------------------------------------ going on with what is there
def test_cells_that_are_there_are_not_drawn_again(run: Run, tmp_path: Path) -> None:
    first, again, more = Painter(), Painter(), Painter()
    draw_grid(plan_grid(run, [0.5], ["a"]), first, tmp_path / "grid")
    before = (tmp_path / "grid" / "grid.png").read_bytes()
    draw_grid(plan_grid(run, [0.5], ["a"]), again, tmp_path / "grid")
    assert (len(first.drawn), again.drawn) == (3, [])
    assert (tmp_path / "grid" / "grid.png").read_bytes() == before
    draw_grid(plan_grid(run, [0.5, 1], ["a"]), more, tmp_path / "grid")
    assert {weight for _, weight, _ in more.drawn} == {1.0}


def test_a_grid_that_was_broken_off_goes_on_where_it_was(run: Run, tmp_path: Path) -> None:
    plan = plan_grid(run, [0.5, 1], ["a"])

    def stop(done: int, of: int) -> None:
        if done == 4:
            raise RunError("stopped")

    first, second = Painter(), Painter()
    with pytest.raises(RunError):
        draw_grid(plan, first, tmp_path / "grid", stop)
    assert not (tmp_path / "grid" / "grid.png").exists()
    draw_grid(plan, second, tmp_path / "grid")
    assert not set(first.drawn) & set(second.drawn)
    assert len(first.drawn) + len(second.drawn) == 5
    assert (tmp_path / "grid" / "grid.png").is_file()


@pytest.mark.parametrize("damage", [b"", b"not a picture", "half"])
def test_a_damaged_cell_is_drawn_again(run: Run, tmp_path: Path, damage: bytes | str) -> None:
    plan = plan_grid(run, [1], ["a"])
    sheet = draw_grid(plan, Painter(), tmp_path / "grid")
    whole = sheet.read_bytes()
    cell = tmp_path / "grid" / "cells" / f"{plan.cells()[1].key()}.png"
    cell.write_bytes(damage if isinstance(damage, bytes) else cell.read_bytes()[: cell.stat().st_size // 2])
    painter = Painter()
    assert draw_grid(plan, painter, tmp_path / "grid").read_bytes() == whole
    assert painter.drawn == [("test-000001.safetensors", 1.0, "a")]


def test_a_file_written_again_under_its_name_is_drawn_again(run: Run, tmp_path: Path) -> None:
    """A stopped run writes its last file, and when it was resumed to its end writes it again."""
    draw_grid(plan_grid(run, [1], ["a"]), Painter(), tmp_path / "grid")
    add_file(run, Path(run.manifest["files"][1]["path"]), b"learned more", 2)
    painter = Painter()
    draw_grid(plan_grid(run, [1], ["a"]), painter, tmp_path / "grid")
    assert painter.drawn == [("test-000002.safetensors", 1.0, "a")]


def test_another_checkpoint_or_vae_does_not_show_the_pictures_of_the_first(run: Run, tmp_path: Path) -> None:
    def info(sha256: str = "1" * 64, vae: str = "") -> CheckpointInfo:
        return CheckpointInfo("model.safetensors", sha256, "", SD1, "epsilon", vae)

    counts = []
    for checkpoint in (info(), info(), info(sha256="2" * 64), info(vae="other.pt"), info()):
        painter = Painter()
        draw_grid(plan_grid(run, [1], ["a"]).on(checkpoint), painter, tmp_path / "grid")
        counts.append(len(painter.drawn))
    assert counts == [3, 0, 3, 3, 0]


# ------------------------------------------------------------------ writing
def test_a_full_disk_leaves_no_half_picture_under_a_cells_name(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(self: Image.Image, path: Any, *args: Any, **kwargs: Any) -> None:
        Path(path).write_bytes(b"\x89PNG")
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as full:
        full.setattr(Image.Image, "save", half)
        with pytest.raises(RunError, match="disk is full"):
            draw_grid(plan_grid(run, [1], ["a"]), Painter(), tmp_path / "grid")
    assert list((tmp_path / "grid").rglob("*.png")) == []
    assert temporary_files(tmp_path) == []


def test_a_sheet_that_cannot_be_written_leaves_the_old_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheet = draw_grid(plan_grid(run, [1], ["a"]), Painter(), tmp_path / "grid")
    before = sheet.read_bytes()
    monkeypatch.setattr(grid, "compose", lambda *_: Image.new("HSV", (1, 1)))
    with pytest.raises(RunError, match="could not be written"):
        draw_grid(plan_grid(run, [0.5], ["a"]), Painter(), tmp_path / "grid")
    assert sheet.read_bytes() == before
    assert temporary_files(tmp_path) == []


def test_configurations_of_the_run_are_read_when_none_are_given(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert isinstance(run.config(), TrainConfig)
    assert plan_grid(run) == plan_grid(run, config=run.config())
