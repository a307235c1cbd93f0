"""Locks that end with their process, and names that tell whose a file is."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from lora_trainer.core import process
from lora_trainer.core.process import Lock, has_ended, is_alive, this_owner, this_process


def program(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A program of its own that prints a line and then waits for its input to end."""
    begin = "import sys, os; from pathlib import Path; from lora_trainer.core.process import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", f"{begin}{code}\nsys.stdin.read()", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()


TAKE = "lock = Lock(Path(sys.argv[1])); print(lock.take(), flush=True)"


def test_a_lock_is_one_programs_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert Lock(path).is_elsewhere() is None  # there never was one
    other = program(TAKE, path)
    assert said(other) == "True"
    lock = Lock(path)
    assert (lock.is_elsewhere(), lock.take(), lock.is_ours) == (True, False, False)
    other.kill()
    other.communicate()
    assert (lock.is_elsewhere(), lock.take(), lock.take(), lock.is_ours) == (False, True, True, True)
    again = program(TAKE, path)
    assert said(again) == "False"
    again.communicate()
    lock.release()
    lock.release()
    assert (Lock(path).take(), lock.is_elsewhere()) == (True, True) or os.name == "nt"


def test_of_programs_that_want_a_lock_at_once_one_gets_it(tmp_path: Path) -> None:
    programs = [program(TAKE, tmp_path / "lock") for _ in range(4)]
    answers = [said(each) for each in programs]
    for each in programs:
        each.communicate()
    assert sorted(answers) == ["False", "False", "False", "True"]


def test_who_only_looks_keeps_nobody_from_taking_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            assert Lock(path).is_elsewhere() in (True, False)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(200):
            lock = Lock(path)
            assert lock.take() is True
            lock.release()
    finally:
        over.set()
        looking.join()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_child_does_not_keep_its_parents_lock(tmp_path: Path) -> None:
    fork = "pid = os.fork()\nif pid == 0: sys.stdin.read(); os._exit(0)\nprint('forked', flush=True)"
    parent = program(f"{TAKE}\n{fork}", tmp_path / "lock")
    assert (said(parent), said(parent)) == ("True", "forked")
    parent.kill()
    parent.wait()
    assert Lock(tmp_path / "lock").take() is True  # while its child still waits for input
    parent.communicate()


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.EIO])
def test_a_file_system_without_locks_is_told_from_a_lock_that_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    def fail(file: int, shared: bool) -> None:
        raise OSError(reason, "no locks here")

    monkeypatch.setattr(process, "_lock", fail)
    assert (Lock(tmp_path / "lock").take(), Lock(tmp_path / "lock").is_elsewhere()) == (None, None)
    assert Lock(tmp_path / "missing" / "lock").take() is None


def test_a_process_is_told_by_number_and_start() -> None:
    number, start = this_process()
    assert is_alive([number, start])
    assert not is_alive([number, start - 3600])
    for nothing in (None, [], [1], ["a", "b"], {}, [2**40, 1.0], [-1, 0.0], [float("inf"), 1.0]):
        assert not is_alive(nothing)


def test_an_owner_has_ended_with_its_process() -> None:
    assert has_ended(this_owner()) is False
    other = program("print(this_owner(), flush=True)")
    owner = said(other)
    assert has_ended(owner) is False
    other.kill()
    other.wait()
    assert has_ended(owner) is True
    number, start, place = this_owner().split("-")
    assert has_ended(f"{number}-{int(start) + 1}-{place}") is True  # the number came again
    assert has_ended(f"{number}-{start}-00000000") is None  # of another machine or container


@pytest.mark.skipif(os.name == "nt", reason="Windows has no zombies")
def test_a_killed_process_that_nobody_has_asked_for_has_ended() -> None:
    other = program("print(this_owner(), flush=True)")
    owner, known = said(other), [other.pid, psutil.Process(other.pid).create_time()]
    os.kill(other.pid, 9)
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # ended, and still in the table
    assert has_ended(owner) is True
    assert not is_alive(known)
    other.wait()
