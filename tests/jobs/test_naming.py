"""Names of new runs: free whatever the capitals, anywhere in the LoRA folder, and not too long for the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError
from lora_trainer.hosts.base import Host
from lora_trainer.jobs import naming
from lora_trainer.jobs.service import Jobs
from tests.helpers import LIMIT
from tests.runs_helpers import document, make_jobs


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return make_jobs(tmp_path)


def config(tmp_path: Path, **values: Any) -> TrainConfig:
    return TrainConfig.from_dict(document(tmp_path, **values))


def check(name: str, host: Host, runs: Path) -> None:
    naming.require_free(TrainConfig(name=name), host, runs)


@pytest.mark.parametrize(
    ("there", "name"),
    [
        ("cat.safetensors", "cat"),
        ("animals/soft/Cat.safetensors", "cat"),
        ("animals/CAT.pt", "cat"),
        ("animals/cat.ckpt", "Cat"),
        ("cat-000003.safetensors", "cat"),
        ("others/cat-step00000100.safetensors", "Cat"),
        ("straße.safetensors", "STRASSE"),
        ("cafe\u0301.safetensors", "CAFÉ"),
        ("Cat/x.txt", "cat"),
    ],
)
def test_a_lora_anywhere_in_the_folder_has_the_name(jobs: Jobs, there: str, name: str) -> None:
    path = jobs.host.folders.loras / there
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=f"“{name}” exists already .* {name}-2\\.") as caught:
        check(name, jobs.host, jobs.runs.root)
    assert caught.value.field == "name"


@pytest.mark.parametrize(
    "there", ["cat2.safetensors", "cat-2.safetensors", "cat.png", "cat-20240101.safetensors", ".cat.safetensors"]
)
def test_other_files_have_not(jobs: Jobs, there: str) -> None:
    jobs.host.folders.loras.mkdir(parents=True)
    (jobs.host.folders.loras / there).write_bytes(b"")
    check("cat", jobs.host, jobs.runs.root)


def test_two_runs_whose_names_differ_in_capitals(jobs: Jobs, tmp_path: Path) -> None:
    jobs.wait(jobs.submit(config(tmp_path)), LIMIT)
    with pytest.raises(InputError, match=r"“ZORP” exists already.*ZORP-2"):
        jobs.submit(config(tmp_path, name="ZORP"))


def test_the_proposed_name_is_free(jobs: Jobs) -> None:
    for name in ("cat", "Cat-2", "x/CAT-3"):
        path = jobs.host.folders.loras / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    with pytest.raises(InputError, match="for example cat-4"):
        check("cat", jobs.host, jobs.runs.root)


def test_paths_that_are_too_long_are_told_when_it_is_submitted(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(tmp_path, name="x" * 90)
    jobs.check(asked)
    monkeypatch.setattr(naming, "longest_path", lambda: 259)
    with pytest.raises(InputError, match=r"would be \d+ characters longer than this system takes") as caught:
        jobs.check(asked)
    over = caught.value.message.values["count"]
    assert isinstance(over, int)
    assert caught.value.field == "name"
    monkeypatch.setattr(naming, "longest_path", lambda: 259 + over)
    jobs.check(asked)
    with pytest.raises(InputError, match=r"would be [12] characters longer"):
        jobs.check(config(tmp_path, name="x" * 91))


def test_no_path_of_a_run_is_longer_than_was_reckoned(jobs: Jobs, tmp_path: Path) -> None:
    run = jobs.submit(config(tmp_path, samples__prompts=["zorp"], samples__width=64, samples__height=64))
    jobs.wait(run, LIMIT)
    jobs.wait(jobs.grids.draw("zorp", weights=[1.0], prompts=["zorp"]), LIMIT)
    assert run.state == "done", run.manifest["message"]
    unfinished = len(".0123456789-0123456789-01234567.unfinished")
    for path in run.folder.rglob("*"):
        assert len(str(path.relative_to(run.folder).parent)) + unfinished < naming._IN_A_RUN
        assert len(str(path.relative_to(run.folder))) < naming._IN_A_RUN
    assert naming.longest_path() > 200


def test_a_folder_that_no_system_takes_is_refused_before_it_is_asked(jobs: Jobs, tmp_path: Path) -> None:
    for folder in ("x" * 300, "猫" * 100, "a/" + "b" * 256):
        with pytest.raises(InputError, match="is longer than the name of a folder can be") as caught:
            jobs.check(config(tmp_path, save__folder=folder))
        assert caught.value.field == "save.folder"
    with pytest.raises(InputError, match="characters longer than this system takes"):
        jobs.check(config(tmp_path, save__folder="a/" * 3000 + "b"))
    jobs.check(config(tmp_path, save__folder="x" * 255))
