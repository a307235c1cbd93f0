"""Keeping, giving away and taking presets."""

from __future__ import annotations

import gradio as gr

from lora_trainer.core.i18n import Translate


class PresetBox:
    """The widgets, made where gradio is now.

    Args:
        translate: into the page's language.
    """

    def __init__(self, translate: Translate) -> None:
        t = translate
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


DOWNLOAD = """(made) => {
    if (!made) return [];
    const { name, text } = JSON.parse(made);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/toml" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    return [];
}"""
