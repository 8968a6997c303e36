"""Image formats that Pillow does not read, through packages that are there where their extra was installed.

    name    extra  package            files
    HEIF    heif   pillow-heif        HEIC of telephones, and others coded as HEVC in HEIF
    JXL     jxl    pillow-jxl-plugin  JPEG XL, bare or in its container
    RAW     raw    rawpy              of cameras: DNG, CR2, CR3, NEF, ARW, ORF, RAF, RW2, PEF and more

`kind` knows their files without the packages, which are imported when the first file is decoded, and
not registered with Pillow but for what pillow-jxl-plugin does by itself. Files may be a stranger's.
"""

import importlib
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aiocodec import signals, tiff
from aiocodec.errors import ImageError, LimitError, RuntimeMissing

# The name of each as people say it, its extra, and the module to be imported.
_PACKAGES = {
    "HEIF": ("HEIC", "heif", "pillow_heif"),
    "JXL": ("JPEG XL", "jxl", "pillow_jxl"),
    "RAW": ("camera RAW", "raw", "rawpy"),
}
FORMATS = tuple(_PACKAGES)
EXTRAS = {
    extra: module for _, extra, module in _PACKAGES.values()
}  # and the module that each brings

_HEVC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_ANY_BRANDS = (b"mif1", b"mif2", b"msf1")  # the others in the list say what the coding is
_AVIF_BRANDS = (b"avif", b"avis")
_JXL_MAGIC = b"\xff\x0a"
_JXL_CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
_RAW_MAGIC = (
    b"FUJIFILMCCD-RAW",  # RAF
    b"IIRO",  # ORF
    b"IIRS",
    b"MMOR",
    b"IIU\0",  # RW2
    b"FOVb",  # X3F
    b"\0MRM",  # MRW
    b"II\x1a\0\0\0HEAPCCDR",  # CRW
)
# From byte 4 of what begins as a TIFF, whose pixels may lie there, too: CR2 and IIQ.
_IN_TIFF = re.compile(rb"\x10\0\0\0CR\x02|....(IIII.waR|MMMMRaw)", re.DOTALL)

_GAIN_MAPS = ("urn:com:apple:photo:2020:aux:hdrgainmap", "urn:com:apple:photo:2023:aux:hdrgainmap")
_MAX_BOXES = 1 << 12  # of a JPEG XL
_MAX_HEAD = 1 << 12  # bytes of its codestream that are looked into
_MAX_EXTRA_CHANNELS = 4  # of a JPEG XL: what the main profile allows
_MAX_BOXED = {b"Exif": (1 << 20) + 16, b"xml ": 1 << 24}  # bytes of metadata, unpacked
_PART = 1 << 20  # bytes that are unpacked at a time


@dataclass(frozen=True, eq=False)
class Decoded:
    """The first picture of a file, upright, and what its file said about it."""

    samples: NDArray[Any]  # [H, W, C], 0..`top`: gray or RGB, and alpha where C is 2 or 4
    top: float = 255  # white, and opaque
    premultiplied: bool = False  # colours are multiplied by alpha
    deep: bool = False  # the file has more than 8 bits per channel
    oriented: bool = False  # an orientation in the file was applied, not that of the EXIF
    icc: bytes | None = None
    exif: bytes | None = None  # with the prefix 'Exif\0\0' or without it
    # of a RAW file instead: blocks of TIFF whose first directories are the main one, that of the
    # exposure and that of the place, or one that has all of them
    tags: tuple[bytes, ...] = ()
    xmp: bytes | None = None
    space: tuple[int, int] | None = None  # codes of primaries and transfer in ITU-T H.273
    aspect: tuple[float, float] = (1, 1)  # width and height of a pixel
    left_out: tuple[tuple[int, str], ...] = ()  # how many of what, in the singular
    notes: tuple[str, ...] = ()  # what else was lost, a clause each


def kind(head: bytes) -> str | None:
    """Which of FORMATS a file is that begins with `head`, None for others.

    The first 16 bytes decide for most. A RAW file that is a TIFF to begin with is known by its
    directories, as far as they are in `head`.
    """
    if head.startswith((_JXL_MAGIC, _JXL_CONTAINER)):
        return "JXL"
    if head.startswith(_RAW_MAGIC):
        return "RAW"
    if head[4:8] == b"ftyp":
        return _kind_of_brands(head)
    if head.startswith(tiff.MAGIC) and (_IN_TIFF.match(head, 4) or tiff.is_raw(head)):
        return "RAW"
    return None


