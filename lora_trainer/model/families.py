"""Which kind of Stable Diffusion a checkpoint is, and whether it can be trained here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from lora_trainer.core.errors import InputError
from lora_trainer.model.contents import is_lora, kind_of_names
from lora_trainer.model.family import ModelFamily
from lora_trainer.model.sd1 import SD1
from lora_trainer.model.untrained import FLUX, SD2, SD3, SDXL, SDXL_REFINER

FAMILIES: list[ModelFamily] = [SD3, FLUX, SDXL, SDXL_REFINER, SD2, SD1]
"""All that are known; of those whose marks a checkpoint has the first is its family."""


def register(family: ModelFamily) -> None:
    """Make a family known; its marks are looked for before those of the others."""
    FAMILIES.insert(0, family)


@dataclass(frozen=True)
class CheckpointInfo:
    """The checkpoint that is trained on.

    Attributes:
        name: file name.
        sha256: of the whole file, or ``""`` when unknown.
        legacy_hash: the WebUI's old 8-digit hash, or ``""``.
        family: SD1, …
        prediction: ``"epsilon"`` or ``"v_prediction"``.
        vae: file name of a separate VAE, or ``""``.
        fingerprint: of its weights (:func:`~lora_trainer.model.fingerprint.sampled_fingerprint`), or ``""``.
    """

    name: str
    sha256: str
    legacy_hash: str
    family: ModelFamily
    prediction: str
    vae: str = ""
    fingerprint: str = ""

    @property
    def key(self) -> str:
        """What tells its weights from those of other checkpoints, as well as it is known."""
        return self.sha256 or self.fingerprint or self.legacy_hash

    def to_dict(self) -> dict[str, str]:
        """What a run notes of it, and REST tells."""
        known = {"name": self.name, "sha256": self.sha256, "fingerprint": self.fingerprint}
        return {**known, "family": self.family.name}


def is_same_checkpoint(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool | None:
    """Whether two checkpoints have the same weights; ``None`` when nobody can tell. Names tell nothing.

    Args:
        first: ``sha256`` and ``fingerprint``, as in :meth:`CheckpointInfo.to_dict`; either may be missing or empty.
        second: the same.
    """
    for key in ("sha256", "fingerprint"):
        if first.get(key) and second.get(key):
            return bool(first[key] == second[key])
    return None


def unknown_checkpoint(run: str, known: Mapping[str, Any]) -> InputError:
    """The sentence for a run of which nobody can tell whether its checkpoint is loaded."""
    return InputError(
        "Whether the loaded checkpoint is that of the run {name} ({checkpoint}) cannot be told, since one of them has "
        "no hash; start the WebUI without --no-hashing, or train on with a new run that continues from its last file "
        "(network.continue_from).",
        name=run,
        checkpoint=known.get("name", ""),
    )


def family_of(keys: Collection[str], unet_channels: int | None = None, *, name: object) -> ModelFamily:
    """The family of a checkpoint with these LDM keys.

    Args:
        keys: names of its tensors.
        unet_channels: input channels of the UNet; 9 means inpainting, 8 instruct-pix2pix.
        name: of its file, for sentences.

    Raises:
        InputError: no checkpoint, or a family that cannot be trained here, said by name.
    """
    family = next((known for known in FAMILIES if _any_begins(keys, known.marks)), SD1)
    kind = _kind_of_unet(unet_channels, family) if family.trainable else family.name
    if kind:
        raise InputError(
            "{kind} checkpoints cannot be trained yet, only SD1 ones; load an SD1 checkpoint.",
            field="checkpoint",
            kind=kind,
        )
    _require_parts(keys, family, name)
    return family


def _any_begins(keys: Collection[str], starts: tuple[str, ...]) -> bool:
    return any(key.startswith(starts) for key in keys)


def _kind_of_unet(channels: int | None, family: ModelFamily) -> str:
    """What a UNet with other input channels than the family's is for; empty for a usual one."""
    if channels in (None, family.latent.channels):
        return ""
    return {9: "Inpainting", 8: "Instruct-pix2pix"}.get(channels or 0, f"{channels}-channel")


def _require_parts(keys: Collection[str], family: ModelFamily, name: object) -> None:
    """Raises :class:`InputError` for files that are something else than a whole checkpoint, such as a LoRA."""
    if is_lora(keys):
        raise InputError(
            "{name} is a LoRA, not a checkpoint; choose the SD1 checkpoint that it is for.",
            field="checkpoint",
            name=name,
        )
    kind = kind_of_names(keys)
    has_unet = _any_begins(keys, (family.unet.stored,))
    if kind and not has_unet:
        raise InputError(
            "{name} is {kind}, not a whole checkpoint; choose an SD1 checkpoint.",
            field="checkpoint",
            name=name,
            kind=kind,
        )
    if not has_unet:
        raise InputError(
            "{name} is not a checkpoint: it has no Stable Diffusion UNet in it; choose an SD1 checkpoint.",
            field="checkpoint",
            name=name,
        )
    if not all(_any_begins(keys, (encoder.stored + "text_model",)) for encoder in family.encoders):
        raise InputError(
            "{name} is not a whole checkpoint: it has no CLIP text encoder in it; choose an SD1 checkpoint.",
            field="checkpoint",
            name=name,
        )


def prediction_type(config: Mapping[str, Any]) -> str:
    """``"epsilon"`` or ``"v_prediction"``, from the checkpoint's yaml."""
    parameterization = config["model"]["params"].get("parameterization", "eps")
    return "v_prediction" if parameterization == "v" else "epsilon"


def native_resolution(config: Mapping[str, Any]) -> int:
    """Side in pixels that a checkpoint was trained at, from its yaml's latent size."""
    return int(config["model"]["params"].get("image_size", 64)) * SD1.latent.factor
