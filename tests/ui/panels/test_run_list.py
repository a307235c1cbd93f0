from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.i18n import translator
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs import trash
from lora_trainer.jobs.queue import QueuedJob
from lora_trainer.jobs.service import Jobs
from lora_trainer.runs.run import Run
from lora_trainer.ui.panels.run_list import SHOWN, RunList, runs_table
from tests.helpers import CHECKPOINT
from tests.runs_helpers import document
from tests.ui.markup import HOSTILE, Page

EN = translator("en")


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(StandaloneHost(tmp_path, str(CHECKPOINT)))


@pytest.fixture
def listed(jobs: Jobs) -> RunList:
    with gr.Blocks():
        return RunList(jobs, EN)


def make_run(jobs: Jobs, name: str, state: str = "done", **manifest: Any) -> Run:
    run = jobs.runs.create(TrainConfig.from_dict(document(jobs.runs.root.parent, name)))
    run.update(state=state, now=True, **manifest)
    return run


def cells(listed: RunList, jobs: Jobs, chosen: str = "") -> list[list[str]]:
    run = jobs.runs.get(chosen) if chosen else None
    page = Page(listed.parts(run, jobs.runs.names())["runs"][1]())
    texts = [cell.text for cell in page.all("td")]
    return [texts[i : i + 6] for i in range(0, len(texts), 6)]


def test_a_run_has_state_date_epoch_and_losses(jobs: Jobs, listed: RunList) -> None:
    make_run(jobs, "zorp", epoch=3, epochs=5, loss_average=0.12345, validation={"last": 0.5}, created=86400 * 365.0)
    ((name, state, loss, validation, epoch, date),) = cells(listed, jobs)
    assert (name, state, epoch, loss, validation) == ("zorp", "Done", "3/5", "0.1235", "0.5000")
    assert date.startswith("1971-01-0")


def test_runs_in_line_come_first_in_their_order(jobs: Jobs, listed: RunList, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {name: make_run(jobs, name, "queued" if name in "bc" else "done") for name in "abcd"}
    waiting = [QueuedJob(runs[name], lambda control: None) for name in "cb"]
    monkeypatch.setattr(jobs.training, "_waiting", waiting)
    rows = cells(listed, jobs)
    assert [row[0] for row in rows][:2] == ["c", "b"]
    assert [row[1] for row in rows][:2] == ["Waiting place 1", "Waiting place 2"]
    assert sorted(row[0] for row in rows) == list("abcd")


def test_a_damaged_run_is_told_and_hides_no_other(jobs: Jobs, listed: RunList) -> None:
    make_run(jobs, "good")
    (make_run(jobs, "bad").folder / "manifest.json").write_text("{", encoding="utf-8")
    again = RunList(Jobs(jobs.host), EN)
    rows = [again._row(name, []) for name in ("good", "bad")]
    page = Page(runs_table(rows, "good", 2, EN))
    assert [button.text for button in page.all("button")] == ["good", "bad"]
    assert "damaged" in page.text


def test_many_runs_are_cut_and_counted(jobs: Jobs, listed: RunList) -> None:
    names = [f"run{i}" for i in range(SHOWN + 7)]
    rows = [{"name": name, "state": ""} for name in names[:SHOWN]]
    assert "… and 7 more." in Page(runs_table(rows, "", len(names), EN)).text


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_of_a_run_becomes_markup(text: str) -> None:
    row = {"name": text, "state": "done", "place": 1, "created": text, "epoch": text, "epochs": text,
           "loss_average": text, "validation": text}  # fmt: skip
    page = Page(runs_table([row, {"name": text, "state": text}], text, 2, EN))
    assert [button.attributes["data-run"] for button in page.all("button")] == [text, text]


# ------------------------------------------------------------------ asking first
def test_nothing_is_deleted_before_it_is_asked_and_said_yes_to(jobs: Jobs, listed: RunList) -> None:
    make_run(jobs, "zorp", files=[{"path": "/x/zorp.safetensors", "epoch": 1, "step": 1}])
    make_run(jobs, "other")
    asked, question, answers, yes, only = listed._ask("delete", "zorp")
    assert sorted(jobs.runs.names()) == ["other", "zorp"]
    assert "zorp" in Page(question).text
    assert "1 LoRA files" in question
    assert (answers["visible"], yes["value"], only["visible"]) == (True, "Delete with its LoRA files", True)
    said, *cleared = listed._end(asked, files=True)
    assert trash.FOLDER in Page(said).one("div", "lt-good").text
    assert cleared[0] == {}
    assert jobs.runs.names() == ["other"]


def test_an_answer_to_nothing_deletes_nothing(jobs: Jobs, listed: RunList) -> None:
    make_run(jobs, "zorp")
    said, *_ = listed._end({}, files=True)
    assert Page(said).one("div", "lt-error")
    assert jobs.runs.names() == ["zorp"]


@pytest.mark.parametrize("name", [None, "", "nobody", "../.."])
def test_asking_about_no_run_is_a_sentence(listed: RunList, name: Any) -> None:
    asked, question, answers, *_ = listed._ask("discard", name)
    assert (asked, answers["visible"]) == ({}, False)
    assert Page(question).one("div", "lt-error")


def test_what_goes_on_can_be_discarded_and_what_has_ended_deleted(
    jobs: Jobs, listed: RunList, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = make_run(jobs, "done")
    going = make_run(jobs, "going", "queued")
    monkeypatch.setattr(jobs.training, "_waiting", [QueuedJob(going, lambda control: None)])
    for run, discard, delete in ((done, False, True), (going, True, False), (None, False, False)):
        parts = listed.parts(run, jobs.runs.names())
        assert (parts["discard"][0], parts["delete"][0]) == (discard, delete)
