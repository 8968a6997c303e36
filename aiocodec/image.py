"""Image files <-> uint8 pixels [H, W, 3] and metadata. All that aiocodec knows of Pillow is here.

`read` takes whatever Pillow opens (except PostScript, which would run an interpreter on the input)
and makes of it what a viewer would show: 8-bit RGB, turned upright, the first frame of several.
`write` takes such a picture to PNG, JPEG, WebP, TIFF, BMP, PPM or AVIF. `pack_alpha` and
`unpack_alpha` are the lossless form that a transparency plane has inside an .aic file.
"""

import logging
import os
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from aiocodec.config import MAX_SIDE
from aiocodec.errors import AicError, BitstreamError, ImageError, LimitError, OutputError

_AIC_MAGIC = b"\x8aAIC"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_EXIF_PREFIX = b"Exif\0\0"
_ORIENTATION = 0x0112
_XMP_TAG = 0x02BC

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

# Pillow logs a few failures as well as raising them, and Python prints what no handler takes.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True, eq=False)
class Picture:
    """An upright 8-bit picture, and what its file said about it."""

    rgb: NDArray[np.uint8]  # [H, W, 3], code values 0..255 (sRGB unless `icc`), C-contiguous
    alpha: NDArray[np.uint8] | None = None  # [H, W], 255 is opaque; None: opaque everywhere
    gray: bool = False  # no colour channels in the source; `read` gives three equal channels then
    sixteen_bit: bool = False  # the source had more than 8 bits per channel
    oriented: bool = False  # an EXIF (or XMP) orientation other than 1 was applied to the pixels
    icc: bytes | None = None  # a profile of RGB, or of gray values where `gray`
    exif: bytes | None = None  # TIFF block without the prefix 'Exif\0\0'; its orientation fits rgb
    xmp: bytes | None = None  # XML packet; its orientation fits rgb


def kind(head: bytes) -> str | None:
    """The name that Pillow has for the format of an image file which begins with `head`, as "PNG".

    None where no format begins like that. The first 16 bytes decide, all further ones are welcome.
    It is the signature alone that counts: the file may be damaged, or of a format that `read`
    refuses. Formats without a signature (TGA, for one) are never found.
    """
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


def read(data: bytes, *, max_pixels: int = 1 << 28) -> Picture:
    """The first frame of the image file `data`, in 8 bits, turned upright.

    - Gray with 16 bits (Pillow's I;16 and I, taken as 0..65535) is scaled with rounding. Colour
      with 16 bits is cut to the upper 8 by Pillow. Floating point (F) is taken as 0..1 where no
      value is above 1, else as 0..255, and clamped; what is not finite becomes 0.
    - CMYK goes through its embedded ICC profile to sRGB, or through Pillow's plain formula where
      there is no usable profile; LAB goes to sRGB. Their profiles are dropped after that.
    - Transparency may be an alpha channel, a palette's or a colour key. Colours under full
      transparency are kept. Alpha that is 255 everywhere is no alpha.

    Raises ImageError for what is not an image, is truncated or is damaged so that it cannot be
    decoded, and LimitError, before decoding, for more than `max_pixels` pixels or a side longer
    than 65535. One call at a time: Pillow's own pixel limit and Python's warnings are out of force
    for the whole process meanwhile.
    """
    if not data:
        raise ImageError("the input is empty")
    if data.startswith(_AIC_MAGIC):
        raise ImageError("the input is an .aic file already")
    try:
        with _quiet_pillow(max_pixels), Image.open(BytesIO(data)) as image:
            return _picture(image, data, max_pixels)
    except AicError:
        raise
    except Image.DecompressionBombError as error:
        size = _one_line(error).split(" exceeds ")[0]
        raise LimitError(f"{size} exceeds the limit of {max_pixels} pixels") from error
    except MemoryError as error:
        raise LimitError("not enough memory to decode the image") from error
    except UnidentifiedImageError as error:
        raise ImageError("not an image, or one that is damaged at its start") from error
    except Exception as error:  # Pillow's decoders raise nearly everything
        raise ImageError(f"the image cannot be decoded: {_one_line(error)}") from error


