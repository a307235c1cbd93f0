"""Functions that the WebUI calls: registered under their file's name, without searching for it.

``script_callbacks.on_…`` finds out who calls it by ``inspect.stack()``, which looks through all modules of the process,
30 to 80 ms each time (script_callbacks.py:129): a quarter of a second for ours. Line numbers are of commit 82a973c0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules import script_callbacks


def register(event: str, callback: Callable[..., Any], file: str) -> None:
    """``script_callbacks.on_<event>(callback)`` for ``file``; where the WebUI has another way, by that function.

    Args:
        event: the function's name without ``on_``, e.g. ``ui_tabs``.
        callback: what is called.
        file: of the extension: by it the WebUI names and orders callbacks, and takes them away again.
    """
    callbacks = script_callbacks.callback_map.get(f"callbacks_{event}")
    try:
        if callbacks is not None:
            script_callbacks.add_callback(callbacks, callback, category=event, filename=file)
            return
    except TypeError:  # before 1.10 it takes no name of a file
        pass
    getattr(script_callbacks, f"on_{event}")(callback)
