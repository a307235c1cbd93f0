"""Reading any picture that people have as 8-bit RGB."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from lora_trainer.errors import InputError

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jfif"}
MAX_PIXELS = 100_000_000
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
    with _open(path) as image:
        tags = getattr(image, "tag_v2", {})  # a TIFF's own width and height; newer Pillow has turned the size
        width, height = tags.get(256, image.width), tags.get(257, image.height)
        turned = _orientation(image) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def read_picture(path: Path) -> Image.Image:
    """The picture as RGB: turned as EXIF says, first frame, transparency on white.

    Raises:
        PictureError: not a picture, truncated, or absurdly large.
    """
    with _open(path) as image:
        turn = None if image.format == "TIFF" else _TURNS.get(_orientation(image))  # Pillow turns a TIFF itself
        try:
            image.load()
            return to_rgb(image if turn is None else image.transpose(turn))
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


def _open(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except _DAMAGED as error:
        reason = "no picture format that is known here" if isinstance(error, UnidentifiedImageError) else error
        raise PictureError("{path} is not a readable picture: {error}.", path=path, error=reason) from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise _too_large(path)
    return image


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
    """Any mode as RGB; 16 bits are scaled down, transparency is laid on white."""
    if image.mode in _SIXTEEN_BIT:
        image = _from_sixteen_bit(image)
    if image.mode == "F":
        image = Image.fromarray(np.clip(np.asarray(image) * 255, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _from_sixteen_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    shift = 8 if values.size and values.max() > 255 else 0
    return Image.fromarray(np.clip(values >> shift, 0, 255).astype(np.uint8))
