"""Functions that the WebUI calls (script_callbacks.py:127), in the order in which they were added."""

import dataclasses
from typing import Any

_EVENTS = ("app_started", "before_ui", "cfg_denoiser", "model_loaded", "script_unloaded", "ui_settings", "ui_tabs")
callback_map = {f"callbacks_{event}": [] for event in _EVENTS}


@dataclasses.dataclass
class ScriptCallback:
    script: str
    callback: Any
    name: str = "unnamed"


class CFGDenoiserParams:
    def __init__(
        self, x, image_cond, sigma, sampling_step, total_sampling_steps, text_cond, text_uncond, denoiser=None
    ):
        self.x, self.image_cond, self.sigma, self.sampling_step = x, image_cond, sigma, sampling_step
        self.total_sampling_steps, self.text_cond, self.text_uncond = total_sampling_steps, text_cond, text_uncond
        self.denoiser = denoiser


def add_callback(callbacks, fun, *, name=None, category="unknown", filename=None):
    callbacks.append(ScriptCallback(filename, fun, name or category))


def clear_callbacks():
    for callbacks in callback_map.values():
        callbacks.clear()


def _call(event, *args):
    return [each.callback(*args) for each in callback_map[f"callbacks_{event}"]]


def app_started_callback(demo, app):
    _call("app_started", demo, app)


def before_ui_callback():
    _call("before_ui")


def cfg_denoiser_callback(params):
    _call("cfg_denoiser", params)


def model_loaded_callback(sd_model):
    _call("model_loaded", sd_model)


def script_unloaded_callback():
    _call("script_unloaded")


def ui_settings_callback():
    _call("ui_settings")


def ui_tabs_callback():
    return [tab for tabs in _call("ui_tabs") for tab in tabs]


def on_ui_tabs(callback, *, name=None):
    add_callback(callback_map["callbacks_ui_tabs"], callback, name=name, category="ui_tabs")
