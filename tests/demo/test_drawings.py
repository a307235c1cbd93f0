"""Drawn pictures: repeatable, and as their captions say."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_trainer.demo.drawings import COLOURS, PLACES, SHAPES, SIZES, Scene, draw, known_scene, zorp_scene

_COLOUR = st.sampled_from(sorted(COLOURS))
_scenes = st.builds(
    Scene,
    st.sampled_from(sorted(SHAPES)),
    _COLOUR,
    _COLOUR,
    st.sampled_from(sorted(SIZES)),
    st.sampled_from(sorted(PLACES)),
).filter(lambda scene: scene.colour != scene.background and not (scene.size == "large" and scene.place))


def pixels_of(image: Image.Image, colour: str) -> list[tuple[int, int]]:
    """Where a colour is, without the edges that are mixed of two."""
    wanted = COLOURS[colour]
    values = image.getdata()
    return [(n % image.width, n // image.width) for n, value in enumerate(values) if value == wanted]


def centre(points: list[tuple[int, int]]) -> tuple[float, float]:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


# ------------------------------------------------------------------ the picture
@given(_scenes, st.integers(0, 5))
def test_a_thing_has_its_colour_and_stands_where_the_caption_says(scene: Scene, seed: int) -> None:
    image = draw(scene, 64, 64, random.Random(seed))
    thing = pixels_of(image, scene.colour)
    assert len(thing) + len(pixels_of(image, scene.background)) > 0.6 * 64 * 64  # the rest are edges
    x, y = centre(thing)
    wanted_x, wanted_y = PLACES[scene.place]
    assert x / 64 == pytest.approx(wanted_x, abs=0.09)
    assert y / 64 == pytest.approx(wanted_y, abs=0.09)


@given(_scenes)
def test_the_background_has_its_colour_in_every_corner(scene: Scene) -> None:
    image = draw(scene, 64, 48)
    corners = {image.getpixel((x, y)) for x in (0, 63) for y in (0, 47)}
    assert corners == {COLOURS[scene.background]}


@pytest.mark.parametrize("shape", SHAPES)
def test_small_is_smaller_and_large_is_larger(shape: str) -> None:
    small, usual, large = (
        len(pixels_of(draw(Scene(shape, "red", "white", size), 96, 96), "red")) for size in ("small", "", "large")
    )
    assert 0 < 1.5 * small < usual < large / 1.3


def test_no_two_shapes_look_the_same() -> None:
    drawn = {draw(Scene(shape, "red", "white"), 64, 64).tobytes() for shape in SHAPES}
    assert len(drawn) == len(SHAPES)


def test_a_zorp_is_green_with_eyes_and_a_red_antenna_above_whatever_the_size() -> None:
    for size in SIZES:
        image = draw(Scene("zorp", "", "gray", size), 96, 96)
        body, antenna = centre(pixels_of(image, "green")), centre(pixels_of(image, "red"))
        assert antenna[1] < body[1]
        assert len(pixels_of(image, "white")) > 4
        assert len(pixels_of(image, "black")) > 4
        assert image.getpixel((0, 0)) == COLOURS["gray"]


@given(_scenes, st.integers(8, 90), st.integers(8, 90))
def test_a_picture_has_the_size_that_was_asked_for(scene: Scene, width: int, height: int) -> None:
    image = draw(scene, width, height)
    assert (image.size, image.mode) == ((width, height), "RGB")


def test_the_same_seed_draws_the_same_picture_and_another_moves_it() -> None:
    scene = Scene("star", "red", "white")
    first, again, other = (draw(scene, 64, 64, random.Random(seed)).tobytes() for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert draw(scene, 64, 64).tobytes() == draw(scene, 64, 64).tobytes()


# ------------------------------------------------------------------ scenes and captions
@given(st.integers(0, 10_000))
def test_scenes_are_repeatable_and_can_be_told_apart(seed: int) -> None:
    known, zorp = known_scene(random.Random(seed)), zorp_scene(random.Random(seed))
    assert (known, zorp) == (known_scene(random.Random(seed)), zorp_scene(random.Random(seed)))
    assert known.colour != known.background
    assert known.shape in SHAPES
    assert zorp.shape == "zorp"
    assert zorp.background not in ("green", "black")  # its body and its feet would vanish
    for scene in (known, zorp):
        assert scene.size != "large" or not scene.place  # it would be cut off


def test_the_checkpoint_does_not_know_a_zorp() -> None:
    assert "zorp" not in SHAPES
    rng = random.Random(0)
    assert all("zorp" not in known_scene(rng).sentence() for _ in range(200))


def test_scenes_vary() -> None:
    rng = random.Random(0)
    known = [known_scene(rng) for _ in range(300)]
    assert {s.shape for s in known} == set(SHAPES)
    assert {s.colour for s in known} == {s.background for s in known} == set(COLOURS)
    assert {s.size for s in known} == set(SIZES)
    assert {s.place for s in known} == set(PLACES)


@given(_scenes)
def test_a_caption_has_all_that_can_be_seen_the_thing_first(scene: Scene) -> None:
    tags = scene.tags()
    assert tags[0] == f"{scene.colour} {scene.shape}"
    assert tags[1] == f"{scene.background} background"
    assert set(tags[2:]) == {scene.size, scene.place} - {""}
    sentence = scene.sentence()
    assert sentence.startswith("a ")
    assert "  " not in sentence
    for word in (scene.size, scene.colour, scene.shape, scene.background, scene.place):
        assert word in sentence


def test_captions_read_as_people_write_them() -> None:
    assert Scene("star", "red", "blue", "small", "left").tags() == ["red star", "blue background", "small", "left"]
    assert Scene("star", "red", "blue", "small", "left").sentence() == "a small red star on a blue background, left"
    assert Scene("zorp", "", "blue").tags() == ["zorp", "blue background"]
    assert Scene("zorp", "", "blue").sentence() == "a zorp on a blue background"
