"""Encoded pictures as pixels. The bytes may be anybody's: six formats are opened, told by their content, up to a bounded area.

What a picture says of itself is heeded: which side is up (EXIF), what is transparent, how many bits its grey has.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from nas.errors import brief

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
PIXELS = 2**26  # of one picture: 8192 x 8192, 256 MiB in memory
SCANS = 100  # of a progressive JPEG; encoders make some ten
REACH = 2  # px that a bicubic kernel reads on either side of where it is, times the factor a picture shrinks by
DEEP = ("I;16", "I;16B", "I", "F")  # Pillow's modes of grey with more than 8 bits
WHITES = {"I": (255, 65_535, 2**32 - 1), "F": (1, 255, 65_535)}  # what white may be where the file does not say
UPRIGHT = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Box = tuple[float, float, float, float]  # left, top, right, bottom in px


class UnreadablePicture(ValueError):
    """Bytes that are no picture, or not one to be read. Its text says why, on one line."""


def decode(encoded: bytes, size: int) -> Tensor:
    """The middle square of an encoded picture as (3, size, size) float32 in [-1, 1]. Raises UnreadablePicture.

    The picture stands as its EXIF orientation says; what is transparent becomes white.
    """
    try:
        whole = _opened(encoded)
        image, box = _middle(_upright(whole), size)
        image = _over_white(_grey(image, getattr(whole, "tag_v2", {})) if image.mode in DEEP else image)
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BICUBIC, box)
    except UnreadablePicture:
        raise
    except UnidentifiedImageError:
        raise UnreadablePicture("expected PNG, JPEG, WebP, GIF, BMP or TIFF") from None
    except Exception as error:  # Pillow raises whatever damaged bytes lead it to
        raise UnreadablePicture(brief(error)) from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def shorter_side(encoded: bytes) -> int:
    """Pixels of an encoded picture's shorter side. Raises UnreadablePicture."""
    try:
        return min(_opened(encoded).size)
    except UnreadablePicture:
        raise
    except Exception as error:
        raise UnreadablePicture(brief(error)) from error


def _opened(encoded: bytes) -> Image.Image:
    """The picture in memory."""
    if encoded.startswith(b"\xff\xd8") and (scans := encoded.count(b"\xff\xda")) > SCANS:
        raise UnreadablePicture(f"a JPEG of {scans:,} scans; at most {SCANS} are read")
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        if not 0 < math.prod(image.size) <= PIXELS:
            wide, high = image.size
            raise UnreadablePicture(f"{wide:,} x {high:,} pixels; at most {PIXELS:,} are read")
        layout = image.tile[0].args if image.tile else None
        image.load()
        if "transparency" in image.info:
            image.info["transparency"] = _as_pixels(image.info["transparency"], layout)
        return image


def _as_pixels(colour: int | bytes | tuple[int, ...], layout: object) -> int | bytes | tuple[int, ...]:
    """The transparent colour of a PNG, which Pillow gives in the file's bits, as the 8 bits it gives pixels in."""
    if isinstance(colour, tuple):
        return tuple(level >> 8 for level in colour) if layout == "RGB;16B" else colour
    steps = {"L;2": 85, "L;4": 17}  # of a grey with 2 or 4 bits
    return colour * steps[layout] if layout in steps and isinstance(colour, int) else colour


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF or XMP orientation says. One that is damaged says nothing."""
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return image
    return image if turn is None else image.transpose(turn)


def _grey(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Grey of 12, 16 or 32 bits as 8 bits, with an alpha channel if one level of it is transparent. `tags` are a TIFF's."""
    levels, key = np.asarray(image), image.info.get("transparency")
    transparent = None if key is None else levels == key
    if image.mode == "I" and tags.get(ExifTags.Base.SampleFormat, (1,)) == (1,):  # unsigned
        levels = levels.view(np.uint32)
    highest = levels.max()
    if not np.isfinite(levels).all():
        raise UnreadablePicture("grey that is not finite")
    bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
    white = next((white for white in WHITES.get(image.mode, (2**bits - 1,)) if highest <= white), None)
    if white is None:
        raise UnreadablePicture(f"grey up to {highest:g}; expected at most {WHITES['F'][-1]:,}")
    grey = np.rint(levels.astype(np.float32).clip(0) * np.float32(255 / white)).astype(np.uint8)
    made = Image.fromarray(
        255 - grey if tags.get(ExifTags.Base.PhotometricInterpretation) == 0 else grey
    )  # 0: white is 0
    if transparent is not None:
        made.putalpha(Image.fromarray(~transparent))
    return made


def _middle(image: Image.Image, size: int) -> tuple[Image.Image, Box]:
    """What a picture's middle square is resized from, cut out of it first, and where in that the square is."""
    (left, right, x), (top, bottom, y) = (_span(side, min(image.size), size) for side in image.size)
    cut = (left, top, right, bottom)
    return image if cut == (0, 0, *image.size) else image.crop(cut), (x[0], y[0], x[1], y[1])


def _span(side: int, shorter: int, size: int) -> tuple[int, int, tuple[float, float]]:
    """One side of the middle square: the first pixel to read, the one after the last, and where the square is between them.

    The square is `size` whole pixels of the picture resized to `size` on its shorter side.
    """
    if shorter == size:
        first = (side - size) // 2
        return first, first + size, (0, size)
    resized = max(size, round(side * size / shorter))
    first = (resized - size) // 2
    begin, end = first * side / resized, (first + size) * side / resized
    reach = REACH * max(1, side / resized) + 1
    left, right = max(0, math.floor(begin - reach)), min(side, math.ceil(end + reach))
    return left, right, (begin - left, end - left)


def _over_white(image: Image.Image) -> Image.Image:
    """The picture as RGB, what is transparent white."""
    if image.mode == "La":  # the only way from it
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")
