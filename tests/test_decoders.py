"""HEIF, JPEG XL and camera RAW: files of real encoders give pixels and metadata, and what is lost is said.

The RAW files are DNGs made here: a small picture to be shown, which no test may find, and a mosaic.
"""

import io
import random
import struct
import sys
import types

import brotli
import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401  (which makes Pillow write JPEG XL, too)
import pytest
from PIL import Image, ImageCms

from aiocodec import decoders
from aiocodec import image as images
from aiocodec.errors import ImageError, LimitError, RuntimeMissing
from aiocodec.image import kind, read

HEIGHT, WIDTH = 48, 64
Y, X = np.mgrid[:HEIGHT, :WIDTH]
SMOOTH = np.stack([X * 3, Y * 4, X + Y * 2], 2).astype(np.uint8)
GRAY = np.ascontiguousarray(SMOOTH[..., 1])
ALPHA = (255 - X * 3).astype(np.uint8)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="1"/></x:xmpmeta>'
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
BITS = "samples of more than 8 bits are reduced to 8 bits"
DEVELOPED = "camera RAW is developed to sRGB of 8 bits, with the white balance of the camera"
ANIMATED_JXL = bytes.fromhex(  # three frames of 32x24, black, gray and white
    "ff0ac5044d002026080401001c004b188b158203000804010044004b188b15801dfcff0000500700182d"
    "22010804050044004b188b15805dfcff000052070050294202"
)


def exif_block(orientation=None):
    tags = Image.Exif()
    tags[0x010F] = "Camera"
    tags[0x011A], tags[0x011B], tags[0x0128] = 300.0, 300.0, 2
    if orientation:
        tags[0x0112] = orientation
    return tags.tobytes()


def heif(*pictures, mode="RGB", **options):
    """A HEIF of arrays in a mode of pillow-heif; the first picture is the one that counts."""
    file = pillow_heif.HeifFile()
    for pixels in pictures:
        size = pixels.shape[1::-1]
        file.add_frombytes(mode, size, np.ascontiguousarray(pixels).tobytes())
    out = io.BytesIO()
    file.save(out, **{"quality": 95, "chroma": 444, **options})
    return out.getvalue()


def with_auxiliary(data, name):
    """A HEIF whose alpha plane is called something else; all that lies behind the name moves."""
    now = b"urn:mpeg:hevc:2015:auxid:1"
    longer, data = len(name) - len(now), data.replace(now, name)
    for outer in (b"meta", b"iprp", b"ipco", b"auxC"):
        at = data.index(outer) - 4
        size = int.from_bytes(data[at : at + 4], "big") + longer
        data = data[:at] + size.to_bytes(4, "big") + data[at + 4 :]
    at = data.index(b"iloc") + 4
    version, sizes, base, count = data[at], data[at + 4], data[at + 5] >> 4, data[at + 7]
    assert (version, sizes, base) == (0, 0x44, 4)  # offsets count from a base, all have 4 bytes
    fields, at = bytearray(data), at + 8
    for _ in range(count):
        start = int.from_bytes(fields[at + 4 : at + 8], "big") + longer
        fields[at + 4 : at + 8] = start.to_bytes(4, "big")
        at += 10 + 8 * fields[at + 9]
    return bytes(fields)


def jxl(pixels, **options):
    out = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(out, "JXL", **options)
    return out.getvalue()


def box(name, body):
    return struct.pack(">I4s", len(body) + 8, name) + body


def jxl_with(*boxes):
    """A JPEG XL in a container, with these boxes after its codestream."""
    return jxl(SMOOTH, lossless=True, use_container=True) + b"".join(boxes)


