"""A run is killed at random instants and resumed, until it is done: nothing may be lost, nothing half-written.

Each part is a process of its own that gets SIGKILL (on Windows TerminateProcess). After every second kill the
power goes too: what was not flushed to the disk (log, caches) is cut off at random.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file

from tools.soak.small import digests, document, draw_pictures, go_on, make_jobs

STEPS = 40
LONGEST = 6.0


class Kills:
    """The runs, their reference, and how it went.

    Args:
        folder: where everything is written.
        seed: of all random events.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        import torch

        torch.set_num_threads(1)  # a forked process cannot use the threads of its parent
        self._folder = folder
        self._rng = random.Random(seed)
        self._pictures = draw_pictures(folder / "pictures")
        fork = "fork" in multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("fork" if fork else "spawn")
        self._loaded = make_jobs(folder / "loading").host._loaded if fork else None  # type: ignore[attr-defined]
        self.kills = 0
        self.runs = 0

    def go(self, count: int) -> dict[str, Any]:
        """Kill ``count`` times; returns the figures, or raises :class:`AssertionError`."""
        began = time.monotonic()
        go_on(self._folder / "reference", document("run", self._pictures, STEPS), self._loaded)
        wanted = digests(self._folder / "reference", "run")
        assert wanted, "the reference run wrote no file"
        while self.kills < count:
            root = f"run-{self.runs:03d}"
            while self._part(root, self._rng.uniform(0, LONGEST) if self.kills < count else None):
                self.kills += 1
                if self.kills % 2:
                    self._cut_power(self._folder / root)
                check_files(self._folder / root)
                print(f"\r{self.kills} kills, {self.runs} runs done", end="", file=sys.stderr, flush=True)
            assert digests(self._folder / root, "run") == wanted, f"{root} differs from the run without kills"
            self.runs += 1
        print(file=sys.stderr)
        return {"kills": self.kills, "runs": self.runs, "files_each": len(wanted), "steps": STEPS,
                "seconds": round(time.monotonic() - began)}  # fmt: skip

    def _part(self, root: str, seconds: float | None) -> bool:
        """Go on with a run for some seconds, then kill it; ``False`` when it was done before."""
        values = document("run", self._pictures, STEPS)
        process = self._context.Process(target=_work, args=(self._folder / root, values, self._loaded))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
            return True
        assert process.exitcode == 0, f"{root} ended with {process.exitcode}"
        return False

    def _cut_power(self, root: Path) -> None:
        """Cut off the end of what nobody waited for to be on the disk."""
        for path in [*root.glob("runs/*/log.jsonl"), *root.glob("cache/**/*.safetensors")]:
            if self._rng.random() < 0.5:
                content = path.read_bytes()
                path.write_bytes(content[: self._rng.randrange(len(content) + 1)])


def check_files(root: Path) -> None:
    """Everything that has its final name is whole, and every file that a manifest names is there."""
    for path in [*root.glob("models/Lora/**/*.safetensors"), *root.glob("**/runs/*/state/*.safetensors")]:
        load_file(path)
    for path in [*root.glob("models/Lora/**/*.json"), *root.glob("**/runs/*/*.json")]:
        json.loads(path.read_text(encoding="utf-8"))
    for manifest in root.glob("**/runs/*/manifest.json"):
        for entry in json.loads(manifest.read_text(encoding="utf-8"))["files"]:
            assert Path(entry["path"]).is_file(), f"{entry['path']} is gone"
    for path in root.glob("**/runs/*/samples/*.png"):
        with Image.open(path) as picture:
            picture.load()


def _work(root: Path, values: dict[str, Any], loaded: Any) -> None:
    state = go_on(root, values, loaded)
    sys.exit(0 if state == "done" else f"the run is {state}")