def decode(name: str, data: bytes, admit: Callable[[tuple[int, int]], None]) -> Decoded | bytes:
    """The picture in a file of the format `name`, one of FORMATS; for a JPEG XL that was a JPEG, that
    JPEG.

    `admit` is told width and height before there is memory for a pixel, and raises what `decode` then
    does. Raises ImageError where the package is missing, which names the extra, RuntimeMissing where
    it cannot be loaded, LimitError for more than it takes, and whatever the package raises for damage.
    """
    decoders = {"HEIF": _heif, "JXL": _jxl, "RAW": _raw}
    return decoders[name](_package(name), data, admit)


def _package(name: str) -> Any:
    spoken, extra, module = _PACKAGES[name]
    try:
        with signals.held():
            return importlib.import_module(module)
    except ModuleNotFoundError as fault:
        if fault.name != module:
            raise RuntimeMissing(f"{module} cannot be loaded: {fault}") from None
        raise ImageError(f"{spoken} needs pip install 'aiocodec[{extra}]'") from None
    except ImportError as fault:
        text = " ".join(str(fault).split())[:200]
        raise RuntimeMissing(f"{module} cannot be loaded: {text}") from None


def _kind_of_brands(head: bytes) -> str | None:
    """What a file is that begins with a box of brands."""
    major, size = head[8:12], int.from_bytes(head[:4], "big")
    if major == b"crx ":
        return "RAW"
    others = [head[at : at + 4] for at in range(16, min(size, len(head)), 4)]
    if major in _HEVC_BRANDS:
        return "HEIF"
    return "HEIF" if major in _ANY_BRANDS and not {*others} & {*_AVIF_BRANDS} else None


# --- HEIF

_CHANNELS = {"L": 1, "I": 1, "LA": 2, "La": 2, "RGB": 3, "RGBA": 4, "RGBa": 4}


def _heif(package: Any, data: bytes, admit: Callable[[tuple[int, int]], None]) -> Decoded:
    file = package.open_heif(data, convert_hdr_to_8bit=False, hdr_to_16bit=False)
    image = file[file.primary_index]
    admit(image.size)
    mode, _, depth = image.mode.partition(";")
    bits = int(depth or 8)
    packed = image.data
    width, height = image.size
    admit(image.size)  # it may turn out larger than it said
    samples: NDArray[Any] = np.frombuffer(packed, np.uint8 if bits == 8 else np.uint16)
    row = len(samples) // height
    samples = samples.reshape(height, row)[:, : width * _CHANNELS[mode]]
    info = image.info
    profile = info.get("nclx_profile") if "icc_profile" not in info else None
    auxiliary = {name: len(found) for name, found in info.get("aux", {}).items()}
    gain_maps = sum(auxiliary.pop(name, 0) for name in _GAIN_MAPS)
    horizontal, vertical = info.get("pixel_aspect_ratio") or (1, 1)
    return Decoded(
        samples.reshape(height, width, -1),
        (1 << bits) - 1,
        premultiplied=mode.endswith("a"),
        deep=bits > 8,
        icc=info.get("icc_profile"),
        exif=info.get("exif"),
        xmp=info.get("xmp"),
        space=(profile["color_primaries"], profile["transfer_characteristics"])
        if profile
        else None,
        aspect=(horizontal, vertical),
        left_out=(
            (len(file) - 1, "further frame"),
            (len(info.get("thumbnails", [])), "thumbnail"),
            (len(info.get("depth_images", [])), "depth map"),
            (gain_maps, "HDR gain map"),
            (sum(auxiliary.values()), "auxiliary image"),
        ),
    )


# --- JPEG XL


@dataclass(frozen=True)
class _Codestream:
    """What the beginning of a JPEG XL codestream says."""

    size: tuple[int, int]  # as stored
    orientation: int = 1
    animated: bool = False
    bits: int = 8  # of a colour channel, of whatever sort
    extra: tuple[int, ...] = ()  # types of the channels besides colour
    premultiplied: bool = False
    srgb: bool = True  # the colour space is the one that is not spelled out


_ALPHA, _BLACK = 0, 4  # types of extra channels


