"""Kohya's LoRA file: safetensors with everything about the training in its header."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes

from lora_trainer.core.errors import InputError, RunError, concerning
from lora_trainer.core.files import replace_atomically
from lora_trainer.core.paths import is_file
from lora_trainer.core.plain_json import parse_json
from lora_trainer.model.contents import unreadable
from lora_trainer.network.formats import kohya_name, require_kohya_names
from lora_trainer.network.types import LORA
from lora_trainer.network.types.base import is_finite

if TYPE_CHECKING:
    from lora_trainer.model.family import ModelFamily
    from lora_trainer.network.adapters import Adapters

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_LEGACY_OFFSET, _LEGACY_LENGTH = 0x100000, 0x10000


def file_name(name: str, *, epoch: int | None = None, step: int | None = None) -> str:
    """``name-000002``, ``name-step00000100`` or, for the last file, ``name``; without the extension."""
    if epoch is not None:
        return f"{name}-{epoch:06d}"
    if step is not None:
        return f"{name}-step{step:08d}"
    return name


def save_lora(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], precision: str) -> str:
    """Write a LoRA file atomically and return the SHA-256 of its bytes.

    Args:
        path: the file.
        tensors: under kohya's names, in fp32; alphas stay fp32, since halved ones change the picture.
        metadata: ``ss_*`` and ``modelspec.*`` entries; the hashes are added.
        precision: ``fp16``, ``bf16`` or ``fp32``.

    Raises:
        RunError: a weight is NaN or Inf, or too large for fp16; or the disk is full.
    """
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        stored[name] = tensor.float() if name.endswith(".alpha") else tensor.to(DTYPES[precision])
    return write_tensors(path, stored, metadata, precision)


def write_tensors(
    path: Path, stored: Mapping[str, torch.Tensor], metadata: Mapping[str, str], precision: str = "its precision"
) -> str:
    """Write tensors as they are, with both hashes, atomically; returns the SHA-256 of the file's bytes.

    Args:
        path: the file.
        stored: tensors in the types that the file shall have, of any device and memory layout.
        metadata: as for :func:`save_lora`.
        precision: how the types are called in the error.

    Raises:
        RunError: a weight is NaN or Inf, or the disk is full.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in stored.items()}
    for name, kept in plain.items():
        if not is_finite(kept):
            raise RunError(
                "{name} is NaN or too large for {precision}; nothing was written to {path}. Save in fp32, or train "
                "with a lower learning rate.",
                name=name,
                precision=precision,
                path=path,
            )
    training_only = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    header = {**metadata, **model_hashes(safetensors_bytes(plain, training_only))}
    content = safetensors_bytes(plain, header)
    replace_atomically(path, lambda temporary: temporary.write_bytes(content))
    return hashlib.sha256(content).hexdigest()


