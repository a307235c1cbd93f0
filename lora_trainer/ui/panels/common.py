"""What the panels share, and how they live.

A panel is made where gradio is, with its widgets; then it is connected to the rest of the page, once all panels are
there; then it is watched: it has ``widgets``, by name, and tells its ``parts`` by the same names, what their state is
and what shows them (:mod:`lora_trainer.ui.widgets.refresh`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gradio as gr

from lora_trainer.core.errors import InputError, LoraTrainError
from lora_trainer.core.i18n import Translate
from lora_trainer.jobs.service import Jobs
from lora_trainer.network.blocks.stack import SUM_ADVISED, parse_stack
from lora_trainer.runs.run import Run
from lora_trainer.ui.widgets.form import Form
from lora_trainer.ui.widgets.refresh import HIDDEN, Refresh

Values = dict[Any, Any]
"""Values or updates by widget."""


@dataclass(frozen=True)
class WholePage:
    """What panels need of the others.

    Attributes:
        form: the settings of a run.
        preset: the list of presets, which tells what is trained.
        run: the list of runs.
        feedback: where answers stand that are about runs and settings.
        about: state: which settings the report of pictures and the feedback are about.
        shown: shows the chosen run anew.
    """

    form: Form
    preset: Any
    run: Any
    feedback: Any
    about: Any
    shown: Refresh

    @property
    def fields(self) -> set[Any]:
        """The widgets that say what to train."""
        return {*self.form.widgets.values(), self.preset}


class Panel(Protocol):
    """A part of the page; see above."""

    @property
    def widgets(self) -> Mapping[str, Any]:
        """What shows its parts, by their names."""

    def connect(self, page: WholePage) -> Sequence[Any]:
        """Wire its widgets; returns the events that fill in the form."""


def step(number: int, title: str, translate: Translate) -> gr.Accordion:
    """One of the page's seven steps, for what is made within."""
    return gr.Accordion(f"{number} · {translate(title)}", open=True, elem_id=f"lora_train_step_{number}")


def shown_run(jobs: Jobs, asked: str | None, names: Sequence[str]) -> Run | None:
    """The run that is asked for; without one what is worked on, else the newest: a reloaded page finds it again.

    Args:
        jobs: whose runs these are.
        asked: name of the chosen one.
        names: of all runs, newest first.
    """
    current = jobs.current()
    for name in (asked, current.name if current else None, *names):
        try:
            if name:
                return jobs.shown(name)
        except InputError:
            continue
    return None


def choice(choices: Sequence[str], value: str | None, asked: str) -> Any:
    """A list to choose from. What the person chose is left alone: this answer may come after they chose again."""
    offered = list(choices)
    return gr.update(choices=offered) if value == asked else gr.update(choices=offered, value=value)


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
