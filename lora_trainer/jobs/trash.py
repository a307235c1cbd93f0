"""Runs that a person does not want any more: they go into a folder from which they can be taken back by hand."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lora_trainer.core.errors import InputError, LoraTrainError
from lora_trainer.core.files import patiently
from lora_trainer.core.paths import free_name
from lora_trainer.jobs.library import SUFFIX
from lora_trainer.jobs.service import Jobs
from lora_trainer.runs.control import StopRequest
from lora_trainer.runs.run import Run, output_folder

FOLDER = ".trash"
"""Below the runs; its name starts with a dot, so that nothing in it is taken for a run."""
_BESIDE = (".json", ".txt", ".png", ".jpg", ".jpeg", ".webp", ".gif", ".preview.png", ".preview.jpg", ".preview.webp")
"""A LoRA file's card and pictures, which the WebUI keeps beside it under the same name."""


def delete(jobs: Jobs, name: str, *, files: bool) -> Path:
    """Move a run into the trash; returns where it lies now.

    Its name is free again, unless LoRA files stay under it: those that are to be kept, and what else a person has put
    or baked into its folder.

    Args:
        jobs: of the host.
        name: the run.
        files: its LoRA files too.

    Raises:
        NotFound: there is no such run.
        InputError: it is worked on, or something of it cannot be moved; what was not moved is still there.
    """
    run = jobs.settled(name)
    if jobs.is_worked_on(run):
        raise InputError("The run {name} is being worked on; stop it first.", field="name", name=name)
    place = _new_place(jobs.runs.root / FOLDER, name)
    for path in _lora_files(run, jobs.host.folders.loras) if files else ():
        _move(path, place / "loras" / path.name)
    with suppress(OSError):  # files of the person's own are in it, or it was never made
        (jobs.host.folders.loras / name).rmdir()
    _move(run.folder, place / "run")  # last, so that it is still listed when something before went wrong
    return place


def discard(jobs: Jobs, name: str) -> threading.Thread:
    """Stop a run and move it and its LoRA files into the trash, once its step has ended; returns what waits for that.

    Raises:
        InputError: the run is not going on.
    """
    run = jobs.stop(name, StopRequest.DISCARD)
    jobs.stop_sections(run)

    def finish() -> None:
        jobs.wait(run)
        try:
            delete(jobs, name, files=True)
        except LoraTrainError as error:  # it is listed as stopped, and can be deleted there
            run.update(message=str(error), now=True)

    waiting = threading.Thread(target=finish, name=f"discards {name}", daemon=True)
    waiting.start()
    return waiting


def _new_place(trash: Path, name: str) -> Path:
    wanted = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return trash / free_name(wanted, lambda each: (trash / each).exists())


def _lora_files(run: Run, loras: Path) -> Iterator[Path]:
    """The run's LoRA files with what belongs to each. A manifest may be anybody's: what it names elsewhere stays."""
    folders = {Path(os.path.normpath(folder)) for folder in (loras / run.name, output_folder(run.config(), loras))}
    for entry in run.manifest["files"]:
        path = Path(os.path.normpath(entry["path"]))
        if path.suffix == SUFFIX and path.parent in folders:
            beside = (path.with_name(path.stem + ending) for ending in _BESIDE)
            yield from (each for each in (path, *beside) if each.is_file())


def _move(source: Path, target: Path) -> None:
    """Raises :class:`InputError` when it cannot be moved."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            patiently(lambda: os.rename(source, target))  # noqa: PTH104
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            shutil.move(source, target)  # to another disk
    except OSError as error:
        raise InputError(
            "{path} cannot be moved to {folder}: {error}. Close what has it open, and try again.",
            path=source,
            folder=target.parent,
            error=error.strerror or error,
        ) from error
