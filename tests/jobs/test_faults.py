"""What happens to real machines: nothing is lost, and each fault has its sentence."""

from __future__ import annotations

import errno
import itertools
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_trainer.config.train import TrainConfig
from lora_trainer.core import files
from lora_trainer.core.errors import InputError
from lora_trainer.runs.control import StopRequest
from lora_trainer.runs.run import Run
from lora_trainer.training import loop as run_module
from tests.helpers import LIMIT
from tests.runs_helpers import at_step, document, make_jobs, run_to_end, weights, when
from tools.soak.kills import Kills

STEPS = 12


@pytest.fixture(autouse=True)
def _a_slice_is_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "SLICE_SECONDS", 0.0)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The tensors of a run without any fault."""
    return weights(run_to_end(tmp_path_factory.mktemp("reference"), **settings()))


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "training__steps": STEPS,
        "save__every_steps": 4,
        "save__every_epochs": 0,
        "save__state_steps": 2,
        **changes,
    }


def resumed(root: Path) -> Run:
    jobs = make_jobs(root)
    run = jobs.resume("zorp")
    assert jobs.wait(run, LIMIT)
    return run


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    assert Kills(tmp_path, seed=4).go(3)["kills"] == 3


# ------------------------------------------------------------------ the disk
def full_disk(monkeypatch: pytest.MonkeyPatch, is_hit: Callable[[Path], bool], error: int = errno.ENOSPC) -> None:
    """Writing fails for some files, from the second time on."""
    count = itertools.count()
    make = files.tempfile.mkstemp

    def mkstemp(*, prefix: str, suffix: str, dir: Path) -> tuple[int, str]:
        if is_hit(Path(dir)) and next(count) >= 1:
            raise OSError(error, "No space left on device" if error == errno.ENOSPC else "Permission denied")
        return make(prefix=prefix, suffix=suffix, dir=dir)

    monkeypatch.setattr(files.tempfile, "mkstemp", mkstemp)


@pytest.mark.parametrize("place", ["Lora", "state"])
@pytest.mark.parametrize(("error", "part"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "Permission denied")])
def test_a_full_or_locked_folder_ends_the_run_and_it_goes_on_later(
    tmp_path: Path, reference: dict[str, bytes], place: str, error: int, part: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        full_disk(patch, lambda folder: place in folder.parts, error)
        run = run_to_end(tmp_path, **settings())
        assert run.state == "failed"
        assert part in run.manifest["message"]
    kept = [Path(entry["path"]) for entry in run.manifest["files"]]
    assert all(path.is_file() for path in kept)
    assert weights(resumed(tmp_path)) == reference


def test_a_disk_without_room_for_the_log_ends_the_run_and_it_goes_on_later(
    tmp_path: Path, reference: dict[str, bytes]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        log, count = Run.log, itertools.count()

        def full(self: Run, **entry: Any) -> None:
            if next(count) == 7:
                raise files.write_error(self.folder / "log.jsonl", OSError(errno.ENOSPC, "No space left on device"))
            log(self, **entry)

        patch.setattr(Run, "log", full)
        run = run_to_end(tmp_path, **settings())
    assert run.state == "failed"
    assert "log.jsonl" in run.manifest["message"]
    assert weights(resumed(tmp_path)) == reference
    assert [e["step"] for e in run.entries()] == list(range(1, STEPS + 1))


def test_a_manifest_that_cannot_be_written_does_not_break_the_line(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        when(jobs, at_step(2), lambda: full_disk(patch, lambda folder: "runs" in folder.parts))
        run = jobs.submit(TrainConfig.from_dict(document(tmp_path, **settings())))
        assert jobs.wait(run, LIMIT)
        assert run.state == "failed"
    other = jobs.submit(TrainConfig.from_dict(document(tmp_path, "other")))
    assert jobs.wait(other, LIMIT)
    assert other.state == "done"


def test_a_log_that_was_cut_off_keeps_what_comes_after(tmp_path: Path) -> None:
    run = run_to_end(tmp_path)
    path = run.folder / "log.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    run.log(step=9, loss=0.5)
    run.log(step=10, loss=0.25)
    assert [e["step"] for e in run.entries()][-2:] == [9, 10]


# ------------------------------------------------------------------ things that go away
def test_pictures_deleted_during_a_run_are_not_missed(tmp_path: Path, reference: dict[str, bytes]) -> None:
    jobs = make_jobs(tmp_path)
    folders = [tmp_path / "pictures", tmp_path / "cache"]
    when(jobs, at_step(1), lambda: [shutil.rmtree(folder) for folder in folders])
    run = jobs.submit(TrainConfig.from_dict(document(tmp_path, **settings())))
    assert jobs.wait(run, LIMIT)
    assert not any(folder.exists() for folder in folders)
    assert (run.state, run.manifest["message"]) == ("done", "")
    assert weights(run) == reference


def test_pictures_deleted_while_a_run_is_paused_are_asked_for(tmp_path: Path, reference: dict[str, bytes]) -> None:
    jobs = make_jobs(tmp_path)
    when(jobs, at_step(2), lambda: jobs.stop("zorp", StopRequest.PAUSE))
    run = jobs.submit(TrainConfig.from_dict(document(tmp_path, **settings())))
    assert jobs.wait(run, LIMIT)
    assert run.state == "paused"
    (tmp_path / "pictures").rename(tmp_path / "away")
    run = resumed(tmp_path)
    assert run.state == "failed"
    assert "does not exist" in run.manifest["message"]
    (tmp_path / "away").rename(tmp_path / "pictures")
    assert weights(resumed(tmp_path)) == reference


def test_a_lora_file_deleted_during_a_run_is_no_reason_to_stop(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    when(jobs, lambda run: run.manifest["files"], lambda: shutil.rmtree(tmp_path / "models"))
    run = jobs.submit(TrainConfig.from_dict(document(tmp_path, **settings())))
    assert jobs.wait(run, LIMIT)
    assert not Path(run.manifest["files"][0]["path"]).exists()
    assert run.state == "done"
    assert Path(run.manifest["files"][-1]["path"]).is_file()


@pytest.mark.parametrize("step", [1, 2])
def test_a_run_folder_deleted_during_a_run_costs_no_lora(
    tmp_path: Path, reference: dict[str, bytes], step: int
) -> None:
    """What is written first after it: the log of the next step, or a state."""
    jobs = make_jobs(tmp_path)
    folder = tmp_path / "runs" / "zorp"
    when(jobs, at_step(step), lambda: shutil.rmtree(folder))
    run = jobs.submit(TrainConfig.from_dict(document(tmp_path, **settings())))
    assert jobs.wait(run, LIMIT)
    assert not (folder / "config.toml").exists()
    assert run.state == "done"
    assert weights(run) == reference


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": "sleeping"}', "\0" * 100])
def test_a_damaged_manifest_hides_no_other_run(tmp_path: Path, content: str) -> None:
    run_to_end(tmp_path, "good")
    damaged = run_to_end(tmp_path, "bad")
    (damaged.folder / "manifest.json").write_text(content)
    jobs = make_jobs(tmp_path)
    assert {run.name: run.state for run in jobs.list()} == {"good": "done", "bad": "damaged"}
    with pytest.raises(InputError, match="damaged"):
        jobs.settled("bad")


# ------------------------------------------------------------------ people and clocks
def test_train_pressed_in_two_tabs_at_once_is_one_run(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    values = document(tmp_path)
    answers: list[str] = []
    together = threading.Barrier(4)

    def press() -> None:
        together.wait()
        try:
            jobs.submit(TrainConfig.from_dict(values))
            answers.append("taken")
        except InputError as error:
            answers.append(str(error))

    threads = [threading.Thread(target=press) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.count("taken") == 1
    assert all("exists already" in answer for answer in answers if answer != "taken")
    assert jobs.wait(jobs.runs.get("zorp"), LIMIT)


def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: dict[str, bytes]
) -> None:
    jumps = itertools.cycle([0.0, -86400.0, 1e7, -3e8])
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    run = run_to_end(tmp_path, **settings())
    assert run.state == "done"
    assert 0 < run.manifest["seconds"] < LIMIT
    assert weights(run) == reference


def test_a_burnt_file_is_told_in_its_grid_and_breaks_no_reader(tmp_path: Path) -> None:
    fastapi = pytest.importorskip("fastapi", reason="REST is asked, which newer packages are tested without")
    from fastapi.testclient import TestClient

    from lora_trainer.api.routes import PREFIX, mount

    run_to_end(tmp_path, training__steps=2, validation__share=0.4)
    jobs = make_jobs(tmp_path)
    run = jobs.runs.get("zorp")
    path = Path(run.manifest["files"][-1]["path"])
    save_file({name: torch.full_like(t, torch.nan) for name, t in load_file(path).items()}, path)
    jobs.grids.draw("zorp", weights=[0.5, 1], prompts=["zorp"])
    assert jobs.wait(run, LIMIT)
    app = fastapi.FastAPI()
    mount(app, jobs)
    client = TestClient(app, base_url=f"http://test{PREFIX}", raise_server_exceptions=False)
    for route in ("runs/zorp", "runs/zorp/grid", "runs", "runs/zorp/log", "runs/zorp/blocks"):
        answer = client.get(route)
        assert answer.status_code == 200, answer.text
        json.loads(answer.text, parse_constant=pytest.fail)
    again = make_jobs(tmp_path).grids.document("zorp")
    assert run.manifest["grid"]["state"] == "done"
    assert again["verdict"]["state"] == "useless"
    assert "the training broke" in again["verdict"]["sentences"][0]["template"]
    for file in run.folder.rglob("*.json"):
        json.loads(file.read_text(encoding="utf-8"), parse_constant=pytest.fail)
