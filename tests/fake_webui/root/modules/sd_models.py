"""Checkpoints: those that are there, the loaded one, and loading another (sd_models.py)."""

import hashlib
import logging
import os
import threading
from pathlib import Path

from modules import devices, paths, script_callbacks, sd_hijack, shared
from tests.fake_webui import ldm

model_path = os.path.join(paths.data_path, "models", "Stable-diffusion")
checkpoints_list = {}
checkpoint_aliases = {}


def _sha256(filename):
    if Path(filename).suffix == ".safetensors":
        return ldm.file_of(filename)[0]
    return hashlib.sha256(Path(filename).read_bytes()).hexdigest()


class CheckpointInfo:
    def __init__(self, filename):
        self.filename, self.name = str(filename), os.path.basename(filename)
        self.name_for_extra = os.path.splitext(self.name)[0]
        self.sha256 = _sha256(filename)
        self.shorthash, self.hash = self.sha256[:10], self.sha256[:8]
        self.title = f"{self.name} [{self.shorthash}]"
        self.ids = [self.hash, self.title, self.name, self.name_for_extra, self.shorthash, self.sha256]

    def register(self):
        checkpoints_list[self.title] = self
        checkpoint_aliases.update(dict.fromkeys(self.ids, self))


def list_models():
    checkpoints_list.clear()
    checkpoint_aliases.clear()
    for path in sorted(Path(model_path).iterdir()):
        if path.suffix in (".safetensors", ".ckpt"):
            CheckpointInfo(path).register()


def get_closet_checkpoint_match(search_string):
    if not search_string:
        return None
    found = sorted((info for info in checkpoints_list.values() if search_string in info.title), key=lambda x: x.title)
    return checkpoint_aliases.get(search_string) or (found[0] if found else None)


def select_checkpoint():
    """The chosen one, or the first."""
    return checkpoint_aliases.get(shared.opts.sd_model_checkpoint) or next(iter(checkpoints_list.values()))


class SdModelData:
    def __init__(self):
        self.sd_model = None
        self.loaded_sd_models = []
        self.was_loaded_at_least_once = False
        self.lock = threading.Lock()

    def get_sd_model(self):
        if not self.was_loaded_at_least_once:
            with self.lock:
                try:
                    if self.sd_model is None:
                        load_model()
                except Exception:
                    logging.exception("loading stable diffusion model")
        return self.sd_model

    def set_sd_model(self, v, already_loaded=False):
        self.sd_model = v


model_data = SdModelData()


def load_model_weights(model, checkpoint_info, state_dict, timer):
    """Into the parameters that are there (line 410)."""
    model.load_state_dict(state_dict)
    model.alphas_cumprod_original = model.alphas_cumprod
    model.sd_model_hash = checkpoint_info.shorthash
    model.sd_model_checkpoint = checkpoint_info.filename
    model.sd_checkpoint_info = checkpoint_info


def _read(checkpoint_info):
    return ldm.file_of(checkpoint_info.filename)[1]


def load_model(checkpoint_info=None, already_loaded_state_dict=None):
    checkpoint_info = checkpoint_info or select_checkpoint()
    used = os.path.splitext(checkpoint_info.filename)[0] + ".yaml"
    model = ldm.latent_diffusion(Path(used).read_text(encoding="utf-8"))
    model.used_config = used
    load_model_weights(model, checkpoint_info, _read(checkpoint_info), None)
    sd_hijack.model_hijack.hijack(model)
    model.eval()
    model_data.set_sd_model(model)
    model_data.was_loaded_at_least_once = True
    script_callbacks.model_loaded_callback(model)
    return model


def reload_model_weights(sd_model=None, info=None, forced_reload=False):
    """Another checkpoint of the same shape is loaded into the same parameters (line 951)."""
    checkpoint_info = info or select_checkpoint()
    sd_model = sd_model or model_data.sd_model
    if sd_model is None:
        return load_model(checkpoint_info)
    if sd_model.sd_model_checkpoint == checkpoint_info.filename and not forced_reload:
        return sd_model
    state_dict = _read(checkpoint_info)
    sd_hijack.model_hijack.undo_hijack(sd_model)
    try:
        load_model_weights(sd_model, checkpoint_info, state_dict, None)
    finally:
        sd_hijack.model_hijack.hijack(sd_model)
        script_callbacks.model_loaded_callback(sd_model)
    model_data.set_sd_model(sd_model)
    return sd_model


def unload_model_weights(sd_model=None, info=None):
    (sd_model or model_data.sd_model).to(devices.cpu)
