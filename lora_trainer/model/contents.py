"""What a file of weights really holds, told from the names in it or its first bytes, for sentences that help.

People give a checkpoint where a LoRA is wanted, a ControlNet, an embedding, a web page that was saved under the model's
name, a download that broke off. "Damaged" or "made for another checkpoint" would send them the wrong way.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from lora_trainer.core.errors import InputError

_LORA = re.compile(
    r"(lora|oft|lycoris)_.*|bundle_emb\..*"
    r"|.*[._](lora_|lora\d?\.(up|down)|hada_|lokr_|oft_(blocks|diag)|dora_scale|diff(_b)?$).*"
)
KINDS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (
            "an adapter of PEFT of another kind (IA3, OFT, VeRA …)",
            r".*\.(ia3_l|oft_R|oft_r|boft_[Rs]|vera_lambda_\w|lora_E|hra_u)(\..*)?",
        ),
        ("a ControlNet", r"control_model\..*|controlnet_.*|(.*\.)?input_hint_block\..*|lllite_.*"),
        ("an IP-Adapter", r"ip_adapter\..*|image_proj\..*|.*\.to_[kv]_ip\..*"),
        ("a motion module of AnimateDiff", r".*motion_modules.*"),
        ("a T2I-Adapter", r"(adapter\.)?body\.\d+\..*"),
        ("a checkpoint", r"model\.diffusion_model\..*"),
        ("an embedding (textual inversion)", r"emb_params|string_to_param.*|clip_[lgh]|<[^>]*>"),
        ("a VAE", r"(first_stage_model\.|vae\.)?(encoder|decoder)\.(conv_in|mid|up|down|up_blocks|down_blocks)\..*"),
        (
            "a text encoder",
            r"(cond_stage_model|conditioner|text_model)\..*|text_projection.*|transformer\.resblocks\..*|encoder\.block\..*|model\.layers\..*",
        ),
        (
            "a diffusion model without its other parts",
            r"(down|mid|up|input|middle|output|double|single|joint|(single_|joint_)?transformer)_blocks?\..*",
        ),
        ("an upscaler", r"params(_ema)?\..*|conv_first\..*|model\.\d+\..*"),
        ("a hypernetwork", r"(320|640|768|1024|1280)\..*"),
    )
)
"""Kinds as a sentence calls them, the more special first, each with what one of its tensors is called."""

STARTS: tuple[tuple[str, tuple[bytes, ...]], ...] = (
    ("a web page", (b"<!", b"<h", b"<H", b"<?")),
    ("a pointer of Git LFS", (b"version https://git-lfs",)),
    ("a file of PyTorch with another ending (it can hold code)", (b"PK\x03\x04", b"\x80\x02", b"\x80\x04")),
    ("a GGUF file", (b"GGUF",)),
    ("a picture", (b"\x89PNG", b"\xff\xd8\xff", b"RIFF")),
    ("a text", (b'{"', b"{\n", b"{\r")),
)
"""The same for files that are no safetensors, by their first bytes."""


def is_lora(names: Collection[str]) -> bool:
    """Whether these are the tensors of a LoRA or LyCORIS network, in whatever program's names."""
    return any(map(_LORA.fullmatch, names))


def kind_of_names(names: Collection[str]) -> str:
    """What a file with tensors of these names is; empty for a LoRA of whatever program, and for what is unknown."""
    if is_lora(names):
        return ""
    return next((kind for kind, pattern in KINDS if any(map(pattern.fullmatch, names))), "")


def unreadable(path: Path, error: object, field: str = "") -> InputError:
    """The sentence for a file that is no safetensors: what it is instead, how much of it is missing, or the error.

    Args:
        path: the file, with the right ending.
        error: what the library said.
        field: which the sentence is about.
    """
    where = f"{field}: {path}" if field else str(path)
    start, size = _start(path)
    if start is not None and not size:
        return InputError("{path} is empty; get the file again.", field=field, path=where)
    kind = next((kind for kind, starts in STARTS if start and start.startswith(starts)), "")
    if kind:
        return InputError(
            "{path} is {kind}, not a safetensors file; get the file again.", field=field, path=where, kind=kind
        )
    if "incomplete" in str(error).lower():  # newer safetensors say so in words
        return InputError(
            "{path} is incomplete or damaged: it has more or fewer bytes than it says of itself ({size}); get the file "
            "again.",
            field=field,
            path=where,
            size=size,
        )
    return InputError(
        "{path} is damaged or not a safetensors file: {error}; get the file again.",
        field=field,
        path=where,
        error=str(error).rstrip("."),
    )


def _start(path: Path) -> tuple[bytes | None, int]:
    """The first bytes and the size of a file; ``None`` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(64), path.stat().st_size
    except (OSError, ValueError):
        return None, 0
