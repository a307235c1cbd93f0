from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lora_trainer.validation.metrics.paired import Difference, paired, student_tail


@pytest.mark.parametrize(
    ("freedom", "t"),
    [
        *((1, 6.3138), (2, 2.9200), (3, 2.3534), (4, 2.1318), (5, 2.0150), (6, 1.9432), (9, 1.8331), (10, 1.8125)),
        *((23, 1.7139), (30, 1.6973), (120, 1.6577)),
    ],
)
def test_tail_is_that_of_the_tables(freedom: int, t: float) -> None:
    assert student_tail(t, freedom) == pytest.approx(0.05, abs=2e-5)


@given(st.floats(0, 50), st.integers(1, 40))
def test_tail_is_the_integral_of_the_density(t: float, freedom: int) -> None:
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    steps = 4000

    def density(x: float) -> float:
        return math.exp(log_scale - (freedom + 1) / 2 * math.log1p(x * x / freedom))

    inner = sum(density((k + 0.5) * t / steps) for k in range(steps)) * t / steps
    assert student_tail(t, freedom) == pytest.approx(0.5 - inner, abs=2e-4)


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=2, max_size=12))
def test_difference_is_that_of_the_pairs(pairs: list[tuple[float, float]]) -> None:
    first, second = ({f"picture {i}": pair[side] for i, pair in enumerate(pairs)} for side in (0, 1))
    found = paired(first, second | {"another": 5.0})
    differences = [b - a for a, b in pairs]
    assert found is not None
    assert found.count == len(pairs)
    assert found.mean == pytest.approx(sum(differences) / len(pairs), abs=1e-9)
    assert found.se == pytest.approx(statistics.stdev(differences) / math.sqrt(len(pairs)), abs=1e-9)
    back = paired(second, first)
    assert back is not None
    assert (back.is_higher, back.is_lower) == (found.is_lower, found.is_higher)


@given(st.floats(-10, 10), st.floats(0.01, 10), st.integers(2, 30))
def test_chance_runs_from_sure_to_impossible(mean: float, se: float, count: int) -> None:
    here, there = Difference(mean, se, count), Difference(-mean, se, count)
    assert 0 <= here.chance <= 1
    assert here.chance == pytest.approx(1 - there.chance)
    assume(mean > 0)
    assert here.chance == pytest.approx(student_tail(mean / se, count - 1))
    assert Difference(mean * 2, se, count).chance <= here.chance <= 0.5


def test_nothing_in_common_has_no_difference() -> None:
    assert paired({"a": 1.0}, {"b": 1.0}) is None


def test_one_pair_proves_nothing() -> None:
    found = paired({"a": 1.0}, {"a": 9.0})
    assert found == Difference(8.0, None, 1)
    assert not found.is_higher
    assert not found.is_within_error
    assert Difference(0.0, None, 1).is_within_error


@pytest.mark.parametrize(("mean", "higher", "lower"), [(1.0, True, False), (-1.0, False, True), (0.0, False, False)])
def test_pairs_that_all_differ_alike_are_sure(mean: float, higher: bool, lower: bool) -> None:
    found = Difference(mean, 0.0, 3)
    assert (found.is_higher, found.is_lower) == (higher, lower)


def test_small_against_the_spread_is_not_higher() -> None:
    assert not paired({0: 0.0, 1: 0.0, 2: 0.0}, {0: 1.0, 1: -0.5, 2: 0.5}).is_higher  # type: ignore[union-attr]
    assert paired({0: 0.0, 1: 0.0, 2: 0.0}, {0: 1.0, 1: 0.9, 2: 1.1}).is_higher  # type: ignore[union-attr]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_difference_to_what_is_no_number_is_none_and_nothing_is_concluded_from_it(broken: float) -> None:
    found = paired({1: 0.5, 2: 0.25}, {1: broken, 2: 0.25})
    assert found is not None
    assert math.isnan(found.mean)
    assert (found.se, found.count) == (None, 2)
    assert (found.is_higher, found.is_lower, found.is_within_error) == (False, False, False)
