"""AUTOMATIC1111's stable-diffusion-webui (v1.10.1): the checkpoint that it has loaded, in its own process.

Line numbers in comments are of commit 82a973c0.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from modules import devices, paths, sd_models, sd_samplers, shared
from modules.call_queue import queue_lock

from lora_trainer.core.errors import InputError
from lora_trainer.hosts.a1111.checkpoint import checkpoint_info, chosen_info, config_of, info_of_file, loaded_model
from lora_trainer.hosts.a1111.gate import Gate, HeldGate
from lora_trainer.hosts.a1111.networks import lora_networks
from lora_trainer.hosts.a1111.session import A1111Session, Flags
from lora_trainer.hosts.a1111.settings import data_folder, language, person_presets
from lora_trainer.hosts.a1111.words import meanings
from lora_trainer.hosts.base import Folders, ModelRequest
from lora_trainer.model.families import SD1, CheckpointInfo, native_resolution

if TYPE_CHECKING:
    from lora_trainer.network.blocks.presets import Presets

log = logging.getLogger(__name__)


class A1111Host:
    """The WebUI."""

    name = "a1111"
    reads_tags = True

    def __init__(self) -> None:
        base = data_folder()
        self.folders = Folders(Path(shared.cmd_opts.lora_dir), base / "runs", base / "cache", base / "presets")
        self.readable = _readable_folders()
        self._flags = Flags()

    def check(self, request: ModelRequest) -> CheckpointInfo:
        """What is chosen at the top of the page; raises :class:`InputError` when it cannot be trained."""
        model, chosen = loaded_model(), chosen_info()
        if chosen is None or chosen.filename == model.sd_checkpoint_info.filename:
            return checkpoint_info(model)
        return info_of_file(chosen) or checkpoint_info(model)

    @contextmanager
    def session(self, request: ModelRequest) -> Iterator[A1111Session]:
        """Take hold of the loaded model; the host is left as it was found.

        Raises:
            CheckpointChanged: there is none at this moment.
        """
        with self._session(request, Gate()) as session:
            yield session

    @contextmanager
    def session_of_script(self, request: ModelRequest) -> Iterator[A1111Session]:
        """The same within a picture of the person's, where the host's lock is held and the job shown already."""
        with self._session(request, HeldGate()) as session:
            yield session

    @contextmanager
    def _session(self, request: ModelRequest, gate: Gate) -> Iterator[A1111Session]:
        session = A1111Session(request, self._flags, gate)
        try:
            yield session
        finally:
            session.close()

    def load_checkpoint(self, name: str, sha256: str) -> None:
        """As if it were chosen at the top of the page."""
        known = sd_models.checkpoints_list.values()
        info = next((i for i in known if sha256 and i.sha256 == sha256), None)
        info = info or next((i for i in known if Path(i.filename).name == name), None)
        if info is None:
            raise InputError(
                "The checkpoint {name} is not among those of the WebUI; put it into models/Stable-diffusion.", name=name
            )
        with queue_lock:
            shared.opts.set("sd_model_checkpoint", info.title, run_callbacks=False)
            sd_models.reload_model_weights(info=info)
            model = sd_models.model_data.sd_model
            if not getattr(model, "lowvram", False):
                model.to(devices.device)  # it may be the one that was loaded, but moved away

    def chosen_checkpoint(self) -> str:
        """Its title in the list at the top of the page."""
        return str(shared.opts.sd_model_checkpoint or "")

    def checkpoints(self) -> Sequence[Path]:
        """Those in its list that may be read here."""
        files = (Path(info.filename) for info in sd_models.checkpoints_list.values())
        return sorted(path for path in files if path.suffix.lower() == ".safetensors")

    def block_presets(self) -> Presets:
        """The shipped ones, the person's own, and those of sd-webui-lora-block-weight."""
        return person_presets()

    def announce(self, path: Path) -> None:
        """Register the file under its own name, or an epoch file's alias would stand in for it."""
        if networks := lora_networks():
            networks.update_available_networks_by_names([path.stem])

    def samplers(self) -> Sequence[str]:
        """The samplers that txt2img offers."""
        return sd_samplers.visible_sampler_names()

    def language(self) -> str:
        """Chinese when the WebUI's localization is a Chinese one."""
        return language()

    def native_resolution(self, request: ModelRequest) -> int:
        """From the yaml of the loaded checkpoint."""
        model = sd_models.model_data.sd_model
        return native_resolution(config_of(model)) if model is not None else SD1.resolution

    def is_common_word(self, word: str) -> bool:
        """Asked of the loaded checkpoint's tokenizer."""
        embedder = getattr(getattr(sd_models.model_data.sd_model, "cond_stage_model", None), "wrapped", None)
        tokenizer = getattr(embedder, "tokenizer", None)
        if tokenizer is None:
            return False
        return len(tokenizer([word], truncation=False, add_special_tokens=False, verbose=False)["input_ids"][0]) == 1

    def words(self, trigger: str) -> Sequence[tuple[str, str]]:
        """Embeddings, styles, wildcards and the syntax of prompts."""
        return meanings(trigger)


def _readable_folders() -> list[Path] | None:
    """As cautious as the WebUI's extension tab: reachable from elsewhere, only its own folders are read."""
    if not shared.cmd_opts.disable_extension_access:
        return None
    return [Path(folder) for folder in (paths.data_path, *(shared.cmd_opts.gradio_allowed_path or ()))]
