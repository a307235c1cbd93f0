"""The embedded default host: loads an SD1 checkpoint file by itself, without a WebUI and without a network."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lora_trainer.core.errors import InputError
from lora_trainer.core.paths import clean_path, expand, is_file
from lora_trainer.hosts.base import Folders, ModelRequest
from lora_trainer.hosts.fair_lock import FairLock
from lora_trainer.hosts.standalone.checkpoint import VAE_PREFIX, Checkpoint, cached_hash, checkpoint_config, read_header
from lora_trainer.hosts.standalone.drawing import SAMPLERS
from lora_trainer.hosts.standalone.session import StandaloneSession
from lora_trainer.model.families import SD1, CheckpointInfo, family_of, native_resolution, prediction_type
from lora_trainer.model.family import UNET
from lora_trainer.network.blocks.presets import OWN_ELEMENTS, OWN_LISTS, Presets, load_presets

log = logging.getLogger(__name__)


class StandaloneHost:
    """Loads the checkpoint that is asked for, once, and keeps it for the next run.

    Args:
        root: folder of everything that is written; runs in ``root/runs`` (or ``LORA_TRAIN_RUNS``).
        checkpoint: used when a request names none.
        language: of the page.
    """

    name = "standalone"
    readable: Sequence[Path] | None = None
    reads_tags = False

    def __init__(self, root: Path | None = None, checkpoint: str = "", language: str = "en") -> None:
        runs = default_runs_folder() if root is None else root / "runs"
        base = runs.parent
        self.folders = Folders(base / "models" / "Lora", runs, base / "cache", base / "presets")
        self.checkpoint = checkpoint
        self._language = language
        self._loaded: tuple[tuple[object, ...], Checkpoint] | None = None
        self._loading = threading.Lock()
        self._turns = FairLock()

    def check(self, request: ModelRequest) -> CheckpointInfo:
        """Look into the checkpoint's header only; raises :class:`InputError`."""
        path = self._path(request)
        keys, shapes = read_header(path)
        channels = shapes.get(UNET.stored + "input_blocks.0.0.weight", [0, None])[1]
        family = family_of(keys, channels, name=path)
        if not any(key.startswith(VAE_PREFIX) for key in keys):
            raise InputError(
                "checkpoint: {path} has no VAE in it, which pictures are encoded with; choose one that has.",
                field="checkpoint",
                path=path,
            )
        yaml_config = checkpoint_config(path, family)
        return CheckpointInfo(path.name, cached_hash(path), "", family, prediction_type(yaml_config))

    @contextmanager
    def session(self, request: ModelRequest) -> Iterator[StandaloneSession]:
        """Load the checkpoint (or take the one at hand) and give its view."""
        info = self.check(request)
        with self._loading:
            checkpoint = self._load(self._path(request))
        yield StandaloneSession(checkpoint, info, request.clip_skip or 1, self._turns)

    def load_checkpoint(self, name: str, sha256: str) -> None:
        """Each run names its own file, which is loaded when the run goes on."""

    def chosen_checkpoint(self) -> str:
        """There is no list to choose from."""
        return ""

    def checkpoints(self) -> Sequence[Path]:
        """The checkpoint that was named at the start, and those beside it."""
        if not self.checkpoint:
            return []
        folder = expand(self.checkpoint).parent
        return sorted(path for path in folder.glob("*.safetensors") if path.is_file())

    def block_presets(self) -> Presets:
        """The shipped ones, with those in the folder of the person's presets."""
        lists, elements = (self.folders.presets / name for name in (OWN_LISTS, OWN_ELEMENTS))
        return load_presets(*(path if path.is_file() else None for path in (lists, elements)))

    def announce(self, path: Path) -> None:
        """Nobody else needs to know."""

    def samplers(self) -> Sequence[str]:
        """The samplers of the diffusers pipeline, under their WebUI names."""
        return list(SAMPLERS)

    def language(self) -> str:
        """Chosen at the start."""
        return self._language

    def native_resolution(self, request: ModelRequest) -> int:
        """From the yaml beside the checkpoint."""
        try:
            return native_resolution(checkpoint_config(self._path(request)))
        except InputError:
            return SD1.resolution

    def is_common_word(self, word: str) -> bool:
        """Asked of the tokenizer, when a checkpoint has been loaded."""
        if self._loaded is None:
            return False
        return (
            len(
                self._loaded[1].tokenizer([word], truncation=False, add_special_tokens=False, verbose=False)[
                    "input_ids"
                ][0]
            )
            == 1
        )

    def words(self, trigger: str) -> Sequence[tuple[str, str]]:
        """None: prompts are read as captions are."""
        return ()

    def _path(self, request: ModelRequest) -> Path:
        name = request.checkpoint or clean_path(self.checkpoint)
        if not name:
            raise InputError(
                'checkpoint: name the checkpoint file to train on (checkpoint = "model.safetensors").',
                field="checkpoint",
            )
        path = expand(name)
        if not is_file(path):
            raise InputError("checkpoint: {path} does not exist; check the path.", field="checkpoint", path=path)
        if path.suffix.lower() != ".safetensors":
            raise InputError(
                "checkpoint: {path} is not a .safetensors file; only these are loaded, since others can hold code.",
                field="checkpoint",
                path=path,
            )
        return path

    def _load(self, path: Path) -> Checkpoint:
        stat = path.stat()
        key = (str(path.resolve()), stat.st_mtime_ns, stat.st_size)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # free the old one first
            self._loaded = (key, Checkpoint(path))
        return self._loaded[1]


def default_runs_folder() -> Path:
    """Where runs are kept without a WebUI: ``LORA_TRAIN_RUNS`` or ``runs`` in the current folder."""
    return expand(os.environ.get("LORA_TRAIN_RUNS", "runs"))
