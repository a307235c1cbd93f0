"""How well a picture fits its prompt, by a CLIP model (Radford et al., 2021) in a local folder."""

from __future__ import annotations

import pickle
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError

from lora_trainer.core.errors import InputError
from lora_trainer.core.files import read_json
from lora_trainer.model.clip import features
from lora_trainer.network.blocks.lora_tag import TAG
from lora_trainer.validation.metrics.cache import cache_key

_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError, ImportError)


class ClipScorer:
    """CLIP as the transformers library stores it. It is loaded when it is first asked; nothing is ever downloaded.

    Args:
        folder: with ``config.json``, the weights, the tokenizer and ``preprocessor_config.json``.
        device: where it is computed.

    Attributes:
        key: fingerprint of the folder.

    Raises:
        InputError: there is no such folder, or no CLIP model in it.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self._folder = folder
        self._device = device
        self._texts: dict[str, torch.Tensor] = {}
        weights = [path for name in (_SAFE, _PICKLED) if (path := folder / name).is_file()]
        if not weights or not (folder / "config.json").is_file():
            raise InputError(
                "{folder} is no folder of a CLIP model; it needs config.json, model.safetensors, the tokenizer and "
                "preprocessor_config.json.",
                folder=folder,
            )
        self._weights = weights[0]
        stat = self._weights.stat()
        self.key = cache_key(str(self._weights), stat.st_mtime_ns, stat.st_size)

    @torch.no_grad()
    def score(self, picture: Image.Image, prompt: str) -> float:
        """Cosine of the angle between picture and prompt, −1 … 1; LoRA tags are not part of the prompt.

        Raises:
            InputError: the folder is damaged.
        """
        model, _, processor = self._loaded
        pixels = processor(images=picture.convert("RGB"), return_tensors="pt")["pixel_values"].to(self._device)
        image = features(model.get_image_features(pixel_values=pixels))[0].float()
        return float(torch.nn.functional.cosine_similarity(image, self._text(TAG.sub("", prompt)), dim=0))

    def _text(self, prompt: str) -> torch.Tensor:
        if prompt not in self._texts:
            model, tokenizer, _ = self._loaded
            longest = model.config.text_config.max_position_embeddings
            tokens = tokenizer([prompt], truncation=True, max_length=longest, return_tensors="pt").to(self._device)
            self._texts[prompt] = features(model.get_text_features(**tokens))[0].float()
        return self._texts[prompt]

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Any]:
        """Model, tokenizer and picture processor."""
        try:
            return self._load()
        except (*_DAMAGED, SafetensorError, pickle.UnpicklingError) as error:
            detail = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                "The CLIP model in {folder} cannot be used: {error}.", folder=self._folder, error=detail
            ) from error

    def _load(self) -> tuple[Any, Any, Any]:
        from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

        kind = read_json(self._folder / "config.json")["model_type"]
        if kind != "clip":
            raise ValueError(f"its type is {kind}")
        model = CLIPModel(CLIPConfig.from_pretrained(self._folder, local_files_only=True))
        missing, _ = model.load_state_dict(self._state(), strict=False)
        lacking = [name for name in missing if not name.endswith("position_ids")]
        if lacking:  # they would stay random
            raise ValueError(f"{len(lacking)} weights are missing, the first is {lacking[0]}")
        tokenizer = CLIPTokenizer.from_pretrained(self._folder, local_files_only=True)
        processor = CLIPImageProcessor.from_pretrained(self._folder, local_files_only=True)
        return model.float().eval().to(self._device), tokenizer, processor

    def _state(self) -> dict[str, torch.Tensor]:
        """The weights; of pickled ones only tensors are read, since others can hold code."""
        if self._weights.name == _SAFE:
            from safetensors.torch import load_file

            return load_file(self._weights)
        return torch.load(self._weights, map_location="cpu", weights_only=True)
