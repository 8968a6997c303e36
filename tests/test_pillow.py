"""Pillow and aiocodec: an image in memory is as good as its file, and .aic is a format among others."""

import copy
import gc
import io
import multiprocessing
import pickle
import random
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import (
    ExifTags,
    Image,
    ImageCms,
    ImageFile,
    ImageOps,
    PngImagePlugin,
    UnidentifiedImageError,
)

import aiocodec.pillow
from aiocodec import image as images
from aiocodec.config import DEFAULT_QUALITY, MAX_SIDE
from aiocodec.container import (
    HEADER_SIZE,
    MAGIC,
    ChunkType,
    Flags,
    pack,
    pack_latents,
    unpack,
    unpack_latents,
)
from aiocodec.errors import (
    AicError,
    BitstreamError,
    ImageError,
    LimitError,
    ModelError,
    VersionError,
)
from aiocodec.image import Picture, from_pillow, kind, pack_alpha, read, to_pillow, unpack_alpha

HEIGHT, WIDTH = 9, 11
RNG = np.random.default_rng(3)
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
LEVELS = RNG.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
ALPHA = RNG.integers(0, 255, (HEIGHT, WIDTH), dtype=np.uint8)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRAY_PROFILE = PROFILE[:16] + b"GRAY" + PROFILE[20:]
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="1">\xc3\xa9</a></x:xmpmeta>'


def exif(orientation: int | None = None) -> Image.Exif:
    tags = Image.Exif()
    tags[ExifTags.Base.Make] = "Camera"
    if orientation is not None:
        tags[ExifTags.Base.Orientation] = orientation
    tags[ExifTags.IFD.Exif] = {ExifTags.Base.ExposureTime: 0.5}
    return tags


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def same(first: Picture, second: Picture) -> None:
    for name in ("rgb", "alpha"):
        planes = getattr(first, name), getattr(second, name)
        assert (planes[0] is None) == (planes[1] is None)
        assert planes[0] is None or np.array_equal(*planes)
    for name in ("gray", "sixteen_bit", "oriented", "icc", "exif", "xmp", "density", "comment"):
        assert getattr(first, name) == getattr(second, name), name


# --------------------------------------------------------------------------- images without a file


def palette(transparency: object = None) -> Image.Image:
    image = Image.fromarray(RGB).quantize(16)
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


MODES = {
    "1": (Image.fromarray(LEVELS > 127), "PNG"),
    "L": (Image.fromarray(LEVELS), "PNG"),
    "LA": (Image.fromarray(np.dstack([LEVELS, ALPHA])), "PNG"),
    "P": (palette(), "PNG"),
    "P with a clear colour": (palette(3), "PNG"),
    "P with an alpha palette": (palette(bytes(range(0, 160, 10))), "PNG"),
    "RGB": (Image.fromarray(RGB), "PNG"),
    "RGBA": (Image.fromarray(np.dstack([RGB, ALPHA])), "PNG"),
    "I;16": (Image.fromarray(LEVELS.astype(np.uint16) * 200), "PNG"),
    "I;16B": (
        Image.frombytes("I;16B", (WIDTH, HEIGHT), (LEVELS.astype(">u2") * 200).tobytes()),
        "TIFF",
    ),
    "I": (Image.fromarray(LEVELS.astype(np.int32) * 250), "TIFF"),
    "F": (Image.fromarray(LEVELS.astype(np.float32) / 200), "TIFF"),
    "CMYK": (Image.frombytes("CMYK", (WIDTH, HEIGHT), np.dstack([RGB, LEVELS]).tobytes()), "TIFF"),
    "LAB": (Image.frombytes("LAB", (WIDTH, HEIGHT), RGB.tobytes()), "TIFF"),
}


@pytest.mark.parametrize("name", MODES)
def test_an_image_in_memory_and_an_open_one_are_read_as_their_file(name: str) -> None:
    image, format = MODES[name]
    data = encoded(image, format)
    assert image.mode == name.split()[0]
    same(from_pillow(image), read(data))
    same(from_pillow(opened(data)), read(data))


