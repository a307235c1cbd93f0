"""Resumable state: what an exact continuation needs, as safetensors, never as pickles.

Randomness is keyed by step, so the state is only the adapters, the optimizer, the schedule and the scaler.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from safetensors import SafetensorError, safe_open

from lora_trainer.core.documents import Count, Damaged, checked
from lora_trainer.core.errors import InputError, RunError
from lora_trainer.core.files import remove
from lora_trainer.core.tensor_file import read_checked, write_checked
from lora_trainer.training.optimizers import TOGETHER, keep_together
from lora_trainer.training.trainer import Trainer

log = logging.getLogger(__name__)
_UNREADABLE = (
    SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError,
    InputError,
)  # fmt: skip
"""What a damaged state may end in: the file, its JSON, or a library that is given it."""
_NEEDED = {"params", "lr", "last_epoch", "base_lrs"}
"""Keys of optimizers' groups and of schedules, without which they cannot go on."""
KEPT = 2
_EARLIER = frozenset({"state"})
"""What the header of a state of earlier versions has, which had no checksum."""
_NAME = re.compile(r"step-(\d{8})\.safetensors")


class StateStart(TypedDict):
    """What a state says beside its tensors; each of these is named where it stood, see :func:`_flatten`."""

    step: Count
    optimizer: dict[str, Any]
    lr_schedule: dict[str, Any]
    scaler: dict[str, Any]


class StateDocument(StateStart, total=False):
    """The same, with the run's settings, which states of earlier versions do not tell."""

    settings: dict[str, Any] | None


def save_state(folder: Path, trainer: Trainer, step: int, settings: Mapping[str, Any] | None = None) -> Path:
    """Write the state after ``step``, with the run's settings as a document, and delete all but the last two."""
    tensors: dict[str, torch.Tensor] = {}
    plain = {
        "step": step,
        "optimizer": _flatten(trainer.optimizer.state_dict(), "optimizer", tensors),
        "lr_schedule": _flatten(trainer.lr_schedule.state_dict(), "lr_schedule", tensors),
        "scaler": trainer.scaler.state_dict(),
        "settings": settings,
    }
    for key, value in trainer.adapters.state_dict().items():
        tensors[f"adapter.{key}"] = value
    path = folder / f"step-{step:08d}.safetensors"
    _make_room(path)
    write_checked(path, tensors, {"state": json.dumps(plain)})
    for old in states(folder)[KEPT:]:
        if old.is_file():
            remove(old)
    return path


def _make_room(path: Path) -> None:
    """A folder of a state's name keeps what is in it, under another name; the run needs this one."""
    if path.is_dir():
        aside = next(free for n in count(1) if not (free := path.with_name(f"{path.name} ({n})")).exists())
        log.warning("There is a folder of the state's name %s; it is called %s now.", path, aside.name)
        path.rename(aside)


def states(folder: Path) -> list[Path]:
    """Saved states, newest first."""
    return sorted((p for p in folder.glob("step-*.safetensors") if _NAME.fullmatch(p.name)), reverse=True)


def read_settings(folder: Path) -> dict[str, Any] | None:
    """The settings that the newest readable state was learned with; ``None`` without a state that has them."""
    for path in states(folder):
        try:
            with safe_open(path, framework="pt") as file:
                found = json.loads(file.metadata()["state"]).get("settings")
            return found if isinstance(found, dict) else None
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError):
            continue  # told when it is loaded
    return None


def load_newest(folder: Path, trainer: Trainer) -> int:
    """Load the newest readable state; returns its step, 0 when there is none.

    Raises:
        RunError: there are states, but none that can be read.
    """
    problems = []
    for path in states(folder):
        try:
            return _load(path, trainer)
        except _UNREADABLE as error:
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
    tensors, texts = read_checked(path, unchecked=_EARLIER)
    plain = _document(texts["state"], path)
    adapter = {n.removeprefix("adapter."): tensors.pop(n) for n in list(tensors) if n.startswith("adapter.")}
    optimizer = _unflatten(plain["optimizer"], "optimizer", tensors)
    schedule = _unflatten(plain["lr_schedule"], "lr_schedule", tensors)
    if tensors:  # a moment that nobody asks for was lost where it was asked for
        raise Damaged(min(tensors))
    _require_like(optimizer["param_groups"], trainer.optimizer.state_dict()["param_groups"], "optimizer.param_groups")
    _require_alike(optimizer["state"])
    _require_fitting(optimizer, trainer.optimizer)
    _require_like(schedule, trainer.lr_schedule.state_dict(), "lr_schedule")
    _require_like(plain["scaler"], trainer.scaler.state_dict(), "scaler")
    trainer.adapters.load(adapter)
    trainer.optimizer.load_state_dict(keep_together(optimizer, trainer.optimizer))
    trainer.lr_schedule.load_state_dict(schedule)
    trainer.scaler.load_state_dict(plain["scaler"])
    return int(plain["step"])


