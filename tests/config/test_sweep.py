"""Several runs that differ in some settings."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.config.sweep import MOST, parse_sweep, variants
from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError
from tests.helpers import LIMIT, config
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


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("training.optimizer=AdamW,Lion", {"training.optimizer": ["AdamW", "Lion"]}),
        ("data.trigger = 0x2b, 2024, 2024-01-05", {"data.trigger": ["0x2b", "2024", "2024-01-05"]}),
        ("data.trigger = true, nan, it's，\"a, b\"", {"data.trigger": ["true", "nan", "it's", "a, b"]}),
        ("data.trigger = 汉服，旗袍", {"data.trigger": ["汉服", "旗袍"]}),
        ('data.trigger = "红，蓝", 绿', {"data.trigger": ["红，蓝", "绿"]}),
        ("data.separator = \";\", ','", {"data.separator": [";", ","]}),
        ("training.unet_lr = 1e-4, .5, 3", {"training.unet_lr": [1e-4, 0.5, 3]}),
        ("network.rank = 0x10, 1_6,", {"network.rank": [16, 16]}),
        ("data.flip = True, FALSE", {"data.flip": [True, False]}),
        ("network.rank = 8\nnetwork.rank = 16, 32", {"network.rank": [8, 16, 32]}),
        ('samples.prompts = ["a", "b"], ["c"]', {"samples.prompts": [["a", "b"], ["c"]]}),
        ('samples.prompts = [["a", "b"], ["c"]]', {"samples.prompts": [["a", "b"], ["c"]]}),
        ('samples.prompts = ["a", "b"]', {"samples.prompts": [["a", "b"]]}),
        ("samples.prompts = a red hat, a blue hat", {"samples.prompts": [["a red hat"], ["a blue hat"]]}),
        (
            "training.optimizer_args = {betas = [0.9, 0.99], d = 1}, {}, weight_decay = 0.1",
            {"training.optimizer_args": [{"betas": [0.9, 0.99], "d": 1}, {}, {"weight_decay": 0.1}]},
        ),
        ("network.continue_from = \"C:\\temp\\a.safetensors\", 'b'", {
            "network.continue_from": ["\"C:\\temp\\a.safetensors\"", "'b'"],
        }),
    ],
)  # fmt: skip
def test_a_value_is_read_by_its_settings_type(text: str, values: dict[str, list[Any]]) -> None:
    assert parse_sweep(text) == values


@pytest.mark.parametrize(
    "line",
    ["network.rank", "network.rank =", "network.rank = 8,,16", "network.rank = ,", 'data.trigger = "a, b', "= 1",
     "samples.prompts = [a", "network.rank = []"],
)  # fmt: skip
def test_a_line_that_is_none_is_a_sentence(line: str) -> None:
    with pytest.raises(InputError, match=r"is not of the form|expected a whole number") as caught:
        variants(config(), parse_sweep(line))
    assert caught.value.field in ("sweep", "network.rank")


def test_a_setting_that_does_not_exist_is_said() -> None:
    with pytest.raises(InputError, match=r"did you mean network\.rank\?"):
        parse_sweep("network.rnak = 8, 16")


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ({"network.rank": [8, 8.0, 8, 16]}, 2),
        ({"training.unet_lr": [1, 1.0], "network.rank": [4, 4]}, 1),
        ({"data.flip": [True, True, False]}, 2),
        ({"data.folder": ["a", '"a"', " a "]}, 1),
        ({"samples.prompts": [["a"], ["a"], ["b"]]}, 2),
        ({"training.seed": [1, 2] * 100}, 2),
        ({"training.optimizer_args": [{"a": True}, {"a": 1}, {"a": 1.0}, {"a": 1}]}, 3),
    ],
)
def test_a_repeated_value_is_one_run(values: dict[str, list[Any]], count: int) -> None:
    found = variants(config(), values)
    assert len(found) == count
    assert len({c.name for c in found}) == count


@pytest.mark.parametrize(
    "values",
    [
        {"data.trigger": ["a b", "a_b", "a:b", "A b"]},
        {"training.unet_lr": [1e-4, 1.0000001e-4, 1.00000011e-4]},
        {"data.trigger": ["x", "x-2", "X"], "training.seed": [1, 2]},
        {"data.trigger": ["/", "\\", ""]},
    ],
)
def test_values_that_look_alike_in_a_file_name_have_names_of_their_own(values: dict[str, list[Any]]) -> None:
    names = [c.name.lower() for c in variants(config(), values)]
    assert len(set(names)) == len(names)
    assert len(names) == math.prod(map(len, values.values()))


def test_repeated_and_alike_values_are_all_done_or_none_is_begun(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    values = TrainConfig.from_dict(document(tmp_path, training__steps=1))
    runs = jobs.sweep(values, parse_sweep("data.trigger = a b, a_b, a b\ntraining.seed = 1, 1"))
    assert [run.name for run in runs] == ["zorp-triggera_b-seed1", "zorp-triggera_b-seed1-2"]
    assert all(jobs.wait(run, LIMIT) for run in runs)
    assert [run.state for run in runs] == ["done", "done"]


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
    assert all(jobs.wait(run, LIMIT) for run in runs)
    assert [(run.name, run.state) for run in runs] == [("zorp-seed1", "done"), ("zorp-seed3", "done")]


def test_the_name_is_made_of_the_values_and_no_value_itself() -> None:
    with pytest.raises(InputError, match="named after their values") as caught:
        parse_sweep("name = a, b")
    assert caught.value.field == "sweep"
