"""The panel of stacks: several LoRAs in one prompt, their sum, and random mixes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from lora_trainer.core.errors import LoraTrainError
from lora_trainer.core.i18n import Translate
from lora_trainer.jobs.kinds import DRAWING
from lora_trainer.jobs.requests import mix_options
from lora_trainer.jobs.service import Jobs
from lora_trainer.ui.html import common
from lora_trainer.ui.html import lora_files as tool_views
from lora_trainer.ui.html.markup import EMPTY, Markup
from lora_trainer.ui.panels.common import Values, WholePage, add_lines, known_values
from lora_trainer.ui.widgets.fields import Fields, Shown
from lora_trainer.ui.widgets.form import option_widget, parse
from lora_trainer.ui.widgets.refresh import HIDDEN, Part, Watch

_ID = "lora_train_stacks"
_ROWS = (["count", "method", "spread"], ["most", "seed", "picture_seed"], ["prompt", "negative"])
_MORE = ["width", "height", "steps", "cfg", "sampler"]


class StacksPanel:
    """The widgets, and what happens when they are used; made where gradio is now.

    Args:
        jobs: whose host draws.
        translate: into the page's language.
    """

    def __init__(self, jobs: Jobs, translate: Translate) -> None:
        self._jobs = jobs
        self._host = jobs.host
        self._t = translate
        self._options = {item.path: item for item in mix_options()}
        self.fields: dict[str, Any] = {}
        with gr.Column(elem_id=_ID):
            self._build_stack()
            self._build_mixes()
            self._build_work()
        self.watch = Watch([], self.widgets, self.parts)

    @property
    def widgets(self) -> dict[str, Any]:
        """What shows :meth:`parts`."""
        names = ("work", "stop", "gallery", "mixes", "prompts")
        return {name: getattr(self, name) for name in names}

    # -------------------------------------------------------------- layout
    def _build_stack(self) -> None:
        t = self._t
        with gr.Row(elem_classes="lt-file-row"):
            self.adder = gr.Dropdown(
                choices=self._jobs.loras.names(),
                label=t("Add LoRA files"),
                info=t("Chosen ones go into the list below."),
                multiselect=True,
                elem_id=f"{_ID}_add",
                scale=8,
            )
            self.refresh = gr.Button("↻", elem_classes="lt-refresh", scale=0, min_width=40)
        self._add_row(["stack"])
        self.report = gr.HTML(elem_id=f"{_ID}_report")

    def _build_mixes(self) -> None:
        t = self._t
        with gr.Accordion(t("Random mixes"), open=True):
            for row in _ROWS:
                self._add_row(row)
            with gr.Accordion(t("For experts"), open=False):
                self._add_row(_MORE)
            if not self._host.reads_tags:
                self._add_row(["checkpoint"])
            with gr.Row():
                self.show = gr.Button(t("Show the mixes as prompts"), elem_id=f"{_ID}_show")
                self.draw = gr.Button(t("Draw the mixes"), variant="primary", elem_id=f"{_ID}_draw")

    def _build_work(self) -> None:
        t = self._t
        self.feedback = gr.HTML(elem_id=f"{_ID}_feedback")
        self.work = gr.HTML(elem_id=f"{_ID}_work")
        self.stop = gr.Button(t("Stop drawing"), visible=False, elem_id=f"{_ID}_stop")
        self.gallery = gr.Gallery(
            label=t("Mixes"), columns=4, object_fit="contain", height="auto", visible=False, elem_id=f"{_ID}_gallery"
        )
        self.mixes = gr.HTML(elem_id=f"{_ID}_mixes")
        self.prompts = gr.Textbox(
            label=t("All prompts, one a line"),
            info=t("For the script “Prompts from file or textbox”."),
            lines=3,
            max_lines=10,
            visible=False,
            interactive=False,
            show_copy_button=True,
            elem_id=f"{_ID}_prompts",
        )

    def _add_row(self, paths: Sequence[str]) -> None:
        with gr.Row():
            for path in paths:
                self.fields[path] = self._widget(path)

    def _widget(self, path: str) -> Any:
        item, name = self._options[path], f"{_ID}_{path}"
        if path == "sampler":
            item = replace(item, choices=tuple(self._host.samplers()))
        if path in ("stack", "prompt", "negative"):
            lines = 4 if path == "stack" else 2
            return gr.Textbox(
                lines=lines, max_lines=12, label=self._t(item.title), info=self._t(item.help), elem_id=name
            )
        made = option_widget(item, self._t, name)
        if path == "checkpoint":
            checkpoints = [str(each) for each in self._host.checkpoints()]
            info = self._t("Fills in the field beside it.")
            known_values(made, checkpoints, self._t("Known checkpoints"), info, f"{name}_known")
        return made

    # -------------------------------------------------------------- events
    def connect(self, page: WholePage) -> Sequence[Any]:
        """Wire the widgets; none of their events fills in the form."""
        stack = self.fields["stack"]
        inputs = set(self.fields.values())
        self.refresh.click(self._offer, None, [self.adder], **HIDDEN)
        added = self.adder.change(add_lines, [self.adder, stack], [stack, self.adder], **HIDDEN)
        added.then(self._report, [stack], [self.report], **HIDDEN)
        stack.blur(self._report, [stack], [self.report], **HIDDEN)
        listed = [self.feedback, self.mixes, self.prompts, self.gallery]
        self.show.click(self._show, inputs, listed, **HIDDEN)
        shown = self.watch.refresh
        shown.on(self.draw.click(self._draw, inputs, [self.feedback], **HIDDEN).then)
        shown.on(self.stop.click(self._stop, None, [self.feedback], **HIDDEN).then)
        return []

    def _offer(self) -> Any:
        return gr.update(choices=self._jobs.loras.names())

    def _report(self, text: str) -> Markup:
        if not (text or "").strip():
            return EMPTY
        try:
            stack = self._jobs.tools.stack(text)
        except LoraTrainError as error:
            return common.error_notice(error, self._t, self._fields())
        return tool_views.stack_report(stack, self._t)

    def _fields(self) -> Fields:
        """What an error about a batch is about."""
        return {path: Shown(item.title, f"{_ID}_{path}") for path, item in self._options.items()}

    def _document(self, values: Values) -> dict[str, Any]:
        return {
            path: parse(self._options[path], values[widget]) for path, widget in self.fields.items() if widget in values
        }

    def _show(self, values: Values) -> list[Any]:
        """The mixes as prompts, in place of what was drawn before."""
        try:
            plan, _ = self._jobs.tools.mix_plan(self._document(values))
        except LoraTrainError as error:
            return [common.error_notice(error, self._t, self._fields()), *[gr.update()] * 3]
        return ["", *self._listed(plan.document()), gr.update(value=None, visible=False)]

    def _draw(self, values: Values) -> Markup:
        try:
            self._jobs.tools.start("mix", self._document(values))
        except LoraTrainError as error:
            return common.error_notice(error, self._t, self._fields())
        return EMPTY

    def _stop(self) -> Markup:
        working = [task for task in self._jobs.tools.list(DRAWING) if task.is_working]
        try:
            if working:
                self._jobs.tools.stop(working[-1].id, DRAWING)
        except LoraTrainError as error:
            return common.error_notice(error, self._t)
        return EMPTY

    # -------------------------------------------------------------- what is shown
    def parts(self) -> dict[str, Part]:
        """The newest batch, and how far those are that go on; see :attr:`widgets`."""
        tasks = self._jobs.tools.list(DRAWING)
        working = [task for task in tasks if task.is_working]
        cards = working or tasks[:1]
        batch = next((task.result.document for task in tasks if task.result), None)
        mark = next((f"{task.id} {len(task.result.document['mixes'])}" for task in tasks if task.result), "")
        gallery, table, prompts = (lambda place=place: self._batch(batch)[place] for place in range(3))
        return {
            "work": (tool_views.tasks_mark(cards), lambda: tool_views.task_cards(cards, self._t)),
            "stop": (bool(working), lambda: gr.update(visible=bool(working))),
            "gallery": (mark, gallery),
            "mixes": (mark, table),
            "prompts": (mark, prompts),
        }

    def _batch(self, document: Any) -> list[Any]:
        """Updates of gallery, table and prompts; without a batch they stay as they are."""
        if document is None:
            return [gr.update()] * 3
        pictures = [
            (mix["picture"], f"{mix['number']} · {mix['tags']}")
            for mix in document["mixes"]
            if Path(mix["picture"]).is_file()
        ]
        return [gr.update(value=pictures, visible=bool(pictures)), *self._listed(document)]

    def _listed(self, document: Any) -> list[Any]:
        lines = "\n".join(" ".join(mix["prompt"].split()) for mix in document["mixes"])
        return [tool_views.mixes_table(document, self._t), gr.update(value=lines, visible=bool(lines))]
