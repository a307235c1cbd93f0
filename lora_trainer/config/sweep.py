"""Several runs that differ in some settings, to find out which is best."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lora_trainer.config.schema import Option, check_value, read_text, split_values, toml_value, unknown_field
from lora_trainer.config.train import TrainConfig, options
from lora_trainer.core.errors import InputError
from lora_trainer.core.paths import free_name

MOST = 50
_LABEL = 30
"""Letters of a value in a run's name, so that two or three make no name that is too long."""


def parse_sweep(text: str) -> dict[str, list[Any]]:
    """``network.rank = 8, 16``, one setting a line → its values, each read by the setting's type.

    A setting that has two lines has the values of both.

    Raises:
        InputError: a line is not of this form, or there is no such setting.
    """
    found: dict[str, list[Any]] = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        key, equals, values = (part.strip() for part in line.partition("="))
        parts = _parts(values)
        if not key or not equals or not all(parts):
            raise InputError("sweep: “{line}” is not of the form network.rank = 8, 16.", field="sweep", line=line[:80])
        item = _option(key)
        found.setdefault(key, []).extend(read_text(item, part) for part in _unwrapped(item, parts))
    return found


def variants(config: TrainConfig, values: Mapping[str, Sequence[Any]]) -> list[TrainConfig]:
    """The configuration with every combination of the values; each is named after its own.

    A value that is given twice counts once, and every name is given once.

    Raises:
        InputError: an unknown setting, a wrong value, or too many runs.
    """
    wanted = {key: _distinct(_option(key), given) for key, given in values.items()}
    combinations = list(itertools.islice(itertools.product(*wanted.values()), MOST + 1))
    if len(combinations) > MOST:
        raise InputError("sweep: these are more than {most} runs; name fewer values.", field="sweep", most=MOST)
    found: list[TrainConfig] = []
    taken: set[str] = set()
    for combination in combinations:
        chosen = dict(zip(wanted, combination, strict=True))
        name = _free("-".join([config.name, *(_label(key, value) for key, value in chosen.items())]), taken)
        found.append(config.with_values({**chosen, "name": name}))
    return found


def _option(key: str) -> Option:
    known = {item.path: item for item in options() if item.path != "name"}
    if key == "name":
        raise InputError(
            "sweep: the runs of a sweep are named after their values; leave name out, and sweep another setting.",
            field="sweep",
        )
    if key not in known:
        raise unknown_field(key, list(known))
    return known[key]


def _parts(values: str) -> list[str]:
    """The values of a line as texts; an empty one where something is missing."""
    try:
        parts = split_values(values)
    except ValueError:
        return [""]
    return parts[:-1] if len(parts) > 1 and not parts[-1] else parts  # TOML allows a comma behind the last


def _unwrapped(item: Option, parts: list[str]) -> list[str]:
    """``[8, 16]`` is 8 and 16, and ``[["a"], ["b"]]`` two lists, but ``["a", "b"]`` is one where lists are wanted."""
    if len(parts) > 1 or not (parts[0].startswith("[") and parts[0].endswith("]")):
        return parts
    inner = [part for part in split_values(parts[0][1:-1]) if part]
    wants_lists = isinstance(item.default, list)
    return inner if inner and (not wants_lists or all(part.startswith("[") for part in inner)) else parts


def _distinct(item: Option, given: Sequence[Any]) -> list[Any]:
    """The values as the setting has them, each once; by TOML, in which true is not 1."""
    return list({toml_value(value): value for value in (check_value(item, each) for each in given)}.values())


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number behind it where another run of the sweep has it, in whatever case."""
    free = free_name(name, lambda each: each.lower() in taken)
    taken.add(free.lower())
    return free


def _label(key: str, value: Any) -> str:
    """``rank8``, as a part of a file name."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^\w.+-]+", "_", f"{key.rpartition('.')[2]}{text}")[:_LABEL].strip("_.")
