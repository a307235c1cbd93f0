"""What the WebUI would keep of our page in ``ui-config.json``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from lora_trainer.config.train import TrainConfig
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.service import Jobs
from lora_trainer.ui.tab import Tab
from lora_trainer.ui.widgets.unsaved import unsaved
from tests.helpers import CHECKPOINT
from tests.runs_helpers import document


@pytest.fixture(scope="module", params=["en", "zh"])
def tab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tab:
    return Tab(Jobs(StandaloneHost(tmp_path_factory.mktemp("tab"), str(CHECKPOINT), request.param)))


def saved(block: Any) -> Iterator[Any]:
    """All below ``block`` that the WebUI would save, found as it does (ui_loadsave.py:134)."""
    if not getattr(block, "do_not_save_to_config", False):
        yield block
    for child in getattr(block, "children", ()):
        yield from saved(child)


def labelled(block: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Place and label of each widget with one; the place is the fold or tab that it lies in."""
    for child in block.children:
        if hasattr(child, "children"):
            yield from labelled(child, f"{place}/{child.label}" if getattr(child, "label", None) else place)
        elif getattr(child, "label", None) and "lt-hidden" not in (child.elem_classes or ""):
            yield place, child.label


def test_nothing_of_the_tab_is_saved(tab: Tab) -> None:
    assert len(tab.blocks.blocks) > 300
    assert list(saved(tab.blocks)) == [tab.blocks]  # which has no value, only children
    assert [b for b in tab.blocks.blocks.values() if not getattr(b, "do_not_save_to_config", False)] == []


def test_only_what_is_made_within_is_left_out() -> None:
    with gr.Blocks() as page:
        before = gr.Textbox(label="before")
        with unsaved(), gr.Row() as row:
            within = gr.Slider(label="within")
        after = gr.Dropdown(label="after")
    with_values = [block._id for block in saved(page) if isinstance(block, gr.components.Component)]
    assert with_values == [before._id, after._id]
    assert [row.do_not_save_to_config, within.do_not_save_to_config] == [True, True]


def test_no_two_widgets_share_label_and_place(tab: Tab) -> None:
    found = list(labelled(tab.blocks))
    assert len(found) > 100
    assert [pair for pair, count in Counter(found).items() if count > 1] == []


def test_no_two_lists_of_runs_or_files_have_one_label(tab: Tab) -> None:
    labels = [b.label for b in tab.blocks.blocks.values() if isinstance(b, gr.Dropdown) and b.elem_id]
    chosen = [label for label in labels if any(word in label for word in ("run", "训练任务", "file", "文件"))]
    assert len(chosen) >= 4
    assert sorted(set(chosen)) == sorted(chosen)


def test_no_run_is_chosen_while_the_page_is_built(tmp_path: Path) -> None:
    """Else the newest one of the WebUI's start would be shown by each page that is opened later."""
    jobs = Jobs(StandaloneHost(tmp_path, str(CHECKPOINT)))
    jobs.runs.create(TrainConfig.from_dict(document(tmp_path)), checkpoint={})
    tab = Tab(jobs)
    assert [tab.training.run.value, tab.block_weights.run.value] == [None, None]
