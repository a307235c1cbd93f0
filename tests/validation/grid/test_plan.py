"""The epoch × weight grid, drawn by a session that paints what it was asked for."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError, NotFound, RunError
from lora_trainer.hosts.base import DrawRequest, LoraUse
from lora_trainer.model.families import SD1, CheckpointInfo
from lora_trainer.runs.run import Run
from lora_trainer.runs.saved_files import SavedFile
from lora_trainer.runs.store import Runs
from lora_trainer.validation.grid.cells import Cell, Drawn, count_batches
from lora_trainer.validation.grid.document import grid_folder, known_grid
from lora_trainer.validation.grid.draw import draw_grid, pace
from lora_trainer.validation.grid.plan import DEFAULT_WEIGHTS, Column, GridOptions, GridPlan, plan_grid
from tests.helpers import config, temporary_files

SIZE = (40, 24)


class Painter:
    """A session whose pictures are one colour: that of file, weight and prompt."""

    def __init__(self, size: tuple[int, int] | None = None, most: int = 99, error: Exception | None = None) -> None:
        self.drawn: list[tuple[str, float, str]] = []
        self.batches: list[int] = []
        self._size = size
        self._most = most
        self._error = error
        self._in_turn = False

    @contextmanager
    def turn(self, *, drawing: bool) -> Iterator[None]:
        assert drawing
        assert not self._in_turn
        self._in_turn = True
        try:
            yield
        finally:
            self._in_turn = False

    def draw(self, requests: Sequence[DrawRequest], lora: LoraUse | None) -> list[Image.Image]:
        assert self._in_turn, "drawing outside of a turn"
        if len(requests) > self._most:
            assert self._error
            raise self._error
        self.batches.append(len(requests))
        for request in requests:
            self.drawn.append((lora.path.name if lora else "", lora.weight if lora else 0.0, request.prompt))
        return [self._paint(request, lora) for request in requests]

    def _paint(self, request: DrawRequest, lora: LoraUse | None) -> Image.Image:
        image = Image.new("RGB", self._size or (request.width, request.height), colour(request, lora))
        image.info["parameters"] = told(request, lora)
        return image


def colour(request: DrawRequest, lora: LoraUse | None) -> tuple[int, int, int]:
    content = lora.path.read_bytes() if lora else b""
    digest = hashlib.sha256(repr((content, lora and lora.weight, request)).encode()).digest()
    return digest[0] // 2, digest[1] // 2, digest[2] // 2  # dark, so that no cell is taken for paper


def told(request: DrawRequest, lora: LoraUse | None) -> str:
    return f"{request.prompt}{lora.tag if lora else ''} seed {request.seed}"


def options(run: Run, **wishes: Any) -> GridPlan:
    return plan_grid(run, GridOptions(**wishes))


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
def test_every_file_stands_at_every_weight_with_every_prompt_and_seed_beside_the_checkpoint_alone(run: Run) -> None:
    plan = options(run, weights=[0.5, 1], prompts=["a", "b", "c"], seeds=[4, 5])
    assert [column.label for column in plan.columns] == ["no LoRA", "epoch 1", "epoch 2"]
    wanted = [(0, 0.0, p, s) for p in range(3) for s in range(2)]
    wanted += [(c, w, p, s) for c in (1, 2) for w in (0.5, 1.0) for p in range(3) for s in range(2)]
    assert plan.places() == wanted
    cell = plan.cell(2, 0.5, 1, 0)
    assert cell.lora == LoraUse(Path(run.manifest["files"][1]["path"]), 0.5)
    assert (cell.request.prompt, cell.request.seed) == ("b", 4)


def test_a_file_written_at_a_step_is_labelled_by_its_step(tmp_path: Path) -> None:
    run = make_run(tmp_path, files=0)
    add_file(run, tmp_path / "test-step00000010.safetensors", b"x", 1)
    assert plan_grid(run).columns[1].label == "step 10"


def test_without_wishes_it_takes_the_usual_weights_and_the_samples_prompts(tmp_path: Path) -> None:
    run = make_run(tmp_path, samples__negative="blurry", samples__steps=3, samples__seed=9, samples__cfg=2.5)
    plan = plan_grid(run)
    assert plan.weights == list(DEFAULT_WEIGHTS)
    assert plan.cell(0, 0.0, 0, 0).request == DrawRequest("zorp", "blurry", *SIZE, 3, 2.5, "Euler a", 9)


@pytest.mark.parametrize(("trigger", "prompt"), [("zorp_", "zorp_"), ("", "test")])
def test_without_prompts_it_draws_the_trigger_or_the_name(tmp_path: Path, trigger: str, prompt: str) -> None:
    settings = config(data__trigger=trigger, data__resolution=256)
    plan = plan_grid(make_run(tmp_path), config=settings)
    request = plan.cell(0, 0.0, 0, 0).request
    assert (plan.prompts, request.width, request.height) == ([prompt], 256, 256)


@pytest.mark.parametrize(
    ("epochs", "labels"),
    [
        ("all", [1, 2, 3, 4]),
        ("", [1, 2, 3, 4]),
        ("every 2", [2, 4]),
        ("2-3", [2, 3]),
        ("last", [4]),
        ("4, 1", [1, 4]),
        ("1，3-4", [1, 3, 4]),
    ],
)
def test_epochs_are_chosen_as_in_the_webuis_axes(tmp_path: Path, epochs: str, labels: list[int]) -> None:
    plan = options(make_run(tmp_path, files=4), epochs=epochs)
    assert [column.saved.epoch if column.saved else 0 for column in plan.columns] == [0, *labels]


def test_an_epoch_that_there_is_not_is_one_sentence(run: Run) -> None:
    with pytest.raises(InputError, match="no epoch 7"):
        options(run, epochs="7")


@pytest.mark.parametrize(
    ("prompts", "added"),
    [
        (["zorp, blue background"], ["blue background"]),
        (["zorp", "Zorp, on grass, ZORP"], ["on grass"]),
        (["zorp, a", "b"], []),
        (["zorp"], []),
    ],
)
def test_one_prompt_shows_what_the_lora_does_unasked(tmp_path: Path, prompts: list[str], added: list[str]) -> None:
    run = make_run(tmp_path, data__trigger="zorp")
    assert options(run, prompts=prompts).prompts == [*prompts, *added]
    assert options(run, prompts=prompts, numbers=False).prompts == prompts


@pytest.mark.parametrize(("prompts", "trigger"), [(["a test, red", "b"], "test"), (["a", "b"], "")])
def test_without_a_trigger_the_runs_name_is_it_where_a_prompt_has_it(
    run: Run, prompts: list[str], trigger: str
) -> None:
    plan = options(run, prompts=prompts)
    assert plan.trigger == trigger
    assert [plan.has_trigger(prompt) for prompt in prompts] == [True, not trigger]


def test_files_that_were_deleted_are_left_out(run: Run) -> None:
    Path(run.manifest["files"][0]["path"]).unlink()
    assert [column.label for column in plan_grid(run).columns] == ["no LoRA", "epoch 2"]


def test_a_run_without_files_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"test has no LoRA files"):
        plan_grid(make_run(tmp_path, files=0))


@pytest.mark.parametrize(
    ("wish", "values"),
    [
        *(("weights", [0.5, w]) for w in (2.01, -2.01, float("inf"), float("-inf"), float("nan"), 1e300)),
        *(("seeds", [s]) for s in (-1, 2**32, 1.5e300)),
        ("together", 0),
        ("together", 65),
        ("prompts", ["a"] * 201),
        ("seeds", list(range(201))),
    ],
)
def test_a_wish_that_makes_no_picture_is_one_sentence(run: Run, wish: str, values: Any) -> None:
    with pytest.raises(InputError) as caught:
        options(run, **{wish: values})
    assert caught.value.field == wish
    assert "\n" not in str(caught.value)


@given(
    st.lists(st.floats(-2, 2), min_size=1, max_size=4),
    st.lists(st.text(max_size=5), min_size=1, max_size=3, unique=True),
    st.lists(st.integers(0, 9), min_size=1, max_size=2, unique=True),
)
def test_cells_have_one_name_exactly_when_they_show_the_same(
    weights: list[float], prompts: list[str], seeds: list[int]
) -> None:
    files = [
        SavedFile(Path(f"{name}.safetensors"), f"epoch {epoch}", epoch) for epoch, name in enumerate("ab", start=1)
    ]
    columns = [Column(), *map(Column, files)]
    plan = GridPlan("test", "", columns, weights, prompts, seeds, DrawRequest(""))
    shown: dict[str, set[object]] = {}
    for cell in (plan.cell(*place) for place in plan.places()):
        shown.setdefault(cell.key(), set()).add((cell.used, cell.request))
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
        {"more": (("tiling", True),)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_the_picture_changes_the_cells_name(change: dict[str, Any]) -> None:
    assert Cell(None, DrawRequest("a", **change)).key() != Cell(None, DrawRequest("a")).key()


def test_what_only_the_host_knows_is_in_the_name_and_leaves_the_others_names_as_they_were() -> None:
    """Pictures that an older version drew are found again."""
    mores: list[tuple[tuple[str, Any], ...]] = [
        (),
        (("enable_hr", True), ("hr_scale", 2.0)),
        (("enable_hr", True), ("hr_scale", 1.5)),
        (("override_settings", (("CLIP_stop_at_last_layers", 2),)),),
    ]
    assert len({Cell(None, DrawRequest("a", more=more)).key() for more in mores}) == len(mores)
    assert Cell(None, DrawRequest("a")).key() == "af9279ae0f11f522"


def test_block_weights_change_the_cells_name() -> None:
    path = Path("a.safetensors")
    keys = {Cell(LoraUse(path, 1.0, lbw), DrawRequest("a")).key() for lbw in ("", "OUTD", "INS")}
    assert len(keys) == 3


# ------------------------------------------------------------------ drawing
def draw(plan: GridPlan, painter: Painter, folder: Path, **more: Any) -> Path:
    """The sheet."""
    return Path(draw_grid(plan, painter, folder, **more)["sheets"][0])


def test_the_checkpoint_alone_is_drawn_once_a_prompt_whatever_the_weights(run: Run, tmp_path: Path) -> None:
    painter = Painter()
    draw(options(run, weights=[0, 0.5, 1, -0.0], prompts=["a", "b"]), painter, tmp_path / "grid")
    alone = [prompt for file, _, prompt in painter.drawn if not file]
    assert alone == ["a", "b"]
    assert len(painter.drawn) == len(set(painter.drawn)) == 2 + 2 * 2 * 2
    assert len(list((tmp_path / "grid" / "cells").iterdir())) == 10


def test_what_differs_in_prompt_and_seed_only_is_drawn_together(run: Run, tmp_path: Path) -> None:
    painter = Painter()
    draw(options(run, weights=[0.5, 1], prompts=["a", "b"], seeds=[1, 2]), painter, tmp_path / "grid", together=3)
    assert painter.batches == [3, 1] * 5


@pytest.mark.parametrize(("together", "seeds"), [(1, [1]), (3, [1, 2]), (4, [1, 2, 3]), (16, [1, 2]), (2, [5])])
def test_the_hosts_jobs_are_counted_before(run: Run, tmp_path: Path, together: int, seeds: list[int]) -> None:
    """Also when some pictures are there."""
    folder = tmp_path / "grid"
    draw(options(run, weights=[0.5], prompts=["a"], seeds=[1]), Painter(), folder)
    plan = options(run, weights=[0.5, 1], prompts=["a", "b"], seeds=seeds)
    counted = count_batches([plan.cell(*place) for place in plan.places()], Drawn(folder / "cells"), together)
    painter = Painter()
    draw(plan, painter, folder, together=together)
    assert counted == len(painter.batches)
    assert count_batches([plan.cell(*place) for place in plan.places()], Drawn(folder / "cells"), together) == 0


@pytest.mark.parametrize("error", [MemoryError("full"), RuntimeError("CUDA out of memory. Tried to allocate")])
def test_with_too_little_memory_fewer_are_drawn_at_once(run: Run, tmp_path: Path, error: Exception) -> None:
    painter = Painter(most=2, error=error)
    draw(options(run, weights=[1], prompts=["a", "b"], seeds=[1, 2]), painter, tmp_path / "grid", together=4)
    assert painter.batches == [2, 2] * 3


def test_with_memory_for_not_even_one_it_says_so(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not enough memory to draw a picture of 40×24"):
        draw(options(run, weights=[1]), Painter(most=0, error=MemoryError()), tmp_path / "grid", together=4)


def test_each_cell_is_where_its_labels_say(run: Run, tmp_path: Path) -> None:
    plan = options(run, weights=[0.5, 1], prompts=["a", "b"])
    with Image.open(draw(plan, Painter(), tmp_path / "grid")) as image:
        sheet = image.convert("RGB")
    width, height = SIZE
    left, pad, line = sheet.width - 3 * (width + 6), 6, 14
    for block in range(2):
        for row, weight in enumerate(plan.weights):
            y = 2 * pad + line + block * (line + 2 * pad + 2 * (height + pad)) + line + pad + row * (height + pad)
            for column in range(3):
                x = left + column * (width + pad)
                cell = plan.cell(column, weight if column else 0.0, block, 0)
                corners = [sheet.getpixel((x + dx, y + dy)) for dx in (0, width - 1) for dy in (0, height - 1)]
                assert corners == [colour(cell.request, cell.lora)] * 4
                assert sheet.getpixel((x + width, y)) == sheet.getpixel((x, y + height)) == (255, 255, 255)


def test_the_sheet_and_each_cell_carry_how_they_were_made(run: Run, tmp_path: Path) -> None:
    plan = options(run, weights=[0.5], prompts=["a"], seeds=[3, 4])
    sheet = draw(plan, Painter(), tmp_path / "grid")
    with Image.open(sheet) as image:
        made = image.info["parameters"]
    last = plan.cell(2, 0.5, 0, 1)
    assert made.startswith(f"{told(last.request, last.lora)}, Script: LoRA Train grid, X Type: LoRA run epoch, ")
    assert 'X Values: "no LoRA, epoch 1, epoch 2"' in made
    assert 'Y Values: 0.5, Z Type: Seed, Z Values: "3, 4"' in made
    with Image.open(tmp_path / "grid" / "cells" / f"{last.key()}.png") as image:
        assert image.info["parameters"] == told(last.request, last.lora)


def test_pictures_of_another_size_than_asked_for_still_make_a_sheet(run: Run, tmp_path: Path) -> None:
    for size in ((16, 8), (200, 300)):
        sheet = draw(options(run, weights=[1]), Painter(size=size), tmp_path / f"grid{size[0]}")
        with Image.open(sheet) as image:
            assert 3 * SIZE[0] < image.width < 300


def test_progress_counts_every_cell_to_the_last(run: Run, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    plan = options(run, weights=[0.5, 1])
    draw(plan, Painter(), tmp_path / "grid", on_cells=lambda done, of: seen.append((done, of)))
    assert seen == [(n, 5) for n in range(6)]


def test_the_time_left_comes_from_the_cells_drawn_now(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 102.0, 106.0])
    monkeypatch.setattr("lora_trainer.validation.grid.draw.time.monotonic", lambda: next(clock))
    told_: list[tuple[int, int, float | None]] = []
    note = pace(lambda *values: told_.append(values))
    for done in (10, 11, 13):
        note(done, 20)
    assert told_ == [(10, 20, None), (11, 20, 18.0), (13, 20, 14.0)]


def test_the_document_names_every_cells_picture(run: Run, tmp_path: Path) -> None:
    plan = options(run, weights=[0.5, 1], prompts=["a", "b"])
    document = draw_grid(plan, Painter(), tmp_path / "grid")
    assert json.loads((tmp_path / "grid" / "grid.json").read_text(encoding="utf-8")) == document
    assert (document["version"], document["weights"], document["size"]) == (2, [0.5, 1.0], list(SIZE))
    assert [c["file"] for c in document["columns"]] == [None, *(f["path"] for f in run.manifest["files"])]
    assert len(document["cells"]) == len(plan.places()) == 10
    assert [(g["column"], g["weight"]) for g in document["groups"]] == [(0, 0), (1, 0.5), (1, 1), (2, 0.5), (2, 1)]
    for entry in document["cells"]:
        cell = plan.cell(entry["column"], entry["weight"], entry["prompt"], entry["seed"])
        assert entry["key"] == cell.key()
        with Image.open(entry["picture"]) as picture:
            assert picture.getpixel((0, 0)) == colour(cell.request, cell.used)


def test_the_document_tells_prompts_with_the_trigger_from_those_without(tmp_path: Path) -> None:
    run = make_run(tmp_path, data__trigger="zorp")
    document = draw_grid(options(run, weights=[1], prompts=["a Zorp", "b"]), Painter(), tmp_path / "grid")
    assert document["prompts"] == [{"text": "a Zorp", "trigger": True}, {"text": "b", "trigger": False}]


def test_a_grid_is_read_again_and_one_that_is_not_there_is_one_sentence(run: Run) -> None:
    with pytest.raises(NotFound, match="No grid of test"):
        known_grid(run)
    document = draw_grid(options(run, weights=[1]), Painter(), grid_folder(run))
    assert known_grid(run) == document
    path = grid_folder(run) / "grid.json"
    path.write_text('{"version": 1}')
    with pytest.raises(NotFound):
        known_grid(run)
    for damage in ("{", "[]", '{"version": 2}', "\xff", json.dumps({**document, "weights": [7]})):
        path.write_text(damage)
        with pytest.raises(InputError, match=r"grid\.json is damaged"):
            known_grid(run)


# ------------------------------------------------------------------ going on with what is there
def test_cells_that_are_there_are_not_drawn_again(run: Run, tmp_path: Path) -> None:
    first, again, more = Painter(), Painter(), Painter()
    draw(options(run, weights=[0.5]), first, tmp_path / "grid")
    before = (tmp_path / "grid" / "grid.png").read_bytes()
    draw(options(run, weights=[0.5]), again, tmp_path / "grid")
    assert (len(first.drawn), again.drawn) == (3, [])
    assert (tmp_path / "grid" / "grid.png").read_bytes() == before
    draw(options(run, weights=[0.5, 1]), more, tmp_path / "grid")
    assert {weight for _, weight, _ in more.drawn} == {1.0}


def test_a_new_epoch_fills_only_what_is_missing(run: Run, tmp_path: Path) -> None:
    draw(options(run, weights=[0.5, 1], seeds=[1, 2]), Painter(), tmp_path / "grid")
    add_file(run, tmp_path / "test-000003.safetensors", b"3", 3)
    painter = Painter()
    document = draw_grid(options(run, weights=[0.5, 1], seeds=[1, 2]), painter, tmp_path / "grid", together=2)
    assert {file for file, _, _ in painter.drawn} == {"test-000003.safetensors"}
    assert painter.batches == [2, 2]
    assert [c["epoch"] for c in document["columns"]] == [0, 1, 2, 3]


def test_another_grid_puts_the_sheets_and_numbers_of_the_last_one_aside(run: Run, tmp_path: Path) -> None:
    draw_grid(options(run, weights=[1]), Painter(), tmp_path)
    sheet = (tmp_path / "grid.png").read_bytes()
    (tmp_path / "grid.csv").write_text("numbers")
    pictures = {path.name for path in (tmp_path / "cells").iterdir()}
    for wishes in ({"weights": [0.5]}, {"weights": [0.5], "epochs": "last"}):
        draw_grid(options(run, **wishes), Painter(), tmp_path)
    kept = tmp_path / "earlier-1"
    assert sorted(path.name for path in kept.iterdir()) == ["grid.csv", "grid.json", "grid.png"]
    assert (kept / "grid.png").read_bytes() == sheet
    assert (kept / "grid.csv").read_text() == "numbers"
    assert (tmp_path / "earlier-2" / "grid.png").is_file()
    assert not (tmp_path / "grid.csv").exists()  # its numbers are those of another grid
    assert pictures < {path.name for path in (tmp_path / "cells").iterdir()}


def test_a_grid_with_other_parameters_of_the_hosts_is_another_grid(run: Run, tmp_path: Path) -> None:
    plan = options(run, weights=[1])
    more = replace(plan, request=replace(plan.request, more=(("subseed", 3), ("subseed_strength", 0.2))))
    for each in (plan, more, more):
        document = draw_grid(each, Painter(), tmp_path)
    assert document["more"] == [["subseed", 3], ["subseed_strength", 0.2]]
    assert [path.name for path in tmp_path.glob("earlier-*")] == ["earlier-1"]


def test_pictures_that_the_host_enlarged_are_whole_on_the_sheet(run: Run, tmp_path: Path) -> None:
    plan = options(run, weights=[1])
    hires = replace(plan, request=replace(plan.request, more=(("enable_hr", True),)))
    plain = draw(plan, Painter(), tmp_path / "plain")
    large = draw(hires, Painter(size=(2 * SIZE[0], 2 * SIZE[1])), tmp_path / "large")
    with Image.open(plain) as first, Image.open(large) as second:
        assert second.width - first.width == 3 * SIZE[0]


def test_the_same_grid_with_another_file_goes_on_in_place(run: Run, tmp_path: Path) -> None:
    last = run.manifest["files"][-1]
    run.manifest["files"] = run.manifest["files"][:-1]
    draw_grid(options(run, weights=[1]), Painter(), tmp_path)
    run.manifest["files"] = [*run.manifest["files"], last]
    for _ in range(2):
        draw_grid(options(run, weights=[1]), Painter(), tmp_path)
    assert not list(tmp_path.glob("earlier-*"))


def test_a_sheet_that_cannot_be_put_aside_is_one_sentence_and_stays(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_grid(options(run, weights=[1]), Painter(), tmp_path)
    sheet = (tmp_path / "grid.png").read_bytes()

    def locked(source: Path, target: Path) -> None:
        raise PermissionError(13, "in use", str(source))

    monkeypatch.setattr("os.replace", locked)
    with pytest.raises(RunError, match=r"grid\.png could not be written: in use"):
        draw_grid(options(run, weights=[0.5]), Painter(), tmp_path)
    assert (tmp_path / "grid.png").read_bytes() == sheet


def test_a_grid_that_was_broken_off_goes_on_where_it_was(run: Run, tmp_path: Path) -> None:
    plan = options(run, weights=[0.5, 1])

    def stop(done: int, of: int) -> None:
        if done == 4:
            raise RunError("stopped")

    first, second = Painter(), Painter()
    with pytest.raises(RunError):
        draw(plan, first, tmp_path / "grid", on_cells=stop)
    assert not (tmp_path / "grid" / "grid.png").exists()
    document = json.loads((tmp_path / "grid" / "grid.json").read_text(encoding="utf-8"))
    assert sum(cell["picture"] is not None for cell in document["cells"]) == 4
    draw(plan, second, tmp_path / "grid")
    assert not set(first.drawn) & set(second.drawn)
    assert len(first.drawn) + len(second.drawn) == 5
    assert (tmp_path / "grid" / "grid.png").is_file()


@pytest.mark.parametrize("damage", [b"", b"not a picture", "half"])
def test_a_damaged_cell_is_drawn_again(run: Run, tmp_path: Path, damage: bytes | str) -> None:
    plan = options(run, weights=[1])
    sheet = draw(plan, Painter(), tmp_path / "grid")
    whole = sheet.read_bytes()
    cell = tmp_path / "grid" / "cells" / f"{plan.cell(1, 1, 0, 0).key()}.png"
    cell.write_bytes(damage if isinstance(damage, bytes) else cell.read_bytes()[: cell.stat().st_size // 2])
    painter = Painter()
    assert draw(plan, painter, tmp_path / "grid").read_bytes() == whole
    assert painter.drawn == [("test-000001.safetensors", 1.0, "zorp")]


def test_a_file_written_again_under_its_name_is_drawn_again(run: Run, tmp_path: Path) -> None:
    """A stopped run writes its last file, and when it was resumed to its end writes it again."""
    draw(options(run, weights=[1]), Painter(), tmp_path / "grid")
    add_file(run, Path(run.manifest["files"][1]["path"]), b"learned more", 2)
    painter = Painter()
    draw(options(run, weights=[1]), painter, tmp_path / "grid")
    assert painter.drawn == [("test-000002.safetensors", 1.0, "zorp")]


def test_another_checkpoint_vae_or_setting_does_not_show_the_pictures_of_the_first(run: Run, tmp_path: Path) -> None:
    def info(sha256: str = "1" * 64, vae: str = "") -> CheckpointInfo:
        return CheckpointInfo("model.safetensors", sha256, "", SD1, "epsilon", vae)

    counts = []
    loaded = [(info(), ""), (info(), ""), (info("2" * 64), ""), (info(vae="x.pt"), ""), (info(), "Clip skip: 2")]
    for checkpoint, settings in [*loaded, (info(), "")]:
        painter = Painter()
        draw(options(run, weights=[1]).on(checkpoint, settings), painter, tmp_path / "grid")
        counts.append(len(painter.drawn))
    assert counts == [3, 0, 3, 3, 3, 0]


def test_a_file_that_goes_while_the_grid_is_drawn_is_told_and_the_others_go_on(run: Run, tmp_path: Path) -> None:
    plan = options(run, weights=[0.5, 1])
    gone = Path(run.manifest["files"][0]["path"])
    gone.unlink()
    document = draw_grid(plan, Painter(), tmp_path / "grid")
    missing = [cell["column"] for cell in document["cells"] if cell["picture"] is None]
    assert missing == [1, 1]
    assert [p["values"]["path"] for p in document["problems"]] == [str(gone)]
    for entry in run.manifest["files"]:
        Path(entry["path"]).unlink(missing_ok=True)
    with pytest.raises(InputError, match="gone"):
        draw_grid(replace(plan, weights=[0.7]), Painter(), tmp_path / "grid")


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
            draw_grid(options(run, weights=[1]), Painter(), tmp_path / "grid")
    assert list((tmp_path / "grid").rglob("*.png")) == []
    assert temporary_files(tmp_path) == []


def test_a_sheet_that_cannot_be_written_leaves_the_old_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheet = draw(options(run, weights=[1]), Painter(), tmp_path / "grid")
    before = sheet.read_bytes()
    monkeypatch.setattr("lora_trainer.validation.grid.draw.sheets", lambda layout: iter([Image.new("HSV", (1, 1))]))
    add_file(run, tmp_path / "test-000003.safetensors", b"3", 3)
    with pytest.raises(RunError, match="could not be written"):
        draw_grid(options(run, weights=[1]), Painter(), tmp_path / "grid")
    assert sheet.read_bytes() == before
    assert temporary_files(tmp_path) == []


def test_configurations_of_the_run_are_read_when_none_are_given(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert isinstance(run.config(), TrainConfig)
    assert plan_grid(run) == plan_grid(run, config=run.config())
