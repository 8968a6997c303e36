"""image.py in the face of files that are made to hurt: bounded time, bounded memory, known errors.

The first part has attacks that once worked, or were thought of; the second damages small files of
every format at random. AIC_ATTACKS is how many of these there are for each format.
"""

import io
import os
import random
import struct
import sys
import time
import zlib
from collections.abc import Callable

import brotli
import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401  (which makes Pillow write JPEG XL, too)
import pytest
from PIL import Image, ImageCms, features

from aiocodec import image as images
from aiocodec.errors import BitstreamError, ImageError, LimitError
from aiocodec.image import FORMATS, MAX_EXIF, Picture, losses, read, unpack_alpha, write

SECONDS = 1.0  # of processor time, for one file
SIDE = 11500  # of a square that is within the default limit, and costs 500 MB or more
HAS_AVIF = "avif" in features.get_supported()
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PIXELS = np.random.default_rng(4).integers(0, 256, (2, 2, 3), np.uint8).repeat(12, 0).repeat(16, 1)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.copy().save(
        out, format, **options
    )  # Pillow leaves options of an encoder in what it saves
    return out.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, colour: int, idat: bytes, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n", png_chunk(b"IHDR", header), *chunks]
    return b"".join([*parts, png_chunk(b"IDAT", idat), png_chunk(b"IEND", b"")])


ONE_PIXEL = zlib.compress(b"\0\0")


def tiff(*more: tuple[int, int, int, int | bytes], tail: bytes = b"", **changed: int) -> bytes:
    """A little-endian TIFF: one gray pixel, some tags `changed`, and `more`; bytes are put after."""
    tags = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262}
    tags |= {"offset": 273, "samples": 277, "rows": 278, "length": 279}
    values = dict.fromkeys(tags, 1) | {"bits": 8, "offset": 8} | changed
    entries: list[tuple[int, int, int, int | bytes]]
    entries = [(tags[name], 4, 1, value) for name, value in values.items()]
    entries = sorted({entry[0]: entry for entry in [*entries, *more]}.values())
    body, after = b"", b""
    for tag, kind, count, value in entries:
        if isinstance(value, bytes):
            value, after = 8 + 2 + 12 * len(entries) + 4 + len(after), after + value
        body += struct.pack("<HHII", tag, kind, count, value)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return head + body + bytes(4) + after + tail


def directory(count: int, at: int, each: int, kind: int = 5) -> bytes:
    """An IFD at `at` with `count` tags, which share `each` numbers that follow it."""
    place = at + 2 + 12 * count + 4
    tags = [struct.pack("<HHII", 1000 + i, kind, each, place) for i in range(count)]
    return struct.pack("<H", count) + b"".join(tags) + bytes(4) + b"\1\0\0\0\3\0\0\0" * each


def exif(count: int, each: int) -> bytes:
    return b"II*\0\x08\0\0\0" + directory(count, 8, each)


def tiff_with_exif(count: int, each: int) -> bytes:
    at = len(tiff((0x8769, 4, 1, 0)))
    return tiff((0x8769, 4, 1, at), tail=directory(count, at, each))


def bmp(width: int, height: int, bits: int, compression: int, body: bytes) -> bytes:
    palette = bytes(1024) if bits == 8 else b""
    sizes = (40, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    header = struct.pack("<IiiHHIIIIII", *sizes) + palette
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + len(header)) + header + body


def gif(frame: int, extension: bytes = b"") -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", SIDE, SIDE, 0x80, 0, 0) + bytes(3) + b"\xff\0\0"
    return screen + extension + b"," + struct.pack("<HHHHB", 0, 0, frame, frame, 0) + b"\2\2D\1\0;"


