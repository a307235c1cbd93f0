"""The form: every option has its widget, and values go there and back unchanged."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

import lora_trainer
from lora_trainer.config.train import TrainConfig, options
from lora_trainer.core.errors import ConfigErrors, InputError
from lora_trainer.core.i18n import translator
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.service import Jobs
from lora_trainer.ui.tab import Tab
from lora_trainer.ui.widgets.form import Form
from tests.config.test_train import documents

OPTIONS = {item.path: item for item in options()}
SAMPLERS = ["Euler", "Euler a"]
PACKAGE = Path(lora_trainer.__file__).parent


def make_form(*paths: str) -> Form:
    form = Form(translator("en"), SAMPLERS)
    with gr.Blocks():
        form.add(*(paths or OPTIONS))
    return form


@pytest.fixture(scope="module")
def form() -> Form:
    return make_form()


def tab_fields(root: Path, host_name: str) -> list[str]:
    host = StandaloneHost(root)
    host.name = host_name
    return list(Tab(Jobs(host)).form.widgets)


def flat(config: TrainConfig) -> dict[str, Any]:
    """Values by dotted key."""
    return {
        f"{key}.{name}" if isinstance(part, dict) else key: value
        for key, part in config.to_dict().items()
        for name, value in (part.items() if isinstance(part, dict) else [(None, part)])
    }


def through_the_page(form: Form, values: Mapping[str, Any]) -> dict[Any, Any]:
    """What gradio gives to an event after ``values`` were filled in, by widget."""
    updates = zip(form.widgets.values(), form.updates(values), strict=True)
    return {widget: widget.preprocess(widget.postprocess(update["value"])) for widget, update in updates}


# ------------------------------------------------------------------ which fields there are
def test_the_page_has_every_option_once(tmp_path: Path) -> None:
    fields = tab_fields(tmp_path, "standalone")
    assert sorted(fields) == sorted(OPTIONS)
    assert len(set(fields)) == len(fields)


def test_in_a_webui_only_the_checkpoints_file_is_not_asked_for(tmp_path: Path) -> None:
    assert set(OPTIONS) - set(tab_fields(tmp_path, "a1111")) == {"checkpoint"}


def reads(path: Path) -> set[str]:
    """Names of the attributes that a module reads, and its texts, since some are read by name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def test_every_option_is_read_by_what_does_the_work() -> None:
    parts = ("training", "dataset", "diffusion", "model", "network", "hosts", "runs", "jobs", "validation")
    modules = [path for part in parts for path in (PACKAGE / part).rglob("*.py")]
    read = set().union(*(reads(path) for path in modules))
    assert {path for path in OPTIONS if path.rpartition(".")[2] not in read} == set()


# ------------------------------------------------------------------ the widgets
@pytest.mark.parametrize("path", OPTIONS)
def test_a_widget_says_what_the_option_says(form: Form, path: str) -> None:
    item, widget = OPTIONS[path], form.widgets[path]
    kinds = {bool: gr.Checkbox, int: gr.Number, float: gr.Number}
    wanted = gr.Dropdown if item.choices or path == "samples.sampler" else kinds.get(item.type, gr.Textbox)
    assert type(widget) is wanted
    assert widget.label == item.title + (f" ({item.unit})" if item.unit else "")
    assert widget.info == item.help
    assert widget.elem_id == "lora_train_" + path.replace(".", "_")
    if isinstance(widget, gr.Number):
        assert (widget.minimum, widget.maximum, widget.precision) == (None, None, None)  # see test_fields.py
    if item.choices:
        assert widget.choices == list(item.choices)


def test_the_sampler_is_one_of_the_hosts(form: Form) -> None:
    assert form.widgets["samples.sampler"].choices == SAMPLERS


def test_titles_and_help_are_in_the_pages_language() -> None:
    form = Form(lambda text, /, **values: text[::-1], SAMPLERS)
    with gr.Blocks():
        form.add("data.resolution")
    widget = form.widgets["data.resolution"]
    assert widget.label == "noituloseR (xp)"
    assert widget.info == OPTIONS["data.resolution"].help[::-1]


def row_of(widget: Any) -> Any:
    """The row that a widget stands in, if any."""
    place = widget.parent
    while place is not None and not isinstance(place, gr.Row):
        place = place.parent
    return place


def test_rows_hold_all_fields_in_order_and_wide_ones_stand_alone() -> None:
    form = Form(translator("en"), SAMPLERS)
    paths = ["network.rank", "samples.prompts", "training.seed", "training.epochs", "training.steps", "data.folder"]
    with gr.Blocks():
        form.add_rows(paths, columns=2)
    assert list(form.widgets) == paths
    rows = [row_of(widget) for widget in form.widgets.values()]
    assert [row is None for row in rows] == [False, True, False, False, False, True]
    assert rows[0] is not rows[2]
    assert rows[2] is rows[3]
    assert rows[3] is not rows[4]


