"""image.py: every kind of file gives the expected pixels, metadata survives, bad input says so."""

import io
import random
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, features

from aiocodec import image as images
from aiocodec.errors import AicError, BitstreamError, ImageError, LimitError, OutputError
from aiocodec.image import (
    MAX_EXIF,
    MAX_ICC,
    Picture,
    format_of,
    kind,
    losses,
    pack_alpha,
    read,
    unpack_alpha,
    write,
)

HEIGHT, WIDTH = 9, 11
RNG = np.random.default_rng(1)
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
LEVELS = RNG.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
SMOOTH = np.stack([np.add.outer(np.arange(24) * k, np.arange(32) * 3) for k in (1, 4, 6)], 2)
SMOOTH = SMOOTH.astype(np.uint8)

HAS_AVIF = "avif" in features.get_supported()
FORMATS = ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM"] + ["AVIF"] * HAS_AVIF
SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="1">\xc3\xa9</a></x:xmpmeta>'


def encoded(image: Image.Image | np.ndarray, format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(
        out, format, **options
    )
    return out.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG by hand: `rows` are unfiltered samples, `chunks` are type and payload."""

    def chunk(body: bytes) -> bytes:
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

    stride = len(rows) // height if rows else 0
    lines = b"".join(b"\0" + rows[i : i + stride] for i in range(0, len(rows), stride or 1))
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [header, *chunks, b"IDAT" + zlib.compress(lines), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, parts))


def tiff(
    width: int, height: int, bits: list[int], photometric: int, samples: bytes, extra: int | None
) -> bytes:
    """An uncompressed little-endian TIFF by hand."""
    tags = 10 + (extra is not None)
    bits_at = 8 + 2 + 12 * tags + 4
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, len(bits), bits_at if len(bits) > 2 else bits[0] + (bits[-1] << 16)),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, bits_at + 2 * len(bits)),
        (277, 3, 1, len(bits)),
        (278, 4, 1, height),
        (279, 4, 1, len(samples)),
        (284, 3, 1, 1),
    ]
    if extra is not None:
        entries.append((338, 3, 1, extra))
    head = b"II*\0" + struct.pack("<IH", 8, tags)
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return head + body + struct.pack(f"<{len(bits)}H", *bits) + samples


def exif_block(orientation: int | None = None, order: str = "<") -> bytes:
    """A TIFF block with a camera, an orientation and an exposure time, and bytes nobody knows."""
    tags = Image.Exif()
    tags.endian = order
    tags[0x010F] = "Camera"
    if orientation is not None:
        tags[0x0112] = orientation
    tags[0x8769] = {0x829A: 0.5, 0x927C: b"secret maker note"}
    return tags.tobytes()[6:]


def gray_profile() -> bytes:
    """Enough of an ICC profile for one to tell that it is one of gray values."""
    return SRGB_PROFILE[:16] + b"GRAY" + SRGB_PROFILE[20:]


def cmyk_profile() -> bytes:
    """An ICC profile in which ink does not matter: L* is 100 without black, 50 with."""
    corners = bytes(
        value
        for corner in range(16)
        for value in ((128 if corner & 1 else 255), 128, 128)  # K is the last, fastest input
    )
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity
    lut += bytes(range(256)) * 4 + corners + bytes(range(256)) * 3
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    tags = [(b"A2B0", lut), (b"A2B1", lut), (b"wtpt", white)]
    table, body, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, payload in tags:
        payload += bytes(-len(payload) % 4)
        table += name + struct.pack(">II", at + len(body), len(payload))
        body += payload
    head = struct.pack(
        ">I4sI4s4s4s", at + len(body), b"test", 0x02400000, b"prtr", b"CMYK", b"Lab "
    )
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + body


def same(first: Picture, second: Picture) -> None:
    assert np.array_equal(first.rgb, second.rgb)
    assert (first.alpha is None) == (second.alpha is None)
    assert first.alpha is None or np.array_equal(first.alpha, second.alpha)
    assert (first.icc, first.exif, first.xmp) == (second.icc, second.exif, second.xmp)


def three(levels: np.ndarray) -> np.ndarray:
    return np.stack([levels] * 3, axis=2)


# --- modes


def expect(
    data: bytes,
    rgb: np.ndarray,
    alpha: np.ndarray | None = None,
    *,
    gray: bool = False,
    sixteen_bit: bool = False,
    tolerance: int = 0,
) -> Picture:
    picture = read(data)
    assert picture.rgb.dtype == np.uint8
    assert picture.rgb.flags.c_contiguous
    assert np.abs(picture.rgb.astype(int) - rgb).max() <= tolerance
    if alpha is None:
        assert picture.alpha is None
    else:
        assert picture.alpha is not None
        assert picture.alpha.dtype == np.uint8
        assert picture.alpha.flags.c_contiguous
        assert np.array_equal(picture.alpha, alpha)
    assert (picture.gray, picture.sixteen_bit) == (gray, sixteen_bit)
    assert not picture.oriented
    return picture


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "PPM"])
def test_bilevel_gray_and_rgb(format: str) -> None:
    bits = LEVELS > 127
    expect(encoded(Image.fromarray(bits), format), three(np.where(bits, 255, 0)), gray=True)
    expect(encoded(LEVELS, format), three(LEVELS), gray=True)
    expect(encoded(RGB, format), RGB)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_alpha_channels_keep_the_colours_under_them(format: str) -> None:
    alpha = np.where(np.arange(WIDTH) < 5, 0, ALPHA).astype(np.uint8)
    expect(encoded(np.dstack([LEVELS, alpha]), format), three(LEVELS), alpha, gray=True)
    expect(encoded(np.dstack([RGB, alpha]), format), RGB, alpha)


def test_opaque_alpha_is_no_alpha() -> None:
    expect(encoded(np.dstack([RGB, np.full_like(ALPHA, 255)])), RGB)


PREMULTIPLIED = np.array([[200, 64, 51, 0]], np.uint8)  # round(colour * alpha / 255)
DIVIDED = np.array([[200, 127, 255, 0]], np.uint8)
DIVISOR = np.array([[255, 128, 51, 0]], np.uint8)


def test_premultiplied_tiff() -> None:
    stored = np.dstack([PREMULTIPLIED] * 3 + [DIVISOR])
    data = tiff(4, 1, [8] * 4, 2, stored.tobytes(), 1)
    expect(data, three(DIVIDED), DIVISOR, tolerance=1)


def test_palettes() -> None:
    colours = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    opacity = RNG.integers(0, 256, 256, dtype=np.uint8)
    indexes = Image.fromarray(LEVELS).copy()
    indexes = Image.frombytes("P", indexes.size, indexes.tobytes())
    indexes.putpalette(colours.tobytes())
    for format in ("PNG", "TIFF", "BMP", "GIF"):
        expect(encoded(indexes, format), colours[LEVELS])
    key = int(LEVELS[3, 3])
    for format in ("PNG", "GIF"):
        alpha = np.where(key == LEVELS, 0, 255)
        expect(encoded(indexes, format, transparency=key), colours[LEVELS], alpha)
    data = encoded(indexes, "PNG", transparency=opacity.tobytes())
    expect(data, colours[LEVELS], opacity[LEVELS])
    both = Image.merge("LA", [Image.fromarray(LEVELS), Image.fromarray(ALPHA)])
    with_alpha = Image.new("PA", both.size)
    with_alpha.frombytes(both.tobytes())
    with_alpha.putpalette(colours.tobytes())
    expect(encoded(with_alpha, "TIFF"), colours[LEVELS], ALPHA)


def test_colour_keys() -> None:
    gray_key, rgb_key = int(LEVELS[2, 5]), tuple(map(int, RGB[4, 4]))
    data = encoded(LEVELS, transparency=gray_key)
    expect(data, three(LEVELS), np.where(gray_key == LEVELS, 0, 255), gray=True)
    data = encoded(RGB, transparency=rgb_key)
    expect(data, RGB, np.where((rgb_key == RGB).all(2), 0, 255))


def test_colour_keys_of_other_depths() -> None:
    for key in (0, 1):
        bits = png(4, 1, 1, 0, bytes([0b01010000]), b"tRNS" + bytes([0, key]))
        rgb = three(np.array([[0, 255, 0, 255]]))
        expect(bits, rgb, np.where(rgb[..., 0] == 255 * key, 0, 255), gray=True)
    two_bits = png(4, 1, 2, 0, bytes([0b00011011]), b"tRNS\0\2")
    expect(two_bits, three(np.array([[0, 85, 170, 255]])), [[255, 255, 0, 255]], gray=True)
    sixteen = png(2, 1, 16, 0, struct.pack(">2H", 256, 257), b"tRNS\1\1")
    expect(sixteen, three(np.array([[1, 1]])), [[255, 0]], gray=True, sixteen_bit=True)
    samples = struct.pack(">6H", 0x0A00, 0x0B00, 0x0C00, 0x1A00, 0x1B00, 0x1C00)
    colour = png(2, 1, 16, 2, samples, b"tRNS" + samples[:6])
    expect(colour, [[[10, 11, 12], [26, 27, 28]]], [[0, 255]], sixteen_bit=True)


SIXTEEN = np.array([[0, 1, 128, 129, 255 * 257 - 128, 255 * 257 - 129, 65535]], np.uint16)
SIXTEEN_SCALED = three(np.array([[0, 0, 0, 1, 255, 254, 255]], np.uint8))


def test_sixteen_bit_gray_is_scaled_with_rounding() -> None:
    assert np.array_equal(SIXTEEN_SCALED[0, :, 0], np.round(SIXTEEN[0].astype(float) / 257))
    little = Image.fromarray(SIXTEEN)
    assert little.mode == "I;16"
    big = Image.frombytes("I;16B", little.size, SIXTEEN.astype(">u2").tobytes())
    pgm = b"P5 7 1 65535\n" + SIXTEEN.astype(">u2").tobytes()
    for data in (encoded(little), encoded(little, "TIFF"), encoded(big, "TIFF"), pgm):
        expect(data, SIXTEEN_SCALED, gray=True, sixteen_bit=True)
    for value in (0, 1, 128, 255 * 257, 65535):
        level = (value * 255 + 32767) // 65535
        data = png(1, 1, 16, 0, struct.pack(">H", value))
        expect(data, np.full((1, 1, 3), level), gray=True, sixteen_bit=True)


def test_every_sixteen_bit_value() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = three(np.round(values / 257).astype(np.uint8))
    expect(encoded(values), expected, gray=True, sixteen_bit=True)


def test_other_wide_gray() -> None:
    plain = b"P2 3 1 1023\n0 512 1023\n"
    expect(plain, three(np.array([[0, 128, 255]])), gray=True, sixteen_bit=True)
    twelve = tiff(2, 1, [12], 1, bytes([0x80, 0x0F, 0xFF]), None)
    expect(twelve, three(np.array([[128, 255]])), gray=True, sixteen_bit=True)
    wide = np.array([[-5, 0, 32768, 65535, 1 << 20]], np.int32)
    expected = three(np.array([[0, 0, 128, 255, 255]]))
    expect(encoded(wide, "TIFF"), expected, gray=True, sixteen_bit=True)


def test_floating_point_gray() -> None:
    unit = np.array([[-1, 0, 0.25, 0.5, 1, np.nan]], np.float32)
    expected = three(np.array([[0, 0, 64, 128, 255, 0]]))
    expect(encoded(unit, "TIFF"), expected, gray=True, sixteen_bit=True)
    bytes_ = np.array([[-1, 0, 0.6, 127.4, 300, np.inf]], np.float32)
    expected = three(np.array([[0, 0, 1, 127, 255, 0]]))
    expect(encoded(bytes_, "TIFF"), expected, gray=True, sixteen_bit=True)


def test_sixteen_bit_colour_is_flagged() -> None:
    wide = RGB.astype(np.uint16) * 257
    shape = (WIDTH, HEIGHT)
    expect(png(*shape, 16, 2, wide.astype(">u2").tobytes()), RGB, sixteen_bit=True)
    expect(tiff(*shape, [16] * 3, 2, wide.tobytes(), None), RGB, sixteen_bit=True)
    ppm = b"P6 # a comment\n11 9\n65535\n" + wide.astype(">u2").tobytes()
    expect(ppm, RGB, sixteen_bit=True)
    with_alpha = np.dstack([wide, ALPHA.astype(np.uint16) * 257])
    expect(png(*shape, 16, 6, with_alpha.astype(">u2").tobytes()), RGB, ALPHA, sixteen_bit=True)
    expect(tiff(*shape, [16] * 4, 2, with_alpha.tobytes(), 2), RGB, ALPHA, sixteen_bit=True)
    gray = np.dstack([LEVELS, ALPHA]).astype(">u2") * 257
    data = png(*shape, 16, 4, gray.astype(">u2").tobytes())
    expect(data, three(LEVELS), ALPHA, gray=True, sixteen_bit=True)


def test_rgbx() -> None:
    data = tiff(WIDTH, HEIGHT, [8] * 4, 2, np.dstack([RGB, ALPHA]).tobytes(), 0)
    expect(data, RGB)


def test_lab() -> None:
    """Neutral L* of 0, 50 and 100 are sRGB 0, 119 and 255 (both whites are D50 in ICC terms)."""
    lab = np.zeros((1, 3, 3), np.uint8)
    lab[0, :, 0] = 0, 128, 255
    data = encoded(Image.frombytes("LAB", (3, 1), lab.tobytes()), "TIFF", icc_profile=SRGB_PROFILE)
    assert expect(data, three(np.array([[0, 119, 255]])), tolerance=1).icc is None


def test_modes_that_few_plugins_give() -> None:
    hsv = np.array([[[0, 255, 255], [85, 255, 255], [170, 255, 128], [7, 0, 99]]], np.uint8)
    from_hsv = [[[255, 0, 0], [0, 255, 0], [0, 0, 128], [99, 99, 99]]]
    ycbcr = np.array([[[150, 100, 170]]], np.uint8)
    y, cb, cr = 150, 100 - 128, 170 - 128  # the formula is JFIF's
    from_ycbcr = np.round([[[y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb]]])
    la = np.dstack([PREMULTIPLIED, DIVISOR])
    rgba = np.dstack([PREMULTIPLIED] * 3 + [DIVISOR])
    for mode, samples, wanted, alpha in [
        ("HSV", hsv, from_hsv, None),
        ("YCbCr", ycbcr, from_ycbcr, None),
        ("RGBX", np.dstack([RGB, ALPHA]), RGB, None),
        ("La", la, three(DIVIDED), DIVISOR),
        ("RGBa", rgba, three(DIVIDED), DIVISOR),
    ]:
        loaded = Image.frombytes(mode, samples.shape[1::-1], samples.tobytes())
        rgb, found = images._pixels(loaded, 8, None)
        assert np.abs(rgb - np.asarray(wanted, int)).max() <= 1, mode
        assert (found is None) if alpha is None else np.array_equal(found, alpha), mode


INKS = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 99, 200, 30], [0, 0, 0, 255]]], np.uint8)


def test_cmyk_without_profile() -> None:
    ink = INKS / 255.0
    rgb = np.round(255 * (1 - ink[..., :3]) * (1 - ink[..., 3:]))
    cmyk = Image.frombytes("CMYK", (4, 1), INKS.tobytes())
    expect(encoded(cmyk, "TIFF"), rgb, tolerance=1)
    broken = encoded(cmyk, "TIFF", icc_profile=b"no profile at all")
    assert expect(broken, rgb, tolerance=1).icc is None
    other = encoded(cmyk, "TIFF", icc_profile=SRGB_PROFILE)
    assert expect(other, rgb, tolerance=1).icc is None


def test_adobe_cmyk_jpeg_is_not_inverted() -> None:
    for ink in INKS[0]:
        flat = Image.new("CMYK", (16, 16), tuple(map(int, ink)))
        data = encoded(flat, "JPEG", quality=100)
        assert b"Adobe" in data
        rgb = np.round((255.0 - ink[:3]) * (255.0 - ink[3]) / 255)
        expect(data, rgb, tolerance=3)


def test_cmyk_goes_through_its_profile() -> None:
    """In this profile only black counts: L* 100 without, 128 / 2.55 = 50.2 with it."""
    cmyk = Image.frombytes("CMYK", (4, 1), INKS.tobytes())
    picture = read(encoded(cmyk, "TIFF", icc_profile=cmyk_profile()))
    assert picture.icc is None
    assert not picture.gray
    lightness = 100 - (100 - 128 / 2.55) * INKS[..., 3] / 255
    linear = ((lightness + 16) / 116) ** 3
    expected = np.round(255 * (1.055 * linear ** (1 / 2.4) - 0.055))
    assert np.abs(picture.rgb - three(expected)).max() <= 2
    plain = read(encoded(cmyk, "TIFF"))
    assert (plain.rgb[0, 1] == [0, 255, 255]).all()


def test_lossy_formats_are_close() -> None:
    expect(encoded(SMOOTH, "JPEG", quality=95, subsampling=0), SMOOTH, tolerance=8)
    expect(
        encoded(SMOOTH[..., 0], "JPEG", quality=95), three(SMOOTH[..., 0]), gray=True, tolerance=8
    )
    expect(encoded(SMOOTH, "WEBP", lossless=True), SMOOTH)


def test_first_frame_of_several() -> None:
    frames = [Image.fromarray(SMOOTH), Image.fromarray(SMOOTH[::-1].copy())]
    for format in ("TIFF", "PNG"):
        expect(encoded(frames[0], format, save_all=True, append_images=frames[1:]), SMOOTH)
    options = {"save_all": True, "append_images": frames[1:]}
    expect(encoded(frames[0], "WEBP", lossless=True, **options), SMOOTH)
    first, second = (Image.new("L", (4, 4), level) for level in (10, 200))
    data = encoded(first, "GIF", save_all=True, append_images=[second])
    assert (read(data).rgb == 10).all()


# --- what was lost


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def test_an_ordinary_picture_has_no_warnings() -> None:
    for format in FORMATS:
        assert read(write(FULL, format)).warnings == (), format


def test_further_frames_are_counted() -> None:
    frames = [Image.fromarray(np.roll(SMOOTH, 5 * i, 1)) for i in range(4)]
    formats = {"GIF": {}, "PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}, "MPO": {}}
    for format, options in {**formats, **({"AVIF": {}} if HAS_AVIF else {})}.items():
        for count, words in (
            (2, "1 further frame is left out"),
            (4, "3 further frames are left out"),
        ):
            more = {"save_all": True, "append_images": frames[1:count]}
            picture = read(encoded(frames[0], format, **options, **more))
            assert picture.warnings == (words,), format
        assert read(encoded(frames[0], format, **options)).warnings == (), format


def test_thumbnails_in_tiff_are_no_frames() -> None:
    data = bytearray(
        encoded(Image.fromarray(RGB), "TIFF", save_all=True, append_images=[Image.fromarray(RGB)])
    )
    assert read(bytes(data)).warnings == ("1 further frame is left out",)
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    (second,) = struct.unpack_from("<I", data, first + 2 + 12 * count)
    struct.pack_into("<HHII", data, second + 2, 254, 4, 1, 1)  # in place of the width
    assert read(bytes(data)).warnings == ()


def test_bits_are_said_to_be_lost() -> None:
    words = ("samples of more than 8 bits are reduced to 8 bits",)
    assert read(encoded(SIXTEEN)).warnings == words
    assert read(b"P3 1 1 1023 1 2 3").warnings == words
    assert read(encoded(np.ones((2, 2), np.float32), "TIFF")).warnings == words
    assert read(encoded(LEVELS.astype(np.uint16), "JPEG2000")).warnings == words


def test_conversions_are_said() -> None:
    cmyk = Image.frombytes("CMYK", (4, 1), INKS.tobytes())
    assert read(encoded(cmyk, "TIFF")).warnings == ("CMYK is converted to sRGB",)
    lab = Image.frombytes("LAB", (3, 1), bytes(9))
    assert read(encoded(lab, "TIFF")).warnings == ("LAB is converted to sRGB",)


def test_text_in_png_is_counted_and_dropped() -> None:
    """Not even a bomb of text costs more than the text: 1 GiB in zeros, many times."""
    deflate = zlib.compressobj(9)
    bomb = b"".join(deflate.compress(bytes(1 << 20)) for _ in range(128)) + deflate.flush()
    chunks = [b"tEXtTitle\0x", b"zTXtComment\0\0" + bomb, b"iTXtb\0\1\0\0\0" + bomb, b"tEXt"]
    assert len(bomb) > 1 << 16
    rows = RGB.tobytes()
    picture = expect(
        png(WIDTH, HEIGHT, 8, 2, rows, *chunks, b"iTXtXML:com.adobe.xmp\0\0\0\0\0" + XMP), RGB
    )
    assert picture.xmp == XMP
    assert picture.warnings == ("4 text chunks are left out",)


@pytest.mark.parametrize("format", FORMATS)
def test_a_large_profile_comes_back(format: str) -> None:
    if format in ("BMP", "PPM"):
        pytest.skip("no metadata")
    rng = np.random.default_rng(3)
    icc = SRGB_PROFILE + rng.bytes(2_000_000)
    picture = read(write(Picture(SMOOTH, icc=icc), format))
    assert picture.icc == icc
    assert picture.warnings == ()


def test_metadata_beyond_the_limits_costs_only_itself() -> None:
    words = "the {} is left out: it is damaged or larger than {} MiB"
    zeros = SRGB_PROFILE + bytes(MAX_ICC)
    data = png(WIDTH, HEIGHT, 8, 2, RGB.tobytes(), b"iCCPx\0\0" + zlib.compress(zeros))
    assert expect(data, RGB).warnings == (words.format("ICC profile", 16),)
    kept = zeros[:MAX_ICC]
    data = png(WIDTH, HEIGHT, 8, 2, RGB.tobytes(), b"iCCPx\0\0" + zlib.compress(kept))
    assert expect(data, RGB).icc == kept
    exif = exif_block(6) + bytes(MAX_EXIF)
    plain = encoded(SMOOTH, "JPEG")
    segments = b"".join(
        b"\xff\xe1"
        + struct.pack(">H", len(exif[i : i + 65000]) + 8)
        + b"Exif\0\0"
        + exif[i : i + 65000]
        for i in range(0, len(exif), 65000)
    )
    for data in (encoded(SMOOTH, exif=exif), plain[:2] + segments + plain[2:]):
        picture = read(data)
        assert picture.exif is None
        assert picture.warnings == (words.format("EXIF", 1),)


def test_damaged_metadata_costs_only_itself() -> None:
    rows = RGB.tobytes()
    good = png(
        WIDTH,
        HEIGHT,
        8,
        2,
        rows,
        b"iCCPx\0\0" + zlib.compress(SRGB_PROFILE),
        b"eXIf" + exif_block(6),
    )
    assert np.array_equal(read(good).rgb, TURNS[6](RGB))
    at = good.index(b"eXIf")
    for damaged, name in (
        (good.replace(b"iCCPx\0\0", b"iCCPx\0\1"), "ICC profile"),
        (good[: at + 20] + b"?" + good[at + 21 :], "EXIF"),
        (
            png(WIDTH, HEIGHT, 8, 2, rows, b"iCCPx\0\0" + zlib.compress(SRGB_PROFILE)[:-9]),
            "ICC profile",
        ),
        (png(WIDTH, HEIGHT, 8, 2, rows, b"iTXtXML:com.adobe.xmp\0\1\0\0\0junk"), "XMP"),
    ):
        picture = read(damaged)
        assert picture.rgb.size == RGB.size
        assert [words[: len(name) + 4] for words in picture.warnings] == [f"the {name}"]


def test_a_profile_of_other_channels_is_said() -> None:
    picture = read(encoded(RGB, icc_profile=gray_profile()))
    assert picture.warnings == ("the ICC profile is of other channels and left out",)


def test_extended_xmp_is_said() -> None:
    data = encoded(SMOOTH, "JPEG")
    body = b"http://ns.adobe.com/xmp/extension/\0" + bytes(40)
    data = data[:2] + (b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body) * 2 + data[2:]
    assert read(data).warnings == ("the extended XMP is left out",)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_ends_early_is_read_as_far_as_it_goes(progressive: bool) -> None:
    data = encoded(SMOOTH, "JPEG", progressive=progressive, quality=95)
    whole = read(data)
    scan = data.index(b"\xff\xda")
    after = scan + 2 + struct.unpack_from(">H", data, scan + 2)[0]
    closeness = []
    for length in range(after, len(data)):
        picture = read(data[:length])
        assert picture.warnings == ("the JPEG ends early: what is missing is gray or blurred",)
        closeness.append(-np.abs(picture.rgb.astype(int) - whole.rgb).mean())
        with pytest.raises(ImageError, match="truncated"):
            read(data[:length], strict=True)
    assert closeness[-1] == 0
    assert closeness[0] < closeness[len(closeness) // 2] < closeness[-1]
    for length in range(after):
        with pytest.raises(ImageError):
            read(data[:length])
    assert read(data, strict=True).warnings == ()


def test_png_chunks_count_only_before_the_pixels() -> None:
    data = png(WIDTH, HEIGHT, 8, 2, RGB.tobytes())
    late = data[:-12] + chunk(b"tRNS", struct.pack(">3H", *map(int, RGB[0, 0]))) + data[-12:]
    expect(late, RGB)


# --- formats


def test_only_the_formats_asked_for_are_tried() -> None:
    files = {format: encoded(SMOOTH, format) for format in ("PNG", "JPEG", "BMP", "WEBP", "TIFF")}
    for format, data in files.items():
        assert read(data, formats=[format.lower()]).rgb.shape == SMOOTH.shape
        others = [name for name in images.FORMATS if name not in (format, "MPO")]
        with pytest.raises(ImageError, match=f"the format {format} is not among those to read"):
            read(data, formats=others)
        with pytest.raises(ImageError):
            read(data, formats=[])
    assert read(files["JPEG"], formats=["mpo"]).rgb.shape == SMOOTH.shape


def test_unknown_formats_are_named() -> None:
    for name in ("EPS", "NOPE", "FITS", ""):
        with pytest.raises(ValueError, match="PNG JPEG .*TGA"):
            read(encoded(RGB), formats=["png", name])


def test_formats_that_run_programs_or_need_them_are_not_read() -> None:
    assert not set(images.FORMATS) & {
        "EPS",
        "PDF",
        "WMF",
        "EMF",
        "FPX",
        "MIC",
        "HDF5",
        "GRIB",
        "BUFR",
        "MPEG",
    }
    xbm = b"#define x_width 8\n#define x_height 1\nstatic char x_bits[] = {\n0x00\n};\n"
    with pytest.raises(ImageError, match="the format XBM is not among"):
        read(xbm)


@pytest.mark.parametrize(
    "format", sorted(set(images.FORMATS) - {"PSD", "ICNS", "HEIF", "JXL", "RAW"})
)
def test_every_format_is_read(format: str) -> None:
    if format == "AVIF" and not HAS_AVIF:
        pytest.skip("this Pillow has no AVIF")
    square = Image.fromarray(np.kron(SMOOTH[:8, :8], np.ones((4, 4, 1), np.uint8)))
    picture = read(encoded(square, format), formats=[format])
    assert picture.rgb.shape == (32, 32, 3)
    assert np.abs(picture.rgb.astype(int) - np.asarray(square)).mean() < 12


# --- kind


@pytest.mark.parametrize("format", [*FORMATS, "GIF", "ICO", "JPEG2000", "PCX", "DDS", "QOI"])
def test_kind_is_the_name_of_the_format(format: str) -> None:
    data = encoded(Image.fromarray(SMOOTH), format)
    assert kind(data) == kind(data[:16]) == kind(data[:4096]) == format


def test_kind_needs_no_intact_file() -> None:
    assert kind(b"\x89PNG\r\n\x1a\n") == "PNG"
    assert kind(b"\xff\xd8\xff\xe0garbage") == "JPEG"
    assert kind(b"%!PS-Adobe-3.0 EPSF-3.0") == "EPS"
    assert kind(b"8BPS") == "PSD"
    for head in (b"", b"\x89", b"P", b"\x8a", b"just some text", bytes(64), b"{}\n"):
        assert kind(head) is None, head


def test_kind_of_random_bytes_raises_nothing() -> None:
    rng = random.Random(5)
    for _ in range(2000):
        assert kind(rng.randbytes(rng.randrange(20))) in {None, "RAW", *images.FORMATS, *Image.ID}


# --- orientation and metadata

TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.swapaxes(np.rot90(a, 2), 0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_orientation_is_applied(format: str, orientation: int, order: str) -> None:
    exif = exif_block(orientation, order)
    rgba = np.dstack([RGB, ALPHA])
    tags = Image.Exif()
    tags.load(exif)
    lossless = {"lossless": True, "exact": True} if format == "WEBP" else {}
    data = encoded(rgba, format, exif=tags if format == "TIFF" else exif, **lossless)
    picture = read(data)
    assert np.array_equal(picture.rgb, TURNS[orientation](RGB))
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, TURNS[orientation](ALPHA))
    assert picture.rgb.flags.c_contiguous
    assert picture.alpha.flags.c_contiguous
    assert picture.oriented == (orientation != 1)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.dstack([picture.rgb, picture.alpha]), np.asarray(upright))
    assert picture.exif is not None
    if format != "TIFF":  # not a byte but the orientation differs
        assert picture.exif == exif_block(1, order)
    kept = Image.Exif()
    kept.load(picture.exif)
    assert kept[0x010F] == "Camera"
    assert kept.get(0x0112, 1) == 1
    assert kept.get_ifd(0x8769)[0x927C] == b"secret maker note"
    again = read(write(picture))
    assert not again.oriented
    same(again, picture)


@pytest.mark.parametrize("orientation", TURNS)
def test_orientation_in_jpeg(orientation: int) -> None:
    plain = read(encoded(SMOOTH, "JPEG"))
    picture = read(encoded(SMOOTH, "JPEG", exif=b"Exif\0\0" + exif_block(orientation)))
    assert np.array_equal(picture.rgb, TURNS[orientation](plain.rgb))
    assert picture.exif == exif_block(1)


@pytest.mark.skipif(not HAS_AVIF, reason="this Pillow has no AVIF")
def test_orientation_in_avif() -> None:
    plain = read(encoded(SMOOTH, "AVIF"))
    picture = read(encoded(SMOOTH, "AVIF", exif=exif_block(6)))
    assert np.array_equal(picture.rgb, TURNS[6](plain.rgb))
    assert picture.oriented
    assert not read(write(picture, "AVIF")).oriented


def test_orientation_in_xmp() -> None:
    """XMP counts where EXIF has no orientation, and does not turn the picture twice."""
    turned = XMP.replace(b'"1"', b'"6"')
    for exif in (b"", exif_block()):
        picture = read(encoded(RGB, "WEBP", lossless=True, xmp=turned, exif=exif))
        assert picture.oriented
        assert np.array_equal(picture.rgb, TURNS[6](RGB))
        assert picture.xmp == XMP
    picture = read(encoded(RGB, "WEBP", lossless=True, xmp=turned, exif=exif_block(1)))
    assert not picture.oriented
    assert np.array_equal(picture.rgb, RGB)
    tiff_data = write(Picture(RGB, xmp=turned), "TIFF")
    assert np.array_equal(read(tiff_data).rgb, TURNS[6](RGB))
    assert read(tiff_data).oriented


def test_odd_orientations_and_exif_do_no_harm() -> None:
    for exif in (exif_block(9), exif_block(0), exif_block(6)[:12], b"II*\0\xff\xff\xff\xff"):
        picture = read(encoded(RGB, exif=exif))
        assert np.array_equal(picture.rgb, RGB)
        assert picture.exif == exif
        assert not picture.oriented
    assert read(encoded(RGB, exif=b"garbage")).exif is None


FULL = Picture(rgb=SMOOTH, icc=SRGB_PROFILE, exif=exif_block(1), xmp=XMP)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "JPEG"])
def test_metadata_survives(format: str) -> None:
    first = read(write(FULL, format))
    assert (first.icc, first.exif, first.xmp) == (FULL.icc, FULL.exif, FULL.xmp)
    second = read(write(first, "PNG"))
    same(second, first)


@pytest.mark.parametrize("format", ["TIFF"] + ["AVIF"] * HAS_AVIF)
def test_metadata_survives_rewriting(format: str) -> None:
    picture = read(write(FULL, format))
    assert (picture.icc, picture.xmp) == (FULL.icc, FULL.xmp)
    assert picture.exif is not None
    tags = Image.Exif()
    tags.load(picture.exif)
    assert tags[0x010F] == "Camera"
    assert tags.get_ifd(0x8769)[0x927C] == b"secret maker note"
    assert read(write(picture, format)).exif == picture.exif


def test_tiff_layout_tags_stay_out_of_exif() -> None:
    assert read(encoded(RGB, "TIFF")).exif is None
    tags = Image.Exif()
    tags.update({0x0100: 5, 0x0101: 6, 0x0106: 0, 0x0116: 1, 0x0131: "Editor"})
    exif = tags.tobytes()[6:]
    for gray in (False, True):
        picture = read(write(Picture(three(LEVELS), exif=exif, gray=gray), "TIFF"))
        assert np.array_equal(picture.rgb, three(LEVELS))
        kept = Image.Exif()
        kept.load(picture.exif or b"")
        assert dict(kept) == {0x0131: "Editor"}


def test_exif_of_a_big_tiff_is_of_the_ordinary_kind() -> None:
    tags = Image.Exif()
    tags.load(exif_block())
    exif = read(encoded(RGB, "TIFF", big_tiff=True, exif=tags)).exif
    assert exif is not None
    assert exif[2:4] == b"*\0"
    tags.load(exif)
    assert tags.get_ifd(0x8769)[0x927C] == b"secret maker note"


def test_a_profile_is_kept_only_where_it_describes_the_channels() -> None:
    gray = gray_profile()
    assert read(encoded(LEVELS, icc_profile=gray)).icc == gray
    assert read(encoded(RGB, icc_profile=gray)).icc is None
    assert read(encoded(RGB, icc_profile=cmyk_profile())).icc is None
    for format in ("PNG", "JPEG", "TIFF"):
        assert read(write(Picture(three(LEVELS), gray=True, icc=gray), format)).icc == gray
        assert read(write(Picture(RGB, icc=gray), format)).icc is None
        assert read(write(Picture(three(LEVELS), gray=True, icc=SRGB_PROFILE), format)).icc is None
    written = Image.open(io.BytesIO(write(Picture(three(LEVELS), gray=True, icc=gray), "WEBP")))
    assert "icc_profile" not in written.info  # WebP has no gray


# --- write


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "BMP", "PPM"])
@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("with_alpha", [False, True])
def test_lossless_formats(format: str, gray: bool, with_alpha: bool) -> None:
    alpha = np.where(np.arange(WIDTH) < 5, 0, ALPHA).astype(np.uint8)
    picture = Picture(three(LEVELS) if gray else RGB, alpha if with_alpha else None, gray)
    back = read(write(picture, format))
    assert np.array_equal(back.rgb, picture.rgb)
    if with_alpha and format in ("PNG", "TIFF", "WEBP"):
        assert back.alpha is not None
        assert np.array_equal(back.alpha, alpha)
    else:
        assert back.alpha is None
    assert back.gray == (gray and format != "WEBP")


@pytest.mark.parametrize("format", ["JPEG"] + ["AVIF"] * HAS_AVIF)
def test_lossy_formats(format: str) -> None:
    alpha = np.full(SMOOTH.shape[:2], 128, np.uint8)
    back = read(write(Picture(SMOOTH, alpha), format))
    assert np.abs(back.rgb.astype(int) - SMOOTH).max() <= 8
    assert (back.alpha is None) == (format == "JPEG")
    gray = read(write(Picture(three(SMOOTH[..., 1]), gray=True), format))
    assert np.abs(gray.rgb.astype(int) - three(SMOOTH[..., 1])).max() <= 8
    assert gray.gray or format == "AVIF"  # older Pillows read AVIF as RGB


def test_gray_is_the_rounded_mean() -> None:
    back = read(write(Picture(RGB, gray=True)))
    assert np.array_equal(back.rgb, three(np.round(RGB.mean(axis=2))))


def test_a_jpeg_of_quality_95_in_full_resolution() -> None:
    with Image.open(io.BytesIO(write(FULL, "JPEG"))) as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3
        expected = Image.open(io.BytesIO(encoded(SMOOTH, "JPEG", quality=95)))
        assert image.quantization == expected.quantization


@pytest.mark.parametrize("format", FORMATS)
def test_same_picture_same_bytes(format: str) -> None:
    picture = Picture(SMOOTH, SMOOTH[..., 2], False, icc=SRGB_PROFILE, exif=exif_block(), xmp=XMP)
    assert write(picture, format) == write(picture, format)


def test_metadata_too_long_for_jpeg_is_left_out() -> None:
    exif, xmp = exif_block() + bytes(70000), XMP + b" " * 70000
    back = read(write(Picture(SMOOTH, exif=exif, xmp=xmp), "JPEG"))
    assert back.exif is None
    assert back.xmp is None
    back = read(write(Picture(SMOOTH, exif=exif, xmp=xmp), "PNG"))
    assert (back.exif, back.xmp) == (exif, xmp)


def test_damaged_exif_does_not_stop_writing(capfd: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(3)
    for number in range(60):
        exif = bytearray(exif_block(1, rng.choice("<>")))
        for _ in range(rng.randint(1, 6)):
            exif[rng.randrange(4, len(exif))] = rng.randrange(256)
        for format in FORMATS if number < 10 else ("TIFF", "PNG", "JPEG"):
            assert np.abs(read(write(Picture(SMOOTH, exif=bytes(exif)), format)).rgb).size
    assert capfd.readouterr() == ("", "")


def test_losses() -> None:
    profile, exif, xmp = SRGB_PROFILE, exif_block(), XMP
    picture = Picture(SMOOTH, SMOOTH[..., 2], icc=profile, exif=exif, xmp=xmp)
    for format in ("PNG", "WEBP", "TIFF", "AVIF"):
        assert losses(picture, format) == []
    assert losses(picture, "JPEG") == ["the transparency is left out: JPEG has none"]
    assert losses(picture, "BMP") == [
        "the transparency is left out: BMP has none",
        "the ICC profile is left out: BMP has none",
        "the EXIF is left out: BMP has none",
        "the XMP is left out: BMP has none",
    ]
    assert losses(Picture(SMOOTH), "PPM") == []
    gray = Picture(SMOOTH, gray=True, icc=profile)
    assert losses(gray, "PNG") == ["the ICC profile is left out: it is of other channels"]
    assert losses(gray, "WEBP") == []
    long = Picture(SMOOTH, exif=exif + bytes(70000), xmp=xmp + b" " * 70000)
    assert losses(long, "JPEG") == [
        "the EXIF is left out: it is longer than the 65527 bytes of JPEG",
        "the XMP is left out: it is longer than the 65504 bytes of JPEG",
    ]
    broken = Picture(SMOOTH, exif=b"II*\0\xff\xff\xff\xff")
    assert losses(broken, "PNG") == []
    for format in ("TIFF", "AVIF"):
        words = f"the EXIF is left out: {format} cannot hold what it says, or it is damaged"
        assert losses(broken, format) == [words]
    with pytest.raises(OutputError):
        losses(picture, "GIF")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("gray", [False, True])
def test_losses_are_what_does_not_come_back(format: str, gray: bool) -> None:
    long = MAX_EXIF // 10
    for icc in (None, SRGB_PROFILE, gray_profile(), SRGB_PROFILE + bytes(MAX_ICC)):
        for exif in (None, exif_block(), exif_block() + bytes(long)):
            for xmp in (None, XMP, XMP + b" " * long):
                pixels = three(SMOOTH[..., 0]) if gray else SMOOTH
                picture = Picture(pixels, SMOOTH[..., 2], gray, icc=icc, exif=exif, xmp=xmp)
                back, lost = read(write(picture, format)), " ".join(losses(picture, format))
                assert (back.alpha is None) == ("transparency" in lost)
                assert (back.xmp != xmp) == ("XMP" in lost)
                assert (icc is not None and back.icc is None) == ("ICC profile" in lost)
                assert (exif is not None and back.exif is None) == ("EXIF" in lost)


LONGEST = {"WEBP": 16383, "JPEG": 65500}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("upright", [False, True])
def test_the_longest_sides(format: str, gray: bool, upright: bool) -> None:
    side = LONGEST.get(format, 65535)
    if format == "AVIF":
        side = 8192  # AV1 could do more, slowly
    line = np.repeat(np.arange(side, dtype=np.uint32) // 257 % 256, 3).astype(np.uint8)
    rgb = line.reshape((side, 1, 3) if upright else (1, side, 3))
    back = read(write(Picture(rgb, gray=gray), format)).rgb
    assert back.shape == rgb.shape
    assert np.abs(back.astype(int) - rgb).max() <= (8 if format in ("JPEG", "AVIF") else 0)
    if format in LONGEST:
        with pytest.raises(OutputError):
            write(Picture(np.zeros((1, side + 1, 3), np.uint8)), format)


def test_write_failures() -> None:
    wide = np.zeros((1, 16384, 3), np.uint8)
    for arguments in [(Picture(wide), "WEBP"), (Picture(RGB), "GIF"), (Picture(RGB), "png")]:
        with pytest.raises(OutputError) as caught:
            write(*arguments)
        assert_one_line(caught.value)


def test_a_pillow_without_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.delitem(Image.SAVE, "TIFF")
    with pytest.raises(OutputError, match="Pillow cannot write TIFF"):
        write(Picture(RGB), "TIFF")


def test_format_of() -> None:
    assert format_of("a/b.c/photo.PNG") == "PNG"
    assert [format_of("x" + s) for s in (".jpg", ".jpeg", ".tif", ".pgm", ".webp", ".avif")] == [
        "JPEG",
        "JPEG",
        "TIFF",
        "PPM",
        "WEBP",
        "AVIF",
    ]
    for path in ("photo", "photo.gif", "photo.aic", ".png", ""):
        with pytest.raises(OutputError, match=r"\.png .*\.avif") as caught:
            format_of(path)
        assert_one_line(caught.value)


# --- bad input


def assert_one_line(error: AicError) -> None:
    text = str(error)
    assert 0 < len(text) < 300
    assert text.isprintable()
    assert " at 0x" not in text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x8aAIC\1\0\0\0",
        b"just some text, not an image\n" * 9,
        bytes(1000),
        png(0, 4, 8, 2, b""),
        png(4, 0, 8, 2, b""),
        b"P6 0 3 255\n",
        b"P6 3 3 255\n",
        b"P6 3 3 99999999999999\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        png(4, 4, 8, 2, bytes(3)),
        encoded(RGB, "TIFF")[:60],
        encoded(RGB, "WEBP")[:-20],
        encoded(RGB, "GIF")[:200],
    ],
)
def test_what_is_no_image(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        read(data)
    assert_one_line(caught.value)


def test_aic_is_named() -> None:
    with pytest.raises(ImageError, match=r"\.aic file already"):
        read(b"\x8aAIC")


def test_the_limit_counts_before_decoding() -> None:
    for width, height in ((60000, 60000), (1 << 30, 1 << 30), (WIDTH, 1 << 29)):
        with pytest.raises(LimitError, match=str(width * height)) as caught:
            read(png(width, height, 8, 2, b"not pixels"))
        assert_one_line(caught.value)
    # Pillow reads this size itself since 13; before, libwebp finds that the pixels are missing.
    canvas = b"VP8X" + struct.pack("<IIHBHB", 10, 0, 0xFFFF, 0, 0xFFFE, 0)  # 65536 x 65535
    with pytest.raises((LimitError, ImageError)):
        read(b"RIFF" + struct.pack("<I", 4 + len(canvas)) + b"WEBP" + canvas)


def test_the_limit_is_exact() -> None:
    for pixels in (98, 99, 100, 101):
        data = encoded(np.zeros((1, pixels), np.uint8))
        assert read(data, max_pixels=pixels).rgb.shape == (1, pixels, 3)
        with pytest.raises(LimitError):
            read(data, max_pixels=pixels - 1)


def test_a_side_has_a_limit_of_its_own() -> None:
    assert read(encoded(np.zeros((1, 65535), np.uint8))).rgb.shape == (1, 65535, 3)
    with pytest.raises(LimitError, match=r"65536x1 .*65535"):
        read(encoded(np.zeros((1, 65536), np.uint8)))


def test_pillow_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    data = encoded(RGB)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = warnings.filters[:]
        for limit in (1 << 28, 99):  # 99 pixels are more than Pillow itself would take
            assert read(data, max_pixels=limit).rgb.shape == RGB.shape
        with pytest.raises(LimitError):
            read(data, max_pixels=5)
        assert warnings.filters == filters
    assert Image.MAX_IMAGE_PIXELS == 10


def test_threads() -> None:
    before = Image.MAX_IMAGE_PIXELS, warnings.filters[:]
    files = [encoded(RGB, format) for format in ("PNG", "TIFF", "BMP")] * 8
    with ThreadPoolExecutor(4) as pool:
        assert all(np.array_equal(picture.rgb, RGB) for picture in pool.map(read, files))
    assert (Image.MAX_IMAGE_PIXELS, warnings.filters) == before


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("JPEG", {"progressive": True})])
def test_every_truncation(format: str, options: dict[str, object]) -> None:
    data = encoded(RGB, format, **options)
    for length in range(len(data)):
        with pytest.raises(ImageError) as caught:
            read(data[:length], strict=True)
        assert_one_line(caught.value)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {"exif": exif_block(6), "icc_profile": SRGB_PROFILE}),
        ("JPEG", {"exif": b"Exif\0\0" + exif_block(6)}),
        ("WEBP", {"lossless": True, "exif": exif_block(6)}),
        ("GIF", {}),
        ("TIFF", {"icc_profile": SRGB_PROFILE}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_random_damage(
    format: str, options: dict[str, object], capfd: pytest.CaptureFixture[str]
) -> None:
    data = encoded(RGB, format, **options)
    rng = random.Random(format)
    outcomes = set()
    for number in range(300):
        damaged = bytearray(data)
        reach = len(data) if number % 2 else min(len(data), 120)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(reach)] = rng.randrange(256)
        try:
            picture = read(bytes(damaged), max_pixels=1 << 18)
        except (ImageError, LimitError) as error:
            assert_one_line(error)
            outcomes.add("refused")
        else:
            assert picture.rgb.dtype == np.uint8
            assert picture.rgb.shape[2] == 3
            assert picture.alpha is None or picture.alpha.shape == picture.rgb.shape[:2]
            outcomes.add("read")
    assert outcomes == {"refused", "read"}
    assert capfd.readouterr() == ("", "")


# --- alpha planes


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (HEIGHT, WIDTH)])
def test_alpha_round_trip(shape: tuple[int, int]) -> None:
    alpha = RNG.integers(0, 256, shape, dtype=np.uint8)
    data = pack_alpha(alpha)
    assert data == pack_alpha(alpha)
    back = unpack_alpha(data, shape[1], shape[0])
    assert back.dtype == np.uint8
    assert np.array_equal(back, alpha)
    assert back.flags.writeable
    assert back.flags.c_contiguous


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        encoded(LEVELS.T.copy()),
        encoded(RGB),
        encoded(LEVELS.astype(np.uint16)),
        encoded(LEVELS, "JPEG"),
        png(60000, 60000, 8, 0, b"bomb"),
        png(WIDTH, HEIGHT, 8, 0, b"too short"),
    ],
)
def test_alpha_refusals(data: bytes) -> None:
    with pytest.raises(BitstreamError) as caught:
        unpack_alpha(data, WIDTH, HEIGHT)
    assert_one_line(caught.value)


def test_damaged_alpha() -> None:
    data = pack_alpha(ALPHA)
    for length in range(len(data)):
        with pytest.raises(BitstreamError):
            unpack_alpha(data[:length], WIDTH, HEIGHT)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        try:
            unpack_alpha(bytes(damaged), WIDTH, HEIGHT)
        except BitstreamError as error:
            assert_one_line(error)
