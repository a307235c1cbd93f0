"""How a person's wish reaches work that goes on."""

from __future__ import annotations

import threading

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