@pytest.mark.parametrize(
    ("mode", "alpha"), [("HSV", False), ("YCbCr", False), ("RGBX", False), ("RGBa", True)]
)
def test_modes_that_few_files_have_are_converted_as_pillow_does(mode: str, alpha: bool) -> None:
    image = Image.fromarray(np.dstack([RGB, ALPHA])).convert("RGBA" if alpha else "RGB")
    image = image.convert(mode)
    picture, expected = from_pillow(image), np.asarray(image.convert("RGBA" if alpha else "RGB"))
    assert np.array_equal(picture.rgb, expected[..., :3])
    assert (picture.alpha is not None) == alpha
    assert not alpha or np.array_equal(picture.alpha, expected[..., 3])


def test_colour_keys_count_in_the_depth_of_the_file() -> None:
    for data in (
        encoded(Image.fromarray(LEVELS), transparency=int(LEVELS[0, 0])),
        encoded(Image.fromarray(LEVELS.astype(np.uint16)), transparency=int(LEVELS[0, 0])),
        encoded(Image.fromarray(RGB), transparency=tuple(map(int, RGB[0, 0]))),
    ):
        expected = read(data)
        assert expected.alpha is not None
        assert expected.alpha[0, 0] == 0
        same(from_pillow(opened(data)), expected)
        loaded = opened(data)
        loaded.load()
        same(from_pillow(loaded), expected)


def test_keys_and_gray_of_a_png_of_another_depth_are_known_until_it_is_loaded() -> None:
    """A pixel of 2 bits, two of 16 bits in colour and one of 16 bits in gray, each of them the key; and
    gray with an alpha of 16 bits."""

    def png(depth: int, colour: int, samples: bytes, key: bytes = b"") -> bytes:
        chunks = [
            b"IHDR" + struct.pack(">IIBBBBB", 1, 1, depth, colour, 0, 0, 0),
            *([b"tRNS" + key] if key else []),
            b"IDAT" + zlib.compress(b"\0" + samples),
            b"IEND",
        ]
        framed = (
            struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
            for chunk in chunks
        )
        return b"\x89PNG\r\n\x1a\n" + b"".join(framed)

    for data in (
        png(2, 0, b"\x40", b"\0\1"),
        png(16, 2, b"\1\2" * 3, b"\1\2" * 3),
        png(16, 2, b"\0\2" * 3, b"\0\2" * 3),
        png(16, 0, b"\1\2", b"\1\2"),
        png(16, 4, b"\1\2\3\4"),
    ):
        picture = from_pillow(opened(data))
        same(picture, read(data))
        assert picture.alpha is not None


@pytest.mark.parametrize("name", MODES)
def test_the_image_stays_as_it_is(name: str) -> None:
    image = MODES[name][0].copy()
    image.info |= {"icc_profile": PROFILE, "exif": exif(6).tobytes(), "xmp": XMP}
    before = image.mode, image.size, image.tobytes(), copy.deepcopy(image.info)
    from_pillow(image)
    assert (image.mode, image.size, image.tobytes(), image.info) == before


def test_metadata_comes_along() -> None:
    for format in ("PNG", "JPEG", "WEBP"):
        data = encoded(Image.fromarray(RGB), format, icc_profile=PROFILE, exif=exif(), xmp=XMP)
        picture = from_pillow(opened(data))
        same(picture, read(data))
        assert (picture.icc, picture.exif) == (PROFILE, exif().tobytes()[6:])


def test_the_tags_of_a_tiff_are_found_and_stay() -> None:
    tags = Image.Exif()
    tags.load(exif(6).tobytes())
    data = encoded(Image.fromarray(RGB), "TIFF", exif=tags, icc_profile=PROFILE)
    image = opened(data)
    picture = from_pillow(image)
    same(picture, read(data))
    assert picture.oriented
    assert ExifTags.Base.ImageWidth in image.getexif()
    tags = Image.Exif()
    assert picture.exif is not None
    tags.load(picture.exif)
    assert tags[ExifTags.Base.Make] == "Camera"
    assert tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime] == 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_or_left(orientation: int) -> None:
    data = encoded(Image.fromarray(RGB), exif=exif(orientation))
    same(from_pillow(opened(data)), read(data))
    left = from_pillow(opened(data), upright=False)
    assert np.array_equal(left.rgb, RGB)
    assert left.exif == exif(orientation).tobytes()[6:]
    assert not left.oriented


