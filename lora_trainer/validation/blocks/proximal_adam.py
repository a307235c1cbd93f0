"""Adam with a proximal step towards weight 1."""

from __future__ import annotations

import math

import torch

HIGHEST = 1.5


STEP = 0.05
"""Weights are rounded to this: more digits would not be known."""


Weights = tuple[float, ...]


class ProximalAdam:
    """Adam on a few numbers with an L1 pull towards 1 and bounds.

    Args:
        count: of the numbers; they begin at 1.
        steps: that will be done.
        rate: learning rate at the beginning.
        l1: λ of the pull.
    """

    _BETAS = (0.9, 0.98)
    _TINY = 1e-8

    def __init__(self, count: int, steps: int, rate: float, l1: float) -> None:
        self.weights = torch.ones(count, dtype=torch.float64)
        self._mean = torch.zeros(count, dtype=torch.float64)
        self._square = torch.zeros(count, dtype=torch.float64)
        self._steps = steps
        self._rate = rate
        self._l1 = l1
        self._done = 0

    def step(self, gradient: torch.Tensor) -> None:
        """One step down the gradient (count,), and the proximal step of the pull."""
        first, second = self._BETAS
        self._mean.mul_(first).add_(gradient, alpha=1 - first)
        self._square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        rate = self._rate * (0.55 + 0.45 * math.cos(math.pi * self._done / self._steps))
        self._done += 1
        mean = self._mean / (1 - first**self._done)
        metric = rate / ((self._square / (1 - second**self._done)).sqrt() + self._TINY)
        moved = self.weights - 1 - metric * mean
        shrunk = moved.sign() * (moved.abs() - metric * self._l1).clamp(min=0)
        self.weights = (1 + shrunk).clamp(0, HIGHEST)

    def rounded(self) -> Weights:
        """The weights to the nearest :data:`STEP`."""
        return tuple(round(round(w / STEP) * STEP, 2) for w in self.weights.tolist())
