"""The lock of the embedded host: first come, first served, whatever goes wrong."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from itertools import pairwise

import pytest

from lora_trainer.hosts import fair_lock
from lora_trainer.hosts.fair_lock import FairLock
from tests.helpers import LIMIT, join, start, until


def quiet(waits: bool) -> None:
    pass


def take(lock: FairLock) -> None:
    """Fails instead of waiting forever when the lock was left behind."""

    def work() -> None:
        with lock.turn(quiet):
            pass

    join(start(work))


def test_those_who_wait_are_served_in_the_order_in_which_they_came() -> None:
    lock, served, threads = FairLock(), [], []

    def ask(number: int) -> None:
        with lock.turn(quiet):
            served.append(number)

    with lock.turn(quiet):
        for number in range(8):
            threads.append(start(lambda n=number: ask(n)))
            until(lambda n=number: len(lock._waiting) == n + 1)
        assert served == []
    join(*threads)
    assert served == list(range(8))


def test_a_loop_that_releases_and_asks_at_once_does_not_overtake_a_waiter() -> None:
    lock, turns = FairLock(), []
    enough = threading.Event()

    def loop() -> None:
        while not enough.is_set():
            with lock.turn(quiet):
                turns.append("loop")
                until(lambda: lock.wanted or enough.is_set())

    worker = start(loop)
    for _ in range(20):
        with lock.turn(quiet):
            turns.append("picture")
    enough.set()
    join(worker)
    assert turns.count("picture") == 20
    assert ("loop", "loop") not in pairwise(turns)


def test_nobody_shares_the_lock_and_nobody_is_left_waiting() -> None:
    lock, inside, most, served = FairLock(), [0], [0], [0] * 6

    def work(number: int) -> None:
        for _ in range(100):
            with lock.turn(quiet):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0)
                served[number] += 1
                inside[0] -= 1

    join(*[start(lambda n=number: work(n)) for number in range(6)])
    assert most == [1]
    assert served == [100] * 6
    assert not lock.wanted


def test_wanted_says_whether_somebody_waits() -> None:
    lock = FairLock()
    assert not lock.wanted
    with lock.turn(quiet):
        assert not lock.wanted
        other = start(lambda: take(lock))
        until(lambda: lock.wanted)
    join(other)
    assert not lock.wanted


def test_an_error_within_a_turn_hands_the_lock_on() -> None:
    lock = FairLock()
    with suppress(ZeroDivisionError), lock.turn(quiet):
        other = start(lambda: take(lock))
        until(lambda: lock.wanted)
        raise ZeroDivisionError
    join(other)
    take(lock)


def test_a_long_wait_is_told_once_at_its_begin_and_end_and_a_short_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    lock, told = FairLock(), []

    def ask() -> None:
        with lock.turn(told.append):
            pass

    ask()
    monkeypatch.setattr(fair_lock, "WAIT_SHOWN", LIMIT)
    with lock.turn(quiet):
        short = start(ask)
        until(lambda: lock.wanted)
    join(short)
    assert told == []
    monkeypatch.setattr(fair_lock, "WAIT_SHOWN", 0.01)
    with lock.turn(quiet):
        long = start(ask)
        until(lambda: told == [True])
    join(long)
    assert told == [True, False]


@pytest.mark.parametrize("fails_at", [True, False], ids=["begin", "end"])
def test_an_error_in_telling_of_the_wait_leaves_no_lock_behind(monkeypatch: pytest.MonkeyPatch, fails_at: bool) -> None:
    """It writes the manifest, and the disk may be full."""
    monkeypatch.setattr(fair_lock, "WAIT_SHOWN", 0.01)
    lock, told = FairLock(), []

    def tell(waits: bool) -> None:
        told.append(waits)
        if waits is fails_at:
            raise OSError("disk full")

    def ask() -> None:
        with suppress(OSError), lock.turn(tell):
            told.append("turn")

    with lock.turn(quiet):
        other = start(ask)
        until(lambda: told == [True])
        if fails_at:
            join(other)
            assert not lock.wanted
    join(other)
    assert "turn" not in told
    take(lock)


def test_one_who_gives_up_waiting_does_not_take_the_turn_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_lock, "WAIT_SHOWN", 0.01)
    lock, served = FairLock(), []

    def refuse(waits: bool) -> None:
        raise OSError

    def give_up() -> None:
        with suppress(OSError), lock.turn(refuse):
            served.append("gave up")

    def ask() -> None:
        with lock.turn(quiet):
            served.append("next")

    with lock.turn(quiet):
        first = start(give_up)
        until(lambda: lock.wanted)
        second = start(ask)
        join(first)
        until(lambda: lock.wanted)
        assert served == []
    join(second)
    assert served == ["next"]
