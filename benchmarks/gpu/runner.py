"""Starts a check in a process of its own and ends it at its limit. Imports neither torch nor the trainer."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.notes import last_lines
from benchmarks.gpu.setting import Setting

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Check:
    """One line of the list.

    Attributes:
        name: for ``--only``.
        title: for the table.
        entry: ``module:function``, which takes a setting and notes.
        limit: seconds after which it is ended.
        needs: seconds below which it is not begun; about what it takes on a big card.
    """

    name: str
    title: str
    entry: str
    limit: float
    needs: float = 0.0


def run_check(
    check: Check, setting: Setting, limit: float, environment: Mapping[str, str], *, inside: bool = False
) -> dict[str, Any]:
    """Carry a check out, and tell how it ended, how long it took and what it found.

    ``state`` is ``done``, ``failed`` (in ``parts`` or as a whole, see ``error``) or ``over its limit``.

    Args:
        check: what to do.
        setting: of the sitting.
        limit: seconds after which it is ended.
        environment: variables of its process beside the inherited ones.
        inside: it is a part of another check, and ends with that one.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result, said = Path(folder, "result.json"), Path(folder, "said.txt")
        command = [sys.executable, "-m", "benchmarks.gpu.one", check.entry, str(result), json.dumps(setting.to_dict())]
        code = _run(command, said, limit, {**os.environ, **environment}, own_group=not inside)
        found = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {"parts": {}, "finished": False}
        tail = last_lines(said.read_text(encoding="utf-8", errors="replace"))
    return {
        "state": _state(code, found),
        "seconds": round(time.monotonic() - began, 1),
        "limit": round(limit, 1),
        "parts": found["parts"],
        **({} if found["finished"] and code == 0 else {"exit": code, "error": tail}),
    }


def _state(code: int | None, found: Mapping[str, Any]) -> str:
    if code is None:
        return "over its limit"
    parts_failed = any("failed" in part for part in found["parts"].values())
    return "failed" if code or not found["finished"] or parts_failed else "done"


def _run(command: list[str], said: Path, limit: float, variables: Mapping[str, str], *, own_group: bool) -> int | None:
    """The exit code, or ``None`` when the command and everything that it started had to be ended."""
    with said.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=dict(variables), stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            start_new_session=own_group,
        )  # fmt: skip
    try:
        return process.wait(timeout=max(0.1, limit))
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process, own_group)


def _end(process: subprocess.Popen[bytes], own_group: bool) -> None:
    """End a process, with those that it started when it leads a group of its own."""
    if own_group:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
