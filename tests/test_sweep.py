"""Several runs that differ in some settings."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.config import TrainConfig
from lora_trainer.errors import InputError
from lora_trainer.sweep import MOST, parse_sweep, variants
from tests.helpers import config
from tests.runs_helpers import document, make_jobs


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("network.rank = 8, 16", {"network.rank": [8, 16]}),
        ("network.rank=8，16\n\n data.repeats = [1, 3]", {"network.rank": [8, 16], "data.repeats": [1, 3]}),
        ('training.optimizer = "AdamW", "Lion"', {"training.optimizer": ["AdamW", "Lion"]}),
        ("data.flip = true, false", {"data.flip": [True, False]}),
    ],
)  # fmt: skip
def test_lines_are_settings_with_their_values(text: str, values: dict[str, list[Any]]) -> None:
    assert parse_sweep(text) == values


@given(st.text())
def test_any_other_text_is_a_sentence(text: str) -> None:
    with contextlib.suppress(InputError):
        assert all(values for values in parse_sweep(text).values())


def test_every_combination_is_a_run_with_a_name_of_its_own() -> None:
    found = variants(config(), {"network.rank": [4, 8], "training.unet_lr": [1e-4, 3e-4, 1e-3]})
    assert [(c.network.rank, c.training.unet_lr) for c in found] == [
        (rank, rate) for rank in (4, 8) for rate in (1e-4, 3e-4, 1e-3)
    ]
    assert found[0].name == "test-rank4-unet_lr0.0001"
    assert len({c.name for c in found}) == 6


def test_values_that_are_no_file_names_still_name_a_file() -> None:
    found = variants(config(), {"training.optimizer_args": [{"weight_decay": 0.1}], "data.trigger": ["a/b: c"]})
    assert found[0].data.trigger == "a/b: c"


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"network.rang": [1]}, "network.rank"),
        ({"name": ["x"]}, "name"),
        ({"network.rank": [0]}, "out of range"),
        ({"training.seed": list(range(MOST + 1))}, "more than 50 runs"),
        ({"training.seed": list(range(1000)), "network.rank": list(range(1, 400))}, "more than 50 runs"),
    ],
)
def test_what_cannot_be_tried_is_a_sentence(values: dict[str, list[Any]], part: str) -> None:
    with pytest.raises(InputError, match=part):
        variants(config(), values)


def test_all_runs_are_done_or_none_is_begun(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    values = TrainConfig.from_dict(document(tmp_path))
    (tmp_path / "models" / "Lora" / "zorp-seed2").mkdir(parents=True)
    with pytest.raises(InputError, match="exists already"):
        jobs.sweep(values, {"training.seed": [1, 2]})
    assert jobs.runs.names() == []
    runs = jobs.sweep(values, {"training.seed": [1, 3]})
    assert all(jobs.wait(run, 60) for run in runs)
    assert [(run.name, run.state) for run in runs] == [("zorp-seed1", "done"), ("zorp-seed3", "done")]
