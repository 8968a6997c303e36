"""What a file says besides its pixels goes with it, or is said to be lost: density, comments, the rest."""

import io
import itertools
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from aiocodec.config import MAX_COMMENT
from aiocodec.container import ChunkType, unpack
from aiocodec.image import Picture, exif_density, losses, read, write

RGB = np.random.default_rng(5).integers(0, 256, (6, 8, 3), dtype=np.uint8)
SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
FORMATS = ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM"]
FORMATS += ["AVIF"] * ("avif" in features.get_supported())
DPI_300 = (11811, 11811)  # pixels per metre
NO_SQUARE = (11811, 5906)  # 300 and 150 dpi


def encoded(format, mode="RGB", **options):
    out = io.BytesIO()
    Image.fromarray(RGB).convert(mode).save(out, format, **options)
    return out.getvalue()


def exif_block(x=None, y=None, unit=None, orientation=None):
    tags = Image.Exif()
    for tag, value in ((0x0112, orientation), (0x011A, x), (0x011B, y), (0x0128, unit)):
        if value is not None:
            tags[tag] = value
    tags[0x010F] = "Camera"
    return tags.tobytes()[6:]


def png(*chunks):
    """A PNG with more chunks before its pixels, a name and a payload each."""
    data = encoded("PNG")
    at = data.index(b"IDAT") - 4
    return data[:at] + b"".join(framed(*chunk) for chunk in chunks) + data[at:]


def framed(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def jpeg(*segments, jfif=None):
    """A JPEG with more segments, marker and payload, and other bytes for unit and densities in JFIF."""
    data = encoded("JPEG")
    if jfif is not None:
        data = data[:13] + struct.pack(">BHH", *jfif) + data[18:]
    more = (b"\xff" + bytes([m]) + struct.pack(">H", len(body) + 2) + body for m, body in segments)
    return data[:20] + b"".join(more) + data[20:]


# --- density


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "BMP"])
@pytest.mark.parametrize("density", [DPI_300, NO_SQUARE])
def test_a_density_comes_back(format, density):
    picture = Picture(RGB, density=density)
    assert losses(picture, format) == []
    found = read(write(picture, format)).density
    assert found == pytest.approx(density, abs=20 if format == "JPEG" else 0)  # in whole dpi there


def test_a_density_is_read_in_the_unit_of_the_file():
    assert read(encoded("JPEG", dpi=(300, 300))).density == DPI_300
    assert read(jpeg(jfif=(2, 118, 59))).density == (11800, 5900)
    assert read(encoded("PNG", dpi=(300, 150))).density == NO_SQUARE
    assert read(encoded("BMP", dpi=(300, 150))).density == NO_SQUARE
    assert read(encoded("TIFF", dpi=(300, 150))).density == NO_SQUARE
    in_centimetres = Image.Exif()
    in_centimetres.load(exif_block(118.0, 59.0, 3))
    assert read(encoded("TIFF", exif=in_centimetres)).density == (11800, 5900)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_where_the_format_says_nothing_exif_does(format):
    exif = exif_block(300.0, 150.0, 2)
    tags = Image.Exif()
    tags.load(exif)
    given = {"PNG": exif, "JPEG": b"Exif\0\0" + exif, "WEBP": exif, "TIFF": tags}[format]
    assert read(encoded(format, exif=given)).density == NO_SQUARE
    if format in ("PNG", "JPEG"):
        assert read(encoded(format, exif=given, dpi=(100, 100))).density == (3937, 3937)


def test_what_programs_write_that_know_of_no_density_is_none():
    for format in ("PNG", "JPEG", "TIFF"):
        assert read(encoded(format)).density is None
        assert read(encoded(format, dpi=(72, 72))).density is None
    assert read(encoded("BMP")).density is None  # Pillow writes 96 dpi there
    assert read(encoded("PNG", dpi=(96, 96))).density == (3780, 3780)
    assert read(png((b"pHYs", struct.pack(">IIB", 2834, 2835, 1)))).density is None


@pytest.mark.parametrize("fraction", [(300, 0), (0, 1), (1, 1 << 31), ((1 << 32) - 1, 1)])
def test_impossible_densities_say_nothing(fraction):
    tags = struct.pack("<HHII", 282, 5, 1, 38) + struct.pack("<HHII", 283, 5, 1, 38)
    block = b"II*\0\x08\0\0\0\2\0" + tags + bytes(4)
    assert exif_density(block + struct.pack("<II", 600, 2)) == DPI_300
    assert exif_density(block + struct.pack("<II", *fraction)) is None


