"""Step 1 of the page: the name of what is trained, and presets to fill in, keep, give away and take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from lora_trainer.config import presets
from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import LoraTrainError
from lora_trainer.core.i18n import Translate
from lora_trainer.core.plain_json import json_text
from lora_trainer.jobs.service import Jobs
from lora_trainer.ui.html import common
from lora_trainer.ui.panels.common import Values, WholePage
from lora_trainer.ui.widgets.form import Form, dotted
from lora_trainer.ui.widgets.refresh import HIDDEN

_DOWNLOAD = """(made) => {
    if (!made) return [];
    const { name, text } = JSON.parse(made);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/toml" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    return [];
}"""


class PresetsPanel:
    """The widgets, and what happens when they are used; made where gradio is now.

    Args:
        jobs: whose host keeps the presets.
        translate: into the page's language.
        form: that they fill in.
    """

    def __init__(self, jobs: Jobs, translate: Translate, form: Form) -> None:
        self._own = jobs.host.folders.presets
        self._t = translate
        self._form = form
        t = translate
        with gr.Row():
            form.add("name")
            self.preset = gr.Dropdown(
                choices=self.names(),
                label=t("Preset"),
                info=t("Fills in the settings below."),
                elem_id="lora_train_preset",
            )
        with gr.Accordion(t("Save, download or upload presets"), open=False, elem_id="lora_train_presets"):
            with gr.Row():
                self.name = gr.Textbox(max_lines=1, label=t("Preset name"), elem_id="lora_train_preset_name")
                self.save = gr.Button(t("Save preset"), elem_classes="lt-go")
            with gr.Row():
                self.download = gr.Button(t("Download as TOML"), elem_id="lora_train_preset_download")
                self.upload = gr.UploadButton(
                    t("Upload TOML"), file_types=[".toml"], elem_id="lora_train_preset_upload"
                )
                self.defaults = gr.Button(t("Usual settings"), elem_id="lora_train_defaults")
        self.exported = gr.Textbox(elem_id="lora_train_preset_text", elem_classes="lt-hidden", show_label=False)

    def names(self) -> list[str]:
        """Of all presets, the person's own ones too."""
        return presets.names(self._own)

    def connect(self, page: WholePage) -> Sequence[Any]:
        """Wire the widgets; returns the events that fill in the form."""
        widgets, named = [*page.form.widgets.values()], page.fields | {self.name}
        self.save.click(self._save, named, [self.preset, page.feedback], **HIDDEN)
        given = self.download.click(self._export, named, [self.exported, page.feedback], **HIDDEN)
        given.then(None, [self.exported], None, _js=_DOWNLOAD, **HIDDEN)
        taken = [*widgets, self.preset, page.feedback]
        return [
            self.preset.select(self._load, [self.preset], [*widgets, page.feedback], **HIDDEN),
            self.upload.upload(self._import, [self.upload], taken, **HIDDEN),
            self.defaults.click(self._defaults, None, [*widgets, page.feedback], **HIDDEN),
        ]

    def _load(self, name: str) -> list[Any]:
        try:
            values = presets.load(name, self._own)
        except LoraTrainError as error:
            return [*self._form.updates({}), common.error_notice(error, self._t)]
        return [*self._form.updates(values), common.notice(self._t("The preset {name} is filled in.", name=name))]

    def _save(self, values: Values) -> list[Any]:
        name = str(values.get(self.name) or "").strip()
        try:
            config = self._form.config(values)
            path = presets.save(name, config, self._own)
        except LoraTrainError as error:
            return [gr.update(), common.error_notice(error, self._t)]
        message = self._t("Saved as {path}.", path=path)
        return [gr.update(choices=self.names(), value=name), common.notice(message, "good")]

    def _export(self, values: Values) -> list[Any]:
        """The form as a preset's file, for the browser to store."""
        name = str(values.get(self.name) or values.get(self.preset) or "preset").strip()
        try:
            text = presets.to_toml(self._form.config(values))
        except LoraTrainError as error:
            return ["", common.error_notice(error, self._t)]
        return [json_text({"name": f"{name}.toml", "text": text}), ""]

    def _import(self, file: Any) -> list[Any]:
        """Keep a file of settings among the presets, and fill the form in."""
        try:
            name = presets.add(Path(file.name), self._own)
            values = presets.load(name, self._own)
        except LoraTrainError as error:
            return [*self._form.updates({}), gr.update(), common.error_notice(error, self._t)]
        said = self._t("The preset {name} is filled in.", name=name)
        return [*self._form.updates(values), gr.update(choices=self.names(), value=name), common.notice(said)]

    def _defaults(self) -> list[Any]:
        """What belongs to one data set stays."""
        values = {k: v for k, v in dotted(TrainConfig().to_dict()).items() if k not in presets.PERSONAL}
        return [*self._form.updates(values), common.notice(self._t("The usual settings are filled in."))]
