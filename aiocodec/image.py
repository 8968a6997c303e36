"""Image files <-> uint8 pixels [H, W, 3] and metadata. All that aiocodec knows of Pillow is here,
and in the plugin that Pillow knows aiocodec by, pillow.py.

`read` takes the formats of FORMATS and makes of them what a viewer would show: 8-bit RGB, turned
upright, the first frame of several. `write` takes such a picture to PNG, JPEG, WebP, TIFF, BMP, PPM
or AVIF, in 16 bits to PNG, and `losses` says what it leaves out. `pack_alpha` and `unpack_alpha` are the lossless form
that a transparency plane has inside an .aic file.

`from_pillow` and `to_pillow` are for images that Pillow holds, without a file.

Any file may come from a stranger, and so may the metadata of any Picture: see docs/security.md.
"""

import logging
import os
import re
import struct
import threading
import warnings
import zlib
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import SEEK_CUR, SEEK_END, SEEK_SET, BufferedReader, BytesIO, RawIOBase
from itertools import accumulate
from pathlib import PurePath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from aiocodec import decoders, png, tiff
from aiocodec.config import MAX_COMMENT, MAX_SIDE
from aiocodec.errors import AicError, BitstreamError, ImageError, LimitError, OutputError

# What `read` tries. A name is as Pillow has it; MPO is a JPEG with further pictures in it. TGA has no
# signature, so that it is the last that Pillow tries. Those that Pillow has not are tried before, as
# most camera RAW begins as a TIFF does.
FORMATS = (
    "PNG",
    "JPEG",
    "MPO",
    "GIF",
    "BMP",
    "PPM",
    "WEBP",
    "AVIF",
    "TIFF",
    "DIB",
    "ICO",
    "ICNS",
    "JPEG2000",
    "PSD",
    "PCX",
    "SGI",
    "DDS",
    "QOI",
    "TGA",
    *decoders.FORMATS,
)
MAX_EXIF = 1 << 20  # bytes; larger metadata is neither read nor written
MAX_ICC = MAX_XMP = 1 << 24

_LIMITS = {"EXIF": MAX_EXIF, "ICC profile": MAX_ICC, "XMP": MAX_XMP, "comment": MAX_COMMENT}

_AIC_MAGIC = b"\x8aAIC"
_PNG_LEVEL = 4  # of zlib: 6, the default, takes twice as long for files 2 % smaller
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_JPEG_MAGIC = b"\xff\xd8\xff"
_EXIF_PREFIX = b"Exif\0\0"
_XMP_KEY = b"XML:com.adobe.xmp\0"  # of an iTXt chunk in PNG
_IN_SCANS = {b"\0", b"\xff", *(bytes([marker]) for marker in range(0xD0, 0xD8))}  # after FF in JPEG
_NO_PADDING = re.compile(rb"[^\xff]")  # of a marker in JPEG
_XMP_TAG = 0x02BC
_IPTC_TAGS = (0x83BB, 0x8649)  # of TIFF: IPTC itself, and resources of Photoshop, which hold it

_INCH, _CENTIMETRE = 1 / 0.0254, 100.0  # of each in a metre
_NO_UNIT = 0.0
# What programs write that know of no density: 72 dpi, and 96 in BMP.
_DEFAULT_DENSITY = (2834, 2835)
_BMP_DEFAULT = (3779, 3780)
_SRGB_GAMMA = 45455  # of gAMA, with its allowance
_SRGB_CHROMATICITIES = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)  # of cHRM
_SRGB_CODES = {1, 2}, {1, 2, 6, 13, 14}  # of primaries and transfer in ITU-T H.273; 2: unknown

# The tags of a TIFF file that say something about the photograph, not about the layout of the file.
_PHOTO_TAGS = {
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.XResolution,
    ExifTags.Base.YResolution,
    ExifTags.Base.ResolutionUnit,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.HostComputer,
    ExifTags.Base.Rating,
    ExifTags.Base.Copyright,
    ExifTags.IFD.Exif,
    ExifTags.IFD.GPSInfo,
}

_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pnm": "PPM",
    ".avif": "AVIF",
}
SUFFIXES = frozenset(_FORMATS)  # of the files in a folder that count as images
_HOLD_ALPHA = {"PNG", "WEBP", "TIFF", "AVIF"}
_HOLD_GRAY = {"PNG", "JPEG", "TIFF", "BMP", "PPM", "AVIF"}
_HOLD_GRAY_AND_ALPHA = {"PNG", "TIFF"}
_HOLD_NO_METADATA = {"BMP", "PPM"}
_HOLD_DENSITY = {"PNG", "JPEG", "TIFF", "BMP"}
_HOLD_COMMENT = {"PNG", "JPEG"}
# EXIF, XMP and a comment fit into one segment each, a profile into 255.
_JPEG_LIMITS = {"EXIF": 65533 - 6, "ICC profile": 255 * (65533 - 14), "XMP": 65533 - 29}
_JPEG_LIMITS["comment"] = 65533

# A picture of so many pixels is decoded however short its file is. A larger one must have a byte of
# data for each so many pixels, or else most of it is missing or it is meant as a bomb. No encoder can
# do better than the numbers of these formats: Deflate makes 1032 bytes of one, Huffman codes of JPEG
# take a bit for a block of 64 pixels, those of GIF 12 bits for a string of 3839 pixels, runs two bytes
# for 255 pixels (BMP), for 128 (PSD, TGA) or for 63 times 8 (PCX). The other formats have no bound, or
# none that is worth a line, and get a generous one.
_SMALL = 1 << 22
_DENSITY = {"PNG": 8 * 1032, "JPEG": 512, "GIF": 2731, "BMP": 128, "DIB": 128, "PSD": 128}
_DENSITY |= {"RAW": 512, "PPM": 8, "PCX": 256, "DDS": 2, "QOI": 64, "TGA": 128}
_DENSEST = 1 << 16

_BITS_LOST = "samples of more than 8 bits are reduced to 8 bits"
_IPTC_LOST = "the IPTC data is left out"
_COLOUR_LOST = "the colour space is left out, which is not sRGB and not an ICC profile"

_MAX_CHUNKS = 1 << 18  # of a PNG
_MAX_SEGMENTS = 1 << 12  # of a JPEG, before its first scan
_MAX_SCANS = 100  # of a JPEG, each of which may cost the whole picture; libtiff has this limit too
_MAX_FRAMES = tiff.MAX_PAGES  # that are counted
_STRIP = 1 << 20  # pixels that are converted at a time
_WIDE_STRIP = 1 << 17  # and of a PNG of 16 bits, each of which takes 100 bytes meanwhile

# Pillow logs a few failures as well as raising them, and Python prints what no handler takes.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True, eq=False)
class Picture:
    """An upright picture, and what its file said about it."""

    # [H, W, 3], code values (sRGB unless `icc`), C-contiguous: uint8, 0..255, or in a picture that
    # was decoded so, uint16, 0..65535
    rgb: NDArray[Any]
    alpha: NDArray[np.uint8] | None = None  # [H, W], 255 is opaque; None: opaque everywhere
    gray: bool = False  # no colour channels in the source; `read` gives three equal channels then
    sixteen_bit: bool = False  # the source had more than 8 bits per channel
    oriented: bool = False  # an EXIF (or XMP) orientation other than 1 was applied to the pixels
    icc: bytes | None = None  # a profile of RGB, or of gray values where `gray`
    exif: bytes | None = None  # TIFF block without the prefix 'Exif\0\0'; its orientation fits rgb
    xmp: bytes | None = None  # XML packet; its orientation fits rgb
    density: tuple[int, int] | None = (
        None  # pixels per metre along x and y; None: unknown, or 72 dpi
    )
    comment: bytes | None = None  # a remark, UTF-8 where the file said how it was written
    warnings: tuple[str, ...] = ()  # what `read` had to leave out or guess, a clause each