def webp(inner: bytes, flags: int) -> bytes:
    canvas = struct.pack("<II", 10, flags) + 2 * (SIDE - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + canvas + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_frame() -> bytes:
    one = encoded(Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]
    frame = struct.pack("<I", 16 + len(one)) + bytes(16) + one
    return b"ANIM" + struct.pack("<IIH", 6, 0, 0) + b"ANMF" + frame


def flat_webp() -> bytes:
    data = bytearray(encoded(Image.new("RGB", (1, 1)), "WEBP", lossless=True))
    (bits,) = struct.unpack_from("<I", data, 21)
    struct.pack_into("<I", data, 21, bits & ~0xFFFFFFF | (SIDE - 1) << 14 | (SIDE - 1))
    return bytes(data)


def jpeg(size: int | None = None, *segments: bytes, **options: object) -> bytes:
    data = bytearray(encoded(Image.new("RGB", (64, 64)), "JPEG", **options))
    if size:
        at = max(data.find(b"\xff\xc0\0\x11"), data.find(b"\xff\xc2\0\x11"))
        data[at + 5 : at + 9] = struct.pack(">HH", size, size)
    return bytes(data[:2]) + b"".join(segments) + bytes(data[2:])


def app(number: int, body: bytes) -> bytes:
    return bytes([0xFF, 0xE0 + number]) + struct.pack(">H", len(body) + 2) + body


def jpeg2000(tile: int) -> bytes:
    data = bytearray(encoded(Image.new("RGB", (64, 64)), "JPEG2000", no_jp2=True))
    at = data.index(b"\xff\x51")
    data[at + 6 : at + 14] = struct.pack(">II", SIDE, SIDE)
    data[at + 22 : at + 30] = struct.pack(">II", tile, tile)
    return bytes(data)


def avif() -> bytes:
    data = bytearray(encoded(Image.new("RGB", (64, 64)), "AVIF"))
    at = data.index(b"ispe")
    data[at + 8 : at + 16] = struct.pack(">II", SIDE, SIDE)
    return bytes(data)


def many_scans(count: int) -> bytes:
    """A progressive JPEG, one of whose scans is there so many times."""
    data = encoded(Image.new("L", (2048, 2048), 77), "JPEG", progressive=True)
    starts = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    return data[:-2] + data[starts[2] : starts[3]] * count + data[-2:]


def avif_with_exif(block: bytes) -> bytes:
    """An AVIF of one frame with any bytes as its EXIF, which Pillow's `save` would take apart."""
    if not HAS_AVIF:
        return b""
    from PIL import _avif

    options = (50, 8, 1, "auto", "full", 0, 0, False, False, b"", block, 1, b"", ())
    encoder = _avif.AvifEncoder((8, 8), "4:4:4", *options)
    encoder.add(bytes(8 * 8 * 3), 1, (8, 8), "RGB", True)
    return encoder.finish()


def icon(body: bytes) -> bytes:
    return b"\0\0\1\0\1\0\0\0\0\0" + struct.pack("<HHII", 1, 32, len(body), 22) + body


def heif(pixels: np.ndarray = PIXELS) -> bytes:
    out = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(out)
    return out.getvalue()


def large_heif() -> bytes:
    data = bytearray(heif(np.zeros((64, 64, 3), np.uint8)))
    at = data.index(b"ispe")
    data[at + 8 : at + 16] = struct.pack(">II", SIDE, SIDE)
    return bytes(data)


def large_jxl() -> bytes:
    """A square, all else as most pictures have it, and nothing after that."""
    number = at = 0
    for value, bits in ((0x0AFF, 16), (0, 1), (2, 2), (SIDE - 1, 18), (1, 3), (1, 1), (77, 64)):
        number |= value << at
        at += bits
    return number.to_bytes(at // 8 + 1, "little")


def boxed_jxl(*boxes: tuple[bytes, bytes]) -> bytes:
    """A JPEG XL in a container, with boxes before its codestream."""
    data = encoded(Image.fromarray(PIXELS), "JXL", use_container=True, lossless=True)
    at = data.index(b"jxlc") - 4
    more = (struct.pack(">I4s", len(body) + 8, name) + body for name, body in boxes)
    return data[:at] + b"".join(more) + data[at:]


def raw(*more: tuple[int, int, int, int | bytes], **changed: int) -> bytes:
    """A DNG of nothing but a mosaic."""
    unit = struct.pack("<18i", *(int(i % 8 == 0) for i in range(18)))
    mosaic = bytes(range(256)) * 6
    layout = {"width": 32, "height": 24, "bits": 16, "photometric": 32803, "rows": 24}
    layout |= {"offset": 400, "length": len(mosaic)}
    tags = [(33421, 3, 2, 0x20002), (33422, 1, 4, 0x02010100), (50706, 1, 4, 0x401)]
    tags += [(50708, 2, 6, b"Maker\0"), (50721, 10, 9, unit), (50717, 4, 1, 65535)]
    tags += [(271, 2, 6, b"Maker\0"), (272, 2, 6, b"Model\0"), *more]
    head = tiff(*tags, **{**layout, **changed})
    if len(head) <= 400:
        return head.ljust(400, b"\0") + mosaic
    return tiff(*tags, **{**layout, "offset": len(head), **changed}) + mosaic


def many_directories() -> bytes:
    data = bytearray(tiff())
    struct.pack_into("<I", data, 8 + 2 + 12 * 9, len(data))
    chain = (struct.pack("<HI", 0, len(data) + 6 * (i + 1)) for i in range(1_000_000))
    return bytes(data) + b"".join(chain)


W = struct.pack("<H", SIDE)
MASKS = struct.pack("<4I", 32, 0x40, 0, 24) + struct.pack("<3I", 255, 255 << 8, 255 << 16)
TGA = struct.pack("<HHBHHHH", 0, 0, 24, 0, 0, SIDE, SIDE)
PPM = f" {SIDE} {SIDE}\n255\n".encode()
SGI = struct.pack(">HHHH", 3, SIDE, SIDE, 3) + bytes(500)
PSD = b"8BPS\0\1" + struct.pack(">6xHIIHH", 3, SIDE, SIDE, 8, 3) + bytes(12)
DDS = b"DDS " + struct.pack("<4I", 124, 0, SIDE, SIDE) + bytes(56)

# Files that claim a square of SIDE pixels with next to nothing behind it.
CLAIMS: dict[str, Callable[[], bytes]] = {
    "png": lambda: png(SIDE, SIDE, 8, 2, zlib.compress(b"abc")),
    "png of one bit": lambda: png(SIDE, SIDE, 1, 0, zlib.compress(b"abc")),
    "gif with a small frame": lambda: gif(1),
    "gif with a transparent frame": lambda: gif(1, b"!\xf9\4\1\0\0\0\0"),
    "gif with a large frame": lambda: gif(SIDE),
    "jpeg": lambda: jpeg(SIDE),
    "progressive jpeg": lambda: jpeg(SIDE, progressive=True),
    "cut jpeg": lambda: jpeg(SIDE)[:-9],
    "webp with a small frame": lambda: webp(webp_frame(), 2),
    "webp with a small picture": lambda: webp(webp_frame()[40:], 0),
    "flat webp": flat_webp,
    "bmp": lambda: bmp(SIDE, SIDE, 24, 0, b"abc"),
    "bmp that skips": lambda: bmp(SIDE, SIDE, 8, 1, b"\0\2\xff\xff" * 60),
    "bmp of short rows": lambda: bmp(SIDE, SIDE, 8, 1, b"\1\1\0\0" * SIDE),
    "dib": lambda: bmp(SIDE, SIDE, 24, 0, b"abc")[14:],
    **{
        f"ppm P{kind}": lambda kind=kind: b"P%d" % kind + PPM + b"1 0 1"  # type: ignore[misc]
        for kind in range(1, 7)
    },
    "ppm of floating point": lambda: b"Pf" + PPM.replace(b"255", b"1.0") + b"abcd",
    **{
        f"tga {kind}": lambda kind=kind: bytes([0, 0, kind]) + TGA + bytes([24, 0]) + b"\xff" * 9  # type: ignore[misc]
        for kind in (2, 3, 10, 11)
    },
    **{
        f"tiff {method}": lambda method=method: tiff(  # type: ignore[misc]
            width=SIDE, height=SIDE, rows=SIDE, compression=method, length=30
        )
        for method in (1, 3, 4, 5, 6, 7, 8, 32773, 34925, 50000, 50001)
    },
    "psd": lambda: PSD + b"\0\0abc",
    "psd of runs": lambda: PSD + b"\0\1" + bytes(6 * SIDE) + b"abc",
    "pcx": lambda: b"\n\5\1\x08" + bytes(4) + W * 2 + bytes(53) + b"\3" + W + bytes(60) + b"\xff\1",
    "sgi": lambda: struct.pack(">HBB", 474, 0, 1) + SGI + b"abc",
    "sgi of runs": lambda: struct.pack(">HBB", 474, 1, 1) + SGI + b"abc" * 99,
    "qoi": lambda: b"qoif" + struct.pack(">IIBB", SIDE, SIDE, 4, 0) + b"\xfd" * 9,
    "dds": lambda: DDS + MASKS + bytes(24) + b"abc" * 9,
    "dds of blocks": lambda: DDS + struct.pack("<4I", 32, 4, 0x31545844, 0) + bytes(36),
    "icon of png": lambda: icon(png(SIDE, SIDE, 8, 2, zlib.compress(b"abc"))),
    "icon of bmp": lambda: icon(bmp(SIDE, 2 * SIDE, 32, 0, b"abcd")[14:]),
    "icns": lambda: (
        b"icns\0\0\1\0ic10\0\0\0\xf0" + png(SIDE, SIDE, 8, 2, zlib.compress(b"abc"))
    ).ljust(256),
    "jpeg 2000": lambda: jpeg2000(SIDE),
    "jpeg 2000 of tiny tiles": lambda: jpeg2000(1),
    "avif": avif,
    "heif": large_heif,
    "jpeg xl": large_jxl,
    "raw": lambda: raw(width=SIDE, height=SIDE, rows=SIDE),
    "raw that says that it is whole": lambda: raw(
        width=SIDE, height=SIDE, rows=SIDE, length=2 * SIDE * SIDE
    ),
    "raw with a large sensor": lambda: raw(
        (50829, 4, 4, struct.pack("<4I", 0, 0, 8, 8)), width=SIDE, height=SIDE, rows=SIDE
    ),
}


def memory() -> tuple[float, float]:
    """Of this process: now, and at most so far, in MB; then the peak is forgotten."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    now, peak = (int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


def outcome(data: bytes, megabytes: float) -> Picture | Exception:
    """What `read` comes to, which must be a picture or one of its errors, soon and with little memory."""
    measured = sys.platform == "linux"
    before = memory()[0] if measured else 0
    started = time.process_time()
    try:
        result: Picture | Exception = read(data)
    except (ImageError, LimitError) as error:
        result = error
        assert str(error).isprintable()
        assert len(str(error)) < 300
    assert time.process_time() - started < SECONDS, result
    if measured:
        assert memory()[1] - before < megabytes, result
    return result


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_with_nothing_behind_it_is_refused_cheaply(name: str) -> None:
    if "avif" in name and not HAS_AVIF:
        pytest.skip("this Pillow has no AVIF")
    data = CLAIMS[name]()
    assert len(data) < 80_000
    assert isinstance(outcome(data, 30), Exception)


def test_flat_pictures_are_no_claims() -> None:
    """What an encoder makes of the least picture is above every bound of `_DENSITY`."""
    gray, colour = Image.new("L", (2200, 2000), 200), Image.new("RGB", (2200, 2000), (1, 2, 3))
    assert images._SMALL < 2200 * 2000
    for image in (gray, colour, gray.convert("1")):
        for format, options in (
            ("JPEG", {"progressive": True}),
            ("JPEG", {"optimize": True}),
            ("GIF", {}),
            ("PNG", {"optimize": True}),
            ("TIFF", {"compression": "tiff_adobe_deflate"}),
            ("TIFF", {"compression": "tiff_lzw"}),
            ("WEBP", {"lossless": True}),
            ("BMP", {}),
            ("PPM", {}),
            ("PCX", {}),
        ):
            assert read(encoded(image, format, **options)).rgb.shape == (2000, 2200, 3)
    for image, format, options in (
        (colour, "QOI", {}),
        (colour.convert("RGBA"), "DDS", {"pixel_format": "DXT1"}),
        (gray, "TGA", {"compression": "tga_rle"}),
    ):
        assert read(encoded(image, format, **options)).rgb.shape == (2000, 2200, 3)


def test_a_jpeg_has_a_hundred_scans_at_most() -> None:
    """The ten of libjpeg are there too. Scans of a picture that follows do not count."""
    assert read(many_scans(90)).rgb.shape == (2048, 2048, 3)
    assert read(many_scans(90) + many_scans(90)).rgb.shape == (2048, 2048, 3)
    with pytest.raises(ImageError, match="more than 100 scans"):
        read(many_scans(100))


BROTLI_BOMB = brotli.compress(bytes(1 << 26))
LAYERS = struct.pack(">I", 6_000_000) + (b"8BIM\0\1\0\0" + bytes(4)) * 500_000

# Small pictures with a lot around them, and how many MB more than the file they may take.
BURDENS: dict[str, tuple[Callable[[], bytes], int]] = {
    "a million text chunks": (
        lambda: png(
            1, 1, 8, 0, ONE_PIXEL, *(png_chunk(b"tEXt", b"%d\0" % i) for i in range(10**6))
        ),
        10,
    ),
    "a million empty scans": (
        lambda: png(1, 1, 8, 0, ONE_PIXEL, *[png_chunk(b"IDAT", b"")] * 10**6),
        10,
    ),
    "as many scans as are allowed": (
        lambda: png(1, 1, 8, 0, ONE_PIXEL, *[png_chunk(b"IDAT", b"")] * 10**5),
        10,
    ),
    "profile bomb": (
        lambda: png(
            1, 1, 8, 0, ONE_PIXEL, png_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 28)))
        ),
        50,
    ),
    "a thousand profile bombs": (
        lambda: png(
            1,
            1,
            8,
            0,
            ONE_PIXEL,
            *[png_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 24)))] * 1000,
        ),
        50,
    ),
    "xmp bomb": (
        lambda: png(
            1,
            1,
            8,
            0,
            ONE_PIXEL,
            png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(1 << 28))),
        ),
        50,
    ),
    "EXIF in 320 segments": (
        lambda: jpeg(None, *[app(1, b"Exif\0\0" + exif(1, 8000))] * 320),
        10,
    ),
    "EXIF in 16 segments": (
        lambda: jpeg(
            None, app(1, b"Exif\0\0II*\0\x08\0\0\0"), *[app(1, b"Exif\0\0" + bytes(60000))] * 16
        ),
        10,
    ),
    "a million segments": (lambda: jpeg(None, app(5, b"") * 10**6), 10),
    "a thousand scans": (
        lambda: many_scans(1000),
        30,
    ),
    "as many scans as are allowed in a JPEG": (
        lambda: many_scans(95),
        40,
    ),
    "an orientation of a million numbers": (
        lambda: avif_with_exif(
            b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 5, 10**6, 26) + bytes(4 + 8 * 10**6)
        ),
        10,
    ),
    "a million beginnings of EXIF": (lambda: avif_with_exif(b"II*\0\xff\xff\xff\xff" * 10**6), 30),
    "padding before a marker": (lambda: b"\xff\xd8" + b"\xff" * 5_000_000, 10),
    "markers without a length": (lambda: jpeg(None, b"\xff\xd0" * 10**6), 10),
    "comments in a plain ppm": (lambda: b"P3 5 5\n255\n" + b"#\n" * 500_000, 100),
    "comments in a plain pbm": (lambda: b"P1 5 5\n" + b"#\n" * 500_000, 100),
    "a million strips": (lambda: tiff((273, 4, 10**6, bytes(4 * 10**6)), height=16), 10),
    "a million resolutions": (lambda: tiff((282, 5, 10**6, b"\1\0\0\0\2\0\0\0" * 10**6)), 10),
    "tags that share their bytes": (lambda: tiff_with_exif(200, 1 << 17), 10),
    "a large array of fractions": (lambda: tiff_with_exif(1, 1 << 21), 10),
    "a directory in itself": (lambda: tiff((0x8769, 4, 1, 8), (0x8825, 4, 1, 8)), 10),
    "a million directories": (many_directories, 10),
    "a directory after itself": (
        lambda: tiff()[: 8 + 2 + 12 * 9] + struct.pack("<I", 8) + tiff()[8 + 2 + 12 * 9 + 4 :],
        10,
    ),
    "a tile larger than its picture": (
        lambda: tiff((322, 4, 1, 29984), (323, 4, 1, 29984), (324, 4, 1, 8), compression=8),
        10,
    ),
    "a million frames": (
        lambda: gif(1)[:-1].replace(W, b"\4\0") + gif(1)[19:-1] * 10**6,
        10,
    ),
    "boxes of Brotli for 64 MiB": (
        lambda: boxed_jxl((b"brob", b"Exif" + BROTLI_BOMB), (b"brob", b"xml " + BROTLI_BOMB)),
        60,
    ),
    "many boxes of Brotli": (lambda: boxed_jxl(*[(b"brob", b"Exif" + BROTLI_BOMB)] * 1000), 60),
    "a million boxes": (lambda: boxed_jxl(*[(b"free", b"")] * 10**6), 10),
    "a million directories below": (
        lambda: raw((330, 4, 10**6, struct.pack("<I", 8) * 10**6)),
        10,
    ),
    "directories of a RAW file in circles": (
        lambda: raw((330, 4, 2, struct.pack("<2I", 8, 8)), (0x8769, 4, 1, 8)),
        10,
    ),
    "a million strips of a sensor": (lambda: raw((279, 4, 10**6, bytes(4 * 10**6))), 10),
    "large fractions in a RAW file": (
        lambda: raw((33434, 5, 1 << 18, b"\1\0\0\0\2\0\0\0" * (1 << 18))),
        10,
    ),
    "half a million resources": (
        lambda: PSD.replace(struct.pack(">I", SIDE), b"\0\0\0\4")[:-8] + LAYERS + bytes(4 + 2 + 48),
        40,
    ),
}


@pytest.mark.parametrize("name", BURDENS)
def test_what_is_around_a_picture_costs_little(name: str) -> None:
    make, megabytes = BURDENS[name]
    outcome(make(), megabytes)


def test_the_metadata_of_a_stranger_costs_little_in_writing() -> None:
    """An .aic file holds any bytes at all as EXIF, profile and XMP."""
    rng = random.Random(8)
    for block in (
        exif(200, 1 << 13),
        exif(1, MAX_EXIF >> 4),
        exif(60000, 1)[: MAX_EXIF - 1],
        b"II*\0\x08\0\0\0" + b"\1\0" + struct.pack("<HHII", 0x8769, 4, 1, 8) + bytes(4),
        b"MM\0*" + bytes(MAX_EXIF - 4),
        rng.randbytes(70000),
        b"II*\0" + rng.randbytes(3000),
        bytes(1 << 25),
    ):
        for format in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM") + ("AVIF",) * HAS_AVIF:
            xmp = None if format == "AVIF" else block  # in which `read` takes it for EXIF
            picture = Picture(PIXELS, icc=PROFILE[:128], exif=block, xmp=xmp)
            started = time.process_time()
            losses(picture, format)
            assert read(write(picture, format)).rgb.shape == PIXELS.shape
            assert time.process_time() - started < 2 * SECONDS


def test_hostile_profiles_of_cmyk() -> None:
    """These go to littleCMS; those of RGB are never looked into."""
    ink = Image.frombytes("CMYK", (32, 24), random.Random(2).randbytes(32 * 24 * 4))
    rng = random.Random(9)
    profile = bytearray(PROFILE[:16] + b"CMYK" + PROFILE[20:])
    for _ in range(100):
        damaged = bytearray(profile)
        for _ in range(rng.randint(1, 9)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        assert isinstance(outcome(encoded(ink, "TIFF", icc_profile=bytes(damaged)), 50), Picture)


# --- alpha planes


def test_hostile_alpha_planes() -> None:
    rows = zlib.compress(bytes(5 * 4), 9)
    text = [png_chunk(b"zTXt", b"%d\0\0" % i + zlib.compress(bytes(1 << 20))) for i in range(500)]
    assert unpack_alpha(png(4, 5, 8, 0, rows), 4, 5).sum() == 0
    assert unpack_alpha(png(4, 5, 8, 0, zlib.compress(bytes(25)), *text), 4, 5).sum() == 0
    bombs = [
        png(4, 5, 8, 0, rows, *[png_chunk(b"tEXt", b"x\0")] * 300_000),
        png(4, 5, 8, 0, rows, *[png_chunk(b"IDAT", b"")] * 300_000),
        png(SIDE, SIDE, 8, 0, b"bomb"),
        png(4, 5, 8, 0, rows).replace(b"IEND", b"IEMD"),
        png(4, 5, 8, 0, rows)[:-1],
    ]
    interlaced = bytearray(png(4, 5, 8, 0, rows))
    interlaced[28] = 1
    for data in [*bombs, bytes(interlaced)]:
        started = time.process_time()
        size = (SIDE, SIDE) if len(data) < 100 and b"bomb" in data else (4, 5)
        with pytest.raises(BitstreamError):
            unpack_alpha(data, *size)
        assert time.process_time() - started < SECONDS


# --- memory


@pytest.mark.skipif(sys.platform != "linux", reason="measures through /proc")
@pytest.mark.parametrize(
    ("mode", "bytes_per_pixel"),
    [("RGB", 7), ("L", 4), ("RGBA", 8), ("P", 4), ("CMYK", 7), ("I;16", 5)],
)
def test_reading_takes_pillows_image_and_the_result(mode: str, bytes_per_pixel: int) -> None:
    side = 3000
    image = Image.new("I;16" if mode == "I;16" else "RGB", (side, side), 7)
    if mode != "I;16":
        image = image.convert(mode)
        if mode == "RGBA":
            image.putalpha(3)
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    for options in ({}, {"exif": exif}) if mode in ("RGB", "RGBA") else ({},):
        data = encoded(image, "TIFF" if mode == "CMYK" else "PNG", **options)
        before = memory()[0]
        picture = read(data)
        peak = memory()[1]
        assert picture.rgb.shape == (side, side, 3)
        assert peak - before < bytes_per_pixel * side * side / (1 << 20) + 20
        del picture


# --- damage at random


def seeds() -> dict[str, list[bytes]]:
    """Small files of every format, by its name."""
    image = Image.fromarray(PIXELS)
    gray, palette = image.convert("L"), image.convert("P", palette=Image.Palette.ADAPTIVE)
    with_alpha = image.copy()
    with_alpha.putalpha(gray)
    meta: dict[str, object] = {"icc_profile": PROFILE, "exif": exif(2, 4)}
    xmp = b'<x a tiff:Orientation="6"/>'
    found: dict[str, list[bytes]] = {name: [] for name in FORMATS}

    def add_frames(format: str) -> None:
        add(format, image, save_all=True, append_images=[image.rotate(180)])

    def add(format: str, image: Image.Image, **options: object) -> None:
        found[format].append(encoded(image, format, **options))

    text = images.PngImagePlugin.PngInfo()
    text.add_text("Title", "x" * 40, zip=True)
    text.add_itxt("XML:com.adobe.xmp", xmp, zip=True)
    add("PNG", image, pnginfo=text, **meta)
    add("PNG", with_alpha)
    add("PNG", palette, transparency=b"\1\2\3", bits=8)
    add_frames("PNG")
    add("PNG", gray.convert("I;16"))
    add("JPEG", image, xmp=xmp, **{**meta, "exif": b"Exif\0\0" + exif(2, 4)})
    add("JPEG", image, progressive=True)
    add("JPEG", image.convert("CMYK"), icc_profile=PROFILE)
    add("JPEG", gray, restart_marker_blocks=1)
    add_frames("MPO")
    add("GIF", palette, transparency=3)
    add_frames("GIF")
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        add("BMP", with_alpha.convert(mode))
        add("DIB", with_alpha.convert(mode))
    found["BMP"].append(
        bmp(32, 24, 8, 1, (b"\x20\5\0\0" * 9 + b"\0\2\1\1\0\3abc\0" + b"\x20\5\0\0" * 24))
    )
    for kind in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf"):
        numbers = b" ".join(b"%d" % (i % 2) for i in range(3 * 12)) + b"\n"
        found["PPM"].append(
            kind + b" 3 4\n" + (b"" if kind in (b"P1", b"P4") else b"99\n") + numbers
        )
    add("WEBP", image, xmp=xmp, **meta)
    add("WEBP", with_alpha, lossless=True)
    add_frames("WEBP")
    if HAS_AVIF:
        add("AVIF", image, xmp=xmp, **{**meta, "exif": b"Exif\0\0" + exif(2, 4)})
        add("AVIF", with_alpha)
        add_frames("AVIF")
    for compression in (
        "raw",
        "packbits",
        "tiff_lzw",
        "tiff_adobe_deflate",
        "jpeg",
        "zstd",
        "lzma",
    ):
        tags = Image.Exif()
        tags.load(exif(2, 4))
        tags[0x0112] = 6
        add("TIFF", image, compression=compression, exif=tags, icc_profile=PROFILE)
        add("TIFF", gray, compression=compression)
    add("TIFF", gray.convert("1"), compression="group4")
    add("TIFF", gray.convert("1"), compression="group3")
    add("TIFF", image.convert("CMYK"), icc_profile=PROFILE[:16] + b"CMYK" + PROFILE[20:])
    add("TIFF", palette)
    add("TIFF", image.convert("LAB"))
    add("TIFF", image, big_tiff=True)
    add_frames("TIFF")
    found["TIFF"].append(
        tiff(
            *((322, 4, 1, 16), (323, 4, 1, 16), (324, 4, 4, b"\x08\0\0\0" * 4)),
            *((325, 4, 4, b"\0\1\0\0" * 4), (339, 3, 1, 1)),
            width=32,
            height=24,
            tail=bytes(300),
        )
    )
    for mode in ("RGBA", "L"):
        add("ICO", with_alpha.convert(mode), sizes=[(16, 16), (24, 24)])
    add("ICO", with_alpha, bitmap_format="bmp", sizes=[(16, 16)])
    add("ICNS", with_alpha.resize((32, 32)))
    add("JPEG2000", image)
    add("JPEG2000", gray, no_jp2=True, num_resolutions=2, tile_size=(16, 16))
    add("JPEG2000", with_alpha, irreversible=True)
    small = PSD.replace(struct.pack(">I", SIDE), b"\0\0\0\x08")
    found["PSD"] += [small + b"\0\0" + bytes(192), small + b"\0\1" + b"\0\2" * 24 + b"\xf9\5" * 24]
    for mode in ("1", "L", "P", "RGB"):
        add("PCX", image.convert(mode))
    for mode in ("L", "RGB", "RGBA"):
        add("SGI", with_alpha.convert(mode))
    table = struct.pack(">24I", *range(512 + 192, 512 + 192 + 24 * 4, 4)) + struct.pack(
        ">24I", *[4] * 24
    )
    rle = struct.pack(">HBBHHHH", 474, 1, 1, 3, 8, 8, 3) + bytes(500) + table + b"\x08\5\0\0" * 24
    found["SGI"].append(rle)
    for mode in ("L", "RGB", "RGBA"):
        add("DDS", with_alpha.convert(mode))
    for form in ("DXT1", "DXT3", "DXT5", "BC5"):
        add("DDS", image if form == "BC5" else with_alpha, pixel_format=form)
    add("QOI", image)
    add("QOI", with_alpha)
    for mode in ("L", "P", "RGB", "RGBA"):
        add("TGA", with_alpha.convert(mode))
        add("TGA", with_alpha.convert(mode), compression="tga_rle")
    for mode in ("L", "RGB", "RGBA"):
        file = pillow_heif.from_pillow(with_alpha.convert(mode))
        file.add_from_pillow(gray)
        out = io.BytesIO()
        file.save(out, exif=b"Exif\0\0" + exif(2, 4), xmp=xmp, thumbnails=[8], chroma=444)
        found["HEIF"].append(out.getvalue())
    for mode in ("L", "RGB", "RGBA"):
        add("JXL", with_alpha.convert(mode), lossless=mode == "L")
    add("JXL", image, xmp=xmp, exif=exif(2, 4), compress_metadata=True)
    found["RAW"].append(raw())
    return found


def damaged(data: bytes, rng: random.Random) -> bytes:
    """`data` with flipped bits, other bytes, other numbers, parts that are gone, doubled or moved."""
    broken = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not broken:
            break
        reach = len(broken) if rng.random() < 0.5 else min(len(broken), 160)
        at = rng.randrange(reach)
        match rng.randrange(8):
            case 0:
                broken[at] ^= 1 << rng.randrange(8)
            case 1:
                broken[at] = rng.choice((0, 1, 127, 128, 254, 255, rng.randrange(256)))
            case 2:
                del broken[at:]
            case 3:
                del broken[at : at + rng.randint(1, 64)]
            case 4:
                broken[at:at] = broken[rng.randrange(len(broken)) :][: rng.randint(1, 200)]
            case 5:
                broken[at:at] = rng.randbytes(rng.randint(1, 16))
            case 6:
                width = rng.choice((2, 4, 8))
                edges = (0, 1, 255, 1 << 15, (1 << 16) - 1, SIDE, 1 << 31, (1 << 32) - 1, (1 << 63))
                value = rng.choice((*edges, len(broken), at)) % (1 << 8 * width)
                broken[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))
            case 7:
                other = rng.randrange(reach)
                broken[at : at + 4] = broken[other : other + 4]
    return with_checksums(bytes(broken)) if rng.random() < 0.7 else bytes(broken)


def with_checksums(data: bytes) -> bytes:
    """A damaged PNG with the right checksums, so that damage gets further; other files as they are."""
    if not data.startswith(b"\x89PNG"):
        return data
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if length > len(data) - at - 12:
            break
        out += png_chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length])
        at += 12 + length
    return bytes(out) + data[at:]


@pytest.mark.parametrize("format", FORMATS)
def test_damage_at_random(format: str, capfd: pytest.CaptureFixture[str]) -> None:
    rng, files = random.Random(format), seeds()[format]
    if format == "AVIF" and not HAS_AVIF:
        pytest.skip("this Pillow has no AVIF")
    for data in files:
        assert isinstance(outcome(data, 60), Picture)
    refused = 0
    attacks = int(os.environ.get("AIC_ATTACKS", "150"))
    for _ in range(attacks):
        refused += not isinstance(outcome(damaged(rng.choice(files), rng), 300), Picture)
    assert attacks < 50 or 0 < refused < attacks
    assert capfd.readouterr() == ("", "")
