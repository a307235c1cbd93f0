"""From the times of all rounds to medians, ratios, a table and a JSON file."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
GB = 1e9


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, smallest, largest and number of values."""
    found = list(values)
    return {
        "median": round(statistics.median(found), 3),
        "min": round(min(found), 3),
        "max": round(max(found), 3),
        "count": len(found),
    }


def step_times(run: dict[str, Any], discard: int) -> list[float]:
    """Seconds from the end of one step to the end of the next, without the first ``discard`` steps."""
    return _differences(run["steps"], discard)


def cpu_times(run: dict[str, Any], discard: int) -> list[float]:
    """Processor seconds of the same steps, which say more than the clock when the machine has other work."""
    return _differences(run["cpu"], discard)


def _differences(ends: Sequence[float], discard: int) -> list[float]:
    return [later - earlier for earlier, later in zip(ends[discard - 1 :], ends[discard:], strict=False)]


def memory(run: dict[str, Any], since: float = 0.0) -> float:
    """Largest resident memory of a process from a moment on, in GB."""
    return max(size for when, size in run["memory"] if when >= since) / GB


def memory_at(run: dict[str, Any], when: float) -> float:
    """Resident memory at a moment, in GB."""
    return [size for moment, size in run["memory"] if moment <= when][-1] / GB


def ours(results: Sequence[dict[str, Any]], discard: int) -> dict[str, Any]:
    """The figures of our trainer."""
    train = [result["runs"]["train"] for result in results]
    figures = {
        "step": spread(t for run in train for t in step_times(run, discard)),
        "step_cpu": spread(t for run in train for t in cpu_times(run, discard)),
        "unet_forward": spread(t for run in train for t in run["calls"]["UNet2DConditionModel"]),
        "load_checkpoint": spread(run["marks"]["loaded"] - run["marks"]["imported"] for run in train),
        "process_to_first_step": spread(run["marks"]["first_step"] for run in train),
        "peak_memory_gb": spread(memory(run) for run in train),
        "added_memory_gb": spread(
            memory(run, run["marks"]["pressed"]) - memory_at(run, run["marks"]["pressed"]) for run in train
        ),
        "trained_parameters": train[0]["trained"],
    }
    for name in results[0]["runs"]:
        runs = [result["runs"][name] for result in results]
        figures[f"start_{name}"] = spread(r["marks"]["first_step"] - r["marks"]["pressed"] for r in runs)
        figures[f"first_step_done_{name}"] = spread(r["steps"][0] - r["marks"]["pressed"] for r in runs)
    return figures


def peer(results: Sequence[dict[str, Any]], discard: int) -> dict[str, Any]:
    """The figures of sd-scripts."""
    train = [result["runs"]["train"] for result in results]
    return {
        "step": spread(t for run in train for t in step_times(run, discard)),
        "step_cpu": spread(t for run in train for t in cpu_times(run, discard)),
        "unet_forward": spread(t for run in train for t in run["calls"]["UNet2DConditionModel"]),
        "text_forward": spread(t for run in train for t in run["calls"]["CLIPTextModel"]),
        "process_to_first_step": spread(run["marks"]["first_step"] for run in train),
        "first_step_done": spread(run["steps"][0] for run in train),
        "peak_memory_gb": spread(memory(run) for run in train),
        "trained_parameters": train[0]["trained"],
    }


def ratios(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """How many times sd-scripts' figure is ours."""

    def ratio(their: str, own: str) -> float:
        return round(theirs[their]["median"] / mine[own]["median"], 2)

    return {
        "step": ratio("step", "step"),
        "step_cpu": ratio("step_cpu", "step_cpu"),
        "start": ratio("process_to_first_step", "start_train"),
        "start_with_loading": ratio("process_to_first_step", "process_to_first_step"),
        "memory": ratio("peak_memory_gb", "peak_memory_gb"),
        "memory_beside_the_webui": ratio("peak_memory_gb", "added_memory_gb"),
    }


def table(mine: dict[str, Any], theirs: dict[str, Any] | None) -> str:
    """The figures in lines: what, ours, sd-scripts', ratio."""
    rows = [
        ("seconds per step", "step", "step"),
        ("  in processor seconds", "step_cpu", "step_cpu"),
        ("  of it the UNet's forward", "unet_forward", "unet_forward"),
        ("  of it the text encoder", "", "text_forward"),
        ("Train to first step, checkpoint loaded (s)", "start_train", "process_to_first_step"),
        ("  the same until that step is done", "first_step_done_train", "first_step_done"),
        ("  pressed again in the same process", "start_again", ""),
        ("  with shuffled captions", "start_shuffled", ""),
        ("  and with the text encoder trained", "start_text", ""),
        ("new process to first step (s)", "process_to_first_step", "process_to_first_step"),
        ("  of it loading the checkpoint", "load_checkpoint", ""),
        ("largest memory of the process (GB)", "peak_memory_gb", "peak_memory_gb"),
        ("  added to a loaded checkpoint (GB)", "added_memory_gb", "peak_memory_gb"),
    ]
    lines = [f"{'median (smallest – largest)':44} {'ours':>24} {'sd-scripts':>24} {'ratio':>7}"]
    for title, own, their in rows:
        left, right = mine.get(own), (theirs or {}).get(their)
        ratio = f"{right['median'] / left['median']:.2f}" if left and right else ""
        lines.append(f"{title:44} {_cell(left):>24} {_cell(right):>24} {ratio:>7}")
    return "\n".join(lines)


def _cell(figure: dict[str, float] | None) -> str:
    if figure is None:
        return "–"
    return f"{figure['median']:.2f} ({figure['min']:.2f} – {figure['max']:.2f})"


def machine() -> dict[str, Any]:
    """What the figures were measured on, without names of folders."""
    import psutil

    load = os.getloadavg() if hasattr(os, "getloadavg") else ()
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "cpu": _cpu(),
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / GB, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "load_before": [round(value, 2) for value in load],
        "commit": commit(Path(__file__).parent),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def commit(folder: Path) -> str:
    """The short name of a checkout's commit, with a + when files were changed; empty without git."""
    try:
        described = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=8", "--exclude=*"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return ""
    return described.stdout.strip()


def save(what: str, document: dict[str, Any]) -> Path:
    """Write a result file."""
    command = {"command": " ".join(["python", "-m", "benchmarks", *sys.argv[1:]])}
    path = RESULTS / f"{time.strftime('%Y-%m-%d')}-{what}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**command, **document}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
