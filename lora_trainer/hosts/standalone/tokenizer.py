"""CLIP's tokenizer and text model, from their files."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.core.errors import InputError
from lora_trainer.core.paths import expand
from lora_trainer.model.family import TextPart

if TYPE_CHECKING:
    import torch


# ------------------------------------------------------------------ the tokenizer
def clip_folder(path: Path, config: Mapping[str, Any]) -> Path | None:
    """The folder with the CLIP tokenizer and config: named by the yaml (relative to it), or ``LORA_TRAIN_CLIP``."""
    encoder = config["model"]["params"].get("cond_stage_config") or {}
    version = str((encoder.get("params") or {}).get("version") or "")
    for candidate in (path.parent / version if version else None, Path(version) if version else None):
        if candidate is not None and (candidate / "vocab.json").is_file():
            return candidate
    chosen = os.environ.get("LORA_TRAIN_CLIP", "")
    return expand(chosen) if chosen else None


def load_tokenizer(folder: Path | None) -> Any:
    """A CLIP tokenizer from a local folder, or made from the word list that open_clip and clip carry.

    Raises:
        InputError: there is none on this machine.
    """
    from transformers import CLIPTokenizer

    if folder is not None:
        try:
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise InputError(
                "The CLIP tokenizer in {folder} cannot be read: {error}.", folder=folder, error=error
            ) from error
    for package in ("open_clip", "clip"):
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            words = Path(place) / "bpe_simple_vocab_16e6.txt.gz"
            if words.is_file():
                return _tokenizer_from_words(words)
    raise InputError(
        "No CLIP tokenizer was found: run “pip install clip-anytorch”, or put vocab.json and merges.txt into a folder "
        "and name it in LORA_TRAIN_CLIP."
    )


def _tokenizer_from_words(path: Path) -> Any:
    """CLIP's vocabulary from OpenAI's list of merges (``clip/simple_tokenizer.py``)."""
    import gzip
    import tempfile

    from transformers import CLIPTokenizer

    from lora_trainer.model.clip import byte_letters, write_tokenizer

    merges = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = byte_letters()
    tokens = letters + [c + "</w>" for c in letters] + ["".join(m.split()) for m in merges]
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), [*tokens, "<|startoftext|>", "<|endoftext|>"], merges)
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def text_config(folder: Path | None, part: TextPart, parameters: Mapping[str, torch.Tensor]) -> Any:
    """The CLIP config in the folder, or the family's own for this text encoder."""
    from transformers import CLIPTextConfig

    if folder is not None and (folder / part.folder / "config.json").is_file():
        return CLIPTextConfig.from_pretrained(folder / part.folder, local_files_only=True)
    words = parameters["text_model.embeddings.token_embedding.weight"].shape[0]
    return CLIPTextConfig(**part.config, vocab_size=words)
