"""How a person's wish reaches work that goes on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)
AFTER_EPOCH = "epoch"


class Control:
    """What the person asked of work that goes on. The first wish counts, but no longer waits for an epoch's end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wish = ""

    @property
    def wish(self) -> str:
        """``""``, ``"stop"`` (keep what is learned), ``"epoch"`` (the same, after it), ``"discard"`` or ``"pause"``."""
        return self._wish

    @property
    def wants_end_now(self) -> bool:
        """Whether the work should end as soon as it can."""
        return self._wish not in ("", AFTER_EPOCH)

    def ask(self, wish: str) -> None:
        """Ask for ``"stop"``, ``"epoch"``, ``"discard"`` or ``"pause"``."""
        with self._lock:
            if not self.wants_end_now:
                self._wish = wish


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
