"""Pictures that anybody may have made, as 8-bit RGB."""

import functools
import io
from typing import IO, cast

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""No others are decoded: Pillow hands EPS, for one, to Ghostscript."""
MOST_PICTURE = 2**28
"""Bytes of a file."""
MOST_ASPECT = 100
"""Long by short side. Models resize the short side to hundreds of pixels, and the long one with it."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation."""


def open_picture(file: io.BufferedIOBase) -> Image.Image:
    """Decodes a picture to 8-bit RGB: turned upright as its EXIF says, 16 bits scaled to 8, transparency on white."""
    try:
        with Image.open(cast("IO[bytes]", file), formats=_formats()) as picture:
            _check_size(picture)
            sixteen = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in {"PNG", "PPM"})
            return (_scaled if sixteen else _opaque)(_upright(picture))
    except (MemoryError, ValueError):
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"none of {', '.join(_formats())}") from error
    except Exception as error:  # on broken files, Pillow raises nearly anything
        raise ValueError(f"{type(error).__name__}: {error}") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_size(picture: Image.Image) -> None:
    width, height = picture.size
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height > most:
        raise ValueError(f"{width} x {height} pixels are more than {most} (PIL.Image.MAX_IMAGE_PIXELS)")
    if max(width, height) > MOST_ASPECT * min(width, height):
        raise ValueError(f"{width} x {height} pixels: one side is more than {MOST_ASPECT} times the other")


def _upright(picture: Image.Image) -> Image.Image:
    picture.load()  # Pillow turns TIFFs itself as it loads them
    try:
        turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001  (a broken EXIF says nothing, and Pillow raises nearly anything)
        return picture
    return picture if turn is None else picture.transpose(turn)


def _scaled(picture: Image.Image) -> Image.Image:
    """Returns 16 bits of grey as 8-bit RGB, with the transparent level white."""
    values = np.asarray(picture).astype(np.uint32)
    eight = ((values + 128) // 257).astype(np.uint8)
    if (clear := picture.info.get("transparency")) is not None:
        eight[values == clear] = 255
    return Image.fromarray(eight).convert("RGB")


def _opaque(picture: Image.Image) -> Image.Image:
    """Returns 8-bit RGB, with what is transparent on white."""
    if picture.mode in {"I", "F"}:
        raise ValueError(f"32 bits per channel (mode {picture.mode}) have no known scale; save it with 8 or 16")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    found = picture.convert("RGBA")
    white = Image.new("RGBA", found.size, "white")
    white.alpha_composite(found)
    return white.convert("RGB")