def _jxl(package: Any, data: bytes, admit: Callable[[tuple[int, int]], None]) -> Decoded | bytes:
    boxes: dict[bytes, bytes] = {}
    if data.startswith(_JXL_CONTAINER):
        data, boxes = _jxl_boxes(data)
    try:
        stream = _codestream(_Bits(data[:_MAX_HEAD]))
    except IndexError:
        raise ImageError("the image is truncated: JPEG XL without a picture") from None
    turned = stream.orientation > 4
    admit(stream.size[::-1] if turned else stream.size)
    if stream.animated:  # The package gives the last frame of these, and no other.
        raise ImageError("animated JPEG XL cannot be read")
    if _BLACK in stream.extra:
        raise ImageError("JPEG XL in CMYK cannot be read")
    if len(stream.extra) > _MAX_EXTRA_CHANNELS:
        raise LimitError(f"the JPEG XL has more than {_MAX_EXTRA_CHANNELS} extra channels")
    try:
        if b"jbrd" in boxes:  # what else was in the JPEG
            data = _boxed(data, {name: boxes[name] for name in boxes if name not in _LOST_BOXES})
        is_jpeg, info, packed, icc, *_ = package.Decoder(num_threads=0)(data)
    except BaseException as fault:
        # A panic in Rust is no Exception, and the messages speak of how to build a library.
        if isinstance(fault, MemoryError):
            raise
        if isinstance(fault, Exception) or type(fault).__name__ == "PanicException":
            raise ImageError("the JPEG XL is damaged or truncated") from None
        raise
    if is_jpeg:
        return bytes(packed)
    channels = info.num_channels + info.has_alpha_channel
    admit((info.width, info.height))
    bytes_each = len(packed) // (info.width * info.height * channels)
    types = {1: np.uint8, 2: np.float16 if info.mode.startswith("F") else np.uint16, 4: np.float32}
    samples: NDArray[Any] = np.frombuffer(packed, types[bytes_each])
    unread = len(stream.extra) - (_ALPHA in stream.extra)
    notes = [words for name, words in _LOST_BOXES.items() if name in boxes]
    return Decoded(
        samples.reshape(info.height, info.width, channels),
        {1: 255, 2: 65535}[bytes_each] if samples.dtype.kind == "u" else 1.0,
        premultiplied=stream.premultiplied,
        deep=stream.bits > 8,
        oriented=stream.orientation != 1,
        icc=None if stream.srgb else icc,
        exif=_jxl_exif(boxes.get(b"Exif")),
        xmp=boxes.get(b"xml "),
        left_out=((unread, "extra channel"),),
        notes=tuple(notes),
    )


_LOST_BOXES = {
    b"jhgm": "the HDR gain map is left out",
    b"jumb": "the JUMBF metadata is left out",
}


