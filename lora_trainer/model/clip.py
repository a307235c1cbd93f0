"""CLIP as the transformers library has it, whichever version is installed (4.30 … 5).

Version 5 took the level ``text_model`` out of ``CLIPTextModel``, returns other objects, and reads its tokenizer in
another way. Files, keys and the rest of this package keep the names of version 4; only this module knows of both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

TOWER = "text_model."
"""What the names of a text encoder's parameters begin with in checkpoints and LoRA files."""


def tower(model: nn.Module) -> Any:
    """The module with ``embeddings``, ``encoder`` and ``final_layer_norm`` of a ``CLIPTextModel``."""
    return getattr(model, "text_model", model)


def name_in_files(name: str) -> str:
    """A module's or parameter's name as checkpoints and LoRA files have it."""
    return TOWER + name.removeprefix(TOWER)


def own_names(model: nn.Module, named: Mapping[str, Any]) -> dict[str, Any]:
    """What is named as in a checkpoint, by the names of this ``model``."""
    if hasattr(model, "text_model"):
        return dict(named)
    return {name.removeprefix(TOWER): value for name, value in named.items()}


def layer_output(model: nn.Module, tokens: torch.Tensor, layer: int) -> tuple[torch.Tensor, Any]:
    """What layer number ``layer`` (−1 for the last) makes of ``tokens`` (B, 77), and what the model says.

    Returns:
        (B, 77, C), without the final norm, and the model's own output.
    """
    seen: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = tower(model).encoder.layers[layer].register_forward_hook(keep)
    try:
        said = model(tokens)
    finally:
        handle.remove()
    return seen[0], said


def features(output: Any) -> torch.Tensor:
    """What ``CLIPModel.get_image_features`` and ``get_text_features`` return: (B, D)."""
    return getattr(output, "pooler_output", output)


def byte_letters() -> list[str]:
    """The letters that stand for the 256 bytes in CLIP's vocabulary, in its order (Radford et al., 2019)."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def write_tokenizer(folder: Path, tokens: Sequence[str], merges: Sequence[str]) -> None:
    """A CLIP tokenizer in files: the vocabulary in order, its last two being start and end, and the merges.

    Args:
        folder: made when it is not there.
        tokens: the vocabulary.
        merges: pairs with a blank between, the most frequent first.
    """
    start, end = tokens[-2:]
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    settings = {**special, "model_max_length": 77, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer"}
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
    _write(folder / "vocab.json", json.dumps({token: number for number, token in enumerate(tokens)}))
    _write(folder / "special_tokens_map.json", json.dumps(special))
    _write(folder / "tokenizer_config.json", json.dumps(settings))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
