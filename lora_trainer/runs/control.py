"""Stopping work that goes on: what a person may ask of it, and how it learns of that."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

log = logging.getLogger(__name__)


class StopRequest(str, Enum):
    """How work is asked to end; the values are those of REST and command line."""

    STOP = "stop"
    """Now; what is learned is kept."""
    AFTER_EPOCH = "epoch"
    """The same, at the end of the epoch."""
    PAUSE = "pause"
    """Now, to be resumed."""
    DISCARD = "discard"
    """Now; nothing is kept."""


class Control:
    """What the person asked of work that goes on. The first request counts, but no longer waits for an epoch's end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._request: StopRequest | None = None

    @property
    def request(self) -> StopRequest | None:
        """What was asked for; ``None`` for nothing."""
        return self._request

    @property
    def wants_end_now(self) -> bool:
        """Whether the work should end as soon as it can."""
        return self._request not in (None, StopRequest.AFTER_EPOCH)

    def ask(self, request: StopRequest) -> None:
        """Ask the work to end."""
        with self._lock:
            if not self.wants_end_now:
                self._request = request


@contextmanager
def only_telling() -> Iterator[None]:
    """Around what only tells of work, such as a progress bar: whatever goes wrong there does not end the work."""
    try:
        yield
    except BaseException as error:
        problem = f"{type(error).__name__}: {error}"
        if problem not in _told:  # it may come with every step
            _told.add(problem)
            log.exception("The work goes on, but it cannot be told how far it is")


_told: set[str] = set()
