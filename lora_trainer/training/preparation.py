"""Everything before the first step: pictures to latents, adapters and plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import CheckpointChanged, InputError
from lora_trainer.core.files import remove, write_json
from lora_trainer.core.paths import expand
from lora_trainer.dataset.fingerprint import dataset_fingerprint
from lora_trainer.dataset.images import is_whole
from lora_trainer.dataset.latents import LatentCache, encode_each
from lora_trainer.dataset.plan import Plan, held_out
from lora_trainer.dataset.scan import Dataset, Item, scan
from lora_trainer.dataset.step_captions import Captions
from lora_trainer.diffusion.conditioning import Encode, frozen_conditioning
from lora_trainer.hosts.base import Host, Session
from lora_trainer.model.families import CheckpointInfo, is_same_checkpoint, unknown_checkpoint
from lora_trainer.model.precision import resolve_precision
from lora_trainer.network.lora_file import read_lora
from lora_trainer.network.types.base import require_finite
from lora_trainer.runs.control import Control
from lora_trainer.runs.run import Run
from lora_trainer.training.resuming import require_resumable
from lora_trainer.training.state import KEPT, load_newest, states
from lora_trainer.training.trainer import Trainer

if TYPE_CHECKING:
    import torch


class Note(Protocol):
    """Puts values into the run's manifest, where tab and REST see them; ``now`` writes it at once."""

    def __call__(self, *, now: bool = False, **values: Any) -> None:
        """Note values."""


@dataclass
class PreparedRun:
    """Everything that the steps of a run need.

    Attributes:
        session: the hold on the host's model.
        dataset: all usable pictures.
        held_out: those that are not trained on.
        latents: of all of them.
        plan: which are learned from at which step.
        trainer: the mathematics.
        precision: fp16, bf16 or fp32.
        done: steps done in an earlier part of the run.
    """

    session: Session
    dataset: Dataset
    held_out: list[Item]
    latents: LatentCache
    plan: Plan
    trainer: Trainer
    precision: str
    done: int

    @property
    def learned(self) -> Dataset:
        """The data set without the pictures that are held out: what files and cards tell of."""
        held_out = set(self.held_out)
        return self.dataset.only(item for item in self.dataset.items if item not in held_out)


class Stopped(Exception):
    """The person stopped the run before its first step."""


