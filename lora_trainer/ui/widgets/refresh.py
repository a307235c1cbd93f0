"""The one way in which parts of the page are shown anew: by what tells their state, several panels by one event.

A panel is made where gradio is, then connected, then watched: its :class:`Watch` is asked once a second, by the page's
poll, which is one event for all panels, since the page pays for each event and not for what comes with it. gradio 3.41
goes through all components of the page whenever an event begins and again when its answer comes (``rootNode =
rootNode`` in Blocks.svelte), those of the WebUI's other tabs too: some 2,000 of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

log = logging.getLogger(__name__)

HIDDEN: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
"""For events whose answer comes at once: without a place in gradio's queue, and without its clock over the widgets."""
Part = tuple[Any, Callable[[], Any]]
"""What tells the state of a part of the page, equal while it is the same, and what makes the update that shows it."""
Marks = dict[str, Any]
"""What told the state of each part when it was shown, by the part's name."""


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

    def on(self, event: Callable[..., Any]) -> Any:
        """Show it at an event of gradio's, such as ``button.click``; returns what other events can follow."""
        return event(self.show, self.inputs, self.outputs, **HIDDEN)


class Watch:
    """Parts of a panel that are shown anew when they have changed; made where gradio is now.

    Args:
        inputs: widgets whose values ``parts`` takes.
        widgets: those that show the parts, by the parts' names.
        parts: tells the parts by their names.
        remembers: whether ``parts`` takes, behind the values, the marks of what is shown.
    """

    def __init__(
        self,
        inputs: Sequence[Any],
        widgets: Mapping[str, Any],
        parts: Callable[..., Mapping[str, Part]],
        *,
        remembers: bool = False,
    ) -> None:
        self._parts = parts
        self._remembers = remembers
        self.widgets = dict(widgets)
        self.seen = gr.State({})
        """The marks of what the page shows."""
        self.refresh = Refresh(self.show, [*inputs, self.seen], [*self.widgets.values(), self.seen])

    def show(self, *values: Any) -> list[Any]:
        """Updates of the widgets and the marks, from the inputs' values and the marks of before."""
        seen: Marks = values[-1]
        parts = self._parts(*values) if self._remembers else self._parts(*values[:-1])
        updates, marks = changes({name: parts[name] for name in self.widgets}, seen)
        return [*updates, marks]


def changes(parts: Mapping[str, Part], seen: Marks) -> tuple[list[Any], Marks]:
    """An update for each part, which leaves alone what has not changed since ``seen``; and the marks of now."""
    same = {name for name, (mark, _) in parts.items() if name in seen and seen[name] == mark}
    updates = [gr.update() if name in same else make() for name, (_, make) in parts.items()]
    return updates, {name: mark for name, (mark, _) in parts.items()}


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
