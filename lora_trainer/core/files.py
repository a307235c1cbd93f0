"""Writing files so that a crash, a full disk or a power cut never leaves a half-written one under its name."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lora_trainer.core.errors import RunError
from lora_trainer.core.paths import free_name
from lora_trainer.core.plain_json import json_text, parse_json
from lora_trainer.core.process import has_ended, this_owner

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)
T = TypeVar("T")
_UNFINISHED = ".lora-train-tmp"
_OURS = re.compile(r"\.(?:(?P<owner>\d+-\d+-[0-9a-f]{8})-)?[a-z0-9_]{8}\.lora-train-tmp")
"""Names of temporary files and folders; those of versions before 2026-12 name no owner."""
_FOREIGN_SECONDS = 24 * 3600.0
"""Nobody writes into one file for so long; only for those whose process cannot be asked for."""
_WAITS = (0.01, 0.03, 0.1, 0.3, 1.0) if os.name == "nt" else ()
"""Seconds before each further try, see :func:`patiently`."""
_ATTEMPTS = 3
"""Times that a file is begun whose folder goes away while it is written."""
_UNSUPPORTED = {
    getattr(errno, name, None)
    for name in ("EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EPERM", "EACCES", "EROFS", "EBADF", "ENOTTY")
}
"""What a file system says that cannot flush (some network, FUSE and cloud mounts)."""


def replace_atomically(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to the disk, and give it the name.

    Args:
        path: the file; its folder is made.
        write: called with the temporary file's path.
        durable: wait until the bytes are on the disk; caches, which can be made again, need not.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    _begun_anew(path, lambda: _replace(path, write, durable))


def make_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Make a new folder whole or not at all: ``fill`` gets it under another name.

    Raises:
        RunError: the disk is full, the parent cannot be written, or the folder exists.
    """

    def make() -> None:
        with temporary_folder(folder.parent) as unborn:
            fill(unborn)
            _usual_rights(unborn, 0o777)
            patiently(lambda: unborn.rename(folder))

    _begun_anew(folder, make)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder for files that are needed for a moment under names of their own; it goes with all that is in it.

    Args:
        parent: the folder that it is in, which is made.

    Raises:
        RunError: it cannot be made.
    """
    try:
        _enter(parent)
        folder = Path(tempfile.mkdtemp(prefix=_prefix(), suffix=_UNFINISHED, dir=parent))
    except OSError as error:
        raise write_error(parent, error) from error
    try:
        yield folder
    finally:
        remove(folder)


def patiently(action: Callable[[], T]) -> T:
    """Do something with a file, on Windows a few times if need be.

    There a file that somebody has open, be it this program's own page or a virus scanner, cannot be replaced, renamed
    or deleted, one that is being replaced cannot be opened, and a folder that is being deleted cannot be made again.
    """
    for seconds in _WAITS:
        try:
            return action()
        except OSError as error:
            if not isinstance(error, PermissionError) and error.errno not in (errno.ENOTEMPTY, errno.EBUSY):
                raise
            time.sleep(seconds)
    return action()


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it; it may be gone already.

    One that somebody holds open for too long is left, since nothing of ours fails for a file that is one too many.
    """
    try:
        patiently(lambda: _delete(path))
    except OSError as error:
        log.warning("%s could not be deleted (%s).", path, error)


def make_parents(folder: Path) -> None:
    """Make a folder, and those above it; it may be there. Raises :class:`OSError`."""
    patiently(lambda: folder.mkdir(parents=True, exist_ok=True))


def append_line(path: Path, line: bytes) -> None:
    """Add a line to a file, on a line of its own even when a crash has cut off the last one; its folder is made.

    Raises:
        RunError: the disk is full, or the file cannot be written.
    """
    _begun_anew(path, lambda: _append(path, line))


