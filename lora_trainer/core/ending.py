"""What the system says when a program shall end: Ctrl-C, a stopped service, a closed terminal."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP, PAUSE = "stop", "pause"
_SIGNALS = {"SIGINT": STOP, "SIGTERM": PAUSE, "SIGHUP": PAUSE, "SIGBREAK": PAUSE}
"""What each asks of work that goes on: after Ctrl-C a person wants the file, the others leave no time for that."""


class Ending:
    """Notes such signals instead of ending, so that what is learned can be saved; use it with ``with``.

    Signals that the program's parent has told it to ignore, as ``nohup`` does, are ignored as before.
    """

    def __init__(self) -> None:
        self._asked: list[str] = []
        self._restore: Callable[[], None] = lambda: None

    def __enter__(self) -> Ending:
        """Begin to note them; from any but the main thread, which alone gets signals, nothing changes."""
        self._restore = _handle(lambda name: self._asked.append(_SIGNALS[name]))
        return self

    def __exit__(self, *error: object) -> None:
        """Do again what was done before."""
        self._restore()

    def next(self) -> str:
        """:data:`STOP` or :data:`PAUSE`, once for each signal, or an empty string."""
        return self._asked.pop(0) if self._asked else ""


@contextmanager
def as_interrupt() -> Iterator[None]:
    """Let all of them end what goes on as Ctrl-C does, with :class:`KeyboardInterrupt`."""

    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    restore = _handle(interrupt)
    try:
        yield
    finally:
        restore()


def tell(sentence: str) -> None:
    """Write a line for the person, if the terminal is still there."""
    with contextlib.suppress(OSError, ValueError):
        print(sentence, file=sys.stderr, flush=True)


def _handle(act: Callable[[str], object]) -> Callable[[], None]:
    """Call ``act`` with a signal's name when it comes; returns what undoes that."""
    before: dict[int, Any] = {}
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is None or signal.getsignal(number) in (signal.SIG_IGN, None):
            continue

        def handler(number: int, frame: FrameType | None, name: str = name) -> None:
            act(name)

        before[number] = signal.signal(number, handler)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore
