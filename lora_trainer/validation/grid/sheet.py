"""Labelled sheets of a grid's pictures; a grid that is too large for one is laid out on several."""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

MAX_SIDE = 16_000
MAX_PIXELS = 64_000_000
"""Of one sheet (190 MB in memory); viewers and browsers show no larger pictures reliably."""
_PAD, _LINE = 6, 14
_EMPTY = (235, 235, 235)


@dataclass(frozen=True)
class Layout:
    """What stands where: blocks of rows below each other, each with a title, all with the same rows and columns.

    Attributes:
        columns: labels above the pictures.
        rows: labels before the pictures.
        blocks: titles of the blocks.
        size: width and height of a picture.
        picture: column, row and block → the picture's file, ``None`` for one that is missing.
    """

    columns: Sequence[str]
    rows: Sequence[str]
    blocks: Sequence[str]
    size: tuple[int, int]
    picture: Callable[[int, int, int], Path | None]


def sheets(layout: Layout) -> Iterator[Image.Image]:
    """The sheets one after the other: as many blocks on each as fit, and of very many columns as many as fit."""
    width, height = layout.size
    frame = _Frame(layout)
    across = max(1, (MAX_SIDE - frame.left) // (width + _PAD))
    columns = min(across, len(layout.columns))
    sheet_width = frame.left + columns * (width + _PAD)
    most = min(MAX_SIDE, MAX_PIXELS // sheet_width)
    rows = max(1, min(len(layout.rows), (most - frame.top - frame.title) // (height + _PAD)))
    blocks = max(1, (most - frame.top) // frame.block(rows)) if rows == len(layout.rows) else 1
    for first_block in range(0, len(layout.blocks), blocks):
        for first_row in range(0, len(layout.rows), rows):
            for first_column in range(0, len(layout.columns), columns):
                yield _sheet(
                    layout,
                    frame,
                    range(first_column, min(first_column + columns, len(layout.columns))),
                    range(first_row, min(first_row + rows, len(layout.rows))),
                    range(first_block, min(first_block + blocks, len(layout.blocks))),
                )


class _Frame:
    """Room for the labels."""

    def __init__(self, layout: Layout) -> None:
        self.font = load_font()
        self.left = 2 * _PAD + int(max(self.font.getlength(_known(row, self.font)) for row in layout.rows))
        self.top = 2 * _PAD + _LINE
        self.title = _LINE + 2 * _PAD
        self._row = layout.size[1] + _PAD

    def block(self, rows: int) -> int:
        """Height of a block."""
        return self.title + rows * self._row


def _sheet(layout: Layout, frame: _Frame, columns: range, rows: range, blocks: range) -> Image.Image:
    width, height = layout.size
    font = frame.font
    block_height = frame.block(len(rows))
    sheet = Image.new(
        "RGB", (frame.left + len(columns) * (width + _PAD), frame.top + len(blocks) * block_height), "white"
    )
    pen = ImageDraw.Draw(sheet)
    for place, column in enumerate(columns):
        label = shorten(layout.columns[column], width, font)
        pen.text((frame.left + place * (width + _PAD), _PAD), label, fill="black", font=font)
    for level, block in enumerate(blocks):
        y = frame.top + level * block_height
        title = shorten(layout.blocks[block], sheet.width - 2 * _PAD, font)
        pen.text((_PAD, y), title, fill=(60, 60, 160), font=font)
        for line, row in enumerate(rows):
            cell_y = y + _LINE + _PAD + line * (height + _PAD)
            pen.text((_PAD, cell_y + height // 2), _known(layout.rows[row], font), fill="black", font=font)
            for place, column in enumerate(columns):
                corner = (frame.left + place * (width + _PAD), cell_y)
                _paste(sheet, corner, layout.picture(column, row, block), layout.size)
    return sheet


def _paste(sheet: Image.Image, corner: tuple[int, int], path: Path | None, size: tuple[int, int]) -> None:
    if path is None:
        sheet.paste(_EMPTY, (*corner, corner[0] + size[0], corner[1] + size[1]))
        return
    with Image.open(path) as picture:
        shown = picture.convert("RGB")
    sheet.paste(shown.crop((0, 0, min(shown.width, size[0]), min(shown.height, size[1]))), corner)


def load_font(size: int = 12) -> Any:
    """A font that comes with every Pillow, or a system one that knows Chinese."""
    for name in ("msyh.ttc", "PingFang.ttc", "NotoSansCJK-Regular.ttc", "DejaVuSans.ttf"):
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default()


def shorten(text: str, width: float, font: Any, dots: str = "…") -> str:
    """As much of ``text``, in one line, as fits into ``width``, with ``dots`` when that is not all."""
    text = _one_line(text)

    def is_too_long(kept: int) -> bool:
        return font.getlength(text[:kept] + dots) > width

    try:
        if font.getlength(text) <= width:
            return text
        kept = bisect_left(range(1, len(text) + 1), True, key=is_too_long)
        return text[:kept] + dots if kept else ""
    except UnicodeEncodeError:  # Pillow's built-in font knows Latin letters only
        return shorten(_known(text, font), width, font, "...")


def _one_line(text: str) -> str:
    """Line ends and other control characters as blanks: Pillow makes several lines of them, or fails (Pillow 13)."""
    return "".join(" " if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter for letter in text)


def _known(text: str, font: Any) -> str:
    """``text`` in one line, with what the font cannot write as question marks."""
    text = _one_line(text)
    try:
        font.getlength(text)
    except UnicodeEncodeError:
        return text.encode("latin-1", "replace").decode("latin-1")
    return text