def remove_unfinished(folder: Path, *, below: bool = False) -> None:
    """Delete what processes that have ended had not finished writing; files of others stay.

    Args:
        folder: may be missing.
        below: look into the folders in it, too.
    """
    for place, folders, names in os.walk(folder):
        unfinished = {name for name in (*folders, *names) if _is_abandoned(Path(place, name))}
        for name in unfinished:
            remove(Path(place, name))
        folders[:] = [name for name in folders if below and name not in unfinished]


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or nested absurdly deep.
    """
    return parse_json(patiently(path.read_bytes))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    replace_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; see :func:`lora_trainer.core.plain_json.json_text`."""
    write_text(path, json_text(value, indent=1) + "\n")


def save_picture(path: Path, image: Image.Image) -> None:
    """Write a PNG atomically, with the text of how it was made where the picture carries one."""
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    if made := image.info.get("parameters"):
        text.add_text("parameters", made)
    replace_atomically(path, lambda temporary: image.save(temporary, "PNG", pnginfo=text))


def write_error(path: Path, error: OSError) -> RunError:
    """The sentence for a failed write."""
    if error.errno == errno.ENOSPC:
        return RunError("The disk is full: {path} could not be written; free some space.", path=path)
    return RunError("{path} could not be written: {error}.", path=path, error=error.strerror or error)


def _begun_anew(path: Path, make: Callable[[], None]) -> None:
    """Write, and where the folder is not there, or not any more, make it and begin anew.

    Raises:
        RunError: what else went wrong.
    """
    for attempt in range(_ATTEMPTS):
        try:
            make()
            return
        except FileNotFoundError as error:
            if attempt == _ATTEMPTS - 1:
                raise write_error(path, error) from error
            with suppress(OSError):  # the next attempt tells
                make_parents(path.parent)
        except OSError as error:
            raise write_error(path, error) from error
        except Exception as error:
            if "os error 28" in str(error).lower() or "no space left" in str(error).lower():  # safetensors' own error
                raise write_error(path, OSError(errno.ENOSPC, "No space left on device")) from error
            raise


def _replace(path: Path, write: Callable[[Path], object], durable: bool) -> None:
    _enter(path.parent)
    handle, name = tempfile.mkstemp(prefix=_prefix(), suffix=_UNFINISHED, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        if durable:
            _flush(temporary)
        _usual_rights(temporary, 0o666)
        patiently(lambda: os.replace(temporary, path))
        if durable:
            _flush_folder(path.parent)
    finally:
        remove(temporary)


def _append(path: Path, line: bytes) -> None:
    with patiently(lambda: path.open("a+b")) as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
        is_cut_off = end and file.read(1) != b"\n"
        file.write((b"\n" if is_cut_off else b"") + line + b"\n")


def _read_umask() -> int:
    """The process's umask; reading it means setting it, so it is done once, at import."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


_UMASK = _read_umask()


def _prefix() -> str:
    return f".{this_owner()}-"


_entered: set[Path] = set()
"""Folders that this process has written into."""


def _enter(folder: Path) -> None:
    """Make a folder, and the first time clear away what a process that was killed has left there."""
    make_parents(folder)
    if folder not in _entered:
        _entered.add(folder)
        remove_unfinished(folder)


def _is_abandoned(path: Path) -> bool:
    """Whether this is a temporary file or folder of ours that nobody writes any more."""
    match = _OURS.fullmatch(path.name)
    if match is None:
        return False
    ended = has_ended(match["owner"]) if match["owner"] else None
    if ended is not None:
        return ended
    try:
        return time.time() - path.stat().st_mtime > _FOREIGN_SECONDS
    except OSError:
        return False


def _delete(path: Path) -> None:
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _usual_rights(path: Path, rights: int) -> None:
    """Those of any new file, not of a temporary one; some file systems (CIFS, exFAT) have none, and need none."""
    with suppress(OSError, NotImplementedError):
        path.chmod(rights & ~_UMASK)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise


def _flush_folder(folder: Path) -> None:
    """So that the new name outlives a power cut; the file is whole and has it already, so no failure counts."""
    if os.name == "nt":  # folders cannot be opened there; NTFS journals the rename
        return
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def free_path(path: Path) -> Path:
    """The path itself, or with the first number behind its name that is not taken."""

    def named(stem: str) -> Path:
        return path.with_name(stem + path.suffix)

    return named(free_name(path.stem, lambda stem: named(stem).exists() or named(stem).is_symlink()))
