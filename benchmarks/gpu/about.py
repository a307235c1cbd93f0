"""The machine, its packages, and the material that all checks share."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from importlib import metadata
from typing import Any

from benchmarks.gpu.notes import Notes
from benchmarks.gpu.setting import NOT_ON_A_CPU, Setting

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "numpy", "Pillow")


def check(setting: Setting, notes: Notes) -> None:
    """Say what is there, and make the checkpoint."""
    found = notes.part("machine", machine, setting)
    if found.get("card") or setting.cpu:
        notes.part("checkpoint", make_material, setting)


def machine(setting: Setting) -> dict[str, Any]:
    """Card, driver, memory, processor and versions."""
    import psutil
    import torch

    card = None
    if torch.cuda.is_available() and not setting.cpu:
        properties = torch.cuda.get_device_properties(0)
        card = {
            "name": properties.name,
            "memory": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "free": torch.cuda.mem_get_info()[0],
        }
    return {
        "card": card,
        "driver": _driver() if card else NOT_ON_A_CPU,
        "cuda": torch.version.cuda,
        "cores": os.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "versions": versions(),
        "says": f"{card['name'] if card else 'the processor'}, torch {torch.__version__}",
    }


def versions() -> dict[str, str]:
    """Of the packages that matter; what is absent is named."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "nvidia-smi is absent"
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=20)
    return answer.stdout.strip() or answer.stderr.strip()[:200]


def make_material(setting: Setting) -> dict[str, Any]:
    """Checkpoint, tokenizer and pictures."""
    began = time.monotonic()
    made = setting.material()
    seconds = time.monotonic() - began
    size = made.checkpoint.stat().st_size
    return {"seconds": seconds, "bytes": size, "says": f"{size / 1e9:.2f} GB in {seconds:.1f} s"}
