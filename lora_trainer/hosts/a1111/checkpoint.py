"""The checkpoint that the WebUI has loaded, or that is chosen to be."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from modules import devices, sd_hijack, sd_models, sd_vae, shared
from safetensors import SafetensorError, safe_open

from lora_trainer.core.errors import InputError, RunError
from lora_trainer.hosts.base import ModelRequest
from lora_trainer.model.families import CheckpointInfo, family_of
from lora_trainer.model.family import UNET
from lora_trainer.model.loaded import LoadedModel
from lora_trainer.model.precision import without_autocast

log = logging.getLogger(__name__)


# ------------------------------------------------------------------ what is loaded
def loaded_model() -> Any:
    """The loaded checkpoint; one that was never loaded is loaded now.

    Raises:
        InputError: there is none.
    """
    model = shared.sd_model if not sd_models.model_data.was_loaded_at_least_once else sd_models.model_data.sd_model
    if model is None or next(model.parameters()).is_meta:
        raise InputError("No checkpoint is loaded; choose one at the top of the page.", field="checkpoint")
    if is_put_away(model):
        raise InputError("The checkpoint is unloaded; load it again in the WebUI's settings.", field="checkpoint")
    return model


def chosen_info() -> Any:
    """The WebUI's entry of the checkpoint that is chosen; ``None`` when it has none of that name any more."""
    return sd_models.checkpoint_aliases.get(shared.opts.sd_model_checkpoint)


def load_chosen() -> None:
    """Load the checkpoint that is chosen at the top of the page, as the WebUI does before its next picture.

    A picture whose settings name another checkpoint (``override_settings``) leaves that one in memory
    (processing.py:853). Call it with the host's lock held.

    Raises:
        RunError: it cannot be loaded.
    """
    model, chosen = sd_models.model_data.sd_model, chosen_info()
    if model is None or chosen is None or model.sd_checkpoint_info.filename == chosen.filename:
        return
    try:
        sd_models.reload_model_weights(info=chosen)
    except Exception as error:
        log.exception("Loading %s failed", chosen.filename)
        raise RunError("The WebUI could not load {path}; its console tells why.", path=chosen.filename) from error


def info_of_file(chosen: Any) -> CheckpointInfo | None:
    """What a checkpoint is that will be loaded for the next picture; ``None`` when its file does not tell.

    What it predicts, and its VAE, are known once it is loaded.
    """
    try:
        with safe_open(chosen.filename, framework="pt") as file:
            keys = list(file.keys())
            first = UNET.stored + "input_blocks.0.0.weight"
            channels = file.get_slice(first).get_shape()[1] if first in keys else None
    except (SafetensorError, OSError, ValueError):
        return None  # a .ckpt, or gone
    name = Path(chosen.filename).name
    family = family_of(keys, channels, name=name)
    return CheckpointInfo(name, chosen.sha256 or "", chosen.hash or "", family, family.prediction)


def is_put_away(sd_model: Any) -> bool:
    """Whether the WebUI's “unload” has moved it off the device (sd_models.py:738)."""
    if getattr(sd_model, "lowvram", False):
        return False  # its parts come and go
    return next(sd_model.model.parameters()).device.type != devices.device.type


def checkpoint_info(sd_model: Any) -> CheckpointInfo:
    """What the loaded checkpoint is; raises :class:`InputError` for kinds that cannot be trained."""
    require_trainable(sd_model)
    keys = [UNET.stored + name for name, _ in sd_model.model.diffusion_model.named_parameters()]
    keys += [_text_marker(sd_model)]
    channels = getattr(sd_model.model.diffusion_model, "in_channels", None)
    info = sd_model.sd_checkpoint_info
    family = family_of(keys, channels, name=Path(info.filename).name)
    prediction = "v_prediction" if getattr(sd_model, "parameterization", "eps") == "v" else "epsilon"
    return CheckpointInfo(
        Path(info.filename).name,
        info.sha256 or "",
        info.hash or "",
        family,
        prediction,
        sd_vae.get_loaded_vae_name() or "",
        fingerprint(sd_model),
    )


_fingerprints: weakref.WeakKeyDictionary[Any, tuple[tuple[object, ...], str]] = weakref.WeakKeyDictionary()


def fingerprint(sd_model: Any) -> str:
    """Of the loaded weights: there is no other way to tell them with ``--no-hashing``, nor when a file was replaced.

    Computed again only when weights were changed in place, as by another checkpoint; of those that a LoRA changes for
    a picture, the host's own copies from before count.
    """
    from lora_trainer.model.fingerprint import sampled_fingerprint

    parts = {"unet": sd_model.model.diffusion_model, "text": sd_model.cond_stage_model}
    named = {f"{part}.{n}": p for part, module in parts.items() for n, p in module.named_parameters()}
    mark = (sd_model.sd_checkpoint_info.filename, len(named), sum(map(_changes, named.values())))
    known = _fingerprints.get(sd_model)
    if known is None or known[0] != mark:
        kept = _kept_weights(parts.values())
        # the host wraps the token embedding, and unwraps it now and then (sd_hijack.py:222)
        clean = {name.replace("wrapped.", ""): kept.get(id(p), p) for name, p in named.items()}
        _fingerprints[sd_model] = known = mark, sampled_fingerprint(clean)
    return known[1]


