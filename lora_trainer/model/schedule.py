"""The noise schedule that LDM checkpoints are trained with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def ldm_alphas(config: Mapping[str, Any]) -> torch.Tensor:
    """ᾱ_t of LDM's "linear" schedule (linear in √β), in fp64 like LDM, returned as fp32.

    Args:
        config: the checkpoint's yaml.
    """
    params = config["model"]["params"]
    start, end = float(params.get("linear_start", 0.00085)), float(params.get("linear_end", 0.0120))
    betas = torch.linspace(start**0.5, end**0.5, int(params.get("timesteps", 1000)), dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def unrounded(alphas: torch.Tensor, config: Mapping[str, Any]) -> torch.Tensor:
    """A schedule as it was before it went through half precision; any other is returned as it is.

    Args:
        alphas: ᾱ_t, fp32.
        config: the checkpoint's yaml.
    """
    exact = ldm_alphas(config)
    is_rounded = alphas.shape == exact.shape and torch.equal(alphas, exact.half().float())
    return exact if is_rounded else alphas
