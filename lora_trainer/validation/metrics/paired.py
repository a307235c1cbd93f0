"""Differences between two measurements of the same things, and how sure they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

SIGNIFICANT = 0.05
"""A difference counts when one as large came up by chance in fewer than this share of cases."""


@dataclass(frozen=True)
class Difference:
    """Mean difference of pairs.

    Attributes:
        mean: of second minus first.
        se: standard error of the mean, s/√n; ``None`` for a single pair.
        count: pairs.
    """

    mean: float
    se: float | None
    count: int

    @property
    def chance(self) -> float:
        """Probability of a mean as high as this one or higher when there is no difference: a one-sided t-test."""
        if self.se is None or (not self.se and not self.mean):
            return 0.5
        if not self.se:
            return 0.0 if self.mean > 0 else 1.0
        tail = student_tail(abs(self.mean) / self.se, self.count - 1)
        return tail if self.mean > 0 else 1 - tail

    @property
    def is_higher(self) -> bool:
        """Whether the second is higher, at the level :data:`SIGNIFICANT`."""
        return self.chance < SIGNIFICANT

    @property
    def is_lower(self) -> bool:
        """Whether the second is lower, at the same level."""
        return self.chance > 1 - SIGNIFICANT

    @property
    def is_within_error(self) -> bool:
        """Whether the second is at most one standard error above the first: no worse, as far as one can tell."""
        return self.mean <= (self.se or 0.0)


def paired(first: Mapping[Hashable, float], second: Mapping[Hashable, float]) -> Difference | None:
    """Second minus first over the keys that both have; ``None`` when there are none.

    Of a loss that is no number the mean is none either, and nobody can tell how sure it is.
    """
    differences = [second[key] - value for key, value in first.items() if key in second]
    if not differences:
        return None
    count = len(differences)
    if not all(map(math.isfinite, differences)):
        return Difference(math.nan, None, count)
    error = statistics.stdev(differences) / math.sqrt(count) if count > 1 else None
    return Difference(statistics.fmean(differences), error, count)


def student_tail(t: float, freedom: int) -> float:
    """P(T > t) for t ≥ 0 and Student's T with whole degrees of freedom (Abramowitz & Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 or not odd else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * math.cos(angle) ** 2
        total += term
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return max(0.0, (1 - inside) / 2)
