"""Simple drawn pictures with captions: what the small checkpoint knows, and what it does not.

The checkpoint is trained on :func:`known_scene`; the demo teaches it the *zorp*, a small figure that
is made of parts (eyes, antenna, feet) that no known shape has.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw

SUPERSAMPLING = 4

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 210),
    "yellow": (245, 210, 40),
    "orange": (245, 135, 30),
    "purple": (130, 50, 170),
    "pink": (245, 140, 180),
    "brown": (125, 80, 45),
    "white": (250, 250, 250),
    "black": (20, 20, 20),
    "gray": (140, 140, 140),
}
PLACES: dict[str, tuple[float, float]] = {
    "": (0.5, 0.5),
    "left": (0.3, 0.5),
    "right": (0.7, 0.5),
    "top": (0.5, 0.3),
    "bottom": (0.5, 0.7),
}
SIZES: dict[str, float] = {"": 0.29, "small": 0.19, "large": 0.38}

Pen = Callable[[ImageDraw.ImageDraw, float, float, float, tuple[int, int, int]], None]


def _polygon(points: list[tuple[float, float]]) -> Pen:
    def draw(pen: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: tuple[int, int, int]) -> None:
        pen.polygon([(x + px * r, y + py * r) for px, py in points], fill=fill)

    return draw


def _circle(pen: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: tuple[int, int, int]) -> None:
    pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def _ring(pen: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: tuple[int, int, int]) -> None:
    pen.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=max(1, round(r * 0.35)))


def _heart(pen: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: tuple[int, int, int]) -> None:
    points = []
    for i in range(80):
        t = 2 * math.pi * i / 80
        px = math.sin(t) ** 3
        py = -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16
        points.append((x + px * r, y + py * r))
    pen.polygon(points, fill=fill)


def _star_points() -> list[tuple[float, float]]:
    points = []
    for i in range(10):
        radius = 1.1 if i % 2 == 0 else 0.45
        angle = math.pi * i / 5 - math.pi / 2
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


SHAPES: dict[str, Pen] = {
    "circle": _circle,
    "square": _polygon([(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]),
    "triangle": _polygon([(0, -1.05), (1.05, 0.85), (-1.05, 0.85)]),
    "diamond": _polygon([(0, -1.15), (0.8, 0), (0, 1.15), (-0.8, 0)]),
    "star": _polygon(_star_points()),
    "heart": _heart,
    "ring": _ring,
    "cross": _polygon(
        [
            *[(-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33)],
            *[(0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33)],
        ]
    ),
}


@dataclass(frozen=True)
class Scene:
    """One drawing: a thing of a colour and size at a place, on a coloured background."""

    shape: str
    colour: str
    background: str
    size: str = ""
    place: str = ""

    def tags(self) -> list[str]:
        """The caption's parts, most important first."""
        thing = f"{self.colour} {self.shape}".strip()
        return [t for t in (thing, f"{self.background} background", self.size, self.place) if t]

    def sentence(self) -> str:
        """The same as a sentence, the other way in which people write captions."""
        words = ["a", self.size, self.colour, self.shape, "on a", self.background, "background"]
        sentence = " ".join(w for w in words if w)
        return f"{sentence}, {self.place}" if self.place else sentence


def known_scene(rng: random.Random) -> Scene:
    """A scene of the kind that the small checkpoint is trained on."""
    colour, background = rng.sample(list(COLOURS), 2)
    size = rng.choice(["", "", "small", "large"])
    place = "" if size == "large" else rng.choice(["", "", *PLACES])
    return Scene(rng.choice(list(SHAPES)), colour, background, size, place)


def zorp_scene(rng: random.Random) -> Scene:
    """A scene with the demo's new concept: always the same figure, everything else varies."""
    background = rng.choice([c for c in COLOURS if c not in ("green", "black")])
    size = rng.choice(["", "large"])  # smaller ones have eyes of less than a latent pixel
    return Scene("zorp", "", background, size, "" if size == "large" else rng.choice(["", "left", "right"]))


def draw(scene: Scene, width: int = 128, height: int = 128, rng: random.Random | None = None) -> Image.Image:
    """Draw ``scene`` as an RGB picture of ``width`` × ``height`` pixels; ``rng`` moves it a little."""
    rng = rng or random.Random(0)
    k = SUPERSAMPLING
    image = Image.new("RGB", (width * k, height * k), COLOURS[scene.background])
    side = min(width, height) * k
    px, py = PLACES[scene.place]
    x = px * width * k + rng.uniform(-0.03, 0.03) * side
    y = py * height * k + rng.uniform(-0.03, 0.03) * side
    radius = SIZES[scene.size] * side * rng.uniform(0.93, 1.07)
    pen = ImageDraw.Draw(image)
    if scene.shape == "zorp":
        _zorp(pen, x, y, radius)
    else:
        SHAPES[scene.shape](pen, x, y, radius, COLOURS[scene.colour])
    return image.resize((width, height), Image.Resampling.BOX)


def _zorp(pen: ImageDraw.ImageDraw, x: float, y: float, r: float) -> None:
    body, dark, light = COLOURS["green"], COLOURS["black"], COLOURS["white"]
    y, r = y + 0.1 * r, 0.88 * r  # room for the antenna
    for side in (-1, 1):
        foot = x + side * 0.45 * r
        pen.rectangle((foot - 0.16 * r, y + 0.6 * r, foot + 0.16 * r, y + 1.15 * r), fill=dark)
    pen.rectangle((x - 0.07 * r, y - 1.2 * r, x + 0.07 * r, y - 0.6 * r), fill=dark)
    _circle(pen, x, y - 1.25 * r, 0.2 * r, COLOURS["red"])
    box = (x - 0.85 * r, y - 0.75 * r, x + 0.85 * r, y + 0.75 * r)
    pen.rounded_rectangle(box, radius=0.35 * r, fill=body)
    for side in (-1, 1):
        eye = x + side * 0.36 * r
        _circle(pen, eye, y - 0.15 * r, 0.28 * r, light)
        _circle(pen, eye, y - 0.12 * r, 0.13 * r, dark)
    pen.rectangle((x - 0.4 * r, y + 0.32 * r, x + 0.4 * r, y + 0.46 * r), fill=dark)