def _jxl_boxes(data: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """The codestream in a container, and the first box of metadata of each sort, unpacked; empty where
    it is damaged or too large. The package would unpack any number of bytes."""
    stream: list[bytes] = []
    boxes: dict[bytes, bytes] = {}
    for name, start, end in _boxes(data):
        packed = name == b"brob"
        if packed:
            name, start = data[start : start + 4], start + 4
        if name in (b"jxlc", b"jxlp"):
            stream.append(data[start + 4 * (name == b"jxlp") : end])
        elif name in boxes:
            pass
        elif name in _MAX_BOXED and packed:
            boxes[name] = _unbrotli(data[start:end], _MAX_BOXED[name])
        elif name in _MAX_BOXED:
            boxes[name] = data[start:end] if end - start <= _MAX_BOXED[name] else b""
        elif name == b"jbrd":
            boxes[name] = data[start:end]
        elif name in _LOST_BOXES:
            boxes[name] = b""
    return b"".join(stream), boxes


def _boxed(stream: bytes, boxes: dict[bytes, bytes]) -> bytes:
    """A container with these boxes before a codestream."""
    parts = [_JXL_CONTAINER, b"\0\0\0\x14ftypjxl \0\0\0\0jxl "]
    for name, body in (*boxes.items(), (b"jxlc", stream)):
        parts += [struct.pack(">I4s", len(body) + 8, name), body]
    return b"".join(parts)


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of the content of the boxes of a file."""
    at = 0
    for _ in range(_MAX_BOXES):
        if at + 8 > len(data):
            return
        size, name = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if size == 1 and at + 16 <= len(data):
            (size,) = struct.unpack_from(">Q", data, start)
            start += 8
        end = at + size if size else len(data)
        if not start <= end <= len(data):
            return
        yield name, start, end
        at = end
    raise ImageError(f"the image has more than {_MAX_BOXES} boxes")


def _unbrotli(packed: bytes, limit: int) -> bytes:
    """What Brotli compressed; empty where that is damaged or more than `limit` bytes."""
    parts, length = [], 0
    try:
        stream = importlib.import_module("brotli").Decompressor()
        part = stream.process(packed, output_buffer_limit=_PART)
        while part:
            parts.append(part)
            length += len(part)
            if length > limit:
                return b""
            part = stream.process(b"", output_buffer_limit=_PART)
        return b"".join(parts) if stream.is_finished() else b""
    except Exception:  # it is missing, or the error of the package
        return b""


def _jxl_exif(box: bytes | None) -> bytes | None:
    """The EXIF in a box, which says first where it begins, though not all encoders know that."""
    if box is None or box.startswith(tiff.MAGIC):
        return box
    return box[4 + int.from_bytes(box[:4], "big") :]


class _Bits:
    """Bits out of bytes, the lowest of each byte first; IndexError at the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> int:
        """The next bits, at most 32, as a number."""
        value = 0
        for i in range(count):
            value |= (self._data[self._at >> 3] >> (self._at & 7) & 1) << i
            self._at += 1
        return value

    def skip(self, count: int) -> None:
        self._at += count

    def pick(self, *choices: tuple[int, int]) -> int:
        """A number by one of four codings: so many bits, and what is added to them."""
        bits, offset = choices[self.take(2)]
        return self.take(bits) + offset


_SIDES = ((9, 1), (13, 1), (18, 1), (30, 1))
_RATIOS = ((1, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_ENUM = ((0, 0), (0, 1), (4, 2), (6, 18))


def _codestream(bits: _Bits) -> _Codestream:
    """The headers at the beginning of a codestream; IndexError where they are cut off."""
    if bits.take(16) != 0x0AFF:
        raise ImageError("the image is truncated: JPEG XL without a picture")
    found = _Codestream(_jxl_size(bits))
    if bits.take(1):
        return found
    if bits.take(1):
        found = replace(found, orientation=bits.take(3) + 1)
        if bits.take(1):
            _jxl_size(bits)  # at which to show it
        if bits.take(1):
            _skip_preview(bits)
        if bits.take(1):
            return replace(found, animated=True)  # which is refused, whatever follows
    depth = _jxl_depth(bits)
    bits.skip(1)
    extra, premultiplied = [], False
    for _ in range(bits.pick((0, 0), (0, 1), (4, 2), (12, 1))):
        channel, associated = _extra_channel(bits)
        premultiplied = premultiplied or (associated and _ALPHA not in extra)
        extra.append(channel)
    bits.skip(1)  # whether XYB is what is coded
    srgb = bool(bits.take(1))
    return replace(found, bits=depth, extra=tuple(extra), premultiplied=premultiplied, srgb=srgb)


def _jxl_size(bits: _Bits) -> tuple[int, int]:
    small = bits.take(1)
    height = (bits.take(5) + 1) * 8 if small else bits.pick(*_SIDES)
    ratio = bits.take(3)
    if ratio:
        over, under = _RATIOS[ratio]
        return height * over // under, height
    return (bits.take(5) + 1) * 8 if small else bits.pick(*_SIDES), height


def _skip_preview(bits: _Bits) -> None:
    choices = ((0, 16), (0, 32), (5, 1), (9, 33))
    if not bits.take(1):
        choices = ((6, 1), (8, 65), (10, 321), (12, 1345))
    bits.pick(*choices)
    if not bits.take(3):
        bits.pick(*choices)


def _jxl_depth(bits: _Bits) -> int:
    """Bits of a sample; more than 8 where it is floating point."""
    if not bits.take(1):
        return bits.pick((0, 8), (0, 10), (0, 12), (6, 1))
    depth = bits.pick((0, 32), (0, 16), (0, 24), (6, 1))
    bits.skip(4)
    return max(depth, 16)


def _extra_channel(bits: _Bits) -> tuple[int, bool]:
    """Its type, and whether it is an alpha that colours are multiplied by."""
    if bits.take(1):
        return _ALPHA, False
    channel = bits.pick(*_ENUM)
    _jxl_depth(bits)
    bits.pick((0, 0), (0, 3), (0, 4), (3, 1))  # by how much it is smaller
    bits.skip(8 * bits.pick((0, 0), (4, 0), (5, 16), (10, 48)))  # its name
    if channel == _ALPHA:
        return channel, bool(bits.take(1))
    if channel == 2:  # a spot colour
        bits.skip(4 * 16)
    elif channel == 5:  # of a mosaic
        bits.pick((0, 1), (2, 0), (4, 3), (8, 19))
    return channel, False


# --- camera RAW

_MAX_STRETCH = 2  # of pixels that are not square
_RAW_NOTE = "camera RAW is developed to sRGB of 8 bits, with the white balance of the camera"
_XMP_TAG = 0x02BC


def _raw(package: Any, data: bytes, admit: Callable[[tuple[int, int]], None]) -> Decoded:
    if data.startswith(tiff.MAGIC) and tiff.ends_early(data):
        raise ImageError("the image is truncated: camera RAW")
    with _libraw_errors(package), package.RawPy() as raw:
        raw.open_buffer(BytesIO(data))
        sizes = raw.sizes
        turned = bool(sizes.flip & 4)
        size = (sizes.iheight, sizes.iwidth) if turned else (sizes.iwidth, sizes.iheight)
        admit(size)
        if sizes.raw_width * sizes.raw_height > 2 * size[0] * size[1] + (1 << 22):
            raise LimitError("the sensor of the RAW file is far larger than its picture")
        if not 1 / _MAX_STRETCH <= sizes.pixel_aspect <= _MAX_STRETCH:
            raise ImageError(f"pixels of {sizes.pixel_aspect:.4g}:1 cannot be developed")
        raw.unpack()
        samples = raw.postprocess(use_camera_wb=True, output_bps=8)
    height, width = samples.shape[:2]
    admit((width, height))
    return Decoded(
        samples.reshape(height, width, -1)[..., :3],
        deep=True,
        oriented=sizes.flip != 0,
        tags=_raw_tags(data),
        xmp=_raw_xmp(data),
        notes=(_RAW_NOTE,),
    )


@contextmanager
def _libraw_errors(package: Any) -> Iterator[None]:
    """Errors of LibRaw, whose messages are bytes, as ours."""
    try:
        yield
    except package.LibRawError as fault:
        name = type(fault).__name__  # not all releases have all of them
        if name in ("LibRawUnsufficientMemoryError", "LibRawTooBigError"):
            raise LimitError("not enough memory to develop the RAW file") from fault
        if name == "LibRawFileUnsupportedError":
            why = "is damaged, or of a camera that LibRaw does not know"
            raise ImageError(f"the RAW file {why}") from fault
        raise ImageError("the RAW file is damaged or truncated") from fault


def _raw_tags(data: bytes) -> tuple[bytes, ...]:
    """The blocks of TIFF that say what the photograph is, see `Decoded.tags`; empty where there are
    none in this sort of file."""
    if data.startswith(tiff.MAGIC):
        return (data,)
    if data.startswith((b"IIRO", b"IIRS", b"IIU\0")):  # TIFF but for its first bytes
        return (b"II*\0" + data[4:],)
    if data.startswith(b"MMOR"):
        return (b"MM\0*" + data[4:],)
    if data.startswith(b"FUJIFILM") and len(data) >= 92:
        at, length = struct.unpack_from(">II", data, 84)  # of a JPEG to be shown
        start = data.find(b"Exif\0\0", at, min(at + 64, at + length))
        return (data[start + 6 : at + length],) if start >= 0 else ()
    if data[4:8] == b"ftyp":
        found = [data.find(name, 0, 1 << 16) for name in (b"CMT1", b"CMT2", b"CMT4")]
        if min(found) >= 4:
            sizes = (int.from_bytes(data[at - 4 : at], "big") for at in found)
            return tuple(data[at + 4 : at - 4 + n] for at, n in zip(found, sizes, strict=True))
    return ()


def _raw_xmp(data: bytes) -> bytes | None:
    """The XMP in the first directory of a RAW file that is a TIFF."""
    if not data.startswith(tiff.MAGIC):
        return None
    try:
        for tag, kind_, count, place in tiff.entries(data, tiff.first_directory(data)):
            if tag == _XMP_TAG and kind_ in (1, 7):
                return data[place : place + count]
    except (struct.error, OverflowError):
        pass
    return None
