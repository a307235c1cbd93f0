"""A grid's document on its way to the viewer, and the pieces around it: complete, small, escaped and translated."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.i18n import translator
from lora_trainer.runs.run import Run
from lora_trainer.runs.store import Runs
from lora_trainer.ui.html import grid as grid_view
from tests.grids_made import BEST, make_files, make_grid
from tests.helpers import ROOT
from tests.runs_helpers import document
from tests.ui.markup import HOSTILE, Page

T = translator("en")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Runs(tmp_path / "runs 100%").create(TrainConfig.from_dict(document(tmp_path)))
    make_files(run, tmp_path / "loras", 4)
    return run


def folder(run: Run) -> Path:
    return run.grids / "plain"


def view(run: Run, made: dict[str, Any], language: str = "en", votes: dict[str, int] | None = None) -> dict[str, Any]:
    return grid_view.grid_view(made, votes or {}, folder(run), translator(language))


# ------------------------------------------------------------------ the viewer's data
def test_the_view_has_every_cell_of_the_document(run: Run) -> None:
    made = make_grid(run, drawn=20)
    shown = view(run, made, votes={"a": 1})
    weights = [weight["value"] for weight in shown["weights"]]
    back = [
        (column, weights[weight] if weight >= 0 else 0.0, prompt, seed, key, bool(drawn))
        for column, weight, prompt, seed, key, drawn, _ in shown["cells"]
    ]
    wanted = [(c["column"], c["weight"], c["prompt"], c["seed"], c["key"], bool(c["picture"])) for c in made["cells"]]
    assert back == wanted
    assert sum(drawn for *_, drawn in back) == 20
    assert (shown["run"], shown["seeds"], shown["size"], shown["votes"]) == ("zorp", [1, 2], [64, 64], {"a": 1})
    assert shown["best"] == {"column": BEST[0], "weight": BEST[1]}


def test_each_group_has_the_text_to_type(run: Run) -> None:
    tags = {(g["column"], g["weight"]): g["tag"] for g in view(run, make_grid(run))["groups"]}
    assert tags[0, -1] == ""
    assert tags[2, 2] == "<lora:zorp-000002:0.8>"
    assert tags[4, 3] == "<lora:zorp:1>"
    assert tags.keys() == {(0, -1), *((column, weight) for column in range(1, 5) for weight in range(4))}


def test_a_weight_of_0_shows_the_checkpoint_and_has_nothing_to_type(run: Run) -> None:
    groups = view(run, make_grid(run, weights=[0.0, 1.0]))["groups"]
    assert [g["tag"] for g in groups if g["weight"] == 0] == [""] * 4


def test_pictures_are_where_gradio_serves_them(run: Run) -> None:
    made = make_grid(run)
    shown = view(run, made)
    path = Path(unquote(shown["pictures"].removeprefix("file=")) + f"{shown['cells'][5][4]}.png")
    assert "%25" in shown["pictures"]
    assert path.is_file()
    assert path.is_absolute()
    assert path in set(grid_view.shown_files(made, folder(run)))


def test_only_files_within_the_grids_folder_are_shown(run: Run) -> None:
    made = make_grid(run)
    made["cells"][0] |= {"key": "../../../../../etc/passwd", "picture": "/etc/passwd"}
    made |= {"sheets": ["/etc/passwd", "../config.toml"], "csv": "/etc/hosts"}
    for path in grid_view.shown_files(made, folder(run)):
        assert path.parent in (folder(run), folder(run) / "cells")
        assert ".." not in path.parts


def test_numbers_that_are_none_are_left_out_and_the_others_are_short(run: Run) -> None:
    made = make_grid(run)
    made["groups"][3]["numbers"] = {"loss": 0.123456789, "copy": math.nan, "leak": math.inf, "clip": None, "effect": 1}
    made["cells"][7]["numbers"] = {"effect": math.nan}
    shown = view(run, made)
    assert shown["groups"][3]["numbers"] == {"loss": 0.1235, "effect": 1.0}
    assert shown["cells"][7][-1] == {}
    assert "NaN" not in grid_view.grid_data(shown, "1")


def test_every_number_names_its_spread_and_its_better_end(run: Run) -> None:
    made = make_grid(run)
    described = {number["key"]: number for number in view(run, made)["numbers"]}
    for group in made["groups"]:
        for key in group["numbers"]:
            assert key in described or key in {number["spread"] for number in described.values()}
    assert {number["better"] for number in described.values()} == {"low", "high"}


def test_labels_and_texts_are_in_the_persons_language(run: Run) -> None:
    made = make_grid(run)
    made["columns"][2] |= {"label": "step 80", "step": 80}
    assert [c["label"] for c in view(run, made)["columns"]] == ["no LoRA", "epoch 1", "step 80", "epoch 3", "epoch 4"]
    chinese = view(run, made, "zh")
    assert [c["label"] for c in chinese["columns"]] == ["不带 LoRA", "第 1 轮", "第 80 步", "第 3 轮", "第 4 轮"]
    texts = [*chinese["texts"].values(), *(n["name"] for n in chinese["numbers"])]
    assert [text for text in texts if text.isascii()] == []
    files = (ROOT / "javascript").glob("lora_train_grid_*.js")
    script = "".join(path.read_text(encoding="utf-8") for path in files)
    assert [key for key in chinese["texts"] if f'"{key}"' not in script and key not in ("rows", "columns")] == []


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_from_outside_becomes_markup(run: Run, text: str) -> None:
    made = make_grid(run, prompts=[text])
    made |= {"run": text, "negative": text, "problems": [{"template": "{path} is full.", "values": {"path": text}}]}
    shown = view(run, made, votes={text: 1})
    data = Page(grid_view.grid_data(shown, text)).one("div", "lt-grid-data").attributes
    assert data["data-revision"] == text
    assert json.loads(data["data-view"]) == json.loads(json.dumps(shown))
    page = Page(grid_view.verdict(made, folder(run), T))
    assert text in page.text
    assert {e.tag for e in page.elements} <= {"div", "b", "ul", "li", "a"}


@pytest.mark.parametrize("text", HOSTILE[:3])
def test_a_translation_cannot_bring_markup_either(run: Run, text: str) -> None:
    def translate(template: str, /, **values: Any) -> str:
        return text

    made = make_grid(run)
    shown = grid_view.grid_view(made, {}, folder(run), translate)
    assert json.loads(Page(grid_view.grid_data(shown, "1")).one("div").attributes["data-view"])["texts"]["use"] == text
    assert text in Page(grid_view.verdict(made, folder(run), translate)).text
    assert text in Page(grid_view.grid_losses(made, translate)).text


def test_two_thousand_cells_are_a_small_page(run: Run, tmp_path: Path) -> None:
    make_files(run, tmp_path / "loras", 50)
    made = make_grid(run, weights=[0.05 * i for i in range(1, 41)], prompts=["zorp"], seeds=[1], drawn=0)
    assert len(made["cells"]) == 2001
    assert len(grid_view.grid_data(view(run, made), "1")) < 600_000


# ------------------------------------------------------------------ around it
@pytest.mark.parametrize(
    ("state", "title", "kind"),
    [
        ("good", "A good LoRA", "lt-good"),
        ("under", "Under-fitted", "lt-warning"),
        ("over", "Over-fitted", "lt-warning"),
        ("useless", "It has learned nothing of use", "lt-error"),
        ("unknown", "No verdict", "lt-info"),
    ],
)
def test_the_verdict_is_said_in_words(run: Run, state: str, title: str, kind: str) -> None:
    made = make_grid(run)
    made["verdict"]["state"] = state
    page = Page(grid_view.verdict(made, folder(run), T))
    assert page.one("b").text == title
    assert kind in page.all("div", "lt-verdict")[0].attributes["class"]
    assert [item.text for item in page.all("li")] == ["zorp-000003 is in line.", "The grid is being drawn."]
    assert "正在" in Page(grid_view.verdict(made, folder(run), translator("zh"))).text


def test_a_problem_is_shown_even_where_its_values_do_not_fit(run: Run) -> None:
    made = make_grid(run)
    made["problems"] = [
        {"template": "Rank {rank:g} is high.", "values": {"rank": "64"}},
        {"template": "{a}", "values": {}},
    ]
    errors = Page(grid_view.verdict(made, folder(run), T)).all("div", "lt-error")
    assert [error.text for error in errors] == ["Rank 64 is high.", "{a}"]


def test_sheets_and_tables_can_be_downloaded(run: Run) -> None:
    links = Page(grid_view.verdict(make_grid(run), folder(run), T)).all("a")
    assert [link.text for link in links] == ["Sheet (PNG)", "Numbers (CSV)", "Numbers of each picture (CSV)"]
    assert [link.attributes["download"] for link in links] == ["zorp-grid.png", "zorp-grid.csv", "zorp-grid-cells.csv"]
    for link in links:
        assert Path(unquote(link.attributes["href"].removeprefix("file="))).is_file()


def test_several_sheets_are_numbered_and_deleted_ones_left_out(run: Run) -> None:
    made = make_grid(run)
    made["sheets"] += [str(folder(run) / "grid-2.png"), str(folder(run) / "grid-3.png")]
    (folder(run) / "grid-2.png").write_bytes(b"")
    names = [link.text for link in Page(grid_view.verdict(made, folder(run), T)).all("a")]
    assert names[:2] == ["Sheet 1 (PNG)", "Sheet 2 (PNG)"]
    assert len(names) == 4


def test_before_anything_is_measured_nothing_is_said(run: Run) -> None:
    made = make_grid(run, drawn=3, measured=False)
    assert grid_view.verdict(made, folder(run), T) == ""
    assert grid_view.grid_losses(made, T) == ""
    assert view(run, made)["best"] == {}


def lines(markup: str) -> dict[str, int]:
    """Points of each line by its class."""
    return {
        e.attributes["class"]: len(e.attributes["points"].split()) for e in Page(markup).elements if e.tag == "polyline"
    }


def test_the_losses_are_a_line_for_each_weight(run: Run) -> None:
    made = make_grid(run)
    del made["groups"][2]["numbers"]["loss"]  # epoch 1 at the second weight
    found = grid_view.grid_losses(made, T)
    assert lines(found) == {"lt-faint": 2, "lt-line-0": 4, "lt-line-1": 3, "lt-line-2": 4, "lt-line-3": 4}
    assert "weight 0.8" in Page(found).text


def test_a_loss_on_training_pictures_is_not_called_validation(run: Run) -> None:
    made = make_grid(run)
    assert Page(grid_view.grid_losses(made, T)).one("b").text == "Validation loss"
    made["measured"] = {"held_out": False}
    assert Page(grid_view.grid_losses(made, T)).one("b").text == "Loss on training pictures"
    assert "cannot show overfitting" in view(run, made)["numbers"][0]["tells"]


def test_of_many_weights_some_lines_are_shown(run: Run) -> None:
    made = make_grid(run, weights=[0.05 * i for i in range(1, 21)], prompts=["zorp"], seeds=[1])
    assert len(lines(grid_view.grid_losses(made, T))) == 1 + 7  # every third of 20
