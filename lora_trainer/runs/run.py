"""A run is a folder: config, manifest, log, samples, state and grids. Tab, REST, command line and grid read it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.documents import Damaged
from lora_trainer.core.errors import InputError, NotFound
from lora_trainer.core.files import remove_unfinished, write_json
from lora_trainer.core.paths import expand
from lora_trainer.core.plain_json import plain
from lora_trainer.core.process import Lock, is_alive, this_process
from lora_trainer.runs.log import RunLog
from lora_trainer.runs.manifest import DAMAGED, FileEntry, LogEntry, Manifest, Newer, read_manifest

STATES = ("queued", "running", "paused", "stopped", "failed", "done")
UNFINISHED = ("queued", "running")
RESUMABLE = ("paused", "stopped", "failed")
_WRITE_EVERY = 1.0
_OF_STEP = re.compile(r"-step\d{8}$")


class Run:
    """One run's folder.

    ``manifest`` is the in-memory truth of the process that works on it.
    """

    def __init__(self, folder: Path, manifest: Manifest | None = None) -> None:
        self.folder = folder
        self.manifest: Manifest = manifest or cast(Manifest, {})  # until it is read
        self.history = RunLog(folder / "log.jsonl")
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
        """One of :data:`STATES`, or :data:`~lora_trainer.runs.manifest.DAMAGED`."""
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

    def snapshot(self) -> Manifest:
        """The manifest as it is at this moment, whoever goes on changing it."""
        with self._lock:
            return self.manifest.copy()

    def update(self, *, now: bool = False, **values: Any) -> None:
        """Change the manifest; it is written at once when ``now`` or a second after the last time.

        NaN and Infinity become ``None``: JSON does not know them, and whoever reads the manifest must.
        """
        values = plain(values)
        with self._lock:
            self._set(values)
            self._unwritten.update(values)
            if now or time.monotonic() - self._written >= _WRITE_EVERY:
                self.write()

    def change(self, **values: Any) -> None:
        """Change the manifest on the disk, or nothing when it cannot be written."""
        with self._lock:
            before, unwritten = self.manifest.copy(), dict(self._unwritten)
            try:
                self.update(now=True, **values)
            except BaseException:
                self.manifest, self._unwritten = before, unwritten
                raise

    def show(self, **values: Any) -> None:
        """Tell something else of the run than its manifest says, until that is written again."""
        with self._lock:
            self._set(values)

    def _set(self, values: Mapping[str, Any]) -> None:
        self.manifest.update(cast(Manifest, values))

    def write(self) -> None:
        """Write the manifest; what another program has written meanwhile (a grid, while this one trains) is kept.

        Raises:
            InputError: it could not be read, so it would be lost.
            RunError: it cannot be written.
        """
        with self._lock:
            if self.state == DAMAGED:
                raise self.problem()
            if self._seen[0] and self._seen != self._stamp():
                with suppress(OSError, Damaged, Newer):
                    self.manifest = {**self.manifest, **read_manifest(self._path), **cast(Manifest, self._unwritten)}
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
            InputError: it is damaged, or of a later version of this program.
        """
        with self._lock:
            try:
                stat = self._path.stat()
                changed = (stat.st_mtime_ns, stat.st_ino)
                if changed != self._seen:
                    self.manifest = {**read_manifest(self._path), "name": self.name}
                    self._seen = changed
            except FileNotFoundError as error:
                raise NotFound("There is no run named {name}.", field="name", name=self.name[:100]) from error
            except Newer as error:
                raise InputError(
                    "The run {name} was made by a newer version of LoRA Train; update the extension to open it.",
                    name=self.name,
                ) from error
            except Damaged as error:
                raise self.problem(error.place) from error
            except OSError as error:
                raise InputError(
                    "The run {name} cannot be read: {path}: {error}.",
                    name=self.name,
                    path=self._path,
                    error=error.strerror or error,
                ) from error

    def problem(self, place: str = "") -> InputError:
        """The sentence for a manifest that is damaged at ``place``."""
        return InputError(
            "The run {name} cannot be read: {path} is damaged (at {place}); put back a copy of that file, or delete "
            "the run's folder. Its LoRA files are not touched.",
            name=self.name,
            path=self._path,
            place=place or "?",
        )

    def log(self, **entry: Any) -> None:
        """Append one object to ``log.jsonl``."""
        self.history.append(entry)

    def entries(self, after: int = 0, limit: int | None = None) -> list[LogEntry]:
        """Log entries behind step ``after``, see :meth:`RunLog.entries`."""
        return self.history.entries(after, limit)

    def add_file(self, entry: FileEntry) -> None:
        """Note a LoRA file in the manifest."""
        with self._lock:
            files = [f for f in self.manifest["files"] if f["path"] != entry["path"]]
            self.update(now=True, files=[*files, entry])


def output_folder(config: TrainConfig, loras: Path) -> Path:
    """Where a run's LoRA files go: a folder of its name among the LoRAs, or the one that the config names."""
    return loras / expand(config.save.folder) if config.save.folder else loras / config.name


def is_by_step(run: str, entry: FileEntry) -> bool:
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
