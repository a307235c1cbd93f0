"""The folder of all runs."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any, cast

from lora_trainer import __version__
from lora_trainer.config.train import TrainConfig, is_file_name, shown_name
from lora_trainer.core.errors import InputError, NotFound, explain
from lora_trainer.core.files import make_folder, write_json, write_text
from lora_trainer.runs.manifest import VERSION, Manifest, stand_in
from lora_trainer.runs.run import Run


class Runs:
    """All runs below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._open: dict[str, Run] = {}
        self._lock = threading.Lock()

    def create(self, config: TrainConfig, **manifest: Any) -> Run:
        """Make the folder of a new run.

        Raises:
            InputError: the name is taken.
        """
        folder = self.root / config.name
        with self._lock:
            if folder.exists():
                raise InputError("name: a run “{name}” exists already.", field="name", name=config.name)
            values: dict[str, Any] = {
                "version": VERSION,
                "program": f"LoRA Train {__version__}",
                "name": config.name,
                "state": "queued",
                "message": "",
                "created": time.time(),
                "step": 0,
                "steps": 0,
                "epoch": 0,
                "epochs": config.training.epochs,
                "loss": None,
                "files": [],
                "samples": [],
                "validation": {},
                **manifest,
            }

            def fill(unborn: Path) -> None:
                write_text(unborn / "config.toml", config.to_toml())
                write_json(unborn / "manifest.json", values)

            make_folder(folder, fill)
            run = self._open[config.name] = Run(folder, cast(Manifest, values))
        return run

    def get(self, name: str) -> Run:
        """The run ``name``.

        Raises:
            InputError: there is none, or the name is no name.
        """
        if not name.strip():
            raise NotFound("No training run is chosen; choose one in the list, or start one.", field="name")
        with self._lock:
            if not is_file_name(name):
                raise NotFound("There is no run named {name}.", field="name", name=shown_name(name))
            run = self._open.get(name) or Run(self.root / name)
            run.refresh()
            self._open[name] = run
            return run

    def shown(self, name: str) -> Run:
        """The run ``name``, to show it: in place of one that cannot be read, one of the state ``damaged`` says why.

        Raises:
            NotFound: there is none, or the name is no name.
        """
        try:
            return self.get(name)
        except NotFound:
            if not is_file_name(name) or not (self.root / name / "config.toml").is_file():
                raise
            found = Run(self.root / name)
            problem = found.problem("manifest.json")
        except InputError as error:
            problem = error
        return Run(self.root / name, stand_in(name, explain(problem)))

    def names(self) -> list[str]:
        """Names of all runs, newest first."""
        try:
            with os.scandir(self.root) as entries:
                begun = {e.name: _begun(Path(e.path)) for e in entries if not e.name.startswith(".")}
        except OSError:
            return []
        found = [(time, name) for name, time in begun.items() if time is not None and is_file_name(name)]
        return [name for _, name in sorted(found, reverse=True)]

    def list(self, offset: int = 0, limit: int | None = None) -> list[Run]:
        """All runs, newest first, as :meth:`shown`; ``limit`` of them behind the first ``offset``."""
        names = self.names()[offset:]
        return [run for name in names[:limit] if (run := self._shown_if_there(name)) is not None]

    def _shown_if_there(self, name: str) -> Run | None:
        try:
            return self.shown(name)
        except NotFound:  # deleted just now, or no name that a run can have
            return None


def _begun(folder: Path) -> float | None:
    """When the run in a folder was made: time of its ``config.toml``, which is never written again; else ``None``."""
    for name in ("config.toml", "manifest.json"):
        try:
            return (folder / name).stat().st_mtime
        except OSError:
            continue
    return None