def kind(head: bytes) -> str | None:
    """The name of the format of an image file which begins with `head`, as "PNG" in FORMATS.

    None where no format begins like that. The first 16 bytes decide, but for camera RAW, much of which
    is a TIFF until its directories have been seen; all further ones are welcome. It is the signature alone that counts: the file may be damaged, or of a format that `read`
    refuses. Formats without a signature (TGA, for one) are never found.
    """
    if (other := decoders.kind(head)) is not None:
        return other
    for load_plugins in (Image.preinit, Image.init):  # the common formats first, it is cheaper
        load_plugins()
        for name in Image.ID:
            accept = Image.OPEN[name][1]
            try:
                if accept and accept(head[:16]):
                    return name
            except (IndexError, struct.error):  # `head` is too short for this one
                pass
    return None


def read(
    data: bytes,
    *,
    max_pixels: int = 1 << 28,
    strict: bool = False,
    formats: Sequence[str] | None = None,
) -> Picture:
    """The first frame of the image file `data`, in 8 bits, turned upright.

    - Gray with 16 bits (Pillow's I;16 and I, taken as 0..65535) is scaled with rounding. Colour
      with 16 bits is cut to the upper 8 by Pillow. Floating point (F) is taken as 0..1 where no
      value is above 1, else as 0..255, and clamped; what is not finite becomes 0.
    - CMYK goes through its embedded ICC profile to sRGB, or through Pillow's plain formula where
      there is no usable profile; LAB goes to sRGB. Their profiles are dropped after that.
    - Transparency may be an alpha channel, a palette's or a colour key. Colours under full
      transparency are kept. Alpha that is 255 everywhere is no alpha.
    - A JPEG that ends early is decoded as far as it goes: the rest is gray or, where it is
      progressive, blurred. `strict` refuses it. All other formats are refused when they end early.
    - HEIF, JPEG XL and camera RAW are read where the extras `heif`, `jxl` and `raw` are installed. RAW is
      developed with the white balance of the camera, and never read as the small picture inside it. A
      JPEG XL that was a JPEG is read as that JPEG.
    - EXIF of more than MAX_EXIF bytes, an ICC profile of more than MAX_ICC and XMP of more than
      MAX_XMP are left out, and so is an ICC profile that is damaged. The picture is read.
    - The density is that of the format (pHYs in PNG, JFIF in JPEG), or else that of the EXIF. 72 dpi, in
      BMP also 96, count as unknown. The comment is the COM segments of a JPEG, or that of a GIF or
      JPEG 2000, or the text "Comment" of a PNG.

    `formats` are the names of those to try, out of FORMATS and in any case; by default all. What was
    lost is in the `warnings` of the picture: further frames, bits, colours, text, metadata.

    Raises ValueError for a name that is not in FORMATS, and ImageError for what is not an image of
    these formats, is truncated, is damaged so that it cannot be decoded, needs an extra that is not
    installed, or has more metadata than can be taken apart in reasonable time. Raises RuntimeMissing
    where an extra cannot be loaded. Raises LimitError, before decoding, for more than
    `max_pixels` pixels, a side longer than 65535, or a file far too short for its size. One call at
    a time: Pillow's own pixel limit and Python's warnings are out of force for the whole process
    meanwhile.
    """
    wanted = _chosen(formats)
    if not data:
        raise ImageError("the input is empty")
    if data.startswith(_AIC_MAGIC):
        raise ImageError("the input is an .aic file already")
    try:
        # Icons are decoded where they are opened.
        with _quiet_pillow(min(max_pixels, max(_SMALL, len(data) * _DENSEST))):
            try:
                return _decoded(data, wanted, max_pixels)
            except OSError as error:
                if strict or not data.startswith(_JPEG_MAGIC) or "truncated" not in str(error):
                    raise
            return _decoded(data, wanted, max_pixels, mend=True)
    except AicError:
        raise
    except Image.DecompressionBombError as error:
        size = re.search(r"\((\d+) pixels\)", str(error))
        raise _too_dense(int(size[1]) if size else 0, data, max_pixels) from error
    except MemoryError as error:
        raise LimitError("not enough memory to decode the image") from error
    except UnidentifiedImageError as error:
        name = kind(data[:16])
        if name is not None and name not in wanted:
            raise ImageError(f"the format {name} is not among those to read") from error
        raise ImageError("not an image, or one that is damaged at its start") from error
    except Exception as error:  # Pillow's decoders raise nearly everything
        raise ImageError(f"the image cannot be decoded: {_one_line(error)}") from error


def write(picture: Picture, format: str = "PNG") -> bytes:
    """The picture as a file of `format`: PNG, JPEG, WEBP, TIFF, BMP, PPM or AVIF.

    JPEG and AVIF have quality 95 and full colour resolution, WebP is lossless. A gray picture gets
    one channel, the rounded mean of the three, except in WebP and, with alpha, in AVIF. A picture of 16
    bits has them in PNG, its alpha too, and is rounded to 8 in all others. TIFF and
    AVIF get EXIF as Pillow rewrites it, TIFF without the tags about file layout. What is left out
    otherwise is what `losses` says. The density is rounded to whole dpi in JPEG. The same picture gives
    the same bytes.

    Raises OutputError for another format, and where the encoder fails (a side is at most 16383 in
    WebP and 65500 in JPEG, for two).
    """
    if format not in _FORMATS.values():
        raise OutputError(f"unknown image format {format}")
    alpha, gray = _planes(picture, format)
    out = BytesIO()
    try:
        if picture.rgb.dtype == np.uint16:
            if format == "PNG":
                return _wide_png(picture, alpha, gray)
            picture = replace(picture, rgb=eight_bits(picture.rgb))
        image = Image.fromarray(_channels(picture.rgb, alpha, gray))
        image.save(out, format, **_options(picture, format, gray))
    except KeyError as error:
        raise OutputError(f"the installed Pillow cannot write {format}") from error
    except Exception as error:
        raise OutputError(f"cannot write {format}: {_one_line(error)}") from error
    return out.getvalue()


def losses(picture: Picture, format: str) -> list[str]:
    """What `write` leaves out of a file of `format`, a clause each.

    All but PNG have 8 bits a sample. JPEG, BMP and PPM have no transparency: the picture is written
    opaque. BMP and PPM have no
    metadata. EXIF and XMP that are longer than the 64 KiB of JPEG, metadata beyond MAX_EXIF, MAX_ICC
    and MAX_XMP, EXIF that Pillow cannot rewrite where it must, and an ICC profile that is not one of
    the channels in the file ('GRAY' or 'RGB ') are left out too. WebP, AVIF and PPM have no density but
    in the EXIF, and only PNG and JPEG have comments. Raises OutputError as `write` does.
    """
    if format not in _FORMATS.values():
        raise OutputError(f"unknown image format {format}")
    alpha, gray = _planes(picture, format)
    lost = []
    if picture.rgb.dtype == np.uint16 and format != "PNG":
        lost.append(_BITS_LOST)
    if picture.alpha is not None and alpha is None:
        lost.append(f"the transparency is left out: {format} has none")
    written = _metadata_for(picture, format, gray)
    for name, value, kept in (
        ("ICC profile", picture.icc, written["icc_profile"]),
        ("EXIF", picture.exif, written["exif"]),
        ("XMP", picture.xmp, written["xmp"]),
    ):
        if value and not kept:
            lost.append(f"the {name} is left out: {_reason(name, value, format)}")
    in_exif = written["exif"] and exif_density(picture.exif) == picture.density
    if picture.density and "dpi" not in written and not in_exif:
        why = "cannot hold it" if format in _HOLD_DENSITY else "has none"
        lost.append(f"the density (pixels per inch) is left out: {format} {why}")
    if picture.comment and "comment" not in written:
        lost.append(f"the comment is left out: {_reason('comment', picture.comment, format)}")
    return lost


def exif_density(exif: bytes | None) -> tuple[int, int] | None:
    """Pixels per metre along x and y as an EXIF block without its prefix has them; None where it says
    nothing, or 72 dpi."""
    found = tiff.resolution(exif) if exif else None
    if found is None:
        return None
    x, y, unit = found
    return _per_metre(x, y, {1: _NO_UNIT, 2: _INCH, 3: _CENTIMETRE}[unit])


def format_of(path: str) -> str:
    """The `format` for `write` that the suffix of `path` asks for; OutputError if it is unknown."""
    suffix = PurePath(path).suffix
    try:
        return _FORMATS[suffix.lower()]
    except KeyError:
        known = " ".join(_FORMATS)
        raise OutputError(f"unknown image suffix {suffix!r}; known are {known}") from None


