"""Whether a new run may have its name: free for a prompt, whatever the capitals, and short enough for the disk."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError
from lora_trainer.core.paths import free_name
from lora_trainer.hosts.base import Host
from lora_trainer.jobs.library import LoraFolder
from lora_trainer.runs.run import output_folder

_FILE_LABEL = "-step00000000.preview.png"
"""The longest ending that is put behind a run's name for its files."""
_LONGEST_NAME = 255
"""Bytes of one name in a path, on all usual file systems."""
_IN_A_RUN = len("/grids/blocks/differences/.0123456789-0123456789-01234567.unfinished") + 32
"""Characters below a run's folder that its pictures, states and unfinished files may take."""
_LABELLED = re.compile(r"(.+)-(?:0\d{5}|step\d{8})")
"""How a run's files of single epochs and steps are called."""


def require_free(config: TrainConfig, host: Host, runs: Path) -> None:
    """Refuse a name that a run or LoRA has already, or that makes paths longer than the system takes.

    Capitals make no difference: Windows and macOS have one file for both, and a prompt finds either. Of two LoRAs of
    one name, in whatever subfolders, a prompt reaches one only.

    Args:
        config: of the new run.
        host: whose LoRA folder it goes into.
        runs: the folder of all runs.

    Raises:
        InputError: with a name that is free, or the number of characters that are too many.
    """
    folder = output_folder(config, host.folders.loras)
    _require_short(config.name, folder, runs)
    taken = dict(_taken(host, runs, folder))
    name = config.name
    if found := taken.get(_folded(name)):
        raise InputError(
            "name: “{name}” exists already ({folder}); choose another, for example {free}.",
            field="name",
            name=name,
            folder=found,
            free=free_name(name, lambda each: _folded(each) in taken),
        )


def _require_short(name: str, folder: Path, runs: Path) -> None:
    """Refuse what the system would refuse; before it is asked whether something is there, which it refuses too."""
    if part := next((part for part in folder.parts if len(part.encode("utf-8", "replace")) > _LONGEST_NAME), None):
        raise InputError(
            "save.folder: “{part}…” is longer than the name of a folder can be; choose a shorter one.",
            field="save.folder",
            part=part[:40],
        )
    longest = max(len(str(runs / name)) + _IN_A_RUN, len(str(folder / name)) + len(_FILE_LABEL))
    if (over := longest - longest_path()) > 0:
        raise InputError(
            "name: the paths of this run's files would be {count} characters longer than this system takes "
            "({folder}); choose a shorter name, or move the WebUI to a shorter folder.",
            field="name",
            count=over,
            folder=folder,
        )


def longest_path() -> int:
    """Characters that a path may have here: 259 on Windows without its long paths (MAX_PATH), 4095 elsewhere.

    Reference: "Maximum Path Length Limitation", learn.microsoft.com.
    """
    return 259 if os.name == "nt" and not _has_long_paths() else 4095


def _has_long_paths() -> bool:
    if sys.platform != "win32":
        return True
    import winreg

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SYSTEM\CurrentControlSet\Control\FileSystem") as key:
            return bool(winreg.QueryValueEx(key, "LongPathsEnabled")[0])
    except OSError:
        return False


def _taken(host: Host, runs: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Names that a new run cannot have, folded, each with what has it."""
    loras = LoraFolder(host)
    own = (path for path in _entries(folder) if path.is_file())
    for path in (*_entries(runs), *_entries(loras.root), *own, *loras.all_files()):
        name = path.stem if path.suffix.lower() in LoraFolder.SUFFIXES else path.name
        yield _folded(name), path
        if labelled := _LABELLED.fullmatch(name):
            yield _folded(labelled[1]), path


def _entries(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
