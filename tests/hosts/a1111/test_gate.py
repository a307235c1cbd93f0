"""Turns with the person's pictures, at the WebUI's own lock: see :mod:`tests.fake_webui`."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from tests.fake_webui import FakeWebUI
from tests.helpers import join, start, until


@pytest.fixture
def gate(webui: FakeWebUI) -> Any:
    from lora_trainer.hosts.a1111.gate import Gate

    return Gate()


def set_priority(webui: FakeWebUI, priority: str) -> None:
    webui.shared.opts.data["lora_train_priority"] = priority


@pytest.mark.parametrize("priority", ["generation", "fair", "training"])
def test_a_picture_that_waits_is_drawn_before_the_next_turn(webui: FakeWebUI, gate: Any, priority: str) -> None:
    """Though our loop asks for the lock again at once."""
    set_priority(webui, priority)
    lock, order = webui.call_queue.queue_lock, []

    def picture() -> None:
        with lock:
            order.append("picture")

    for _ in range(20):
        with gate.turn():
            order.append("turn")
            asking = start(picture)
            until(lambda: lock._pending_threads)
        with gate.turn():
            order.append("turn")
        join(asking)
    assert order == ["turn", "picture", "turn"] * 20


def test_one_who_needs_the_lock_for_a_moment_only_is_not_waited_for_after(
    webui: FakeWebUI, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is refused: a poll may come too late to see the lock held."""
    from lora_trainer.hosts.a1111 import gate as module

    monkeypatch.setattr(module, "_HAND_OVER_SECONDS", float("inf"))
    lock, asking = webui.call_queue.queue_lock, []

    def turn() -> None:
        with gate.turn():
            asking.append(start(lambda: (lock.acquire(), lock.release())))
            until(lambda: lock._pending_threads)

    join(start(turn))
    join(*asking)


@pytest.mark.parametrize(("priority", "wanted"), [("generation", True), ("fair", True), ("training", False)])
def test_a_turn_ends_early_for_a_picture_unless_training_goes_first(
    webui: FakeWebUI, gate: Any, priority: str, wanted: bool
) -> None:
    set_priority(webui, priority)
    lock = webui.call_queue.queue_lock
    with gate.turn():
        assert not gate.wanted
        asking = start(lambda: (lock.acquire(), lock.release()))
        until(lambda: lock._pending_threads)
        assert gate.wanted == wanted
    join(asking)


@pytest.mark.parametrize("priority", ["generation", "fair"])
def test_a_long_wait_is_told_and_pictures_go_first_when_they_are_to(
    webui: FakeWebUI, gate: Any, monkeypatch: pytest.MonkeyPatch, priority: str
) -> None:
    from lora_trainer.hosts.a1111 import gate as module

    monkeypatch.setattr(module, "WAIT_SHOWN", 0.01)
    set_priority(webui, priority)
    lock, told, order = webui.call_queue.queue_lock, [], []

    def turn() -> None:
        with gate.turn(told.append):
            order.append("turn")

    def picture() -> None:
        with lock:
            order.append("picture")

    with lock:
        ours = start(turn)
        until(lambda: told == [True] and lock._pending_threads)
        asking = start(picture)
        until(lambda: len(lock._pending_threads) == 2)
    join(ours, asking)
    assert told == [True, False]
    assert order == (["picture", "turn"] if priority == "generation" else ["turn", "picture"])


def test_an_error_in_telling_that_a_wait_is_over_leaves_the_lock_free(
    webui: FakeWebUI, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes the manifest, and the disk may be full."""
    from lora_trainer.hosts.a1111 import gate as module

    monkeypatch.setattr(module, "WAIT_SHOWN", 0.01)
    lock, told = webui.call_queue.queue_lock, []

    def tell(waits: bool) -> None:
        told.append(waits)
        if not waits:
            raise OSError

    def turn() -> None:
        with suppress(OSError), gate.turn(tell):
            told.append("turn")

    with lock:
        ours = start(turn)
        until(lambda: told == [True])
    join(ours)
    assert told == [True, False]
    assert lock.acquire(blocking=False)


def test_two_of_our_threads_let_a_picture_go_first_and_not_each_other_for_ever(webui: FakeWebUI, gate: Any) -> None:
    lock, order = webui.call_queue.queue_lock, []

    def turns() -> None:
        for _ in range(50):
            with gate.turn():
                order.append("turn")

    def pictures() -> None:
        for _ in range(50):
            with lock:
                order.append("picture")

    with lock:
        threads = [start(turns), start(turns), start(pictures)]
        until(lambda: len(lock._pending_threads) == 2)
    join(*threads)
    assert (order.count("turn"), order.count("picture")) == (100, 50)


def test_within_a_persons_picture_it_is_always_our_turn(webui: FakeWebUI) -> None:
    from lora_trainer.hosts.a1111.gate import HeldGate

    gate, state = HeldGate(), webui.shared.state
    state.begin(job="theirs")
    with webui.call_queue.queue_lock, gate.turn(), gate.job():
        assert (state.job, gate.wanted, gate.is_held) == ("theirs", False, True)
        state.interrupt()
    assert (state.job, state.interrupted) == ("theirs", True)


def test_our_own_picture_has_a_job_and_its_interrupt_is_forgotten(webui: FakeWebUI, gate: Any) -> None:
    state = webui.shared.state

    def fail() -> None:
        assert state.job == "LoRA Train sample"
        state.interrupt()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), gate.job():
        fail()
    assert (state.job, state.interrupted) == ("", False)
