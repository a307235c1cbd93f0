"""Optimizers and learning rate schedules, all from well-kept libraries."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError


@dataclass(frozen=True)
class OptimizerKind:
    """Where an optimizer comes from.

    Attributes:
        module: the Python module that has it.
        name: its class there.
        package: what to install, or ``""`` when every host has it.
        defaults: arguments that differ from the class's own.
        together: it can take all parameters in one operation (``fused``) or in a few (``foreach``).
    """

    module: str
    name: str
    package: str = ""
    defaults: dict[str, Any] = field(default_factory=dict)
    together: bool = False

    @property
    def installed(self) -> bool:
        """Whether the module can be found; it is not imported."""
        return importlib.util.find_spec(self.module.partition(".")[0]) is not None

    @property
    def command(self) -> str:
        """The command that adds it, to be run in the WebUI's environment."""
        return f"pip install {self.package}" if self.package else ""


KINDS: dict[str, OptimizerKind] = {
    "AdamW": OptimizerKind("torch.optim", "AdamW", defaults={"weight_decay": 0.01}, together=True),
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


TOGETHER = {"fused", "foreach"}
"""Arguments of torch's optimizers that say how, not what, they compute."""


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


def optimizer_arguments(config: TrainConfig) -> dict[str, Any]:
    """What the optimizer is given besides parameters and learning rates: our defaults, and over them the person's."""
    return {**KINDS[config.training.optimizer].defaults, **config.training.optimizer_args}


def build_optimizer(config: TrainConfig, groups: Sequence[Group]) -> torch.optim.Optimizer:
    """The optimizer of a run.

    Raises:
        InputError: it is not installed (the command that adds it is named), or its arguments are wrong.
    """
    require_installed(config.training.optimizer)
    kind = KINDS[config.training.optimizer]
    arguments = optimizer_arguments(config)
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
        if kind.together and not arguments.keys() & TOGETHER:
            return _together(made, parameters, lr=groups[0].lr, **arguments)
        return made(parameters, lr=groups[0].lr, **arguments)
    except (TypeError, ValueError, LookupError, RuntimeError, AssertionError) as error:
        raise InputError(
            "training.optimizer_args: {name} does not accept these ({error}).",
            field="training.optimizer_args",
            name=config.training.optimizer,
            error=error,
        ) from error


def _together(made: Any, parameters: list[dict[str, Any]], **arguments: Any) -> torch.optim.Optimizer:
    """The optimizer in as few operations as the installed torch has for the device.

    One by one, the 384 parameters of an SD1 LoRA take about 3,500 operations a step, more than the model's forward.
    """
    device = parameters[0]["params"][0].device.type
    if device not in ("cuda", "cpu"):  # what others have, torch's own choice knows
        return made(parameters, **arguments)
    try:
        # torch fills its defaults into the groups that it is given, also when it then refuses them
        return made([dict(group) for group in parameters], **arguments, fused=True)
    except (TypeError, RuntimeError):  # on a CPU since torch 2.4
        return made(parameters, **arguments, foreach=True)


def keep_together(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A saved state for *this* optimizer: ``fused`` and ``foreach`` are of the machine, not of what was learned."""
    for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=False):
        group.update({name: own[name] for name in TOGETHER & own.keys()})
    return saved


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


def warmup_steps(config: TrainConfig, total: int) -> int:
    """Warm-up in steps; below 1 the setting is a share of all steps. The schedule ``constant`` has none."""
    warmup = 0.0 if config.training.scheduler == "constant" else config.training.warmup
    return round(warmup * total) if warmup < 1 else int(warmup)