def directory(at, entries):
    """A directory of a little-endian TIFF at `at`: tag, type, and values or bytes."""
    at += 2 + 12 * len(entries) + 4
    table, tail = struct.pack("<H", len(entries)), b""
    for tag, kind_, values in sorted(entries):
        if isinstance(values, bytes):
            body, count = values, len(values)
        else:
            form = {1: "B", 3: "H", 4: "I", 5: "II", 10: "ii"}[kind_]
            body = b"".join(struct.pack("<" + form, *np.atleast_1d(v)) for v in values)
            count = len(values)
        if len(body) > 4:
            place, tail = at + len(tail), tail + body + bytes(len(body) % 2)
            body = struct.pack("<I", place)
        table += struct.pack("<HHI", tag, kind_, count) + body.ljust(4, b"\0")
    return table + bytes(4) + tail


def dng(orientation=1, width=WIDTH, height=HEIGHT, more=(), sensor=()):
    """A DNG whose mosaic brightens from the left to the right, and whose small picture is blue."""
    levels = np.broadcast_to(np.linspace(500, 60000, width), (height, width)).astype("<u2")
    mosaic, shown = levels.tobytes(), bytes([10, 20, 250]) * (16 * 12)
    unit = [(int(i % 4 == 0), 1) for i in range(9)]
    sub = details = small = large = 0
    for _ in range(2):  # offsets are known once the lengths are
        first = [
            *((254, 4, [1]), (256, 4, [16]), (257, 4, [12]), (258, 3, [8, 8, 8]), (259, 3, [1])),
            *((262, 3, [2]), (271, 2, b"Maker\0"), (272, 2, b"Model\0"), (273, 4, [small])),
            *((274, 3, [orientation]), (277, 3, [3]), (278, 4, [12]), (279, 4, [len(shown)])),
            *((282, 5, [(300, 1)]), (283, 5, [(300, 1)]), (296, 3, [2]), (330, 4, [sub])),
            *((700, 1, XMP), (34665, 4, [details]), (50706, 1, [1, 4, 0, 0])),
            *((50708, 2, b"Maker Model\0"), (50721, 10, unit), (50728, 5, [(1, 1)] * 3)),
            *((50778, 3, [21]), *more),
        ]
        changed = {entry[0]: entry for entry in sensor}
        second = [
            *((254, 4, [0]), (256, 4, [width]), (257, 4, [height]), (258, 3, [16]), (259, 3, [1])),
            *((262, 3, [32803]), (273, 4, [large]), (277, 3, [1]), (278, 4, [height])),
            *((279, 4, [len(mosaic)]), (33421, 3, [2, 2]), (33422, 1, [0, 1, 1, 2])),
            *((50714, 4, [0]), (50717, 4, [65535])),
        ]
        second = [changed.pop(entry[0], entry) for entry in second] + list(changed.values())
        third = [(33434, 5, [(1, 100)]), (37500, 7, b"a secret of the maker")]
        parts = [directory(8, first)]
        sub = 8 + len(parts[0])
        parts.append(directory(sub, second))
        details = sub + len(parts[1])
        parts.append(directory(details, third))
        small = details + len(parts[2])
        large = small + len(shown)
    return b"II*\0\x08\0\0\0" + b"".join(parts) + shown + mosaic


def expect(data, rgb, alpha=None, *, tolerance, gray=False, sixteen_bit=False):
    picture = read(data)
    assert picture.rgb.dtype == np.uint8 and picture.rgb.flags.c_contiguous
    assert picture.rgb.shape == rgb.shape
    assert np.abs(picture.rgb.astype(int) - rgb).max() <= tolerance
    assert (picture.alpha is None) == (alpha is None)
    if alpha is not None:
        assert np.abs(picture.alpha.astype(int) - alpha).max() <= tolerance
    assert (picture.gray, picture.sixteen_bit) == (gray, sixteen_bit)
    return picture


def three(levels):
    return np.stack([levels] * 3, axis=2)


# --- which files are of these formats


