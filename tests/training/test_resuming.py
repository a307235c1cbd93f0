"""Which settings of a run may change before it goes on."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.cli.main import main
from lora_trainer.config.train import TrainConfig, options
from lora_trainer.core.errors import InputError
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.queue import QueuedJob
from lora_trainer.jobs.service import Jobs
from lora_trainer.runs.control import StopRequest
from lora_trainer.runs.run import Run
from lora_trainer.training import loop as run_module
from lora_trainer.training.resuming import MAY_CHANGE, changes
from lora_trainer.training.state import read_settings
from tests.helpers import CASES, CHECKPOINT, LIMIT, config
from tests.runs_helpers import document, make_jobs, weights


@pytest.fixture(autouse=True)
def _short_slices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run_module, "SLICE_SECONDS", 0.0)
    loaded = make_jobs(tmp_path).host._loaded[1]  # type: ignore[attr-defined]
    monkeypatch.setattr(StandaloneHost, "_load", lambda self, path: loaded)


def paused(root: Path, settings: TrainConfig, at: int = 2) -> Run:
    """A run that was paused after some steps."""
    jobs = make_jobs(root)
    jobs._on_change = lambda run: run.manifest["step"] == at and jobs.training.current().control.ask(StopRequest.PAUSE)
    run = jobs.submit(settings)
    assert jobs.wait(run, LIMIT)
    assert (run.state, run.manifest["step"]) == ("paused", at)
    return run


def settings_of(root: Path, **changed: Any) -> TrainConfig:
    values = document(root, training__steps=4, **changed)
    return TrainConfig.from_dict({**values, "checkpoint": str(CHECKPOINT)})


def write(run: Run, settings: TrainConfig) -> str:
    text = settings.to_toml()
    (run.folder / "config.toml").write_text(text, encoding="utf-8")
    return text


OTHERS = {
    "training.unet_lr": 5e-4, "training.steps": 10, "training.seed": 7, "network.rank": 4, "network.alpha": 2.0,
    "training.optimizer_args": {"weight_decay": 0.5}, "data.resolution": 128, "save.folder": "elsewhere",
    "validation.share": 0.3, "network.continue_from": "x.safetensors", "training.scheduler": "linear",
}  # fmt: skip
ALLOWED = {
    "samples.prompts": ["zorp"], "samples.every_steps": 1, "samples.seed": 9, "save.every_steps": 1,
    "save.state_steps": 1, "validation.every_epochs": 2,
}  # fmt: skip


def test_every_difference_is_found_and_paths_are_compared_by_what_they_mean() -> None:
    before = config(data__folder="a/../b", checkpoint='"m.safetensors"')
    after = before.with_values({"data.folder": "./b/", "checkpoint": str(Path.cwd() / "m.safetensors")})
    assert changes(before.to_dict(), after) == {}
    after = before.with_values({"data.folder": "c", "network.rank": 3})
    assert changes(before.to_dict(), after) == {"data.folder": ("a/../b", "c"), "network.rank": (16, 3)}
    assert changes({"network": {"rank": 16}}, after) == {"network.rank": (16, 3)}  # what an older version did not know


def test_what_may_change_exists() -> None:
    paths = [item.path for item in options()]
    assert all(any(path.startswith(key) for path in paths) for key in MAY_CHANGE)


@pytest.mark.parametrize("edited", ["config.toml of the run", "given"])
def test_what_was_learned_with_other_settings_does_not_go_on(tmp_path: Path, edited: str) -> None:
    settings = settings_of(tmp_path)
    run = paused(tmp_path, settings)
    kept = read_settings(run.states)
    assert kept == settings.to_dict()
    jobs = make_jobs(tmp_path)
    for keys in ([key] for key in OTHERS), [list(OTHERS)]:
        for each in keys:
            wanted = settings.with_values({key: OTHERS[key] for key in each})
            text = write(run, wanted if edited != "given" else settings)
            with pytest.raises(InputError, match="can only go on with the settings that it began with") as caught:
                jobs.resume("zorp", None if edited != "given" else wanted)
            assert caught.value.field in each
            assert sum(f"{key} (" in str(caught.value) for key in each) == min(5, len(each))
            assert (run.folder / "config.toml").read_text(encoding="utf-8") == text  # nothing of the person's is lost
            assert jobs.settled("zorp").state == "paused"


@pytest.mark.parametrize("way", ["config.toml of the run", "given"])
def test_what_changes_nothing_of_what_is_learned_is_used(tmp_path: Path, way: str) -> None:
    settings = settings_of(tmp_path, samples__prompts=[])
    run = paused(tmp_path, settings)
    wanted = settings.with_values(ALLOWED)
    jobs = make_jobs(tmp_path)
    if way != "given":
        write(run, wanted)
    run = jobs.resume("zorp", wanted if way == "given" else None)
    assert jobs.wait(run, LIMIT)
    assert (run.state, run.config()) == ("done", wanted)
    assert [entry["step"] for entry in run.manifest["files"]] == [2, 3, 4]  # step 2 is due again
    assert {entry["step"] for entry in run.manifest["samples"]} >= {3, 4}
    whole = make_jobs(tmp_path / "whole")
    assert whole.wait(other := whole.submit(settings), LIMIT)
    assert weights(run) == weights(other)


def test_an_edit_while_the_run_waits_in_line_is_refused_by_the_run(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    run = paused(tmp_path, settings)
    jobs = make_jobs(tmp_path)
    go = threading.Event()
    jobs.training.add(QueuedJob(None, lambda control: go.wait(LIMIT)))
    run = jobs.resume("zorp")
    write(run, settings.with_values({"training.seed": 1}))
    go.set()
    assert jobs.wait(run, LIMIT)
    assert (run.state, run.manifest["step"]) == ("failed", 2)
    assert "training.seed (42 → 1)" in run.manifest["message"]
    write(run, settings)
    again = make_jobs(tmp_path)
    run = again.resume("zorp")
    assert again.wait(run, LIMIT)
    assert run.state == "done"


def test_a_run_that_has_learned_nothing_takes_its_edited_settings_but_not_another_name(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    run = paused(tmp_path, settings)
    shutil.rmtree(run.states)
    jobs = make_jobs(tmp_path)
    write(run, settings.with_values({"name": "other"}))
    with pytest.raises(InputError, match="name ") as caught:
        jobs.resume("zorp")
    assert caught.value.field == "name"
    write(run, settings.with_values({"training.steps": 3}))
    run = jobs.resume("zorp")
    assert jobs.wait(run, LIMIT)
    assert (run.state, run.manifest["steps"]) == ("done", 3)


def test_states_of_older_versions_have_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "save_state", lambda *a: own(*a[:3]))
    own = __import__("lora_trainer.training.state", fromlist=["save_state"]).save_state
    run = paused(tmp_path, settings_of(tmp_path))
    assert read_settings(run.states) is None
    jobs = make_jobs(tmp_path)
    run = jobs.resume("zorp")
    assert jobs.wait(run, LIMIT)
    assert run.state == "done"


# ------------------------------------------------------------------ the command line
@pytest.mark.parametrize(
    ("case", "replaced", "given", "told"),
    [
        ("resume-set", {}, ["--set", "training.unet_lr=5e-4"], "training.unet_lr (0.0001 → 0.0005)"),
        ("resume-changed-file", {"steps=400": "steps=10"}, [], "training.steps (400 → 10)"),
        ("resume-set", {"state_steps=2": "state_steps=2\nprecision='fp32'"}, [], 'save.precision ("fp16" → "fp32")'),
    ],
)
def test_the_cases_of_resuming_with_other_settings(
    case: str, replaced: dict[str, str], given: list[str], told: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copytree(CASES / case, tmp_path / "case")
    monkeypatch.chdir(tmp_path / "case")
    begun = interrupted(tmp_path / "case")
    text = Path("run.toml").read_text(encoding="utf-8")
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    Path("run.toml").write_text(text, encoding="utf-8")
    code = main(["train", "run.toml", "--root", "root", "--resume", "--set", f"checkpoint={CHECKPOINT}", *given])
    err = capsys.readouterr().err
    assert (code, err.count("\n"), told in err) == (2, 1, True), err
    assert json.loads((begun / "manifest.json").read_text(encoding="utf-8"))["state"] == "paused"


def test_what_is_used_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(CASES / "resume-set", tmp_path / "case")
    monkeypatch.chdir(tmp_path / "case")
    toml = Path("run.toml")
    toml.write_text(toml.read_text(encoding="utf-8").replace("steps=400", "steps=3"), encoding="utf-8")
    interrupted(tmp_path / "case", at=1)
    given = ["--set", f"checkpoint={CHECKPOINT}", "--set", "save.every_steps=1"]
    assert main(["train", "run.toml", "--root", "root", "--resume", *given]) == 0
    out, err = capsys.readouterr()
    assert "note: the run goes on with changed settings: save.every_steps" in err
    assert "r-step00000001.safetensors" in out


def interrupted(folder: Path, at: int = 2) -> Path:
    """Begin the case's run as the command line would, and pause it; returns its folder."""
    settings = TrainConfig.from_toml(folder / "run.toml").with_values({"checkpoint": str(CHECKPOINT)})
    jobs = Jobs(StandaloneHost(Path("root")))
    jobs._on_change = lambda run: run.manifest["step"] == at and jobs.training.current().control.ask(StopRequest.PAUSE)
    run = jobs.submit(settings)
    assert jobs.wait(run, LIMIT)
    assert run.state == "paused", run.manifest["message"]
    return run.folder.absolute()
