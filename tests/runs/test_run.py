from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from lora_trainer.core.errors import InputError, NotFound, RunError
from lora_trainer.network.lora_file import file_name
from lora_trainer.runs.run import STATES, is_by_step, output_folder
from lora_trainer.runs.store import Runs
from tests.helpers import config


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


def again(runs: Runs) -> Runs:
    """Another program that looks at the same folder."""
    return Runs(runs.root)


def test_new_run_is_a_folder_that_another_program_can_read(runs: Runs) -> None:
    settings = config(network__rank=4)
    runs.create(settings, host="standalone")
    found = again(runs).get("test")
    assert found.config() == settings
    assert (found.name, found.state, found.manifest["host"]) == ("test", "queued", "standalone")
    assert found.state in STATES
    assert (found.manifest["step"], found.manifest["files"], found.manifest["epochs"]) == (0, [], 10)
    assert found.folder == found.samples.parent == found.states.parent == found.grids.parent


def test_taken_name_is_refused_and_the_run_kept(runs: Runs) -> None:
    runs.create(config(network__rank=4))
    with pytest.raises(InputError, match="a run “test” exists already") as caught:
        again(runs).create(config())
    assert caught.value.field == "name"
    assert again(runs).get("test").config().network.rank == 4


def test_same_run_is_one_object_within_a_program(runs: Runs) -> None:
    assert runs.create(config()) is runs.get("test") is runs.list()[0]


def test_manifest_is_written_at_once_when_asked_and_soon_otherwise(runs: Runs) -> None:
    run = runs.create(config())
    run.update(step=1)
    assert again(runs).get("test").manifest["step"] == 0
    run.update(step=2, now=True)
    assert again(runs).get("test").manifest["step"] == 2


def test_log_gives_what_came_after_a_step(runs: Runs) -> None:
    run = runs.create(config())
    for step in (1, 2, 3):
        run.log(step=step, loss=step / 10)
    run.log(step=2, validation=0.5)
    assert [e["step"] for e in run.entries()] == [1, 2, 2, 3]
    assert run.entries(after=2) == [{"step": 3, "loss": 0.3}]
    assert [e for e in run.entries() if "validation" in e] == [{"step": 2, "validation": 0.5}]


def test_of_steps_done_twice_the_later_counts(runs: Runs) -> None:
    run = runs.create(config())
    for loss, step in enumerate((1, 2, 3, 2, 3)):
        run.log(step=step, loss=loss)
    assert [(e["step"], e["loss"]) for e in run.entries()] == [(1, 0), (2, 3), (3, 4)]


def test_damaged_log_lines_are_left_out(runs: Runs) -> None:
    run = runs.create(config())
    lines = ['{"step": 1}', '{"step": 2, "lo', "", "[1]", "null", '{"step": "x"}', '{"no": 1}', "\x00", '{"step": 3}']
    (run.folder / "log.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\xfe")
    assert [e["step"] for e in run.entries()] == [1, 3]


def test_run_without_a_log_has_no_entries(runs: Runs) -> None:
    assert runs.create(config()).entries() == []


def test_log_that_cannot_be_written_is_said(runs: Runs) -> None:
    run = runs.create(config())
    (run.folder / "log.jsonl").mkdir()
    with pytest.raises(RunError, match="could not be written"):
        run.log(step=1)


def test_file_written_again_replaces_its_entry(runs: Runs) -> None:
    run = runs.create(config())
    for sha in ("old", "new"):
        run.add_file({"path": "a.safetensors", "epoch": 1, "step": 3, "sha256": sha})
    run.add_file({"path": "b.safetensors", "epoch": 2, "step": 6, "sha256": "b"})
    assert [(f["path"], f["sha256"]) for f in again(runs).get("test").manifest["files"]] == [
        ("a.safetensors", "new"),
        ("b.safetensors", "b"),
    ]


