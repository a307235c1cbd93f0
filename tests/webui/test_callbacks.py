from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

Registered = list[tuple[str, Any, str]]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, Registered, Callable[..., None]]]:
    """A WebUI's ``script_callbacks``, what was registered with it and by which way, and our function."""
    callbacks, found = ModuleType("modules.script_callbacks"), Registered()

    def add_callback(
        callbacks: list[Any], fun: Any, *, name: str | None = None, category: str = "unknown", filename: str
    ) -> None:
        callbacks.append(fun)
        found.append((category, fun, filename))

    callbacks.callback_map = {"callbacks_ui_tabs": []}  # type: ignore[attr-defined]
    callbacks.add_callback = add_callback  # type: ignore[attr-defined]
    callbacks.on_ui_tabs = lambda fun: found.append(("on_ui_tabs", fun, ""))  # type: ignore[attr-defined]
    modules = ModuleType("modules")
    modules.script_callbacks = callbacks  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modules", modules)
    monkeypatch.setitem(sys.modules, "modules.script_callbacks", callbacks)
    monkeypatch.delitem(sys.modules, "lora_trainer.webui.callbacks", raising=False)
    yield callbacks, found, importlib.import_module("lora_trainer.webui.callbacks").register
    sys.modules.pop("lora_trainer.webui.callbacks", None)


def test_a_callback_is_registered_with_its_file(host: Any) -> None:
    callbacks, found, register = host
    register("ui_tabs", print, "scripts/lora_train.py")
    assert callbacks.callback_map == {"callbacks_ui_tabs": [print]}
    assert found == [("ui_tabs", print, "scripts/lora_train.py")]


def test_where_it_cannot_be_told_its_file_the_webui_looks_for_it(host: Any) -> None:
    callbacks, found, register = host
    callbacks.add_callback = lambda callbacks, fun: found.append(("before 1.10", fun, ""))
    register("ui_tabs", print, "scripts/lora_train.py")
    assert found == [("on_ui_tabs", print, "")]


def test_where_callbacks_are_kept_elsewhere_the_webuis_own_way_is_gone(host: Any) -> None:
    callbacks, found, register = host
    callbacks.callback_map.clear()
    register("ui_tabs", print, "scripts/lora_train.py")
    assert found == [("on_ui_tabs", print, "")]
