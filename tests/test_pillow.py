"""Pillow and aiocodec: an image in memory is as good as its file, and .aic is a format among others."""

import copy
import io
import struct
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from aiocodec import image as images
from aiocodec.config import MAX_SIDE
from aiocodec.errors import ImageError, LimitError
from aiocodec.image import Picture, from_pillow, pack_alpha, read, to_pillow, unpack_alpha

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
    for name in ("gray", "sixteen_bit", "oriented", "icc", "exif", "xmp"):
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
    )
    image = to_pillow(picture)
    assert (image.mode, image.size) == (mode, (WIDTH, HEIGHT))
    assert image.info == {"icc_profile": PROFILE, "exif": exif(3).tobytes(), "xmp": XMP}
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