def from_pillow(
    image: Image.Image, *, upright: bool = True, metadata: Mapping[str, Any] | None = None
) -> Picture:
    """The current frame of an image that Pillow holds in memory or has opened, as `read` makes it.

    The mode may be any. `sixteen_bit`, and colour keys of fewer or more than 8 bits, are known of an
    image that is not loaded yet; later Pillow does not tell. The image stays as it is, but that it is
    loaded.

    Args:
        upright: turn the pixels as the EXIF (or XMP) orientation says, and set that to 1. Otherwise
            neither pixels nor metadata change, which is what Pillow's encoders do. (A TIFF is turned
            by Pillow itself, when it is loaded.)
        metadata: what has "icc_profile", "exif", "xmp", "dpi" and "comment" instead of `image.info`; a
            TIFF that is opened has its EXIF elsewhere, where it is found too.

    Raises ImageError for an image without pixels, one that is closed, or one whose file cannot be
    decoded; LimitError for a side longer than 65535, and where memory does not suffice.
    """
    if 0 in image.size:
        raise ImageError(f"an image of {image.width}x{image.height} pixels has nothing to code")
    _check_size(image.size, image.width * image.height)
    try:
        raw = _raw_mode(image)
        turned = 1  # by Pillow
        if upright and isinstance(image, TiffImagePlugin.TiffImageFile):
            turned = image.getexif().get(ExifTags.Base.Orientation, 1)
        image.load()
        info: dict[Any, Any] = dict(image.info if metadata is None else metadata)
        if metadata is None and isinstance(image, TiffImagePlugin.TiffImageFile):
            info["exif"] = _exif_of_tiff(image)
            info.pop("dpi", None)  # it is in the EXIF, and Pillow makes one up where there is none
        return _picture_in_memory(image, raw, info, upright, turned)
    except AicError:
        raise
    except MemoryError as error:
        raise LimitError("not enough memory to convert the image") from error
    except Exception as error:  # Pillow's decoders raise nearly everything
        raise ImageError(f"the image cannot be decoded: {_one_line(error)}") from error


def to_pillow(picture: Picture) -> Image.Image:
    """The picture as an image of mode L, LA, RGB or RGBA, in memory of its own.

    Its info has "icc_profile", "exif" (with the prefix that Pillow's own plugins give it), "xmp", "dpi"
    and "comment", of these what the picture has. A gray picture becomes the rounded mean of its
    channels, and 16 bits are scaled to 8 with rounding.
    """
    rgb = picture.rgb
    if rgb.dtype == np.uint16:
        rgb = eight_bits(rgb)
    image = Image.fromarray(_channels(rgb, picture.alpha, picture.gray))
    image.info = {
        name: value
        for name, value in (
            ("icc_profile", picture.icc),
            ("exif", picture.exif and _EXIF_PREFIX + picture.exif),
            ("xmp", picture.xmp),
            ("dpi", picture.density and tuple(number / _INCH for number in picture.density)),
            ("comment", picture.comment),
        )
        if value
    }
    return image


def eight_bits(samples: NDArray[np.uint16], top: int = 65535) -> NDArray[np.uint8]:
    """0..`top` to 0..255, rounded, of any shape [H, W, ...]; what is above it is `top`."""
    levels = np.empty(samples.shape, np.uint8)
    for rows in _rows(samples):
        part = np.minimum(samples[rows], top).astype(np.uint32)
        part *= 255
        part += top // 2
        part //= top
        levels[rows] = part
    return levels


def pack_alpha(alpha: NDArray[np.uint8]) -> bytes:
    """`alpha` [H, W] without loss: an optimised gray PNG."""
    out = BytesIO()
    Image.fromarray(alpha).save(out, "PNG", optimize=True)
    return out.getvalue()


def unpack_alpha(data: bytes, width: int, height: int) -> NDArray[np.uint8]:
    """The [height, width] plane that `pack_alpha` made `data` of.

    Raises BitstreamError for anything but an intact 8-bit gray PNG of this very size. The size is
    compared before any pixel is decoded.
    """
    header = struct.pack(">I4sIIBBBBB", 13, b"IHDR", width, height, 8, 0, 0, 0, 0)
    if not data.startswith(_PNG_MAGIC + header):
        raise BitstreamError(f"the alpha plane is not a gray PNG of {width}x{height} pixels")
    if (width + 1) * height > 1032 * len(data):  # Deflate cannot do better than that.
        raise BitstreamError("the alpha plane is truncated")
    try:
        file, _, _ = _png(data)
        # Neither opened nor cropped, at which Pillow looks at a limit that belongs to the process.
        with PngImagePlugin.PngImageFile(file) as image:
            image.load()
            if image.mode != "L" or image.size != (width, height):
                raise BitstreamError("the alpha plane is not plain gray")
            return np.array(image)
    except BitstreamError:
        raise
    except MemoryError as error:
        raise LimitError("not enough memory to decode the alpha plane") from error
    except Exception as error:
        raise BitstreamError(f"the alpha plane is damaged: {_one_line(error)}") from error


# --- reading


def _chosen(formats: Sequence[str] | None) -> list[str]:
    """The formats to try, as Pillow's `open` takes them."""
    names = FORMATS if formats is None else [name.upper() for name in formats]
    for name in names:
        if name not in FORMATS:
            raise ValueError(f"unknown image format {name}; known are {' '.join(FORMATS)}")
    chosen = {"JPEG" if name == "MPO" else name for name in names}
    return [name for name in FORMATS if name in chosen]


def _decoded(data: bytes, wanted: list[str], max_pixels: int, mend: bool = False) -> Picture:
    """What `read` returns; raises whatever Pillow does. `mend` ends a JPEG where its data ends."""
    name = decoders.kind(data)
    if name is not None:
        if name not in wanted:
            raise ImageError(f"the format {name} is not among those to read")
        return _foreign(name, data, max_pixels)
    wanted = [name for name in wanted if name not in decoders.FORMATS]
    info: dict[str, Any] = {}
    notes: list[str] = []
    file: IO[bytes] = BytesIO(data)
    if data.startswith(_PNG_MAGIC) and "PNG" in wanted:
        file, info, notes = _png(data)
    elif data.startswith(_JPEG_MAGIC) and "JPEG" in wanted:
        file, info, notes = _jpeg(data, mend)
    elif data[:4] in tiff.MAGIC and "TIFF" in wanted:
        notes = _left_out(tiff.pages(data) - 1)
    elif data[4:8] == b"ftyp" and "AVIF" in wanted:
        # Pillow reads the orientation in the EXIF of these at once, be it a million numbers. Where
        # the EXIF is takes a parser to say, but few other bytes look like it.
        for number, found in enumerate(re.finditer(rb"II\*\0|MM\0\*", data)):
            if number > 8 or not tiff.is_digestible(data[found.start() :]):
                raise ImageError("the EXIF of the image has more tags than can be read safely")
    elif data[:2] in (b"P1", b"P2", b"P3"):  # Pillow takes quadratic time for the comments of these
        file = BytesIO(re.sub(rb"#[^\r\n]*", b"", data))
    with Image.open(file, formats=wanted) as image:
        image.info.update(info)
        return _picture(image, data, max_pixels, notes)


