"""Line charts as SVG, drawn on the server and coloured by the page's theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lora_trainer.ui.html.markup import EMPTY, Markup, joined, markup

Points = Sequence[tuple[float, float]]
_WIDTH, _HEIGHT = 560, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 12, 24


@dataclass(frozen=True)
class Curve:
    """One line: its CSS class, its name in the legend, its points, and whether they are marked."""

    style: str
    name: str
    points: Points
    marked: bool = False


def chart(title: str, curves: Sequence[Curve], x_label: str, last_x: float | None = None) -> Markup:
    """An SVG chart; empty text when there is nothing to draw.

    Args:
        title: shown above.
        curves: lines, the later ones on top.
        x_label: what the horizontal axis counts.
        last_x: its end; the largest x when not given.
    """
    drawn = [curve for curve in curves if curve.points]
    values = [y for curve in drawn for _, y in curve.points if _is_drawable(y)]
    if not values:
        return EMPTY
    right = max(last_x or 0.0, *(x for curve in drawn for x, _ in curve.points), 1.0)
    low, high, step = nice_range(min(values), max(values))
    parts = [*_grid(low, high, step, right, x_label)]
    parts += [_line(curve, low, high, right) for curve in drawn]
    legend = joined(markup('<span class="lt-key {style}">{name}</span>', style=c.style, name=c.name) for c in drawn)
    return markup(
        '<figure class="lt-chart"><figcaption><b>{title}</b>{legend}</figcaption>'
        '<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">{parts}</svg>'
        "</figure>",
        title=title,
        legend=legend,
        width=_WIDTH,
        height=_HEIGHT,
        parts=joined(parts),
    )


def nice_range(low: float, high: float, ticks: int = 4) -> tuple[float, float, float]:
    """Round ends and a round distance of the lines between (1, 2 or 5 times a power of ten)."""
    magnitude = max(abs(low), abs(high))
    span = high - low
    if span < 1e-9 * magnitude or span < 1e-300:  # equal, as far as labels and floats can tell
        span = magnitude if magnitude > 1e-300 else 1.0
    raw = span / ticks
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    bottom, top = math.floor(low / step), math.ceil(high / step)
    return (bottom - (bottom == top)) * step, (top + (bottom == top)) * step, step


def smooth(points: Points, weight: float = 0.9) -> list[tuple[float, float]]:
    """An exponential moving average without the start's bias; values that are no numbers are left out of it."""
    result, total, norm = [], 0.0, 0.0
    for x, y in points:
        if math.isfinite(y):
            total = total * weight + y * (1 - weight)
            norm = norm * weight + (1 - weight)
        result.append((x, total / norm if norm else y))
    return result


def thin(points: Points, most: int = 400) -> list[tuple[float, float]]:
    """At most about ``most`` points, each the mean of its neighbours."""
    size = max(1, math.ceil(len(points) / most))
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _is_drawable(value: float) -> bool:
    return abs(value) < 1e100  # which NaN is not either


def _x(value: float, right: float) -> float:
    return _LEFT + value / right * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, low: float, high: float) -> float:
    return _TOP + (1 - (value - low) / (high - low)) * (_HEIGHT - _TOP - _BOTTOM)


def _grid(low: float, high: float, step: float, right: float, x_label: str) -> list[str]:
    parts: list[str] = []
    for index in range(round((high - low) / step) + 1):
        value = low + index * step
        y = _y(value, low, high)
        parts.append(
            markup(
                '<line class="lt-grid" x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>',
                left=_LEFT,
                width=_WIDTH - _RIGHT,
                y=y,
            )
        )
        parts.append(
            markup(
                '<text x="{left}" y="{y:.1f}" text-anchor="end">{number}</text>',
                left=_LEFT - 6,
                y=y + 4,
                number=_number(value),
            )
        )
    _, _, x_step = nice_range(0, right, 5)
    for index in range(int(right / x_step) + 1):
        x = _x(index * x_step, right)
        anchor = "middle" if index else "start"
        parts.append(
            markup(
                '<text x="{x:.1f}" y="{height}" text-anchor="{anchor}">{number}</text>',
                x=x,
                height=_HEIGHT - 8,
                anchor=anchor,
                number=_number(index * x_step),
            )
        )
    end = markup('x="{width}" y="{height}" text-anchor="end"', width=_WIDTH - _RIGHT, height=_HEIGHT - 28)
    parts.append(markup('<text class="lt-axis" {end}>{x_label}</text>', end=end, x_label=x_label))
    return parts


def _number(value: float) -> str:
    return "0" if abs(value) < 1e-12 else f"{value:.4g}"


def _line(curve: Curve, low: float, high: float, right: float) -> Markup:
    points = [(_x(x, right), _y(y, low, high)) for x, y in curve.points if _is_drawable(y)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = ""
    if curve.marked or len(points) == 1:
        dots = joined(
            markup('<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>', style=curve.style, x=x, y=y)
            for x, y in points
        )
    return markup('<polyline class="{style}" points="{path}"/>{dots}', style=curve.style, path=path, dots=dots)
