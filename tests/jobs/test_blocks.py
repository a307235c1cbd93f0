"""Analysis and tuning in the drawing line: from jobs, through REST, and on the command line."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file

from lora_trainer.api import routes
from lora_trainer.cli.main import main
from lora_trainer.core.errors import InputError, RunError
from lora_trainer.jobs.block_work import blocks_folder
from lora_trainer.jobs.blocks import read_result
from lora_trainer.jobs.service import Jobs
from lora_trainer.runs.run import Run
from lora_trainer.validation.blocks import ablation as block_analysis
from lora_trainer.validation.blocks import report as block_tuning
from lora_trainer.validation.blocks.tuner import Effort
from tests.helpers import CHECKPOINT, LIMIT, draw_pictures, until
from tests.runs_helpers import make_jobs, run_to_end

BUSY = "are being looked at already"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a file of two blocks, so that its analysis has few pictures."""
    root = tmp_path_factory.mktemp("blocks")
    run = run_to_end(root, validation__share=0.4, save__precision="fp32")
    entry = run.manifest["files"][-1]
    kept = {n: t for n, t in load_file(entry["path"]).items() if "mid_block" in n or "down_blocks_0_attentions_0" in n}
    save_file(kept, entry["path"])
    run.add_file({**entry, "sha256": block_analysis.file_hash(Path(entry["path"]))})
    return root


@pytest.fixture
def jobs(root: Path) -> Jobs:
    return make_jobs(root)


@pytest.fixture
def run(jobs: Jobs) -> Iterator[Run]:
    run = jobs.runs.get("zorp")
    run.update(blocks={}, now=True)
    yield run
    assert jobs.wait(run, LIMIT)


