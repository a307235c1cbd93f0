"""The form outlives a reload: the browser keeps it, and no file of the host does (the WebUI's ``ui-config.json``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from lora_trainer.core.plain_json import json_text, parse_json
from lora_trainer.ui.widgets.refresh import HIDDEN

_KEY = "lora_train_form"


class Keeper:
    """Hidden widgets that carry the form to the browser and back; made where gradio is now.

    Args:
        widgets: what is kept, by a name that stays the same over versions.
        choices: what lists offer that grow while the program runs, by the same names.
    """

    def __init__(self, widgets: Mapping[str, Any], choices: Mapping[str, Callable[[], Sequence[str]]]) -> None:
        self._widgets = dict(widgets)
        self._choices = choices
        self._kept = gr.Textbox(elem_id="lora_train_kept", elem_classes="lt-hidden", show_label=False)
        self._keep = gr.Button("", elem_id="lora_train_keep", elem_classes="lt-hidden")

    def connect(self, opened: gr.Button) -> Any:
        """Wire it; returns the event after which the form is filled in.

        Nothing is kept before the form is filled in, else a page that loads would keep its own defaults.

        Args:
            opened: pressed by the page when the tab is seen for the first time.
        """
        names, widgets = list(self._widgets), list(self._widgets.values())
        filled = opened.click(self.restore, [self._kept], widgets, _js=_READ, **HIDDEN)
        filled.then(None, None, None, _js="() => { loraTrain.filled = true; }")
        self._keep.click(None, widgets, None, _js=_WRITE.replace("NAMES", json_text(names)), **HIDDEN)
        return filled

    def restore(self, text: str | None) -> list[Any]:
        """An update for every widget from what the browser kept; what does not fit any more stays as it is."""
        try:
            found = parse_json(text or "{}")
        except ValueError:
            found = {}
        values = found if isinstance(found, dict) else {}
        return [self._update(name, values) for name in self._widgets]

    def _update(self, name: str, values: Mapping[str, Any]) -> Any:
        offered = self._choices[name]() if name in self._choices else None
        changes = {} if offered is None else {"choices": list(offered)}
        if name in values and fits(self._widgets[name], values[name], offered):
            changes["value"] = values[name]
        return gr.update(**changes)


def fits(widget: Any, value: Any, offered: Sequence[str] | None = None) -> bool:
    """Whether a widget can show a value; ``offered`` is what a list that has grown offers now."""
    if isinstance(widget, gr.Checkbox):
        return isinstance(value, bool)
    if isinstance(widget, gr.Number):
        if value is None:  # emptied
            return True
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        low, high = widget.minimum, widget.maximum
        return is_number and (low is None or value >= low) and (high is None or value <= high)
    if isinstance(widget, gr.Dropdown):
        return value in (widget.choices if offered is None else offered)
    return isinstance(value, str)


_READ = f"""() => {{
    try {{ return [localStorage.getItem("{_KEY}") || ""]; }} catch {{ return [""]; }}
}}"""
_WRITE = f"""(...values) => {{
    const names = NAMES;
    const kept = JSON.stringify(Object.fromEntries(names.map((name, place) => [name, values[place]])));
    try {{
        if (loraTrain.filled && localStorage.getItem("{_KEY}") !== kept) localStorage.setItem("{_KEY}", kept);
    }} catch {{ /* a browser that keeps nothing */ }}
    return [];
}}"""