def _picture(image: Image.Image, data: bytes, max_pixels: int, notes: list[str]) -> Picture:
    """The picture in `image`, just opened from `data`; raises whatever Pillow does."""
    _check_size(image.size, max_pixels)
    width, height = image.size
    if width * height > max(_SMALL, len(data) * _DENSITY.get(image.format or "", _DENSEST)):
        raise _too_dense(width * height, data, max_pixels)
    if image.format in ("WEBP", "AVIF"):
        notes += _left_out(getattr(image, "n_frames", 1) - 1)
    elif image.format == "GIF":
        notes += _left_out(_gif_frames(data) - 1)

    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Pillow turns these while it loads them, and forgets the orientation.
        turned = image.getexif().get(tiff.ORIENTATION, 1)
        depth = _tiff_depth(image)
        with no_standard_error():
            image.load()
        orientation, exif, xmp = 1, _tiff_exif(image), _metadata(image, "xmp")
        if any(tag in image.tag_v2 for tag in _IPTC_TAGS):
            notes.append(_IPTC_LOST)
    else:
        depth = _depth(image, data)
        image.load()
        exif, xmp = _exif_block(_metadata(image, "exif")), _metadata(image, "xmp")
        orientation, exif, xmp = _upright(exif, xmp)
        turned = orientation
    _check_size(image.size, max_pixels)  # an icon may turn out larger than it said

    gray = image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")
    if image.format == "PNG" and data[25] == 4:
        gray = True  # 16-bit gray with alpha, which Pillow gives as RGBA
    density = _density(image, data, notes) or exif_density(exif)
    metadata = {"ICC profile": _metadata(image, "icc_profile"), "EXIF": exif, "XMP": xmp}
    metadata["comment"] = _metadata(image, "comment") or None
    picture = _composed(image, depth, gray, (orientation, turned), metadata, density, notes)
    if image.format == "AVIF" and not picture.icc and _is_other_space(*_avif_space(data)):
        return replace(picture, warnings=(*picture.warnings, _COLOUR_LOST))
    return picture


def _composed(
    image: Image.Image,
    depth: int,
    gray: bool,
    orientations: tuple[int, int],
    metadata: dict[str, bytes | None],
    density: tuple[int, int] | None,
    notes: list[str],
) -> Picture:
    """The picture of a loaded image and of what is known about it. Of the orientations, the first is to be
    applied, and the second has been then."""
    to_apply, applied = orientations
    wide = depth > 8 or image.mode.startswith("I") or image.mode == "F"
    if wide:
        notes.append(_BITS_LOST)
    metadata = _within_limits(metadata, notes)
    icc = metadata["ICC profile"]
    rgb, alpha = _pixels(image, depth, icc, to_apply)
    if alpha is not None and alpha.min() == 255:
        alpha = None
    if image.mode in ("CMYK", "LAB"):
        notes.append(f"{image.mode} is converted to sRGB")
        icc = None
    else:
        icc = _fitting(icc, gray, notes)
    return Picture(
        rgb=rgb,
        alpha=alpha,
        gray=gray,
        sixteen_bit=wide,
        oriented=applied in range(2, 9),
        icc=icc,
        exif=metadata["EXIF"],
        xmp=metadata["XMP"],
        density=density[::-1] if density and applied in (5, 6, 7, 8) else density,
        comment=metadata["comment"],
        warnings=tuple(notes),
    )


def _within_limits(metadata: dict[str, bytes | None], notes: list[str]) -> dict[str, bytes | None]:
    """The metadata without what is empty, which is how damage is told, or larger than its limit."""
    kept = dict(metadata)
    for name, value in metadata.items():
        if value is not None and not 0 < len(value) <= _LIMITS[name]:
            notes.append(_lost(name))
            kept[name] = None
    return kept


def _fitting(icc: bytes | None, gray: bool, notes: list[str]) -> bytes | None:
    """The profile, if it is one of the channels that the picture has."""
    if icc and icc[16:20] != b"RGB " and not (gray and icc[16:20] == b"GRAY"):
        notes.append("the ICC profile is of other channels and left out")
        return None
    return icc


def _foreign(name: str, data: bytes, max_pixels: int) -> Picture:
    """The picture in a file that Pillow does not read; raises whatever its decoder does."""

    def admit(size: tuple[int, int]) -> None:
        _check_size(size, max_pixels)
        if size[0] * size[1] > max(_SMALL, len(data) * _DENSITY.get(name, _DENSEST)):
            raise _too_dense(size[0] * size[1], data, max_pixels)

    with no_standard_error():
        found = decoders.decode(name, data, admit)
    if isinstance(found, bytes):
        return _decoded(found, ["JPEG"], max_pixels)
    notes = [note for count, what in found.left_out for note in _left_out(count, what)]
    notes += [*found.notes, *_not_square(*found.aspect)]
    exif = _photo_exif(found.tags, notes) if found.tags else _exif_block(found.exif)
    turned, exif, xmp = _upright(exif, found.xmp)  # The pixels are upright, whatever these say.
    gray = found.samples.shape[2] < 3
    if found.deep:
        notes.append(_BITS_LOST)
    if found.space and _is_other_space(*found.space):
        notes.append(_COLOUR_LOST)
    metadata = _within_limits({"ICC profile": found.icc, "EXIF": exif, "XMP": xmp}, notes)
    rgb, alpha = _unpacked(found)
    return Picture(
        rgb=rgb,
        alpha=None if alpha is None or alpha.min() == 255 else alpha,
        gray=gray,
        sixteen_bit=found.deep,
        oriented=found.oriented or turned != 1,
        icc=_fitting(metadata["ICC profile"], gray, notes),
        exif=metadata["EXIF"],
        xmp=metadata["XMP"],
        density=exif_density(metadata["EXIF"]),
        warnings=tuple(notes),
    )


def _unpacked(found: decoders.Decoded) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """RGB [H, W, 3] and alpha [H, W], if any, in 8 bits, of what a decoder gave."""
    height, width, channels = found.samples.shape
    rgb = np.empty((height, width, 3), np.uint8)
    alpha = np.empty((height, width), np.uint8) if channels in (2, 4) else None
    colours = channels - (alpha is not None)
    for rows in _rows(rgb):
        part = found.samples[rows]
        colour, opacity = part[..., :colours], part[..., colours:]
        if found.premultiplied and alpha is not None:
            share = np.maximum(opacity, np.finfo(np.float32).tiny) / np.float32(found.top)
            colour = _finite(colour / share)
            colour = colour if part.dtype.kind == "f" else np.minimum(colour, found.top)
            colour = np.where(opacity > 0, colour, 0)
        rgb[rows] = _to_eight_bits(colour, found.top)
        if alpha is not None:
            alpha[rows] = _to_eight_bits(opacity, found.top)[..., 0]
    return rgb, alpha


def _to_eight_bits(samples: NDArray[Any], top: float) -> NDArray[np.uint8]:
    """0..`top` to 0..255, rounded."""
    if samples.dtype == np.uint8:
        return samples
    if samples.dtype == np.uint16:
        return eight_bits(samples, int(top))
    return (np.clip(_finite(samples) * (255 / top), 0, 255) + 0.5).astype(np.uint8)


def _photo_exif(blocks: tuple[bytes, ...], notes: list[str]) -> bytes | None:
    """The tags about the photograph in the blocks that a RAW file has, see `decoders.Decoded.tags`;
    empty where they are malformed. The notes of the maker point into the file, and are left out."""
    if not all(tiff.is_digestible(block) for block in blocks if len(block) >= 16):
        return b""
    try:
        loaded = []
        for block in blocks:
            loaded.append(Image.Exif())
            loaded[-1].load(block)
        tags = _about_the_photo(loaded[0])
        for tag, other in zip((ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo), loaded[1:], strict=False):
            tags[tag] = dict(other)
        details = dict(tags.get_ifd(ExifTags.IFD.Exif))
        if details.pop(ExifTags.Base.MakerNote, None):
            notes.append("the maker note in the EXIF is left out")
        if details:
            tags[ExifTags.IFD.Exif] = details
        tags.bigtiff = False
        return _exif_block(tags.tobytes()) if tags else None
    except Exception:  # malformed tags raise anything, and must not cost the picture
        return b""


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise LimitError(f"{width}x{height} pixels exceed the limit of {max_pixels} pixels")
    if max(size) > MAX_SIDE:
        raise LimitError(f"{width}x{height} pixels: a side is longer than {MAX_SIDE}")


def _too_dense(pixels: int, data: bytes, max_pixels: int) -> LimitError:
    """For an image that claims so many pixels, which are more than `max_pixels` or than `data` has."""
    if pixels > max_pixels:
        return LimitError(f"{pixels} pixels exceed the limit of {max_pixels} pixels")
    return LimitError(f"{pixels} pixels in {len(data)} bytes: truncated, or a decompression bomb")


