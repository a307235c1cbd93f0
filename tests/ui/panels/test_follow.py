from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from lora_trainer.config.train import TrainConfig
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.library import LoraFolder
from lora_trainer.jobs.service import Jobs
from lora_trainer.runs.run import Run
from lora_trainer.ui.panels.follow import FolderWatch
from lora_trainer.ui.tab import Tab
from tests.helpers import CHECKPOINT
from tests.runs_helpers import document
from tests.ui.watched import poll


@pytest.fixture
def tab(tmp_path: Path) -> Tab:
    return Tab(Jobs(StandaloneHost(tmp_path, str(CHECKPOINT))))


def put(folder: Path, name: str) -> Path:
    """A file, and a time of its folder that no file system can take for the one before."""
    path = folder / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    stamp = path.parent.stat().st_mtime_ns + 10**9 * (1 + len(list(path.parent.iterdir())))
    os.utime(path.parent, ns=(stamp, stamp))
    return path


def make_run(tab: Tab, name: str, *files: str) -> Run:
    run = tab._jobs.runs.create(TrainConfig.from_dict(document(tab._jobs.runs.root.parent, name)))
    run.update(state="done", now=True)
    for file in files:
        add(tab, run, file)
    return run


def add(tab: Tab, run: Run, file: str) -> None:
    run.add_file({"path": str(put(tab._jobs.host.folders.loras, file)), "epoch": 1, "step": 1})


def follow(tab: Tab, run: str, file: str | None = None, stack: str = "", seen: Any = None) -> dict[str, Any]:
    """The values and choices that are put in, by the panel's part."""
    return poll(tab.follower.watch, run, file, stack, seen=seen)


# ------------------------------------------------------------------ the folder
def test_files_and_folders_are_found_as_they_come_and_go(tmp_path: Path) -> None:
    host = StandaloneHost(tmp_path, str(CHECKPOINT))
    loras, watch = host.folders.loras, FolderWatch(LoraFolder(host))
    assert watch.names() == []
    put(loras, "a")
    assert watch.names() == ["a"]
    put(loras / "sub" / "deep", "b")
    os.utime(loras, ns=(1, 1))
    assert watch.names() == ["a", "sub/deep/b"]
    put(loras / "sub" / "deep", "c")
    assert watch.names() == ["a", "sub/deep/b", "sub/deep/c"]
    (loras / "a.safetensors").unlink()
    os.utime(loras, ns=(2, 2))
    assert watch.names() == ["sub/deep/b", "sub/deep/c"]


def test_an_unchanged_folder_is_not_listed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = StandaloneHost(tmp_path, str(CHECKPOINT))
    put(host.folders.loras, "a")
    watch = FolderWatch(LoraFolder(host))
    assert watch.names() == ["a"]
    monkeypatch.setattr(LoraFolder, "names", lambda self: pytest.fail("listed again"))
    assert watch.names() == ["a"]