@pytest.fixture
def client(jobs: Jobs) -> Iterator[TestClient]:
    app = FastAPI()
    routes.mount(app, jobs)
    with TestClient(app, base_url=f"http://test{routes.PREFIX}") as made:
        yield made


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tunings that take no time."""
    monkeypatch.setattr(block_tuning, "SINGLE_WEIGHTS", (1.0, 0.5))
    defaults = Effort(steps=1, batch=1, levels=1, draws=1)
    monkeypatch.setattr(block_tuning.Tuner.__init__, "__defaults__", ("auto", 1.0, defaults, lambda done: None))
    monkeypatch.setattr("lora_trainer.validation.blocks.effort.Effort", lambda **_: defaults)


# ------------------------------------------------------------------ through REST
def test_an_analysis_through_rest(client: TestClient, jobs: Jobs, run: Run) -> None:
    body = {"prompts": ["zorp", "a red circle"], "seeds": [1], "together": 2}
    answer = client.post("runs/zorp/blocks/analyze", json=body)
    assert answer.json()["blocks"]["state"] in ("queued", "running")
    assert jobs.wait(run, LIMIT)
    known = client.get("runs/zorp/blocks").json()
    assert known["progress"]["state"] == "done", known["progress"]
    assert (known["progress"]["done"], known["progress"]["of"]) == (12, 12)
    last = dict(zip(known["heat"]["blocks"], known["heat"]["rows"][-1]["norms"], strict=True))
    assert [block for block, norm in last.items() if norm] == ["IN01", "M00"]
    assert {entry["block"] for entry in known["analysis"]["blocks"]} == {"IN01", "M00"}
    assert [r["trigger"] for r in known["analysis"]["requests"]] == [True, False]
    assert Path(known["analysis"]["sheets"][0]).is_file()
    assert client.get("runs/zorp").json()["blocks"]["state"] == "done"


@pytest.mark.usefixtures("short")
def test_a_tuning_through_rest(client: TestClient, jobs: Jobs, run: Run) -> None:
    answer = client.post("runs/zorp/blocks/tune", json={"weight": 0.8})
    assert answer.json()["blocks"]["kind"] == "tuning"
    assert jobs.wait(run, LIMIT)
    known = client.get("runs/zorp/blocks", params={"file": "zorp"}).json()
    assert known["progress"]["state"] == "done", known["progress"]
    assert known["tuning"]["weights"].keys() == {"IN01", "M00"}
    assert (known["tuning"]["weight"], known["tuning"]["pictures"]) == (0.8, {"kind": "held out", "count": 2})


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("zorp/blocks/analyze", {"seeds": ["1"]}, 422, "seeds"),
        ("zorp/blocks/analyze", {"seeds": [True]}, 422, "seeds"),
        ("zorp/blocks/analyze", {"seeds": [-1]}, 422, "seeds"),
        ("zorp/blocks/analyze", {"seeds": 3}, 422, "seeds"),
        ("zorp/blocks/analyze", {"prompts": "zorp"}, 422, "prompts"),
        ("zorp/blocks/analyze", {"together": 0}, 422, "together"),
        ("zorp/blocks/analyze", {"weight": 0}, 422, "weight"),
        ("zorp/blocks/analyze", {"file": "../zorp"}, 422, "file"),
        ("zorp/blocks/analyze", {"prompt": ["a"]}, 422, "prompt"),
        ("zorp/blocks/tune", {"steps": 0}, 422, "steps"),
        ("zorp/blocks/tune", {"pull": "high"}, 422, "pull"),
        ("zorp/blocks/tune", {"file": "gone"}, 422, "file"),
        ("nobody/blocks/analyze", {}, 404, "name"),
        ("nobody/blocks/tune", {}, 404, "name"),
        ("zorp/blocks/stop", {}, 422, ""),
    ],
)
def test_bad_input_names_its_field(client: TestClient, run: Run, path: str, body: Any, status: int, field: str) -> None:
    answer = client.post(f"runs/{path}", json=body)
    assert (answer.status_code, answer.json()["detail"][0]["field"]) == (status, field)
    assert not run.manifest["blocks"]


def test_other_peoples_folders_are_not_read(jobs: Jobs, run: Run, tmp_path: Path) -> None:
    jobs.host.readable = [jobs.host.folders.loras]  # type: ignore[misc]
    with pytest.raises(InputError, match="may not be read") as caught:
        jobs.blocks.tune("zorp", {"pictures": str(tmp_path)})
    assert caught.value.field == "pictures"


# ------------------------------------------------------------------ in the line
def test_one_at_a_time_can_be_stopped_and_goes_on(jobs: Jobs, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    def slow(plan: Any, session: Any, folder: Path, *, together: int, on_cells: Any) -> None:
        on_cells(1, 6)
        assert go.wait(LIMIT)
        on_cells(2, 6)

    monkeypatch.setattr(block_analysis, "analyze", slow)
    jobs.blocks.analyze("zorp", {"prompts": ["a"]})
    until(lambda: run.manifest["blocks"].get("done") == 1)
    for again in (jobs.blocks.analyze, jobs.blocks.tune):
        with pytest.raises(InputError, match=BUSY):
            again("zorp", {})
    jobs.blocks.stop("zorp")
    go.set()
    assert jobs.wait(run, LIMIT)
    assert run.manifest["blocks"]["state"] == "stopped"
    assert "finished pictures are kept" in run.manifest["blocks"]["message"]
    with pytest.raises(InputError, match="No blocks of zorp"):
        jobs.blocks.stop("zorp")


def test_a_waiting_one_leaves_the_line_and_a_grid_is_not_touched(
    jobs: Jobs, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    monkeypatch.setattr("lora_trainer.jobs.grids.Grid.work", lambda *_: go.wait(LIMIT) and {})
    jobs.grids.draw("zorp", weights=[1.0], prompts=["zorp"])
    jobs.blocks.tune("zorp", {})
    assert jobs.blocks.progress(run)["state"] == "queued"
    jobs.blocks.stop("zorp")
    assert run.manifest["blocks"]["state"] == "stopped"
    assert jobs.is_worked_on(run)
    go.set()
    assert jobs.wait(run, LIMIT)


@pytest.mark.parametrize("error", [RunError("The disk is full."), ValueError("odd")])
def test_a_failure_is_a_sentence(jobs: Jobs, run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(block_analysis, "analyze", fail)
    jobs.blocks.analyze("zorp", {"prompts": ["a"]})
    assert jobs.wait(run, LIMIT)
    assert run.manifest["blocks"]["state"] == "failed"
    assert str(error) in run.manifest["blocks"]["message"]


def test_what_ended_with_its_program_is_told_as_stopped(jobs: Jobs, run: Run) -> None:
    run.update(blocks={"state": "running", "kind": "analysis", "file": "zorp", "done": 3, "of": 9}, now=True)
    found = jobs.blocks.progress(run)
    assert (found["state"], found["done"]) == ("stopped", 3)
    assert jobs.blocks.progress(Run(Path("new"), {"state": "done", "files": []})) == {}


def test_results_of_other_bytes_are_not_shown(run: Run, tmp_path: Path) -> None:
    path = Path(run.manifest["files"][-1]["path"])
    folder = blocks_folder(run) / path.stem
    folder.mkdir(parents=True, exist_ok=True)
    document = folder / "old.json"
    assert read_result(run, path, "old") is None
    document.write_text(json.dumps({"sha256": "of a file that is gone"}), encoding="utf-8")
    assert read_result(run, path, "old") is None
    of_this_file = run.manifest["files"][-1]["sha256"]
    for damage in ("[", "{}", json.dumps({"sha256": of_this_file})):
        document.write_text(damage, encoding="utf-8")
        with pytest.raises(InputError, match=r"old\.json is damaged"):
            read_result(run, path, "old")


# ------------------------------------------------------------------ on the command line
def cli(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def file(root: Path, tmp_path: Path) -> Path:
    path = tmp_path / "alone.safetensors"
    shutil.copy(root / "models" / "Lora" / "zorp" / "zorp.safetensors", path)
    return path


def test_the_heat_map_needs_no_checkpoint(capsys: pytest.CaptureFixture[str], root: Path, file: Path) -> None:
    code, out, _ = cli(capsys, "blocks", "analyze", "zorp", "--root", root)
    assert code == 0
    assert "IN01" in out
    assert "epoch" in out
    code, out, _ = cli(
        capsys, "blocks", "analyze", file, "--root", file.parent, "--output", file.parent / "o", "--json"
    )
    heat = json.loads(out)
    assert (heat["name"], heat["blocks"], len(heat["rows"])) == ("alone", ["IN01", "M00"], 1)
    assert Path(heat["csv"]).read_text(encoding="utf-8").startswith("file,epoch,step,IN01,M00\n")


def test_pictures_of_a_file_with_a_checkpoint(capsys: pytest.CaptureFixture[str], file: Path, tmp_path: Path) -> None:
    options = ("--checkpoint", CHECKPOINT, "--size", 64, 64, "--steps", 1, "--sampler", "Euler", "--root", tmp_path)
    arguments = ("--prompt", "zorp", "--prompt", "dog", "--trigger", "zorp", "--seed", 3, *options)
    code, out, err = cli(capsys, "blocks", "analyze", file, *arguments)
    assert code == 0, err
    assert "Drawing 12 pictures: 2 without the LoRA and as many with it, then with each of 2 blocks" in err
    assert out.splitlines()[-1] == str(tmp_path / "blocks" / "alone" / "analysis-1.png")
    assert "leak" in out.splitlines()[0]
    found = json.loads(cli(capsys, "blocks", "analyze", file, *arguments, "--json")[1])
    assert (found["size"], found["steps"], found["requests"][0]["seed"]) == ([64, 64], 1, 3)


@pytest.mark.usefixtures("short")
def test_a_tuning_with_other_pictures_is_baked(capsys: pytest.CaptureFixture[str], file: Path, tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", count=2, size=(64, 64))
    output, baked = tmp_path / "t.json", tmp_path / "baked.safetensors"
    options = ("--checkpoint", CHECKPOINT, "--pictures", tmp_path / "pictures", "--resolution", 64, "--root", tmp_path)
    code, out, err = cli(capsys, "blocks", "tune", file, *options, "--output", output, "--bake", baked)
    assert code == 0, err
    assert out.splitlines()[-1] == str(baked)
    found = json.loads(output.read_text(encoding="utf-8"))
    assert f"lbw={found['lbw']}" in out
    assert found["pictures"] == {"kind": "folder", "count": 2}
    assert load_file(baked).keys() <= load_file(file).keys()
    code, _, err = cli(capsys, "blocks", "tune", file, *options, "--bake", baked)
    assert code == 2
    assert "never overwritten" in err


@pytest.mark.usefixtures("short")
def test_a_file_of_a_run_is_tuned_as_the_run_is(
    capsys: pytest.CaptureFixture[str], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However its path is written, the run's held-out pictures are found, and the page finds the result."""
    monkeypatch.chdir(root)
    arguments = (
        "blocks",
        "tune",
        "models/../models/Lora/zorp/zorp.safetensors",
        "--checkpoint",
        CHECKPOINT,
        "--root",
        root,
    )
    code, out, err = cli(capsys, *arguments, "--pull", 0.05, "--steps", 1)
    assert code == 0, err
    assert "pictures: 2 (held out)" in out
    assert "on 2 pictures (held out): 1 steps" in err
    run = make_jobs(root).runs.get("zorp")
    assert read_result(run, Path(run.manifest["files"][-1]["path"]), "tuning") is not None
    assert cli(capsys, *arguments, "--json")[2] == ""


