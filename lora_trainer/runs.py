"""A run is a folder: config, manifest, log, samples, state and grids. Tab, REST, command line and grid read it."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lora_trainer import __version__
from lora_trainer.config import TrainConfig, name_problem
from lora_trainer.errors import InputError, NotFound
from lora_trainer.files import make_folder, read_json, remove_unfinished, write_error, write_json, write_text

STATES = ("queued", "running", "paused", "stopped", "failed", "done")
UNFINISHED = ("queued", "running")
RESUMABLE = ("paused", "stopped", "failed")
_WRITE_EVERY = 1.0


class Run:
    """One run's folder. ``manifest`` is the in-memory truth of the process that works on it."""

    def __init__(self, folder: Path, manifest: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self.manifest = manifest or {}
        self._path = folder / "manifest.json"
        self._seen = 0
        self._lock = threading.RLock()
        self._written = time.monotonic() if manifest else 0.0

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.name

    @property
    def state(self) -> str:
        """One of :data:`STATES`."""
        return str(self.manifest["state"])

    @property
    def fingerprint(self) -> str:
        """Of the data set it was trained on; empty before its pictures were looked at."""
        return str(self.manifest.get("dataset", {}).get("fingerprint", ""))

    @property
    def samples(self) -> Path:
        """Folder of the sample pictures."""
        return self.folder / "samples"

    @property
    def states(self) -> Path:
        """Folder of the resumable states."""
        return self.folder / "state"

    @property
    def grids(self) -> Path:
        """Folder of the grids."""
        return self.folder / "grids"

    def config(self) -> TrainConfig:
        """The run's settings as they were submitted."""
        return TrainConfig.from_toml(self.folder / "config.toml")

    def update(self, *, now: bool = False, **values: Any) -> None:
        """Change the manifest; it is written at once when ``now`` or a second after the last time."""
        with self._lock:
            self.manifest.update(values)
            if now or time.monotonic() - self._written >= _WRITE_EVERY:
                self.write()

    def write(self) -> None:
        """Write the manifest."""
        with self._lock:
            write_json(self._path, self.manifest)
            self._seen = self._path.stat().st_mtime_ns
            self._written = time.monotonic()

    def remove_unfinished(self) -> None:
        """Delete what a process that was killed had not finished writing."""
        with self._lock:
            remove_unfinished(self.folder)
            remove_unfinished(self.states)

    def refresh(self) -> None:
        """Read the manifest again when another program has written it.

        Raises:
            NotFound: it is gone.
            InputError: it is damaged.
        """
        with self._lock:
            try:
                changed = self._path.stat().st_mtime_ns
                if changed != self._seen:
                    manifest = read_json(self._path)
                    if manifest["state"] not in STATES:
                        raise ValueError(manifest["state"])
                    self.manifest = {"files": [], "samples": [], "validation": {}, **manifest}
                    self._seen = changed
            except FileNotFoundError as error:
                raise NotFound("There is no run named {name}.", field="name", name=self.name[:100]) from error
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise InputError(
                    "The run {name} cannot be read: {path} is damaged.", name=self.name, path=self._path
                ) from error

    def log(self, **entry: Any) -> None:
        """Append one object to ``log.jsonl``."""
        path = self.folder / "log.jsonl"
        try:
            with path.open("a+b") as file:
                file.write(_line_break_missing(file) + json.dumps(entry).encode() + b"\n")
        except OSError as error:
            raise write_error(path, error) from error

    def entries(self, after: int = 0) -> list[dict[str, Any]]:
        """Log entries behind step ``after``; of steps done twice (resumed), the later ones."""
        found: dict[tuple[int, str], dict[str, Any]] = {}
        for entry in _read_lines(self.folder / "log.jsonl"):
            step = entry.get("step")
            if isinstance(step, int) and step > after:
                found[step, "validation" if "validation" in entry else "step"] = entry
        return [found[key] for key in sorted(found)]

    def add_file(self, entry: dict[str, Any]) -> None:
        """Note a LoRA file in the manifest."""
        with self._lock:
            files = [f for f in self.manifest["files"] if f["path"] != entry["path"]]
            self.update(now=True, files=[*files, entry])


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
            values = {
                "version": 1,
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
            run = self._open[config.name] = Run(folder, values)
        return run

    def get(self, name: str) -> Run:
        """The run ``name``.

        Raises:
            InputError: there is none, or the name is no name.
        """
        if not name.strip():
            raise NotFound("No training run is chosen; choose one in the list, or start one.", field="name")
        with self._lock:
            if name_problem(name):
                raise NotFound("There is no run named {name}.", field="name", name=name[:100])
            run = self._open.get(name) or Run(self.root / name)
            run.refresh()
            self._open[name] = run
            return run

    def names(self) -> list[str]:
        """Names of all runs, newest first."""
        if not self.root.is_dir():
            return []
        found = [(p.stat().st_mtime, p.parent.name) for p in self.root.glob("*/config.toml")]
        return [name for _, name in sorted(found, reverse=True)]

    def list(self) -> list[Run]:
        """All readable runs, newest first."""
        found = []
        for name in self.names():
            try:
                found.append(self.get(name))
            except InputError:
                continue
        return found


def output_folder(config: TrainConfig, loras: Path) -> Path:
    """Where a run's LoRA files go: a folder of its name among the LoRAs, or the one that the config names."""
    return loras / Path(config.save.folder).expanduser() if config.save.folder else loras / config.name


def _line_break_missing(file: BinaryIO) -> bytes:
    """What has to stand before the next line when a crash has cut off the last one."""
    if file.seek(0, os.SEEK_END) == 0:
        return b""
    file.seek(-1, os.SEEK_END)
    return b"" if file.read(1) == b"\n" else b"\n"


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; a line cut off by a crash is left out."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry
