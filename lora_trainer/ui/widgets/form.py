"""Widgets made from the configuration's options, and the way back."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from lora_trainer.config.schema import Option, field_error, parse_toml, toml_value
from lora_trainer.config.train import TrainConfig, options
from lora_trainer.core.errors import InputError
from lora_trainer.core.i18n import Translate
from lora_trainer.ui.widgets.fields import form_widget


class Form:
    """All widgets by dotted key.

    Args:
        translate: puts titles and help into the page's language.
        samplers: what the sampler field offers.
    """

    def __init__(self, translate: Translate, samplers: Sequence[str]) -> None:
        self._translate = translate
        self._samplers = list(samplers)
        self._options = {item.path: item for item in options()}
        self.widgets: dict[str, Any] = {}

    def add(self, *paths: str) -> None:
        """Make the widgets of some fields where gradio is now."""
        for path in paths:
            self.widgets[path] = self._widget(self._options[path])

    def add_rows(self, paths: Iterable[str], columns: int = 3) -> None:
        """The same in rows; what needs width gets a row of its own."""
        row: list[str] = []
        for path in paths:
            if self._is_wide(path):
                self._row(row)
                row = []
                self.add(path)
            else:
                row.append(path)
                if len(row) == columns:
                    self._row(row)
                    row = []
        self._row(row)

    def section(self, *prefixes: str, advanced: bool) -> list[str]:
        """Keys that start with one of ``prefixes`` and are (not) for experts, in order."""
        return [p for p, o in self._options.items() if p.startswith(prefixes) and o.advanced is advanced]

    def document(self, values: Mapping[Any, Any]) -> dict[str, Any]:
        """The widgets' values as a document for :meth:`TrainConfig.from_dict`.

        Raises:
            InputError: a text that should be a table is none, or a number was emptied.
        """
        document: dict[str, Any] = TrainConfig().to_dict()
        for path, widget in self.widgets.items():
            section, _, key = path.rpartition(".")
            target = document[section] if section else document
            if widget in values:
                target[key] = parse(self._options[path], values[widget])
        return document

    def config(self, values: Mapping[Any, Any]) -> TrainConfig:
        """The widgets' values as a configuration, without asking for a name yet.

        Raises:
            InputError: as for :meth:`document`, or a value is not allowed.
        """
        document = self.document(values)
        return TrainConfig.from_dict({**document, "name": document["name"] or "unnamed"})

    def updates(self, values: Mapping[str, Any]) -> list[Any]:
        """A gradio update for every widget; those not in ``values`` stay as they are."""
        return [
            gr.update(value=_show(self._options[path], values[path])) if path in values else gr.update()
            for path in self.widgets
        ]

    def _row(self, paths: list[str]) -> None:
        if paths:
            with gr.Row(elem_classes="lora-train-row"):
                self.add(*paths)

    def _is_wide(self, path: str) -> bool:
        item = self._options[path]
        return typing.get_origin(item.type) in (list, dict) or (item.type is str and not item.choices and "." in path)

    def _widget(self, item: Option) -> Any:
        if item.path == "samples.sampler":
            item = replace(item, choices=tuple(self._samplers))
        return option_widget(item, self._translate, form_widget(item.path))


def option_widget(item: Option, translate: Translate, elem_id: str) -> Any:
    """The widget of a field, where gradio is now, with the field's default in it."""
    common = {
        "label": label_of(item, translate),
        "info": translate(item.help),
        "elem_id": elem_id,
    }
    value = _show(item, item.default)
    if item.type is bool:
        return gr.Checkbox(value=value, **common)
    if item.choices:
        return gr.Dropdown(choices=list(item.choices), value=value, **common)
    if item.type in (int, float):
        # without bounds and precision: gradio would round, or show a sentence of its own that names no field
        return gr.Number(value=value, min_width=140, **common)
    lines = 3 if typing.get_origin(item.type) is list else 1
    return gr.Textbox(value=value, lines=lines, max_lines=12 if lines > 1 else 1, **common)


def label_of(item: Option, translate: Translate) -> str:
    """What the page calls a field: its title and unit."""
    return translate(item.title) + (f" ({translate(item.unit)})" if item.unit else "")


def dotted(document: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's values by dotted key, but for those that belong to one run only, as its name."""
    return {f"{s}.{k}": v for s, part in document.items() if isinstance(part, dict) for k, v in part.items()}


def _show(item: Option, value: Any) -> Any:
    """A config value as the widget shows it."""
    if typing.get_origin(item.type) is list:
        return "\n".join(value)
    if typing.get_origin(item.type) is dict:
        return toml_value(value)[1:-1]
    return value


def parse(item: Option, value: Any) -> Any:
    """A widget's value as the config has it.

    Raises:
        InputError: a table that is none, or an emptied number or choice: what it should be is not guessed.
    """
    if typing.get_origin(item.type) is list:
        return [line.strip() for line in str(value or "").split("\n") if line.strip()]
    if typing.get_origin(item.type) is dict:
        try:
            return parse_toml(f"value = {{{value or ''}}}")["value"]
        except ValueError as error:
            raise InputError(
                "{path}: write it as name = value, name = value ({error}).",
                field=item.path,
                path=item.path,
                error=error,
            ) from error
    if value is None and item.type is str and not item.choices:
        return item.default
    if value is None:
        raise field_error(item.path, "the field is empty; its default is {default}.", default=item.default)
    if item.type is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value.strip() if isinstance(value, str) else value
