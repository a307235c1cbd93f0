"""Which kind of Stable Diffusion a checkpoint is, and whether it can be trained here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from lora_trainer.core.errors import InputError
from lora_trainer.model.contents import is_lora, kind_of_names

UNET_PREFIX = "model.diffusion_model."
SD1_TEXT_PREFIX = "cond_stage_model.transformer."


@dataclass(frozen=True)
class Family:
    """Names and numbers of a model family in files and metadata.

    Attributes:
        name: as the WebUI's cards call it.
        base_version: ``ss_base_model_version``.
        modelspec: ``modelspec.architecture`` of a LoRA.
        resolution: side in pixels that the family was trained at.
    """

    name: str
    base_version: str
    modelspec: str
    resolution: int


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
    family: Family
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


SD1 = Family("SD1", "sd_v1", "stable-diffusion-v1/lora", 512)


def family_of(keys: Collection[str], unet_channels: int | None = None, *, name: object) -> Family:
    """The family of a checkpoint with these LDM keys.

    Args:
        keys: names of its tensors.
        unet_channels: input channels of the UNet; 9 means inpainting, 8 instruct-pix2pix.
        name: of its file, for sentences.

    Raises:
        InputError: no checkpoint, or a family that cannot be trained here, said by name.
    """
    kind = _unsupported(keys, unet_channels)
    if not kind:
        _require_parts(keys, name)
    if kind:
        raise InputError(
            "{kind} checkpoints cannot be trained yet, only SD1 ones; load an SD1 checkpoint.",
            field="checkpoint",
            kind=kind,
        )
    return SD1


def _require_parts(keys: Collection[str], name: object) -> None:
    """Raises :class:`InputError` for files that are something else than a whole checkpoint, such as a LoRA."""
    if is_lora(keys):
        raise InputError(
            "{name} is a LoRA, not a checkpoint; choose the SD1 checkpoint that it is for.",
            field="checkpoint",
            name=name,
        )
    kind = kind_of_names(keys)
    if kind and not any(key.startswith(UNET_PREFIX) for key in keys):
        raise InputError(
            "{name} is {kind}, not a whole checkpoint; choose an SD1 checkpoint.",
            field="checkpoint",
            name=name,
            kind=kind,
        )
    if not any(key.startswith(UNET_PREFIX) for key in keys):
        raise InputError(
            "{name} is not a checkpoint: it has no Stable Diffusion UNet in it; choose an SD1 checkpoint.",
            field="checkpoint",
            name=name,
        )
    if not any(key.startswith(SD1_TEXT_PREFIX + "text_model") for key in keys):
        raise InputError(
            "{name} is not a whole checkpoint: it has no CLIP text encoder in it; choose an SD1 checkpoint.",
            field="checkpoint",
            name=name,
        )


def _unsupported(keys: Collection[str], unet_channels: int | None) -> str:
    def has(start: str) -> bool:
        return any(key.startswith(start) for key in keys)

    if has("model.diffusion_model.x_embedder") or has("model.diffusion_model.joint_blocks"):
        return "SD3"
    if has("model.diffusion_model.double_blocks"):
        return "Flux"
    if has("conditioner.embedders.1") or has("model.diffusion_model.label_emb"):
        return "SDXL"
    if has("conditioner.embedders.0.model."):
        return "SDXL refiner"
    if has("cond_stage_model.model."):
        return "SD2"
    if unet_channels not in (None, 4):
        return {9: "Inpainting", 8: "Instruct-pix2pix"}.get(unet_channels or 0, f"{unet_channels}-channel")
    return ""


def prediction_type(config: Mapping[str, Any]) -> str:
    """``"epsilon"`` or ``"v_prediction"``, from the checkpoint's yaml."""
    parameterization = config["model"]["params"].get("parameterization", "eps")
    return "v_prediction" if parameterization == "v" else "epsilon"


def native_resolution(config: Mapping[str, Any]) -> int:
    """Side in pixels that a checkpoint was trained at, from its yaml's latent size."""
    return int(config["model"]["params"].get("image_size", 64)) * 8


V1_CONFIG: dict[str, Any] = {
    "model": {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": {
            "linear_start": 0.00085,
            "linear_end": 0.0120,
            "timesteps": 1000,
            "scale_factor": 0.18215,
            "unet_config": {
                "params": {
                    "in_channels": 4,
                    "out_channels": 4,
                    "model_channels": 320,
                    "attention_resolutions": [4, 2, 1],
                    "num_res_blocks": 2,
                    "channel_mult": [1, 2, 4, 4],
                    "num_heads": 8,
                    "use_spatial_transformer": True,
                    "transformer_depth": 1,
                    "context_dim": 768,
                }
            },
            "first_stage_config": {
                "params": {
                    "embed_dim": 4,
                    "ddconfig": {
                        "double_z": True,
                        "z_channels": 4,
                        "resolution": 256,
                        "in_channels": 3,
                        "out_ch": 3,
                        "ch": 128,
                        "ch_mult": [1, 2, 4, 4],
                        "num_res_blocks": 2,
                        "attn_resolutions": [],
                    },
                }
            },
            "cond_stage_config": {"params": {}},
        },
    }
}
"""Stable Diffusion 1's own configuration, for checkpoints that have no yaml beside them."""
