"""Presets: parts of a configuration under a name, shipped ones and the person's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_trainer.config import TrainConfig, name_problem, options
from lora_trainer.errors import InputError
from lora_trainer.files import write_text
from lora_trainer.schema import read_toml, toml_value

SHIPPED = Path(__file__).parent
_PERSONAL = (
    "name",
    "checkpoint",
    "data.folder",
    "data.trigger",
    "network.continue_from",
    "save.folder",
    "samples.prompts",
)


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
    write_text(path, _document(config))
    return path


def _document(config: TrainConfig) -> str:
    values = config.to_dict()
    lines: list[str] = []
    section = ""
    for item in options():
        head, _, key = item.path.rpartition(".")
        if item.path in _PERSONAL or not head:
            continue
        if head != section:
            section = head
            lines.append(f"\n[{head}]")
        lines.append(f"{key} = {toml_value(values[head][key])}")
    return "\n".join(lines).lstrip() + "\n"