@pytest.mark.parametrize("name", ["", ".", "..", "../test", "other", "a/b", "\x00", "x" * 500, "{x}"])
def test_name_that_is_no_run_is_said(runs: Runs, name: str) -> None:
    runs.create(config())
    with pytest.raises(NotFound, match=r"There is no run named|No training run is chosen"):
        runs.get(name)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"state": "odd"}', b"\xff\xfe", b"[" * 100_000])
def test_damaged_manifest_is_said_by_name_and_hides_no_other(runs: Runs, content: bytes) -> None:
    for name in ("good", "bad"):
        runs.create(config(name=name))
    (runs.root / "bad" / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        again(runs).get("bad")
    shown = {run.name: run for run in again(runs).list()}
    assert (shown["good"].state, shown["bad"].state) == ("queued", "damaged")
    assert "The run bad cannot be read" in shown["bad"].manifest["message"]
    with pytest.raises(InputError):
        shown["bad"].update(step=1, now=True)
    assert (runs.root / "bad" / "manifest.json").read_bytes() == content


def test_runs_are_listed_newest_first(runs: Runs) -> None:
    for age, name in enumerate(("new", "older", "oldest")):
        folder = runs.create(config(name=name)).folder
        os.utime(folder / "config.toml", (1e9 - age, 1e9 - age))
    (runs.root / "no run").mkdir()
    assert runs.names() == ["new", "older", "oldest"]
    assert Runs(runs.root / "missing").list() == []


def test_deleted_run_is_gone_and_its_name_free(runs: Runs) -> None:
    folder = runs.create(config()).folder
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    with pytest.raises(NotFound):
        runs.get("test")
    runs.create(config())


def test_manifest_is_plain_json(runs: Runs) -> None:
    run = runs.create(config())
    assert json.loads((run.folder / "manifest.json").read_text(encoding="utf-8")) == run.manifest


@pytest.mark.parametrize(("folder", "expected"), [("", "test"), ("styles", "styles"), ("a/b", "a/b")])
def test_files_go_below_the_loras(folder: str, expected: str) -> None:
    assert output_folder(config(save__folder=folder), Path("loras")) == Path("loras") / expected


NAMES = ["two-step dance", "cat-steps100", "x-step00000002", "a-step", "第-step-1", "b-000001"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("told", [True, False])
def test_what_a_file_was_saved_for_does_not_come_out_of_the_runs_name(name: str, told: bool) -> None:
    """In runs of older versions (not told) and of this one."""
    for label, by_step in (({"epoch": 1}, False), ({"step": 2}, True), ({}, False)):
        entry = {"path": f"/l/{file_name(name, **label)}.safetensors", "epoch": 1, "step": 2}
        assert is_by_step(name, {**entry, "by_step": by_step} if told else entry) is by_step


def test_what_the_manifest_says_counts_before_the_name() -> None:
    entry = {"path": "renamed-step00000002.safetensors", "epoch": 1, "step": 2, "by_step": False}
    assert not is_by_step("a", entry)
    assert is_by_step("a", {**entry, "path": "b.safetensors", "by_step": True})


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_burnt_run_writes_json_all_the_same(runs: Runs, number: float) -> None:
    """Its losses are no numbers; what other programs read must not be broken by that."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    run = runs.create(config())
    run.update(now=True, loss=number, validation={"last": number, "base": 0.5})
    run.log(step=1, loss=number, lr={"unet": 1e-4})
    run.log(step=1, validation=number)
    files = (run.folder / "manifest.json", run.folder / "log.jsonl")
    for text in (files[0].read_text(encoding="utf-8"), *files[1].read_text(encoding="utf-8").splitlines()):
        json.loads(text, parse_constant=refuse)
    found = again(runs).get("test")
    assert (found.manifest["loss"], found.manifest["validation"]) == (None, {"last": None, "base": 0.5})
    assert [entry.get("loss") for entry in found.entries()] == [None, None]


def test_a_log_of_an_older_version_with_nan_in_it_is_read(runs: Runs) -> None:
    run = runs.create(config())
    (run.folder / "log.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 0.5}\n', encoding="utf-8")
    assert [entry["loss"] for entry in run.entries()] == [None, 0.5]
