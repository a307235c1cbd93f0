"""LoRA files in the names of other programs: what they are, told from the names of their tensors alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from lora_trainer.core.errors import InputError
from lora_trainer.model.contents import kind_of_names
from lora_trainer.network.types import tensor_names
from lora_trainer.network.types.base import NUMBERS

_EMBEDDING = "bundle_emb."
_DIFFUSERS = re.compile(
    r".*[._](lora_(A|B|embedding_[AB]|magnitude_vector)|lora\d?\.(up|down)|lora_linear_layer\.(up|down))(\.|$)"
)
"""``…to_q.lora_A.weight`` (PEFT), ``…to_q.lora.down.weight``, ``…processor.to_q_lora.down.weight`` (both diffusers)."""
_ANYBODYS = ("weight", "bias")
"""Parts of a module that say nothing of it: every layer of every model has such a tensor."""
_SWAPPED = re.compile(r"([^.]+)\.lora_([AB])\.weight")


def kohya_name(name: str) -> str:
    """The tensor's name with kohya's part: the WebUI takes ``lora_A`` and ``lora_B`` for ``lora_down`` and ``lora_up``.

    Only where the rest of the name is kohya's, that is, without a dot (network_lora.py:14).
    """
    match = _SWAPPED.fullmatch(name)
    return f"{match[1]}.lora_{'down' if match[2] == 'A' else 'up'}.weight" if match else name


def require_kohya_names(path: Path, names: Iterable[str]) -> None:
    """Refuse what the WebUI would load as nothing: it goes by the name before the first dot.

    Raises:
        InputError: the names are diffusers', PEFT's, OneTrainer's or ComfyUI's, or those of something else than a
            LoRA; the sentence says which.
    """
    found, dotted = list(map(kohya_name, names)), _dotted()
    for name in found:
        if name.startswith(_EMBEDDING):
            continue
        if _DIFFUSERS.match(name):
            raise InputError(
                "{path} is a LoRA in the names of diffusers and PEFT ({name}); the WebUI and the tools here know "
                "kohya's. Use a file in kohya's format, or convert it with diffusers' convert_all_state_dict_to_peft "
                "and convert_state_dict_to_kohya.",
                path=path,
                name=name[:200],
            )
        if dotted.fullmatch(name):
            raise InputError(
                "{path} is a LoRA whose names have dots ({name}), as OneTrainer and ComfyUI write them; the WebUI and "
                "the tools here know kohya's. Save or convert it in kohya's format first.",
                path=path,
                name=name[:200],
            )
    if kind := kind_of_names(found):
        raise InputError(
            "{path} is {kind}, not a LoRA ({name}); choose a LoRA file.", path=path, kind=kind, name=min(found)[:200]
        )


def _dotted() -> re.Pattern[str]:
    """A part of ours behind a name with dots: kohya's names have underscores instead."""
    parts = tensor_names().union(NUMBERS).difference(_ANYBODYS)
    return re.compile(rf"[^.]*\..+\.({'|'.join(map(re.escape, sorted(parts)))})")
