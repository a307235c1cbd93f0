"""How strong LoRA files are in each block, from the files alone: a heat map of ‖ΔW‖ over blocks and epochs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lora_trainer.core.errors import InputError, LoraTrainError
from lora_trainer.core.messages import Message, Sentence
from lora_trainer.network.blocks.block_map import architecture_of
from lora_trainer.network.lora_file import read_lora, read_metadata
from lora_trainer.network.modules import group
from lora_trainer.network.ops.info import ORDER, BlockInfo, block_infos
from lora_trainer.runs.saved_files import SavedFile


def heat_map(name: str, files: Sequence[SavedFile]) -> dict[str, Any]:
    """‖ΔW‖ of each block of each file, ready for JSON.

    Returns:
        ``blocks`` are the columns; each of ``rows`` has as many ``norms`` (at weight 1; ``None`` for a block that the
        file does not have or whose ΔW depends on the checkpoint) and a ``problem`` when the file could not be read.
    """
    found: list[tuple[SavedFile, _Strength | None, Sentence | None]] = []
    for file in files:
        try:
            found.append((file, _strength_of(file.path), None))
        except LoraTrainError as error:
            values = {key: str(value) for key, value in error.message.values.items()}
            found.append((file, None, Message(error.message.template, values).to_dict()))
    known = [strength for _, strength, _ in found if strength]
    blocks = [block for block in ORDER if any(block in strength.blocks for strength in known)]
    return {
        "version": 1,
        "name": name,
        "architecture": known[0].architecture if known else "",
        "blocks": blocks,
        "rows": [
            {
                "label": file.label,
                "file": str(file.path),
                "name": file.path.stem,
                "epoch": file.epoch,
                "step": file.step,
                "by_step": file.by_step,
                "norms": [_norm(strength, block) for block in blocks],
                "problem": problem,
            }
            for file, strength, problem in found
        ],
    }


def heat_csv(heat: dict[str, Any]) -> str:
    """The heat map as CSV: one line a file, one column a block."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "epoch", "step", *heat["blocks"]])
    for row in heat["rows"]:
        norms = ["" if norm is None else f"{norm:.6g}" for norm in row["norms"]]
        writer.writerow([row["name"], row["epoch"], row["step"], *norms])
    return text.getvalue()


@dataclass(frozen=True)
class _Strength:
    architecture: str
    blocks: dict[str, BlockInfo]


def _strength_of(path: Path) -> _Strength:
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError("{path} does not exist; check the path.", path=path) from error
    return _read(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=512)
def _read(path: Path, size: int, modified: int) -> _Strength:
    """A file's strengths; size and time are there so that a file that was written again is read again."""
    tensors = read_lora(path)
    architecture = architecture_of(group(tensors), read_metadata(path)).name
    infos = block_infos(tensors)
    if not all(math.isfinite(info.norm) for info in infos):
        raise InputError(
            "{path} has weights that are NaN or Inf: its training broke; choose an earlier file.", path=path
        )
    return _Strength(architecture, {info.block: info for info in infos})


def _norm(strength: _Strength | None, block: str) -> float | None:
    info = strength.blocks.get(block) if strength else None
    return None if info is None or info.unknown == info.modules else info.norm