def write(picture: Picture, format: str = "PNG") -> bytes:
    """The picture as a file of `format`: PNG, JPEG, WEBP, TIFF, BMP, PPM or AVIF.

    JPEG and AVIF have quality 95 and full colour resolution, WebP is lossless. A gray picture gets
    one channel, the rounded mean of the three, except in WebP and, with alpha, in AVIF. JPEG, BMP
    and PPM have no transparency: the picture is written opaque. BMP and PPM have no metadata
    either; TIFF and AVIF get EXIF as Pillow rewrites it, TIFF without the tags about file layout;
    JPEG goes without EXIF or XMP that is longer than its 64 KiB. A profile is written only where
    it is one of the channels in the file ('GRAY' or 'RGB '). The same picture gives the same bytes.

    Raises OutputError for another format, and where the encoder fails (a WebP side is at most
    16383, for one).
    """
    if format not in _FORMATS.values():
        raise OutputError(f"unknown image format {format}")
    alpha = picture.alpha if format in _HOLD_ALPHA else None
    gray = picture.gray and format in (_HOLD_GRAY if alpha is None else _HOLD_GRAY_AND_ALPHA)
    out = BytesIO()
    try:
        image = Image.fromarray(_channels(picture.rgb, alpha, gray))
        image.save(out, format, **_options(picture, format, gray))
    except KeyError as error:
        raise OutputError(f"the installed Pillow cannot write {format}") from error
    except Exception as error:
        raise OutputError(f"cannot write {format}: {_one_line(error)}") from error
    return out.getvalue()


def format_of(path: str) -> str:
    """The `format` for `write` that the suffix of `path` asks for; OutputError if it is unknown."""
    suffix = PurePath(path).suffix
    try:
        return _FORMATS[suffix.lower()]
    except KeyError:
        known = " ".join(_FORMATS)
        raise OutputError(f"unknown image suffix {suffix!r}; known are {known}") from None


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
    if _PNG_END not in data:
        raise BitstreamError("the alpha plane is truncated")
    try:
        with _quiet_pillow(width * height), Image.open(BytesIO(data), formats=["PNG"]) as image:
            alpha = np.array(image)
    except MemoryError as error:
        raise LimitError("not enough memory to decode the alpha plane") from error
    except Exception as error:
        raise BitstreamError(f"the alpha plane is damaged: {_one_line(error)}") from error
    if alpha.shape != (height, width) or alpha.dtype != np.uint8:
        raise BitstreamError("the alpha plane is not plain gray")
    return alpha


# --- reading


def _picture(image: Image.Image, data: bytes, max_pixels: int) -> Picture:
    """The picture in `image`, just opened from `data`; raises whatever Pillow does."""
    _check_size(image.size, max_pixels)
    if image.format == "EPS":
        raise ImageError("PostScript is not supported")
    if image.format == "PNG" and _PNG_END not in data:  # Pillow is content with all the pixels
        raise ImageError("the image is truncated: PNG without an end")

    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Pillow turns these while it loads them, and forgets the orientation.
        oriented = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
        depth = _tiff_depth(image)
        with _no_standard_error():
            image.load()
        orientation, exif, xmp = 1, _tiff_exif(image), _metadata(image, "xmp")
    else:
        depth = _depth(image, data)
        image.load()
        exif = _exif_block(_metadata(image, "exif"))
        xmp = _metadata(image, "xmp", "XML:com.adobe.xmp")
        orientation, exif, xmp = _upright(exif, xmp)
        oriented = orientation != 1
    _check_size(image.size, max_pixels)  # an icon may turn out larger than it said

    icc = _metadata(image, "icc_profile")
    gray = image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")
    if image.format == "PNG" and data[25] == 4:
        gray = True  # 16-bit gray with alpha, which Pillow gives as RGBA
    rgb, alpha = _pixels(image, depth, icc)
    if alpha is not None and alpha.min() == 255:
        alpha = None
    return Picture(
        rgb=_turned(rgb, orientation),
        alpha=None if alpha is None else _turned(alpha, orientation),
        gray=gray,
        sixteen_bit=depth > 8 or image.mode.startswith("I") or image.mode == "F",
        oriented=oriented,
        icc=icc if icc and _describes(icc, image.mode, gray) else None,
        exif=exif,
        xmp=xmp,
    )


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise LimitError(f"{width}x{height} pixels exceed the limit of {max_pixels} pixels")
    if max(size) > MAX_SIDE:
        raise LimitError(f"{width}x{height} pixels: a side is longer than {MAX_SIDE}")


