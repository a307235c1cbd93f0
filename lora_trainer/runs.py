"""A run is a folder: config, manifest, log, samples, state and grids. Tab, REST, command line and grid read it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_trainer import __version__
from lora_trainer.config import TrainConfig, is_file_name, shown_name
from lora_trainer.errors import InputError, NotFound
from lora_trainer.files import append_line, make_folder, read_json, remove_unfinished, write_json, write_text
from lora_trainer.plain_json import json_text, parse_json
from lora_trainer.process import Lock, is_alive, this_process

STATES = ("queued", "running", "paused", "stopped", "failed", "done")
UNFINISHED = ("queued", "running")
RESUMABLE = ("paused", "stopped", "failed")
_WRITE_EVERY = 1.0
_OF_STEP = re.compile(r"-step\d{8}$")


class Run:
    """One run's folder. ``manifest`` is the in-memory truth of the process that works on it."""

    def __init__(self, folder: Path, manifest: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self.manifest = manifest or {}
        self._path = folder / "manifest.json"
        self._hold = Lock(folder / "lock")
        self._seen: tuple[int, int] = (0, 0)
        self._unwritten: dict[str, Any] = {}
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
            self._unwritten.update(values)
            if now or time.monotonic() - self._written >= _WRITE_EVERY:
                self.write()

    def change(self, **values: Any) -> None:
        """Change the manifest on the disk, or nothing when it cannot be written."""
        with self._lock:
            before, unwritten = dict(self.manifest), dict(self._unwritten)
            try:
                self.update(now=True, **values)
            except BaseException:
                self.manifest, self._unwritten = before, unwritten
                raise

    def show(self, **values: Any) -> None:
        """Tell something else of the run than its manifest says, until that is written again."""
        with self._lock:
            self.manifest.update(values)

    def write(self) -> None:
        """Write the manifest; what another program has written meanwhile (a grid, while this one trains) is kept."""
        with self._lock:
            if self._seen[0] and self._seen != self._stamp():
                with suppress(OSError, ValueError, TypeError):
                    self.manifest = {**self.manifest, **read_json(self._path), **self._unwritten}
            write_json(self._path, self.manifest)
            self._unwritten.clear()
            self._seen = self._stamp()
            self._written = time.monotonic()

    def _stamp(self) -> tuple[int, int]:
        """Another one for each time that the manifest was written."""
        try:
            stat = self._path.stat()
        except OSError:
            return (0, 0)
        return (stat.st_mtime_ns, stat.st_ino)

    # -------------------------------------------------------------- who works on it
    def take(self) -> bool:
        """Make this program the one that works on the run, until it ends or gives it up; ``False`` if another does.

        Where the file system has no locks, what the manifest says of the other program is believed.
        """
        taken = self._hold.take()
        return not self._seems_elsewhere() if taken is None else taken

    @property
    def is_taken(self) -> bool:
        """Whether this program works on the run or has it in line."""
        return self._hold.is_ours

    @property
    def is_elsewhere(self) -> bool:
        """Whether another program works on the run or has it in line."""
        elsewhere = self._hold.is_elsewhere()
        return self._seems_elsewhere() if elsewhere is None else elsewhere

    def _seems_elsewhere(self) -> bool:
        process = self.manifest.get("process")
        goes_on = self.manifest.get("state") in UNFINISHED or bool(self.manifest.get("waits"))
        return goes_on and process != this_process() and is_alive(process)

    def give_up(self) -> None:
        """Let other programs work on the run."""
        self._hold.release()

    def remove_unfinished(self) -> None:
        """Delete what a process that was killed had not finished writing."""
        remove_unfinished(self.folder, below=True)

    def reread(self) -> None:
        """Read the manifest again in any case; raises as :meth:`refresh`."""
        with self._lock:
            self._seen = (0, 0)
            self.refresh()

    def refresh(self) -> None:
        """Read the manifest again when another program has written it.

        Raises:
            NotFound: it is gone.
            InputError: it is damaged.
        """
        with self._lock:
            try:
                stat = self._path.stat()
                changed = (stat.st_mtime_ns, stat.st_ino)
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
        append_line(self.folder / "log.jsonl", json_text(entry).encode())

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
        with self._lock:
            if not is_file_name(name):
                raise NotFound("There is no run named {name}.", field="name", name=shown_name(name))
            run = self._open.get(name) or Run(self.root / name)
            run.refresh()
            self._open[name] = run
            return run

    def names(self) -> list[str]:
        """Names of all runs, newest first."""
        if not self.root.is_dir():
            return []
        found = []
        for path in self.root.glob("*/config.toml"):
            if not is_file_name(path.parent.name):  # a run that was never finished being made, or somebody's own folder
                continue
            with suppress(OSError):  # it is being deleted
                found.append((path.stat().st_mtime, path.parent.name))
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


def is_by_step(run: str, entry: Mapping[str, Any]) -> bool:
    """Whether a file of a manifest was saved for its step, and not as its epoch's or the run's last.

    Runs of older versions do not say it. Their files are told by the end of the name, ``-step00000040``, behind the
    run's own, which may have any words in it.

    Args:
        run: its name.
        entry: one of the manifest's ``files``.
    """
    if "by_step" in entry:
        return bool(entry["by_step"])
    stem = Path(entry["path"]).stem
    return stem != run and _OF_STEP.search(stem) is not None


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; a line cut off by a crash is left out."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                entry = parse_json(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry
