"""The same epoch × weight grid through the tab and through the WebUI's X/Y/Z plot, in one real WebUI.

``python -m benchmarks.grid`` needs a WebUI as the host tests do (``WEBUI_ROOT``). The X/Y/Z plot does what people do
with it today: search and replace of the file's name, of the weight and of the prompt. Both draw the same pictures,
which are compared; the tab's grid without its column of the checkpoint alone, since the plot has none.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy
import psutil
from PIL import Image

from tests.webui.real.webui import WebUI
from tools.soak.small import document, draw_pictures

EPOCHS = 5
WEIGHTS = [0.3, 0.6, 0.8, 1.0]
PROMPTS = ["zorp, blue background", "zorp, yellow background"]
SIZE = 128
Times = dict[str, float]
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path, default=RESULTS / f"{time.strftime('%Y-%m-%d')}-grid.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(Path(folder), args.rounds, args.steps)
    args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


def measure(folder: Path, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds of both, and how their pictures differ."""
    webui = WebUI(folder / "webui")
    try:
        webui.wait()
        files = train(webui, draw_pictures(folder / "pictures"), steps)
        one_by_one(webui, files, steps)  # warms up both
        plot, ours, single = [], [], []
        for number in range(rounds):
            seconds, theirs = xyz(webui, files, steps, seed=number)
            plot.append(seconds)
            for together, list_ in ((4, ours), (1, single)):
                seconds, cells = tab(webui, number, together)
                list_.append(seconds)
                if together == 4:
                    differences = compare(theirs, cells)
                else:
                    alone = compare(theirs, cells)
        seconds, added = new_epoch(webui, rounds - 1)
    finally:
        webui.close()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": "python -m benchmarks.grid",
        "host": "stable-diffusion-webui v1.10.1, CPU, small checkpoint",
        "python": platform.python_version(),
        "grid": f"{EPOCHS} epochs × {len(WEIGHTS)} weights × {len(PROMPTS)} prompts, {SIZE} px, {steps} steps",
        "xyz_seconds": plot,
        "tab_seconds": ours,
        "tab_one_at_a_time_seconds": single,
        "ratio": ratios(ours, plot),
        "ratio_one_at_a_time": ratios(single, plot),
        "pictures": differences,
        "pictures_one_at_a_time": alone,
        "one_new_epoch": {"seconds": seconds, "cells_drawn": added},
    }


def ratios(ours: list[Times], theirs: list[Times]) -> Times:
    """Medians of ours by medians of theirs."""
    return {k: statistics.median(t[k] for t in ours) / statistics.median(t[k] for t in theirs) for k in theirs[0]}


def train(webui: WebUI, pictures: Path, steps: int) -> list[str]:
    """A run with a file for each epoch; names of the files."""
    settings = document("bench", pictures, 0, epochs=EPOCHS) | {"save": {"every_epochs": 1}}
    settings["samples"] = {"steps": steps, "width": SIZE, "height": SIZE, "cfg": 7, "sampler": "Euler a"}
    manifest = webui.finished(webui.train(**settings))
    assert manifest["state"] == "done", manifest["message"]
    return [Path(entry["path"]).stem for entry in manifest["files"]]


def xyz(
    webui: WebUI, files: list[str], steps: int, seed: int
) -> tuple[Times, dict[tuple[str, float, str], Image.Image]]:
    """The plot by search and replace: X files, Y weights, Z prompts."""
    axis = webui.probe(
        "from modules import scripts\n"
        "script = [s for s in scripts.scripts_txt2img.scripts if type(s).__module__ == 'xyz_grid.py'][0]\n"
        "result = [o.label for o in script.current_axis_options].index('Prompt S/R')"
    )
    values = [",".join(files), ",".join(f":{w:g}>" for w in WEIGHTS), ",".join(f'"{p}"' for p in PROMPTS)]
    arguments: list[Any] = []
    for text in values:
        arguments += [axis, text, []]
    arguments += [True, True, False, False, False, False, False, 0, True]  # legend, single pictures, …, as text
    body = {
        "prompt": f"{PROMPTS[0]}<lora:{files[0]}:{WEIGHTS[0]:g}>",
        "seed": seed,
        "steps": steps,
        "width": SIZE,
        "height": SIZE,
        "cfg_scale": 7,
        "sampler_name": "Euler a",
        "script_name": "x/y/z plot",
        "script_args": arguments,
    }
    with Clock(webui) as clock:
        answer = webui.post("/sdapi/v1/txt2img", body)
    found = {}
    texts = json.loads(answer["info"])["infotexts"]
    for image, text in zip(answer["images"], texts, strict=False):
        for name in files:
            for weight in WEIGHTS:
                for prompt in PROMPTS:
                    if text.startswith(f"{prompt}<lora:{name}:{weight:g}>\n") and "Script: X/Y/Z plot" not in text:
                        found[name, weight, prompt] = decode(image)
    assert len(found) == len(files) * len(WEIGHTS) * len(PROMPTS), (len(found), texts[:3])
    return clock.times, found


def tab(webui: WebUI, seed: int, together: int) -> tuple[Times, dict[tuple[str, float, str], Image.Image]]:
    """The tab's grid over REST, from nothing; without the time of the checkpoint's own column."""
    clear(webui)
    wishes = {"weights": WEIGHTS, "prompts": PROMPTS, "seeds": [seed], "together": together, "numbers": False}
    with Clock(webui) as clock:
        webui.post("/lora-train/v1/runs/bench/grid", wishes)
        grid = webui.drawn("bench", 600)
    assert grid["state"] == "done", grid
    document = webui.get("/lora-train/v1/runs/bench/grid")
    columns, prompts = document["columns"], document["prompts"]
    return clock.times, {
        (columns[c["column"]]["name"], c["weight"], prompts[c["prompt"]]["text"]): Image.open(c["picture"]).convert(
            "RGB"
        )
        for c in document["cells"]
        if c["column"]
    }


def new_epoch(webui: WebUI, seed: int) -> tuple[Times, int]:
    """Throw one epoch's cells away, as if it had just come, and draw the grid again."""
    document = webui.get("/lora-train/v1/runs/bench/grid")
    before = [Path(c["picture"]) for c in document["cells"] if c["column"] == EPOCHS]
    for path in before:
        path.unlink()
    kept = {c["picture"]: Path(c["picture"]).stat().st_mtime_ns for c in document["cells"] if c["column"] != EPOCHS}
    wishes = {"weights": WEIGHTS, "prompts": PROMPTS, "seeds": [seed], "numbers": False}
    with Clock(webui) as clock:
        webui.post("/lora-train/v1/runs/bench/grid", wishes)
        webui.drawn("bench", 600)
    assert all(Path(path).stat().st_mtime_ns == stamp for path, stamp in kept.items())
    return clock.times, sum(path.is_file() for path in before)


class Clock:
    """Seconds of the wall and of the WebUI's processor, all threads together: the latter counts on a busy machine."""

    def __init__(self, webui: WebUI) -> None:
        self._process = psutil.Process(webui.pid)
        self.times: Times = {}

    def __enter__(self) -> Clock:
        self._began = time.monotonic(), self._processor()
        return self

    def __exit__(self, *_: object) -> None:
        wall, processor = self._began
        self.times = {"wall": time.monotonic() - wall, "processor": self._processor() - processor}

    def _processor(self) -> float:
        used = self._process.cpu_times()
        return used.user + used.system


def one_by_one(webui: WebUI, files: list[str], steps: int) -> None:
    """A few pictures, so that everything is loaded."""
    for name in files:
        webui.picture(f"{PROMPTS[0]}<lora:{name}:1>", steps=steps)


def clear(webui: WebUI) -> None:
    """Forget the grid that was drawn before."""
    for path in webui.data.glob("**/runs/bench/grids/plain/cells/*.png"):
        path.unlink()


def compare(theirs: dict[Any, Image.Image], ours: dict[Any, Image.Image]) -> dict[str, Any]:
    """How many pictures are the same, and the largest difference of a sample."""
    pairs = [(numpy.asarray(theirs[key], int), numpy.asarray(ours[key], int)) for key in theirs]
    largest = max(int(abs(a - b).max()) for a, b in pairs)
    changed = sum(int((a != b).sum()) for a, b in pairs) / sum(a.size for a, _ in pairs)
    same = sum(bool((a == b).all()) for a, b in pairs)
    return {"count": len(pairs), "same": same, "largest_difference": largest, "samples_changed": changed}


def decode(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")


if __name__ == "__main__":
    main()
