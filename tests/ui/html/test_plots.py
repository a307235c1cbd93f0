"""Charts as SVG."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lora_trainer.ui.html.plots import Curve, chart, nice_range, smooth, thin
from tests.ui.markup import HOSTILE, Page

_numbers = st.floats(-1e100, 1e100)
_usual = st.floats(-1e9, 1e9).filter(lambda v: v == 0 or abs(v) > 1e-9)
_points = st.lists(st.tuples(st.integers(1, 10_000).map(float), st.floats()), min_size=1, max_size=30)


def read(markup: str) -> ElementTree.Element:
    """The chart as XML, which is stricter than HTML."""
    return ElementTree.fromstring(markup)


def line_points(figure: ElementTree.Element) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, pair.split(","))) for pair in line.get("points", "").split()]  # type: ignore[misc]
        for line in figure.iter("polyline")
    ]


# ------------------------------------------------------------------ the axis
@given(_usual, _usual)
def test_the_axis_holds_all_values_in_a_few_round_steps(one: float, other: float) -> None:
    low, high = sorted((one, other))
    bottom, top, step = nice_range(low, high)
    hair = 1e-6 * step + 1e-12 * max(abs(low), abs(high))
    assert bottom <= low + hair
    assert top >= high - hair
    assert 1 <= round((top - bottom) / step) <= 7
    leading = float(f"{step:.6e}".split("e")[0])
    assert leading in (1, 2, 5)


@given(_numbers, _numbers)
@example(0.0, 5e-324)
@example(1.0, 1.0000000000000002)
@example(-1e99, 1e99)
@example(1e16, 1e16 + 2)
def test_any_two_numbers_have_an_axis(one: float, other: float) -> None:
    bottom, top, step = nice_range(*sorted((one, other)))
    assert bottom < top
    assert step > 0
    assert math.isfinite(top - bottom)


def test_equal_values_are_not_at_the_edge_of_an_axis() -> None:
    for value in (0.0, 1.0, -3.0, 0.1234, 1e-8, 1e12):
        bottom, top, _ = nice_range(value, value)
        assert bottom < value < top


# ------------------------------------------------------------------ the chart
@given(st.lists(_points, min_size=1, max_size=3))
def test_any_values_make_an_svg_whose_lines_stay_within_it(curves: list[list[tuple[float, float]]]) -> None:
    drawn = [Curve(f"lt-line-{n}", f"curve {n}", points, marked=n == 1) for n, points in enumerate(curves)]
    markup = chart("Loss", drawn, "step")
    finite = [sum(abs(y) < 1e100 for _, y in points) for points in curves]
    if not any(finite):
        assert markup == ""
        return
    figure = read(markup)
    _, _, width, height = map(float, figure.find("svg").get("viewBox").split())  # type: ignore[union-attr]
    lines = line_points(figure)
    assert [len(line) for line in lines] == finite
    for line in lines:
        for x, y in line:
            assert 0 <= x <= width
            assert 0 <= y <= height
    labels = [text.text for text in figure.iter("text")]
    assert "nan" not in " ".join(map(str, labels)).lower()
    assert "inf" not in " ".join(map(str, labels)).lower()


def test_higher_values_are_drawn_higher_and_later_ones_further_right() -> None:
    ((a, b, c),) = line_points(read(chart("", [Curve("", "", [(1, 0.5), (2, 0.9), (3, 0.1)])], "")))
    assert a[0] < b[0] < c[0]
    assert b[1] < a[1] < c[1]


def test_a_value_stands_at_its_label() -> None:
    figure = read(chart("", [Curve("", "", [(0, 0.25), (10, 1.0)])], "step"))
    ((start, end),) = line_points(figure)
    rows = {text.text: float(text.get("y", 0)) - 4 for text in figure.iter("text") if text.get("text-anchor") == "end"}
    columns = {t.text: float(t.get("x", 0)) for t in figure.iter("text") if t.get("text-anchor") in ("middle", "start")}
    assert end[1] == pytest.approx(rows["1"], abs=0.11)
    assert start[1] == pytest.approx((rows["0.2"] + rows["0.4"]) / 2 + (rows["0.2"] - rows["0.4"]) / 4, abs=0.11)
    assert (start[0], end[0]) == (pytest.approx(columns["0"], abs=0.11), pytest.approx(columns["10"], abs=0.11))


def test_the_axis_reaches_to_the_last_step_before_the_run_is_there() -> None:
    (half,) = line_points(read(chart("", [Curve("", "", [(0, 0.5), (50, 1.0)])], "", last_x=100)))
    (whole,) = line_points(read(chart("", [Curve("", "", [(0, 0.5), (50, 1.0)])], "")))
    left = half[0][0]
    assert half[1][0] - left == pytest.approx((whole[1][0] - left) / 2, abs=0.2)


@pytest.mark.parametrize("curves", [[], [Curve("", "", [])], [Curve("", "", [(1, math.nan), (2, math.inf)])]])
def test_nothing_to_draw_is_an_empty_text(curves: list[Curve]) -> None:
    assert chart("Loss", curves, "step") == ""


def test_a_single_point_is_marked_so_that_it_can_be_seen() -> None:
    assert len(list(read(chart("", [Curve("a", "", [(1, 2)])], "")).iter("circle"))) == 1
    assert len(list(read(chart("", [Curve("a", "", [(1, 2), (2, 3)])], "")).iter("circle"))) == 0
    assert len(list(read(chart("", [Curve("a", "", [(1, 2), (2, 3)], marked=True)], "")).iter("circle"))) == 2


def test_the_legend_names_the_curves_that_are_there() -> None:
    page = Page(chart("Loss", [Curve("a", "each step", [(1, 2)]), Curve("b", "average", [])], "step"))
    assert [e.text for e in page.all("span", "lt-key")] == ["each step"]


@pytest.mark.parametrize("text", HOSTILE)
def test_titles_names_and_units_are_shown_as_they_are(text: str) -> None:
    page = Page(chart(text, [Curve("lt-line-0", text, [(1, 2)])], text))
    assert page.one("b").text == text
    assert page.one("span").text == text
    assert page.one("svg").attributes["aria-label"] == text
    assert page.one("text", "lt-axis").text == text


# ------------------------------------------------------------------ smoothing and thinning
def test_smoothing_is_the_weighted_mean_of_what_came_before() -> None:
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    smoothed = smooth(list(enumerate(values)), 0.8)
    for index, (x, y) in enumerate(smoothed):
        weights = [0.8 ** (index - k) for k in range(index + 1)]
        wanted = sum(w * v for w, v in zip(weights, values, strict=False)) / sum(weights)
        assert (x, y) == (index, pytest.approx(wanted))


@given(st.lists(st.tuples(_usual, _usual), max_size=50), st.floats(0, 0.999))
def test_a_smoothed_curve_stays_between_the_lowest_and_the_highest(
    points: list[tuple[float, float]], weight: float
) -> None:
    smoothed = smooth(points, weight)
    assert [x for x, _ in smoothed] == [x for x, _ in points]
    values = [y for _, y in points]
    for _, y in smoothed:
        assert min(values) - 1 <= y <= max(values) + 1


def test_a_value_that_is_no_number_spoils_only_its_own_place_of_the_average() -> None:
    smoothed = smooth([(1, 1.0), (2, math.nan), (3, math.inf), (4, 1.0)], 0.9)
    assert smoothed[0] == (1, pytest.approx(1.0))
    assert smoothed[-1] == (4, pytest.approx(1.0))


@given(st.integers(0, 3000), st.integers(1, 500))
def test_thinning_leaves_few_points_and_their_mean(count: int, most: int) -> None:
    points = [(float(n), float(n % 7)) for n in range(count)]
    thinned = thin(points, most)
    assert len(thinned) <= most
    assert len(thinned) == count or count > most
    if count and count % len(thinned) == 0:
        assert sum(y for _, y in thinned) / len(thinned) == pytest.approx(sum(y for _, y in points) / count)
    assert thinned == sorted(thinned)


@pytest.mark.parametrize("values", [[1e308, 1.0], [-1e308, 1e308, 0.5], [5e-324, 0.0]])
def test_absurd_values_do_not_hide_the_others(values: list[float]) -> None:
    ((*points,),) = line_points(read(chart("", [Curve("", "", list(enumerate(values)))], "")))
    assert len(points) == sum(abs(value) < 1e100 for value in values)
