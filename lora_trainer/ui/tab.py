"""The LoRA Train tab: seven steps on one page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.context import Context

from lora_trainer.core.i18n import Translate, translator
from lora_trainer.jobs.health import health_report
from lora_trainer.jobs.service import Jobs
from lora_trainer.ui.panels.blocks import BlocksPanel
from lora_trainer.ui.panels.common import Panel, WholePage, shown_run, step
from lora_trainer.ui.panels.follow import Follower
from lora_trainer.ui.panels.lora_files import ToolsPanel
from lora_trainer.ui.panels.settings import SettingsPanel
from lora_trainer.ui.panels.stacks import StacksPanel
from lora_trainer.ui.panels.training import TrainingPanel
from lora_trainer.ui.panels.validation import ValidatePanel
from lora_trainer.ui.widgets.form import Form
from lora_trainer.ui.widgets.keep import Keeper
from lora_trainer.ui.widgets.refresh import Part, Watch, together
from lora_trainer.ui.widgets.unsaved import unsaved


def build(jobs: Jobs) -> gr.Blocks:
    """The tab for a host's jobs."""
    return Tab(jobs).blocks


class Tab:
    """The panels, made, connected, and watched by one event."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._t = translator(jobs.host.language())
        self.form = Form(self._t, jobs.host.samplers())
        with gr.Blocks(analytics_enabled=False) as self.blocks, unsaved():
            with gr.Column(elem_id="lora_train"):
                with gr.Row(elem_id="lora_train_columns", equal_height=False):
                    with gr.Column(scale=6, min_width=320, elem_id="lora_train_form"):
                        self.settings = SettingsPanel(jobs, self._t, self.form)
                    with gr.Column(scale=5, min_width=320, elem_id="lora_train_side"):
                        self.training = TrainingPanel(jobs, self._t, self.form)
                self._build_validation()
            self._connect()

    # -------------------------------------------------------------- layout
    def _build_validation(self) -> None:
        with step(7, "Validation", self._t), gr.Tabs(elem_id="lora_train_validation"):
            self.validate = self._panel("Epoch × weight", ValidatePanel)
            self.block_weights = self._panel("Block weights", BlocksPanel)
            self.stacks = self._panel("Stacks", StacksPanel)
            self.tools = self._panel("File tools", ToolsPanel)
        self.poll = gr.Button("poll", elem_id="lora_train_poll", elem_classes="lt-hidden")
        self.opened = gr.Button("", elem_id="lora_train_opened", elem_classes="lt-hidden")
        self.about = gr.State({})
        self.follower = Follower(self._jobs, self.tools, self.stacks)
        self.keeper = Keeper(self._remembered(), {"preset": self.settings.presets.names})

    def _panel(self, title: str, panel: Callable[[Jobs, Translate], Any]) -> Any:
        with gr.TabItem(self._t(title)):
            return panel(self._jobs, self._t)

    def _remembered(self) -> dict[str, Any]:
        """What a reload keeps: whatever a person types or chooses, but for choices that follow the runs and files."""
        kinds = (gr.Textbox, gr.Number, gr.Checkbox, gr.Dropdown)
        follows = ("_run", "_file", "_known", "_add", "_request")
        made = [each for each in Context.root_block.blocks.values() if isinstance(each, kinds)]
        ours = [
            each for each in made if (each.elem_id or "").startswith("lora_train_") and each.interactive is not False
        ]
        return {
            each.elem_id.removeprefix("lora_train_"): each
            for each in ours
            if not each.elem_id.endswith(follows) and "lt-hidden" not in (each.elem_classes or [])
        }

    # -------------------------------------------------------------- events
    def _connect(self) -> None:
        run = self.training.run
        of_run: list[Panel] = [self.settings, self.training, self.validate]
        panels: list[Panel] = [*of_run, self.block_weights, self.stacks, self.tools, self.follower]
        widgets = {name: widget for panel in of_run for name, widget in panel.widgets.items()}
        self.watch = Watch([run], widgets, self.parts)
        preset, feedback = self.settings.presets.preset, self.training.feedback
        page = WholePage(self.form, preset, run, feedback, self.about, self.watch.refresh)
        filled = [event for panel in panels for event in panel.connect(page)]
        for event in (*filled, self.keeper.connect(self.opened)):
            self.settings.advise(event.then)
        chosen = together([self.block_weights.following(run), self.training.run_list.changed]).on(run.change)
        self.block_weights.watch.refresh.on(chosen.then)
        watches = (self.watch, self.block_weights.watch, self.stacks.watch, self.tools.watch, self.follower.watch)
        together([watch.refresh for watch in watches]).on(self.poll.click)

    def parts(self, chosen: str | None) -> dict[str, Part]:
        """What the panels show of the chosen run and of the host, by the names of their widgets."""
        names = self._jobs.run_names()
        run = shown_run(self._jobs, chosen, names)
        health = health_report(self._jobs)
        return {
            **self.settings.parts(health),
            **self.training.parts(run, names, chosen or "", health["checkpoint"]),
            **self.validate.parts(run),
        }
