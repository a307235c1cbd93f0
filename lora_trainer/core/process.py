"""Which process works on something: told by a lock of the system, and by number and start where there is none."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import time
from functools import lru_cache
from pathlib import Path

SAME_START_SECONDS = 10.0
"""Start times are worked out from the clock, which may be set in between."""
_TRIES = 5
_LOCKED_BYTE = 1 << 30
"""Far behind the file's end: on Windows nobody can read bytes that are locked."""
_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}


def this_process() -> list[float]:
    """[number, start in seconds since 1970] of this process, for a manifest."""
    import psutil

    return [os.getpid(), psutil.Process().create_time()]


def is_alive(process: object) -> bool:
    """Whether the process that a manifest names still goes on, as far as number and clock can tell."""
    import psutil

    if not isinstance(process, list) or len(process) != 2 or not all(isinstance(v, (int, float)) for v in process):
        return False
    try:
        found = psutil.Process(int(process[0]))
        same = abs(found.create_time() - process[1]) < SAME_START_SECONDS
        return same and found.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError, OverflowError):
        return False


# ------------------------------------------------------------------ owners of temporary files
def this_owner() -> str:
    """``number-start-place`` of this process, for the names of its temporary files."""
    return _owner(os.getpid())


def has_ended(owner: str) -> bool | None:
    """Whether the process that :func:`this_owner` named is gone; ``None`` for one of another machine or container."""
    import psutil

    number, start, place = owner.split("-")
    if place != _place():
        return None
    try:
        if psutil.Process(int(number)).status() == psutil.STATUS_ZOMBIE:
            return True
        return _start(int(number)) != int(start)
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OSError, ValueError, OverflowError):  # it is there, but somebody else's
        return False


@lru_cache(maxsize=1)
def _owner(number: int) -> str:
    return f"{number}-{_start(number)}-{_place()}"


def _start(number: int) -> int:
    """When a process started: ticks since the start of the system on Linux, which no clock changes, else in ms.

    Raises:
        OSError: or psutil's error, when it is gone or nobody may know.
    """
    import psutil

    if sys.platform == "linux":
        stat = Path(f"/proc/{number}/stat").read_bytes()
        return int(stat.rpartition(b")")[2].split()[19])
    return round(psutil.Process(number).create_time() * 1000)


@lru_cache(maxsize=1)
def _place() -> str:
    """Where the numbers of processes mean the same: a machine, or a container on it."""
    import platform

    try:
        numbers = os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        numbers = ""
    return hashlib.sha256(f"{platform.node()} {numbers}".encode("utf-8", "replace")).hexdigest()[:8]


# ------------------------------------------------------------------ locks
class Lock:
    """A lock on a file, which the system releases when its process ends, however it ends.

    It holds between processes and containers, and on network file systems that have locks. It does not care what is in
    the file, which is never deleted: another process may be about to lock it.

    Args:
        path: the file; its folder is there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1

    @property
    def is_ours(self) -> bool:
        """Whether this very object has the lock."""
        return self._file >= 0

    def take(self) -> bool | None:
        """Take the lock, unless this object has it already.

        Returns:
            Whether it is ours now; ``False`` when something else has it, ``None`` when no lock can be had here.
        """
        if self.is_ours:
            return True
        for left in reversed(range(_TRIES)):  # who only looks has it for a moment, too
            file, got = _open_and_lock(self._path, create=True, shared=False)
            if got:
                self._file = file
                _ours.add(file)
            if got is not False or not left:
                return got
            time.sleep(0.02)
        return False

    def is_elsewhere(self) -> bool | None:
        """Whether something else has the lock; ``None`` when that cannot be told, as when there never was one."""
        if self.is_ours:
            return False
        file, got = _open_and_lock(self._path, create=False, shared=True)
        if got:
            os.close(file)
        return None if got is None else not got

    def release(self) -> None:
        """Give the lock up; nothing happens when it is not ours."""
        if self.is_ours:
            _ours.discard(self._file)
            os.close(self._file)
            self._file = -1


_ours: set[int] = set()
"""Open files of the locks that this process has."""


def _forget_in_child() -> None:
    """A forked child would keep its parent's locks for as long as it lives."""
    for file in _ours:
        os.close(file)
    _ours.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def _open_and_lock(path: Path, *, create: bool, shared: bool) -> tuple[int, bool | None]:
    """The open file and ``True``; or −1 with ``False`` when it is locked, ``None`` when it cannot be locked."""
    try:
        file = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)
    except OSError:
        return -1, None
    try:
        _lock(file, shared)
    except OSError as error:
        os.close(file)
        return -1, False if error.errno in _HELD else None
    return file, True


def _lock(file: int, shared: bool) -> None:
    """Lock an open file or raise :class:`OSError` at once; closing it unlocks it."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
