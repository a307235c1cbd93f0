"""Loaded by the WebUI: puts our tab, REST interface, block weights in prompts and axes of the X/Y/Z plot into it.

Nothing heavy is imported here.
"""

import html
import threading

import gradio as gr
from modules import shared

import lora_trainer.api.guard
import lora_trainer.api.routes
import lora_trainer.jobs.service
import lora_trainer.ui.tab
import lora_trainer.webui.prompt_tags
import lora_trainer.webui.restarts
import lora_trainer.webui.xyz_axes
from lora_trainer.core.i18n import translator
from lora_trainer.hosts.a1111.rebuild import reload
from lora_trainer.hosts.a1111.settings import language
from lora_trainer.webui.callbacks import register


def jobs():
    """The process's line of runs; it outlives "Reload UI", which loads this file again."""
    from lora_trainer.hosts.a1111.host import A1111Host

    return lora_trainer.jobs.service.shared_jobs(A1111Host)


def door():
    """How far the WebUI is open: our REST is never more open than its page and its own API."""
    given = shared.cmd_opts
    return lora_trainer.api.guard.Door(
        auth=given.api_auth or "",
        programs=bool(given.api or given.nowebui),
        origins=tuple(filter(None, (given.cors_allow_origins or "").split(","))),
        origins_pattern=given.cors_allow_origins_regex or "",
    )


def settings():
    """Our section on the Settings page, in the page's language; what the WebUI calls info is HTML (options.py:48)."""
    t = translator(language())
    section = ("lora_train", "LoRA Train")
    choices = {"choices": [(t(choice), choice) for choice in ("generation", "fair", "training")]}
    option = shared.OptionInfo("generation", t("Who goes first"), gr.Radio, choices, section=section)
    option.info(html.escape(t("while a LoRA trains: pictures (generation), in turns (fair), or the training")))
    shared.opts.add_option("lora_train_priority", option)
    blocks = shared.OptionInfo(True, t("Block weights in prompts"), section=section)
    active = t("<lora:name:1:lbw=…>; left to the extension sd-webui-lora-block-weight while that is active")
    blocks.info(html.escape(active))
    shared.opts.add_option("lora_train_block_weights", blocks)


def started(demo, app):
    """Serve REST, take over ``<lora:…>`` tags with block weights, and put the runs that waited into the line again."""
    lora_trainer.api.routes.mount(app, jobs(), door())
    lora_trainer.webui.prompt_tags.install()
    threading.Thread(target=jobs().restore, name="lora-train restore", daemon=True).start()
    reload.end()


for event, callback in (
    ("before_ui", lora_trainer.webui.xyz_axes.install),
    ("before_ui", lambda: lora_trainer.webui.restarts.watch(jobs)),
    ("script_unloaded", reload.begin),
    ("ui_settings", settings),
    ("ui_tabs", lambda: [(lora_trainer.ui.tab.build(jobs()), "LoRA Train", "lora_train")]),
    ("app_started", started),
):
    register(event, callback, __file__)
