"""Presets: parts of a configuration under a name, shipped ones and the person's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_trainer.config.schema import read_toml, toml_value
from lora_trainer.config.train import TrainConfig, name_problem, options
from lora_trainer.core.errors import InputError
from lora_trainer.core.files import write_text

SHIPPED = Path(__file__).parent.parent / "presets"
_LARGEST = 1 << 20
PERSONAL = (
    "name",
    "checkpoint",
    "data.folder",
    "data.trigger",
    "network.continue_from",
    "save.folder",
    "samples.prompts",
)
"""What belongs to one data set, and is in no preset."""


def names(own: Path) -> list[str]:
    """Names of the shipped presets, then of the person's own in the folder ``own``."""
    shipped = ["character", "style", "product"]
    mine = sorted(p.stem for p in own.glob("*.toml")) if own.is_dir() else []
    return shipped + [name for name in mine if name not in shipped]


def load(name: str, own: Path) -> dict[str, Any]:
    """The preset's values by dotted key; its own folder comes first.

    Raises:
        InputError: there is no such preset, or it has unknown or wrong values.
    """
    if name_problem(name):
        raise InputError("There is no preset named {name}.", name=name[:100])
    path = next((p for p in (own / f"{name}.toml", SHIPPED / f"{name}.toml") if p.is_file()), None)
    if path is None:
        raise InputError("There is no preset named {name}.", name=name)
    return _read(path)


def add(path: Path, own: Path) -> str:
    """Keep a file of settings, a preset or the ``config.toml`` of a run, among the presets; returns its name there.

    None that is there is replaced: a name that is taken gets a number. What belongs to one data set is left out.

    Raises:
        InputError: the file is too large, or is no TOML with settings in it.
    """
    _require_small(path)
    values = {key: value for key, value in _read(path).items() if key not in PERSONAL}
    if not values:
        raise InputError("{name} holds no settings; give a preset, or the config.toml of a run.", name=path.name)
    stem = path.stem if not name_problem(path.stem) else "preset"
    taken, name, number = {each.lower() for each in names(own)}, stem, 2
    while name.lower() in taken:
        name, number = f"{stem}-{number}", number + 1
    write_text(own / f"{name}.toml", _toml(values))
    return name


def _require_small(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError("{name} cannot be read: {error}.", name=path.name, error=error.strerror or error) from error
    if size > _LARGEST:
        raise InputError("{name} is too large for a file of settings.", name=path.name)


def _read(path: Path) -> dict[str, Any]:
    """The values that a file sets, by dotted key."""
    document = read_toml(path)
    config = TrainConfig.from_dict({"name": "preset", **{k: v for k, v in document.items() if k != "name"}})
    values = config.to_dict()
    return {
        f"{section}.{key}": values[section][key]
        for section, entries in document.items()
        if isinstance(entries, dict)
        for key in entries
    }


def save(name: str, config: TrainConfig, own: Path) -> Path:
    """Write ``config`` without what belongs to one data set; an older preset of the name is kept as ``.bak``.

    Raises:
        InputError: the name cannot be a file name, or is a shipped preset's.
    """
    if problem := name_problem(name):
        raise InputError(problem.replace("name: ", "preset: "), name=name[:80])
    if (SHIPPED / f"{name}.toml").is_file():
        raise InputError(
            "preset: “{name}” is one of the presets that came with LoRA Train; choose another name.", name=name
        )
    path = own / f"{name}.toml"
    if path.is_file():
        path.replace(path.with_suffix(".toml.bak"))
    write_text(path, to_toml(config))
    return path


def to_toml(config: TrainConfig) -> str:
    """A preset's file, without what belongs to one data set."""
    values = config.to_dict()
    given = [item.path for item in options() if item.path not in PERSONAL and "." in item.path]
    return _toml({path: values[path.partition(".")[0]][path.partition(".")[2]] for path in given})


def _toml(values: Mapping[str, Any]) -> str:
    """A document of the values, section by section in the options' order."""
    lines: list[str] = []
    section = ""
    for path in (item.path for item in options() if item.path in values):
        head, _, key = path.rpartition(".")
        if head != section:
            section = head
            lines.append(f"\n[{head}]")
        lines.append(f"{key} = {toml_value(values[path])}")
    return "\n".join(lines).lstrip() + "\n"
