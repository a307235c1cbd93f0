"""Loaded by the WebUI: the script *LoRA Train grid* of txt2img."""

import gradio as gr
from modules import scripts, ui_components

from lora_trainer.hosts.a1111_lora import language
from lora_trainer.i18n import translator


class LoraTrainGrid(scripts.Script):
    """Draws a run's epoch × weight grid with the page's own settings."""

    def title(self):
        """In the list of scripts."""
        return "LoRA Train grid"

    def show(self, is_img2img):
        """In txt2img, whose settings it uses."""
        return not is_img2img

    def ui(self, is_img2img):
        """The same choices as in the tab; prompt, size, sampler and seeds are the page's."""
        t = translator(language())
        with gr.Row():
            run = gr.Dropdown(choices=_names(), value=next(iter(_names()), None), label=t("Training run"))
            ui_components.ToolButton("🔄").click(lambda: gr.update(choices=_names()), None, [run], show_progress=False)
            epochs = gr.Textbox("all", label=t("Epochs to compare"), info=t("all, every 2, 1-5, or 3, 6"))
            weights = gr.Textbox("0.3, 0.6, 0.8, 1.0", label=t("Weights"), info=t("LoRA weights to compare."))
        with gr.Row():
            together = gr.Slider(1, 16, 4, step=1, label=t("Pictures drawn together"))
            numbers = gr.Checkbox(True, label=t("Measure numbers"))
        return [run, epochs, weights, together, numbers]

    def run(self, p, run, epochs, weights, together, numbers):
        """Called instead of the usual drawing."""
        from lora_trainer.hosts.a1111 import A1111Host
        from lora_trainer.hosts.a1111_validate import draw
        from lora_trainer.jobs import shared_jobs

        return draw(p, shared_jobs(A1111Host), run, epochs, weights, together, numbers)


def _names():
    from lora_trainer.hosts.a1111_lora import data_folder
    from lora_trainer.runs import Runs

    return Runs(data_folder() / "runs").names()
