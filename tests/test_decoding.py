"""Encoded pictures as pixels: what a picture says of itself is heeded, and what may be anybody's bytes is bounded."""

import io
import math
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from nas.disk import decoding
from nas.disk.decoding import UnreadablePicture, decode


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def levels(picture, size):
    """What is decoded, as (size, size, 3) levels of 255."""
    return ((decode(picture, size) + 1) * 127.5).round().permute(1, 2, 0).numpy().astype(int)


def noise(*shape, seed=0, kind=np.uint8):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(kind)


# --- the middle square -----------------------------------------------------------------------------------------------


def test_pixels_of_the_right_size_are_kept():
    pixels = noise(8, 8, 3)
    assert levels(encoded(Image.fromarray(pixels)), 8).tolist() == pixels.tolist()


def test_the_middle_is_cropped():
    wide = Image.new("RGB", (48, 16), "black")
    wide.paste("white", (16, 0, 32, 16))
    assert torch.equal(decode(encoded(wide), 16), torch.ones(3, 16, 16))
    assert torch.equal(decode(encoded(wide.rotate(90, expand=True)), 16), torch.ones(3, 16, 16))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([8, 9, 16, 40]))
def test_cropping_first_is_resizing_the_whole_picture_first(wide, high, size):
    few = noise(-(-high // 8) + 1, -(-wide // 8) + 1, 3) // 2 + 64  # nothing is clipped between two passes
    blurred = Image.fromarray(few).resize((wide, high), Image.Resampling.BICUBIC)
    scale = size / min(wide, high)
    shape = max(size, round(wide * scale)), max(size, round(high * scale))
    whole = blurred if scale == 1 else blurred.resize(shape, Image.Resampling.BICUBIC)
    left, top = (shape[0] - size) // 2, (shape[1] - size) // 2
    expected = np.asarray(whole.crop((left, top, left + size, top + size))).astype(int)
    assert (
        np.abs(levels(encoded(blurred), size) - expected).max() <= 2
    )  # of 255: the order of the two passes may differ


@pytest.mark.parametrize("shape", [(1, 100_000), (100_000, 1), (2, 60_001)], ids=str)
def test_a_sliver_costs_what_its_middle_does(shape, monkeypatch):
    picture = Image.new("RGB", shape, "black")
    long = shape.index(max(shape))
    middle = [0, 0]
    middle[long] = shape[long] // 2 - 10
    picture.paste((200, 100, 50), (*middle, *(m + 20 for m in middle)))
    resized = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda image, *rest: resized.append(image.size) or resize(image, *rest))
    assert (levels(encoded(picture), 16) == [200, 100, 50]).all()
    assert max(resized[0]) <= 20


# --- what a picture says of itself -----------------------------------------------------------------------------------

TURNED = {  # how a scanner or camera that gives this orientation held the picture
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}


def with_orientation(pixels, orientation, kind, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(np.ascontiguousarray(pixels)), kind, exif=exif.tobytes(), **options)


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_picture_stands_upright(kind, orientation):
    upright = noise(9, 6, 3)
    turned = with_orientation(TURNED[orientation](upright), orientation, kind, **LOSSLESS[kind])
    assert np.array_equal(levels(turned, 6), levels(encoded(Image.fromarray(upright)), 6))


@pytest.mark.parametrize("orientation", TURNED)
def test_a_photograph_stands_upright(orientation):
    quarters = np.zeros((32, 32, 3), np.uint8)
    quarters[:16, 16:], quarters[16:, :16], quarters[16:, 16:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    turned = with_orientation(TURNED[orientation](quarters), orientation, "JPEG", quality=95, subsampling=0)
    assert np.abs(levels(turned, 32) - quarters).max() < 40


def test_an_orientation_may_stand_in_xmp_and_a_damaged_one_says_nothing():
    upright = noise(6, 6, 3)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6"/></x:xmpmeta>'
    turned = Image.fromarray(np.ascontiguousarray(TURNED[6](upright)))
    assert np.array_equal(levels(encoded(turned, "WEBP", lossless=True, xmp=xmp), 6), upright)
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x09\0"):
        assert np.array_equal(levels(encoded(Image.fromarray(upright), exif=exif), 6), upright)


def png(depth, colour, rows, transparent, shape=(8, 8)):
    """A PNG written by hand: rows of bytes, and its tRNS chunk."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", *shape, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", head), (b"tRNS", transparent), (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def packed(values, depth):
    return int("".join(f"{value:0{depth}b}" for value in values), 2).to_bytes(len(values) * depth // 8, "big")


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_level_of_grey_becomes_white(depth):
    most = 2**depth - 1
    row = [0, most, 0, most, most // 3, most // 2, 0, most]
    for key in sorted({0, most // 3}):
        picture = png(depth, 0, [packed(row, depth)] * 8, struct.pack(">H", key))
        expected = [255 if value == key else round(255 * value / most) for value in row]
        assert levels(picture, 8)[3, :, 1].tolist() == expected


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_becomes_white(depth):
    unit = 2 ** (depth - 8) + (depth == 16)  # 1 or 257
    colours = [(10, 20, 30), (10, 20, 31), (0, 0, 0), (255, 255, 255)] * 2
    row = b"".join(int(unit * level).to_bytes(depth // 8, "big") for colour in colours for level in colour)
    picture = png(depth, 2, [row] * 8, struct.pack(">3H", *(unit * level for level in (10, 20, 30))))
    expected = [(255, 255, 255) if colour == (10, 20, 30) else colour for colour in colours]
    assert list(map(tuple, levels(picture, 8)[0].tolist())) == expected


def half_clear(mode):
    """The left half black and transparent, the right half black, in a mode that can say so."""
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:, 4:] = 255
    image = Image.new("RGBA", (8, 8))
    image.putalpha(Image.fromarray(alpha))
    if mode == "P":
        indices = Image.fromarray((alpha // 255).astype(np.uint8), "L")
        indices.putpalette([0, 0, 0, 0, 0, 0])
        return encoded(indices, transparency=0)
    if mode in ("LA", "RGBA"):
        return encoded(image.convert(mode))
    kind, options = {"GIF": ("GIF", {}), "WEBP": ("WEBP", {"lossless": True}), "TIFF": ("TIFF", {})}[mode]
    return encoded(image, kind, **options)


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "GIF", "WEBP", "TIFF"])
def test_what_is_transparent_becomes_white(mode):
    found = levels(half_clear(mode), 8)
    assert (found[:, :4] == 255).all() and (found[:, 4:] == 0).all()


def test_half_transparent_is_half_white():
    assert levels(encoded(Image.new("RGBA", (8, 8), (0, 100, 200, 128))), 8)[0, 0].tolist() == [127, 177, 227]


# --- grey of many bits -----------------------------------------------------------------------------------------------


def tiff(values, bits, form, white_is_zero=False):
    """A TIFF of one strip written by hand: `form` is 1 for unsigned, 2 for signed, 3 for floating point."""
    body = values.tobytes()
    tags = [
        (256, values.shape[1]), (257, values.shape[0]), (258, bits), (259, 1), (262, int(not white_is_zero)),
        (273, 8 + 2 + 10 * 12 + 4), (277, 1), (278, values.shape[0]), (279, len(body)), (339, form),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + body


def grey(kind, *values):
    return np.resize(values, (8, 8)).astype(kind)


GREYS = {
    "16 bits in PNG": (encoded(Image.fromarray(grey("<u2", 0, 1000, 32_896, 65_535))), [0, 4, 128, 255]),
    "16 bits in TIFF": (tiff(grey("<u2", 0, 1000, 32_896, 65_535), 16, 1), [0, 4, 128, 255]),
    "16 bits in TIFF, the other end first": (
        encoded(Image.frombytes("I;16B", (8, 8), grey(">u2", 0, 1000, 32_896, 65_535).tobytes()), "TIFF"),
        [0, 4, 128, 255],
    ),
    "white is 0": (tiff(grey("<u2", 65_535, 64_535, 32_639, 0), 16, 1, white_is_zero=True), [0, 4, 128, 255]),
    "32 bits, 16 of them used": (tiff(grey("<i4", 0, 1000, 32_896, 65_535), 32, 2), [0, 4, 128, 255]),
    "32 bits, 8 of them used": (tiff(grey("<i4", 0, 4, 128, 255), 32, 2), [0, 4, 128, 255]),
    "32 bits": (tiff(grey("<u4", 0, 2**32 // 64, 2**31, 2**32 - 1), 32, 1), [0, 4, 128, 255]),
    "floats of 65535": (tiff(grey("<f4", 0, 1000, 32_896, 65_535), 32, 3), [0, 4, 128, 255]),
    "floats of 255": (tiff(grey("<f4", -3, 4.2, 127.8, 255), 32, 3), [0, 4, 128, 255]),
    "floats of 1": (tiff(grey("<f4", -0.1, 4 / 255, 0.5, 1), 32, 3), [0, 4, 128, 255]),
}


@pytest.mark.parametrize("what", GREYS)
def test_grey_of_many_bits_keeps_its_levels(what):
    picture, expected = GREYS[what]
    assert levels(picture, 8)[0, :4, 2].tolist() == expected


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e9])
def test_grey_whose_white_nobody_knows_is_refused(value):
    with pytest.raises(UnreadablePicture, match="grey"):
        decode(tiff(grey("<f4", 0, value), 32, 3), 8)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("BMP", "1"), ("BMP", "L"), ("BMP", "P"), ("BMP", "RGB"), ("BMP", "RGBA"),
     ("GIF", "L"), ("GIF", "P"), ("WEBP", "RGB"), ("PNG", "1"), ("PNG", "L"), ("PNG", "P"), ("TIFF", "1"), ("TIFF", "L"),
     ("TIFF", "P"), ("TIFF", "CMYK"), ("TIFF", "YCbCr"), ("TIFF", "LAB")],
)  # fmt: skip
def test_every_format_and_mode_keeps_its_colour(kind, mode):
    colour = (255, 255, 255) if mode in ("1", "L") else (210, 60, 40)
    source = Image.new("RGB", (16, 16), colour)
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        source = ImageCms.profileToProfile(source, *profiles, outputMode="LAB")
    elif mode == "P":
        source = source.quantize(4)
    elif mode != "RGB":
        source = source.convert(mode)
    assert np.abs(levels(encoded(source, kind), 16) - colour).max() <= 6


# --- what is refused -------------------------------------------------------------------------------------------------

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%BeginProlog\n%%EndProlog\nshowpage\n%%EOF\n"


def test_a_format_that_starts_a_program_is_refused(tmp_path, monkeypatch):
    """A program stands in for Ghostscript: Pillow starts it for an EPS whatever the file is called, decode does not."""
    started = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!{sys.executable}\nopen({str(started)!r}, 'w').close()\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises(UnreadablePicture, match="expected PNG, JPEG, WebP, GIF, BMP or TIFF"):
        decode(EPS, 8)
    assert not started.exists()
    with pytest.raises((OSError, subprocess.CalledProcessError)):  # it draws nothing
        Image.open(io.BytesIO(EPS)).load()
    assert started.exists()


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "PCX", "SGI", "JPEG2000", "ICNS", "DDS"])
def test_other_formats_are_refused(kind):
    with pytest.raises(UnreadablePicture, match="expected PNG, JPEG, WebP, GIF, BMP or TIFF"):
        decode(encoded(Image.new("RGB", (16, 16)), kind), 8)


def test_the_area_is_bounded(monkeypatch):
    monkeypatch.setattr(decoding, "PIXELS", 100)
    assert decode(encoded(Image.new("RGB", (10, 10))), 8).shape == (3, 8, 8)
    with pytest.raises(UnreadablePicture, match="101 x 1 pixels; at most 100 are read"):
        decode(encoded(Image.new("RGB", (101, 1))), 8)


@pytest.mark.parametrize("side", [9_000, 20_000])
def test_a_picture_that_claims_a_large_area_is_not_decoded(side, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(UnreadablePicture, match="pixels"):
        decode(png(1, 0, [b"\0"], b"\0\0", shape=(side, side)), 8)


def test_a_progressive_picture_of_endless_scans_is_refused():
    picture = encoded(Image.new("L", (16, 16), 90), "JPEG", progressive=True)
    last, end = picture.rindex(b"\xff\xda"), picture.rindex(b"\xff\xd9")
    assert (levels(picture, 16) == 90).all()
    with pytest.raises(UnreadablePicture, match="scans; at most 100"):
        decode(picture[:end] + picture[last:end] * 100 + picture[end:], 16)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_pictures_are_decoded_or_refused(data):
    """Whatever Pillow makes of them, it is one exception with one line."""
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]))
    picture = bytearray(encoded(Image.fromarray(noise(5, 6, 3)), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        picture[data.draw(st.integers(0, len(picture) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode(bytes(picture[: data.draw(st.integers(1, len(picture)))]), 8)
    except UnreadablePicture as error:
        assert "\n" not in str(error)
    else:
        assert found.shape == (3, 8, 8) and found.abs().max() <= 1
