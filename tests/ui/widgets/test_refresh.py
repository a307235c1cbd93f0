"""Several panels by one event; none of them is a burden for the others, or for a page that loads."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from lora_trainer.config.train import TrainConfig
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.service import Jobs
from lora_trainer.network.lora_file import save_lora
from lora_trainer.ui.tab import Tab
from lora_trainer.ui.widgets.refresh import Refresh, Watch, together
from tests.helpers import CHECKPOINT, ROOT
from tests.network.made import some_lora
from tests.runs_helpers import document
from tests.ui.watched import poll


def test_each_part_gets_its_own_values_and_fills_its_own_widgets() -> None:
    first = Refresh(lambda a, b: [a + b, a - b], ["a", "b"], ["sum", "difference"])
    none = Refresh(lambda: ["said"], [], ["feedback"])
    last = Refresh(lambda a: [a * 10], ["c"], ["times"])
    whole = together([first, none, last])
    assert whole.inputs == ["a", "b", "c"]
    assert whole.outputs == ["sum", "difference", "feedback", "times"]
    assert whole.show(3, 1, 5) == [4, 2, "said", 50]


def test_a_part_that_fails_is_told_in_the_log_and_leaves_the_others_be(caplog: pytest.LogCaptureFixture) -> None:
    def fails(value: Any) -> list[Any]:
        raise KeyError(value)

    parts = [Refresh(fails, ["a"], ["x", "y"]), Refresh(lambda b: [b], ["b"], ["z"])]
    with caplog.at_level(logging.ERROR):
        assert together(parts).show(1, 2) == [gr.update(), gr.update(), 2]
    assert "could not be shown" in caplog.text


@pytest.fixture
def watch() -> Watch:
    """A sum, its terms, and what never changes."""

    def parts(a: int, b: int) -> dict[str, Any]:
        return {"terms": ((a, b), lambda: f"{a} + {b}"), "sum": (a + b, lambda: a + b), "none": (None, lambda: "made")}

    with gr.Blocks():
        widgets = {"sum": gr.HTML(), "terms": gr.HTML(), "none": gr.HTML()}
        return Watch([gr.Number(), gr.Number()], widgets, parts)


def test_what_has_changed_is_shown_in_the_order_of_its_widgets(watch: Watch) -> None:
    assert [type(each).__name__ for each in watch.refresh.inputs] == ["Number", "Number", "State"]
    assert watch.refresh.outputs == [*watch.widgets.values(), watch.seen]
    *first, marks = watch.show(1, 2, {})
    assert first == [3, "1 + 2", "made"]
    *again, marks = watch.show(1, 2, marks)
    assert again == [gr.update()] * 3
    assert watch.show(2, 1, marks)[:3] == [gr.update(), "2 + 1", gr.update()]


def test_a_part_can_see_what_was_shown_before() -> None:
    def parts(value: int, seen: dict[str, Any]) -> dict[str, Any]:
        return {"said": (value, lambda: f"{seen.get('said', 0)} → {value}")}

    with gr.Blocks():
        watch = Watch([gr.Number()], {"said": gr.HTML()}, parts, remembers=True)
    said, marks = watch.show(1, {})
    assert (said, watch.show(2, marks)[0]) == ("0 → 1", "1 → 2")


def test_a_page_that_loads_asks_nothing_of_ours(tmp_path: Path) -> None:
    """The browser pays for each event with a walk through all of the WebUI's page."""
    tab = Tab(Jobs(StandaloneHost(tmp_path, str(CHECKPOINT))))
    assert [each for each in tab.blocks.dependencies if each["trigger"] == "load"] == []


def test_a_poll_is_one_event(tmp_path: Path) -> None:
    """It comes once a second while the tab is in view."""
    tab = Tab(Jobs(StandaloneHost(tmp_path, str(CHECKPOINT))))
    assert len([each for each in tab.blocks.dependencies if each["targets"] == [tab.poll._id]]) == 1


def test_while_the_tab_is_not_in_view_only_the_cards_are_looked_at(tmp_path: Path) -> None:
    follower = Tab(Jobs(StandaloneHost(tmp_path, str(CHECKPOINT)))).follower
    said, seen = follower._look({})
    assert "data-loras" in said
    assert follower._look(seen) == [gr.update(), seen]
    save_lora(tmp_path / "models" / "Lora" / "new.safetensors", some_lora(), {}, "fp32")
    again, now = follower._look(seen)
    assert 'data-newest="new"' in again
    assert now["cards"] != seen["cards"]
    assert poll(follower.watch, None, None, None, seen=now)["merge"]["choices"] == ["new"]  # which the next poll finds


def test_no_heavy_package_is_imported_for_what_a_page_shows_at_first(tmp_path: Path) -> None:
    """Neither by the tab nor by the cost of finding block weights, which it shows for the newest file."""
    jobs = Jobs(StandaloneHost(tmp_path, str(CHECKPOINT)))
    run = jobs.runs.create(TrainConfig.from_dict(document(tmp_path)), checkpoint={"name": "a", "sha256": "b"})
    run.update(state="done", now=True)
    script = f"""
import sys
from pathlib import Path
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.service import Jobs
from lora_trainer.network.lora_file import save_lora
from lora_trainer.ui.tab import Tab
tab = Tab(Jobs(StandaloneHost(Path({str(tmp_path)!r}), {str(CHECKPOINT)!r})))
for watch in (tab.watch, tab.block_weights.watch):
    watch.show(*[{{}} if widget is watch.seen else None for widget in watch.refresh.inputs])
tab.block_weights._cost("zorp", None, 1.0, "", "1")
print([name for name in ("peft", "diffusers") if name in sys.modules])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-2] == "[]"


def test_few_events_take_the_whole_form(tmp_path: Path) -> None:
    """A page that loads goes through all components for each input of each event: 50 events of 75 took 0.3 s."""
    tab = Tab(Jobs(StandaloneHost(tmp_path, str(CHECKPOINT))))
    form = {widget._id for widget in tab.form.widgets.values()}
    whole = [each for each in tab.blocks.dependencies if form <= set(each["inputs"])]
    assert len(whole) <= 16
    assert sum(len(each["inputs"]) for each in tab.blocks.dependencies) < 1800
