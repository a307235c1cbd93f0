"""Several panels shown anew by one event, since the page pays for each event and not for what comes with it.

gradio 3.41 goes through all components of the page whenever an event begins and again when its answer comes
(``rootNode = rootNode`` in Blocks.svelte), those of the WebUI's other tabs too: some 2,000 of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refresh:
    """What shows a panel anew.

    Attributes:
        show: makes an update for each of ``outputs`` from the values of ``inputs``.
        inputs: widgets.
        outputs: widgets.
    """

    show: Callable[..., Sequence[Any]]
    inputs: Sequence[Any]
    outputs: Sequence[Any]


def together(parts: Sequence[Refresh]) -> Refresh:
    """All parts as one; what fails in one of them leaves the others be."""

    def show(*values: Any) -> list[Any]:
        left, answers = list(values), list[Any]()
        for part in parts:
            count = len(part.inputs)
            answers += _answers(part, left[:count])
            del left[:count]
        return answers

    inputs = [widget for part in parts for widget in part.inputs]
    return Refresh(show, inputs, [widget for part in parts for widget in part.outputs])


def _answers(part: Refresh, values: Sequence[Any]) -> Sequence[Any]:
    try:
        return part.show(*values)
    except Exception:  # each was an event of its own before, of which gradio does the same
        log.exception("A part of the page could not be shown anew.")
        return [gr.update() for _ in part.outputs]
