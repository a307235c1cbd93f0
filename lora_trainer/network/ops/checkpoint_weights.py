"""The weights of a checkpoint file under kohya's module names, read one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lora_trainer.core.errors import InputError
from lora_trainer.core.paths import is_file
from lora_trainer.model.contents import unreadable
from lora_trainer.model.families import family_of
from lora_trainer.model.family import ModelFamily
from lora_trainer.model.ldm_names import ldm_to_unet
from lora_trainer.network.blocks.block_map import ldm_name


class CheckpointWeights:
    """The linear and convolution weights of an open checkpoint.

    Attributes:
        path: of the file.
        family: what it is.
        keys: kohya's module name → the tensor's name in the file.
    """

    def __init__(self, path: Path, file: Any) -> None:
        self.path = path
        self._file = file
        names = list(file.keys())
        self.family = family_of(names, name=path)
        self.keys: dict[str, str] = {}
        for name in sorted(names):
            if name.endswith(".weight") and len(file.get_slice(name).get_shape()) in (2, 4):
                key = kohya_name(name, self.family)
                if key:
                    self.keys[key] = name
        self._by_ldm = {ldm_name(key): key for key in self.keys}

    def __call__(self, key: str) -> torch.Tensor | None:
        """The weight of a module, however it is spelled; ``None`` when the checkpoint has none."""
        own = self._by_ldm.get(ldm_name(key))
        return None if own is None else self._file.get_tensor(self.keys[own])


@contextmanager
def open_checkpoint(path: Path) -> Iterator[CheckpointWeights]:
    """Open a checkpoint of a family that can be trained.

    Raises:
        InputError: missing, damaged, or of another family.
    """
    if path.suffix.lower() != ".safetensors" or not is_file(path):
        raise InputError(
            "{path} is not a .safetensors checkpoint; check the path, or convert a .ckpt first.", path=path
        )
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(path, error) from error
    with file as opened:
        yield CheckpointWeights(path, opened)


def kohya_name(name: str, family: ModelFamily) -> str | None:
    """``lora_unet_down_blocks_0_attentions_0_proj_in`` for a tensor of a checkpoint; ``None`` for the VAE."""
    module = name.removesuffix(".weight")
    part = next((part for part in family.parts if module.startswith(part.stored)), None)
    if part is None:
        return None
    inner = module[len(part.stored) :].replace(".", "_")
    if part is not family.unet:
        return part.prefix + inner if "_encoder_" in inner else None
    try:
        return part.prefix + ldm_to_unet(inner, family.blocks.attention_up if family.blocks else (), dot="_")
    except KeyError:
        return None
