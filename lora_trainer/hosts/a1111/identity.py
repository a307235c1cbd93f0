"""Which checkpoint the WebUI has in memory, and in which form: both must stay as they are while a run goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_trainer.core.errors import CheckpointChanged
from lora_trainer.hosts.a1111.checkpoint import fingerprint, is_fp8, some_weights


@dataclass(frozen=True)
class Identity:
    """What must stay the same during a run.

    Attributes:
        file: path of the checkpoint.
        sha256: of it.
        weights: the UNet's first parameter, and whether its numbers are there.
        numbers: a fingerprint of all weights; empty where they have none that can be read.
        forms: number format and strides of a matrix and a convolution of the UNet and a matrix of the text encoder.
    """

    file: str
    sha256: str
    weights: tuple[int, bool]
    numbers: str
    forms: tuple[object, ...]


def identity_of(sd_model: Any) -> Identity:
    """Of the model as it is now."""
    info, first = sd_model.sd_checkpoint_info, next(sd_model.model.parameters())
    forms = tuple((weight.dtype, weight.stride()) for weight in some_weights(sd_model))
    readable = not first.is_meta and not is_fp8(sd_model)
    numbers = fingerprint(sd_model) if readable else ""
    return Identity(info.filename, info.sha256 or "", (id(first), first.is_meta), numbers, forms)


def changed() -> CheckpointChanged:
    """The run's checkpoint is not the one that is loaded."""
    return CheckpointChanged(
        "The WebUI has switched to another checkpoint; the run goes on when its own is loaded again."
    )


def reformatted() -> CheckpointChanged:
    """It is, but its weights are stored in another way."""
    return CheckpointChanged(
        "The WebUI holds the checkpoint in another number format now (FP8 weight); the run goes on when that is as it "
        "was."
    )