def test_damaged_densities_say_nothing():
    for block in (exif_block(), exif_block(300.0), b"II*\0\xff\xff\xff\xff", b"", b"II*\0"):
        assert exif_density(block) is None
    for body in (struct.pack(">IIB", 0, 11811, 1), b"short"):
        assert read(png((b"pHYs", body))).density is None


def test_turning_a_picture_turns_its_density():
    for format, prefix in (("PNG", b""), ("JPEG", b"Exif\0\0")):
        data = encoded(format, exif=prefix + exif_block(orientation=6), dpi=(300, 150))
        assert read(data).density == pytest.approx(NO_SQUARE[::-1], abs=20)
    tags = Image.Exif()
    tags[0x0112] = 6
    assert read(encoded("TIFF", exif=tags, dpi=(300, 150))).density == NO_SQUARE[::-1]


@pytest.mark.parametrize("format", ["WEBP", "PPM"] + ["AVIF"] * ("AVIF" in FORMATS))
def test_a_density_that_a_format_lacks_is_lost_unless_exif_has_it(format):
    words = f"the density (pixels per inch) is left out: {format} has none"
    assert losses(Picture(RGB, density=DPI_300), format) == [words]
    kept = Picture(RGB, density=DPI_300, exif=exif_block(300.0, 300.0, 2))
    other = Picture(RGB, density=DPI_300, exif=exif_block(200.0, 200.0, 2))
    assert (words in losses(kept, format)) == (format == "PPM")
    assert words in losses(other, format)


def test_a_density_beyond_that_of_jpeg_is_said():
    for density in ((1, 1), ((1 << 32) - 1, 11811)):
        picture = Picture(RGB, density=density)
        words = ["the density (pixels per inch) is left out: JPEG cannot hold it"]
        assert losses(picture, "JPEG") == words
        assert read(write(picture, "JPEG")).density is None
        assert read(write(picture, "PNG")).density == density


def test_pixels_that_are_not_square_are_said():
    words = ("the pixel aspect ratio 2:1 is left out",)
    gif = bytearray(encoded("GIF", "P"))
    gif[12] = 113  # (113 + 15) / 64
    assert read(bytes(gif)).warnings == words
    assert read(png((b"pHYs", struct.pack(">IIB", 1, 2, 0)))).warnings == words
    assert read(jpeg(jfif=(0, 1, 2))).warnings == words
    gif[12] = 49
    for square in (bytes(gif), png((b"pHYs", struct.pack(">IIB", 7, 7, 0))), jpeg(jfif=(0, 3, 3))):
        picture = read(square)
        assert (picture.density, picture.warnings) == (None, ())


# --- comments

REMARK = "ein Entwurf, \u00e9t\u00e9".encode()


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("comment", [b"plain", REMARK, "\u65e5\u672c".encode(), b"x" * 60_000])
def test_a_comment_comes_back(format, comment):
    picture = Picture(RGB, comment=comment)
    assert losses(picture, format) == []
    back = read(write(picture, format))
    assert (back.comment, back.warnings) == (comment, ())


def test_comments_are_read():
    assert read(encoded("GIF", "P", comment=b"a remark")).comment == b"a remark"
    assert read(encoded("JPEG", comment=b"a\xff\0")).comment == b"a\xff\0"
    assert read(jpeg((0xFE, b"one"), (0xFE, b""), (0xFE, b"two"))).comment == b"one\n\ntwo"
    latin = "\u00e9t\u00e9".encode("latin-1")
    assert read(png((b"tEXt", b"Comment\0" + latin))).comment == "\u00e9t\u00e9".encode()
    assert (
        read(png((b"zTXt", b"comment\0\0" + zlib.compress(latin)))).comment == b"\xc3\xa9t\xc3\xa9"
    )
    for head, body in ((b"\0\0", REMARK), (b"\1\0", zlib.compress(REMARK))):
        data = png((b"iTXt", b"Comment\0" + head + b"de\0Bemerkung\0" + body))
        assert (read(data).comment, read(data).warnings) == (REMARK, ())
    for format in FORMATS:
        assert read(encoded(format)).comment is None


def test_the_first_comment_of_a_png_counts_and_other_text_is_said():
    data = png((b"tEXt", b"Title\0x"), (b"tEXt", b"Comment\0a"), (b"tEXt", b"Comment\0b"))
    assert read(data).comment == b"a"
    assert read(data).warnings == ("2 text chunks are left out",)


