"""Random events in the real WebUI for a set time: runs, pictures, pauses, switches, reloads and kills."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.webui.real.webui import STARTED, WebUI
from tools.soak.small import digests, document, draw_pictures
from tools.soak.webui import start

STEPS = 80
WEIGHTS = """
import hashlib
from modules import shared
from lora_trainer.hosts.a1111.host import clean_weights
clean_weights(shared.sd_model)
digest = hashlib.sha256()
for name, p in sorted(shared.sd_model.named_parameters()):
    digest.update(name.encode() + p.detach().cpu().numpy().tobytes())
result = digest.hexdigest()
"""
ENDED = ("done", "failed", "stopped")


class Events:
    """One run after another, with whatever the seed brings in between; all must learn the same.

    Args:
        folder: where everything is written.
        seed: of the events.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._rng = random.Random(seed)
        self._pictures = draw_pictures(folder / "pictures")
        self._webui: WebUI = start(folder)
        self._events: dict[str, Callable[[], None]] = {
            "picture": self._picture, "pause": self._pause, "switch": self._switch, "reload": self._reload,
            "kill": self._kill, "grid": self._grid, "bad input": self._bad_input,
        }  # fmt: skip
        self._counts: Counter[str] = Counter()
        self._name = ""

    def go(self, minutes: float) -> dict[str, Any]:
        """Let things happen for some minutes; raises :class:`AssertionError` when something is not as it was."""
        try:
            self._remember()
            until = time.monotonic() + 60 * minutes
            while time.monotonic() < until:
                self._one_run(until)
            return {"minutes": minutes, "events": dict(self._counts)}
        finally:
            self._webui.close()

    def _remember(self) -> None:
        """What all must be equal to."""
        webui = self._webui
        webui.finished(webui.train(**document("reference", self._pictures, STEPS)))
        self._expected = self._files("reference")
        self._prompts = ["red circle", "zorp <lora:reference:0.7>"]
        self._drawn = [webui.picture(prompt).tobytes() for prompt in self._prompts]
        self._weights = webui.probe(WEIGHTS)

    def _one_run(self, until: float) -> None:
        self._counts["run"] += 1
        self._name = f"run{self._counts['run']}"
        self._webui.train(**document(self._name, self._pictures, STEPS))
        while self._manifest()["state"] not in ENDED and time.monotonic() < until:
            time.sleep(self._rng.uniform(0, 1.5))
            event = self._rng.choices(list(self._events), [8, 3, 2, 1, 1, 1, 2])[0]
            self._events[event]()
            self._counts[event] += 1
            print(f"\r{dict(self._counts)}", end="", file=sys.stderr, flush=True)
        manifest = self._webui.in_state(self._name, *ENDED, seconds=300)
        assert manifest["state"] == "done", manifest["message"]
        assert self._files(self._name) == self._expected, f"{self._name} learned something else"
        assert self._webui.probe(WEIGHTS) == self._weights, "the checkpoint's weights have changed"

    def _manifest(self) -> dict[str, Any]:
        return self._webui.get(f"/lora-train/v1/runs/{self._name}")

    def _files(self, name: str) -> list[str]:
        return list(digests(self._webui.data, name).values())

    def _picture(self) -> None:
        index = self._rng.randrange(len(self._prompts))
        assert self._webui.picture(self._prompts[index]).tobytes() == self._drawn[index], self._prompts[index]

    def _pause(self) -> None:
        if self._webui.request("POST", f"/lora-train/v1/runs/{self._name}/pause")[0] == 200:
            self._webui.in_state(self._name, "paused", "done")
            self._resume()

    def _resume(self) -> None:
        if self._manifest()["state"] in ("paused", "stopped", "failed"):
            self._webui.post(f"/lora-train/v1/runs/{self._name}/resume")

    def _switch(self) -> None:
        self._choose("other")
        time.sleep(self._rng.uniform(0, 1))
        self._choose("small")

    def _choose(self, checkpoint: str) -> None:
        self._webui.post("/sdapi/v1/options", {"sd_model_checkpoint": f"{checkpoint}.safetensors"})

    def _reload(self) -> None:
        starts = self._webui.log().count(STARTED)
        self._webui.probe("from modules import shared; shared.state.server_command = 'restart'")
        self._webui.until_reloaded(starts)

    def _kill(self) -> None:
        self._webui.kill_and_start()
        assert self._manifest()["state"] in ("stopped", "paused", "queued", "running", "done")
        self._resume()

    def _grid(self) -> None:
        values = {"weights": [0.5], "prompts": ["zorp"]}
        if self._webui.request("POST", f"/lora-train/v1/runs/{self._name}/grid", values)[0] == 200:
            grid = self._webui.drawn(self._name)
            assert grid["state"] in ("done", "stopped") or "switched" in grid["message"], grid

    def _bad_input(self) -> None:
        broken = document("../x", self._pictures, 0)
        assert self._webui.request("POST", "/lora-train/v1/runs", broken)[0] == 422
        assert self._webui.request("POST", "/lora-train/v1/runs", document("reference", self._pictures, 5))[0] == 422
