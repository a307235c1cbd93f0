"""Numbers beside the pictures: the held-out loss of each file at each weight, without drawing anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lora_trainer.config import TrainConfig
from lora_trainer.dataset.latents import LatentCache
from lora_trainer.dataset.plan import held_out
from lora_trainer.dataset.scan import scan
from lora_trainer.errors import InputError
from lora_trainer.hosts.base import Host, Session
from lora_trainer.network.adapters import adapters_for
from lora_trainer.network.lora_file import read_lora
from lora_trainer.training.denoiser import Denoiser
from lora_trainer.training.precision import resolve_precision


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean squared error on the held-out pictures with a file at a weight; no file is the checkpoint alone."""

    file: str | None
    weight: float
    loss: float

    def to_dict(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)


def held_out_losses(
    host: Host,
    session: Session,
    config: TrainConfig,
    files: Sequence[Path],
    weights: Sequence[float],
    on_cell: Callable[[int, int], object] = lambda done, of: None,
) -> list[HeldOutLoss]:
    """Measure files of one run at weights, on the pictures that the run kept aside.

    Raises:
        InputError: the run kept none aside.
    """
    _, kept = held_out(scan(config.data).items, config.validation.share, config.training.seed)
    if not kept:
        raise InputError(
            "validation.share: this run kept no pictures aside, so there is nothing to measure on.",
            field="validation.share",
        )
    model = session.model
    latents = LatentCache(host.folders.cache / "latents", model.vae_key)
    with session.turn():
        latents.fill(latents.missing(kept, flip=False), model.encode)
        adapters = adapters_for(model.unet, model.text.model, read_lora(files[0]))
    precision = resolve_precision(config.training.precision, model.device, model.unet.dtype)
    denoiser = Denoiser(model, model.text, precision)
    found: list[HeldOutLoss] = []

    def measure(file: Path | None, weight: float) -> None:
        adapters.set_multiplier(weight)
        with session.turn():
            loss = denoiser.held_out_loss(kept, latents, config.validation.timesteps)
        found.append(HeldOutLoss(str(file) if file else None, weight, loss))
        on_cell(len(found), 1 + len(files) * len(weights))

    measure(None, 0.0)
    for file in files:
        adapters.copy_from(read_lora(file))
        for weight in weights:
            measure(file, weight)
    return found


def best(losses: Sequence[HeldOutLoss]) -> HeldOutLoss:
    """The lowest loss; of equal ones the first. NaN, which half precision can give, is the worst."""
    return min(losses, key=lambda entry: (math.isnan(entry.loss), entry.loss))
