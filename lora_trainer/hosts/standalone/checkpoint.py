"""A checkpoint file and its VAE, read into memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.core.errors import InputError, RunError
from lora_trainer.hosts.standalone.tokenizer import clip_folder, load_tokenizer, text_config
from lora_trainer.model.contents import unreadable
from lora_trainer.model.families import CheckpointInfo, family_of
from lora_trainer.model.family import UNET, ModelFamily
from lora_trainer.model.loaded import LoadedModel
from lora_trainer.model.sd1 import SD1

if TYPE_CHECKING:
    import torch

VAE_PREFIX = "first_stage_model."


class Checkpoint:
    """A checkpoint file in memory: parameters under LDM names, tokenizer and VAE."""

    def __init__(self, path: Path) -> None:
        import torch
        from safetensors.torch import load_file
        from torch import nn

        from lora_trainer.model.fingerprint import hash_tensors
        from lora_trainer.model.schedule import ldm_alphas

        self.path = path
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        state = load_file(path)
        family = family_of(state, name=path)
        self.config = checkpoint_config(path, family)
        self.unet = _parameters(state, family.unet.stored, self.device, dtype, nn.Parameter)
        self.texts = [_parameters(state, part.stored, self.device, dtype, nn.Parameter) for part in family.encoders]
        self.vae = _load_vae(state, self.config, self.device)
        self.vae_key = hash_tensors(p for n, p in self.vae.named_parameters() if n.startswith(("encoder", "quant")))
        self.alphas_cumprod = ldm_alphas(self.config)
        self.text_folder = clip_folder(path, self.config)
        self.tokenizer = load_tokenizer(self.text_folder)
        self.text_configs = [
            text_config(self.text_folder, part, text) for part, text in zip(family.encoders, self.texts, strict=True)
        ]
        self.scale = float(self.config["model"]["params"].get("scale_factor", family.latent.scale))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, 3, H, W) in −1…1 → the posterior's mean times the scale factor, fp32."""
        import torch

        with torch.no_grad():
            return self.vae.encode(pixels.to(self.device)).latent_dist.mean * self.scale

    def view(self, info: CheckpointInfo, clip_skip: int) -> LoadedModel:
        """A fresh view of the same parameters."""
        from lora_trainer.model.text import TextEncoder, TextEncoders
        from lora_trainer.model.view import text_view, unet_view

        return LoadedModel(
            info=info,
            unet=unet_view(self.unet, self.config),
            text=TextEncoders(
                TextEncoder(text_view(text, config), self.tokenizer, clip_skip)
                for text, config in zip(self.texts, self.text_configs, strict=True)
            ),
            alphas_cumprod=self.alphas_cumprod,
            encode=self.encode,
            vae_key=self.vae_key,
            device=self.device,
            clip_skip=clip_skip,
        )


# ------------------------------------------------------------------ reading the file
def checkpoint_config(path: Path, family: ModelFamily = SD1) -> dict[str, Any]:
    """The yaml beside the checkpoint, or the family's own.

    Raises:
        InputError: the yaml cannot be read.
    """
    import yaml

    beside = path.with_suffix(".yaml")
    if not beside.is_file():
        return dict(family.config)
    try:
        config = yaml.safe_load(beside.read_text(encoding="utf-8-sig"))
        config["model"]["params"]["unet_config"]["params"]["model_channels"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(
            "checkpoint: {path} beside the checkpoint cannot be used: {error}.",
            field="checkpoint",
            path=beside,
            error=error,
        ) from error
    return config


def read_header(path: Path) -> tuple[list[str], dict[str, list[int]]]:
    """Names and shapes of a safetensors file, without its weights."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            name = UNET.stored + "input_blocks.0.0.weight"
            shapes = {name: file.get_slice(name).get_shape()} if name in keys else {}
            return keys, shapes
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(path, error, "checkpoint") from error


def _parameters(
    state: Mapping[str, torch.Tensor], prefix: str, device: torch.device, dtype: torch.dtype, kind: Any
) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): kind(value.to(device, dtype), requires_grad=False)
        for name, value in state.items()
        if name.startswith(prefix) and value.is_floating_point() and not name.endswith("position_ids")
    }


def _load_vae(state: Mapping[str, torch.Tensor], config: Mapping[str, Any], device: torch.device) -> Any:
    """The checkpoint's VAE in fp32."""
    import torch
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint, create_vae_diffusers_config_from_ldm

    part = {name: value.float() for name, value in state.items() if name.startswith(VAE_PREFIX)}
    try:
        vae_config = create_vae_diffusers_config_from_ldm(config, part)
        with torch.device("meta"):
            vae = AutoencoderKL(**vae_config)
        vae.load_state_dict(convert_ldm_vae_checkpoint(part, vae_config), assign=True)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise RunError(
            "The checkpoint's weights do not fit its .yaml: {error}.",
            error=f"{type(error).__name__} {error}".splitlines()[-1].strip()[:200],
        ) from error
    return vae.to(device).eval().requires_grad_(False)


_hashes: dict[tuple[str, int, int], str] = {}


def cached_hash(path: Path) -> str:
    """SHA-256 of a file, computed once as long as it does not change."""
    from lora_trainer.core.files import file_hash

    stat = path.stat()
    key = (str(path), stat.st_mtime_ns, stat.st_size)
    if key not in _hashes:
        _hashes[key] = file_hash(path)
    return _hashes[key]