def test_the_heat_map_of_a_runs_file_has_this_file_alone(capsys: pytest.CaptureFixture[str], root: Path) -> None:
    file = root / "models" / "Lora" / "zorp" / "zorp.safetensors"
    heat = json.loads(cli(capsys, "blocks", "analyze", file, "--root", root, "--json")[1])
    assert (heat["name"], [row["label"] for row in heat["rows"]]) == ("zorp", ["zorp"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("blocks", "analyze", "nobody"), "no run named"),
        (("blocks", "analyze", "gone.safetensors"), "does not exist"),
        (("blocks", "analyze", "zorp", "--epoch", 9), "has no file epoch 9"),
        (("blocks", "analyze", "FILE", "--epoch", 1), "--epoch is for a run"),
        (("blocks", "analyze", "FILE", "--prompt", "a"), "name the checkpoint"),
        (("blocks", "analyze", "zorp", "--prompt", "a", "--weight", 0), "weight: use a number"),
        (("blocks", "analyze", "zorp", "--prompt", "a", "--steps", 0), "samples.steps: 0 is out of range"),
        (("blocks", "analyze", "zorp", "--prompt", "a", "--size", 63, 64), "63 px is not a multiple of 8"),
        (("blocks", "analyze", "zorp", "--prompt", "a", "--seed", "1,-4"), "seeds: give whole numbers from 0"),
        (("blocks", "analyze", "zorp", "--prompt", "a", "--together", 0), "together: 0 is out of range"),
        (("blocks", "analyze", "zorp", "--prompt", "a", "--sampler", "x"), "invalid choice: 'x'"),
        (("blocks", "tune", "FILE", "--checkpoint", CHECKPOINT), "not in the list of any run in"),
        (("blocks", "tune", "gone.safetensors"), "does not exist"),
        (("blocks", "tune", "zorp", "--pictures", "gone", "--checkpoint", CHECKPOINT), "does not exist"),
        (("blocks", "tune", "zorp", "--steps", 0), "steps: weights are learned in at least 1 step, not 0"),
        (("blocks", "tune", "zorp", "--pull", "-1"), "pull: use a number from 0 up, not -1"),
        (("blocks", "tune", "zorp", "--checkpoint", "FILE"), "alone.safetensors is a LoRA, not a checkpoint"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], root: Path, file: Path, arguments: tuple[Any, ...], said: str
) -> None:
    code, out, err = cli(capsys, *(file if a == "FILE" else a for a in arguments), "--root", root)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1
