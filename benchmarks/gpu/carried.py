"""What was carried to a machine without a network: wheels for the trainer, and sd-scripts with wheels of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = ".gpu-carry"
PEER = "peer"
SOURCE = "sd-scripts"


def install(folder: Path, place: Path) -> Path | None:
    """Unpack the wheels of a carried folder below ``place``; returns where they are, if there are any."""
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        return None
    site = place / f"site-{folder.name}"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*command, "--no-cache-dir", "--target", str(site), *map(str, wheels)], check=True)
    return site


def environment(*sites: Path | None) -> dict[str, str]:
    """Variables of a process that finds what was unpacked before what the machine has, and asks no network."""
    found = [str(site) for site in sites if site]
    inherited: Sequence[str] = [entry for entry in [os.environ.get("PYTHONPATH", "")] if entry]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return {**offline, "PYTHONPATH": os.pathsep.join([*found, *inherited])}


def peer(folder: Path | None) -> str:
    """The carried peer's folder, or ``""``."""
    place = folder / PEER if folder else None
    return str(place.resolve()) if place and (place / SOURCE / "train_network.py").is_file() else ""
