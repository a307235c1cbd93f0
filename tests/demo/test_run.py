"""The demo: the main job from pictures to the chosen epoch, made short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_trainer.cli.main import main
from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError, RunError
from lora_trainer.dataset.scan import scan
from lora_trainer.demo import run as demo
from lora_trainer.hosts.standalone.host import StandaloneHost
from tests.helpers import data
from tests.runs_helpers import make_jobs

SHORT = {
    "training.epochs": 2,
    "training.batch_size": 3,
    "training.text_lr": 0,
    "network.rank": 2,
    "network.alpha": 1,
    "data.resolution": 64,
    "samples.steps": 1,
    "samples.prompts": ["zorp"],
    "validation.timesteps": 2,
}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A demo of seconds: few small pictures, few steps; tests may put more into its settings."""
    changes: dict[str, Any] = dict(SHORT)
    loaded = make_jobs(tmp_path).host._loaded[1]  # type: ignore[attr-defined]
    usual_pictures, usual_config = demo.make_pictures, demo.demo_config

    def config(pictures: Path) -> TrainConfig:
        return usual_config(pictures).with_values(changes)

    monkeypatch.setattr(demo, "make_pictures", lambda folder: usual_pictures(folder, count=4))
    monkeypatch.setattr(demo, "demo_config", config)
    monkeypatch.setattr(demo, "WEIGHTS", (0.5, 1.0))
    monkeypatch.setattr(demo, "PROMPTS", ("zorp",))
    monkeypatch.setattr(StandaloneHost, "_load", lambda self, path: loaded)
    return changes


def test_the_whole_job_leaves_its_files_and_a_report(
    short: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    assert main(["demo", "--output", str(output)]) == 0
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert [Path(path).name for path in report["loras"]] == ["zorp-000001.safetensors", "zorp.safetensors"]
    assert all(Path(path).is_file() for path in report["loras"])
    with Image.open(report["grid"]) as grid:
        assert grid.width > 3 * 64
    log = (output / "runs" / "zorp" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [entry["loss"] for entry in map(json.loads, log) if "loss" in entry]
    half = len(losses) // 2
    assert report["loss_first"] == pytest.approx(sum(losses[:half]) / half)
    assert report["loss_last"] == pytest.approx(sum(losses[half:]) / half)
    losses_of = {(g["column"], g["weight"]): g["numbers"]["loss"] for g in report["groups"]}
    assert sorted(losses_of) == [(0, 0), (1, 0.5), (1, 1), (2, 0.5), (2, 1)]
    best = report["best"]
    assert best["epoch"] == 1 + report["loras"].index(best["file"])
    assert best["val_loss"] == report["val_loss_best"] == losses_of[best["epoch"], best["weight"]]
    assert report["val_loss_base"] == losses_of[0, 0]
    assert report["verdict"] in ("good", "under", "over", "useless", "unknown")
    assert report["recommendation"][0].startswith(f"Recommended: {Path(best['file']).stem} ")
    assert Path(report["numbers"]).is_file()
    assert report["seconds"] > 0
    printed = capsys.readouterr().out
    for text in (
        report["grid"],
        *report["recommendation"],
        str(output / "report.json"),
        f"<lora:{Path(best['file']).stem}:{best['weight']:g}>",
    ):
        assert text in printed
    assert TrainConfig.from_toml(output / "zorp.toml").training.epochs == 2


def test_a_training_that_fails_fails_the_demo(short: dict[str, Any], tmp_path: Path) -> None:
    short["training.precision"] = "fp16"
    with pytest.raises(RunError, match=r"training failed: .*needs a graphics card"):
        demo.run_demo(tmp_path / "output")
    assert not (tmp_path / "output" / "report.json").exists()


# ------------------------------------------------------------------ what it starts from
def test_the_pictures_are_two_kohya_folders_and_only_zorps_are_called_so(tmp_path: Path) -> None:
    demo.make_pictures(tmp_path, count=8)
    dataset = scan(data(folder=str(tmp_path), resolution=128, bucket_step=32))
    assert (len(dataset.items), dataset.images) == (16, 80)
    assert not dataset.problems
    assert not dataset.uncaptioned
    for item in dataset.items:
        assert "background" in item.caption
        assert item.caption.startswith("zorp, ") == (item.path.parent.name == "6_zorp")
    assert len({item.fit.bucket for item in dataset.items}) > 1
    demo.make_pictures(tmp_path / "again", count=8)
    for path in (tmp_path / "6_zorp").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / "6_zorp" / path.name).read_bytes()


def test_the_settings_name_the_checkpoint_that_comes_with_the_program(tmp_path: Path) -> None:
    config = demo.demo_config(tmp_path)
    assert Path(config.checkpoint).is_file()
    assert config.validation.share > 0  # or there would be nothing to choose the best by
    assert TrainConfig.from_dict(config.to_dict()) == config


# ------------------------------------------------------------------ the folder
def test_the_folder_of_an_earlier_demo_is_emptied(tmp_path: Path) -> None:
    output = tmp_path / "output"
    demo._fresh(output)
    (output / "runs").mkdir()
    (output / "runs" / "old").write_text("old", encoding="utf-8")
    demo._fresh(output)
    assert [path.name for path in output.iterdir()] == [demo._MARKER]


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    demo._fresh(tmp_path)
    assert (tmp_path / demo._MARKER).is_file()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_anything_else_is_left_alone_with_one_sentence(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "output"
    theirs = output / "thesis.txt" if kind == "folder" else output
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("years of work", encoding="utf-8")
    with pytest.raises(InputError, match="not an earlier demo's folder"):
        demo.run_demo(output)
    assert theirs.read_text(encoding="utf-8") == "years of work"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [theirs]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match="could not be written"):
        demo.run_demo(tmp_path / "file" / "output")
