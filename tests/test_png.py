"""PNG of 16 bits: another reader than ours finds every sample, and all that a PNG of 8 bits would say."""

import io
import struct
import zlib

import numpy as np
import png as pypng
import pytest
from PIL import Image, ImageCms

from aiocodec import image as images
from aiocodec.image import Picture, losses, read, write
from aiocodec.png import compose

RNG = np.random.default_rng(6)
SIZE = HEIGHT, WIDTH = 13, 21
WIDE = RNG.integers(0, 65536, (*SIZE, 3), dtype=np.uint16)
ALPHA = RNG.integers(0, 256, SIZE, dtype=np.uint8)
LEVELS = RNG.integers(0, 65536, SIZE, dtype=np.uint16)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b"<x:xmpmeta/>"


def three(levels):
    return np.stack([levels] * 3, axis=2)


def samples(data):
    """What pypng finds in a PNG: [H, W, channels]."""
    width, height, rows, info = pypng.Reader(bytes=data).read()
    assert info["bitdepth"] == 16
    return np.array([list(row) for row in rows]).reshape(height, width, info["planes"])


def chunk_names(data):
    at, names = 8, []
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        names.append(data[at + 4 : at + 8])
        assert (
            zlib.crc32(data[at + 4 : at + 8 + length])
            == struct.unpack_from(">I", data, at + 8 + length)[0]
        )
        at += 12 + length
    return names


@pytest.mark.parametrize("alpha", [None, ALPHA], ids=["opaque", "alpha"])
@pytest.mark.parametrize("gray", [False, True])
def test_every_sample_is_there(alpha, gray):
    picture = Picture(three(LEVELS) if gray else WIDE, alpha, gray)
    found = samples(write(picture))
    colour = LEVELS[..., None] if gray else WIDE
    assert np.array_equal(found[..., : colour.shape[2]], colour)
    assert found.shape[2] == colour.shape[2] + (alpha is not None)
    if alpha is not None:
        assert np.array_equal(found[..., -1], alpha.astype(int) * 257)
    assert losses(picture, "PNG") == []


def test_gray_is_the_rounded_mean():
    found = samples(write(Picture(WIDE, gray=True)))
    assert np.array_equal(found[..., 0], np.round(WIDE.astype(float).mean(axis=2)))


def test_pillow_reads_gray_in_16_bits_and_colour_in_8():
    with Image.open(io.BytesIO(write(Picture(three(LEVELS), gray=True)))) as image:
        assert np.array_equal(np.asarray(image), LEVELS)
    back = read(write(Picture(WIDE, ALPHA)))
    assert np.array_equal(back.rgb, WIDE >> 8)
    assert np.array_equal(back.alpha, ALPHA)
    assert back.sixteen_bit


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 300), (300, 1), (64, 64)], ids=lambda shape: f"{shape[0]}x{shape[1]}"
)
def test_strips_join_without_a_seam(shape, monkeypatch):
    y, x = np.mgrid[: shape[0], : shape[1]]
    smooth = np.stack([x * 900 + y, y * 800 + x, (x + y) * 400], 2).astype(np.uint16)
    whole = write(Picture(smooth))
    monkeypatch.setattr(images, "_WIDE_STRIP", 3 * shape[1])
    parts = write(Picture(smooth))
    assert np.array_equal(samples(whole), smooth)
    assert np.array_equal(samples(parts), smooth)


def test_every_filter_is_used_and_undone():
    """Rows that are best guessed in each of the five ways."""
    rng = np.random.default_rng(1)
    rows = [np.where(np.arange(900).reshape(1, 300, 3) % 12, 0, 50)]
    rows.append(np.cumsum(rng.integers(0, 1000, (1, 300, 3)), axis=1))
    rows.append(rows[-1] + 1)
    rows += [np.cumsum(rng.integers(0, 9000, (1, 300, 3)), axis=1) % 65536, rows[0] * 3]
    for _ in range(6):
        rows.append((rows[-1] + np.roll(rows[-1], 1, 1)) // 2 + rng.integers(0, 9, (1, 300, 3)))
    x, y = np.arange(300)[None, :, None], np.arange(20)[:, None, None]
    rows.append(np.broadcast_to(x * 211 + y * 533, (20, 300, 3)))
    pixels = (np.vstack(rows) % 65536).astype(np.uint16)
    data = write(Picture(pixels))
    assert np.array_equal(samples(data), pixels)
    at = data.index(b"IDAT")
    (length,) = struct.unpack_from(">I", data, at - 4)
    lines = zlib.decompress(data[at + 4 : at + 4 + length])
    assert {lines[i] for i in range(0, len(lines), 1 + 6 * 300)} == {0, 1, 2, 3, 4}


def test_filters_are_worth_it():
    y, x = np.mgrid[:200, :300]
    smooth = np.stack([x * 200 + y, y * 300 + x, (x + y) * 100], 2).astype(np.uint16)
    assert len(write(Picture(smooth))) < len(zlib.compress(smooth.tobytes())) / 4


@pytest.mark.parametrize("gray", [False, True])
def test_metadata_is_that_of_a_png_of_8_bits(gray):
    tags = Image.Exif()
    tags[0x010F] = "Camera"
    about = {
        "gray": gray,
        "icc": PROFILE[:16] + b"GRAY" + PROFILE[20:] if gray else PROFILE,
        "exif": tags.tobytes()[6:],
        "xmp": XMP,
        "density": (11811, 5906),
        "comment": "\u00e9t\u00e9".encode(),
    }
    pixels = three(LEVELS) if gray else WIDE
    wide, narrow = (
        write(Picture(rgb, **about)) for rgb in (pixels, (pixels >> 8).astype(np.uint8))
    )
    found = read(wide)
    assert {name: getattr(found, name) for name in about} == about
    assert chunk_names(wide) == chunk_names(narrow)


def test_chunks_after_the_pixels_stay_there():
    like = Image.new("L", (1, 1))
    out = io.BytesIO()
    text = images.PngImagePlugin.PngInfo()
    text.add(b"teSt", b"before")
    text.add(b"teSt", b"after", after_idat=True)
    like.save(out, "PNG", pnginfo=text)
    data = compose(out.getvalue(), (2, 1), [np.array([[[1], [2]]], np.uint16)], 4)
    assert chunk_names(data) == [b"IHDR", b"teSt", b"IDAT", b"teSt", b"IEND"]
    assert samples(data).ravel().tolist() == [1, 2]


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "TIFF", "BMP", "PPM"])
def test_other_formats_have_8_bits_rounded(format):
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    picture = Picture(three(every), gray=True)
    assert losses(picture, format) == ["samples of more than 8 bits are reduced to 8 bits"]
    narrow = Picture(three(np.round(every / 257).astype(np.uint8)), gray=True)
    assert write(picture, format) == write(narrow, format)
    assert losses(narrow, format) == []


def test_the_same_picture_gives_the_same_bytes():
    assert write(Picture(WIDE, ALPHA)) == write(Picture(WIDE.copy(), ALPHA.copy()))