def _changes(parameter: torch.Tensor) -> int:
    """How often it was changed in place."""
    try:
        return parameter._version
    except RuntimeError:  # made in inference mode, which counts nothing
        return 0


def _kept_weights(modules: Iterable[torch.nn.Module]) -> dict[int, torch.Tensor]:
    """By the id of a parameter, the host's copy of it from before it put a LoRA in (networks.py:425)."""
    found: dict[int, torch.Tensor] = {}
    for module in (each for part in modules for each in part.modules()):
        weights, bias = (getattr(module, f"network_{name}_backup", None) for name in ("weights", "bias"))
        last = getattr(module, "out_proj", module) if isinstance(module, torch.nn.MultiheadAttention) else module
        if isinstance(weights, tuple):
            found[id(module.in_proj_weight)], found[id(last.weight)] = weights
        elif weights is not None:
            found[id(last.weight)] = weights
        if isinstance(bias, torch.Tensor):
            found[id(last.bias)] = bias
    return found


def config_of(sd_model: Any) -> dict[str, Any]:
    """The YAML that the WebUI made the model from."""
    return yaml.safe_load(Path(sd_model.used_config).read_text(encoding="utf-8"))


def _text_marker(sd_model: Any) -> str:
    """A key that tells the family by its text encoder (the host's own flags, sd_models.py:379)."""
    if getattr(sd_model, "is_sd3", False):
        return "model.diffusion_model.x_embedder"
    if getattr(sd_model, "is_sdxl", False):
        return "conditioner.embedders.1"
    if getattr(sd_model, "is_sd2", False):
        return "cond_stage_model.model."
    transformer = getattr(getattr(sd_model.cond_stage_model, "wrapped", None), "transformer", None)
    return "cond_stage_model.transformer.text_model" if hasattr(transformer, "text_model") else ""


def some_weights(sd_model: Any) -> list[torch.Tensor]:
    """A weight of every kind that the host stores in a form of its own (sd_models.py:461, 502)."""
    unet = sd_model.model.diffusion_model
    text = getattr(sd_model, "cond_stage_model", None) or getattr(sd_model, "conditioner", None)
    found = [next((p for p in unet.parameters() if p.dim() == size), None) for size in (2, 4)]
    found += [next((p for p in text.parameters() if p.dim() == 2), None) if text is not None else None]
    return [weight for weight in found if weight is not None]


def is_fp8(sd_model: Any) -> bool:
    """Whether the WebUI keeps weights in 8 bits."""
    return any("float8" in str(weight.dtype) for weight in some_weights(sd_model))


def require_trainable(sd_model: Any) -> None:
    """Raises :class:`InputError` for weights in a number format that nothing can be computed in."""
    if is_fp8(sd_model):
        raise InputError(
            "The checkpoint is loaded in FP8, which cannot be trained or measured; set Settings → Optimizations → FP8 "
            "weight to Disable.",
            field="checkpoint",
        )


def native_view(sd_model: Any, request: ModelRequest) -> LoadedModel:
    """The model as training sees it; its weights are the WebUI's own."""
    from lora_trainer.model.schedule import unrounded
    from lora_trainer.model.text import TextEncoder, TextEncoders
    from lora_trainer.model.view import text_view, unet_view

    info = checkpoint_info(sd_model)
    unet_config = config_of(sd_model)
    embedder = sd_model.cond_stage_model.wrapped
    # the host wraps the token embedding to insert textual inversions (sd_hijack.py:222)
    text = {name.replace(".wrapped.", "."): p for name, p in embedder.transformer.named_parameters()}
    clip_skip = request.clip_skip or int(shared.opts.CLIP_stop_at_last_layers)
    encoder = TextEncoder(
        text_view(text, embedder.transformer.config),
        embedder.tokenizer,
        clip_skip,
        int(shared.opts.comma_padding_backtrack),
    )
    schedule = getattr(sd_model, "alphas_cumprod_original", sd_model.alphas_cumprod)
    vae = sd_model.first_stage_model
    return LoadedModel(
        info=info,
        unet=unet_view(dict(sd_model.model.diffusion_model.named_parameters()), unet_config),
        text=TextEncoders([encoder]),
        # FP8 weights leave it in half precision, also when they are off again (sd_models.py:416)
        alphas_cumprod=unrounded(schedule.detach().float().cpu(), unet_config),
        encode=lambda pixels: encode_pixels(sd_model, pixels),
        vae_key=_vae_key(vae),
        device=devices.device,
        clip_skip=clip_skip,
    )


def _vae_key(vae: Any) -> str:
    """The weights themselves tell the VAE, whether it came with the checkpoint or from a file."""
    from lora_trainer.model.fingerprint import hash_tensors

    return hash_tensors(p for name, p in vae.named_parameters() if name.startswith(("encoder", "quant")))


def encode_pixels(sd_model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """(1, 3, H, W) in −1…1 → the posterior's mean times the scale factor, in fp32.

    In half precision the encoder can overflow, and only the decoder has the host's fallback.
    """
    vae = sd_model.first_stage_model
    dtype = next(vae.parameters()).dtype
    sd_hijack.model_hijack.apply_circular(False)
    try:
        vae.to(torch.float32)
        with torch.no_grad(), without_autocast(devices.device):
            return sd_model.scale_factor * vae.encode(pixels.to(devices.device, torch.float32)).mode()
    finally:
        vae.to(dtype)
