"""How thoroughly block weights are looked for; without torch, since the page asks what it would take."""

from __future__ import annotations

from dataclasses import dataclass

from lora_trainer.core.errors import InputError


@dataclass(frozen=True)
class Effort:
    """How thoroughly weights are looked for.

    Attributes:
        steps: of the optimizer, in each of the three fits.
        batch: pictures a step, at noise levels from as many equal strata.
        rate: Adam's learning rate at the beginning; it goes down to a tenth (cosine).
        l1: λ of the pull towards 1, relative to the loss before: a block is changed when that lowers the loss by more
            than this share per unit of its weight.
        levels: noise levels at which losses are measured, from the middle of equal strata.
        draws: noises for each of them.
        seed: of everything random.

    Raises:
        InputError: no steps, or a pull away from 1.
    """

    steps: int = 48
    batch: int = 6
    rate: float = 0.08
    l1: float = 0.01
    levels: int = 8
    draws: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(
                "steps: weights are learned in at least 1 step, not {steps}; 48 is usual.",
                field="steps",
                steps=self.steps,
            )
        if not self.l1 >= 0:
            raise InputError("pull: use a number from 0 up, not {pull}; 0.01 is usual.", field="pull", pull=self.l1)
