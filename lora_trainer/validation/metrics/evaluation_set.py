"""The pictures that LoRA files are compared on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_trainer.config.train import DataConfig, TrainConfig
from lora_trainer.core.errors import InputError
from lora_trainer.core.randomness import python_rng
from lora_trainer.dataset.fingerprint import dataset_fingerprint
from lora_trainer.dataset.latents import LatentCache, encode_each
from lora_trainer.dataset.plan import held_out
from lora_trainer.dataset.scan import Item, scan
from lora_trainer.hosts.base import Host, Session

MAX_PICTURES = 32
"""More are not looked at; some are chosen by chance."""


HELD_OUT, TRAINING, FOLDER = "held out", "training", "folder"


@dataclass(frozen=True)
class Pictures:
    """What the weights are learned from.

    Attributes:
        items: the pictures.
        latents: theirs, all loaded.
        kind: :data:`HELD_OUT`, :data:`TRAINING` or :data:`FOLDER`.
    """

    items: Sequence[Item]
    latents: LatentCache
    kind: str


# ------------------------------------------------------------------ what is learned from
def find_pictures(
    host: Host, session: Session, config: TrainConfig, folder: str = "", *, fingerprint: str = "", seed: int = 0
) -> Pictures:
    """The pictures that a run kept aside, else those that it was trained on; or those of a folder.

    Args:
        host: has the cache of latents.
        session: encodes what is not in it, each picture in a turn.
        config: the run's; for a folder its resolution and trigger word count.
        folder: other pictures with captions.
        fingerprint: of the data set in the run's manifest; when the pictures have changed since, nobody can tell which
            of them it kept aside.
        seed: which are chosen when there are too many.

    Raises:
        InputError: there are fewer than two.
    """
    data = config.data
    if folder:
        data = DataConfig(folder=folder, resolution=data.resolution, bucket_step=data.bucket_step, trigger=data.trigger)
    dataset = scan(data)
    latents = LatentCache(host.folders.cache / "latents", session.model.vae_key, session.model.info.family.latent)
    wanted = latents.missing(dataset.items, flip=False)
    dataset = encode_each(dataset, wanted, latents, session.model.encode, session.turn)
    items, kind = dataset.items, FOLDER
    if not folder:
        trained, kept = held_out(items, config.validation.share, config.training.seed)
        changed = bool(fingerprint) and dataset_fingerprint(dataset) != fingerprint
        items, kind = (kept, HELD_OUT) if kept and not changed else (items if changed else trained, TRAINING)
    if len(items) < 2:
        raise InputError(
            "Block weights are fitted on some pictures and tested on others, but there is only {count}; keep more "
            "aside (validation.share), or name a folder with other pictures of the same subject.",
            field="pictures",
            count=len(items),
        )
    if len(items) > MAX_PICTURES:
        chosen = set(python_rng(seed, "block tuning pictures").sample(range(len(items)), MAX_PICTURES))
        items = [item for index, item in enumerate(items) if index in chosen]
    return Pictures(items, latents, kind)