def model_hashes(content: bytes) -> dict[str, str]:
    """``sshs_model_hash`` and ``sshs_legacy_hash`` of a serialisation that carries only ``ss_*`` metadata."""
    header = 8 + int.from_bytes(content[:8], "little")
    legacy = content[_LEGACY_OFFSET : _LEGACY_OFFSET + _LEGACY_LENGTH]
    return {
        "sshs_model_hash": hashlib.sha256(memoryview(content)[header:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(legacy).hexdigest()[:8],
    }


def read_lora(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA file under kohya's names.

    Raises:
        InputError: missing, not safetensors, damaged, or a LoRA in another program's format; the sentence says which.
    """
    tensors = _read_tensors(path)
    require_kohya_names(path, tensors)
    return {kohya_name(name): tensor for name, tensor in tensors.items()}


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, read from its header alone. Raises as :func:`read_lora`."""
    return _read(path, lambda file: file.metadata() or {})


def read_names(path: Path) -> list[str]:
    """The names of the tensors under kohya's names, read from the header alone. Raises as :func:`read_lora`."""
    names: list[str] = _read(path, lambda file: list(file.keys()))
    require_kohya_names(path, names)
    return [kohya_name(name) for name in names]


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Name → tensor as the file has them; only numbers that can be computed with."""
    tensors: dict[str, torch.Tensor] = _read(
        path,
        lambda file: {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
    )
    for name, tensor in tensors.items():
        if not _is_computable(tensor):
            raise InputError(
                "{path} stores {name} as {type}, which cannot be computed with here; use the file in fp16 or fp32.",
                path=path,
                name=name[:200],
                type=str(tensor.dtype).removeprefix("torch."),
            )
    return tensors


def _is_computable(tensor: torch.Tensor) -> bool:
    """Whether torch can make ordinary real numbers of it: not of complex ones, nor of two packed into a byte."""
    if tensor.is_complex():
        return False
    try:
        torch.empty(1, dtype=tensor.dtype).double()
    except (RuntimeError, NotImplementedError):
        return False
    return True


def _read(path: Path, read):  # type: ignore[no-untyped-def]
    if path.suffix.lower() != ".safetensors":
        raise InputError(
            "{path} is not a .safetensors file; only these are loaded, since others can hold code.", path=path
        )
    try:
        if not is_file(path):
            raise InputError("{path} does not exist; check the path.", path=path)
        with safe_open(path, framework="pt") as file:
            return read(file)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise unreadable(path, error) from error


def require_family(path: Path, family: ModelFamily) -> None:
    """Look at a LoRA file's names only: are they those of a family's layers?

    Raises:
        InputError: the file cannot be read, is no plain LoRA in kohya's names, or belongs to another architecture.
    """
    from lora_trainer.network.adapters import wrong_architecture  # brings torch's layers, which take seconds

    with concerning("network.continue_from"):
        keys = read_names(path)
        if not keys:
            raise InputError("{path} has nothing in it; choose a LoRA file.", path=path)
        LORA.require(keys)
    foreign = [key for key in keys if not family.file_names.match(key)]
    if foreign:
        raise wrong_architecture(foreign[0])


def verify(path: Path, adapters: Adapters) -> None:
    """Load a written file back and hold every key, shape and alpha against the adapters on the view.

    Raises:
        RunError: anything differs; the file would load in part, silently.
    """
    tensors = read_lora(path)
    expected = adapters.state_dict()
    wrong = expected.keys() ^ tensors.keys()
    wrong |= {name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape}
    wrong |= {n for n in expected.keys() - wrong if n.endswith(".alpha") and expected[n] != tensors[n]}
    if wrong:
        raise RunError(
            "The written file {path} does not match the model in {count} places (first: {first}); please report this.",
            path=path,
            count=len(wrong),
            first=sorted(wrong)[0],
        )


def describe(path: Path) -> dict[str, object]:
    """What a LoRA file holds: modules, ranks, alphas, size and metadata, JSON values parsed.

    What is damaged, or in another program's names, is described as far as it goes.

    Raises:
        InputError: missing, not safetensors, or damaged as a whole.
    """
    tensors, metadata = _read_tensors(path), read_metadata(path)
    downs = {name: tensor for name, tensor in tensors.items() if kohya_name(name).endswith(".lora_down.weight")}
    modules = [kohya_name(name).removesuffix(".lora_down.weight") for name in downs]
    ranks = {tensor.shape[0] for tensor in downs.values() if tensor.ndim}
    alphas = {
        float(tensors[f"{m}.alpha"]) for m in modules if f"{m}.alpha" in tensors and _is_one(tensors[f"{m}.alpha"])
    }
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        "modules": len(modules),
        "unet_modules": sum(m.startswith("lora_unet") for m in modules),
        "text_modules": sum(m.startswith("lora_te") for m in modules),
        "ranks": sorted(ranks),
        "alphas": sorted(alphas),
        "precision": sorted(
            {str(t.dtype).removeprefix("torch.") for n, t in tensors.items() if not n.endswith("alpha")}
        ),
        "metadata": {key: _parsed(value) for key, value in sorted(metadata.items())},
    }


def _is_one(tensor: torch.Tensor) -> bool:
    """A single number that is none of NaN and infinity."""
    return tensor.numel() == 1 and is_finite(tensor)


def _parsed(value: str) -> object:
    if not value.startswith(("{", "[")):
        return value
    try:
        return parse_json(value)
    except ValueError:
        return value
