from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.core.errors import RunError
from lora_trainer.validation.grid.csv_table import write_csv
from tests.helpers import temporary_files


def grid(prompt: str = "zorp, 红色背景", name: str = "zorp-000002") -> dict[str, Any]:
    numbers = {"loss": 0.25, "loss_se": 0.01, "effect": 0.125, "effect_sd": 0.5}
    return {
        "columns": [
            {"label": "no LoRA", "file": None, "name": "", "epoch": 0, "step": 0},
            {"label": "epoch 2", "file": "a", "name": name, "epoch": 2, "step": 40},
        ],
        "prompts": [{"text": prompt, "trigger": True}, {"text": "a hat", "trigger": False}],
        "seeds": [7, 8],
        "cells": [
            {"column": 0, "weight": 0.0, "prompt": 1, "seed": 1, "picture": None, "numbers": {}},
            {"column": 1, "weight": -0.5, "prompt": 0, "seed": 0, "picture": "/a.png", "numbers": {"copy": 0.75}},
        ],
        "groups": [
            {"column": 0, "weight": 0.0, "numbers": {}},
            {"column": 1, "weight": -0.5, "numbers": numbers},
            {"column": 1, "weight": 1.0, "numbers": {}},
        ],
        "verdict": {"column": 1, "weight": -0.5},
    }


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")))


def test_one_line_a_group_and_one_a_cell(tmp_path: Path) -> None:
    cells = write_csv(grid(), tmp_path / "grid.csv")
    assert cells == tmp_path / "grid-cells.csv"
    base, chosen, other = rows(tmp_path / "grid.csv")
    assert (base["column"], base["name"], base["loss"], base["recommended"]) == ("no LoRA", "", "", "")
    wanted = {"column": "epoch 2", "name": "zorp-000002", "epoch": "2", "step": "40", "weight": "-0.5"}
    wanted |= {"loss": "0.25", "loss_se": "0.01", "effect": "0.125", "effect_sd": "0.5", "copy": "", "clip_sd": ""}
    assert {name: chosen[name] for name in wanted} == wanted
    assert (chosen["recommended"], other["recommended"]) == ("yes", "")
    waiting, drawn = rows(cells)
    assert (waiting["prompt"], waiting["trigger"], waiting["seed"], waiting["picture"]) == ("a hat", "no", "8", "")
    wanted = {
        "prompt": "zorp, 红色背景",
        "trigger": "yes",
        "seed": "7",
        "copy": "0.75",
        "effect": "",
        "picture": "/a.png",
    }
    assert {name: drawn[name] for name in wanted} == wanted
    assert not temporary_files(tmp_path)


def test_excel_in_china_reads_it_as_utf_8(tmp_path: Path) -> None:
    cells = write_csv(grid(), tmp_path / "grid.csv")
    for path in (cells, tmp_path / "grid.csv"):
        assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert "红色背景".encode() in cells.read_bytes()


@pytest.mark.parametrize("start", ["=", "+", "-", "@", " =", "\t=", "\n@", "＝", "＋", "－", "＠"])
def test_no_text_is_taken_for_a_formula(tmp_path: Path, start: str) -> None:
    text = f'{start}HYPERLINK("http://example.org";"a")'
    cells = write_csv(grid(text, name=text), tmp_path / "grid.csv")
    assert rows(cells)[1]["prompt"] == rows(cells)[1]["name"] == f"'{text}"
    assert rows(tmp_path / "grid.csv")[1]["name"] == f"'{text}"
    assert rows(tmp_path / "grid.csv")[1]["weight"] == "-0.5"  # a number stays one


_text = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=30)


@given(_text)
def test_any_prompt_comes_back(tmp_path: Path, prompt: str) -> None:
    cells = write_csv(grid(prompt), tmp_path / "grid.csv")
    back = rows(cells)[1]["prompt"]
    assert back.removeprefix("'") == prompt.removeprefix("'")
    assert not back.lstrip().startswith(("=", "+", "-", "@"))


def test_before_the_verdict_nothing_is_recommended(tmp_path: Path) -> None:
    write_csv({**grid(), "verdict": None}, tmp_path / "grid.csv")
    assert [row["recommended"] for row in rows(tmp_path / "grid.csv")] == ["", "", ""]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match="could not be written"):
        write_csv(grid(), tmp_path / "file" / "grid.csv")
