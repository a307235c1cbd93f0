from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest
from safetensors import SafetensorError

from lora_trainer import files
from lora_trainer.errors import RunError
from lora_trainer.files import (
    make_folder,
    remove_unfinished,
    replace_atomically,
    write_error,
    write_json,
    write_text,
)
from tests.helpers import temporary_files


def half_written(error: BaseException):
    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    return write


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "file.json"
    path.write_text("old")
    return path


@pytest.mark.parametrize("durable", [True, False])
def test_file_is_replaced_and_its_folder_made(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "a" / "b" / "file.bin"
    for content in (b"one", b"two"):
        replace_atomically(path, lambda temporary, c=content: temporary.write_bytes(c), durable=durable)
        assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), OSError(errno.EIO, "broken disk")])
def test_failure_in_the_writer_keeps_the_old_file(old: Path, error: BaseException) -> None:
    with pytest.raises(RunError if isinstance(error, OSError) else type(error)):
        replace_atomically(old, half_written(error))
    assert old.read_text() == "old"
    assert list(old.parent.iterdir()) == [old]


def test_failure_to_flush_keeps_the_old_file(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match="broken disk"):
        write_text(old, "new")
    assert old.read_text() == "old"
    assert not temporary_files(old.parent)


def test_bytes_are_on_the_disk_before_the_name_changes(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *names: (events.append("replace"), replace(*names)))
    write_text(old, "new")
    assert events[:2] == ["fsync", "replace"]


@pytest.mark.parametrize("tries", [1, 3])
def test_on_windows_a_file_that_is_open_for_a_moment_is_tried_again(
    old: Path, monkeypatch: pytest.MonkeyPatch, tries: int
) -> None:
    replace, left = os.replace, [PermissionError(errno.EACCES, "in use")] * tries

    def busy(source: Path, target: Path) -> None:
        if left:
            raise left.pop()
        replace(source, target)

    monkeypatch.setattr(files, "_WAITS", (0.001,) * 3)
    monkeypatch.setattr(os, "replace", busy)
    write_json(old, {"new": 1})
    assert files.read_json(old) == {"new": 1}
    assert not left


def test_a_file_that_stays_open_is_said(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(source: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "in use")

    monkeypatch.setattr(files, "_WAITS", (0.001,) * 3)
    monkeypatch.setattr(os, "replace", busy)
    with pytest.raises(RunError, match=r"file\.json could not be written: in use"):
        write_text(old, "new")
    assert old.read_text() == "old"
    assert temporary_files(old.parent) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError('Error while serializing: IoError(Os { code: 28, message: "No space left on device" })'),
    ],
    ids=["system", "safetensors"],
)
def test_full_disk_is_said(old: Path, error: Exception) -> None:
    with pytest.raises(RunError, match=r"The disk is full: .*file\.json could not be written; free some space\."):
        replace_atomically(old, half_written(error))
    assert old.read_text() == "old"
    assert not temporary_files(old.parent)


def test_folder_that_cannot_be_made_is_said(old: Path) -> None:
    with pytest.raises(RunError, match="could not be written"):
        write_text(old / "below" / "file.txt", "text")


def test_other_errors_give_the_systems_reason() -> None:
    assert "Permission denied" in str(write_error(Path("x"), OSError(errno.EACCES, "Permission denied")))


def test_text_is_utf8_with_unix_line_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "汉服\nzwei\n")
    assert (tmp_path / "a.txt").read_bytes() == "汉服\nzwei\n".encode()


def test_json_is_readable_by_people(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "汉服", "n": [1]})
    assert "汉服" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "汉服", "n": [1]}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_file_gets_the_usual_rights_not_those_of_a_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_text(tmp_path / "ours", "")
    rights = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "ours")]
    assert rights[0] == rights[1]


def test_a_folder_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "first").write_text("1")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="disk is full"):
        make_folder(tmp_path / "run", fail)
    assert list(tmp_path.iterdir()) == []
    make_folder(tmp_path / "run", lambda folder: (folder / "first").write_text("1"))
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["run", "run/first"]


def test_only_what_is_unfinished_and_ours_is_removed(tmp_path: Path) -> None:
    kept = [tmp_path / "lora.safetensors", tmp_path / ".hidden", tmp_path / "other.tmp"]
    for path in kept:
        path.write_text("x")

    def killed(temporary: Path) -> None:
        temporary.write_text("half")
        (tmp_path / f".copy{temporary.suffix}").write_text("half")  # what a killed process leaves

    replace_atomically(tmp_path / "done.txt", killed)
    remove_unfinished(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "done.txt", "lora.safetensors", "other.tmp"]