def _document(text: str, path: Path) -> StateDocument:
    """The state's JSON. Unlike other documents it may hold Infinity, which Prodigy has among its settings.

    Raises:
        Damaged: it is not what was written; the states of earlier versions have no checksum to tell that by.
    """
    plain = json.loads(text)
    checked({**plain, "optimizer": {}, "lr_schedule": {}}, StateDocument)
    if _NAME.fullmatch(path.name)[1] != f"{plain['step']:08d}":  # type: ignore[index]  # states() has only such names
        raise Damaged("step")
    return cast(StateDocument, plain)


def _require_like(found: Any, like: Any, place: str) -> None:
    """Whether what is loaded is of the kind of what it replaces; else that is noticed steps later, or never.

    Other versions of PyTorch have a few other keys.

    Raises:
        Damaged: it has not.
    """
    if isinstance(like, dict):
        if not isinstance(found, dict) or not (like.keys() & _NEEDED) <= found.keys():
            raise Damaged(place)
        for key in like.keys() & found.keys():
            _require_like(found[key], like[key], f"{place}.{key}")
    elif isinstance(like, (list, tuple)):
        if not isinstance(found, (list, tuple)) or len(found) != len(like):
            raise Damaged(place)
        for index, each in enumerate(like):
            _require_like(found[index], each, f"{place}[{index}]")
    elif like is not None and not _is_of_kind(found, like):
        raise Damaged(place)


def _require_alike(entries: Mapping[Any, Mapping[str, Any]]) -> None:
    """Whether what the optimizer knows of each parameter is of one kind for those with the same tensors.

    Raises:
        Damaged: something is missing with one of them, or is of another kind.
    """
    fellows: dict[frozenset[str], Mapping[str, Any]] = {}
    for parameter, entry in entries.items():
        tensors = frozenset(key for key, value in entry.items() if isinstance(value, torch.Tensor))
        fellow = fellows.setdefault(tensors, entry)
        numbers = [value for value in entry.values() if isinstance(value, (int, float))]  # counts and norms
        if entry.keys() != fellow.keys() or any(number < 0 for number in numbers):
            raise Damaged(f"optimizer.state.{parameter}")
        for found, like in ((entry, fellow), (fellow, entry)):  # the first one may be the damaged one
            _require_like(found, like, f"optimizer.state.{parameter}")


def _require_fitting(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Whether each tensor of the optimizer's belongs to the parameter that it would be given to.

    A fused step writes as many numbers as the parameter has, also beyond the end of a moment that has fewer.

    Raises:
        Damaged: groups have other parameters, or a tensor has another shape than its own parameter.
    """
    groups = optimizer.state_dict()["param_groups"]
    for index, (found, own) in enumerate(zip(saved["param_groups"], groups, strict=True)):
        if list(found["params"]) != own["params"]:
            raise Damaged(f"optimizer.param_groups[{index}].params")
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))  # as torch counts them
    whole = any(TOGETHER & group.keys() for group in groups)  # torch's own, that know neither factors nor blocks
    for number, entry in saved["state"].items():
        shape = parameters[number].shape
        for key, value in entry.items():
            if not isinstance(value, torch.Tensor):
                continue
            expected = () if key == "step" else shape
            if (whole or value.ndim == len(expected)) and value.shape != expected:
                raise Damaged(f"optimizer.state.{number}.{key}")


def _is_of_kind(found: Any, like: Any) -> bool:
    if isinstance(like, (bool, str)):
        return type(found) is type(like)
    if isinstance(like, (int, float)):  # an optimizer may put a tensor in its place
        is_number = isinstance(found, (int, float)) and not isinstance(found, bool)
        return isinstance(found, torch.Tensor) or (is_number and (math.isfinite(found) or found == like))
    return True


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


def _unflatten(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """What :func:`_flatten` was given; each tensor is taken out of ``tensors``.

    Raises:
        Damaged: a tensor does not stand where it stood.
    """
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        if value["tensor"] != name:
            raise Damaged(name)
        return tensors.pop(name)
    if "items" in value:
        return {key: _unflatten(item, f"{name}.{key}", tensors) for key, item in value["items"]}
    listed = value["tuple" if "tuple" in value else "list"]
    made = [_unflatten(item, f"{name}.{i}", tensors) for i, item in enumerate(listed)]
    return tuple(made) if "tuple" in value else made
