"""Files made from other files: where they may be written, in which precision, and what their metadata says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lora_trainer import __version__
from lora_trainer.core.errors import InputError
from lora_trainer.core.files import free_path
from lora_trainer.core.plain_json import json_text, parse_json
from lora_trainer.model.block_lists import SDXL
from lora_trainer.network.blocks.block_map import architecture_of
from lora_trainer.network.lora_file import DTYPES, write_tensors

RECORD = "lora_train_made_from"
"""Metadata entry: JSON that says what a file was made from, and how."""
_LATE_TEXT = re.compile(r"lora_te_text_model_encoder_layers_(1[2-9]|2\d)_")
_STALE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "modelspec.thumbnail")


def check_output(path: Path, sources: Iterable[Path] = ()) -> Path:
    """The path, if a new file may be written there.

    Raises:
        InputError: it is one of the sources, exists, or is no ``.safetensors``; the sentence names a free one.
    """
    if path.suffix.lower() != ".safetensors":
        raise InputError("{path}: the output must be named .safetensors.", path=path)
    try:
        taken = any(path.resolve() == source.resolve() for source in sources) or path.exists() or path.is_symlink()
    except (OSError, ValueError, RuntimeError) as error:  # too long, no file name, or (RuntimeError) a circle of links
        raise InputError("{path} cannot be the name of a file: {error}.", path=path, error=error) from error
    if taken:
        raise InputError("{path} exists and is never overwritten; {free} is free.", path=path, free=free_path(path))
    return path


def widest_precision(tensors: Iterable[torch.Tensor]) -> str:
    """The precision that holds all these weights: theirs, or fp32 when they differ."""
    kinds = {tensor.dtype for tensor in tensors if tensor.is_floating_point() and tensor.ndim > 1}
    for name, dtype in DTYPES.items():
        if kinds == {dtype}:
            return name
    return "fp32"


def in_precision(parts: Mapping[str, torch.Tensor], precision: str) -> dict[str, torch.Tensor]:
    """A module's tensors as they will be stored; alpha in fp32."""
    return {
        name: tensor.float() if name == "alpha" else tensor.to(DTYPES[precision]).contiguous()
        for name, tensor in parts.items()
    }


def derived_metadata(
    metadata: Mapping[str, str], path: Path, record: Mapping[str, Any], modules: Iterable[str] = ()
) -> dict[str, str]:
    """The metadata of the (first) source, with what was done to it, and all that Stability's modelspec requires.

    ``ss_output_name`` and the title become the new file's: the WebUI finds files by it, and of two with one name it
    would load the wrong one.

    Args:
        metadata: of the source.
        path: the new file.
        record: what was done.
        modules: names of the new file's modules, which say what it is for where the metadata does not.
    """
    made = {key: value for key, value in metadata.items() if key not in _STALE}
    made["ss_output_name"] = path.stem
    made = {**_required(list(modules), metadata), **made, "modelspec.title": path.stem}
    steps = _records(metadata)
    steps.append({"program": f"LoRA Train {__version__}", **record})
    made[RECORD] = json_text(steps)
    return made


def _required(modules: Sequence[str], metadata: Mapping[str, str]) -> dict[str, str]:
    """Entries that modelspec 1.0.1 requires of a LoRA; none for what is not for Stable Diffusion."""
    try:
        is_sdxl = architecture_of(modules, metadata) is SDXL
    except InputError:
        return {}
    if is_sdxl:
        name = "stable-diffusion-xl-v1-base"
    else:
        name = "stable-diffusion-v2-512" if _is_sd2(modules, metadata) else "stable-diffusion-v1"
    size = re.fullmatch(r"\(?(\d+)(?:, *(\d+)\))?", metadata.get("ss_resolution", ""))
    width, height = (size[1], size[2] or size[1]) if size else ("1024",) * 2 if is_sdxl else ("512",) * 2
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{name}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.resolution": f"{width}x{height}",
    }


def _is_sd2(modules: Sequence[str], metadata: Mapping[str, str]) -> bool:
    """SD2's text encoder has 23 layers, SD1's 12."""
    version = metadata.get("ss_base_model_version", "")
    return version.startswith("sd_v2") or any(_LATE_TEXT.match(key) for key in modules)


def source_record(path: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    """How a source is named in a record: its name and hash, never its folder."""
    return {"file": path.name, "sshs_model_hash": metadata.get("sshs_model_hash", "")}


def network_entries(ranks: Iterable[int], alphas: Iterable[float]) -> dict[str, str]:
    """``ss_network_dim`` and ``ss_network_alpha``: the one value, or ``Dynamic`` as sd-scripts' resize writes."""
    dims, scales = set(ranks), set(alphas)
    return {
        "ss_network_dim": str(dims.pop()) if len(dims) == 1 else "Dynamic",
        "ss_network_alpha": str(scales.pop()) if len(scales) == 1 else "Dynamic",
    }


def write_derived(path: Path, modules: Mapping[str, Mapping[str, torch.Tensor]], metadata: Mapping[str, str]) -> str:
    """Write modules (name → part → tensor) atomically; returns the SHA-256 of the file.

    Raises:
        RunError: NaN or Inf, or the disk is full.
    """
    tensors = {
        f"{key}.{part}" if part else key: tensor.contiguous()
        for key, parts in modules.items()
        for part, tensor in parts.items()
    }
    return write_tensors(path, tensors, metadata)


def _records(metadata: Mapping[str, str]) -> list[Any]:
    try:
        found = parse_json(metadata.get(RECORD, "[]"))
    except ValueError:
        return []
    return found if isinstance(found, list) else []