def test_files_are_known_without_the_packages():
    for data, name in (
        (heif(SMOOTH), "HEIF"),
        (jxl(SMOOTH), "JXL"),
        (jxl_with(), "JXL"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "RAW"),
        (b"II*\0\x10\0\0\0CR\2\0", "RAW"),
        (b"II*\0\x08\x9a\1\0IIII\x08waR", "RAW"),
        (b"MM\0*\0\1\x9a\x08MMMMRaw\x08", "RAW"),
        (b"IIRO\x08\0\0\0" + bytes(8), "RAW"),
        (b"IIU\0\x18\0\0\0" + bytes(8), "RAW"),
        (b"FUJIFILMCCD-RAW 0201", "RAW"),
        (b"FOVb\0\0\2\0" + bytes(8), "RAW"),
        (b"II\x1a\0\0\0HEAPCCDR", "RAW"),
        (b"\0MRM" + bytes(12), "RAW"),
    ):
        assert kind(data) == kind(data[:16]) == kind(data[:4096]) == name
    assert kind(dng()) == kind(dng()[:4096]) == "RAW"


def test_brands_tell_heif_from_avif():
    def brands(*names):
        return box(b"ftyp", names[0] + bytes(4) + b"".join(names))

    assert kind(brands(b"mif1", b"mif1", b"heic")) == "HEIF"
    assert kind(brands(b"mif1", b"mif1", b"avif")) == "AVIF"
    assert kind(brands(b"heix")) == "HEIF"
    assert kind(brands(b"avif", b"mif1", b"heic")) == "AVIF"
    assert decoders.kind(brands(b"isom", b"mp42")) is None


@pytest.mark.parametrize("tag", [(262, 3, [34892]), (50706, 1, [1, 4, 0, 0]), (262, 3, [32803])])
def test_a_tiff_with_what_a_sensor_saw_is_raw(tag):
    plain = [(256, 4, [1]), (257, 4, [1])]
    assert decoders.kind(b"II*\0\x08\0\0\0" + directory(8, plain)) is None
    assert decoders.kind(b"II*\0\x08\0\0\0" + directory(8, [*plain, tag])) == "RAW"
    below = 8 + len(directory(8, [*plain, (330, 4, [0])]))
    both = directory(8, [*plain, (330, 4, [below])]) + directory(below, [*plain, tag])
    assert decoders.kind(b"II*\0\x08\0\0\0" + both) == "RAW"


def test_an_ordinary_tiff_is_none():
    out = io.BytesIO()
    picture = Image.fromarray(SMOOTH)
    picture.save(out, "TIFF", save_all=True, append_images=[picture])
    assert kind(out.getvalue()) == "TIFF"
    for pixels in (b"CR", b"IIII", b"MMMM"):  # in front of their directory
        tags = [(256, 4, [len(pixels)]), (257, 4, [1]), (258, 3, [8]), (262, 3, [1])]
        tags += [(273, 4, [8]), (278, 4, [1]), (279, 4, [len(pixels)])]
        data = b"II*\0\x10\0\0\0" + pixels.ljust(8, b"\0") + directory(16, tags)
        assert kind(data) == "TIFF"
        assert read(data).rgb[0, :, 0].tolist() == list(pixels)


def test_kind_of_random_bytes_raises_nothing():
    rng = random.Random(5)
    files = [heif(SMOOTH), jxl(SMOOTH), dng()]
    for _ in range(1500):
        data = bytearray(rng.choice(files)[:2000])
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        assert kind(bytes(data[: rng.randrange(len(data))])) in {None, *Image.ID, *decoders.FORMATS}


# --- without the packages


@pytest.mark.parametrize(
    ("module", "make", "words"),
    [
        ("pillow_heif", lambda: heif(SMOOTH), "HEIC needs pip install 'aiocodec[heif]'"),
        ("pillow_jxl", lambda: jxl(SMOOTH), "JPEG XL needs pip install 'aiocodec[jxl]'"),
        ("rawpy", dng, "camera RAW needs pip install 'aiocodec[raw]'"),
    ],
)
def test_a_missing_extra_is_named(module, make, words, monkeypatch):
    data = make()
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImageError) as caught:
        read(data)
    assert str(caught.value) == words