def test_comments_that_are_too_long_are_said():
    words = "the comment is left out: it is damaged or larger than 64 KiB"
    most = jpeg((0xFE, b"x" * 65533), (0xFE, b"yz"))
    assert read(most).comment == b"x" * 65533 + b"\nyz"
    picture = read(jpeg((0xFE, b"x" * 65533), (0xFE, b"xyz")))
    assert (picture.comment, picture.warnings) == (None, (words,))
    bomb = zlib.compress(bytes(1 << 24))
    for chunk in (b"zTXt", b"Comment\0\0" + bomb), (b"iTXt", b"Comment\0\1\0\0\0" + bomb):
        assert read(png(chunk)).warnings == ("1 text chunk is left out",)
    twice = png((b"tEXt", b"Comment\0" + b"\xe9" * 40_000))  # 80000 bytes in UTF-8
    assert (read(twice).comment, len(read(twice).warnings)) == (None, 1)


def test_a_damaged_comment_is_left_out():
    data = png((b"tEXt", b"Comment\0remark"))
    at = data.index(b"remark")
    picture = read(data[:at] + b"R" + data[at + 1 :])
    assert (picture.comment, picture.warnings) == (None, ("1 text chunk is left out",))


def test_comments_that_a_format_cannot_hold_are_said():
    for format in set(FORMATS) - {"PNG", "JPEG"}:
        words = f"the comment is left out: {format} has none"
        assert losses(Picture(RGB, comment=b"x"), format) == [words]
    inner = Picture(RGB, comment=b"a\0b")
    assert losses(inner, "PNG") == [
        "the comment is left out: PNG cannot hold what it says, or it is damaged"
    ]
    assert read(write(inner, "PNG")).comment is None
    assert read(write(inner, "JPEG")).comment == b"a\0b"
    assert read(write(Picture(RGB, comment=b"a\0\0"), "PNG")).comment == b"a"
    assert read(write(Picture(RGB, comment=b"\xff"), "PNG")).comment == "\u00ff".encode()
    long = Picture(RGB, comment=b"x" * 65534)
    assert losses(long, "JPEG") == [
        "the comment is left out: it is longer than the 65533 bytes of JPEG"
    ]
    assert read(write(long, "JPEG")).comment is None
    longer = Picture(RGB, comment=b"x" * (MAX_COMMENT + 1))
    assert losses(longer, "PNG") == ["the comment is left out: it is larger than 64 KiB"]
    assert read(write(longer, "PNG")).comment is None


# --- the rest is said


def test_colours_that_are_not_those_of_srgb_are_said():
    words = ("the colour space is left out, which is not sRGB and not an ICC profile",)
    gamma = (b"gAMA", struct.pack(">I", 100000))
    srgb = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
    p3 = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    assert read(png(gamma)).warnings == words
    assert read(png((b"cHRM", p3))).warnings == words
    assert read(png((b"cICP", bytes([9, 16, 0, 1])), (b"sRGB", b"\0"))).warnings == words
    for said in (
        [(b"gAMA", struct.pack(">I", 45455)), (b"cHRM", srgb)],
        [(b"sRGB", b"\0"), gamma],
        [(b"cICP", bytes([1, 13, 0, 1])), gamma],
        [(b"iCCP", b"x\0\0" + zlib.compress(SRGB_PROFILE)), gamma],
        [(b"gAMA", b"")],
    ):
        assert read(png(*said)).warnings == ()


@pytest.mark.skipif("AVIF" not in FORMATS, reason="this Pillow has no AVIF")
def test_colours_of_avif_that_are_not_those_of_srgb_are_said():
    words = ("the colour space is left out, which is not sRGB and not an ICC profile",)
    data = encoded("AVIF")
    at = data.index(b"colrnclx") + 8
    for primaries, transfer, expected in ((9, 16, words), (12, 13, words), (1, 13, ()), (1, 1, ())):
        space = struct.pack(">HH", primaries, transfer)
        assert read(data[:at] + space + data[at + 4 :]).warnings == expected


def test_what_editors_and_cameras_put_into_a_jpeg_is_said():
    resources = (0xED, b"Photoshop 3.0\x008BIM\x04\x04" + bytes(8))
    assert read(jpeg(resources, resources)).warnings == ("the IPTC data is left out",)
    assert read(jpeg((0xEB, b"JP\0\1" + bytes(9)))).warnings == ("the JUMBF metadata is left out",)


