"""Labelled sheets of pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lora_trainer.validation.grid import sheet
from lora_trainer.validation.grid.sheet import Layout, load_font, sheets, shorten


def layout(
    columns: int = 2, rows: int = 2, blocks: int = 1, title: str = "a", size: tuple[int, int] = (40, 24)
) -> Layout:
    return Layout(
        [f"c{i}" for i in range(columns)],
        [f"r{i}" for i in range(rows)],
        [title] * blocks,
        size,
        lambda column, row, block: None,
    )


def test_labels_are_written_beside_the_pictures() -> None:
    (image,) = sheets(layout(columns=3, rows=1))
    grey = image.convert("L")
    left = grey.width - 3 * (40 + 6)
    assert left > 2 * 6
    for box in ((left, 0, grey.width, 20), (0, 20, grey.width, 38), (0, 46, left, grey.height)):
        assert min(grey.crop(box).getdata()) < 128


@pytest.mark.parametrize("title", ["", "wide " * 2000, "汉服少女,正面", "\n\t", "\U0001f600 {} <b>", "a\x00b"])
def test_any_prompt_is_a_title_that_does_not_widen_the_sheet(title: str) -> None:
    (usual,) = sheets(layout())
    (image,) = sheets(layout(title=title))
    assert image.size == usual.size


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 6), st.integers(8, 60))
def test_every_place_is_on_exactly_one_sheet_of_bounded_size(columns: int, rows: int, blocks: int, side: int) -> None:
    seen: list[tuple[int, int, int]] = []

    def picture(column: int, row: int, block: int) -> Path | None:
        seen.append((column, row, block))
        return None

    with pytest.MonkeyPatch.context() as small:
        small.setattr(sheet, "MAX_SIDE", 300)
        small.setattr(sheet, "MAX_PIXELS", 40_000)
        plan = layout(columns, rows, blocks, size=(side, side))
        drawn = list(sheets(Layout(plan.columns, plan.rows, plan.blocks, plan.size, picture)))
    assert sorted(seen) == [(c, r, b) for c in range(columns) for r in range(rows) for b in range(blocks)]
    for image in drawn:
        assert max(image.size) <= 300
        assert image.width * image.height <= 40_000


def test_a_small_grid_is_one_sheet_and_a_large_one_several() -> None:
    assert len(list(sheets(layout(6, 4, 3)))) == 1
    tiled = list(sheets(layout(10, 10, 30, size=(512, 512))))
    assert len(tiled) > 1
    assert all(image.width * image.height <= sheet.MAX_PIXELS for image in tiled)


def test_a_label_that_fits_is_whole_and_a_longer_one_ends_in_dots() -> None:
    font = load_font()
    assert shorten("epoch 1", 1000, font) == "epoch 1"
    short = shorten("a very long label indeed", 60, font)
    assert short.endswith("…")
    assert "a very long label indeed".startswith(short[:-1])
    assert font.getlength(short) <= 60
    assert shorten("abc", 0, font) == ""


def test_pillows_own_font_writes_what_it_cannot_as_question_marks() -> None:
    class LatinOnly:
        def getlength(self, text: str) -> float:
            text.encode("latin-1")
            return 6.0 * len(text)

    assert shorten("汉服 x", 1000, LatinOnly()) == "?? x"
    assert shorten("汉服" * 2000, 60, LatinOnly()) == "???????..."


def test_pictures_lie_where_they_belong(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    Image.new("RGB", (40, 24), "red").save(path)
    plan = layout(2, 1)
    (image,) = sheets(Layout(plan.columns, plan.rows, plan.blocks, plan.size, lambda c, r, b: path if c else None))
    left = image.width - 2 * 46
    assert image.getpixel((left + 46, 50)) == (255, 0, 0)
    assert image.getpixel((left, 50)) == (235, 235, 235)
