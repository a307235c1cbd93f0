"""What the tab does when its widgets are used, without a browser; tests/ui/test_page.py uses it in one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.queue import QueuedJob
from lora_trainer.jobs.service import Jobs
from lora_trainer.runs.run import Run
from lora_trainer.ui.panels.common import choice
from lora_trainer.ui.tab import Tab
from tests.helpers import CHECKPOINT, draw_pictures
from tests.runs_helpers import document
from tests.ui import watched
from tests.ui.markup import Page


@pytest.fixture
def tab(tmp_path: Path) -> Tab:
    """The tab of a host that has loaded nothing."""
    return Tab(Jobs(StandaloneHost(tmp_path, str(CHECKPOINT))))


def typed(tab: Tab, **values: Any) -> dict[Any, Any]:
    """The form's values by widget, ``data__folder=…`` replaced."""
    shown = {widget: widget.value for widget in tab.form.widgets.values()}
    return {**shown, **{tab.form.widgets[key.replace("__", ".")]: value for key, value in values.items()}}


def filled_in(tab: Tab, updates: list[Any]) -> dict[str, Any]:
    """What an answer puts into the form; its last part is the feedback."""
    return {path: u["value"] for path, u in zip(tab.form.widgets, updates[:-1], strict=True) if "value" in u}


def make_run(tab: Tab, root: Path, name: str = "zorp", **manifest: Any) -> Run:
    run = tab._jobs.runs.create(TrainConfig.from_dict(document(root, name)), checkpoint={"name": "a", "sha256": "b"})
    run.update(state="done", now=True, **manifest)
    return run


def make_picture(folder: Path) -> Path:
    path = folder / "picture.png"
    Image.new("RGB", (8, 8)).save(path)
    return path