def test_a_folder_in_a_circle_ends(tmp_path: Path) -> None:
    host = StandaloneHost(tmp_path, str(CHECKPOINT))
    put(host.folders.loras / "sub", "a")
    try:
        (host.folders.loras / "sub" / "again").symlink_to(host.folders.loras, target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    assert FolderWatch(LoraFolder(host)).names() == ["sub/a"]


# ------------------------------------------------------------------ the panels
def test_tools_and_stacks_begin_with_the_chosen_runs_newest_file(tab: Tab) -> None:
    make_run(tab, "zorp", "zorp/zorp-000001", "zorp/zorp")
    shown = follow(tab, "zorp")
    assert shown["file"]["value"] == "zorp/zorp"
    assert shown["stack"]["value"] == "zorp/zorp: 0.8"
    assert shown["merge"]["choices"] == shown["stacks"]["choices"] == ["zorp/zorp", "zorp/zorp-000001"]
    assert follow(tab, "zorp", "zorp/zorp", "zorp/zorp: 0.8", shown["marks"]).keys() == {"marks"}


def test_another_run_and_a_new_epoch_are_followed(tab: Tab) -> None:
    run = make_run(tab, "zorp", "zorp/zorp-000001")
    make_run(tab, "other", "other/other")
    marks = follow(tab, "zorp")["marks"]
    add(tab, run, "zorp/zorp-000002")
    shown = follow(tab, "zorp", "zorp/zorp-000001", "zorp/zorp-000001: 0.8", marks)
    assert (shown["file"]["value"], shown["stack"]["value"]) == ("zorp/zorp-000002", "zorp/zorp-000002: 0.8")
    shown = follow(tab, "other", "zorp/zorp-000002", "zorp/zorp-000002: 0.8", shown["marks"])
    assert (shown["file"]["value"], shown["stack"]["value"]) == ("other/other", "other/other: 0.8")


def test_what_the_person_chose_is_left_alone(tab: Tab) -> None:
    run = make_run(tab, "zorp", "zorp/zorp-000001")
    put(tab._jobs.host.folders.loras, "mine")
    marks = follow(tab, "zorp")["marks"]
    add(tab, run, "zorp/zorp")
    shown = follow(tab, "zorp", "mine", "mine: 0.5", marks)
    assert "zorp/zorp" in shown["file"]["choices"]
    assert "value" not in shown["file"]
    assert "stack" not in shown


@pytest.mark.parametrize("name", [None, "", "nobody", "../.."])
def test_without_a_run_files_are_offered_and_none_is_chosen(tab: Tab, name: Any) -> None:
    put(tab._jobs.host.folders.loras, "a")
    shown = follow(tab, name)
    assert shown["file"] == gr.update(choices=["a"])
    assert "stack" not in shown


def test_files_elsewhere_and_deleted_ones_are_not_offered(tab: Tab, tmp_path: Path) -> None:
    run = make_run(tab, "zorp", "zorp/zorp")
    run.add_file({"path": str(put(tmp_path / "elsewhere", "far")), "epoch": 2, "step": 2})
    run.add_file({"path": str(tab._jobs.host.folders.loras / "gone.safetensors"), "epoch": 3, "step": 3})
    assert follow(tab, "zorp")["file"]["value"] == "zorp/zorp"


def test_block_weights_follow_the_chosen_run(tab: Tab) -> None:
    for name in ("zorp", "other"):
        make_run(tab, name)
    assert tab.block_weights._followed("zorp")["value"] == "zorp"
    assert tab.block_weights._followed("gone") == gr.update()
    changes = [
        d for d in tab.blocks.dependencies if d["targets"] == [tab.training.run._id] and d["trigger"] == "change"
    ]
    assert any(tab.block_weights.run._id in d["outputs"] for d in changes)


# ------------------------------------------------------------------ the WebUI's cards
def test_a_file_its_card_and_its_preview_are_each_told_to_the_page(tab: Tab) -> None:
    """And the file that was written last is named, with what a page opened later is compared."""
    run = make_run(tab, "zorp", "zorp/zorp-000001")
    seen = follow(tab, "zorp")
    said = [seen["cards"]]
    assert "cards" not in follow(tab, "zorp", seen=seen["marks"])
    for name in ("zorp/zorp-000001.json", "zorp/zorp-000001.png"):
        (put(tab._jobs.host.folders.loras, "zorp/unused")).rename(tab._jobs.host.folders.loras / name)
        seen = follow(tab, "zorp", seen=seen["marks"])
        said.append(seen["cards"])
    add(tab, run, "zorp/zorp-000002")
    os.utime(tab._jobs.host.folders.loras / "zorp" / "zorp-000002.safetensors", (4e9, 4e9))
    said.append(follow(tab, "zorp", seen=seen["marks"])["cards"])
    assert len(set(said)) == 4
    assert 'data-newest="zorp-000001"' in said[0]
    assert 'data-newest="zorp-000002"' in said[-1]
