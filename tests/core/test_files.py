from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from lora_trainer.core import files
from lora_trainer.core.errors import RunError
from lora_trainer.core.files import (
    append_line,
    make_folder,
    remove,
    remove_unfinished,
    replace_atomically,
    temporary_folder,
    write_error,
    write_json,
    write_text,
)
from lora_trainer.core.process import this_owner
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


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_folder_deleted_while_it_is_written_into_is_made_again(tmp_path: Path, times: int) -> None:
    deleted: list[Path] = []

    def write(temporary: Path) -> None:
        if len(deleted) < times:
            deleted.append(temporary.parent.rename(tmp_path / f"away{len(deleted)}"))
        else:
            temporary.write_text("new")

    path = tmp_path / "folder" / "file"
    if times < 3:
        replace_atomically(path, write)
        assert path.read_text() == "new"
    else:
        with pytest.raises(RunError, match="could not be written"):
            replace_atomically(path, write)
    assert len(deleted) == times


def test_a_line_is_added_where_the_folder_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "log.jsonl"
    for line in (b"one", b"two"):
        append_line(path, line)
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_line_that_no_folder_can_be_made_for_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunError, match="could not be written"):
        append_line(tmp_path / "a" / "log.jsonl", b"one")


def test_the_place_of_a_folder_deleted_while_it_is_filled_is_made_again(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        if not (tmp_path / "away").exists():
            folder.parent.rename(tmp_path / "away")
        (folder / "file").write_text("new")

    make_folder(tmp_path / "states" / "1", fill)
    assert (tmp_path / "states" / "1" / "file").read_text() == "new"


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


HERE = this_owner().split("-")
DEAD = f".{HERE[0]}-{int(HERE[1]) + 1}-{HERE[2]}-abcd_123.lora-train-tmp"
ALIVE = f".{this_owner()}-abcd_123.lora-train-tmp"
FOREIGN = f".{HERE[0]}-{HERE[1]}-0badcafe-abcd_123.lora-train-tmp"
NAMELESS = ".abcd_123.lora-train-tmp"
OTHERS = [
    "lora.safetensors", ".hidden", "other.tmp", ".copy.lora-train-tmp", "a.lora-train-tmp", ".lora-train-tmp",
    DEAD.upper(), DEAD[1:], f"{DEAD}.bak", ".1-2-3-abcd_123.lora-train-tmp", ".x-1-0badcafe-abcd_123.lora-train-tmp",
]  # fmt: skip


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def leave(folder: Path, names: Sequence[str], age: float = 0.0) -> None:
    """Files, and under every second name a folder with files."""
    for number, name in enumerate(names):
        path = folder / name
        if number % 2:
            path.mkdir(parents=True)
            (path / "config.toml").write_text("half")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("half")
        then = path.stat().st_mtime - age
        os.utime(path, (then, then))


@pytest.mark.parametrize("first", [0, 1])
def test_only_what_a_dead_process_of_ours_left_is_removed(tmp_path: Path, first: int) -> None:
    names = ["between", *OTHERS, ALIVE, FOREIGN, NAMELESS]
    leave(tmp_path, names[first:])
    leave(tmp_path, [DEAD, DEAD.replace("abcd", "bcde")])
    remove_unfinished(tmp_path)
    assert listed(tmp_path) == sorted(names[first:])


def test_of_processes_that_cannot_be_asked_for_old_files_are_removed(tmp_path: Path) -> None:
    leave(tmp_path, [*OTHERS, ALIVE, FOREIGN, NAMELESS], age=2 * 24 * 3600)
    remove_unfinished(tmp_path)
    assert listed(tmp_path) == sorted([*OTHERS, ALIVE])


def test_below_is_looked_into_when_asked_and_links_are_not_followed(tmp_path: Path) -> None:
    leave(tmp_path / "a" / "b", [DEAD])
    leave(tmp_path / "far", [DEAD])
    (tmp_path / "a" / "link").symlink_to(tmp_path / "far")
    remove_unfinished(tmp_path / "a")
    assert (tmp_path / "a" / "b" / DEAD).exists()
    remove_unfinished(tmp_path / "a", below=True)
    assert not (tmp_path / "a" / "b" / DEAD).exists()
    assert (tmp_path / "far" / DEAD).exists()
    remove_unfinished(tmp_path / "missing", below=True)


@pytest.mark.parametrize("write", ["file", "folder", "temporary"])
def test_the_first_writing_into_a_folder_clears_it_of_what_a_killed_process_left(tmp_path: Path, write: str) -> None:
    leave(tmp_path, [DEAD, DEAD.replace("abcd", "bcde"), ALIVE, "theirs.tmp"])
    if write == "file":
        write_text(tmp_path / "new", "text")
    elif write == "folder":
        make_folder(tmp_path / "new", lambda folder: None)
    else:
        with temporary_folder(tmp_path) as folder:
            (folder / "new").touch()
        (tmp_path / "new").touch()
    assert listed(tmp_path) == sorted([ALIVE, "new", "theirs.tmp"])


def test_a_temporary_name_tells_its_process(tmp_path: Path) -> None:
    seen: list[str] = []
    replace_atomically(tmp_path / "a", lambda temporary: seen.append(temporary.name))
    make_folder(tmp_path / "b", lambda folder: seen.append(folder.name))
    with temporary_folder(tmp_path) as folder:
        seen.append(folder.name)
    assert all(files._OURS.fullmatch(name)["owner"] == this_owner() for name in seen)  # type: ignore[index]
    assert len(seen) == 3


# ------------------------------------------------------------------ file systems of other kinds
def refuse(reason: int) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(reason, os.strerror(reason))

    return fail


@pytest.mark.parametrize("reason", [errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EIO, errno.EINVAL])
@pytest.mark.parametrize("call", ["chmod", "folder open", "folder fsync"])
def test_a_file_system_without_chmod_or_folder_fsync_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, reason: int
) -> None:
    opened, fsync = os.open, os.fsync

    def open_no_folder(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if Path(path).is_dir():
            raise OSError(reason, os.strerror(reason))
        return opened(path, flags, *more, **options)

    def fsync_no_folder(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(reason, os.strerror(reason))
        fsync(handle)

    if call == "chmod":
        monkeypatch.setattr(os, "chmod", refuse(reason))
    elif call == "folder open":
        monkeypatch.setattr(os, "open", open_no_folder)
    else:
        monkeypatch.setattr(os, "fsync", fsync_no_folder)
    write_text(tmp_path / "a" / "file", "text")
    make_folder(tmp_path / "run", lambda folder: write_text(folder / "config", "text"))
    assert (tmp_path / "a" / "file").read_text() == (tmp_path / "run" / "config").read_text() == "text"
    assert temporary_files(tmp_path) == []


@pytest.mark.parametrize("reason", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_cannot_flush_at_all_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    monkeypatch.setattr(os, "fsync", refuse(reason))
    write_json(tmp_path / "file", {"a": 1})
    assert files.read_json(tmp_path / "file") == {"a": 1}


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_flush_that_fails_for_the_bytes_sake_is_said(old: Path, monkeypatch: pytest.MonkeyPatch, reason: int) -> None:
    monkeypatch.setattr(os, "fsync", refuse(reason))
    with pytest.raises(RunError):
        write_text(old, "new")
    assert old.read_text() == "old"


# ------------------------------------------------------------------ files that somebody holds open on Windows
OPERATIONS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "replace": ("replace", lambda path: write_text(path, "new")),
    "rename": ("rename", lambda path: make_folder(path.with_name("run"), lambda folder: None)),
    "unlink": ("unlink", lambda path: remove(path)),
    "rmtree": ("rmdir", lambda path: remove(path.with_name("folder"))),
    "mkdir": ("mkdir", lambda path: write_text(path.with_name("below") / "file", "new")),
}


@pytest.mark.parametrize("kind", [PermissionError(errno.EACCES, "in use"), OSError(errno.ENOTEMPTY, "not empty")])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_on_windows_everything_is_tried_again(
    old: Path, monkeypatch: pytest.MonkeyPatch, operation: str, kind: OSError
) -> None:
    (old.with_name("folder") / "in").mkdir(parents=True)
    name, act = OPERATIONS[operation]
    owner: Any = Path if name in ("rename", "unlink", "mkdir") else os
    do, left = getattr(owner, name), [kind] * 3  # pathlib of Python 3.10 keeps os' functions of when it was imported

    def busy(*arguments: Any, **options: Any) -> Any:
        if left:
            raise left.pop()
        return do(*arguments, **options)

    monkeypatch.setattr(files, "_WAITS", (0.0,) * 3)
    monkeypatch.setattr(owner, name, busy)
    act(old)
    assert not left
    assert temporary_files(old.parent) == []
    assert (
        operation not in ("unlink", "rmtree")
        or not (old if operation == "unlink" else old.with_name("folder")).exists()
    )


def test_on_windows_a_log_that_is_open_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, left = Path.open, [PermissionError(errno.EACCES, "in use")] * 3

    def busy(self: Path, *arguments: Any, **options: Any) -> Any:
        if left:
            raise left.pop()
        return opened(self, *arguments, **options)

    monkeypatch.setattr(files, "_WAITS", (0.0,) * 3)
    monkeypatch.setattr(Path, "open", busy)
    files.append_line(tmp_path / "log", b"one")
    files.append_line(tmp_path / "log", b"two")
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


def test_a_file_that_stays_open_is_left_and_told(
    old: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "_WAITS", (0.0,) * 3)
    monkeypatch.setattr(Path, "unlink", refuse(errno.EACCES))
    remove(old)
    assert old.exists()
    assert "could not be deleted" in caplog.text
