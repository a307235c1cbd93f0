from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lora_trainer.dataset.images import EXTENSIONS, PictureError, picture_size, read_picture, without_long_text
from tests.helpers import CASES

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
ORIENTATION = 0x0112


def corners() -> Image.Image:
    """40 × 24 pixels: red top left, green top right, blue bottom left, white bottom right."""
    image = Image.new("RGB", (40, 24), WHITE)
    image.paste(RED, (0, 0, 20, 12))
    image.paste(GREEN, (20, 0, 40, 12))
    image.paste(BLUE, (0, 12, 20, 24))
    return image


def colours(image: Image.Image) -> list[tuple[int, int, int]]:
    """The middle of each quarter, row by row."""
    w, h = image.size
    return [image.getpixel((x, y)) for y in (h // 4, 3 * h // 4) for x in (w // 4, 3 * w // 4)]


def near(found: tuple[int, ...], wanted: tuple[int, ...], by: int = 12) -> bool:
    return all(abs(a - b) <= by for a, b in zip(found, wanted, strict=True))


def png(width: int, height: int, depth: int, kind: int, rows: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG file made by hand, for what Pillow cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", header), extra and chunk(*extra) if extra else b"", chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


# ------------------------------------------------------------------ turning
TURNED = {  # EXIF orientation → what a viewer shows of `corners`, row by row
    1: [RED, GREEN, BLUE, WHITE],
    2: [GREEN, RED, WHITE, BLUE],
    3: [WHITE, BLUE, GREEN, RED],
    4: [BLUE, WHITE, RED, GREEN],
    5: [RED, BLUE, GREEN, WHITE],
    6: [BLUE, RED, WHITE, GREEN],
    7: [WHITE, GREEN, BLUE, RED],
    8: [GREEN, WHITE, RED, BLUE],
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_picture_is_turned_as_exif_says(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"quality": 100, "subsampling": 0} if name.endswith("jpg") else {"lossless": True}
    corners().save(tmp_path / name, exif=exif, **({} if name.endswith(("png", "tif")) else options))
    image = read_picture(tmp_path / name)
    assert picture_size(tmp_path / name) == image.size == ((24, 40) if orientation >= 5 else (40, 24))
    assert all(near(a, b) for a, b in zip(colours(image), TURNED[orientation], strict=True))


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_impossible_orientation_is_ignored(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    corners().save(tmp_path / "a.png", exif=exif)
    assert read_picture(tmp_path / "a.png").size == picture_size(tmp_path / "a.png") == (40, 24)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage!!", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_broken_exif_is_ignored(tmp_path: Path, name: str, exif: bytes) -> None:
    corners().save(tmp_path / name, exif=exif)
    assert picture_size(tmp_path / name) == (40, 24)
    assert read_picture(tmp_path / name).size == (40, 24)


# ------------------------------------------------------------------ colours
MODES: dict[str, tuple[Callable[[], Image.Image], tuple[int, int, int]]] = {
    "CMYK.jpg": (lambda: Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK"), (200, 100, 50)),
    "CMYK.tif": (lambda: Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK"), (200, 100, 50)),
    "YCbCr.jpg": (lambda: Image.new("YCbCr", (16, 16), (128, 128, 128)), (128, 128, 128)),
    "L.png": (lambda: Image.new("L", (16, 16), 77), (77, 77, 77)),
    "1.png": (lambda: Image.new("1", (16, 16), 1), WHITE),
    "P.png": (
        lambda: Image.new("RGB", (16, 16), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE),
        (10, 200, 30),
    ),
    "RGBA opaque.png": (lambda: Image.new("RGBA", (16, 16), (10, 20, 30, 255)), (10, 20, 30)),
    "RGBA half.png": (lambda: Image.new("RGBA", (16, 16), (0, 0, 0, 128)), (127, 127, 127)),
    "RGBA clear.webp": (lambda: Image.new("RGBA", (16, 16), (255, 0, 0, 0)), WHITE),
    "LA half.png": (lambda: Image.new("LA", (16, 16), (0, 128)), (127, 127, 127)),
    "LA clear.png": (lambda: Image.new("LA", (16, 16), (0, 0)), WHITE),
    "I16 gray.png": (lambda: Image.fromarray(np.full((16, 16), 0x8000, np.uint16)), (128, 128, 128)),
    "I16 gray.tif": (lambda: Image.fromarray(np.full((16, 16), 0x8000, np.uint16)), (128, 128, 128)),
    "I16 white.png": (lambda: Image.fromarray(np.full((16, 16), 0xFFFF, np.uint16)), WHITE),
    "F.tif": (lambda: Image.new("F", (16, 16), 0.5), (127, 127, 127)),
    "RGB.bmp": (lambda: Image.new("RGB", (16, 16), (1, 2, 3)), (1, 2, 3)),
    "RGB.gif": (lambda: Image.new("RGB", (16, 16), (0, 0, 255)), BLUE),
}


@pytest.mark.parametrize("name", MODES)
def test_every_kind_of_picture_is_read_as_rgb(tmp_path: Path, name: str) -> None:
    make, wanted = MODES[name]
    make().save(tmp_path / name)
    image = read_picture(tmp_path / name)
    assert image.mode == "RGB"
    assert near(image.getpixel((8, 8)), wanted, by=3)


def test_sixteen_bit_gray_keeps_its_gradient(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (4, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    red = np.asarray(read_picture(tmp_path / "a.png"))[0, :, 0].astype(int)
    assert np.abs(red - np.arange(256)).max() <= 1


def test_sixteen_bit_colour(tmp_path: Path) -> None:
    rows = (b"\0" + struct.pack(">HHH", 0xFFFF, 0x8000, 0) * 16) * 16
    (tmp_path / "a.png").write_bytes(png(16, 16, 16, 2, rows))
    assert near(read_picture(tmp_path / "a.png").getpixel((8, 8)), (255, 128, 0), by=1)


@pytest.mark.parametrize(
    ("kind", "chunk"), [(0, (b"tRNS", b"\0\x05")), (2, (b"tRNS", b"\0\x05\0\x05\0\x05"))], ids=["gray", "colour"]
)
def test_one_colour_marked_as_transparent_is_laid_on_white(
    tmp_path: Path, kind: int, chunk: tuple[bytes, bytes]
) -> None:
    rows = (b"\0" + b"\x05" * 8 * (3 if kind else 1) + b"\x09" * 8 * (3 if kind else 1)) * 16
    (tmp_path / "a.png").write_bytes(png(16, 16, 8, kind, rows, chunk))
    image = read_picture(tmp_path / "a.png")
    assert image.getpixel((2, 2)) == WHITE
    assert image.getpixel((12, 2)) == (9, 9, 9)


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_palette_with_transparency_is_laid_on_white(tmp_path: Path, name: str) -> None:
    image = Image.new("P", (16, 16), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (8, 0, 16, 16))
    image.save(tmp_path / name, transparency=0)
    shown = read_picture(tmp_path / name)
    assert (shown.getpixel((2, 8)), shown.getpixel((12, 8))) == (WHITE, BLUE)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_first_frame_of_an_animation_is_taken(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=50)
    with Image.open(tmp_path / name) as image:
        assert image.n_frames == 3
    assert near(read_picture(tmp_path / name).getpixel((8, 8)), RED)


# ------------------------------------------------------------------ what cannot be read
def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF\x10\0\0\0WEBPVP8 "]
)
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_what_is_no_picture_is_said_by_name(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"odd{suffix}"
    path.write_bytes(content)
    for read in (picture_size, read_picture):
        with pytest.raises(PictureError, match=rf"odd\{suffix} is (not a readable picture|damaged or cut off)"):
            read(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_picture_cut_in_half_is_said(tmp_path: Path, kind: str) -> None:
    content = encoded(kind)
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(PictureError, match=r"cut\.png is (not a readable picture|damaged or cut off)"):
        read_picture(tmp_path / "cut.png")


@settings(max_examples=250)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]),
    cut=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=4),
)
def test_damaged_bytes_give_a_picture_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, kind: str, cut: float, changes: list[tuple[float, int]]
) -> None:
    content = bytearray(encoded(kind))
    for place, value in changes:
        content[int(place**3 * len(content))] = value  # most of them in the header
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    path.write_bytes(content[: round(cut * len(content))] if cut < 0.9 else content)
    for read in (picture_size, read_picture):
        try:
            read(path)
        except PictureError as error:
            message = str(error)
        else:
            continue
        assert "damaged.png" in message


@pytest.mark.parametrize(("width", "height"), [(10_001, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_enormous_picture_is_refused_by_its_header(tmp_path: Path, width: int, height: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png(width, height, 8, 2))
    for read in (picture_size, read_picture):
        with pytest.raises(PictureError, match=r"bomb\.png has more than 100 megapixels; make it smaller\."):
            read(tmp_path / "bomb.png")


def test_hundred_megapixels_are_still_measured(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(png(10_000, 10_000, 8, 2))
    assert picture_size(tmp_path / "large.png") == (10_000, 10_000)


# ------------------------------------------------------------------ long texts and profiles
def compressed(text: bytes) -> bytes:
    return zlib.compress(text, 9)


LONG = b"{}" * 700_000
LONG_CHUNKS: dict[str, list[tuple[bytes, bytes]]] = {
    "zTXt": [(b"zTXt", b"workflow\0\0" + compressed(LONG))],
    "compressed iTXt": [(b"iTXt", b"workflow\0\1\0en\0w\0" + compressed(LONG))],
    "iTXt as it is": [(b"iTXt", b"workflow\0\0\0\0\0" + LONG)],
    "tEXt, many": [(b"tEXt", b"parameters\0" + LONG)] * 50,
    "profile": [(b"iCCP", b"huge\0\0" + compressed(LONG))],
    "many short ones": [(b"zTXt", b"n%d\0\0" % n + compressed(LONG[:900_000])) for n in range(80)],
}


def with_chunks(content: bytes, chunks: list[tuple[bytes, bytes]], *, last: bool) -> bytes:
    """A PNG with chunks more, behind the header or before the end."""
    made = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    place = len(content) - 12 if last else 33
    return content[:place] + made + content[place:]


@pytest.mark.parametrize("last", [False, True], ids=["in front", "behind the pixels"])
@pytest.mark.parametrize("kind", LONG_CHUNKS)
def test_png_with_long_text_or_profile_is_a_good_picture(tmp_path: Path, kind: str, last: bool) -> None:
    corners().save(tmp_path / "plain.png")
    plain = (tmp_path / "plain.png").read_bytes()
    (tmp_path / "a.png").write_bytes(with_chunks(plain, LONG_CHUNKS[kind], last=last and kind != "profile"))
    assert picture_size(tmp_path / "a.png") == (40, 24)
    assert read_picture(tmp_path / "a.png").tobytes() == corners().tobytes()


def test_png_is_turned_as_exif_says_beside_a_long_text(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    corners().save(tmp_path / "a.png", exif=exif)
    content = with_chunks((tmp_path / "a.png").read_bytes(), LONG_CHUNKS["zTXt"], last=False)
    (tmp_path / "a.png").write_bytes(content)
    assert picture_size(tmp_path / "a.png") == (24, 40)
    assert all(near(a, b) for a, b in zip(colours(read_picture(tmp_path / "a.png")), TURNED[6], strict=True))


def test_short_texts_are_left_where_they_are() -> None:
    content = with_chunks(
        encoded("PNG"), [(b"tEXt", b"parameters\0a girl"), (b"zTXt", b"n\0\0" + compressed(b"x"))], last=False
    )
    assert without_long_text(content) == content
    assert without_long_text(encoded("JPEG")) == encoded("JPEG")


def test_case_png_with_long_text() -> None:
    path = CASES / "png-long-text" / "workflow.png"
    assert picture_size(path) == read_picture(path).size


# ------------------------------------------------------------------ memory
MEASURE = """
import resource, sys
from pathlib import Path
from lora_trainer.dataset.images import read_picture

read_picture(Path(sys.argv[1]))  # what the first picture loads
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read_picture(Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is counted in other units elsewhere")
@pytest.mark.parametrize(
    ("mode", "colour", "allowed"),
    [("RGB", (1, 2, 3), 4.5), ("RGBA", (1, 2, 3, 128), 8.5), ("I;16", 4000, 8.5), ("P", 1, 5.5), ("LA", (5, 9), 8.5)],
)
def test_picture_needs_a_few_bytes_a_pixel(
    tmp_path: Path, mode: str, colour: int | tuple[int, ...], allowed: float
) -> None:
    for name, side in (("small.png", 64), ("large.png", 5000)):
        Image.new(mode, (side, side), colour).save(tmp_path / name)
    paths = [str(tmp_path / name) for name in ("small.png", "large.png")]
    done = subprocess.run([sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=True)
    strips = 100_000_000  # what is converted at a time, in several types
    assert int(done.stdout) * 1024 < allowed * 5000 * 5000 + strips


def test_vanished_picture_is_said(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"gone\.png is not a readable picture"):
        read_picture(tmp_path / "gone.png")


def test_extensions_are_lower_case_with_a_dot() -> None:
    assert all(e == e.lower() and e.startswith(".") for e in EXTENSIONS)
