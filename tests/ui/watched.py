"""A panel's parts as gradio would send them to the page."""

from __future__ import annotations

from typing import Any

import gradio as gr

from lora_trainer.ui.widgets.refresh import Watch


def poll(watch: Watch, *values: Any, seen: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a poll puts where, and the marks; what is left alone is not in it."""
    *answers, marks = watch.show(*values, seen or {})
    for widget, answer in zip(watch.refresh.outputs, [*answers, marks], strict=True):
        value = answer.get("value") if isinstance(answer, dict) and "__type__" in answer else answer
        if value is not None and not isinstance(widget, (gr.State, gr.Button)):
            widget.postprocess(value)
    shown = zip(watch.widgets, answers, strict=True)
    return {"marks": marks, **{name: answer for name, answer in shown if answer != gr.update()}}
