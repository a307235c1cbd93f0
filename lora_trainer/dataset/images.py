"""Reading any picture that people have as 8-bit RGB."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from lora_trainer.core.errors import InputError

EXTENSIONS = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".mpo", ".webp", ".avif", ".gif"),
    *(".bmp", ".dib", ".tif", ".tiff", ".tga", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm"),
}
MAX_PIXELS = 100_000_000
_STRIP = 1 << 22
"""Pixels that are converted at a time: the whole of a large picture in four channels more would fill the memory."""
_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_TEXT = 1_000_000
"""Bytes of text and profiles of a PNG that are read; Pillow refuses the picture when one has more than 2²⁰."""
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DAMAGED = (  # what Pillow's readers raise for damaged files
    *(OSError, ValueError, SyntaxError, LookupError, EOFError, TypeError, AttributeError),
    *(ArithmeticError, RuntimeError, AssertionError, struct.error),
)


class PictureError(InputError):
    """A picture that cannot be used; the sentence names it and why."""


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels as a viewer shows the picture, read from its header.

    Raises:
        PictureError: not a picture, or absurdly large.
    """
    try:
        return _size(_open(path, path))
    except PictureError:
        if not _is_png(path):
            raise
    return _size(_open(io.BytesIO(without_long_text(read_bytes(path))), path))


def _is_png(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_PNG)) == _PNG
    except (OSError, ValueError):
        return False


def _size(image: Image.Image) -> tuple[int, int]:
    with image:
        tags = getattr(image, "tag_v2", {})  # a TIFF's own width and height; newer Pillow has turned the size
        width, height = tags.get(256, image.width), tags.get(257, image.height)
        turned = _orientation(image) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def read_picture(path: Path) -> Image.Image:
    """The picture as RGB: turned as EXIF says, first frame, transparency on white.

    Raises:
        PictureError: not a picture, truncated, or absurdly large.
    """
    return decode_picture(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """The bytes of a picture file; raises :class:`PictureError` when it cannot be read."""
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def decode_picture(content: bytes, path: Path) -> Image.Image:
    """As :func:`read_picture`, from bytes that were read before; ``path`` is for the sentences."""
    image = _open(io.BytesIO(without_long_text(content)), path)
    turn = None if image.format == "TIFF" else _TURNS.get(_orientation(image))  # Pillow turns a TIFF itself
    try:
        image.load()
        rgb = to_rgb(image)
        if rgb is not image:
            image.close()
        return rgb if turn is None else rgb.transpose(turn)
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except _DAMAGED as error:
        raise PictureError(
            "{path} is damaged or cut off ({error}); export it again.", path=path, error=error
        ) from error


def is_whole(path: Path) -> bool:
    """Whether there is a picture that can be read to its end."""
    try:
        return path.is_file() and read_picture(path) is not None
    except PictureError:
        return False


def _open(file: Path | io.BytesIO, path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file)
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except _DAMAGED as error:
        raise _unreadable(path, error) from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise _too_large(path)
    return image


def _unreadable(path: Path, error: Exception) -> PictureError:
    reason = "no picture format that is known here" if isinstance(error, UnidentifiedImageError) else error
    return PictureError("{path} is not a readable picture: {error}.", path=path, error=reason)


# ------------------------------------------------------------------ long texts in PNG files
def without_long_text(content: bytes) -> bytes:
    """The bytes of a picture; of a PNG without texts and profiles that are longer than what Pillow reads.

    ComfyUI, for one, writes whole workflows into its pictures. None of it is of use here, so the picture is read
    without it, rather than Pillow's limit lifted for the whole process.
    """
    if not content.startswith(_PNG):
        return content
    kept, start, left = [_PNG], len(_PNG), _MAX_TEXT
    for kind, body, end in _chunks(content):
        length = _text_length(kind, body, left)
        if length <= left:
            kept.append(content[start:end])
            left -= length
        start = end
    return content if sum(map(len, kept)) == start else b"".join([*kept, content[start:]])


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """Name, body and end of each whole chunk of a PNG; the bodies of pixels are left empty."""
    place = len(_PNG)
    while place + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        end = place + 12 + length
        if end > len(content):
            return
        yield kind, b"" if kind == b"IDAT" else content[place + 8 : end - 4], end
        place = end


def _text_length(kind: bytes, body: bytes, limit: int) -> int:
    """Bytes of the text in a PNG chunk, unpacked up to a little more than ``limit``; 0 for other chunks."""
    _, _, rest = body.partition(b"\0")
    if kind == b"tEXt" or (kind == b"iTXt" and rest[:1] == b"\0"):
        return len(body)
    if kind == b"iTXt":
        rest = rest[2:].split(b"\0", 2)[-1]  # behind flag and method: the language, the translated keyword
    if kind not in (b"iTXt", b"zTXt", b"iCCP"):
        return 0
    try:
        return len(zlib.decompressobj().decompress(rest if kind == b"iTXt" else rest[1:], limit + 1))
    except zlib.error:
        return 0  # Pillow passes over it


def _orientation(image: Image.Image) -> int:
    """How EXIF says that the picture is turned, 1 when it does not; the picture is not decoded for it."""
    told = {"exif", "Raw profile type exif", "XML:com.adobe.xmp"} & image.info.keys()
    if image.format == "PNG" and not told:  # asked, Pillow would decode all of it and look behind the pixels
        return 1
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except _DAMAGED:
        return 1


def _too_large(path: Path) -> PictureError:
    limit = MAX_PIXELS // 1_000_000
    return PictureError("{path} has more than {limit} megapixels; make it smaller.", path=path, limit=limit)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB; 16 bits are scaled down, transparency is laid on white. An opaque RGB picture is returned."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    width, height = image.size
    rows = max(1, _STRIP // max(1, width))
    boxes = [(0, top, width, min(height, top + rows)) for top in range(0, height, rows)]
    sixteen = image.mode in _SIXTEEN_BIT
    shift = 8 if sixteen and any(np.asarray(image.crop(box)).max(initial=0) > 255 for box in boxes) else 0
    result = Image.new("RGB", image.size)
    for box in boxes:
        strip = image.crop(box)
        result.paste(_strip_to_rgb(_from_sixteen_bit(strip, shift) if sixteen else strip), box[:2])
    return result


def _strip_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        image = Image.fromarray(np.clip(np.asarray(image) * 255, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _from_sixteen_bit(image: Image.Image, shift: int) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    return Image.fromarray(np.clip(values >> shift, 0, 255).astype(np.uint8))