def test_metadata_may_be_given() -> None:
    image = Image.fromarray(RGB)
    image.info |= {"icc_profile": PROFILE, "exif": exif().tobytes(), "xmp": XMP}
    none = from_pillow(image, metadata={})
    assert (none.icc, none.exif, none.xmp) == (None, None, None)
    other = from_pillow(image, metadata={"exif": exif(6).tobytes(), "xmp": "é"}, upright=False)
    assert (other.icc, other.exif) == (None, exif(6).tobytes()[6:])
    assert other.xmp == "é".encode()


def test_metadata_that_does_not_fit_is_left_out_and_said() -> None:
    for info in (
        {"icc_profile": GRAY_PROFILE},
        {"exif": b"no block"},
        {"xmp": bytes(images.MAX_XMP + 1)},
        {"xmp": 5},
    ):
        picture = from_pillow(Image.fromarray(RGB), metadata=info)
        assert (picture.icc, picture.exif, picture.xmp) == (None, None, None)
        assert len(picture.warnings) == 1
    gray = from_pillow(Image.fromarray(LEVELS), metadata={"icc_profile": GRAY_PROFILE})
    assert gray.icc == GRAY_PROFILE
    assert gray.warnings == ()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "BMP"])
def test_density_and_comment_come_along(format: str) -> None:
    for dpi in ((300, 150), (72, 72), (96, 96)):
        data = encoded(Image.fromarray(RGB), format, dpi=dpi, comment=b"a remark")
        same(from_pillow(opened(data)), read(data))
    turned = encoded(Image.fromarray(RGB), "JPEG", dpi=(300, 150), exif=exif(6))
    assert read(turned).density == (5906, 11811)
    same(from_pillow(opened(turned)), read(turned))
    for nonsense in ("300", 300, (300,), (0, 0), ("a", "b"), (float("nan"), 1)):
        assert from_pillow(Image.fromarray(RGB), metadata={"dpi": nonsense}).density is None


def test_the_current_frame_counts() -> None:
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    animation = opened(encoded(frames[0], save_all=True, append_images=frames[1:]))
    animation.seek(1)
    assert np.array_equal(from_pillow(animation).rgb, 255 - RGB)


def test_what_is_no_picture_says_so() -> None:
    closed = Image.fromarray(RGB)
    closed.close()
    truncated = opened(encoded(Image.fromarray(RGB))[:100])
    for image in (Image.new("RGB", (0, 5)), Image.new("L", (5, 0)), closed, truncated):
        with pytest.raises(ImageError) as caught:
            from_pillow(image)
        assert "\n" not in str(caught.value)
    with pytest.raises(LimitError, match=str(MAX_SIDE)):
        from_pillow(Image.new("L", (MAX_SIDE + 1, 1)))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_a_picture_goes_to_pillow_and_back(mode: str) -> None:
    colour = np.stack([LEVELS] * 3, axis=2) if mode.startswith("L") else RGB
    picture = Picture(
        rgb=colour.copy(),
        alpha=ALPHA.copy() if mode.endswith("A") else None,
        gray=mode.startswith("L"),
        icc=PROFILE,
        exif=exif(3).tobytes()[6:],
        xmp=XMP,
        density=(11811, 5906),
        comment=b"a remark",
    )
    image = to_pillow(picture)
    assert (image.mode, image.size) == (mode, (WIDTH, HEIGHT))
    assert image.info.pop("dpi") == pytest.approx((300, 150), abs=0.02)
    found = {"icc_profile": PROFILE, "exif": exif(3).tobytes(), "xmp": XMP, "comment": b"a remark"}
    assert image.info == found
    image.info["dpi"] = (300, 150)
    assert image.getexif()[ExifTags.Base.Make] == "Camera"
    picture.rgb[:] = 0  # the image has memory of its own
    same(from_pillow(image, upright=False), replace(picture, rgb=colour))


def test_a_picture_without_metadata_has_an_empty_info() -> None:
    assert to_pillow(Picture(rgb=RGB)).info == {}


def test_sixteen_bits_are_scaled_with_rounding() -> None:
    values = np.arange(65536).reshape(256, 256)
    wide = np.stack([values] * 3, axis=2).astype(np.uint16)
    for gray in (False, True):
        image = to_pillow(Picture(rgb=wide, gray=gray))  # type: ignore[arg-type]
        levels = np.asarray(image).reshape(256, 256, -1)
        assert (levels == np.round(values / 257)[..., None]).all()


