"""Steps 2 to 5 of the page: base model, pictures, captions and parameters, with advice on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from lora_trainer.config.train import DataConfig, TrainConfig
from lora_trainer.core.errors import InputError, LoraTrainError
from lora_trainer.core.i18n import Translate
from lora_trainer.dataset.scan import Dataset
from lora_trainer.hosts.base import ModelRequest
from lora_trainer.jobs.service import Jobs
from lora_trainer.training.advice import advise, calculate
from lora_trainer.training.proposals import propose, purpose_of, with_proposals
from lora_trainer.ui.html import common
from lora_trainer.ui.html import run as views
from lora_trainer.ui.html.markup import Markup
from lora_trainer.ui.panels.common import Values, WholePage, step
from lora_trainer.ui.panels.presets import PresetsPanel
from lora_trainer.ui.panels.proposals import ProposalsBox
from lora_trainer.ui.widgets.form import Form
from lora_trainer.ui.widgets.refresh import HIDDEN, Part

_ADVISED = "() => { loraTrain.advised(); return []; }"
"""Tells the page that the answer is there (lora_train_form.js)."""


class SettingsPanel:
    """The widgets, and what happens when they are used; made where gradio is now.

    Args:
        jobs: of the host.
        translate: into the page's language.
        form: that the settings are part of.
    """

    def __init__(self, jobs: Jobs, translate: Translate, form: Form) -> None:
        self._jobs = jobs
        self._t = translate
        self._form = form
        self._scanned: tuple[object, Dataset] | None = None
        with step(1, "What to train", translate):
            self.presets = PresetsPanel(jobs, translate, form)
        with step(2, "Base model", translate):
            self.base = gr.HTML(elem_id="lora_train_base")
            if jobs.host.name == "standalone":
                form.add("checkpoint")
        with step(3, "Pictures", translate):
            self._build_pictures()
        with step(4, "Captions", translate):
            form.add_rows(["data.trigger", "data.shuffle", "data.keep_tokens", "data.caption_dropout"], 3)
            self._expert("data.separator", "data.caption_variants")
        with step(5, "Parameters", translate):
            self._build_parameters()

    @property
    def widgets(self) -> dict[str, Any]:
        """What shows :meth:`parts`."""
        return {"base": self.base}

    # -------------------------------------------------------------- layout
    def _build_pictures(self) -> None:
        form = self._form
        form.add("data.folder")
        form.add_rows(["data.resolution", "data.repeats", "data.flip", "data.buckets"], 4)
        self._expert("data.bucket", "data.upscale")
        self.check = gr.Button(self._t("Check the pictures"), elem_id="lora_train_check")
        self.report = gr.HTML(elem_id="lora_train_report")

    def _build_parameters(self) -> None:
        t, form = self._t, self._form
        form.add_rows(["network.rank", "network.alpha", "network.targets"])
        form.add_rows(["training.unet_lr", "training.text_lr", "training.optimizer"])
        form.add_rows(["training.epochs", "training.batch_size", "training.accumulate"])
        form.add_rows(["training.scheduler", "training.precision", "training.checkpointing"])
        rest = [p for p in form.section("network.", "training.", advanced=False) if p not in form.widgets]
        with gr.Accordion(t("More parameters"), open=False):
            form.add_rows(rest + form.section("network.", "training.", advanced=True))
        self.advice = gr.HTML(elem_id="lora_train_advice")
        self.proposals = ProposalsBox(t)
        self.advised = gr.Button("", elem_id="lora_train_advised", elem_classes="lt-hidden")

    def _expert(self, *prefixes: str) -> None:
        with gr.Accordion(self._t("For experts"), open=False):
            self._form.add_rows(self._form.section(*prefixes, advanced=True))

    # -------------------------------------------------------------- events
    def connect(self, page: WholePage) -> Sequence[Any]:
        """Wire the widgets; returns the events that fill in the form."""
        self._page = page
        known = page.fields | {page.about}
        outdated = [self.report, page.feedback, page.about]
        self._advice_for = known, [self.advice, *self.proposals.outputs, *outdated]
        self.check.click(self._check, known, [self.report, *self._advice_for[1]], queue=False)
        # one event for all fields, pressed by lora_train_form.js: each event is a burden for every start of the page,
        # where gradio looks for each of its inputs among all components (get_api_info), and so does Blocks.svelte
        self.advise(self.advised.click).then(None, None, None, _js=_ADVISED)
        taken = [*page.form.widgets.values(), *self._advice_for[1]]
        self.proposals.take.click(self._take, page.fields, taken, **HIDDEN)
        return self.presets.connect(page)

    def advise(self, event: Any) -> Any:
        """Advise on the form at an event, such as one that fills it in."""
        return event(self._advise, *self._advice_for, **HIDDEN)

    def _check(self, values: Values) -> Values:
        try:
            config = self._form.config(values)
            dataset = self._jobs.dataset(config.data, decode=True)
        except LoraTrainError as error:
            return {self.report: common.error_notice(error, self._t), self.advice: "", **self.proposals.hidden()}
        self._scanned = (self._data_key(config.data), dataset)
        about = {**(values.get(self._page.about) or {}), "report": self._data_key(config.data)}
        report = views.dataset_report(dataset, self._t)
        return {self.report: report, self._page.about: about, **self._advised(values, config, dataset)}

    def _advise(self, values: Values) -> Values:
        try:
            config = self._form.config(values)
            advised = self._advised(values, config, self._dataset(config.data))
            return {**advised, **self._outdated(values.get(self._page.about), config)}
        except LoraTrainError as error:
            return {self.advice: common.error_notice(error, self._t), **self.proposals.hidden()}

    def _take(self, values: Values) -> Values:
        """Fill in what is proposed for the form as it is now."""
        try:
            config = self._form.config(values)
            dataset = self._dataset(config.data)
            if dataset is None:
                return self.proposals.hidden()
            proposals = propose(config, dataset, *self._subject(values, config))
        except LoraTrainError as error:
            return {self.advice: common.error_notice(error, self._t), **self.proposals.hidden()}
        filled = with_proposals(config, proposals)
        updates = {self._form.widgets[each.path]: gr.update(value=each.value) for each in proposals}
        return {**updates, **self._advised(values, filled, self._dataset(filled.data))}

    def _outdated(self, about: dict[str, Any] | None, config: TrainConfig) -> Values:
        """Take away what is about other settings than the form's: the report of pictures, and what was measured."""
        now = {"report": self._data_key(config.data), "feedback": repr(config)}
        gone = [part for part, key in (about or {}).items() if key != now[part]]
        if not gone:
            return {}
        left = {part: key for part, key in (about or {}).items() if part not in gone}
        widgets = {"report": self.report, "feedback": self._page.feedback}
        return {**{widgets[part]: "" for part in gone}, self._page.about: left}

    # -------------------------------------------------------------- what is shown
    def parts(self, health: dict[str, Any]) -> dict[str, Part]:
        """What of ``health``, a report of the host's, is shown; see :attr:`widgets`."""
        return {"base": ((health["checkpoint"], health["problem"]), lambda: self._base_model(health))}

    def _base_model(self, health: dict[str, Any]) -> Markup:
        try:
            self._jobs.host.check(ModelRequest(work="health"))
        except LoraTrainError as error:  # as health tells it, but in the page's language
            return common.error_notice(error, self._t)
        return views.base_model(health, self._t)

    def _dataset(self, data: DataConfig) -> Dataset | None:
        """The data set, scanned again only when its settings or folder changed."""
        if not data.folder:
            return None
        key = self._data_key(data)
        if self._scanned is None or self._scanned[0] != key:
            try:
                self._scanned = (key, self._jobs.dataset(data))
            except InputError:
                return None
        return self._scanned[1]

    @staticmethod
    def _data_key(data: DataConfig) -> object:
        return (repr(data), _modified(data.folder))

    def _advised(self, values: Values, config: TrainConfig, dataset: Dataset | None) -> Values:
        """Advice and proposals for the form."""
        found = self.proposals.shown(config, dataset, *self._subject(values, config)) if dataset else None
        return {self.advice: self._advice(config, dataset), **(found or self.proposals.hidden())}

    def _subject(self, values: Values, config: TrainConfig) -> tuple[str, int]:
        """What is trained, and the checkpoint's own resolution."""
        return purpose_of(values.get(self.presets.preset), config), self._jobs.host.native_resolution(
            ModelRequest.of(config)
        )

    def _advice(self, config: TrainConfig, dataset: Dataset | None) -> Markup:
        host = self._jobs.host
        found = advise(
            config, dataset, host.native_resolution(ModelRequest.of(config)), host.is_common_word, host.words
        )
        return views.advice_list(found, calculate(config, dataset) if dataset else None, self._t)


def _modified(path: str | None) -> float:
    try:
        return Path(path).stat().st_mtime if path else 0.0
    except OSError:
        return 0.0
