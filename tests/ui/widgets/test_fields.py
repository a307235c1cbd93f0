"""Errors on the page: by the label that the person sees, in their language, with the widget that they are about."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest

from lora_trainer.config.schema import field_error
from lora_trainer.config.train import TrainConfig, options
from lora_trainer.core.errors import ConfigErrors, InputError
from lora_trainer.core.i18n import translator
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.service import Jobs
from lora_trainer.ui.html import common
from lora_trainer.ui.tab import Tab
from lora_trainer.ui.widgets.fields import Shown, field_sentences, form_fields
from tests.helpers import CHECKPOINT
from tests.ui.markup import Page

BOUNDED = [item for item in options() if item.min is not None or item.max is not None]


@pytest.fixture(scope="module", params=["en", "zh"])
def tab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tab:
    return Tab(Jobs(StandaloneHost(tmp_path_factory.mktemp("tab"), str(CHECKPOINT), request.param)))


def submitted(tab: Tab, **values: Any) -> Page:
    """What pressing Train says, the form's values replaced by dotted key."""
    shown = {widget: widget.value for widget in tab.form.widgets.values()}
    shown |= {tab.form.widgets["name"]: "zorp", tab.form.widgets["data.folder"]: "pictures"}
    shown |= {tab.form.widgets[path]: value for path, value in values.items()}
    return Page(tab.training._train(shown)[tab.training.feedback])


def test_every_widget_that_an_error_may_name_is_on_the_page(tab: Tab) -> None:
    there = {block.elem_id for block in tab.blocks.blocks.values()}
    made = {form_fields()[path].widget for path in tab.form.widgets}
    assert len(made) > 50
    assert made <= there


@pytest.mark.parametrize("item", BOUNDED, ids=lambda item: item.path)
def test_a_number_out_of_range_is_said_with_its_label(tab: Tab, item: Any) -> None:
    value = item.min - 1 if item.min is not None else item.max + 1
    found = submitted(tab, **{item.path: value})
    spans = [span for span in found.all("span") if span.attributes.get("data-field") == form_fields()[item.path].widget]
    assert len(spans) == 1
    assert spans[0].text.startswith(tab._t(item.title))
    assert item.path not in spans[0].text


def test_gradio_checks_no_number_itself(tab: Tab) -> None:
    """Its own sentence is English, in a corner of the window, and names no field (gradio/components/number.py)."""
    numbers = [block for block in tab.blocks.blocks.values() if isinstance(block, gr.Number)]
    assert len(numbers) > 40
    assert [n.label for n in numbers if (n.minimum, n.maximum, n.precision) != (None, None, None)] == []
    assert numbers[0].preprocess(-1.5) == -1.5


def test_a_broken_number_is_not_rounded(tab: Tab) -> None:
    label = tab._t("Rank")
    assert submitted(tab, **{"network.rank": 7.5}).all("span")[0].text.startswith(label)


def test_all_that_is_wrong_is_said_at_once(tab: Tab) -> None:
    found = submitted(tab, **{"network.rank": 0, "training.batch_size": -3, "data.repeats": 10**9})
    widgets = [span.attributes.get("data-field") for span in found.all("span")]
    assert sorted(widgets) == [f"lora_train_{n}" for n in ("data_repeats", "network_rank", "training_batch_size")]


@pytest.mark.parametrize(
    ("error", "english", "chinese"),
    [
        (field_error("data.repeats", "expected {wanted}, not {value}.", wanted="a number", value="data.folder"),
         "Repeats: expected a number, not data.folder.", "重复次数：应为数字，不能是 data.folder"),
        (InputError("data.folder: {folder} does not exist; check the path.", field="data.folder", folder="data.flip"),
         "Picture folder: data.flip does not", "图片文件夹：data.flip"),
        (field_error("data.resolution", "{low} px is more than the largest side, {high} px; lower it or raise "
                     "data.bucket_max.", low=9, high=8), "raise “", "调高 “"),
        (InputError("There is no run named {name}.", name="network.rank"), "named network.rank", "network.rank"),
        (field_error("other", "expected {wanted}, not {value}.", wanted="a number", value="x"),
         "other: e", "other：应为"),
    ],
)  # fmt: skip
def test_fields_are_called_as_on_the_page(error: InputError, english: str, chinese: str) -> None:
    for language, text in (("en", english), ("zh", chinese)):
        ((_, sentence),) = field_sentences(error, form_fields(), translator(language))
        assert text in sentence
        assert "data.bucket_max" not in sentence


def test_panels_name_their_own_widgets() -> None:
    fields = {"weight": Shown("LoRA weight", "here")}
    error = ConfigErrors([field_error("weight", "expected {wanted}, not {value}.", wanted="a number", value="<b>")])
    found = common.error_notice(error, translator("en"), fields)
    assert '<span data-field="here">LoRA weight: expected a number, not &lt;b&gt;.</span>' in found


def test_the_config_still_names_the_path() -> None:
    with pytest.raises(InputError, match=r"network\.rank: 0 is out of range"):
        TrainConfig.from_dict({"name": "zorp", "data": {"folder": "x"}, "network": {"rank": 0}})


@pytest.mark.parametrize("panel", ["grid", "blocks", "tools", "stacks"])
def test_fields_of_the_panels_are_on_the_page(tab: Tab, panel: str) -> None:
    from lora_trainer.ui.panels import blocks, stacks
    from lora_trainer.ui.panels import lora_files as tools

    there = {block.elem_id for block in tab.blocks.blocks.values()}
    fields = {
        "grid": [tab.validate._shown_fields()],
        "blocks": [blocks._FIELDS],
        "tools": [tools._fields(kind) for kind in tools.BUTTONS],
        "stacks": [stacks.StacksPanel._fields(tab.stacks)],
    }[panel]
    for each in fields:
        assert {shown.widget for shown in each.values()} <= there
