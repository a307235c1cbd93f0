"""Optimizers and learning rate schedules, all from well-kept libraries."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lora_trainer.config import TrainConfig
from lora_trainer.errors import InputError


@dataclass(frozen=True)
class OptimizerKind:
    """Where an optimizer comes from.

    Attributes:
        module: the Python module that has it.
        name: its class there.
        package: what to install, or ``""`` when every host has it.
        defaults: arguments that differ from the class's own.
    """

    module: str
    name: str
    package: str = ""
    defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def installed(self) -> bool:
        """Whether the module can be found; it is not imported."""
        return importlib.util.find_spec(self.module.partition(".")[0]) is not None

    @property
    def command(self) -> str:
        """The command that adds it, to be run in the WebUI's environment."""
        return f"pip install {self.package}" if self.package else ""


KINDS: dict[str, OptimizerKind] = {
    "AdamW": OptimizerKind("torch.optim", "AdamW", defaults={"weight_decay": 0.01}),
    "AdamW8bit": OptimizerKind("bitsandbytes.optim", "AdamW8bit", "bitsandbytes", {"weight_decay": 0.01}),
    "Adafactor": OptimizerKind(
        "transformers.optimization",
        "Adafactor",
        defaults={"scale_parameter": False, "relative_step": False, "warmup_init": False},
    ),
    "Lion": OptimizerKind("lion_pytorch", "Lion", "lion-pytorch", {"weight_decay": 0.01}),
    "Prodigy": OptimizerKind(
        "prodigyopt",
        "Prodigy",
        "prodigyopt",
        {"weight_decay": 0.01, "decouple": True, "use_bias_correction": True, "safeguard_warmup": True},
    ),
}


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate."""

    name: str
    parameters: list[nn.Parameter]
    lr: float


def require_installed(name: str) -> None:
    """Raise :class:`InputError` with the command that adds the optimizer when it is not there."""
    kind = KINDS[name]
    if not kind.installed:
        raise InputError(
            "training.optimizer: {name} is not installed; run “{command}” in the WebUI's environment, or choose AdamW.",
            field="training.optimizer",
            name=name,
            command=kind.command,
        )


def build_optimizer(config: TrainConfig, groups: Sequence[Group]) -> torch.optim.Optimizer:
    """The optimizer of a run.

    Raises:
        InputError: it is not installed (the command that adds it is named), or its arguments are wrong.
    """
    require_installed(config.training.optimizer)
    kind = KINDS[config.training.optimizer]
    arguments = {**kind.defaults, **config.training.optimizer_args}
    parameters = [{"params": g.parameters, "lr": g.lr, "name": g.name} for g in groups]
    try:
        made = getattr(importlib.import_module(kind.module), kind.name)
    except (ImportError, AttributeError, RuntimeError, OSError) as error:  # e.g. it misses its CUDA library
        raise InputError(
            "training.optimizer: {name} is installed, but does not work here ({error}); choose AdamW.",
            field="training.optimizer",
            name=config.training.optimizer,
            error=error,
        ) from error
    try:
        return made(parameters, lr=groups[0].lr, **arguments)
    except (TypeError, ValueError, LookupError, RuntimeError, AssertionError) as error:
        raise InputError(
            "training.optimizer_args: {name} does not accept these ({error}).",
            field="training.optimizer_args",
            name=config.training.optimizer,
            error=error,
        ) from error


def build_schedule(config: TrainConfig, optimizer: torch.optim.Optimizer, warmup: int, total: int) -> Any:
    """Diffusers' learning rate schedule over ``total`` steps, the first ``warmup`` of them rising."""
    from diffusers.optimization import get_scheduler

    training = config.training
    return get_scheduler(
        training.scheduler,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=total,
        num_cycles=training.scheduler_cycles,
        power=training.scheduler_power,
    )


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The rate of each group now; for self-adjusting optimizers times the scale that they found."""
    return {g["name"]: float(g["lr"]) * float(g.get("d", 1.0)) for g in optimizer.param_groups}
