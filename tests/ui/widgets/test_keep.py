"""What the browser kept and hands back is not trusted: it may be old, or of another program."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import gradio as gr
import pytest

from lora_trainer.ui.widgets.keep import Keeper, fits


@pytest.fixture
def widgets() -> Iterator[dict[str, Any]]:
    with gr.Blocks():
        yield {
            "text": gr.Textbox("a"),
            "number": gr.Number(1, minimum=0, maximum=10),
            "switch": gr.Checkbox(False),
            "choice": gr.Dropdown(["x", "y"], value="x"),
            "grown": gr.Dropdown(["x"]),
        }


def restored(widgets: dict[str, Any], text: Any) -> dict[str, Any]:
    keeper = Keeper(widgets, {"grown": lambda: ["x", "new"]})
    return {name: u["value"] for name, u in zip(widgets, keeper.restore(text), strict=True) if "value" in u}


def test_what_was_kept_comes_back(widgets: dict[str, Any]) -> None:
    kept = {"text": '汉服, "{}\n', "number": 0.5, "switch": True, "choice": "y", "grown": "new"}
    assert restored(widgets, json.dumps(kept)) == kept
    assert restored(widgets, json.dumps({"number": None, "text": ""})) == {"number": None, "text": ""}


@pytest.mark.parametrize("text", ["", None, "{", "[]", "1", '"text"', "null", "{}", '{"other": 1}'])
def test_what_is_no_form_changes_nothing(widgets: dict[str, Any], text: Any) -> None:
    assert restored(widgets, text) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("text", value) for value in (1, None, True, ["a"], {"a": 1})],
        *[("number", value) for value in ("1", True, -1, 11, [1])],
        *[("switch", value) for value in (1, "true", None)],
        *[("choice", value) for value in ("z", None, ["x"], 1)],
        ("grown", "gone"),
    ],
)
def test_a_value_that_does_not_fit_its_field_is_left_out(widgets: dict[str, Any], name: str, value: Any) -> None:
    assert restored(widgets, json.dumps({name: value, "switch": True} if name != "switch" else {name: value})) == (
        {"switch": True} if name != "switch" else {}
    )


def test_a_list_offers_what_there_is_now(widgets: dict[str, Any]) -> None:
    update = Keeper(widgets, {"grown": lambda: ["x", "new"]}).restore("")[-1]
    assert update["choices"] == ["x", "new"]
    assert not fits(widgets["choice"], "new")
    assert fits(widgets["choice"], "new", ["new"])
