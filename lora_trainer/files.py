"""Writing files so that a crash, a full disk or a power cut never leaves a half-written one under its name."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lora_trainer.errors import RunError

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")
_UNFINISHED = ".lora-train-tmp"
_WAITS = (0.01, 0.03, 0.1, 0.3, 1.0) if os.name == "nt" else ()
"""Seconds before each further try, see :func:`patiently`."""


def replace_atomically(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to the disk, and give it the name.

    Args:
        path: the file; its folder is made.
        write: called with the temporary file's path.
        durable: wait until the bytes are on the disk; caches, which can be made again, need not.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", suffix=_UNFINISHED, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise write_error(path, error) from error
    temporary = Path(name)
    try:
        write(temporary)
        if durable:
            _flush(temporary)
        temporary.chmod(0o666 & ~_UMASK)
        patiently(lambda: os.replace(temporary, path))
        if durable:
            _flush_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    except Exception as error:
        if "os error 28" in str(error).lower() or "no space left" in str(error).lower():  # safetensors' own error
            raise write_error(path, OSError(errno.ENOSPC, "No space left on device")) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Make a new folder whole or not at all: ``fill`` gets it under another name.

    Raises:
        RunError: the disk is full, the parent cannot be written, or the folder exists.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unborn = Path(tempfile.mkdtemp(prefix=".", suffix=_UNFINISHED, dir=folder.parent))
        try:
            fill(unborn)
            unborn.chmod(0o777 & ~_UMASK)
            patiently(lambda: unborn.rename(folder))
        finally:
            shutil.rmtree(unborn, ignore_errors=True)
    except OSError as error:
        raise write_error(folder, error) from error


def patiently(action: Callable[[], T]) -> T:
    """Do something with a file, on Windows a few times if need be.

    There a file that somebody has open, be it this program's own page or a virus scanner, cannot be replaced, and one
    that is being replaced cannot be opened.
    """
    for seconds in _WAITS:
        try:
            return action()
        except PermissionError:
            time.sleep(seconds)
    return action()


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON.
    """
    return json.loads(patiently(lambda: path.read_text(encoding="utf-8")))


def remove_unfinished(folder: Path) -> None:
    """Delete what a process that was killed had not finished; call it when nobody writes into ``folder``."""
    for path in folder.glob(f".*{_UNFINISHED}"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    replace_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and Infinity, which JSON does not know, as ``null``."""
    write_text(path, json.dumps(without_nan(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def without_nan(value: Any) -> Any:
    """The same plain values with ``None`` for NaN and Infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(each) for each in value]
    return value


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


def _read_umask() -> int:
    """The process's umask; reading it means setting it, so it is done once, at import."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


_UMASK = _read_umask()


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there; NTFS journals the rename
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
