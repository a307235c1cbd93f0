"""Checks that go wrong in every way that a check can, for the runner's tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.notes import Notes
from benchmarks.gpu.setting import Setting


def works(setting: Setting, notes: Notes) -> None:
    notes.part("one", lambda: {"says": "found", "holds": {"it is so": True}})


def does_not_hold(setting: Setting, notes: Notes) -> None:
    notes.part("one", lambda: {"says": "found", "holds": {"it is so": False}})


def has_a_bad_part(setting: Setting, notes: Notes) -> None:
    notes.part("bad", lambda: {"never": 1 / 0})
    notes.part("leaves", sys.exit, 3)
    notes.part("good", lambda: {"says": "still here"})


def raises(setting: Setting, notes: Notes) -> None:
    works(setting, notes)
    raise ValueError("on purpose")


def leaves(setting: Setting, notes: Notes) -> None:
    works(setting, notes)
    sys.exit(0)


def dies(setting: Setting, notes: Notes) -> None:
    works(setting, notes)
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(setting: Setting, notes: Notes) -> None:
    """With a process of its own, which must end with it."""
    works(setting, notes)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    notes.part("two", lambda: {"says": "begun"})
    written = Path(setting.folder, "child.new")
    written.write_text(str(child.pid))
    written.rename(Path(setting.folder, "child"))  # last, and whole: then it may be ended
    child.wait()
