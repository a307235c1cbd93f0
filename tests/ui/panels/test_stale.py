"""Nothing that the page says is about what was before: a run's state, its wish, another form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.i18n import translator
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.blocks import BlocksSection
from lora_trainer.jobs.queue import QueuedJob
from lora_trainer.jobs.service import Jobs
from lora_trainer.runs.control import Control, StopRequest
from lora_trainer.runs.run import Run
from lora_trainer.training.advice import Calculation
from lora_trainer.training.artifacts import Artifacts
from lora_trainer.ui.html import blocks as block_views
from lora_trainer.ui.html import run as views
from lora_trainer.ui.panels.blocks import _changes_something
from lora_trainer.ui.tab import Tab
from tests.helpers import CHECKPOINT, LIMIT
from tests.runs_helpers import document, make_jobs
from tests.ui.markup import Page
from tests.ui.test_tab import poll, typed

T = translator("en")


@pytest.fixture
def tab(tmp_path: Path) -> Tab:
    return Tab(Jobs(StandaloneHost(tmp_path, str(CHECKPOINT))))


def going_on(tab: Tab, root: Path, **manifest: Any) -> tuple[Run, Control]:
    """A run that is worked on, as the page sees it."""
    run = tab._jobs.runs.create(TrainConfig.from_dict(document(root)), checkpoint={"name": "a", "sha256": "b"})
    run.update(state="running", phase="training", steps=9, now=True, **manifest)
    task = QueuedJob(run, lambda control: None)
    tab._jobs.training._current = task
    return run, task.control


def status(tab: Tab) -> str:
    return Page(poll(tab, "zorp")["status"]).text


# ------------------------------------------------------------------ the person's wish
@pytest.mark.parametrize("wish", ["stop", "pause", "discard", "epoch"])
def test_what_was_asked_for_is_told_while_it_holds(tab: Tab, tmp_path: Path, wish: str) -> None:
    run, _ = going_on(tab, tmp_path)
    before = poll(tab, "zorp")
    assert views.STOP_REQUESTS[wish] not in Page(before["status"]).text
    assert tab.training._asking(StopRequest(wish))("zorp") == ""
    assert views.STOP_REQUESTS[wish] in Page(poll(tab, "zorp", before["marks"])["status"]).text
    run.update(state="paused" if wish == "pause" else "stopped", phase="", now=True)
    assert not any(sentence in status(tab) for sentence in views.STOP_REQUESTS.values())


def test_pause_and_stop_say_different_things() -> None:
    assert len(set(views.STOP_REQUESTS.values())) == len(views.STOP_REQUESTS)
    assert "pauses" in views.STOP_REQUESTS["pause"]


def test_the_place_in_line_is_the_one_of_now(tab: Tab, tmp_path: Path) -> None:
    going_on(tab, tmp_path)
    waiting = tab._jobs.runs.create(TrainConfig.from_dict(document(tmp_path, "later")), checkpoint={})
    other = tab._jobs.runs.create(TrainConfig.from_dict(document(tmp_path, "other")), checkpoint={})
    tasks = [QueuedJob(each, lambda control: None) for each in (other, waiting)]
    tab._jobs.training._waiting.extend(tasks)
    before = poll(tab, "later")
    assert "2 before it" in Page(before["status"]).text
    tab._jobs.training._waiting.remove(tasks[0])
    assert "1 before it" in Page(poll(tab, "later", before["marks"])["status"]).text


# ------------------------------------------------------------------ phases
@pytest.mark.parametrize("phase", [*views.PHASES])
def test_every_phase_is_told(tab: Tab, tmp_path: Path, phase: str) -> None:
    run, _ = going_on(tab, tmp_path)
    run.update(phase=phase, phase_done=1, phase_total=4, now=True)
    assert status(tab).count(views.PHASES[phase]) == 1  # not “Training zorp Training”
    assert ("25%" in status(tab)) is (phase in views.COUNTED)


def test_samples_and_validation_are_noted_while_they_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[tuple[str, int, int]] = []
    jobs = make_jobs(tmp_path)
    update = Run.update

    def note(run: Run, *, now: bool = False, **values: Any) -> None:
        update(run, now=now, **values)
        noted.append(tuple(run.manifest.get(key) for key in ("phase", "phase_done", "phase_total")))  # type: ignore[arg-type]

    monkeypatch.setattr(Run, "update", note)
    wanted = {"samples__prompts": ["zorp", "a zorp"], "validation__share": 0.4}
    run = jobs.submit(TrainConfig.from_dict(document(tmp_path, **wanted)))
    assert jobs.wait(run, LIMIT)
    phases = [phase for phase, done, of in noted if phase]
    order = [phase for index, phase in enumerate(phases) if index == 0 or phases[index - 1] != phase]
    assert order[-5:] == ["training", "validation", "training", "samples", "training"]
    assert {"pictures", "latents"} <= set(order)
    assert ("samples", 2, 2) in noted
    assert run.manifest["phase"] == ""


def test_a_phase_ends_with_the_one_before(tab: Tab, tmp_path: Path) -> None:
    run, _ = going_on(tab, tmp_path)
    outputs = Artifacts(run, run.config(), tab._jobs.host, lambda *, now=False, **values: run.update(now=now, **values))
    with outputs._phase("samples", 3):
        assert (run.manifest["phase"], run.manifest["phase_total"]) == ("samples", 3)
    assert run.manifest["phase"] == "training"


# ------------------------------------------------------------------ blocks
def test_a_block_job_that_was_stopped_says_so_until_it_has(tab: Tab, tmp_path: Path) -> None:
    jobs, run = tab._jobs, going_on(tab, tmp_path)[0]
    run.update(blocks={"state": "running", "kind": "tuning", "file": "zorp", "done": 3, "of": 9}, now=True)
    task = QueuedJob(BlocksSection(run), lambda control: None)
    jobs.drawing._current = task
    assert "3 of 9" in block_views.blocks_status(jobs.blocks.progress(run), T)
    task.control.ask(StopRequest.STOP)
    assert "It stops after this picture." in block_views.blocks_status(jobs.blocks.progress(run), T)
    jobs.drawing._current = None
    assert "It stops after" not in block_views.blocks_status(jobs.blocks.progress(run), T)


def test_a_tuning_that_still_looks_at_its_pictures_says_so() -> None:
    progress = {"state": "running", "kind": "tuning", "file": "zorp", "done": 0, "of": 0}
    assert "Preparing zorp." in block_views.blocks_status(progress, T)


# ------------------------------------------------------------------ another form
def answers(tab: Tab, about: dict[str, Any], **values: Any) -> dict[Any, Any]:
    return tab.settings._advise({**typed(tab, **values), tab.about: about})


def test_a_report_goes_when_the_form_is_about_other_pictures(tab: Tab, tmp_path: Path) -> None:
    folder = document(tmp_path)["data"]["folder"]
    form = {"data__folder": folder, "data__resolution": 64}
    checked = tab.settings._check(typed(tab, **form))
    about = checked[tab.about]
    assert tab.settings.report not in answers(tab, about, **form, network__rank=4)
    for other in ({"data__resolution": 96}, {"data__repeats": 3}, {"data__folder": str(tmp_path)}):
        assert answers(tab, about, **{**form, **other})[tab.settings.report] == ""
    assert answers(tab, about, **form | {"data__flip": True})[tab.about] == {}


def test_a_measured_estimate_goes_with_any_other_setting(tab: Tab, tmp_path: Path) -> None:
    form = {"data__folder": document(tmp_path)["data"]["folder"]}
    about = {"feedback": repr(tab.form.config(typed(tab, **form)))}
    assert tab.training.feedback not in answers(tab, about, **form)
    changed = answers(tab, about, **form, network__rank=4)
    assert (changed[tab.training.feedback], changed[tab.about]) == ("", {})


def test_a_form_that_is_filled_in_gets_its_own_advice(tab: Tab) -> None:
    """By a preset, another run's settings or a grid's file: each is followed by the advice for it."""
    events = tab.blocks.dependencies
    first = tab.form.widgets["network.rank"]._id
    outputs = [each["outputs"] for each in events]
    filling = [n for n, those in enumerate(outputs) if first in those and tab.settings.advice._id not in those]
    advising = {each["trigger_after"] for each in events if tab.settings.advice._id in each["outputs"]}
    assert len(filling) >= 3
    assert set(filling) <= advising


# ------------------------------------------------------------------ wording
@pytest.mark.parametrize(("count", "word"), [(1, "1 epoch"), (2, "2 epochs"), (1000, "1,000 epochs")])
def test_one_is_not_many(count: int, word: str) -> None:
    words = [
        span.text
        for span in Page(
            views.advice_list(
                [], Calculation(images=1, batches_per_epoch=1, steps_per_epoch=1, epochs=count, steps=1, files=1), T
            )
        ).all("span")
    ]
    assert words[2] == word
    assert (words[0], words[4]) == ("1 picture an epoch", "1 LoRA file")


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.0001, "0.0001"), (5e-5, "0.00005"), (1.234e-5, "0.0000123"), (1.71e-7, "1.71 × 10⁻⁷"), (1.0, "1"), (0, "0")],
)
def test_a_learning_rate_is_written_as_people_do(rate: float, text: str) -> None:
    assert views.rate_text(rate) == text


@pytest.mark.parametrize(("recommended", "offered"), [("tuned", True), ("single", False), ("none", False)])
def test_only_weights_that_help_can_be_baked(recommended: str, offered: bool) -> None:
    document = {"recommended": recommended, "weight": 1, "weights": {"IN01": 0.5}}
    assert _changes_something(document) is offered