def _depth(image: Image.Image, data: bytes) -> int:
    """Bits per channel of a PNG or PPM file, 16 for more than 8 in AVIF and JPEG 2000, else 8."""
    if image.format == "PNG":
        return data[24]
    if image.format == "PPM" and data[:2] in (b"P2", b"P3", b"P5", b"P6"):
        fields = re.sub(rb"#[^\r\n]*", b"", data[:4096]).split(None, 4)  # magic width height maxval
        if len(fields) > 3 and fields[3].isdigit() and int(fields[3]) > 255:
            return 16
    if image.format == "AVIF" and (at := data.find(b"av1C", 0, 1 << 16)) > 0:
        return 16 if data[at + 6] & 0x40 else 8
    if image.format == "JPEG2000" and (at := data.find(b"\xff\x4f\xff\x51", 0, 1 << 16)) >= 0:
        return 16 if (data[at + 42] & 0x7F) > 7 else 8
    return 8


def _avif_space(data: bytes) -> tuple[int, int]:
    """Codes of primaries and transfer in H.273 that an AVIF file has; 2, unknown, where it has none."""
    at = data.find(b"colrnclx", 0, 1 << 16)
    found: tuple[int, int] = struct.unpack(">HH", data[at + 8 : at + 12]) if at >= 0 else (2, 2)
    return found


def _tiff_depth(image: TiffImagePlugin.TiffImageFile) -> int:
    """Bits of the widest channel."""
    bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    return max(bits) if isinstance(bits, tuple) else int(bits)


def _density(image: Image.Image, data: bytes, notes: list[str]) -> tuple[int, int] | None:
    """Pixels per metre as an image file has them outside of EXIF, None where it says nothing; where it
    says no more than how wide a pixel is for its height, that goes to `notes`."""
    x, y, unit = 0.0, 0.0, _NO_UNIT
    info = image.info
    if "jfif_density" in info:
        (x, y), unit = info["jfif_density"], {1: _INCH, 2: _CENTIMETRE}.get(info["jfif_unit"], unit)
    elif "pHYs" in info:
        x, y, unit = info["pHYs"]
    elif image.format == "GIF" and data[12]:
        x, y = 64, data[12] + 15
    elif image.format in ("BMP", "DIB", "JPEG2000") and "dpi" in info:
        (x, y), unit = info["dpi"], _INCH
    if image.format in ("BMP", "DIB") and {round(x * unit), round(y * unit)} <= {*_BMP_DEFAULT}:
        return None
    if unit == _NO_UNIT:
        notes += _not_square(y, x)
        return None
    return _per_metre(x, y, unit)


def _not_square(width: float, height: float) -> list[str]:
    """The note about pixels of this width and height, if they are not square."""
    if width == height or width <= 0 or height <= 0:
        return []
    return [f"the pixel aspect ratio {width / height:.4g}:1 is left out"]


def _per_metre(x: float, y: float, unit: float) -> tuple[int, int] | None:
    """Pixels per metre for pixels per unit, so many of which are a metre; None for what is no density,
    or that of programs which know none."""
    density = round(min(x * unit, 1 << 32)), round(min(y * unit, 1 << 32))
    if not all(1 <= number < 1 << 32 for number in density) or {*density} <= {*_DEFAULT_DENSITY}:
        return None
    return density