def test_alpha_is_unpacked_whatever_the_limit_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it touch that limit, which other threads open images by."""
    packed, seen = pack_alpha(ALPHA), []
    load = PngImagePlugin.PngImageFile.load

    def watched(image: PngImagePlugin.PngImageFile):
        seen.append(Image.MAX_IMAGE_PIXELS)
        return load(image)

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", watched)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alpha = unpack_alpha(packed, WIDTH, HEIGHT)
    assert np.array_equal(alpha, ALPHA)
    assert set(seen) == {1}


# --------------------------------------------------------------------------- the plugin: opening


def coded(codec, mode: str = "RGB", quality: int = 40, **metadata: object) -> bytes:
    """An .aic file as `Codec` makes it."""
    gray, alpha = mode.startswith("L"), ALPHA if mode.endswith("A") else None
    colour = np.stack([LEVELS] * 3, axis=2) if gray else RGB
    return codec.encode(Picture(rgb=colour, alpha=alpha, gray=gray, **metadata), quality)


WITHOUT_TORCH = """
import sys
import aiocodec.pillow
from PIL import Image
with Image.open(sys.argv[1], formats=["AIC"]) as image:
    print(image.format, image.size, image.mode, sorted(image.info), image.info["quality"])
    print(image.getexif()[271], image.get_format_mimetype(), image.tell())
    assert not {"numpy", "torch"} & set(sys.modules)
    image.verify()
assert "torch" not in sys.modules
"""


def test_all_but_pixels_is_known_without_torch(codec, python, tmp_path) -> None:
    path = tmp_path / "picture.aic"
    path.write_bytes(coded(codec, "LA", 37, icc=GRAY_PROFILE, exif=exif().tobytes()[6:], xmp=XMP))
    said = f"AIC ({WIDTH}, {HEIGHT}) LA ['exif', 'icc_profile', 'quality', 'xmp'] 37\n"
    said += "Camera image/x-aic 0\n"
    assert python(WITHOUT_TORCH, path) == said


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_an_open_file_has_the_pixels_of_the_codec(codec, mode: str) -> None:
    data = coded(codec, mode, icc=PROFILE, exif=exif(6).tobytes()[6:], xmp=XMP)
    image = opened(data)
    info = {"quality": 40, "icc_profile": PROFILE, "exif": exif(6).tobytes(), "xmp": XMP}
    assert (image.mode, image.size, image.info) == (mode, (WIDTH, HEIGHT), info)
    assert np.array_equal(np.asarray(image), np.asarray(to_pillow(codec.decode(data))))
    assert (image.mode, image.size, image.info) == (mode, (WIDTH, HEIGHT), info)
    if mode.endswith("A"):
        assert np.array_equal(np.asarray(image)[..., -1], ALPHA)


def test_the_orientation_is_left_to_whoever_asks_for_it(codec) -> None:
    image = opened(coded(codec, exif=exif(6).tobytes()[6:]))
    assert image.getexif()[ExifTags.Base.Orientation] == 6
    upright = ImageOps.exif_transpose(image)
    assert upright.size == (HEIGHT, WIDTH)
    assert ExifTags.Base.Orientation not in upright.getexif()


def test_flags_do_not_decide_whether_there_is_transparency(codec) -> None:
    """They inform; the chunk is what is decoded."""
    container = unpack(coded(codec, "RGBA"))
    header = replace(container.header, flags=Flags(0))
    image = opened(pack(header, container.chunks))
    assert image.mode == "RGBA"
    image.load()
    assert image.mode == "RGBA"
    header = replace(container.header, flags=Flags.ALPHA)
    chunks = [(kind, payload) for kind, payload in container.chunks if kind != ChunkType.ALPHA]
    image = opened(pack(header, chunks))
    assert image.mode == "RGB"
    image.load()
    assert image.mode == "RGB"


def test_names_are_those_of_a_format_of_pillow() -> None:
    assert Image.registered_extensions()[".aic"] == "AIC"
    assert Image.MIME["AIC"] == "image/x-aic"
    assert "AIC" in Image.OPEN
    assert "AIC" in Image.SAVE
    assert "AIC" not in Image.SAVE_ALL
    Image.init()
    assert kind(MAGIC + bytes(12)) == "AIC"
    with pytest.raises(ImageError, match="already"):
        read(MAGIC + bytes(100))


def test_there_is_one_frame(codec) -> None:
    image = opened(coded(codec))
    image.seek(0)
    with pytest.raises(EOFError):
        image.seek(1)
    assert image.tell() == 0
    assert getattr(image, "n_frames", 1) == 1


def test_a_file_that_comes_in_parts_is_parsed(codec) -> None:
    data = coded(codec)
    parser = ImageFile.Parser()
    for at in range(0, len(data), 7):
        parser.feed(data[at : at + 7])
    assert np.array_equal(np.asarray(parser.close()), np.asarray(opened(data)))


class Pipe(io.RawIOBase):
    """A file that can be read from its start to its end, once."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)


