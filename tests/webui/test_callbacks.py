"""How our functions are registered with the WebUI; see :mod:`tests.fake_webui`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fake_webui import FakeWebUI

FILE = "scripts/lora_train.py"


@pytest.fixture
def register(webui: FakeWebUI) -> Any:
    from lora_trainer.webui.callbacks import register

    return register


def test_a_callback_is_registered_with_its_file(webui: FakeWebUI, register: Any) -> None:
    register("ui_tabs", print, FILE)
    (found,) = webui.script_callbacks.callback_map["callbacks_ui_tabs"]
    assert (found.script, found.callback) == (FILE, print)
    assert "ui_tabs" in found.name


def test_where_it_cannot_be_told_its_file_the_webui_looks_for_it(
    webui: FakeWebUI, register: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As before version 1.10."""
    found: list[Any] = []
    monkeypatch.setattr(webui.script_callbacks, "add_callback", lambda callbacks, fun: None)
    monkeypatch.setattr(webui.script_callbacks, "on_ui_tabs", found.append)
    register("ui_tabs", print, FILE)
    assert found == [print]


def test_where_callbacks_are_kept_elsewhere_the_webuis_own_way_is_gone(
    webui: FakeWebUI, register: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []
    monkeypatch.setattr(webui.script_callbacks, "on_ui_tabs", found.append)
    webui.script_callbacks.callback_map.clear()
    register("ui_tabs", print, FILE)
    assert found == [print]
