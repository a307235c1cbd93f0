from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError, NotFound
from lora_trainer.jobs import trash
from lora_trainer.jobs.service import Jobs
from lora_trainer.runs.run import Run
from tests.helpers import LIMIT, until
from tests.runs_helpers import document, make_jobs, run_to_end


def start(jobs: Jobs, root: Path, name: str = "zorp", **changes: Any) -> Run:
    return jobs.submit(TrainConfig.from_dict(document(root, name, **changes)))


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_a_deleted_run_lies_in_the_trash_whole_and_its_name_is_free(tmp_path: Path) -> None:
    run = run_to_end(tmp_path)
    before = contents(run.folder)
    (file,) = [Path(entry["path"]) for entry in run.manifest["files"]]
    file.with_suffix(".json").write_text("{}", encoding="utf-8")
    jobs = make_jobs(tmp_path)
    place = trash.delete(jobs, "zorp", files=True)
    assert contents(place / "run") == before
    assert contents(place / "loras") >= {"zorp.safetensors", "zorp.json"}
    assert jobs.runs.names() == []
    assert jobs.list() == []
    with pytest.raises(NotFound):
        jobs.settled("zorp")
    again = start(jobs, tmp_path)
    assert jobs.wait(again, LIMIT)
    assert again.state == "done"


def test_lora_files_stay_where_they_are_unless_they_are_meant_too(tmp_path: Path) -> None:
    run = run_to_end(tmp_path)
    (file,) = [Path(entry["path"]) for entry in run.manifest["files"]]
    jobs = make_jobs(tmp_path)
    trash.delete(jobs, "zorp", files=False)
    assert file.is_file()
    with pytest.raises(InputError, match="exists already"):
        start(jobs, tmp_path)


def test_files_among_others_are_taken_with_their_cards_and_the_others_stay(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    run = start(jobs, tmp_path, "mine", save__folder="shared")
    assert jobs.wait(run, LIMIT)
    folder = jobs.host.folders.loras / "shared"
    for name in ("mine.preview.png", "other.safetensors", "mine-2.safetensors"):
        (folder / name).write_bytes(b"x")
    place = trash.delete(jobs, "mine", files=True)
    assert contents(folder) == {"other.safetensors", "mine-2.safetensors"}
    assert contents(place / "loras") >= {"mine.safetensors", "mine.preview.png"}


def test_what_a_person_has_put_beside_a_runs_files_stays(tmp_path: Path) -> None:
    run_to_end(tmp_path)
    jobs = make_jobs(tmp_path)
    folder = jobs.host.folders.loras / "zorp"
    for name in ("zorp-baked.safetensors", "notes.txt", "old.safetensors"):
        (folder / name).write_bytes(b"mine")
    place = trash.delete(jobs, "zorp", files=True)
    assert contents(folder) == {"zorp-baked.safetensors", "notes.txt", "old.safetensors"}
    assert "zorp.safetensors" in contents(place / "loras")


@pytest.mark.parametrize("elsewhere", ["diary.txt", "diary.safetensors", "models/Lora/others/diary.safetensors"])
def test_a_manifest_of_somebody_elses_takes_nothing_of_this_persons_along(tmp_path: Path, elsewhere: str) -> None:
    run_to_end(tmp_path)
    jobs = make_jobs(tmp_path)
    run = jobs.runs.get("zorp")
    diary = tmp_path / elsewhere
    diary.parent.mkdir(parents=True, exist_ok=True)
    diary.write_bytes(b"mine")
    around = jobs.host.folders.loras / "zorp" / os.path.relpath(diary, jobs.host.folders.loras / "zorp")
    run.update(files=[*run.manifest["files"], *({"path": str(p), "epoch": 1, "step": 1} for p in (diary, around))])
    run.write()
    trash.delete(jobs, "zorp", files=True)
    assert diary.read_bytes() == b"mine"


def test_the_same_name_can_be_deleted_many_times_in_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trash.time, "strftime", lambda form: "20261127-120000")
    jobs = make_jobs(tmp_path)
    places = []
    for _ in range(3):
        jobs.runs.create(TrainConfig.from_dict(document(tmp_path))).update(state="stopped", now=True)
        places.append(trash.delete(jobs, "zorp", files=True))
    assert len(set(places)) == 3
    assert all((place / "run" / "config.toml").is_file() for place in places)


def test_a_run_that_is_worked_on_is_not_deleted(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    first, second = start(jobs, tmp_path, "first", training__steps=2000), start(jobs, tmp_path, "second")
    for name in ("first", "second"):
        with pytest.raises(InputError, match="stop it first"):
            trash.delete(jobs, name, files=True)
    jobs.stop("second")
    trash.delete(jobs, "second", files=True)
    assert (first.folder.is_dir(), second.folder.exists()) == (True, False)
    jobs.stop("first")
    assert jobs.wait(first, LIMIT)


@pytest.mark.parametrize("name", ["", "nobody", "../..", ".trash"])
def test_what_is_no_run_is_not_deleted(name: str, tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    jobs.runs.create(TrainConfig.from_dict(document(tmp_path))).update(state="stopped", now=True)
    trash.delete(jobs, "zorp", files=True)
    before = contents(tmp_path)
    with pytest.raises(NotFound):
        trash.delete(jobs, name, files=True)
    assert contents(tmp_path) == before


def test_a_discarded_run_is_gone_when_its_step_has_ended_and_its_name_is_free(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    run = start(jobs, tmp_path, training__steps=2000, save__every_steps=1)
    until(lambda: bool(run.manifest["files"]))
    trash.discard(jobs, "zorp").join(LIMIT)
    assert jobs.runs.names() == []
    (place,) = (jobs.runs.root / trash.FOLDER).iterdir()
    assert "manifest.json" in contents(place / "run")
    assert not (jobs.host.folders.loras / "zorp").exists()
    again = start(jobs, tmp_path)
    assert jobs.wait(again, LIMIT)
    assert again.state == "done"


def test_a_waiting_run_is_discarded_too_and_one_that_has_ended_is_not(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    first = start(jobs, tmp_path, "first", training__steps=2000)
    start(jobs, tmp_path, "second")
    trash.discard(jobs, "second").join(LIMIT)
    assert jobs.runs.names() == ["first"]
    jobs.stop("first")
    assert jobs.wait(first, LIMIT)
    with pytest.raises(InputError, match="not running"):
        trash.discard(jobs, "first")
    assert jobs.runs.names() == ["first"]


def test_what_cannot_be_moved_is_a_sentence_and_the_run_is_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_to_end(tmp_path)
    jobs = make_jobs(tmp_path)

    def busy(source: Path, target: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(trash.os, "rename", busy)
    with pytest.raises(InputError, match=r"cannot be moved to .*resource busy"):
        trash.delete(jobs, "zorp", files=True)
    assert jobs.settled("zorp").state == "done"
    assert Path(run.manifest["files"][0]["path"]).is_file()


def test_the_loras_may_be_on_another_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_to_end(tmp_path)
    jobs = make_jobs(tmp_path)
    rename = os.rename

    def elsewhere(source: Any, target: Any, **options: Any) -> None:
        if Path(source).parent == jobs.host.folders.loras:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target, **options)

    monkeypatch.setattr(trash.os, "rename", elsewhere)
    place = trash.delete(jobs, "zorp", files=True)
    assert "zorp.safetensors" in contents(place / "loras")
    assert not (jobs.host.folders.loras / "zorp").exists()
