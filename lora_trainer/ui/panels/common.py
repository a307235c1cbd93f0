"""What the panels share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from lora_trainer.core.errors import LoraTrainError
from lora_trainer.network.blocks.stack import SUM_ADVISED, parse_stack

HIDDEN: dict[str, Any] = {"queue": False, "show_progress": "hidden"}


Values = dict[Any, Any]


def known_values(field: Any, values: Sequence[str], label: str, info: str, elem_id: str) -> Any:
    """A list that fills a text field, where gradio is now.

    A list in which one can type (``allow_custom_value``) loses the last letter of what is not ended with Enter.
    """
    known = gr.Dropdown(choices=list(values), label=label, info=info, elem_id=elem_id)
    known.change(lambda value: value or gr.update(), [known], [field], **HIDDEN)
    return known


def number(text: Any) -> Any:
    """The number that a text says; what it is itself where it says none, so that the sentence about it can show it."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return text


def add_lines(chosen: list[str], text: str) -> list[Any]:
    """A text of ``name: weight`` lines with the chosen files added, and what empties the choice again.

    New lines share what is left of the sum that the guides advise.
    """
    if not chosen:
        return [gr.update(), gr.update()]
    lines = [line for line in text.splitlines() if line.strip()]
    known = {line.partition(":")[0].strip() for line in lines}
    new = [name for name in chosen if name not in known]
    left = SUM_ADVISED - _total("\n".join(lines))
    weight = min(0.8, max(0.1, int(100 * left / max(1, len(new)) + 1e-6) / 100))
    return ["\n".join([*lines, *(f"{name}: {weight:g}" for name in new)]), gr.update(value=[])]


def _total(text: str) -> float:
    try:
        return parse_stack(text).total
    except LoraTrainError:
        return 0.0
