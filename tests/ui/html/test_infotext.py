"""The text of a picture's settings, read back by the WebUI's own rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_trainer.core.files import save_picture
from lora_trainer.ui.html import infotext

PICTURE = {"steps": 20, "sampler": "DPM++ 2M", "cfg": 6.5, "width": 768, "height": 512}
MADE = (
    "zorp, Steps: 3, of 4\nNegative prompt: bad\n"
    "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 9, Size: 768x512, Model hash: abc, "
    'Clip skip: 2, Lora hashes: "zorp: 123, b: 4", Version: v1.10.1'
)


def read_back(text: str) -> dict[str, str]:
    """The WebUI's reading of a last line (infotext_utils.py:269)."""
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', text)
    return dict(pairs)


def picture(folder: Path, made: str | None, name: str = "a.png") -> Path:
    image = Image.new("RGB", (8, 8))
    if made is not None:
        image.info["parameters"] = made
    save_picture(folder / name, image)
    return folder / name


def test_all_that_txt2img_needs_is_in_the_line(tmp_path: Path) -> None:
    others = infotext.other_settings(picture(tmp_path, MADE))
    found = read_back(infotext.with_seed(infotext.settings(PICTURE, others), 7))
    assert found == {
        "Steps": "20", "Sampler": "DPM++ 2M", "CFG scale": "6.5", "Size": "768x512", "Seed": "7",
        "Schedule type": "Karras", "Model hash": "abc", "Clip skip": "2", "Version": "v1.10.1",
    }  # fmt: skip


@pytest.mark.parametrize("made", [None, "", "a prompt: with, colons: only", "Steps: 1", "\n\n"])
def test_a_picture_that_tells_nothing_adds_nothing(made: Any, tmp_path: Path) -> None:
    assert infotext.other_settings(picture(tmp_path, made)) == ""
    assert read_back(infotext.settings(PICTURE))["Size"] == "768x512"


def test_a_picture_that_cannot_be_read_adds_nothing(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"no picture")
    assert infotext.other_settings(tmp_path / "b.png") == infotext.other_settings(tmp_path / "gone.png") == ""
