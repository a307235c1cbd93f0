"""The WebUI's own lock, in turns with the person's pictures."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from modules import shared
from modules.call_queue import queue_lock

from lora_trainer.hosts.fair_lock import WAIT_SHOWN

_HAND_OVER_SECONDS = 5.0
_POLL_SECONDS = 0.001
_ONE_OF_OURS = threading.Lock()
"""One of our threads waits in the host's line at a time: whoever else waits there is the person's."""


class Gate:
    """The host's lock, handed over: whoever waits gets it before we come again.

    The lock is FIFO, but a thread that releases it and asks again at once overtakes the one that it woke up
    (fifo_lock.py:31), and would starve the person's pictures.
    """

    is_held = False
    """Whether the lock is another's, the person's picture, within which this is done."""

    @contextmanager
    def turn(self, on_wait: Callable[[bool], object] = lambda waits: None) -> Iterator[None]:
        """Hold the lock; ``on_wait`` is told when that takes a moment."""
        told = self._acquire(on_wait)
        try:
            if told:
                on_wait(False)
            yield
        finally:
            self._hand_over()

    @contextmanager
    def job(self) -> Iterator[None]:
        """Show in the host's state that a picture is drawn; an Interrupt meant for it is forgotten after."""
        shared.state.begin(job="LoRA Train sample")
        try:
            yield
        finally:
            shared.state.end()
            shared.state.interrupted = False

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for the lock, and may have it before training goes on."""
        return bool(queue_lock._pending_threads) and priority() != "training"

    def _acquire(self, on_wait: Callable[[bool], object]) -> bool:
        """Take the lock; whether ``on_wait`` was told that this takes a moment."""
        if queue_lock.acquire(blocking=False):
            return False
        told = threading.Event()

        def tell() -> None:
            told.set()
            on_wait(True)

        timer = threading.Timer(WAIT_SHOWN, tell)
        timer.start()
        try:
            self._acquire_in_line()
        finally:
            timer.cancel()
            timer.join()  # what it tells is told before what we tell
        return told.is_set()

    def _acquire_in_line(self) -> None:
        """Wait in the line, so that nobody is overtaken; where pictures go first, those behind go first too."""
        with _ONE_OF_OURS:
            queue_lock.acquire()
            while priority() == "generation" and queue_lock._pending_threads:
                self._hand_over()
                queue_lock.acquire()

    def _hand_over(self) -> None:
        """Release the lock, and wait until the next in line has it, or has had it: some need it for a moment only."""
        line = queue_lock._pending_threads
        next_one = weakref.ref(line[0]) if line else lambda: None  # it is theirs while they wait
        queue_lock.release()
        time.sleep(_POLL_SECONDS)  # a waiter that another holder woke up is in no list, and must get its chance too
        until = time.monotonic() + _HAND_OVER_SECONDS
        while next_one() is not None and not queue_lock._lock.locked() and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)


class HeldGate(Gate):
    """For what runs within a picture of the person's: the lock is held already, by the host's own thread."""

    wanted = False
    is_held = True

    @contextmanager
    def turn(self, on_wait: Callable[[bool], object] = lambda waits: None) -> Iterator[None]:
        """It is our turn."""
        yield

    @contextmanager
    def job(self) -> Iterator[None]:
        """The host shows its own job, and its Interrupt ends that."""
        yield


def priority() -> str:
    """What the person set: ``"generation"`` first, ``"fair"`` turns, or ``"training"`` first."""
    return str(shared.opts.data.get("lora_train_priority", "generation"))
