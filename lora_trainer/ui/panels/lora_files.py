"""The panel of the file tools: what is in a LoRA file, and bake, merge, resize and extract."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from lora_trainer.core.errors import LoraTrainError
from lora_trainer.core.i18n import Translate
from lora_trainer.jobs.lora_files import card_of, require_lora
from lora_trainer.jobs.requests import tool_options
from lora_trainer.jobs.service import Jobs
from lora_trainer.ui.html import common
from lora_trainer.ui.html import lora_files as tool_views
from lora_trainer.ui.html.markup import EMPTY, Markup
from lora_trainer.ui.panels.common import Values, WholePage, add_lines, known_values, number
from lora_trainer.ui.widgets.fields import Fields, Shown
from lora_trainer.ui.widgets.form import option_widget, parse
from lora_trainer.ui.widgets.refresh import HIDDEN, Part, Watch

_SHOWN = 6
_ID = "lora_train_tools"


class ToolsPanel:
    """The widgets, and what happens when they are used; made where gradio is now.

    Args:
        jobs: whose file tools are used.
        translate: into the page's language.
    """

    def __init__(self, jobs: Jobs, translate: Translate) -> None:
        self._jobs = jobs
        self._t = translate
        self.fields: dict[str, dict[str, Any]] = {}
        self.buttons: dict[str, Any] = {}
        self.known: dict[str, Any] = {}
        with gr.Column(elem_id=_ID):
            self._build_file()
            with gr.Tabs():
                self._build_info()
                self._build_tool("bake", ["weight", "te", "unet"], ["lbw"])
                self._build_tool("resize", ["method", "keep", "rank"])
                self._build_tool("merge", ["files"], ["rank"])
                self._build_tool("extract", ["base"], ["tuned"], ["rank"])
            self._build_work()
        self.watch = Watch([], self.widgets, self.parts)

    @property
    def widgets(self) -> dict[str, Any]:
        """What shows :meth:`parts`."""
        return {"work": self.work, "stop": self.stop}

    # -------------------------------------------------------------- layout
    def _build_file(self) -> None:
        t = self._t
        with gr.Row(elem_classes="lt-file-row"):
            self.file = gr.Dropdown(
                choices=self._jobs.loras.names(),
                label=t("LoRA file"),
                info=t("For Info, Bake and Resize."),
                elem_id=f"{_ID}_file",
                scale=5,
            )
            self.path = gr.Textbox(
                max_lines=1,
                label=t("Or a file elsewhere"),
                info=t("Its path; it counts instead of the choice."),
                elem_id=f"{_ID}_path",
                scale=4,
            )
            self.refresh = gr.Button("↻", elem_id=f"{_ID}_refresh", elem_classes="lt-refresh", scale=0, min_width=40)

    def _build_info(self) -> None:
        t = self._t
        with gr.TabItem(t("Info"), elem_id=f"{_ID}_tab_info"):
            self.info = gr.HTML(common.notice(t("Choose a LoRA file above.")), elem_id=f"{_ID}_info")
            with gr.Accordion(t("All metadata"), open=False):
                self.metadata = gr.JSON(show_label=False, elem_id=f"{_ID}_metadata")

    def _build_tool(self, kind: str, *rows: Sequence[str]) -> None:
        t = self._t
        with gr.TabItem(t(TABS[kind]), elem_id=f"{_ID}_tab_{kind}"):
            if kind == "merge":
                self.adder = gr.Dropdown(
                    choices=self._jobs.loras.names(),
                    label=t("Add LoRA files to merge"),
                    info=t("Chosen ones go into the list below."),
                    multiselect=True,
                    elem_id=f"{_ID}_add",
                )
            self._build_fields(kind, *rows)

    def _build_fields(self, kind: str, *rows: Sequence[str]) -> None:
        """Rows of fields, the experts' ones folded away, and the name of the new file beside the button."""
        named = [path for row in rows for path in row]
        rest = [o.path for o in tool_options(kind) if o.path not in (*named, "file", "output")]
        self.fields[kind] = {}
        for row in rows:
            self._build_row(kind, row)
        with gr.Accordion(self._t("For experts"), open=False):
            for start in range(0, len(rest), 3):
                self._build_row(kind, rest[start : start + 3])
        with gr.Row():
            self._build_row(kind, ["output"])
            self.buttons[kind] = gr.Button(
                self._t(BUTTONS[kind]),
                variant="primary",
                elem_id=f"{_ID}_{kind}",
                elem_classes="lt-go",
                min_width=240,
            )

    def _build_row(self, kind: str, paths: Sequence[str]) -> None:
        with gr.Row():
            for path in paths:
                self.fields[kind][path] = self._widget(kind, path)

    def _widget(self, kind: str, path: str) -> Any:
        """The field's widget; where the host has something to choose from, with a list that fills it in."""
        item = next(o for o in tool_options(kind) if o.path == path)
        name = f"{_ID}_{kind}_{path}"
        if path in ("te", "unet"):  # an emptied number field says 0
            return gr.Textbox(max_lines=1, label=self._t(item.title), info=self._t(item.help), elem_id=name)
        made = option_widget(item, self._t, name)
        if path in KNOWN:
            checkpoints = [] if path == "lbw" else [each.name for each in self._jobs.host.checkpoints()]
            info = self._t("Fills in the field beside it.")
            self.known[path] = known_values(made, checkpoints, self._t(KNOWN[path]), info, f"{name}_known")
        return made

    def _build_work(self) -> None:
        self.feedback = gr.HTML(elem_id=f"{_ID}_feedback")
        self.work = gr.HTML(elem_id=f"{_ID}_work")
        self.stop = gr.Button(self._t("Stop the work"), visible=False, elem_id=f"{_ID}_stop")

    # -------------------------------------------------------------- events
    def connect(self, page: WholePage) -> Sequence[Any]:
        """Wire the widgets; none of their events fills in the form."""
        files = [self.file, self.adder]
        chosen = [self.file, self.path], [self.info, self.metadata, self.known["lbw"]]
        for event in (self.file.change, self.path.blur, self.path.submit):
            event(self._choose, *chosen, **HIDDEN)
        self.refresh.click(self._offer, None, files, **HIDDEN)
        self.adder.change(
            self._add, [self.adder, self.fields["merge"]["files"]], [self.fields["merge"]["files"], self.adder],
            **HIDDEN,
        )  # fmt: skip
        shown = self.watch.refresh
        for kind, button in self.buttons.items():
            inputs = {self.file, self.path, *self.fields[kind].values()}
            shown.on(button.click(self._starting(kind), inputs, [self.feedback], **HIDDEN).then)
        shown.on(self.stop.click(self._stop, None, [self.feedback], **HIDDEN).then)
        return []

    def _choose(self, chosen: str | None, path: str) -> list[Any]:
        """Show a file, and offer the presets for it."""
        name = path.strip() or chosen
        if not name:
            return [common.notice(self._t("Choose a LoRA file above.")), None, gr.update(choices=[])]
        try:
            file = self._jobs.loras.find(name, outside=True)
            found = self._jobs.tools.info(name, outside=True)
            if "problem" in found:
                require_lora(file)
            presets = self._jobs.tools.preset_names(name)
        except LoraTrainError as error:
            return [common.error_notice(error, self._t), None, gr.update(choices=[])]
        report = tool_views.info_report(found, card_of(file), self._t)
        return [report, found["metadata"], gr.update(choices=presets)]

    def _starting(self, kind: str) -> Callable[[Values], str]:
        def start(values: Values) -> Markup:
            try:
                self._jobs.tools.start(kind, self._document(kind, values), outside=True)
            except LoraTrainError as error:
                return common.error_notice(error, self._t, _fields(kind))
            return EMPTY

        return start

    def _document(self, kind: str, values: Values) -> dict[str, Any]:
        """The widgets' values; raises :class:`InputError` for an emptied number."""
        items = {item.path: item for item in tool_options(kind)}
        document = {
            path: parse(items[path], values[widget]) for path, widget in self.fields[kind].items() if widget in values
        }
        for part in {"te", "unet"} & document.keys():
            document[part] = number(document[part]) if document[part] else None
        if "file" in items:
            document["file"] = str(values.get(self.path) or "").strip() or values.get(self.file) or ""
        return document

    def _stop(self) -> Markup:
        """Stop what is worked on."""
        working = [task for task in self._jobs.tools.list() if task.is_working]
        try:
            if working:
                self._jobs.tools.stop(working[-1].id)
        except LoraTrainError as error:
            return common.error_notice(error, self._t)
        return EMPTY

    def _add(self, chosen: list[str], text: str) -> list[Any]:
        return add_lines(chosen, text)

    def _offer(self) -> list[Any]:
        names = self._jobs.loras.names()
        return [gr.update(choices=names)] * 2

    # -------------------------------------------------------------- what is shown
    def parts(self) -> dict[str, Part]:
        """The newest work; see :attr:`widgets`."""
        tasks = self._jobs.tools.list()[:_SHOWN]
        working = any(task.is_working for task in tasks)
        return {
            "work": (tool_views.tasks_mark(tasks), lambda: tool_views.task_cards(tasks, self._t)),
            "stop": (working, lambda: gr.update(visible=working)),
        }


KNOWN = {
    "lbw": "Presets",
    "checkpoint": "Known checkpoints",
    "base": "Known base checkpoints",
    "tuned": "Known tuned checkpoints",
}
TABS = {"bake": "Bake", "merge": "Merge", "resize": "Resize", "extract": "Extract"}
BUTTONS = {
    "bake": "Bake into a new file",
    "merge": "Merge into a new file",
    "resize": "Resize into a new file",
    "extract": "Extract into a new file",
}


def _fields(kind: str) -> Fields:
    """What an error about a tool's document is about."""
    named = {item.path: Shown(item.title, f"{_ID}_{kind}_{item.path}") for item in tool_options(kind)}
    return {**named, "file": Shown("LoRA file", f"{_ID}_file")} if "file" in named else named
