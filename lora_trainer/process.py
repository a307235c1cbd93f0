"""Which process works on a run: told by number and start, since numbers come again after a restart."""

from __future__ import annotations

import os

SAME_START_SECONDS = 10.0
"""Start times are worked out from the clock, which may be set in between."""


def this_process() -> list[float]:
    """[number, start in seconds since 1970] of this process, for a manifest."""
    import psutil

    return [os.getpid(), psutil.Process().create_time()]


def is_alive(process: object) -> bool:
    """Whether the process that a manifest names still goes on."""
    import psutil

    if not isinstance(process, list) or len(process) != 2 or not all(isinstance(v, (int, float)) for v in process):
        return False
    try:
        return abs(psutil.Process(int(process[0])).create_time() - process[1]) < SAME_START_SECONDS
    except (psutil.Error, ValueError, OverflowError):
        return False
