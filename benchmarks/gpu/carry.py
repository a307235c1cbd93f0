"""``python -m benchmarks.gpu.carry``: fetch what a bare machine with a card lacks, into an ignored folder.

For Python 3.12 on Linux with torch, transformers 5.17 and their needs, where nothing can be fetched. Where SD_SCRIPTS
names a checkout, what it needs is taken along too, with its own wheels. Nothing of it may be committed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import programs
from benchmarks.gpu import carried
from benchmarks.gpu.runner import ROOT

WHEELS = ("diffusers==0.42.1", "peft==0.21.2", "importlib-metadata==8.7.0", "zipp==3.23.0")
"""What the trainer imports and the machine lacks, or may have in a version that was not tried."""
PEER_WHEELS = (
    "transformers==4.54.1", "tokenizers==0.21.4", "huggingface-hub==0.36.2", "diffusers==0.32.1",
    "importlib-metadata==8.7.0", "zipp==3.23.0", "toml==0.10.2", "imagesize==1.4.1", "voluptuous==0.15.2",
)  # fmt: skip
"""What sd-scripts imports for this work, as its requirements pin it, without what the machine has."""
PEER_SOURCES = ("train_network.py", "library", "networks")
LIMIT = 64 * 2**20
"""Bytes that the working tree and what is carried may have together."""
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.carry", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / carried.FOLDER)
    folder = parser.parse_args(arguments).folder
    shutil.rmtree(folder, ignore_errors=True)
    fetch(WHEELS, folder)
    checkout = os.environ.get(programs.SD_SCRIPTS)
    if checkout:
        fetch(PEER_WHEELS, folder / carried.PEER)
        copy_sources(Path(checkout).expanduser(), folder / carried.PEER / carried.SOURCE)
    else:
        print(f"Without sd-scripts: {programs.SD_SCRIPTS} names no checkout.")
    return 0 if small_enough(size_of(folder), size_of_tree(ROOT)) else 1


def fetch(wheels: Iterable[str], folder: Path) -> None:
    """Download wheels for the machine, without what they ask for."""
    platforms = [part for name in _PLATFORMS for part in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.12", "--implementation", "cp", *platforms, "-d", str(folder), *wheels]
    subprocess.run(command, check=True)


def copy_sources(checkout: Path, folder: Path) -> None:
    """Copy the part of sd-scripts that trains a LoRA for SD1."""
    folder.mkdir(parents=True)
    for name in PEER_SOURCES:
        source = checkout / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copy2(source, folder / name)


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def size_of_tree(root: Path) -> int:
    """Bytes of the files that travel with the working tree: tracked ones, and those that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
    paths = (root / name for name in names if name)
    return sum(path.lstat().st_size for path in paths if not path.is_dir() and os.path.lexists(path))


def small_enough(carried_bytes: int, tree_bytes: int) -> bool:
    """Print the sizes, and say whether both together may travel."""
    together = carried_bytes + tree_bytes
    sizes = f"{carried_bytes / 2**20:.1f} MiB carried + {tree_bytes / 2**20:.1f} MiB working tree"
    print(f"{sizes} = {together / 2**20:.1f} MiB of {LIMIT / 2**20:.0f}")
    if together > LIMIT:
        print(f"That is {(together - LIMIT) / 2**20:.1f} MiB too much.", file=sys.stderr)
    return together <= LIMIT


if __name__ == "__main__":
    sys.exit(main())
