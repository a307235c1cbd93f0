"""The block panel in a page of its own, as the tab holds it."""

from __future__ import annotations

from types import SimpleNamespace

import gradio as gr

from lora_trainer.core.i18n import translator
from lora_trainer.jobs.service import Jobs
from lora_trainer.ui import standalone
from lora_trainer.ui.panels.blocks import BlocksPanel


def blocks_page(jobs: Jobs) -> tuple[gr.Blocks, BlocksPanel]:
    """The page and its panel."""
    with gr.Blocks(css=standalone.style(), analytics_enabled=False) as page:
        with gr.Row(elem_id="lora_train", equal_height=False):
            with gr.Column(scale=6, min_width=320):
                gr.Markdown("Settings stand here.")
            with gr.Column(scale=5, min_width=320), gr.Accordion("8", open=True):
                panel = BlocksPanel(jobs, translator(jobs.host.language()))
        poll = gr.Button("poll", elem_id="lora_train_poll", elem_classes="lt-hidden")
        panel.connect(SimpleNamespace())  # it needs nothing of the other panels
        panel.watch.refresh.on(poll.click)
        page.load(None, None, None, _js=standalone.scripts())
    return page, panel
