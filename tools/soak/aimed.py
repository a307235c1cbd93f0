"""A small run is killed before each kind of file operation that it does, and resumed: nothing of it may stay behind.

The operations are those that Python announces to audit hooks: opening for writing, rename, remove, mkdir, rmdir, chmod.
Two are of one kind when they differ in numbers, hashes and temporary names only.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tools.soak.kills import check_files
from tools.soak.small import digests, document, draw_pictures, go_on, make_jobs

STEPS = 4
_WATCHED = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Aimed:
    """The run, what it does with files, and its kills; POSIX only.

    Args:
        folder: where everything is written.
    """

    def __init__(self, folder: Path) -> None:
        import torch

        torch.set_num_threads(1)  # a forked process cannot use the threads of its parent
        self._folder = folder
        pictures = draw_pictures(folder / "pictures", count=3)
        self._values = document("run", pictures, STEPS)
        self._values["save"] |= {"every_steps": 2, "state_steps": 1}
        self._values["samples"] = {"prompts": ["zorp"], "every_steps": 1, "steps": 1}
        self._values["validation"] = {"share": 0.4, "every_epochs": 1, "timesteps": 1}
        self._context: Any = multiprocessing.get_context("fork")
        self._loaded = make_jobs(folder / "loading").host._loaded  # type: ignore[attr-defined]

    def operations(self) -> dict[str, int]:
        """What the run does with files, and how often; it is the reference of the killed ones."""
        told = self._folder / "operations.json"

        def count(root: Path) -> None:
            counts: Counter[str] = Counter()
            _watch(root, lambda label: counts.update([label]))
            assert go_on(root, self._values, self._loaded) == "done"
            told.write_text(json.dumps(counts), encoding="utf-8")

        assert self._in_child(count, "reference") == 0
        self._wanted = digests(self._folder / "reference", "run")
        found: dict[str, int] = json.loads(told.read_text(encoding="utf-8"))
        return found

    def go(self, aims: Iterable[tuple[str, int]]) -> dict[str, Any]:
        """Kill a run before the nth operation of a kind and go on with it; raises :class:`AssertionError`."""
        kills = 0
        for label, nth in aims:

            def killed(root: Path, label: str = label, nth: int = nth) -> None:
                left = [nth]

                def aim(done: str) -> None:
                    left[0] -= done == label
                    if not left[0]:
                        os.kill(os.getpid(), signal.SIGKILL)

                _watch(root, aim)
                go_on(root, self._values, self._loaded)

            root = self._folder / "killed"
            kills += self._in_child(killed, root.name) == -signal.SIGKILL
            check_files(root)
            assert self._in_child(self._finish, root.name) == 0, f"{label} {nth}: the run cannot go on"
            assert digests(root, "run") == self._wanted, f"{label} {nth}: another LoRA"
            left = [path.relative_to(root).as_posix() for path in root.rglob("*") if "lora-train-tmp" in path.name]
            assert left == [], f"{label} {nth}: {left}"
            reference = _names(self._folder / "reference")
            assert _names(root) == reference, f"{label} {nth}: {_names(root) ^ reference}"
            shutil.rmtree(root)
            print(f"\r{kills} kills", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        return {"kills": kills}

    def _finish(self, root: Path) -> None:
        """As the next start of a server, and then the person, would."""
        jobs = make_jobs(root, self._loaded)
        jobs.restore()
        assert go_on(root, self._values, self._loaded, jobs) == "done"

    def _in_child(self, work: Callable[[Path], object], root: str) -> int:
        process = self._context.Process(target=work, args=(self._folder / root,))
        process.start()
        process.join()
        return int(process.exitcode)


def _watch(root: Path, on_operation: Callable[[str], object]) -> None:
    """Call ``on_operation`` before each operation below ``root`` of this process, which cannot be undone."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _WATCHED or (event == "open" and not (arguments[2] or 0) & _WRITES):
            return
        path = arguments[1] if event == "os.rename" else arguments[0]
        if isinstance(path, (str, os.PathLike)) and str(path).startswith(str(root)):
            on_operation(f"{event} {_kind(Path(path).relative_to(root))}")

    sys.addaudithook(hook)


def _kind(path: Path) -> str:
    """A path without what differs from run to run."""
    temporary = re.sub(r"\.\d+-\d+-\w{8}-\w{8}\.lora-train-tmp", "TEMPORARY", path.as_posix())
    return re.sub(r"\d+", "N", re.sub(r"[0-9a-f]{32}|(?<=latents/)[0-9a-f]{2}", "HASH", temporary))


def _names(root: Path) -> set[str]:
    """All files and folders of a run, but for the pictures' shared cache."""
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if "cache" not in path.parts}
