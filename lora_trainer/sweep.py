"""Several runs that differ in some settings, to find out which is best."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lora_trainer.config import TrainConfig, options
from lora_trainer.errors import InputError
from lora_trainer.schema import parse_toml, unknown_field

MOST = 50


def parse_sweep(text: str) -> dict[str, list[Any]]:
    """``network.rank = 8, 16``, one setting a line → its values.

    Raises:
        InputError: a line is not of this form.
    """
    found: dict[str, list[Any]] = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        key, equals, values = (part.strip() for part in line.replace("，", ",").partition("="))
        try:
            found[key] = parse_toml(f"values = [{values.removeprefix('[').removesuffix(']')}]")["values"]
        except ValueError:
            found[key] = []
        if not equals or not found[key]:
            raise InputError("sweep: “{line}” is not of the form network.rank = 8, 16.", field="sweep", line=line[:80])
    return found


def variants(config: TrainConfig, values: Mapping[str, Sequence[Any]]) -> list[TrainConfig]:
    """The configuration with every combination of the values; each is named after its own.

    Raises:
        InputError: an unknown setting, a wrong value, or too many runs.
    """
    paths = [item.path for item in options()]
    for key in values:
        if key not in paths or key == "name":
            raise unknown_field(key, [path for path in paths if path != "name"])
    combinations = list(itertools.islice(itertools.product(*values.values()), MOST + 1))
    if len(combinations) > MOST:
        raise InputError("sweep: these are more than {most} runs; name fewer values.", field="sweep", most=MOST)
    found = []
    for combination in combinations:
        chosen = dict(zip(values, combination, strict=True))
        name = "-".join([config.name, *(_label(key, value) for key, value in chosen.items())])
        found.append(config.with_values({**chosen, "name": name}))
    return found


def _label(key: str, value: Any) -> str:
    """``rank8``, as a part of a file name."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^\w.+-]+", "_", f"{key.rpartition('.')[2]}{text}").strip("_.")