def test_a_file_may_be_a_pipe(codec) -> None:
    data = coded(codec)
    assert np.array_equal(np.asarray(Image.open(Pipe(data))), np.asarray(opened(data)))


# --------------------------------------------------------------------------- the plugin: damage


def test_every_flipped_bit_and_every_truncation_is_an_error_of_pillow(codec) -> None:
    data = codec.encode(Picture(rgb=RGB[:1, :1]), 0)
    damaged = [data[:length] for length in range(len(data))] + [data + b"\0"]
    for at in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        damaged.append(bytes(flipped))
    for number, each in enumerate(damaged):
        with pytest.raises(OSError) as caught:
            opened(each).load()
        assert isinstance(caught.value, UnidentifiedImageError) or isinstance(
            caught.value.__cause__, AicError
        ), number


def test_a_damaged_header_is_not_identified(codec) -> None:
    data = coded(codec)
    with pytest.raises(UnidentifiedImageError):
        opened(data[: HEADER_SIZE - 1])
    with pytest.raises(UnidentifiedImageError):
        opened(data[:8] + b"\xff" + data[9:])
    with pytest.raises(SyntaxError) as caught:
        aiocodec.pillow.AicImageFile(io.BytesIO(data[:8] + b"\xff" + data[9:]))
    assert isinstance(caught.value.__cause__, BitstreamError)


def test_a_damaged_body_has_a_size_but_no_pixels(codec) -> None:
    data = coded(codec, "RGBA")
    for damaged in (data[:HEADER_SIZE], data[:-1], data + b"\0", data[:50] + b"\0" + data[51:]):
        for method in ("load", "verify"):
            image = opened(damaged)
            assert (image.size, image.mode) == ((WIDTH, HEIGHT), "RGBA")
            for _ in range(2):  # the error stays, and the image does not turn black
                with pytest.raises(OSError) as caught:
                    getattr(image, method)()
                assert isinstance(caught.value.__cause__, BitstreamError)
                assert str(caught.value) == str(caught.value.__cause__)


