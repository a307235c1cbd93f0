"""What is in a LoRA file: kinds, ranks, and how strong it is in each block, from the file alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_trainer.core.errors import InputError
from lora_trainer.model.block_lists import ALL_BLOCKS, BASE, TEXT_BLOCKS
from lora_trainer.network.blocks.block_map import architecture_of, block_of, text_encoder_of
from lora_trainer.network.lora_file import describe, read_lora, read_metadata
from lora_trainer.network.modules import EMBEDDING, group
from lora_trainer.network.types import type_of

OTHER = "other"
"""Modules that belong to no block."""
ORDER = (*TEXT_BLOCKS, *ALL_BLOCKS[1:], OTHER)


@dataclass(frozen=True)
class BlockInfo:
    """One block of a file.

    Attributes:
        block: ``TE1``, ``TE2``, ``IN00`` …, or ``other``.
        modules: how many it has.
        ranks: the different ranks.
        norm: ‖ΔW‖ of all its modules together at weight 1 (root of the sum of squares).
        unknown: modules whose ΔW depends on the checkpoint (DoRA, IA3, …), which are not in the norm.
    """

    block: str
    modules: int
    ranks: tuple[int, ...]
    norm: float
    unknown: int


def block_infos(tensors: Mapping[str, torch.Tensor]) -> list[BlockInfo]:
    """The blocks of a file in their order.

    Raises:
        InputError: a module of an unknown kind.
    """
    found: dict[str, list[tuple[int | None, float | None]]] = {}
    for key, parts in group(tensors).items():
        if key != EMBEDDING:
            kind = type_of(key, parts)
            found.setdefault(place_of(key), []).append((kind.dim(parts), kind.norm(key, parts)))
    return [
        BlockInfo(
            block,
            len(found[block]),
            tuple(sorted({rank for rank, _ in found[block] if rank is not None})),
            math.sqrt(sum(size**2 for _, size in found[block] if size is not None)),
            sum(size is None for _, size in found[block]),
        )
        for block in ORDER
        if block in found
    ]


def info(path: Path) -> dict[str, Any]:
    """Metadata, kinds, ranks, blocks and norms of a LoRA file, ready for JSON.

    Raises:
        InputError: it cannot be read. A file that is no LoRA, or a damaged one, is described without blocks, and with
            the ``problem``.
    """
    described = describe(path)
    try:
        tensors = read_lora(path)
        kinds = Counter(type_of(key, parts).called() for key, parts in group(tensors).items() if key != EMBEDDING)
        blocks = block_infos(tensors)
        architecture = architecture_of(group(tensors), read_metadata(path)).name
    except InputError as error:
        return {**described, "problem": str(error)}
    described["modules"] = sum(kinds.values())
    metadata = described.pop("metadata")
    return {
        **described,
        "architecture": architecture,
        "kinds": dict(kinds),
        "norm": math.sqrt(sum(block.norm**2 for block in blocks)),
        "blocks": [vars(block) | {"ranks": list(block.ranks)} for block in blocks],
        "metadata": metadata,
    }


def place_of(key: str) -> str:
    """The block of a module, with the text encoders by number; :data:`OTHER` for what belongs to none."""
    block = block_of(key)
    if block is None:
        return OTHER
    return (text_encoder_of(key) or BASE) if block == BASE else block
