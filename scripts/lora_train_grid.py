"""Loaded by the WebUI: the script *LoRA Train grid* of txt2img."""

import gradio as gr
from modules import scripts, ui_components

from lora_trainer.core.i18n import translator
from lora_trainer.hosts.a1111.settings import language
from lora_trainer.ui.widgets.unsaved import unsaved


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
        with unsaved():
            return _widgets(translator(language()))

    def run(self, p, run, epochs, weights, together, numbers):
        """Called instead of the usual drawing."""
        from lora_trainer.hosts.a1111.host import A1111Host
        from lora_trainer.jobs.service import shared_jobs
        from lora_trainer.webui.grid_script import draw

        return draw(p, shared_jobs(A1111Host), run, epochs, weights, together, numbers)


def _widgets(t):
    with gr.Row():
        run = gr.Dropdown(choices=[], label=t("Run of the grid"), elem_id="lora_train_script_run")
        ui_components.ToolButton("🔄").click(lambda: gr.update(choices=_names()), None, [run], show_progress=False)
        epochs = gr.Textbox("all", label=t("Epochs to compare"), info=t("all, every 2, 1-5, or 3, 6"))
        weights = gr.Textbox("0.3, 0.6, 0.8, 1.0", label=t("Weights"), info=t("LoRA weights to compare."))
    with gr.Row():
        together = gr.Slider(1, 16, 4, step=1, label=t("Pictures drawn together"))
        numbers = gr.Checkbox(True, label=t("Measure numbers"))
    # chosen when the script is seen (lora_train_poll.js): one chosen here would be the newest at the WebUI's start
    newest = gr.Button("", elem_id="lora_train_script_newest", elem_classes="lt-hidden")
    newest.click(_newest, None, [run], queue=False, show_progress="hidden")
    return [run, epochs, weights, together, numbers]


def _newest():
    names = _names()
    return gr.update(choices=names, value=names[0] if names else None)


def _names():
    from lora_trainer.hosts.a1111.settings import data_folder
    from lora_trainer.runs.store import Runs

    return Runs(data_folder() / "runs").names()