class Preparation:
    """Makes a run's :class:`PreparedRun`, in turns with whatever else uses the model."""

    def __init__(
        self, run: Run, config: TrainConfig, host: Host, session: Session, control: Control, note: Note
    ) -> None:
        self._run = run
        self._config = config
        self._host = host
        self._session = session
        self._control = control
        self._note = note

    def make(self, dataset: Dataset | None = None) -> PreparedRun:
        """Prepare the run, or the rest of it.

        Args:
            dataset: when its folder was looked at just now; it is looked at here otherwise.

        Raises:
            Stopped: the person stopped it.
            CheckpointChanged: another one was loaded since the run was submitted.
            InputError: pictures, precision or the file to continue from cannot be used, nobody can tell whether the
                checkpoint is the run's, or the settings are no longer those that the run began with.
        """
        config, model = self._config, self._session.model
        self._require_checkpoint(model.info)
        precision = resolve_precision(config.training.precision, model.device, model.unet.dtype)
        self._note(phase="pictures", phase_done=0, phase_total=0, now=True)
        dataset = dataset or scan(config.data)
        latents = LatentCache(self._host.folders.cache / "latents", self._vae(), model.info.family.latent)
        dataset = self._encode_pictures(dataset, latents)
        items, kept = held_out(dataset.items, config.validation.share, config.training.seed)
        plan = Plan(items, config)
        trains_text = bool(config.training.text_lr)
        variants = None if trains_text else config.data.caption_variants
        captions = Captions(items, config.data, config.training.seed, variants)
        encode: Encode = model.text
        if not trains_text:
            encode = frozen_conditioning(model.text, model.device, precision)
        with self._session.turn():
            trainer = Trainer(config, model, items, plan, latents, captions, encode, precision)
            require_resumable(self._run, config)
            if config.network.continue_from:
                trainer.adapters.load(begun_with(expand(config.network.continue_from)))
            done = load_newest(self._run.states, trainer)
            _remove_surplus(self._run.states, done)
        self._note_dataset(dataset, kept, plan, precision, done)
        return PreparedRun(self._session, dataset, kept, latents, plan, trainer, precision, done)

    def _require_checkpoint(self, loaded: CheckpointInfo) -> None:
        known = self._run.manifest.get("checkpoint", {})
        same = is_same_checkpoint(known, loaded.to_dict())
        if same is None:
            raise unknown_checkpoint(self._run.name, known)
        if not same:
            raise CheckpointChanged(
                "The run belongs to the checkpoint {name}; it goes on when that is loaded.", name=known.get("name")
            )

    def _vae(self) -> str:
        """The VAE that the run began with: a resumed run goes on with its cached latents, whatever is chosen."""
        model = self._session.model
        known = self._run.manifest.get("vae") or {"key": model.vae_key, "name": model.info.vae}
        self._note(vae=known)
        return str(known["key"])

    def _encode_pictures(self, dataset: Dataset, latents: LatentCache) -> Dataset:
        wanted = latents.missing(dataset.items, self._config.data.flip)
        began_with = self._run.manifest["vae"]
        if began_with["key"] != self._session.model.vae_key and any(is_whole(each.item.path) for each in wanted):
            raise InputError(
                "The run began with another VAE ({name}), and {count} of its pictures are no longer in the cache; "
                "choose that VAE to resume it.",
                name=began_with["name"] or self._session.model.info.name,
                count=len(wanted),
            )
        return encode_each(dataset, wanted, latents, self._session.model.encode, self._session.turn, self._on_picture)

    def _on_picture(self, done: int, of: int) -> None:
        self._go_on()
        self._note(phase="latents", phase_done=done, phase_total=of)

    def _go_on(self) -> None:
        if self._control.wants_end_now:
            raise Stopped

    def _note_dataset(self, dataset: Dataset, kept: Sequence[Item], plan: Plan, precision: str, done: int) -> None:
        fingerprint = dataset_fingerprint(dataset)
        before = self._run.fingerprint
        if done and before and before != fingerprint:
            raise InputError(
                "data.folder: the pictures or captions in {folder} have changed since the run began, so it cannot go "
                "on exactly; put them back, or start a new run that continues from its last file.",
                field="data.folder",
                folder=dataset.folder,
            )
        report = dataset.report()
        write_json(self._run.folder / "dataset.json", report)
        kept_keys = ("pictures", "images_per_epoch", "skipped", "concepts", "buckets")
        remarks = [remark["sentence"] for remark in report["remarks"]]
        summary = {**{key: report[key] for key in kept_keys}, "remarks": remarks}
        self._note(
            now=True,
            phase="training",
            step=done,
            steps=plan.total_steps,
            epochs=plan.epochs,
            steps_per_epoch=plan.steps_per_epoch,
            precision=precision,
            dataset={**summary, "held_out": len(kept), "fingerprint": fingerprint},
        )


def begun_with(path: Path) -> dict[str, torch.Tensor]:
    """A LoRA to go on from; raises :class:`InputError` for one whose weights are no numbers: none would come of it."""
    tensors = read_lora(path)
    for name, tensor in tensors.items():
        key, _, part = name.partition(".")
        require_finite(key, {part: tensor})
    return tensors


def _remove_surplus(folder: Path, done: int) -> None:
    """Delete the state that is one too many when a process was killed between writing a new one and deleting it.

    Args:
        folder: of the states.
        done: the step of the state that was loaded; when the newest could not be read, all are kept.
    """
    found = states(folder)
    if found and found[0].stem.endswith(f"-{done:08d}"):
        for old in found[KEPT:]:
            remove(old)
