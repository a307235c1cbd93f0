"""Step 6 of the page: starting runs, one of them as it goes, and what it has made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError, LoraTrainError
from lora_trainer.core.i18n import Translate
from lora_trainer.jobs.service import Jobs
from lora_trainer.model.families import is_same_checkpoint
from lora_trainer.runs.control import StopRequest
from lora_trainer.runs.run import RESUMABLE, UNFINISHED, Run
from lora_trainer.ui.html import common
from lora_trainer.ui.html import run as views
from lora_trainer.ui.html.markup import EMPTY, Markup
from lora_trainer.ui.panels.common import Values, WholePage, choice, step
from lora_trainer.ui.panels.run_list import RunList
from lora_trainer.ui.panels.sweeps import SweepBox
from lora_trainer.ui.widgets.form import Form, dotted
from lora_trainer.ui.widgets.refresh import HIDDEN, Part

_SHOW_CHECKPOINT = "(title) => { if (title && window.selectCheckpoint) window.selectCheckpoint(title); return []; }"
"""Chooses a checkpoint in the WebUI's list at the top of the page, as its own cards do (javascript/ui.js)."""


class TrainingPanel:
    """The widgets, and what happens when they are used; made where gradio is now.

    Args:
        jobs: that do the runs.
        translate: into the page's language.
        form: that the settings are part of.
    """

    def __init__(self, jobs: Jobs, translate: Translate, form: Form) -> None:
        self._jobs = jobs
        self._t = translate
        self._form = form
        with step(6, "Training", translate):
            self._build_start()
            self.run = gr.Dropdown(choices=jobs.run_names(), label=translate("Training run"), elem_id="lora_train_run")
            self.run_list = RunList(jobs, translate)
            self._build_run()

    @property
    def widgets(self) -> dict[str, Any]:
        """What shows :meth:`parts`."""
        own = ("run", "status", "curves", "samples", "files", "stop", "after_epoch", "pause", "resume", "reuse")
        waiting = ("front", "earlier", "later", "bring")
        return {**{name: getattr(self, name) for name in (*own, *waiting)}, **self.run_list.widgets}

    # -------------------------------------------------------------- layout
    def _build_start(self) -> None:
        t, form = self._t, self._form
        form.add("samples.prompts")
        form.add_rows(["save.every_epochs", "samples.every_epochs", "validation.share"])
        with gr.Accordion(t("More about files, samples and validation"), open=False):
            sections = ("save.", "samples.", "validation.")
            usual = [p for p in form.section(*sections, advanced=False) if p not in form.widgets]
            form.add_rows(usual + form.section(*sections, advanced=True))
        self.sweeps = SweepBox(t)
        self.feedback = gr.HTML(elem_id="lora_train_feedback")
        with gr.Row():
            self.train = gr.Button(t("Train"), variant="primary", elem_id="lora_train_start", scale=3)
            self.measure = gr.Button(t("Measure memory and time"), elem_id="lora_train_measure", scale=2)

    def _build_run(self) -> None:
        t = self._t
        self.status = gr.HTML(elem_id="lora_train_status")
        with gr.Row(elem_id="lora_train_buttons"):
            self.stop = gr.Button(t("Stop and keep"), interactive=False, elem_id="lora_train_stop")
            self.after_epoch = gr.Button(t("Stop after this epoch"), interactive=False)
            self.pause = gr.Button(t("Pause"), interactive=False)
            self.resume = gr.Button(t("Resume"), interactive=False)
            self.reuse = gr.Button(t("Use its settings"), interactive=False)
            self.front = gr.Button(t("Train it next"), visible=False, elem_id="lora_train_front")
            self.earlier = gr.Button(t("Train it earlier"), visible=False, elem_id="lora_train_earlier")
            self.later = gr.Button(t("Train it later"), visible=False, elem_id="lora_train_later")
            self.bring = gr.Button(t("Load its checkpoint"), visible=False, elem_id="lora_train_bring")
            self.brought = gr.Textbox(visible=False)
            self.brought.do_not_save_to_config = True
        self.curves = gr.HTML(elem_id="lora_train_curves")
        self.samples = gr.Gallery(
            label=t("Samples"), columns=4, object_fit="contain", height="auto", elem_id="lora_train_samples"
        )
        self.files = gr.HTML(elem_id="lora_train_files")

    # -------------------------------------------------------------- events
    def connect(self, page: WholePage) -> Sequence[Any]:
        """Wire the widgets; returns the events that fill in the form."""
        known, widgets = page.fields | {page.about}, [*page.form.widgets.values()]
        said = self.measure.click(self._measuring, None, [self.feedback], **HIDDEN)
        said.then(lambda values: self._measure(values, page.about), known, [self.feedback, page.about], **HIDDEN)
        begun = self.train.click(self._train, page.fields | {self.sweeps.text}, [self.run, self.feedback], **HIDDEN)
        page.shown.on(begun.then)
        self.sweeps.connect(page.fields, page.form.config)
        for button, act in self._acts():
            page.shown.on(button.click(act, [self.run], [self.feedback], **HIDDEN).then)
        brought = self.bring.click(self._bring, [self.run], [self.feedback, self.brought], queue=False)
        brought.then(None, [self.brought], None, _js=_SHOW_CHECKPOINT)
        return [
            self.reuse.click(self._reuse, [self.run], [*widgets, self.feedback], **HIDDEN),
            *self.run_list.connect(page),
        ]

    def _acts(self) -> list[tuple[Any, Callable[[str], str]]]:
        """The buttons for the chosen run, and what they do."""
        return [
            (self.stop, self._asking(StopRequest.STOP)),
            (self.after_epoch, self._asking(StopRequest.AFTER_EPOCH)),
            (self.pause, self._asking(StopRequest.PAUSE)),
            (self.resume, self._resume),
            (self.front, self._moving(None)),
            (self.earlier, self._moving(-1)),
            (self.later, self._moving(1)),
        ]

    def _train(self, values: Values) -> Values:
        try:
            config = TrainConfig.from_dict(self._form.document(values))
            wanted = self.sweeps.parse(values.get(self.sweeps.text))
            runs = self._jobs.sweep(config, wanted) if wanted else [self._jobs.submit(config)]
        except LoraTrainError as error:
            return {self.feedback: common.error_notice(error, self._t)}
        return {self.run: gr.update(choices=self._jobs.run_names(), value=runs[0].name), self.feedback: ""}

    def _measuring(self) -> Markup:
        return common.notice(self._t("A few steps are tried …"))

    def _measure(self, values: Values, about: Any) -> Values:
        try:
            config = self._form.config(values)
            measured = self._jobs.measure(config)
        except LoraTrainError as error:
            return {self.feedback: common.error_notice(error, self._t)}
        known = {**(values.get(about) or {}), "feedback": repr(config)}
        return {self.feedback: views.estimate(measured, self._t), about: known}

    def _asking(self, request: StopRequest) -> Callable[[str], str]:
        def ask(name: str) -> Markup:
            return common.answered(lambda: self._jobs.stop(name or "", request), "", self._t)  # the status tells it

        return ask

    def _resume(self, name: str) -> Markup:
        return common.answered(lambda: self._jobs.resume(name or ""), "", self._t)

    def _moving(self, places: int | None) -> Callable[[str], str]:
        """What moves a waiting run by some places, or to the front."""

        def move(name: str) -> Markup:
            names = [run.name for run in self._jobs.waiting()]
            place = names.index(name) + 1 + places if places and name in names else 1
            return common.answered(lambda: self._jobs.move(name or "", place), "", self._t)

        return move

    def _bring(self, name: str) -> tuple[str, str]:
        """What to say, and what the host's own list of checkpoints should show."""
        said = common.answered(lambda: self._jobs.load_checkpoint(name or ""), "The checkpoint is loaded.", self._t)
        return said, self._jobs.host.chosen_checkpoint()

    def _reuse(self, name: str) -> list[Any]:
        try:
            document = self._jobs.settled(name or "").config().to_dict()
        except LoraTrainError as error:
            return [*self._form.updates({}), common.error_notice(error, self._t)]
        message = self._t("The settings of {name} are filled in; give a new name.", name=name)
        return [*self._form.updates(dotted(document)), common.notice(message)]

    # -------------------------------------------------------------- what is shown
    def parts(self, run: Run | None, names: list[str], asked: str, loaded: dict[str, Any]) -> dict[str, Part]:
        """The chosen run; see :attr:`widgets`.

        Args:
            run: the one that is shown.
            names: of all runs, newest first.
            asked: name of the one that the person has chosen.
            loaded: the host's checkpoint.
        """
        m: Mapping[str, Any] = run.manifest if run else {}
        state = run.state if run else ""
        status, before = self._status(run)
        waiting = len(self._jobs.waiting())
        waits = bool(m.get("waits"))
        other = self._jobs.host.name != "standalone" and state in RESUMABLE and not _is_loaded(m, loaded)

        def button(on: bool) -> Part:
            return (on, lambda: gr.update(interactive=on))

        def shown(on: bool) -> Part:
            return (on, lambda: gr.update(visible=on))

        return {
            "run": ((names, run and run.name), lambda: choice(names, run.name if run else None, asked)),
            "status": status,
            "curves": (
                (run and run.name, m.get("step"), m.get("validation")),
                lambda: self._curves(run),
            ),
            "samples": (list(m.get("samples", [])), lambda: _gallery(m)),
            "files": (list(m.get("files", [])), lambda: self._files(run)),
            "stop": button(state in UNFINISHED or waits),
            "after_epoch": button(state == "running"),
            "pause": button(state in UNFINISHED or waits),
            "resume": button(state in RESUMABLE and not waits),
            "reuse": button(bool(run)),
            "front": shown(before > 1),
            "earlier": shown(before > 2),
            "later": shown(0 < before < waiting),
            "bring": shown(other),
            **self.run_list.parts(run, names),
        }

    def _curves(self, run: Run | None) -> Markup:
        try:
            return views.curves(run.history.curve(), run.manifest, self._t) if run else EMPTY
        except InputError as error:  # the log cannot be read
            return common.error_notice(error, self._t)

    def _no_run(self) -> Markup:
        return common.notice(self._t("No run yet. Fill in the steps on the left and press Train."))

    def _files(self, run: Run | None) -> Markup:
        if run is None:
            return EMPTY
        try:
            trigger = run.config().data.trigger
        except InputError:
            trigger = ""
        return views.files_table(run.manifest, trigger, self._t)

    def _status(self, run: Run | None) -> tuple[Part, int]:
        """What the run's card shows, and its place in line; 0 when it does not wait."""
        if run is None:
            return (None, self._no_run), 0
        waiting = self._jobs.waiting()
        before = waiting.index(run) + 1 if run in waiting else 0
        request = self._jobs.request(run)
        manifest = run.manifest
        return (
            (dict(manifest), before, request),
            lambda: views.status_card(manifest, before, self._t, request),
        ), before


def _gallery(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The newest samples first, each with its step and prompt."""
    entries = [s for s in manifest.get("samples", []) if Path(s["path"]).is_file()]
    return [(s["path"], f"{s['epoch']} · {s['step']} · {s['prompt']}") for s in reversed(entries[-40:])]


def _is_loaded(manifest: Mapping[str, Any], loaded: dict[str, Any]) -> bool:
    """Whether a run's checkpoint is loaded, as far as is known."""
    return is_same_checkpoint(manifest.get("checkpoint", {}), loaded) is True
