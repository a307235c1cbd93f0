"""Which precision a run computes in, and loss scaling for fp16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from lora_trainer.core.errors import InputError

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def resolve_precision(wanted: str, device: torch.device, weights: torch.dtype) -> str:
    """``auto`` as fp16, bf16 or fp32.

    Args:
        wanted: the config's precision.
        device: where it is computed.
        weights: the type of the checkpoint's weights as they are loaded.

    Raises:
        InputError: the device or the loaded weights cannot do what is wanted.
    """
    if weights not in (torch.float32, torch.float16, torch.bfloat16):
        raise InputError(
            "The checkpoint is loaded in {weights}, which cannot be trained; turn FP8 off in the WebUI's settings.",
            field="training.precision",
            weights=str(weights).removeprefix("torch."),
        )
    if wanted == "auto":
        return _natural(device, weights)
    if wanted == "fp16" and device.type == "cpu":
        raise InputError(
            "training.precision: fp16 needs a graphics card; use auto, bf16 or fp32 on a CPU.",
            field="training.precision",
        )
    return wanted


def _natural(device: torch.device, weights: torch.dtype) -> str:
    """The weights' own type, in which none has to be cast; for fp32 on a card bf16 where it computes that itself.

    fp16 needs loss scaling, which there is on CUDA only; elsewhere fp16 weights are computed with in fp32.
    """
    if weights == torch.bfloat16:
        return "bf16"
    if weights == torch.float16:
        return "fp16" if device.type == "cuda" else "fp32"
    return "bf16" if device.type == "cuda" and _computes_bf16(device) else "fp32"


def _computes_bf16(device: torch.device) -> bool:
    """Newer torch also says yes where it only imitates bf16, slowly (before Ampere)."""
    return torch.cuda.is_bf16_supported() and torch.cuda.get_device_capability(device)[0] >= 8


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """The context in which types are those of weights and inputs, also within the host's own autocast."""
    try:
        return torch.autocast(device.type, enabled=False)
    except RuntimeError:  # this torch knows none for such devices (MPS, DirectML)
        return nullcontext()


def grad_scaler(precision: str, device: torch.device) -> torch.cuda.amp.GradScaler:
    """Loss scaling (Micikevicius et al., 2018) for fp16; does nothing for other precisions."""
    enabled = precision == "fp16" and device.type == "cuda"
    if hasattr(torch, "amp") and hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device.type, enabled=enabled)  # type: ignore[return-value]
    return torch.cuda.amp.GradScaler(enabled=enabled)
