"""Resumable state: what an exact continuation needs, as safetensors, never as pickles.

Randomness is keyed by step, so the state is only the adapters, the optimizer, the schedule and the scaler.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes

from lora_trainer.errors import InputError, RunError
from lora_trainer.files import remove, replace_atomically
from lora_trainer.training.optimizers import keep_together
from lora_trainer.training.trainer import Trainer

log = logging.getLogger(__name__)
KEPT = 2
_NAME = re.compile(r"step-(\d{8})\.safetensors")


def save_state(folder: Path, trainer: Trainer, step: int) -> Path:
    """Write the state after ``step`` and delete all but the last two."""
    tensors: dict[str, torch.Tensor] = {}
    plain = {
        "step": step,
        "optimizer": _flatten(trainer.optimizer.state_dict(), "optimizer", tensors),
        "lr_schedule": _flatten(trainer.lr_schedule.state_dict(), "lr_schedule", tensors),
        "scaler": trainer.scaler.state_dict(),
    }
    for key, value in trainer.adapters.state_dict().items():
        tensors[f"adapter.{key}"] = value
    path = folder / f"step-{step:08d}.safetensors"
    content = safetensors_bytes(tensors, {"state": json.dumps(plain)})
    replace_atomically(path, lambda temporary: temporary.write_bytes(content))
    for old in states(folder)[KEPT:]:
        remove(old)
    return path


def states(folder: Path) -> list[Path]:
    """Saved states, newest first."""
    return sorted((p for p in folder.glob("step-*.safetensors") if _NAME.fullmatch(p.name)), reverse=True)


def load_newest(folder: Path, trainer: Trainer) -> int:
    """Load the newest readable state; returns its step, 0 when there is none.

    Raises:
        RunError: there are states, but none that can be read.
    """
    problems = []
    for path in states(folder):
        try:
            return _load(path, trainer)
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError, InputError) as error:
            log.warning("The state %s cannot be used (%s); trying the one before.", path, error)
            problems.append(f"{path.name}: {error}")
    if problems:
        raise RunError(
            "No saved state in {folder} can be read ({problem}); start the run again under a new name.",
            folder=folder,
            problem=problems[0],
        )
    return 0


def _load(path: Path, trainer: Trainer) -> int:
    with safe_open(path, framework="pt") as file:
        plain = json.loads(file.metadata()["state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    adapter = {n.removeprefix("adapter."): t for n, t in tensors.items() if n.startswith("adapter.")}
    trainer.adapters.load(adapter)
    trainer.optimizer.load_state_dict(keep_together(_unflatten(plain["optimizer"], tensors), trainer.optimizer))
    trainer.lr_schedule.load_state_dict(_unflatten(plain["lr_schedule"], tensors))
    trainer.scaler.load_state_dict(plain["scaler"])
    return int(plain["step"])


def _flatten(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """``value`` as JSON; tensors are moved to ``tensors`` and named where they stood."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"items": [[key, _flatten(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        listed = [_flatten(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": listed}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which cannot be saved")


def _unflatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "items" in value:
        return {key: _unflatten(item, tensors) for key, item in value["items"]}
    if "tuple" in value:
        return tuple(_unflatten(item, tensors) for item in value["tuple"])
    return [_unflatten(item, tensors) for item in value["list"]]
