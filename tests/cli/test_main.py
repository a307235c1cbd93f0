"""The command line: exit codes, one-line errors, machine-readable results."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.cli.main import main
from lora_trainer.config.train import TrainConfig
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.service import Jobs
from lora_trainer.runs.control import StopRequest
from lora_trainer.training import loop as run_module
from tests.helpers import CASES, CHECKPOINT, ROOT, draw_pictures
from tests.runs_helpers import document, make_jobs, run_to_end


@pytest.fixture(autouse=True)
def _one_loading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run_module, "SLICE_SECONDS", 0.0)
    loaded = make_jobs(tmp_path).host._loaded[1]  # type: ignore[attr-defined]
    monkeypatch.setattr(StandaloneHost, "_load", lambda self, path: loaded)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """A configuration beside its pictures, with relative paths."""
    values = document(tmp_path)
    values["checkpoint"] = str(CHECKPOINT)
    values["data"]["folder"] = "pictures"
    path = tmp_path / "zorp.toml"
    path.write_text(TrainConfig.from_dict(values).to_toml(), encoding="utf-8")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_train_prints_the_files(capsys: pytest.CaptureFixture[str], toml: Path, tmp_path: Path) -> None:
    code, out, _ = run(capsys, "train", toml, "--root", tmp_path, "--set", "training.steps=2", "--set", "name=other")
    assert code == 0
    assert out.splitlines()[0] == str(tmp_path / "models" / "Lora" / "other" / "other.safetensors")


def test_train_json_is_the_manifest(capsys: pytest.CaptureFixture[str], toml: Path, tmp_path: Path) -> None:
    code, out, _ = run(capsys, "train", toml, "--root", tmp_path, "--json")
    assert code == 0
    assert json.loads(out)["state"] == "done"


def test_a_failed_run_exits_with_1(capsys: pytest.CaptureFixture[str], toml: Path, tmp_path: Path) -> None:
    code, _, err = run(capsys, "train", toml, "--root", tmp_path, "--set", "training.precision=fp16")
    assert code == 1
    assert "needs a graphics card" in err


def test_resume_goes_on(capsys: pytest.CaptureFixture[str], toml: Path, tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    jobs._on_change = lambda run: run.manifest["step"] == 1 and jobs.training.current().control.ask(StopRequest.PAUSE)
    jobs.wait(jobs.submit(TrainConfig.from_dict(document(tmp_path))))
    values = run(capsys, "runs", "zorp", "--root", tmp_path, "--json")
    assert json.loads(values[1])["state"] == "paused"
    jobs.runs.get("zorp").folder.joinpath("config.toml").write_text(
        TrainConfig.from_dict({**document(tmp_path), "checkpoint": str(CHECKPOINT)}).to_toml(), encoding="utf-8"
    )
    code, out, _ = run(capsys, "train", toml, "--root", tmp_path, "--resume")
    assert code == 0
    assert "done" in out


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("name=2024", "name", "2024"),
        ("name=true", "name", "true"),
        ("data.trigger=0x2b", "data.trigger", "0x2b"),
        ("data.trigger=1979-05-27", "data.trigger", "1979-05-27"),
        ('data.trigger="a, b"', "data.trigger", "a, b"),
        ("data.separator= ", "data.separator", " "),
        ('data.separator=" "', "data.separator", " "),
        ("samples.negative=nan", "samples.negative", "nan"),
        ("samples.prompts=a, [b] c", "samples.prompts", ["a, [b] c"]),
        ('samples.prompts=["a", "b"]', "samples.prompts", ["a", "b"]),
        ("samples.prompts=12", "samples.prompts", ["12"]),
        ("training.optimizer_args=weight_decay = 0.1", "training.optimizer_args", {"weight_decay": 0.1}),
        ("training.unet_lr=.5", "training.unet_lr", 0.5),
        ("training.steps=1_000", "training.steps", 1000),
        ("data.flip=True", "data.flip", True),
        (r"data.folder=C:\temp\new", "data.folder", r"C:\temp\new"),
        (r'data.folder="C:\temp\new"', "data.folder", r"C:\temp\new"),
        ("save.folder=2024-01-05", "save.folder", "2024-01-05"),
    ],
)
def test_a_setting_is_read_by_its_fields_type(
    setting: str, key: str, value: Any, toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[TrainConfig] = []
    monkeypatch.setattr(Jobs, "submit", lambda self, config: asked.append(config) or sys.exit(0))
    with pytest.raises(SystemExit):
        main(["train", str(toml), "--root", str(tmp_path), "--set", setting])
    section, _, name = key.rpartition(".")
    assert getattr(getattr(asked[0], section) if section else asked[0], name) == value


def test_the_case_of_a_folder_that_is_a_date(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(CASES / "set-text", tmp_path / "case")
    monkeypatch.chdir(tmp_path / "case")
    given = ["--set", f"checkpoint={CHECKPOINT}", "--set", "data.folder=2024-01-05", "--set", "name=2024"]
    code, out, err = run(capsys, "train", "run.toml", "--root", "root", *given)
    assert (code, "2024.safetensors" in out) == (0, True), err


def test_a_sweep_is_one_list_of_manifests(capsys: pytest.CaptureFixture[str], toml: Path, tmp_path: Path) -> None:
    values = ["--set", "training.steps=1", "--sweep", "data.trigger=2024, 0x2b, 2024", "--sweep", "training.seed=1,1"]
    code, out, _ = run(capsys, "train", toml, "--root", tmp_path, *values, "--json")
    assert code == 0
    assert [m["name"] for m in json.loads(out)] == ["zorp-trigger2024-seed1", "zorp-trigger0x2b-seed1"]


def test_settings_that_nothing_uses_are_told(capsys: pytest.CaptureFixture[str], toml: Path, tmp_path: Path) -> None:
    idle = ["--set", "training.scheduler_cycles=3", "--set", "network.conv_rank=4"]
    _, _, err = run(capsys, "train", toml, "--root", tmp_path, *idle)
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert [note.split()[1] for note in notes] == ["training.scheduler_cycles:", "network.conv_rank:"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["train", "missing.toml"], "does not exist"),
        (["train", "{toml}", "--set", "network.rank"], "key=value"),
        (["train", "{toml}", "--set", "network.rnak=3"], "network.rank"),
        (["train", "{toml}", "--set", "network.rank=0"], "out of range"),
        (["train", "{toml}", "--set", "network.rank=many"], "expected a whole number"),
        (["train", "{toml}", "--set", "training.warmup=4"], "more than the run's 3 steps"),
        (["train", "{toml}", "--set", "training.warmup=0.1"], "the schedule constant has no warm-up"),
        (["train", "{toml}", "--resume", "--sweep", "network.rank=4,8"], "give one of them"),
        (["train", "{toml}", "--set", "network.rank=4", "--sweep", "network.rank=4,8"], "network.rank is given with"),
        (["train", "{toml}", "--sweep", "training.optimizer=AdamW,Lino"], "“Lino” is not one of"),
        (["train", "{toml}", "--set", "checkpoint=none.safetensors"], "none.safetensors"),
        (["train", "{toml}", "--resume"], "no run named zorp"),
        (["train", "{toml}", "--set", "data.folder=nowhere"], "nowhere"),
        (["runs", "nobody"], "no run named nobody"),
        (["grid", "nobody"], "no run named nobody"),
        (["dataset", "check", "nowhere"], "nowhere"),
        (["lora", "info", "none.safetensors"], "does not exist"),
    ],
)
def test_bad_input_exits_with_2_and_one_line(
    capsys: pytest.CaptureFixture[str],
    toml: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    part: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(capsys, *[a.format(toml=toml) for a in arguments])
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert part in err
    assert sorted(tmp_path.rglob("*")) == before


def test_runs_lists_and_shows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no runs" in run(capsys, "runs", "--root", tmp_path)[1]
    run_to_end(tmp_path)
    assert "zorp" in run(capsys, "runs", "--root", tmp_path)[1]
    listed = json.loads(run(capsys, "runs", "--root", tmp_path, "--json")[1])
    assert [m["name"] for m in listed] == ["zorp"]


def test_grid_and_lora_info(capsys: pytest.CaptureFixture[str], toml: Path, tmp_path: Path) -> None:
    assert run(capsys, "train", toml, "--root", tmp_path)[0] == 0
    code, out, _ = run(capsys, "grid", "zorp", "--root", tmp_path, "--weights", "1", "--prompt", "zorp", "--json")
    assert code == 0
    assert Path(json.loads(out)["grid"]).is_file()
    file = tmp_path / "models" / "Lora" / "zorp" / "zorp.safetensors"
    info = json.loads(run(capsys, "lora", "info", file, "--json")[1])
    assert (info["unet_modules"], info["ranks"], info["alphas"]) == (192, [2], [1.0])
    assert "ss_network_dim" in run(capsys, "lora", "info", file)[1]


def test_dataset_check_reports_every_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    document(tmp_path)
    report = json.loads(run(capsys, "dataset", "check", tmp_path / "pictures", "--resolution", "64", "--json")[1])
    assert len(report["items"]) == report["pictures"] == 5
    code, out, _ = run(capsys, "dataset", "check", tmp_path / "pictures", "--resolution", "64")
    assert code == 0
    assert out.count(".png") == 5


def test_dataset_check_names_what_is_left_out_and_guessed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    draw_pictures(folder / "150_x", 2, (64, 64))
    (folder / "150_x" / "00.txt").write_bytes("a girl’s dress".encode("cp1252"))
    for number in range(12):
        (folder / f"{number}.heic").write_bytes(b"x")
    _, out, _ = run(capsys, "dataset", "check", folder, "--resolution", "64")
    lines = out.splitlines()
    assert "  folder 150_x: 2 pictures, 150× each" in lines
    assert "“a girl’s dress”" in out
    warned = [line for line in lines if line.startswith("warning: ")]
    assert any("not read (12): 0.heic, 1.heic" in line for line in warned)
    assert any("150_x is read as 150 repeats" in line for line in warned)
    assert any("read as cp1252 by guessing (1): 150_x/00.txt" in line for line in warned)
    assert all(f"  {folder / f'{number}.heic'}" in lines for number in range(12))  # the sentence names ten


def test_dataset_check_warns_of_pictures_that_are_enlarged(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    document(tmp_path)
    _, out, _ = run(capsys, "dataset", "check", tmp_path / "pictures", "--resolution", "128")
    (warning,) = [line for line in out.splitlines() if line.startswith("warning: ")]
    assert warning.startswith("warning: 5 pictures are smaller than their bucket and are enlarged, ")
    assert "(2.00×)" in warning
    assert "data.upscale = false" in warning
    assert "warning" not in run(capsys, "dataset", "check", tmp_path / "pictures", "--resolution", "64")[1]


@pytest.mark.skipif(os.name == "nt", reason="Windows tells of a closed pipe in another way")
@pytest.mark.parametrize(
    ("arguments", "closed"),
    [(["runs"], "stdout"), (["--help"], "stdout"), (["runs", "nobody"], "stderr")],
    ids=["results", "help", "errors"],
)
def test_a_reader_that_closes_early_leaves_no_traceback(tmp_path: Path, arguments: list[str], closed: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, closed: writer}
    done = subprocess.run(
        [sys.executable, "-m", "lora_trainer", *arguments],
        cwd=tmp_path,
        env=environment,
        text=True,
        check=False,
        **streams,
    )
    os.close(writer)
    assert (done.returncode, done.stdout or "", done.stderr or "") == (1, "", "")


def test_a_page_of_a_checkpoint_that_is_not_there_or_on_a_port_in_use_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio 3.41.2, which newer packages do not go with")
    monkeypatch.setattr("lora_trainer.jobs.service._shared", [])
    code, _, err = run(capsys, "ui", "--root", tmp_path, "--checkpoint", tmp_path / "nope.safetensors")
    assert (code, "nope.safetensors" in err, err.count("\n")) == (2, True, 1)
    code, _, err = run(capsys, "ui", "--root", tmp_path, "--port", 99999)
    assert (code, err) == (2, "error: There is no port 99999; use one from 1 to 65535, such as 7862.\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = run(capsys, "ui", "--root", tmp_path, "--port", port)
    assert (code, err) == (2, f"error: The port {port} is in use; name another with --port.\n")