def test_iptc_in_tiff_is_said():
    info = {0x83BB: b"\x1c\2\5\0\1x"}
    assert read(encoded("TIFF", tiffinfo=info)).warnings == ("the IPTC data is left out",)


def test_a_gain_map_in_a_jpeg_is_said():
    second = Image.fromarray(RGB)
    pair = encoded("MPO", save_all=True, append_images=[second])
    assert read(pair).warnings == ("1 further frame is left out",)
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x hdrgm:Version='1.0'/>"
    iso = b"urn:iso:std:iso:ts:21496:-1\0" + bytes(4)
    for marker, body in ((0xE1, xmp), (0xE2, iso)):
        segment = b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body
        data = pair[:2] + segment + pair[2:]
        assert read(data).warnings == ("the HDR gain map is left out",)
        assert read(jpeg((marker, body))).warnings == ()  # there is no second picture


# --- through an .aic file


WHOLE = Picture(RGB, icc=SRGB_PROFILE, xmp=XMP, density=NO_SQUARE, comment=REMARK)


def test_density_and_comment_survive_an_aic_file(codec):
    back = codec.decode(codec.encode(WHOLE, 5))
    assert (back.density, back.comment) == (NO_SQUARE, REMARK)
    plain = codec.decode(codec.encode(Picture(RGB), 5))
    assert (plain.density, plain.comment) == (None, None)


def test_a_density_that_exif_has_gets_no_chunk(codec):
    exif = exif_block(300.0, 150.0, 2)
    for density, chunk in ((NO_SQUARE, False), (DPI_300, True)):
        data = codec.encode(replace(WHOLE, exif=exif, density=density), 5)
        assert (unpack(data).get(ChunkType.DENSITY) is not None) == chunk
        assert codec.decode(data).density == density


def test_malformed_density_and_comment_are_ignored(codec):
    from aiocodec.container import pack

    container = unpack(codec.encode(Picture(RGB), 5))
    for chunks in (
        [(ChunkType.DENSITY, bytes(8)), (ChunkType.COMMENT, b"x" * (MAX_COMMENT + 1))],
        [(ChunkType.DENSITY, b"12345678" * 2), (ChunkType.COMMENT, b"")],
    ):
        back = codec.decode(pack(container.header, [*container.chunks, *chunks]))
        assert (back.density, back.comment) == (None, None)


def test_a_comment_that_is_too_long_is_not_coded(codec):
    for length in (MAX_COMMENT, MAX_COMMENT + 1):
        data = codec.encode(Picture(RGB, comment=b"x" * length), 5)
        assert (unpack(data).get(ChunkType.COMMENT) is None) == (length > MAX_COMMENT)


def test_strip_leaves_out_what_it_says(codec):
    exif = exif_block(300.0, 150.0, 2)
    whole = replace(WHOLE, exif=exif)
    icc, density = (ChunkType.ICC, ChunkType.DENSITY)
    everything = {icc, ChunkType.EXIF, ChunkType.XMP, ChunkType.COMMENT}
    for strip, kept in (
        (False, everything),
        ("private", {icc, density}),  # the EXIF no longer says it
        ("all", set()),
        (True, set()),
    ):
        found = {kind for kind, _ in unpack(codec.encode(whole, 5, strip=strip)).chunks}
        assert found - {ChunkType.LATENTS, ChunkType.PROVENANCE} == kept
    data = codec.encode_to(whole, max_bytes=4000, strip="private").data
    assert codec.decode(data).density == NO_SQUARE


@pytest.mark.parametrize("strip", ["none", "ALL", "", None, 2])
def test_strip_is_one_of_four(codec, strip):
    with pytest.raises(ValueError, match="private"):
        codec.encode(Picture(RGB), 5, strip=strip)


# --- all together


@pytest.mark.parametrize("format", FORMATS)
def test_losses_are_what_does_not_come_back(format):
    for density, comment, exif in itertools.product(
        (None, DPI_300), (None, b"remark"), (None, exif_block(300.0, 300.0, 2))
    ):
        picture = Picture(RGB, density=density, comment=comment, exif=exif)
        back, lost = read(write(picture, format)), " ".join(losses(picture, format))
        assert (back.comment != comment) == ("comment" in lost)
        expected = density or exif_density(back.exif)
        assert (back.density != expected) == ("density" in lost)
