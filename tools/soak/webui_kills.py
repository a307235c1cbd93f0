"""The same kills in the real WebUI: its process is killed at random instants of a run and started again."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

from tools.soak.kills import check_files
from tools.soak.small import digests, document, draw_pictures
from tools.soak.webui import start

STEPS = 60
LONGEST = 8.0


def kill_webui(folder: Path, seed: int, count: int) -> dict[str, Any]:
    """Kill ``count`` times; returns the figures, or raises :class:`AssertionError`."""
    rng = random.Random(seed)
    pictures = draw_pictures(folder / "pictures")
    webui = start(folder)
    began = time.monotonic()
    kills = runs = 0
    try:
        assert webui.finished(webui.train(**document("reference", pictures, STEPS)))["state"] == "done"
        wanted = list(digests(webui.data, "reference").values())
        assert wanted, "the reference run wrote no file"
        while kills < count:
            name = webui.train(**document(f"run{runs}", pictures, STEPS))
            while kills < count:
                time.sleep(rng.uniform(0, LONGEST))
                if webui.get(f"/lora-train/v1/runs/{name}")["state"] == "done":
                    break
                webui.kill_and_start()
                kills += 1
                check_files(webui.data)
                _go_on(webui, name)
                print(f"\r{kills} kills, {runs} runs done", end="", file=sys.stderr, flush=True)
            manifest = webui.in_state(name, "done", "failed", seconds=300)
            assert manifest["state"] == "done", manifest["message"]
            assert list(digests(webui.data, name).values()) == wanted, f"{name} differs from the run without kills"
            runs += 1
    finally:
        webui.close()
    print(file=sys.stderr)
    seconds = round(time.monotonic() - began)
    return {"kills": kills, "runs": runs, "files_each": len(wanted), "steps": STEPS, "seconds": seconds}


def _go_on(webui: Any, name: str) -> None:
    """A run that waited goes on by itself after a restart; one that was worked on is resumed."""
    if webui.get(f"/lora-train/v1/runs/{name}")["state"] in ("stopped", "paused", "failed"):
        webui.post(f"/lora-train/v1/runs/{name}/resume")