def _strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """A loaded image in parts of whole rows, and which rows these are.

    An array of the whole would cost a copy or two more than the one that is wanted.
    """
    width, height = image.size
    step = max(1, _STRIP // width)
    for top in range(0, height, step):
        bottom = min(top + step, height)
        yield slice(top, bottom), image.crop((0, top, width, bottom))


def _pixels(
    image: Image.Image, depth: int, icc: bytes | None, orientation: int = 1
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """RGB [H, W, 3] and alpha [H, W], if any, of a loaded image of any mode, turned upright."""
    shape = image.size if orientation in (5, 6, 7, 8) else image.size[::-1]
    rgb = np.empty((*shape, 3), np.uint8)
    alpha = None
    convert = _conversion(image, depth, icc)
    for rows, strip in _strips(image):
        colour, opacity = convert(strip)
        _as_stored(rgb, orientation)[rows] = colour
        if opacity is not None:
            alpha = np.empty(shape, np.uint8) if alpha is None else alpha
            _as_stored(alpha, orientation)[rows] = opacity
    return rgb, alpha


_Conversion = Callable[[Image.Image], tuple[NDArray[np.uint8], NDArray[np.uint8] | None]]


def _conversion(image: Image.Image, depth: int, icc: bytes | None) -> _Conversion:
    """From a strip of `image` to RGB [h, W, 3], or gray [h, W, 1], and to alpha [h, W], if any."""
    if image.mode == "CMYK":
        to_rgb = _from_cmyk(icc)
        return lambda strip: (np.asarray(to_rgb(strip)), None)
    if image.mode == "LAB":
        to_srgb = _to_srgb("LAB", ImageCms.createProfile("LAB"))
        return lambda strip: (np.asarray(to_srgb(strip)), None)
    if image.mode == "F":
        tops = [_finite(strip).max() for _, strip in _strips(image)]
        scale = 255 if max(tops) <= 1 else 1
        return lambda strip: (_rounded(_finite(strip) * scale), None)
    return lambda strip: _converted(strip, depth)


def _converted(
    strip: Image.Image, depth: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """What `_conversion` is for the modes that need nothing but the strip."""
    if strip.mode in ("1", "L"):
        levels = np.asarray(strip.convert("L"))
        return levels[..., None], _keyed(strip, levels, depth)
    if strip.mode.startswith("I"):
        samples = np.asarray(strip)
        levels = eight_bits(np.maximum(samples, 0), 4095 if depth == 12 else 65535)
        return levels[..., None], _keyed(strip, samples, depth)
    if strip.mode in ("LA", "La"):
        both = np.asarray(strip.convert("LA"))
        return both[..., :1], both[..., 1]
    if strip.mode == "RGB":
        rgb = np.asarray(strip)
        return rgb, _keyed(strip, rgb, depth)
    if strip.has_transparency_data:  # RGBA, RGBa, PA, P
        rgba = np.asarray(strip.convert("RGBA"))
        return rgba[..., :3], rgba[..., 3]
    return np.asarray(strip.convert("RGB")), None  # P, RGBX, YCbCr, HSV


def _finite(strip: Image.Image | NDArray[Any]) -> NDArray[np.float32]:
    samples = np.asarray(strip)
    return np.where(np.isfinite(samples), samples, np.float32(0))


def _rounded(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return (np.clip(values, 0, 255) + 0.5).astype(np.uint8)[..., None]


def _keyed(image: Image.Image, samples: NDArray[Any], depth: int) -> NDArray[np.uint8] | None:
    """Alpha from the colour key of a gray or RGB image (the tRNS chunk of PNG), if it has one.

    The key counts in the file's depth, `samples` [H, W] or [H, W, 3] in 8 bits or, gray only, 16.
    """
    key: Any = image.info.get("transparency")
    if key is None:
        return None
    if image.mode == "1":
        key = 255 if key else 0  # Pillow scales this one since 12.1
    if image.mode == "L" and depth < 8:
        key = key * 255 // ((1 << depth) - 1)
    if image.mode == "RGB":
        key = [value >> (depth - 8) for value in key]
    clear = np.asarray(samples == np.array(key)).reshape(*samples.shape[:2], -1).all(axis=2)
    return np.where(clear, 0, 255).astype(np.uint8)


def _from_cmyk(icc: bytes | None) -> Callable[[Image.Image], Image.Image]:
    if icc:
        try:
            return _to_srgb("CMYK", ImageCms.ImageCmsProfile(BytesIO(icc)))
        except (ImageCms.PyCMSError, OSError, ImportError):  # a broken profile, or no littleCMS
            pass
    return lambda strip: strip.convert("RGB")


def _to_srgb(mode: str, profile: Any) -> Callable[[Image.Image], Image.Image]:
    """From images of `mode` to sRGB, by relative colorimetry with black point compensation."""
    transform = ImageCms.buildTransform(
        profile,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    return transform.apply


def _as_stored(plane: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """A view of an upright `plane` [H, W, ...] as it is stored in an EXIF orientation 1..8."""
    if orientation in (3, 4, 7, 8):
        plane = plane[::-1]
    if orientation in (2, 3, 6, 7):
        plane = plane[:, ::-1]
    if orientation in (5, 6, 7, 8):
        plane = plane.swapaxes(0, 1)
    return plane


# --- what is done to a file before Pillow sees it


class _Parts(RawIOBase):
    """Pieces of files as one file, without a copy of them all."""

    def __init__(self, parts: Sequence[bytes | memoryview]) -> None:
        self._parts = [memoryview(part) for part in parts]
        self._ends = list(accumulate(len(part) for part in parts))
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        self._at = offset + {SEEK_SET: 0, SEEK_CUR: self._at, SEEK_END: self._ends[-1]}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        number = bisect(self._ends, self._at)
        if number == len(self._parts):
            return 0
        part = self._parts[number][self._at - self._ends[number] :][: len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


def _png(data: bytes) -> tuple[IO[bytes], dict[str, Any], list[str]]:
    """A PNG reduced to the chunks of its first picture, its metadata as Pillow names it (empty where
    it is damaged or too large), and what was left out. ImageError for one without an end.

    Pillow itself refuses a file with more text or a larger ICC profile than it likes, and takes text
    apart that nobody asked for.
    """
    view = memoryview(data)
    kept: dict[bytes, memoryview] = {}
    scans: list[tuple[int, int]] = []
    info: dict[str, Any] = {}
    colours: dict[bytes, bytes] = {}
    texts = frames = 0
    at = len(_PNG_MAGIC)
    for _ in range(_MAX_CHUNKS):
        if at + 12 > len(data):
            raise ImageError("the image is truncated: PNG without an end")
        length, name = struct.unpack_from(">I4s", data, at)
        start, at = at, at + 12 + length
        if at > len(data):
            raise ImageError("the image is truncated: PNG without an end")
        chunk, body = view[start:at], view[start + 8 : at - 4]
        if name == b"IEND":
            break
        if name == b"IDAT":
            if scans and scans[-1][1] == start:
                start = scans.pop()[0]
            scans.append((start, at))
        elif name in (b"IHDR", b"PLTE", b"tRNS"):
            if not scans:
                kept.setdefault(name, chunk)
        elif name == b"fcTL":
            frames += bool(scans)
        elif name == b"iTXt" and body[: len(_XMP_KEY)] == _XMP_KEY:
            if "xmp" not in info:
                info["xmp"] = _text(bytes(body), MAX_XMP) if _intact(chunk) else b""
        elif name == b"eXIf":
            if "exif" not in info:
                info["exif"] = _EXIF_PREFIX + body if _intact(chunk) else b""
        elif name == b"iCCP":
            if "icc_profile" not in info:
                info["icc_profile"] = _icc_chunk(bytes(body)) if _intact(chunk) else b""
        elif name in (b"tEXt", b"zTXt", b"iTXt"):
            comment = b""
            if bytes(body[:8]).lower() == b"comment\0" and "comment" not in info and _intact(chunk):
                comment = _comment(bytes(name), bytes(body))
            if comment:
                info["comment"] = comment
            else:
                texts += 1
        elif name == b"pHYs" and length == 9 and "pHYs" not in info and _intact(chunk):
            x, y, unit = struct.unpack(">IIB", body)
            info["pHYs"] = x, y, 1.0 if unit == 1 else _NO_UNIT
        elif name in (b"gAMA", b"cHRM", b"sRGB", b"cICP") and not scans:
            colours.setdefault(bytes(name), bytes(body[:32]))
    else:
        raise ImageError(f"the image has more than {_MAX_CHUNKS} chunks")
    parts: list[bytes | memoryview] = [_PNG_MAGIC, *kept.values()]
    parts += [view[start:end] for start, end in scans]
    notes = _left_out(frames) + _left_out(texts, "text chunk")
    if not info.get("icc_profile") and _is_other_colour(colours):
        notes.append(_COLOUR_LOST)
    return BufferedReader(_Parts([*parts, chunk])), info, notes


def _intact(chunk: memoryview) -> bool:
    """Whether the checksum of a PNG chunk is right."""
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def _text(body: bytes, limit: int) -> bytes:
    """The text of an iTXt chunk; empty where it is damaged or has more than `limit` bytes."""
    rest = body.partition(b"\0")[2]
    flags, text = rest[:2], rest[2:].split(b"\0", 2)[-1] if rest[2:].count(b"\0") >= 2 else b""
    if flags[:1] == b"\0":
        return text if len(text) <= limit else b""
    return _inflated(text, limit) if flags == b"\1\0" else b""


def _comment(name: bytes, body: bytes) -> bytes:
    """The text of a text chunk `name` as UTF-8; empty where it is damaged or has more than MAX_COMMENT
    bytes."""
    if name == b"iTXt":
        return _text(body, MAX_COMMENT)
    text = body.partition(b"\0")[2]
    if name == b"zTXt":
        text = _inflated(text[1:], MAX_COMMENT) if text[:1] == b"\0" else b""
    text = text[: MAX_COMMENT + 1].decode("latin-1").encode()
    return text if len(text) <= MAX_COMMENT else b""


def _is_other_colour(chunks: dict[bytes, bytes]) -> bool:
    """Whether the chunks of a PNG about its colours say another space than sRGB."""
    if b"cICP" in chunks:
        return _is_other_space(*chunks[b"cICP"].ljust(2, b"\2")[:2])
    if b"sRGB" in chunks:
        return False
    gamma, corners = chunks.get(b"gAMA", b""), chunks.get(b"cHRM", b"")
    if len(gamma) == 4 and abs(int.from_bytes(gamma, "big") - _SRGB_GAMMA) > 1000:
        return True
    if len(corners) != 32:
        return False
    found = struct.unpack(">8I", corners)
    return any(abs(a - b) > 1000 for a, b in zip(found, _SRGB_CHROMATICITIES, strict=True))


def _is_other_space(primaries: int, transfer: int) -> bool:
    """Whether these codes of H.273 are those of another colour space than sRGB, or near it."""
    return primaries not in _SRGB_CODES[0] or transfer not in _SRGB_CODES[1]


def _icc_chunk(body: bytes) -> bytes:
    """The profile in an iCCP chunk; empty where it is damaged or too large."""
    compressed = body.partition(b"\0")[2]
    return _inflated(compressed[1:], MAX_ICC) if compressed[:1] == b"\0" else b""


def _inflated(compressed: bytes, limit: int) -> bytes:
    """What zlib compressed; empty where that is damaged or more than `limit` bytes."""
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(compressed, limit + 1)
    except zlib.error:
        return b""
    return plain if stream.eof and len(plain) <= limit else b""


def _jpeg(data: bytes, mend: bool) -> tuple[IO[bytes], dict[str, Any], list[str]]:
    """A JPEG without the segments that nobody asked for, its comment, and what was left out. `mend`
    puts an end where the data ends. ImageError for one that ends before its first scan."""
    view = memoryview(data)
    kept: list[bytes | memoryview] = [view[:2]]
    exif: list[memoryview] = []
    comments: list[bytes] = []
    notes: list[str] = []
    others: set[str] = set()
    pictures, gain_map = 1, False
    at = 2
    for _ in range(_MAX_SEGMENTS):
        found = data.find(b"\xff", at)  # What is before it is junk, further FF are padding.
        code = _NO_PADDING.search(data, found)
        if found < 0 or code is None or code.end() + 2 > len(data):
            raise ImageError("the image is truncated: JPEG without a picture")
        at = code.start() - 1
        marker, length = struct.unpack_from(">xBH", data, at)
        if marker == 0xDA:
            break
        if marker in (0x00, 0x01, *range(0xD0, 0xDA)):  # these have no length
            at += 2
            continue
        start, at = at, at + 2 + length
        if at > len(data):
            raise ImageError("the image is truncated: JPEG without a picture")
        segment, body = view[start:at], bytes(view[start + 4 : min(at, start + 64)])
        if marker == 0xE1 and body.startswith(_EXIF_PREFIX):
            exif.append(segment)
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xmp/extension/\0"):
            others.add("the extended XMP is left out")
        elif marker == 0xE2 and body.startswith(b"MPF\0"):
            pictures = _mpf_pictures(bytes(segment[8:]))
        elif marker == 0xED and body.startswith(b"Photoshop 3.0\0"):
            others.add(_IPTC_LOST)
        elif marker == 0xEB and body.startswith(b"JP"):
            others.add("the JUMBF metadata is left out")
        elif marker == 0xE2 and body.startswith(b"urn:iso:std:iso:ts:21496:-1\0"):
            gain_map = True
        elif marker == 0xFE:
            comments.append(bytes(segment[4:]))
        elif (
            not 0xE0 <= marker <= 0xEF
            or marker in (0xE0, 0xEE)  # JFIF and Adobe tell libjpeg what the channels are
            or body.startswith((b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"))
        ):
            gain_map = gain_map or (marker == 0xE1 and data.find(b"hdrgm:", start, at) >= 0)
            kept.append(segment)
    else:
        raise ImageError(f"the image has more than {_MAX_SEGMENTS} segments before its picture")
    end = data.find(b"\xff\xd9", at)
    if data.count(b"\xff\xda", at, end if end >= 0 else len(data)) > _MAX_SCANS:
        raise ImageError(f"the image has more than {_MAX_SCANS} scans")
    if sum(map(len, exif)) <= MAX_EXIF:
        kept += exif
    else:
        notes.append(_lost("EXIF"))
    if pictures > 1 and gain_map:
        others.add("the HDR gain map is left out")
    notes += _left_out(pictures - 1 - (pictures > 1 and gain_map)) + sorted(others)
    comment = b"\n".join(comments)
    if len(comment) > MAX_COMMENT:
        notes.append(_lost("comment"))
        comment = b""
    info = {"comment": comment} if comment else {}
    if not mend:
        return BufferedReader(_Parts([*kept, view[at:]])), info, notes
    # A segment between two scans may be cut off, which libjpeg would wait for.
    end = marker_at = len(data)
    while (marker_at := data.rfind(b"\xff", max(at, len(data) - 65537), marker_at)) >= 0:
        if data[marker_at + 1 : marker_at + 2] not in _IN_SCANS:
            (length,) = struct.unpack(">H", data[marker_at + 2 : marker_at + 4].rjust(2, b"\xff"))
            end = marker_at if marker_at + 2 + length > len(data) else end
            break
    notes.insert(0, "the JPEG ends early: what is missing is gray or blurred")
    return BufferedReader(_Parts([*kept, view[at:end], b"\xff\xd9"])), info, notes


def _mpf_pictures(block: bytes) -> int:
    """The number of pictures in a JPEG, out of its MPF segment; 1 where that is malformed."""
    try:
        for tag, kind, _, place in tiff.entries(block, tiff.first_directory(block)):
            if tag == 0xB001:
                return tiff.number(block, kind, place)
    except (struct.error, OverflowError):
        pass
    return 1


def _gif_frames(data: bytes) -> int:
    """The number of frames in a GIF; no more than _MAX_FRAMES are counted."""
    frames = 0
    try:
        at = 13 + _gif_palette(data[10])
        while frames <= _MAX_FRAMES and data[at] in b"!,":
            if data[at] == ord("!"):
                at += 2
            else:
                frames += 1
                at += 11 + _gif_palette(data[at + 9])
            while data[at]:
                at += data[at] + 1
            at += 1
    except IndexError:  # the end of the data
        pass
    return frames


def _gif_palette(flags: int) -> int:
    """The length of the palette after `flags`."""
    return 6 << (flags & 7) if flags & 0x80 else 0


def _left_out(count: int, what: str = "further frame") -> list[str]:
    """The note about `count` things that were, if there were any."""
    if count <= 0:
        return []
    number = "1" if count == 1 else str(count) if count < _MAX_FRAMES else f"{_MAX_FRAMES} or more"
    return [f"{number} {what} is left out" if count == 1 else f"{number} {what}s are left out"]


# --- metadata


def _metadata(image: Image.Image, key: str) -> bytes | None:
    """What Pillow found in the file under `key`; empty where it is malformed."""
    if key not in image.info:
        return None
    value = image.info[key]
    if isinstance(value, str):
        value = value.encode(errors="replace")
    return value if isinstance(value, bytes) else b""


def _exif_block(exif: bytes | None) -> bytes | None:
    """`exif` without its prefix; empty where no TIFF block follows."""
    block = exif and exif.removeprefix(_EXIF_PREFIX)
    return block if block is None or block.startswith((b"II*\0", b"MM\0*")) else b""


def _lost(name: str) -> str:
    """The note about metadata that cannot be kept."""
    return f"the {name} is left out: it is damaged or larger than {_limit(name)}"


def _limit(name: str) -> str:
    """How much of this metadata is kept, for people."""
    limit = _LIMITS[name]
    return f"{limit >> 20} MiB" if limit >> 20 else f"{limit >> 10} KiB"


def _upright(exif: bytes | None, xmp: bytes | None) -> tuple[int, bytes | None, bytes | None]:
    """The orientation 1..8 of the pixels as stored, and the metadata with orientation 1.

    EXIF decides; XMP does where EXIF says nothing. No byte but those of the orientation changes.
    """
    orientation, upright_exif = tiff.orientation(exif) if exif else (None, None)
    pattern = rb"""(tiff:Orientation(?:=["']|>))([0-9])"""
    if orientation is None and xmp and (found := re.search(pattern, xmp)):
        orientation = int(found[2])
    if orientation is None or not 2 <= orientation <= 8:
        return 1, exif, xmp
    return orientation, upright_exif, xmp and re.sub(pattern, rb"\g<1>1", xmp)


def _tiff_exif(image: TiffImagePlugin.TiffImageFile) -> bytes | None:
    """The tags about the photograph in a loaded TIFF file; empty where they are malformed."""
    try:
        tags = _about_the_photo(image.getexif())
        tags.bigtiff = False
        return _exif_block(tags.tobytes()) if tags else None
    except Exception:  # malformed tags raise anything, and must not cost the picture
        return b""


def _about_the_photo(tags: Image.Exif) -> Image.Exif:
    """`tags` less those that describe the layout of a file."""
    for tag in list(tags):
        if tag not in _PHOTO_TAGS:
            del tags[tag]
    return tags


# --- writing


def _planes(picture: Picture, format: str) -> tuple[NDArray[np.uint8] | None, bool]:
    """The alpha that a file of `format` gets, if any, and whether its colour is one gray channel."""
    alpha = picture.alpha if format in _HOLD_ALPHA else None
    return alpha, picture.gray and format in (_HOLD_GRAY if alpha is None else _HOLD_GRAY_AND_ALPHA)


def _channels(rgb: NDArray[Any], alpha: NDArray[np.uint8] | None, gray: bool) -> NDArray[Any]:
    """[H, W] or [H, W, 2 to 4], of the type of `rgb`: gray or RGB, then alpha."""
    colour = rgb
    if gray:
        colour = np.empty(rgb.shape[:2], rgb.dtype)
        for rows in _rows(rgb):
            total = rgb[rows].sum(axis=2, dtype=np.uint32)
            colour[rows] = (total + 1) // 3
    if alpha is None:
        return colour
    return np.dstack([colour, alpha if rgb.dtype == np.uint8 else alpha.astype(np.uint16) * 257])


def _rows(pixels: NDArray[Any], size: int = _STRIP) -> Iterator[slice]:
    """The rows of [H, W, ...], in parts of about so many pixels."""
    height, width = pixels.shape[:2]
    step = max(1, size // width)
    return (slice(top, top + step) for top in range(0, height, step))


def _wide_png(picture: Picture, alpha: NDArray[np.uint8] | None, gray: bool) -> bytes:
    """A PNG of 16 bits, with the metadata as Pillow writes it for a single pixel."""
    like = BytesIO()
    Image.new("L" if gray else "RGB", (1, 1)).save(like, "PNG", **_options(picture, "PNG", gray))
    height, width, _ = picture.rgb.shape
    strips = (
        _channels(picture.rgb[rows], None if alpha is None else alpha[rows], gray)
        for rows in _rows(picture.rgb, _WIDE_STRIP)
    )
    shaped = (strip.reshape(len(strip), width, -1) for strip in strips)
    return png.compose(like.getvalue(), (width, height), shaped, _PNG_LEVEL)


def _metadata_for(picture: Picture, format: str, gray: bool) -> dict[str, Any]:
    """ICC profile, EXIF and XMP as Pillow's encoder for `format` takes them, empty where they are left
    out, for one of the reasons in `_reason`; "dpi" and "comment" where the file gets them."""
    icc, exif, xmp = picture.icc or b"", picture.exif or b"", picture.xmp or b""
    if format in _HOLD_NO_METADATA:
        icc = exif = xmp = b""
    limits = {**_LIMITS, **(_JPEG_LIMITS if format == "JPEG" else {})}
    if len(icc) > limits["ICC profile"] or icc[16:20] != (b"GRAY" if gray else b"RGB "):
        icc = b""
    exif = exif if len(exif) <= limits["EXIF"] else b""
    xmp = xmp if len(xmp) <= limits["XMP"] else b""
    metadata: dict[str, Any] = {"icc_profile": icc, "exif": exif, "xmp": xmp}
    if format == "JPEG" and exif:
        metadata["exif"] = _EXIF_PREFIX + exif
    if format in ("TIFF", "AVIF"):
        metadata["exif"] = _parsed(exif)
    if format == "TIFF":
        _about_the_photo(metadata["exif"])
    inches = picture.density and (picture.density[0] / _INCH, picture.density[1] / _INCH)
    if inches and format in _HOLD_DENSITY:
        fits = format != "JPEG" or all(1 <= round(number) < 1 << 16 for number in inches)
        in_exif = format == "TIFF" and exif and exif_density(exif) == picture.density
        if fits and not in_exif:
            metadata["dpi"] = inches
    comment = picture.comment or b""
    if comment and format in _HOLD_COMMENT and len(comment) <= limits["comment"]:
        if format == "JPEG":
            metadata["comment"] = comment
        elif b"\0" not in comment.rstrip(b"\0"):
            metadata["comment"] = comment.rstrip(b"\0")
    return metadata


def _reason(name: str, value: bytes, format: str) -> str:
    """Why `_metadata_for` leaves the metadata `value` out."""
    if format in _HOLD_NO_METADATA or (name == "comment" and format not in _HOLD_COMMENT):
        return f"{format} has none"
    if len(value) > _LIMITS[name]:
        return f"it is larger than {_limit(name)}"
    if format == "JPEG" and len(value) > _JPEG_LIMITS[name]:
        return f"it is longer than the {_JPEG_LIMITS[name]} bytes of JPEG"
    if name == "ICC profile":
        return "it is of other channels"
    return f"{format} cannot hold what it says, or it is damaged"


def _options(picture: Picture, format: str, gray: bool) -> dict[str, Any]:
    """What Pillow's encoder for `format` is told, metadata included."""
    metadata = _metadata_for(picture, format, gray)
    if format == "PNG":
        text = PngImagePlugin.PngInfo()
        if metadata["xmp"]:
            text.add_itxt("XML:com.adobe.xmp", metadata["xmp"])
        if comment := metadata.get("comment"):
            text.add_text("Comment", _decoded_text(comment))
        return metadata | {"pnginfo": text, "compress_level": _PNG_LEVEL}
    if format == "JPEG":
        return metadata | {"quality": 95, "subsampling": "4:4:4"}
    if format == "WEBP":
        return metadata | {"lossless": True, "exact": True}
    if format == "TIFF":
        if metadata["xmp"]:
            metadata["exif"][_XMP_TAG] = metadata["xmp"]
        return metadata
    if format == "AVIF":
        # Tiles would follow the number of processors, and the bytes the tiles.
        subsampling = "4:0:0" if gray else "4:4:4"
        return metadata | {"quality": 95, "subsampling": subsampling, "autotiling": False}
    return {"dpi": metadata["dpi"]} if "dpi" in metadata else {}


def _decoded_text(comment: bytes) -> str:
    """A comment as text: UTF-8, or Latin-1 where it is not that."""
    try:
        return comment.decode()
    except UnicodeDecodeError:
        return comment.decode("latin-1")


def _parsed(exif: bytes) -> Image.Exif:
    """`exif` for the formats whose EXIF Pillow composes anew; empty where it cannot do that."""
    tags = Image.Exif()
    if not tiff.is_digestible(exif):
        return tags
    try:
        with _quiet_pillow(0):
            tags.load(exif)
            tags.tobytes()
    except Exception:  # malformed tags raise anything, and must not cost the picture
        return Image.Exif()
    return tags


# --- images without a file


def _raw_mode(image: Image.Image) -> str:
    """How the samples lie in the file of an image that is not loaded yet, "RGB;16B" for example; empty
    where that is not known."""
    for _, _, _, arguments in getattr(image, "tile", ()):
        raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
        return raw if isinstance(raw, str) else ""
    return ""


def _exif_of_tiff(image: TiffImagePlugin.TiffImageFile) -> bytes | None:
    """As `_tiff_exif`, of an image whose own tags stay as they are."""
    try:
        tags, kept = image.getexif(), Image.Exif()
        kept.endian, directories = tags.endian, (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
        for tag in _PHOTO_TAGS.intersection(tags):
            kept[tag] = dict(tags.get_ifd(tag)) if tag in directories else tags[tag]
        return kept.tobytes() if kept else None
    except Exception:  # malformed tags raise anything, and must not cost the picture
        return b""


def _picture_in_memory(
    image: Image.Image, raw: str, info: dict[Any, Any], upright: bool, turned: int
) -> Picture:
    """What `from_pillow` returns of a loaded image, which Pillow has turned by an orientation already."""
    samples = re.match(r"(?:I|L|LA|RGB|RGBA|RGBX);(\d+)", raw)
    depth = int(samples[1]) if samples else 8
    if image.mode == "RGB":
        key = image.info.get("transparency")
        depth = 16 if isinstance(key, tuple) and max(key) > 255 else max(depth, 8)
    gray = image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")
    gray = gray or raw.startswith("LA;")  # with 16 bits, which Pillow gives as RGBA
    icc, exif, xmp = (_bytes_of(info.get(key)) for key in ("icc_profile", "exif", "xmp"))
    exif, orientation = _exif_block(exif), 1
    if upright and not isinstance(image, TiffImagePlugin.TiffImageFile):
        orientation, exif, xmp = _upright(exif, xmp)
        turned = orientation
    density = _density_in_memory(image, info.get("dpi")) or exif_density(exif)
    comment = _bytes_of(info.get("comment") or info.get("Comment"))
    metadata = {"ICC profile": icc, "EXIF": exif, "XMP": xmp, "comment": comment}
    return _composed(image, depth, gray, (orientation, turned), metadata, density, [])


def _density_in_memory(image: Image.Image, dpi: Any) -> tuple[int, int] | None:
    """Pixels per metre for the dots per inch that are in an info; None where they say nothing."""
    try:
        density = _per_metre(float(dpi[0]), float(dpi[1]), _INCH)
    except (TypeError, ValueError, LookupError, ArithmeticError):
        return None
    in_bmp = image.format in ("BMP", "DIB") and density and {*density} <= {*_BMP_DEFAULT}
    return None if in_bmp else density


def _bytes_of(value: object) -> bytes | None:
    """Metadata that was found in an info; empty where it is malformed, None where there is none."""
    if isinstance(value, str):
        value = value.encode(errors="replace")
    return (value if isinstance(value, bytes) else b"") if value else None


# --- Pillow's manners

_PILLOW_LOCK = threading.RLock()  # held while something that belongs to the process is changed


@contextmanager
def _quiet_pillow(max_pixels: int) -> Iterator[None]:
    """`max_pixels` instead of Pillow's own limit, to within one pixel, and no warnings."""
    with _PILLOW_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2  # it warns at this and raises at twice this
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = saved


@contextmanager
def no_standard_error() -> Iterator[None]:
    """Nothing reaches file descriptor 2, where libtiff would print what Pillow raises as well, and so do other
    libraries."""
    try:
        saved = os.dup(2)
    except OSError:  # it is closed anyway
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(nowhere)
        os.close(saved)


def _one_line(error: BaseException) -> str:
    """The message of `error` on one line, without the addresses of objects."""
    text = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "the input", str(error))
    text = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(text.split())[:200] or type(error).__name__