def test_a_length_that_is_claimed_is_not_allocated(codec, monkeypatch) -> None:
    """No read asks for more than a part of it."""
    asked = []

    class File(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            asked.append(size)
            return super().read(size)

    fields = coded(codec)[: HEADER_SIZE - 8] + struct.pack("<I", 0xFFFFFFFF)
    image = Image.open(File(fields + struct.pack("<I", zlib.crc32(fields))))
    assert image.size == (WIDTH, HEIGHT)
    assert all(size is not None and 0 <= size <= 1 << 20 for size in asked)


def test_verify_looks_at_the_symbols_of_z(codec) -> None:
    """Every CRC is right in this file, but its symbols are noise."""
    container = unpack(coded(codec))
    latents = unpack_latents(container.get(ChunkType.LATENTS) or b"", container.header.version)
    forged = replace(latents, words=random.Random(1).randbytes(len(latents.words)))
    data = pack(container.header, [(ChunkType.LATENTS, pack_latents(forged))])
    opened(coded(codec)).verify()
    for method in ("verify", "load"):
        with pytest.raises(OSError) as caught:
            getattr(opened(data), method)()
        assert isinstance(caught.value.__cause__, BitstreamError)


def test_a_file_of_another_version_says_so(codec) -> None:
    data = bytearray(coded(codec))
    data[4] = 99
    with pytest.raises(OSError, match="version 99") as caught:
        opened(bytes(data))
    assert isinstance(caught.value.__cause__, VersionError)
    assert not isinstance(caught.value, UnidentifiedImageError)
    container = unpack(coded(codec))
    unknown = pack(container.header, container.chunks)[HEADER_SIZE:] + b"\x02\x00"
    unknown += struct.pack("<I", zlib.crc32(b"\x02\x00"))
    fields = coded(codec)[: HEADER_SIZE - 8] + struct.pack("<I", len(unknown))
    image = opened(fields + struct.pack("<I", zlib.crc32(fields)) + unknown)
    with pytest.raises(OSError, match="0x02") as caught:
        image.load()
    assert isinstance(caught.value.__cause__, VersionError)


def test_a_file_of_another_model_is_intact_but_cannot_be_loaded(codec) -> None:
    container = unpack(coded(codec))
    data = pack(replace(container.header, fingerprint=b"\1" * 8), container.chunks)
    opened(data).verify()
    image = opened(data)
    with pytest.raises(OSError, match="01" * 8) as caught:
        image.load()
    assert isinstance(caught.value.__cause__, ModelError)


def test_the_limit_of_pillow_counts(codec, monkeypatch) -> None:
    data = coded(codec, "RGBA")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT // 2 - 1)
    with pytest.raises(Image.DecompressionBombError):
        opened(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        image = opened(data)
    image.load()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    header = replace(unpack(data).header, width=MAX_SIDE, height=MAX_SIDE)
    image = opened(pack(header, unpack(data).chunks))
    assert image.size == (MAX_SIDE, MAX_SIDE)
    with pytest.raises(OSError) as caught:  # the file is far too short for so many pixels
        image.load()
    assert isinstance(caught.value.__cause__, AicError)


# --------------------------------------------------------------------------- the plugin: saving


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_what_is_saved_is_what_the_codec_writes(codec, mode: str) -> None:
    source = to_pillow(codec.decode(coded(codec, mode)))
    data = encoded(source, "AIC", quality=70)
    assert data == codec.encode(from_pillow(source, upright=False), 70)
    assert encoded(source, "AIC") == encoded(source, "aic", quality=DEFAULT_QUALITY)
    assert opened(data).mode == mode


@pytest.mark.parametrize("name", MODES)
def test_any_mode_is_saved(name: str) -> None:
    image, _ = MODES[name]
    before = image.mode, image.tobytes()
    again = opened(encoded(image, "AIC", quality=0))
    expected = to_pillow(from_pillow(image))
    assert (again.mode, again.size) == (expected.mode, image.size)
    again.load()
    assert (image.mode, image.tobytes()) == before


def test_a_path_is_enough_and_the_file_is_closed(tmp_path) -> None:
    image = Image.fromarray(RGB)
    for name in ("lower.aic", "UPPER.AIC"):
        image.save(tmp_path / name, quality=10)
        with Image.open(tmp_path / name) as again:
            assert (again.format, again.info) == ("AIC", {"quality": 10})
    assert (tmp_path / "lower.aic").read_bytes() == encoded(image, "AIC", quality=10)
    file = io.BytesIO(b"before")
    file.seek(6)
    image.save(file, "AIC", quality=10)
    assert file.getvalue() == b"before" + encoded(image, "AIC", quality=10)


def test_a_file_may_be_saved_over_itself(tmp_path) -> None:
    path = tmp_path / "picture.aic"
    Image.fromarray(RGB).save(path)
    with Image.open(path) as image:
        expected = np.asarray(image.copy())
    with Image.open(path) as image:
        image.save(path, quality=100)
    with Image.open(path) as image:
        assert image.info["quality"] == 100
        assert np.abs(np.asarray(image).astype(int) - expected).mean() < 30


def test_metadata_follows_the_manners_of_pillow() -> None:
    """The profile is that of the image unless another is given, or none; EXIF and XMP are to be given."""
    image = Image.fromarray(RGB)
    image.info |= {"icc_profile": PROFILE, "exif": exif().tobytes(), "xmp": XMP}
    other = PROFILE[:-1] + b"?"

    def kept(**options: object) -> dict:
        info = opened(encoded(image, "AIC", **options)).info
        del info["quality"]
        return info

    assert kept() == {"icc_profile": PROFILE}
    assert kept(icc_profile=other) == {"icc_profile": other}
    assert kept(icc_profile=None) == kept(icc_profile=b"") == {}
    assert kept(icc_profile=GRAY_PROFILE) == {}
    wanted = {"icc_profile": PROFILE, "exif": exif(6).tobytes()}
    assert kept(exif=exif(6)) == wanted
    assert kept(exif=exif(6).tobytes()) == wanted
    assert kept(exif=exif(6).tobytes()[6:]) == wanted
    image.info |= {"dpi": (300, 150), "comment": b"a remark"}
    assert kept() == {"icc_profile": PROFILE, "comment": b"a remark"}
    assert kept(comment=None, dpi=(0, 0)) == {"icc_profile": PROFILE}
    assert kept(comment="another", dpi=(254, 127)) == {
        "icc_profile": PROFILE,
        "comment": b"another",
        "dpi": pytest.approx((254, 127)),
    }
    del image.info["comment"]
    resolution = exif()
    resolution[ExifTags.Base.XResolution] = resolution[ExifTags.Base.YResolution] = 200.0
    assert kept(exif=resolution)["dpi"] == (200, 200)
    assert kept(exif=b"", xmp=XMP) == kept(xmp=XMP.decode()) == {"icc_profile": PROFILE, "xmp": XMP}


def test_an_image_in_ink_goes_through_its_profile_and_loses_it() -> None:
    image = MODES["CMYK"][0].copy()
    image.info["icc_profile"] = b"no profile at all"
    assert "icc_profile" not in opened(encoded(image, "AIC")).info


WRONG = [
    {"quality": -1},
    {"quality": 101},
    {"quality": "high"},
    {"quality": 50.0},
    {"quality": None},
    {"exif": b"no block"},
    {"exif": 5},
    {"exif": b"II*\0" + bytes(images.MAX_EXIF)},
    {"xmp": 5},
    {"xmp": bytes(images.MAX_XMP + 1)},
    {"icc_profile": ImageCms.createProfile("sRGB")},
    {"dpi": 300},
    {"dpi": (300,)},
    {"dpi": (300, -1)},
    {"dpi": ("a", "b")},
    {"comment": 5},
    {"comment": bytes(1 << 20)},
]


@pytest.mark.parametrize("options", WRONG, ids=lambda options: next(iter(options)))
def test_wrong_options_are_named_and_leave_no_file(tmp_path, options: dict) -> None:
    with pytest.raises(ValueError) as caught:
        Image.fromarray(RGB).save(tmp_path / "picture.aic", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_images_that_cannot_be_saved_leave_no_file(tmp_path) -> None:
    path, file = tmp_path / "picture.aic", io.BytesIO()
    for target in (path, file):
        for size in ((0, 5), (5, 0)):
            with pytest.raises(ValueError, match="empty"):
                Image.new("RGB", size).save(target, "AIC")
        with pytest.raises(OSError, match=str(MAX_SIDE)) as caught:
            Image.new("L", (MAX_SIDE + 1, 1)).save(target, "AIC")
        assert isinstance(caught.value.__cause__, LimitError)
        with pytest.raises(KeyError):  # as of all formats with a single picture
            Image.fromarray(RGB).save(target, "AIC", save_all=True)
    assert list(tmp_path.iterdir()) == []
    assert file.getvalue() == b""


class Recorder:
    """A codec that keeps what it is asked for, and fails."""

    def __init__(self, fault: Exception) -> None:
        self.fault, self.asked = fault, []

    def encode(self, picture, quality, **options):
        self.asked.append((quality, options))
        raise self.fault


@pytest.mark.parametrize("fault", [LimitError("not enough memory"), RuntimeError("a surprise")])
def test_a_codec_that_fails_leaves_no_file_and_says_why(monkeypatch, tmp_path, fault) -> None:
    codec = Recorder(fault)
    monkeypatch.setattr(aiocodec.pillow, "load_codec", lambda *model: codec)
    monkeypatch.delenv("AIC_DEBUG", raising=False)
    with pytest.raises(OSError, match=str(fault)) as caught:
        Image.fromarray(RGB).save(tmp_path / "picture.aic")
    assert isinstance(caught.value.__cause__, AicError)
    assert list(tmp_path.iterdir()) == []


NO_TORCH = """
import sys
sys.path.insert(0, sys.argv[1])
import aiocodec.pillow
from PIL import Image
image = Image.open(sys.argv[2])
for act in (image.load, lambda: Image.new("RGB", (5, 5)).save(sys.argv[3])):
    try:
        act()
    except OSError as fault:
        print(type(fault.__cause__).__name__, fault)
"""


def test_a_pytorch_that_cannot_be_loaded_is_an_error_of_pillow_too(codec, python, tmp_path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('no such library')")
    (tmp_path / "picture.aic").write_bytes(coded(codec))
    said = python(NO_TORCH, tmp_path, tmp_path / "picture.aic", tmp_path / "new.aic")
    assert said == 2 * "RuntimeMissing a library cannot be loaded: no such library\n"
    assert not (tmp_path / "new.aic").exists()


def test_effort_is_passed_on_if_it_is_given(monkeypatch) -> None:
    codec = Recorder(ValueError("effort 9 is not known"))
    monkeypatch.setattr(aiocodec.pillow, "load_codec", lambda *model: codec)
    for options in ({}, {"effort": 9, "quality": 3}, {"lossless": True}):
        with pytest.raises(ValueError, match="effort 9"):
            encoded(Image.fromarray(RGB), "AIC", **options)
    assert codec.asked == [(DEFAULT_QUALITY, {}), (3, {"effort": 9}), (DEFAULT_QUALITY, {})]


# --------------------------------------------------------------------------- the plugin: lives


def test_an_image_outlives_its_file(codec, tmp_path) -> None:
    path = tmp_path / "picture.aic"
    path.write_bytes(coded(codec))
    expected = np.asarray(Image.open(path))
    with open(path, "rb") as file:
        image = Image.open(file)
    assert np.array_equal(np.asarray(image), expected)
    with open(path, "rb") as file:
        Image.open(file).load()
        assert not file.closed  # it is not the image's to close
    with Image.open(path) as image:
        image.load()
        assert image.fp is None
    path.unlink()
    assert np.array_equal(np.asarray(image), expected)


def test_a_closed_image_is_closed(codec) -> None:
    for loaded in (False, True):
        image = opened(coded(codec))
        if loaded:
            image.load()
        image.close()
        with pytest.raises(ValueError, match="closed"):
            image.load()


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_pixels_are_the_image_s_own(codec, mode: str) -> None:
    image, untouched = opened(coded(codec, mode)), opened(coded(codec, mode))
    image.load()
    gc.collect()
    expected = np.asarray(untouched).copy()
    assert np.array_equal(np.asarray(image), expected)
    twin = image.copy()
    image.putpixel((0, 0), 7 if mode == "L" else (7, 7, 7, 7))
    assert np.array_equal(np.asarray(twin), expected)
    assert not np.array_equal(np.asarray(image), expected)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_images_are_pickled_with_their_pixels(codec, protocol: int) -> None:
    image = opened(coded(codec, "LA", xmp=XMP))
    for again in (pickle.loads(pickle.dumps(image, protocol)), copy.deepcopy(image)):
        assert (again.mode, again.size, again.info) == (image.mode, image.size, image.info)
        assert np.array_equal(np.asarray(again), np.asarray(image))


def test_images_cross_processes(codec) -> None:
    image = opened(coded(codec, "RGBA"))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(Image.Image.tobytes, (image,)) == image.tobytes()


def test_threads_open_load_and_save_at_once_with_one_copy_of_the_network(
    codec, monkeypatch
) -> None:
    from aiocodec.codec import Codec

    made, init = [], Codec.__init__

    def counted(self, *model):
        made.append(model)
        init(self, *model)

    monkeypatch.setattr(Codec, "__init__", counted)
    aiocodec.pillow.load_codec.cache_clear()
    files = [coded(codec, mode, quality) for mode in ("L", "RGBA") for quality in (0, 50, 100)]
    expected = [
        (np.asarray(to_pillow(codec.decode(data))), encoded(to_pillow(codec.decode(data)), "PNG"))
        for data in files
    ]

    def work(data: bytes) -> tuple[np.ndarray, str]:
        image = opened(data)
        opened(data).verify()
        pixels = np.asarray(image)
        return pixels, opened(encoded(image, "AIC", quality=10)).mode

    with ThreadPoolExecutor(6) as pool:
        for data, (pixels, mode), (wanted, _) in zip(
            files, pool.map(work, files), expected, strict=True
        ):
            assert np.array_equal(pixels, wanted)
            assert mode == opened(data).mode
    assert len(made) == 1
