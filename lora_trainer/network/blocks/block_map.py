"""Block map: which layer of the UNet or text encoders a LoRA's module belongs to.

Names and orders are those of hako-mikan/sd-webui-lora-block-weight (b403cb7), in LDM numbers: down block i, layer j is
IN(1+3i+j), up block i, layer j is OUT(3i+j). Module names are understood in kohya's spelling (diffusers names for SD1,
LDM names for SDXL, LyCORIS alike) and in the WebUI's own, so that a preview and a file tool mean the same layers.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from lora_trainer.core.errors import InputError
from lora_trainer.model.block_lists import ALL_BLOCKS, BASE, SD, SDXL, TEXT_BLOCKS, Architecture
from lora_trainer.model.ldm_names import unet_to_ldm

_UNET_PREFIXES = ("lora_unet_", "oft_unet_", "diffusion_model_")
_TEXT_PREFIXES = {
    **{f"{kind}_te{number}_": place for kind in ("lora", "oft") for number, place in (("", 0), ("1", 0), ("2", 1))},
    "0_transformer_": 0,
    "transformer_": 0,
    "model_transformer_": 0,
    "1_model_transformer_": 1,
    "1_model_": 1,
}
_RESBLOCK = {"self_attn": "attn", "mlp_fc1": "mlp_c_fc", "mlp_fc2": "mlp_c_proj"}
_HF_TEXT = re.compile(r"text_model_encoder_layers_(\d+)_(.+)")
_OPENCLIP_TEXT = re.compile(r"resblocks_(\d+)_(.+)")
_DEEP_TRANSFORMER = re.compile(r"_transformer_blocks_[1-9]")

_ONLY_SD = re.compile(
    r"diffusion_model_(input_blocks_[12]_1_|(input|output)_blocks_(9|10|11)_|output_blocks_[678]_1_|.*_transformer_blocks_0_)"
)
"""Layers that SD1 and SD2 have and SDXL has not, in LDM's names; its transformers are never alone, but 2 or 10 deep."""


def ldm_name(key: str, architecture: Architecture = SD) -> str:
    """The module's name in the WebUI's spelling: ``diffusion_model_input_blocks_1_1_proj_in``, ``transformer_text_…``.

    Unknown names come back as they are.

    Args:
        key: in diffusers' or LDM's spelling.
        architecture: of the model; one layer has another place in SDXL.
    """
    for prefix in _UNET_PREFIXES:
        if key.startswith(prefix):
            rest = key[len(prefix) :]
            with contextlib.suppress(KeyError):  # it is LDM's name already, or unknown
                rest = unet_to_ldm(rest, architecture.attention_up, dot="_")
            return "diffusion_model_" + rest
    text = _text_part(key)
    return f"{'1_' if text[0] else ''}transformer_{text[1]}" if text else key


@lru_cache(maxsize=8192)
def block_of(key: str) -> str | None:
    """``BASE``, ``IN00`` … ``OUT11``, or ``None`` for what belongs to no block (``out_2``, ``time_embed``, …)."""
    text = _text_part(key)
    if text:
        return BASE if "encoder" in text[1] or "resblocks" in text[1] else None
    return _unet_block(ldm_name(key))


def text_encoder_of(key: str) -> str | None:
    """``TE1``, ``TE2``, or ``None`` for the UNet."""
    text = _text_part(key)
    return TEXT_BLOCKS[text[0]] if text else None


@lru_cache(maxsize=8192)
def spellings(key: str) -> str:
    """What the element names of ``lbwe=`` are looked for in; the same for a file's names and the WebUI's."""
    text = _text_part(key)
    if not text:
        return ldm_name(key)
    if match := _HF_TEXT.fullmatch(text[1]):
        number, suffix = match[1], match[2]
    elif match := _OPENCLIP_TEXT.fullmatch(text[1]):
        number, suffix = match[1], match[2]
        for ours, theirs in _RESBLOCK.items():
            suffix = re.sub(rf"^{theirs}(?=_|$)", ours, suffix)
    else:
        return ldm_name(key)
    openclip = suffix
    for ours, theirs in _RESBLOCK.items():
        openclip = openclip.replace(ours, theirs)
    return f"transformer_text_model_encoder_layers_{number}_{suffix} model_transformer_resblocks_{number}_{openclip}"


def architecture_of(keys: Iterable[str], metadata: Mapping[str, str] | None = None) -> Architecture:
    """The family of a LoRA, from its metadata, else from its names.

    Only SDXL has ``te2`` and deep transformers, only SD1 and SD2 have lone ones and attention in the first blocks.
    Where a file has neither, ``lora_te1_`` is what kohya calls SDXL's first text encoder.

    Raises:
        InputError: none of the names is one of Stable Diffusion's.
    """
    names = list(keys)
    if not any(block_of(key) for key in names):
        raise InputError(
            "No module of this file belongs to a block of SD1, SD2 or SDXL (first: {first}); use a LoRA of these.",
            first=min(names, default="the file is empty"),
        )
    told = _told(metadata or {})
    if told is not None:
        return told
    if any(text_encoder_of(key) == "TE2" or _DEEP_TRANSFORMER.search(key) for key in names):
        return SDXL
    if any(_ONLY_SD.match(ldm_name(key)) for key in names):
        return SD
    return SDXL if any(key.startswith("lora_te1_") for key in names) else SD


def _told(metadata: Mapping[str, str]) -> Architecture | None:
    """What the metadata says, in kohya's entry or in Stability's."""
    base = metadata.get("ss_base_model_version", "")
    if base.startswith("sd"):
        return SDXL if base.startswith("sdxl") else SD
    spec = metadata.get("modelspec.architecture", "")
    if spec.startswith("stable-diffusion-xl"):
        return SDXL
    return SD if re.match(r"stable-diffusion-v[12]\b", spec) else None


def _text_part(key: str) -> tuple[int, str] | None:
    """Number of the text encoder and the name within it."""
    for prefix, number in _TEXT_PREFIXES.items():
        if key.startswith(prefix):
            return number, key[len(prefix) :]
    return None


def _unet_block(name: str) -> str | None:
    if name.startswith("diffusion_model_middle_block_"):
        return "M00"
    match = re.match(r"diffusion_model_(input|output)_blocks_(\d+)_", name)
    if not match:
        return None
    block = f"{'IN' if match[1] == 'input' else 'OUT'}{int(match[2]):02d}"
    return block if block in ALL_BLOCKS else None
