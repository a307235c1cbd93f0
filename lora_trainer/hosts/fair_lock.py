"""A lock that serves those who wait in the order in which they came, so that a step loop starves nobody."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class FairLock:
    """First come, first served. The lock is handed to the one who waits; it is never free in between."""

    def __init__(self) -> None:
        self._inner = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self._held = False

    @property
    def wanted(self) -> bool:
        """Whether somebody waits."""
        return bool(self._waiting)

    @contextmanager
    def turn(self, on_wait: Callable[[bool], object]) -> Iterator[None]:
        """Hold the lock; ``on_wait`` is told when that takes a moment."""
        turn = self._ask()
        try:
            if turn is not None and not turn.wait(WAIT_SHOWN):
                on_wait(True)
                turn.wait()
                on_wait(False)
            yield
        finally:
            self._leave(turn)

    def _ask(self) -> threading.Event | None:
        with self._inner:
            if not self._held:
                self._held = True
                return None
            turn = threading.Event()
            self._waiting.append(turn)
            return turn

    def _leave(self, turn: threading.Event | None) -> None:
        """Hand the lock to the next; one who gave up waiting only leaves the line."""
        with self._inner:
            if turn is not None and turn in self._waiting:
                self._waiting.remove(turn)
            elif self._waiting:
                self._waiting.popleft().set()
            else:
                self._held = False


WAIT_SHOWN = 0.3
"""A wait of more seconds than this is shown."""
