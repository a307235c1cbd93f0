"""The WebUI's text of how a picture is made: what its ↙ button under the prompt reads back into the fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""As the WebUI reads them (infotext_utils.py, ``re_param``)."""
_OWN = {"Steps", "Sampler", "CFG scale", "Seed", "Size"}
_TOLD_BY_NAME = {"Lora hashes", "TI hashes"}
"""With the hashes the WebUI would put another file's name into the prompt, where several are alike."""


def settings(picture: Mapping[str, Any], others: str = "") -> str:
    """The settings' line but for the seed, e.g. ``Steps: 20, Sampler: Euler a, CFG scale: 7, Size: 512x512``.

    Args:
        picture: ``steps``, ``sampler``, ``cfg``, ``width`` and ``height``.
        others: what else such a picture was made with, from :func:`other_settings`.
    """
    size = f"{picture['width']}x{picture['height']}"
    line = f"Steps: {picture['steps']}, Sampler: {picture['sampler']}, CFG scale: {picture['cfg']:g}, Size: {size}"
    return f"{line}, {others}" if others else line


def with_seed(line: str, seed: int) -> str:
    """The settings' line of one picture."""
    return f"{line}, Seed: {seed}"


def other_settings(path: Path) -> str:
    """What a stored picture was made with besides: Clip skip, schedule, checkpoint. Empty where nobody has noted it.

    The WebUI takes a setting that is not named for its default, so that leaving Clip skip out would switch it off.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            made = str(image.info.get("parameters") or "")
    except (OSError, ValueError):
        return ""
    pairs = _PAIR.findall(made.rstrip().rpartition("\n")[2])
    if len(pairs) < 3:
        return ""
    return ", ".join(f"{key}: {value}" for key, value in pairs if key not in _OWN | _TOLD_BY_NAME)