def test_a_broken_extra_is_no_broken_picture(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # importing it is an ImportError now
    with pytest.raises(ImageError, match="aiocodec.heif"):
        read(heif(SMOOTH))
    monkeypatch.undo()

    def broken(name):
        raise ImportError("libheif.so: wrong ELF class")

    data = heif(SMOOTH)
    monkeypatch.setattr(decoders.importlib, "import_module", broken)
    with pytest.raises(RuntimeMissing, match="pillow_heif cannot be loaded: libheif"):
        read(data)


def test_packages_are_imported_for_their_files_alone(python):
    script = """
import io, sys
from PIL import Image
from aiocodec.image import read, kind
out = io.BytesIO()
Image.new("RGB", (8, 8)).save(out, "TIFF")
read(out.getvalue())
kind(b"\\xff\\x0a")
print({"pillow_heif", "pillow_jxl", "rawpy", "brotli"} & set(sys.modules))
read(open(sys.argv[1], "rb").read())
print("HEIF" in Image.OPEN, "pillow_heif" in sys.modules)
"""
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(heif(SMOOTH))
        file.flush()
        assert python(script, file.name).split("\n")[:2] == ["set()", "False True"]


def test_only_the_formats_asked_for_are_tried():
    for name, data in (("HEIF", heif(SMOOTH)), ("JXL", jxl(SMOOTH)), ("RAW", dng())):
        assert read(data, formats=[name.lower()]).rgb.shape == SMOOTH.shape
        others = [other for other in images.FORMATS if other != name]
        with pytest.raises(ImageError, match=f"the format {name} is not among those to read"):
            read(data, formats=others)


@pytest.mark.parametrize("make", [lambda: heif(SMOOTH), lambda: jxl(SMOOTH), dng])
def test_limits_hold_before_anything_is_decoded(make, monkeypatch):
    data = make()
    assert read(data, max_pixels=WIDTH * HEIGHT).rgb.shape == SMOOTH.shape

    def decoded(*arguments, **options):
        raise AssertionError("decoded")

    monkeypatch.setattr(pillow_heif.HeifImage, "load", decoded)
    monkeypatch.setattr(pillow_jxl, "Decoder", decoded)
    import rawpy

    class Raw(rawpy.RawPy):
        unpack = decoded

    monkeypatch.setattr(rawpy, "RawPy", Raw)
    with pytest.raises(LimitError, match="exceed the limit"):
        read(data, max_pixels=WIDTH * HEIGHT - 1)
    monkeypatch.setattr(images, "_SMALL", 16)
    for name in ("HEIF", "JXL", "RAW"):
        monkeypatch.setitem(images._DENSITY, name, 0)
    with pytest.raises(LimitError, match="truncated, or a decompression bomb"):
        read(data)


# --- HEIF


def test_heif_of_8_bits():
    assert expect(heif(SMOOTH), SMOOTH, tolerance=9).warnings == ()
    expect(heif(GRAY, mode="L"), three(GRAY), gray=True, tolerance=6)
    both = np.dstack([SMOOTH, ALPHA])
    expect(heif(both, mode="RGBA"), SMOOTH, ALPHA, tolerance=9)


def test_heif_of_more_bits_is_rounded_and_said():
    wide = SMOOTH.astype(np.uint16) * 257
    picture = expect(heif(wide, mode="RGB;16"), SMOOTH, sixteen_bit=True, tolerance=6)
    assert picture.warnings == (BITS,)
    levels = GRAY.astype(np.uint16) * 257
    expect(heif(levels, mode="I;16"), three(GRAY), gray=True, sixteen_bit=True, tolerance=6)
    white = np.full_like(wide, 65535)
    assert (read(heif(white, mode="RGB;16")).rgb == 255).all()


def test_premultiplied_heif_is_divided():
    alpha = np.full_like(ALPHA, 128)
    half = np.dstack([SMOOTH // 2, alpha])
    expected = SMOOTH.astype(int) // 2 * 255 // 128
    picture = expect(heif(half, mode="RGBa"), expected, alpha, tolerance=12)
    assert picture.rgb.max() > 170


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heif_is_turned_once(orientation):
    """HEIF turns the picture by itself; what its EXIF says of it counts no more."""
    turned = Image.fromarray(SMOOTH)
    tags = Image.Exif()
    tags.load(exif_block(orientation))
    options = {"quality": 95, "chroma": 444, "exif": tags.tobytes()}
    file = pillow_heif.from_pillow(turned)
    out = io.BytesIO()
    file.save(out, **options)
    plain = read(out.getvalue())  # from_pillow has turned nothing
    turns = {
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.swapaxes(np.rot90(a, 2), 0, 1),
        8: np.rot90,
    }
    upright = turns.get(orientation, lambda a: a)(SMOOTH)
    assert plain.rgb.shape == upright.shape
    assert np.abs(plain.rgb.astype(int) - upright).max() <= 9
    assert plain.oriented == (orientation != 1)
    kept = Image.Exif()
    kept.load(plain.exif)
    assert (kept[0x010F], kept.get(0x0112, 1)) == ("Camera", 1)


def test_metadata_of_heif():
    picture = read(heif(SMOOTH, exif=exif_block(), xmp=XMP, icc_profile=PROFILE))
    assert picture.exif == exif_block().removeprefix(b"Exif\0\0")
    assert picture.xmp == XMP
    assert picture.density == (11811, 11811)
    assert picture.warnings == ()
    file = pillow_heif.from_pillow(Image.fromarray(SMOOTH))
    file[0].info["icc_profile"] = PROFILE
    file[0].info["icc_profile_type"] = "prof"
    out = io.BytesIO()
    file.save(out)
    assert read(out.getvalue()).icc == PROFILE


def test_what_else_is_in_heif_is_said():
    assert read(heif(SMOOTH, SMOOTH[::-1])).warnings == ("1 further frame is left out",)
    assert read(heif(SMOOTH, thumbnails=[16, 32])).warnings == ("2 thumbnails are left out",)
    with_alpha = heif(np.dstack([SMOOTH, ALPHA]), mode="RGBA")
    for name, words in (
        (b"urn:com:apple:photo:2020:aux:hdrgainmap", "1 HDR gain map is left out"),
        (b"urn:mpeg:hevc:2015:auxid:2", "1 depth map is left out"),
        (b"urn:example:other", "1 auxiliary image is left out"),
    ):
        picture = read(with_auxiliary(with_alpha, name))
        assert picture.alpha is None
        assert picture.warnings == (words,)
    assert read(with_auxiliary(with_alpha, b"urn:mpeg:hevc:2015:auxid:1")).alpha is not None


def test_other_colours_in_heif_are_said():
    words = "the colour space is left out, which is not sRGB and not an ICC profile"
    for primaries, transfer, other in (
        (12, 13, True),
        (9, 16, True),
        (1, 13, False),
        (1, 1, False),
    ):
        profile = {
            "color_primaries": primaries,
            "transfer_characteristics": transfer,
            "matrix_coefficients": 6,
            "full_range_flag": 1,
        }
        data = heif(SMOOTH, nclx_profile=profile, save_nclx_profile=True, **profile)
        assert (words in read(data).warnings) == other, (primaries, transfer)


def test_pixels_of_heif_that_are_not_square_are_said():
    file = pillow_heif.from_pillow(Image.fromarray(SMOOTH))
    file[0].info["pixel_aspect_ratio"] = (2, 1)
    out = io.BytesIO()
    file.save(out)
    assert read(out.getvalue()).warnings == ("the pixel aspect ratio 2:1 is left out",)


# --- JPEG XL


def test_jpeg_xl():
    for container in (False, True):
        data = jxl(SMOOTH, lossless=True, use_container=container)
        picture = expect(data, SMOOTH, tolerance=0)
        assert (picture.warnings, picture.icc) == ((), None)
    expect(jxl(SMOOTH, quality=95), SMOOTH, tolerance=10)
    expect(jxl(GRAY, lossless=True), three(GRAY), gray=True, tolerance=0)
    both = np.dstack([GRAY, ALPHA])
    expect(jxl(both, lossless=True), three(GRAY), ALPHA, gray=True, tolerance=0)
    expect(jxl(np.dstack([SMOOTH, ALPHA]), lossless=True), SMOOTH, ALPHA, tolerance=0)


def test_deep_jpeg_xl_is_rounded_and_said():
    levels = (X * 1000 + Y).astype(np.uint16)
    expected = three(np.round(levels / 257))
    data = jxl(levels, lossless=True)
    picture = expect(data, expected, gray=True, sixteen_bit=True, tolerance=0)
    assert picture.warnings == (BITS,)
    unit = (levels / 65535).astype(np.float32)
    data = jxl(unit, lossless=True)
    expect(data, expected, gray=True, sixteen_bit=True, tolerance=1)


@pytest.mark.parametrize(
    "size",
    [
        (1, 1),
        (8, 8),
        (256, 8),
        (256, 256),
        (257, 255),
        (300, 250),
        (64, 36),
        (1200, 1000),
        (2, 600),
    ],
)
def test_the_size_in_the_codestream_is_that_of_the_picture(size):
    data = jxl(Image.new("RGB", size, (1, 2, 3)), lossless=True)
    assert read(data, max_pixels=size[0] * size[1]).rgb.shape == (*size[::-1], 3)
    with pytest.raises(LimitError, match=f"{size[0]}x{size[1]}"):
        read(data, max_pixels=size[0] * size[1] - 1)


def test_metadata_of_jpeg_xl():
    exif = exif_block(6).removeprefix(b"Exif\0\0")
    expected = exif_block(1).removeprefix(b"Exif\0\0")
    for compress in (False, True):
        data = jxl(SMOOTH, lossless=True, exif=exif, xmp=XMP, compress_metadata=compress)
        assert (b"brob" in data) == compress
        picture = expect(data, SMOOTH, tolerance=0)  # the codestream says how it is turned
        assert (picture.exif, picture.xmp) == (expected, XMP)
        assert picture.density == (11811, 11811)
        assert picture.warnings == ()


def test_a_jpeg_xl_that_was_a_jpeg_is_that_jpeg(tmp_path):
    path = tmp_path / "x.jpg"
    Image.fromarray(SMOOTH).save(path, quality=90, exif=exif_block(6), comment=b"a remark")
    jpeg = path.read_bytes()
    with Image.open(path) as opened, pytest.warns(UserWarning, match="reconstruction"):
        data = jxl(opened)
    expected, picture = read(jpeg), read(data)
    assert np.array_equal(picture.rgb, expected.rgb)
    assert picture.oriented and picture.rgb.shape == (WIDTH, HEIGHT, 3)
    assert (picture.exif, picture.comment) == (expected.exif, b"a remark")
    with pytest.raises(LimitError):
        read(data, max_pixels=WIDTH * HEIGHT - 1)


def test_what_else_is_in_jpeg_xl_is_said():
    packed = brotli.compress(b"map")
    for boxes, words in (
        ([box(b"jhgm", b"map")], ("the HDR gain map is left out",)),
        ([box(b"brob", b"jhgm" + packed)], ("the HDR gain map is left out",)),
        ([box(b"jumb", b"x")] * 2, ("the JUMBF metadata is left out",)),
        ([box(b"free", b"x")], ()),
    ):
        picture = read(jxl_with(*boxes))
        assert np.array_equal(picture.rgb, SMOOTH)
        assert picture.warnings == words


def test_damaged_metadata_of_jpeg_xl_costs_only_itself():
    bomb = brotli.compress(bytes(1 << 26))
    for name, body, what in (
        (b"Exif", b"", "EXIF"),
        (b"Exif", bytes(4) + b"junk", "EXIF"),
        (b"brob", b"Exif" + bomb, "EXIF"),
        (b"brob", b"xml " + bomb, "XMP"),
        (b"brob", b"xml " + brotli.compress(XMP)[:-3], "XMP"),
        (b"brob", b"xml junk", "XMP"),
    ):
        picture = read(jxl_with(box(name, body)))
        assert np.array_equal(picture.rgb, SMOOTH)
        (warning,) = picture.warnings
        assert warning.startswith(f"the {what} is left out: it is damaged or larger")


def test_animations_are_refused_as_such():
    """pillow-jxl-plugin gives the last frame of these, where `read` promises the first."""
    with pytest.raises(ImageError, match="animated JPEG XL cannot be read"):
        read(ANIMATED_JXL)


def test_extra_channels_of_jpeg_xl_are_bounded():
    """Written by hand: 8x8, all defaults but for the extra channels, which have defaults, too."""

    def head(channels, kind_=None):
        fields = [(0x0AFF, 16), (1, 1), (0, 5), (1, 3)]  # small, 8 pixels high, square
        fields += [(0, 1), (0, 1), (0, 1), (0, 2), (0, 1)]  # 8 bits, and so on
        fields += [(2, 2), (channels - 2, 4)]
        for _ in range(channels):
            fields += [(1, 1)] if kind_ is None else [(0, 1), (2, 2), (kind_ - 2, 4)]
            fields += [] if kind_ is None else [(0, 1), (0, 2), (0, 2), (0, 2)]
        number = at = 0
        for value, bits in [*fields, (0, 64)]:
            number |= value << at
            at += bits
        return number.to_bytes(at // 8 + 1, "little")

    with pytest.raises(LimitError, match="more than 4 extra channels"):
        read(head(5))
    with pytest.raises(ImageError, match="CMYK"):
        read(head(2, 4))
    with pytest.raises(ImageError, match="damaged"):
        read(head(4))


# --- camera RAW


def test_raw_is_developed_and_not_what_it_shows():
    picture = read(dng())
    assert picture.rgb.shape == (HEIGHT, WIDTH, 3)
    assert picture.sixteen_bit and not picture.gray and not picture.oriented
    columns = picture.rgb[8:-8].astype(int).mean(axis=(0, 2))
    assert (np.diff(columns[4:-4]) >= 0).all() and columns[-5] - columns[4] > 100
    assert np.ptp(picture.rgb[8:-8, 8:-8].astype(int), axis=2).max() < 30  # as gray as the mosaic
    assert picture.warnings[0] == DEVELOPED
    assert BITS in picture.warnings
    with Image.open(io.BytesIO(dng())) as small:
        assert small.size == (16, 12)  # what Pillow finds


@pytest.mark.parametrize(("orientation", "brighter"), [(3, "left"), (6, "bottom"), (8, "top")])
def test_raw_is_turned(orientation, brighter):
    picture = read(dng(orientation))
    assert picture.oriented
    upright = {"left": np.fliplr, "bottom": np.rot90, "top": lambda a: np.rot90(a, -1)}[brighter]
    assert picture.rgb.shape[:2] == ((HEIGHT, WIDTH) if orientation == 3 else (WIDTH, HEIGHT))
    columns = upright(picture.rgb).astype(int).mean(axis=(0, 2))
    assert columns[-5] > columns[4] + 100
    kept = Image.Exif()
    kept.load(picture.exif)
    assert kept.get(0x0112, 1) == 1


def test_metadata_of_raw():
    picture = read(dng())
    kept = Image.Exif()
    kept.load(picture.exif)
    assert (kept[271], kept[272]) == ("Maker", "Model")
    assert dict(kept.get_ifd(0x8769)) == {33434: 0.01}
    assert not {256, 273, 330, 50706} & set(kept)  # the layout of the file
    assert (picture.xmp, picture.density) == (XMP, (11811, 11811))
    assert "the maker note in the EXIF is left out" in picture.warnings
    assert b"secret" not in picture.exif


def test_metadata_of_raw_that_is_no_tiff(monkeypatch):
    """CR3, RAF and ORF keep it in places of their own; LibRaw is none that could be fooled by hand."""

    class Raw:
        sizes = types.SimpleNamespace(
            iwidth=4, iheight=2, raw_width=4, raw_height=2, flip=0, pixel_aspect=1.0
        )

        def __enter__(self):
            return self

        def __exit__(self, *fault):
            pass

        def open_buffer(self, file):
            pass

        def unpack(self):
            pass

        def postprocess(self, **options):
            return np.zeros((2, 4, 3), np.uint8)

    package = types.SimpleNamespace(RawPy=Raw, LibRawError=OSError)
    monkeypatch.setitem(sys.modules, "rawpy", package)

    def block(*entries):
        return b"II*\0\x08\0\0\0" + directory(8, list(entries))

    main, exposure = block((271, 2, b"Maker\0")), block((33434, 5, [(1, 100)]))
    place = block((1, 2, b"N\0"))
    exif = exif_block()
    preview = b"\xff\xd8\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    fuji = b"FUJIFILMCCD-RAW 0201".ljust(84, b"\0") + struct.pack(">II", 92, len(preview)) + preview
    for data, make, details in (
        (
            box(b"ftyp", b"crx \0\0\0\1crx isom")
            + box(b"moov", box(b"CMT1", main) + box(b"CMT2", exposure) + box(b"CMT4", place)),
            "Maker",
            {33434: 0.01},
        ),
        (fuji, "Camera", {}),
        (b"IIRO" + main[4:], "Maker", {}),
    ):
        picture = read(data)
        kept = Image.Exif()
        kept.load(picture.exif)
        assert kept[271] == make
        assert dict(kept.get_ifd(0x8769)) == details
        if data.startswith(b"\0"):
            assert kept.get_ifd(0x8825)[1] == "N"
    assert read(b"FOVb" + bytes(200)).exif is None


def test_what_libraw_cannot_take_is_said():
    for data, words in (
        (dng(width=16), "the RAW file is damaged, or of a camera that LibRaw does not know"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(400), "the RAW file"),
        (b"IIU\0" + bytes(200), "the RAW file"),
    ):
        with pytest.raises(ImageError, match=words):
            read(data)


def test_memory_that_libraw_lacks_is_a_limit(monkeypatch):
    import rawpy

    class Raw(rawpy.RawPy):
        def unpack(self):
            raise rawpy.LibRawUnsufficientMemoryError(b"Unsufficient memory")

    monkeypatch.setattr(rawpy, "RawPy", Raw)
    with pytest.raises(LimitError, match="not enough memory"):
        read(dng())


def test_malformed_tags_of_raw_cost_only_themselves():
    data = dng(more=[(33434, 5, [(1, 3)] * 20000)])  # more fractions than can be read safely
    picture = read(data)
    assert picture.exif is None
    assert "the EXIF is left out: it is damaged or larger than 1 MiB" in picture.warnings
    assert picture.rgb.shape == (HEIGHT, WIDTH, 3)


# --- bad input


@pytest.mark.parametrize("make", [lambda: heif(SMOOTH), lambda: jxl_with(), dng])
@pytest.mark.parametrize("strict", [False, True])
def test_truncated_files_are_refused(make, strict, capfd):
    data = make()
    step = max(1, len(data) // 40)
    for length in (*range(16, len(data), step), len(data) - 20, len(data) - 1):
        with pytest.raises((ImageError, LimitError)) as caught:
            read(data[:length], strict=strict)
        text = str(caught.value)
        assert text.isprintable() and len(text) < 300
    assert capfd.readouterr() == ("", "")