def poll(tab: Tab, name: str | None = None, seen: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a poll shows of a run, of the host and of its runs."""
    return watched.poll(tab.watch, name, seen=seen)


# ------------------------------------------------------------------ polling
def test_what_has_not_changed_is_left_alone(tab: Tab, tmp_path: Path) -> None:
    run = make_run(tab, tmp_path)
    first = poll(tab)
    assert {"base", "run", "status", "reuse"} <= first.keys()
    assert poll(tab, "zorp", first["marks"]).keys() == {"marks"}
    run.update(step=2, now=True)
    assert {"status", "curves"} <= poll(tab, "zorp", first["marks"]).keys() <= {"marks", "status", "curves"}


def test_without_a_run_there_is_a_page_that_says_how_to_begin(tab: Tab) -> None:
    shown = poll(tab)
    assert "No run yet" in Page(shown["status"]).text
    assert shown["run"]["value"] is None
    assert not shown["stop"]["interactive"]


def test_a_reloaded_page_shows_the_newest_run_and_one_that_is_gone_is_not_missed(tab: Tab, tmp_path: Path) -> None:
    older, newer = make_run(tab, tmp_path, "older"), make_run(tab, tmp_path, "newer")
    os.utime(older.folder / "config.toml", (1, 1))
    assert poll(tab)["run"]["value"] == "newer"
    assert "older" in poll(tab, "older")["status"]
    shutil.rmtree(newer.folder)
    assert poll(tab, "newer")["run"]["value"] == "older"
    assert poll(tab, "../..")["run"]["value"] == "older"


def test_samples_that_were_deleted_are_left_out(tab: Tab, tmp_path: Path) -> None:
    kept = make_picture(tmp_path)
    entries = [{"path": str(p), "epoch": 1, "step": 4, "prompt": "{zorp} <b>"} for p in (tmp_path / "gone.png", kept)]
    make_run(tab, tmp_path, samples=entries)
    assert poll(tab)["samples"] == [(str(kept), "1 · 4 · {zorp} <b>")]


def test_a_run_whose_settings_are_damaged_is_shown_without_its_trigger(tab: Tab, tmp_path: Path) -> None:
    run = make_run(tab, tmp_path, files=[{"path": "/x/zorp.safetensors", "epoch": 1, "step": 3}])
    (run.folder / "config.toml").write_text("{", encoding="utf-8")
    assert "<lora:zorp:0.8>" in Page(poll(tab)["files"]).text


def test_without_a_checkpoint_the_page_goes_on_and_says_so(tab: Tab, tmp_path: Path) -> None:
    make_run(tab, tmp_path)
    tab._jobs.host.checkpoint = ""  # type: ignore[attr-defined]
    tab._jobs.host.name = "a1111"
    assert "name the checkpoint file" in Page(poll(tab)["base"]).text


# ------------------------------------------------------------------ buttons
@pytest.mark.parametrize("name", [None, "", "nobody", "../.."])
def test_buttons_without_a_run_answer_with_a_sentence(tab: Tab, name: Any) -> None:
    answers = [tab.training._asking("stop")(name), tab.training._resume(name), tab.training._reuse(name)[-1]]
    for answer in answers:
        said = Page(answer).one("div", "lt-error").text
        assert ("There is no run named" if name else "No training run is chosen") in said


def test_wrong_settings_are_said_beside_train_and_nothing_is_begun(tab: Tab, tmp_path: Path) -> None:
    answer = tab.training._train(typed(tab, name="zorp", data__folder=str(tmp_path / "gone")))
    assert "does not exist" in Page(answer[tab.training.feedback]).one("div", "lt-error").text
    assert tab._jobs.runs.names() == []


def test_checking_needs_no_name_and_says_what_is_wrong(tab: Tab, tmp_path: Path) -> None:
    folder = document(tmp_path)["data"]["folder"]
    answer = tab.settings._check(typed(tab, data__folder=folder, data__resolution=64))
    assert len(Page(answer[tab.settings.report]).all("figure")) == 5
    assert "steps in all" in Page(answer[tab.settings.advice]).text
    wrong = tab.settings._check(typed(tab, data__folder=str(tmp_path / "gone")))
    assert "does not exist" in Page(wrong[tab.settings.report]).text
    assert wrong[tab.settings.advice] == ""


def test_advice_is_given_for_settings_alone_and_for_wrong_ones_a_sentence(tab: Tab) -> None:
    assert "is high" in Page(tab.settings._advise(typed(tab, training__unet_lr=1.0))[tab.settings.advice]).text
    assert (
        "write it as name"
        in Page(tab.settings._advise(typed(tab, training__optimizer_args="x"))[tab.settings.advice]).text
    )


# ------------------------------------------------------------------ presets and settings used again
def test_a_preset_is_saved_filled_in_and_offered(tab: Tab) -> None:
    values = {**typed(tab, network__rank=48, training__unet_lr=2e-4), tab.settings.presets.name: " mine "}
    answer = tab.settings.presets._save(values)
    assert "mine" in answer[0]["choices"]
    updates = tab.settings.presets._load("mine")
    assert filled_in(tab, updates)["network.rank"] == 48
    assert Page(updates[-1]).one("div", "lt-info")


@pytest.mark.parametrize("name", ["", None, "../mine", "style"])
def test_a_preset_that_cannot_have_its_name_is_a_sentence(tab: Tab, tmp_path: Path, name: str | None) -> None:
    answer = tab.settings.presets._save({**typed(tab), tab.settings.presets.name: name})
    assert Page(answer[1]).one("div", "lt-error")
    assert list(tmp_path.rglob("*.toml")) == []


def test_a_preset_that_is_not_there_changes_nothing(tab: Tab) -> None:
    updates = tab.settings.presets._load("nobody")
    assert filled_in(tab, updates) == {}
    assert "no preset named nobody" in Page(updates[-1]).one("div", "lt-error").text


def test_a_runs_settings_are_used_again_under_a_new_name(tab: Tab, tmp_path: Path) -> None:
    run = make_run(tab, tmp_path)
    updates = tab.training._reuse("zorp")
    found = filled_in(tab, updates)
    assert "name" not in found
    assert (found["network.rank"], found["data.folder"]) == (2, run.config().data.folder)
    with pytest.raises(InputError, match="give the LoRA a name"):
        TrainConfig.from_dict(tab.form.document(typed(tab, **{k.replace(".", "__"): v for k, v in found.items()})))


def test_a_late_answer_does_not_take_back_the_choice_of_a_run(tab: Tab) -> None:
    """An answer made for the run that was chosen may come after another was chosen."""
    update = choice(["new", "old"], "old", "old")
    assert update["choices"] == ["new", "old"]
    assert "value" not in update
    assert choice(["new"], "new", "old")["value"] == "new"


def test_a_waiting_run_is_moved_by_its_buttons(tab: Tab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [make_run(tab, tmp_path, name) for name in ("one", "two", "three")]
    tasks = [QueuedJob(run, lambda control: None) for run in runs]
    monkeypatch.setattr(tab._jobs.training, "_waiting", tasks)
    shown = {name: [poll(tab, run.name)[name]["visible"] for run in runs] for name in ("front", "earlier", "later")}
    assert shown == {"front": [False, True, True], "earlier": [False, False, True], "later": [True, True, False]}
    for name, places, order in (
        ("one", 1, ["two", "one", "three"]),
        ("three", -1, ["two", "three", "one"]),
        ("one", None, ["one", "two", "three"]),
    ):
        tab.training._moving(places)(name)
        assert [task.run.name for task in tab._jobs.training.waiting()] == order


# ------------------------------------------------------------------ proposals
def proposed(tab: Tab, **values: Any) -> dict[Any, Any]:
    folder = draw_pictures(tab._jobs.host.folders.runs.parent / "many", count=12)[0].parent
    return {**typed(tab, data__folder=str(folder), **values), tab.settings.presets.preset: "character"}


def test_what_suits_the_pictures_is_proposed_with_reasons_and_taken_by_one_press(tab: Tab) -> None:
    values = proposed(tab, training__accumulate=4, name="")
    shown = tab.settings._check(values)
    table = Page(shown[tab.settings.proposals.table]["value"])
    assert shown[tab.settings.proposals.take]["visible"]
    assert len(table.all("tr")) == 5  # heads, resolution of the small checkpoint, repeats, epochs, share
    assert "a character" in table.text
    assert all(row.text.endswith(".") for row in table.all("tr")[1:])
    taken = tab.settings._take(values)
    filled = {widget: each["value"] for widget, each in taken.items() if widget in tab.form.widgets.values()}
    assert filled[tab.form.widgets["data.repeats"]] > 10
    after = tab.settings._advise({**values, **filled})
    assert not after[tab.settings.proposals.take]["visible"]
    assert "is seen only" not in Page(after[tab.settings.advice]).text


def test_without_pictures_nothing_is_proposed(tab: Tab) -> None:
    for answer in (
        tab.settings._advise(typed(tab)),
        tab.settings._take(typed(tab)),
        tab.settings._check(typed(tab, data__folder="/gone")),
    ):
        assert not answer[tab.settings.proposals.take]["visible"]
    wrong = tab.settings._take(proposed(tab, training__optimizer_args="x"))
    assert Page(wrong[tab.settings.advice]).one("div", "lt-error")


def test_a_reload_keeps_every_field_of_the_form(tab: Tab, tmp_path: Path) -> None:
    kept = {id(widget) for widget in tab.keeper._widgets.values()}
    assert [path for path, widget in tab.form.widgets.items() if id(widget) not in kept] == []
    assert {
        "sweep",
        "preset",
        "grid_epochs",
        "weights",
        "stacks_stack",
        "tools_merge_files",
    } <= tab.keeper._widgets.keys()
    assert not {"run", "blocks_file", "run_wish", "grid_wish", "kept"} & tab.keeper._widgets.keys()
    with gr.Blocks() as page:  # as standalone.py has it: within another page
        nested = Tab(tab._jobs)
    assert nested.keeper._widgets.keys() == tab.keeper._widgets.keys()
    assert all(widget._id in page.blocks for widget in nested.keeper._widgets.values())


# ------------------------------------------------------------------ presets given away and taken
def test_a_preset_goes_down_and_up_again(tab: Tab, tmp_path: Path) -> None:
    given = tab.settings.presets._export({**typed(tab, network__rank=20), tab.settings.presets.name: "mine"})
    made = json.loads(given[0])
    assert made["name"] == "mine.toml"
    (tmp_path / "mine.toml").write_text(made["text"], encoding="utf-8")
    *updates, chosen, said = tab.settings.presets._import(SimpleNamespace(name=str(tmp_path / "mine.toml")))
    assert filled_in(tab, [*updates, said])["network.rank"] == 20
    assert (chosen["value"], "mine" in chosen["choices"]) == ("mine", True)
    assert Page(said).one("div", "lt-info")


def test_a_wrong_file_and_a_wrong_form_are_sentences(tab: Tab, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[network\n", encoding="utf-8")
    *updates, _, said = tab.settings.presets._import(SimpleNamespace(name=str(tmp_path / "a.toml")))
    assert filled_in(tab, [*updates, said]) == {}
    assert Page(said).one("div", "lt-error")
    given = tab.settings.presets._export(typed(tab, training__optimizer_args="x"))
    assert given[0] == ""
    assert Page(given[1]).one("div", "lt-error")


def test_the_usual_settings_come_back_and_the_data_sets_own_stay(tab: Tab) -> None:
    found = filled_in(tab, tab.settings.presets._defaults())
    assert found["network.rank"] == 16
    assert not {"name", "data.folder", "data.trigger", "samples.prompts"} & found.keys()