@pytest.mark.parametrize("advanced", [False, True])
def test_a_section_is_its_fields_for_everybody_or_for_experts(form: Form, advanced: bool) -> None:
    found = form.section("data.", "save.", advanced=advanced)
    assert found == [p for p, o in OPTIONS.items() if p.startswith(("data.", "save.")) and o.advanced is advanced]
    assert found


# ------------------------------------------------------------------ there and back
def test_an_untouched_form_is_the_default_document(form: Form) -> None:
    shown = {widget: widget.value for widget in form.widgets.values()}
    assert form.document(shown) == TrainConfig().to_dict()


def as_typed(value: Any) -> Any:
    """A value as a person can type it: texts have no space around them, and a prompt is one line."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list):
        return [" ".join(line.split()) for line in value if line.split()]
    return value


@given(documents())
def test_any_configuration_goes_onto_the_form_and_back(form: Form, document: dict[str, Any]) -> None:
    try:
        config = TrainConfig.from_dict(document)
        config = config.with_values({key: as_typed(value) for key, value in flat(config).items()})
    except ConfigErrors:
        reject()
    back = TrainConfig.from_dict(form.document(through_the_page(form, flat(config))))
    assert back == config


GUESSED = [path for path, item in OPTIONS.items() if item.type in (int, float, bool) or item.choices]


@given(st.sets(st.sampled_from(sorted(OPTIONS.keys() - GUESSED)), min_size=1))
def test_an_emptied_text_is_its_default(form: Form, emptied: set[str]) -> None:
    shown = {widget: widget.value for widget in form.widgets.values()}
    document = form.document({**shown, **{form.widgets[path]: None for path in emptied}})
    assert document == TrainConfig().to_dict()


@pytest.mark.parametrize("path", GUESSED)
def test_an_emptied_number_or_choice_is_not_guessed(form: Form, path: str) -> None:
    shown = {widget: widget.value for widget in form.widgets.values()}
    with pytest.raises(InputError, match="the field is empty; its default is ") as caught:
        form.document({**shown, form.widgets[path]: None})
    assert caught.value.field == path


def test_fields_that_are_not_on_the_form_keep_their_defaults() -> None:
    form = make_form("name", "network.rank")
    document = form.document({form.widgets["name"]: " zorp ", form.widgets["network.rank"]: 4})
    assert document == TrainConfig(name="zorp").with_values({"network.rank": 4}).to_dict()


def test_a_preset_fills_in_its_fields_and_leaves_the_others(form: Form) -> None:
    updates = dict(zip(form.widgets, form.updates({"network.rank": 4, "samples.prompts": ["a", "b"]}), strict=True))
    assert {path: u["value"] for path, u in updates.items() if "value" in u} == {
        "network.rank": 4,
        "samples.prompts": "a\nb",
    }


def test_prompts_are_one_a_line_and_empty_lines_are_none(form: Form) -> None:
    document = form.document({form.widgets["samples.prompts"]: " zorp, red \r\n\n  \n汉服\u2028袍\n"})
    assert document["samples"]["prompts"] == ["zorp, red", "汉服\u2028袍"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        ("weight_decay = 0.01", {"weight_decay": 0.01}),
        ("betas = [0.9, 0.99], decouple = true", {"betas": [0.9, 0.99], "decouple": True}),
        ('"a b" = "}", c = \'{\'', {"a b": "}", "c": "{"}),
    ],
)
def test_arguments_are_typed_as_name_and_value(form: Form, text: str, value: dict[str, Any]) -> None:
    widget = form.widgets["training.optimizer_args"]
    assert form.document({widget: text})["training"]["optimizer_args"] == value
    (update,) = (u for u in form.updates({"training.optimizer_args": value}) if "value" in u)
    assert form.document({widget: update["value"]})["training"]["optimizer_args"] == value


@pytest.mark.parametrize("text", ["weight_decay", "= 1", "a = 1,, b = 2", "a = }", "a = " + "[" * 5000, "a = 1, a = 2"])
def test_arguments_that_are_none_are_one_sentence_about_their_field(form: Form, text: str) -> None:
    with pytest.raises(InputError, match="write it as name = value") as caught:
        form.document({form.widgets["training.optimizer_args"]: text})
    assert caught.value.field == "training.optimizer_args"


@given(st.text(max_size=30))
def test_whatever_is_typed_as_arguments_is_a_table_or_a_sentence(form: Form, text: str) -> None:
    try:
        document = form.document({form.widgets["training.optimizer_args"]: text})
    except InputError:
        return
    assert isinstance(document["training"]["optimizer_args"], dict)


def test_numbers_keep_their_digits_on_the_page(form: Form) -> None:
    values = {"training.unet_lr": 1.2345678e-5, "training.text_lr": 5e-6, "training.seed": 2**32 - 1}
    shown = through_the_page(form, {**flat(TrainConfig()), **values})
    document = form.document(shown)["training"]
    assert (document["unet_lr"], document["text_lr"], document["seed"]) == (1.2345678e-5, 5e-6, 2**32 - 1)
    assert isinstance(document["seed"], int)
    assert math.isclose(document["unet_lr"], 1.2345678e-5, rel_tol=1e-15)