def _depth(image: Image.Image, data: bytes) -> int:
    """Bits per channel of a PNG or PPM file, 8 for other formats."""
    if image.format == "PNG":
        return data[24]
    if image.format == "PPM" and data[:2] in (b"P2", b"P3", b"P5", b"P6"):
        fields = re.sub(rb"#[^\r\n]*", b"", data[:4096]).split(None, 4)  # magic width height maxval
        if len(fields) > 3 and fields[3].isdigit() and int(fields[3]) > 255:
            return 16
    return 8


def _tiff_depth(image: TiffImagePlugin.TiffImageFile) -> int:
    """Bits of the widest channel."""
    bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    return max(bits) if isinstance(bits, tuple) else int(bits)


def _pixels(
    image: Image.Image, depth: int, icc: bytes | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """RGB [H, W, 3] and alpha [H, W], if any, of a loaded image of any mode."""
    if image.mode in ("1", "L"):
        levels = np.asarray(image.convert("L"))
        return _three(levels), _keyed(image, levels, depth)
    if image.mode.startswith("I"):
        samples = np.asarray(image)
        top = 4095 if depth == 12 else 65535
        levels = np.clip(samples, 0, top).astype(np.uint32)
        levels *= 255
        levels += top // 2
        levels //= top
        return _three(levels.astype(np.uint8)), _keyed(image, samples, depth)
    if image.mode == "F":
        samples = np.asarray(image)
        values = np.where(np.isfinite(samples), samples, 0)
        if values.max() <= 1:
            values *= 255
        return _three((np.clip(values, 0, 255) + 0.5).astype(np.uint8)), None
    if image.mode in ("LA", "La"):
        both = np.asarray(image.convert("LA"))
        return _three(both[..., 0]), both[..., 1]
    if image.mode == "RGB":
        rgb = np.array(image)
        return rgb, _keyed(image, rgb, depth)
    if image.mode == "CMYK":
        return np.array(_from_cmyk(image, icc)), None
    if image.mode == "LAB":
        return np.array(_to_srgb(image, ImageCms.createProfile("LAB"))), None
    if image.has_transparency_data:  # RGBA, RGBa, PA, P
        rgba = np.asarray(image.convert("RGBA"))
        return np.ascontiguousarray(rgba[..., :3]), rgba[..., 3]
    return np.array(image.convert("RGB")), None  # P, RGBX, YCbCr, HSV


def _three(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(levels[..., None], 3, axis=2)


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


def _from_cmyk(image: Image.Image, icc: bytes | None) -> Image.Image:
    if icc:
        try:
            return _to_srgb(image, ImageCms.ImageCmsProfile(BytesIO(icc)))
        except (ImageCms.PyCMSError, OSError, ImportError):  # a broken profile, or no littleCMS
            pass
    return image.convert("RGB")


def _to_srgb(image: Image.Image, profile: Any) -> Image.Image:
    """`image` in sRGB, by relative colorimetry with black point compensation."""
    converted = ImageCms.profileToProfile(
        image,
        profile,
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert converted is not None  # it is None only where the image is changed in place
    return converted


def _turned(plane: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """`plane` [H, W, ...] stored in an EXIF orientation 1..8, as it is meant to be seen."""
    if orientation in (5, 6, 7, 8):
        plane = plane.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        plane = plane[::-1]
    if orientation in (2, 3, 6, 7):
        plane = plane[:, ::-1]
    return np.ascontiguousarray(plane)


# --- metadata


def _metadata(image: Image.Image, *keys: str) -> bytes | None:
    """The first of `keys` that Pillow found in the file; None where it is empty or malformed."""
    for key in keys:
        value = image.info.get(key)
        if isinstance(value, str):
            value = value.encode(errors="replace")
        if isinstance(value, bytes) and value:
            return value
    return None


def _exif_block(exif: bytes | None) -> bytes | None:
    """`exif` without its prefix; None where no TIFF block follows."""
    block = (exif or b"").removeprefix(_EXIF_PREFIX)
    return block if block.startswith((b"II*\0", b"MM\0*")) else None


def _upright(exif: bytes | None, xmp: bytes | None) -> tuple[int, bytes | None, bytes | None]:
    """The orientation 1..8 of the pixels as stored, and the metadata with orientation 1.

    EXIF decides; XMP does where EXIF says nothing. No byte but those of the orientation changes.
    """
    orientation, upright_exif = _exif_orientation(exif) if exif else (None, None)
    pattern = rb"""(tiff:Orientation(?:=["']|>))([0-9])"""
    if orientation is None and xmp and (found := re.search(pattern, xmp)):
        orientation = int(found[2])
    if orientation is None or not 2 <= orientation <= 8:
        return 1, exif, xmp
    return orientation, upright_exif, xmp and re.sub(pattern, rb"\g<1>1", xmp)


def _exif_orientation(exif: bytes) -> tuple[int | None, bytes]:
    """The orientation in the first IFD, if it is there, and `exif` with that tag set to 1."""
    order = "<" if exif.startswith(b"II") else ">"
    orientation, upright = None, bytearray(exif)
    try:
        (ifd,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, ifd)
        for entry in range(ifd + 2, ifd + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, entry)
            width = {1: "B", 3: "H", 4: "I"}.get(kind)
            if tag == _ORIENTATION and width:
                (orientation,) = struct.unpack_from(order + width, exif, entry + 8)
                struct.pack_into(order + "HIHH", upright, entry + 2, 3, 1, 1, 0)
    except struct.error:  # cut off: what was found before counts
        pass
    return orientation, bytes(upright)


def _tiff_exif(image: TiffImagePlugin.TiffImageFile) -> bytes | None:
    """The tags about the photograph in a loaded TIFF file; None if there are none."""
    try:
        tags = _about_the_photo(image.getexif())
        tags.bigtiff = False
        return _exif_block(tags.tobytes()) if tags else None
    except Exception:  # malformed tags raise anything, and must not cost the picture
        return None


def _about_the_photo(tags: Image.Exif) -> Image.Exif:
    """`tags` less those that describe the layout of a file."""
    for tag in list(tags):
        if tag not in _PHOTO_TAGS:
            del tags[tag]
    return tags


def _describes(icc: bytes, mode: str, gray: bool) -> bool:
    """Whether `icc` is a profile of the pixels that an image of `mode` was turned into."""
    space = icc[16:20]
    return mode not in ("CMYK", "LAB") and (space == b"RGB " or (gray and space == b"GRAY"))


# --- writing


def _channels(
    rgb: NDArray[np.uint8], alpha: NDArray[np.uint8] | None, gray: bool
) -> NDArray[np.uint8]:
    """[H, W] or [H, W, 2 to 4]: gray or RGB, then alpha."""
    colour = rgb
    if gray:
        colour = ((rgb.sum(axis=2, dtype=np.uint16) + 1) // 3).astype(np.uint8)
    return colour if alpha is None else np.dstack([colour, alpha])


def _options(picture: Picture, format: str, gray: bool) -> dict[str, Any]:
    """What Pillow's encoder for `format` is told, metadata included."""
    space = b"GRAY" if gray else b"RGB "
    icc = picture.icc if picture.icc and picture.icc[16:20] == space else b""
    exif, xmp = picture.exif or b"", picture.xmp or b""
    metadata: dict[str, Any] = {"icc_profile": icc, "exif": exif, "xmp": xmp}
    if format == "PNG":
        text = PngImagePlugin.PngInfo()
        if xmp:
            text.add_itxt("XML:com.adobe.xmp", xmp)
        return metadata | {"pnginfo": text}
    if format == "JPEG":
        metadata["exif"] = _EXIF_PREFIX + exif if 0 < len(exif) <= 65533 - 6 else b""
        metadata["xmp"] = xmp if len(xmp) <= 65533 - 29 else b""
        return metadata | {"quality": 95, "subsampling": "4:4:4"}
    if format == "WEBP":
        return metadata | {"lossless": True, "exact": True}
    if format == "TIFF":
        tags = _about_the_photo(_parsed(exif))
        if xmp:
            tags[_XMP_TAG] = xmp
        return metadata | {"exif": tags}
    if format == "AVIF":
        metadata["exif"] = _parsed(exif)
        # Tiles would follow the number of processors, and the bytes the tiles.
        subsampling = "4:0:0" if gray else "4:4:4"
        return metadata | {"quality": 95, "subsampling": subsampling, "autotiling": False}
    return {}


def _parsed(exif: bytes) -> Image.Exif:
    """`exif` for the formats whose EXIF Pillow composes anew; empty where it cannot do that."""
    tags = Image.Exif()
    try:
        with _quiet_pillow(0):
            tags.load(exif)
            tags.tobytes()
    except Exception:  # malformed tags raise anything, and must not cost the picture
        return Image.Exif()
    return tags


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
def _no_standard_error() -> Iterator[None]:
    """Nothing reaches file descriptor 2, where libtiff would print what Pillow raises as well."""
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
