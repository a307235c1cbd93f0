"""Which settings of a run may change before it goes on, and the sentence about all others.

A run goes on exactly as if it had never stopped, so what it learns, and what its files say of it, are those settings
that its state was learned with. They stand in the state; what stands in its ``config.toml`` now is held against them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lora_trainer.config.schema import toml_value
from lora_trainer.config.train import TrainConfig, options
from lora_trainer.core.errors import InputError
from lora_trainer.core.paths import expand
from lora_trainer.runs.run import Run
from lora_trainer.training.state import read_settings

MAY_CHANGE = (
    "checkpoint",  # its hash is held against that of the run
    "data.folder",  # so are its pictures and captions
    "training.checkpointing",
    "save.every_epochs",
    "save.every_steps",
    "save.state_minutes",
    "save.state_steps",
    "samples.",
    "validation.every_epochs",
)
"""Settings, or sections of them, that change nothing of what is learned."""
_SHOWN = 5


def changes(before: Mapping[str, Any], config: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Settings by dotted key that are not as before: their old and new values.

    Args:
        before: a document, as of :meth:`TrainConfig.to_dict`; what it lacks counts as the same.
        config: what is wanted now.
    """
    now = config.to_dict()
    found = {}
    for item in options():
        section, _, key = item.path.rpartition(".")
        old, new = ((part.get(section) or {}) if section else part for part in (before, now))
        if key in old and _plain(old[key], item.is_path) != _plain(new[key], item.is_path):
            found[item.path] = old[key], new[key]
    return found


def require_resumable(run: Run, config: TrainConfig) -> None:
    """See that a run can go on with settings.

    Raises:
        InputError: some of them are not those that it was learned with; all are named.
    """
    before = {**(read_settings(run.states) or {}), "name": run.name}
    _require_same(run, before, config)


def take_over(run: Run, config: TrainConfig) -> list[str]:
    """See that a run can go on with settings that the person gives for it.

    Returns:
        the keys of those that are not as in the run's ``config.toml``, and may be so.

    Raises:
        InputError: others are not as there; all are named.
    """
    before = run.config().to_dict()
    _require_same(run, before, config)
    return list(changes(before, config))


def _require_same(run: Run, before: Mapping[str, Any], config: TrainConfig) -> None:
    found = {key: values for key, values in changes(before, config).items() if not key.startswith(MAY_CHANGE)}
    if found:
        shown = [f"{key} ({_shown(old)} → {_shown(new)})" for key, (old, new) in found.items()]
        more = f" (+{len(shown) - _SHOWN})" if len(shown) > _SHOWN else ""
        raise InputError(
            "The run {name} can only go on with the settings that it began with, and these are not the same now: "
            "{fields}. Put them back (also what was given with --set), or start a new run under another name that "
            "continues from its last file (network.continue_from).",
            field=next(iter(found)),
            name=run.name,
            fields=", ".join(shown[:_SHOWN]) + more,
        )


def _plain(value: Any, is_path: bool) -> Any:
    """A value that is equal for what means the same; paths are compared as texts, no file is looked at."""
    if is_path and isinstance(value, str) and value:
        return os.path.normcase(os.path.normpath(expand(value).absolute()))
    return toml_value(value)


def _shown(value: Any) -> str:
    text = toml_value(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
