"""Whether the WebUI is building its page anew ("Reload UI").

This module stays while the WebUI loads the extension's scripts anew, and so does what it knows.
"""

from __future__ import annotations

import threading

_LONGEST = 120.0
"""Seconds that a picture waits for the new page: without the extension there is nobody to tell that it is there."""


class Reload:
    """Whether the page is being built anew."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._over.set()
        self._begun = 0

    @property
    def going_on(self) -> bool:
        """From the press of the button until the new page is there."""
        return not self._over.is_set()

    @property
    def begun(self) -> int:
        """How often the button was pressed."""
        return self._begun

    def happened_since(self, begun: int) -> bool:
        """Whether an Interrupt of work that began after so many presses may be the button's, not the person's."""
        return self.going_on or self._begun != begun

    def begin(self) -> None:
        """The page goes away; an Interrupt is not the person's now."""
        self._begun += 1
        self._over.clear()

    def end(self) -> None:
        """The new page is there."""
        self._over.set()

    def wait(self) -> None:
        """Wait until pictures can be drawn: in between, LoRA tags and scripts are taken out of the WebUI."""
        self._over.wait(_LONGEST)


reload = Reload()
