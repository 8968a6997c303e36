"""The .aic container, versions 1 and 2: bytes <-> header and chunks.

A file is a header of 32 bytes followed by a body of chunks and nothing else. All integers are
unsigned and little-endian. CRC32 is that of zlib, gzip and PNG. Version 2 is written, both are read;
the payload of LATENTS is all that differs. docs/format.md explains the format at length.

Header:

    offset  size  field
         0     4  magic 8A 41 49 43
         4     1  bitstream version: 1 or 2
         5     1  critical flags: none is defined, a reader refuses a file with any bit set
         6     1  informative flags: 1 gray source, 2 source had alpha, 4 source had 16 bits per
                  sample, 8 EXIF orientation was applied; a reader ignores the other bits
         7     1  quality, 0..100
         8     4  width in pixels, 1..65535
        12     4  height in pixels, 1..65535
        16     8  fingerprint of the entropy model that decodes the file
        24     4  length of the body in bytes
        28     4  CRC32 of bytes 0..27

Chunk, back to back until the body ends:

      size  field
         1  type; a reader skips an unknown type that has bit 7 (0x80) set, and refuses a file with
            an unknown type that has not
      1..5  length n of the payload as LEB128: seven bits a byte, least significant first, bit 7 set
            on every byte but the last, in the fewest bytes possible
         n  payload
         4  CRC32 of type, length and payload together

Types, in any order, each of them at most once (an unknown type may repeat), at most 1024 chunks in all:

      type  name        payload
      0x01  LATENTS     required, see below
      0x81  ALPHA       alpha channel, lossless
      0x82  ICC         ICC profile
      0x83  EXIF        EXIF metadata
      0x84  XMP         XMP packet
      0x85  PROVENANCE  what wrote the file: transform variant and software version
      0x86  DENSITY     pixels per metre, two numbers of 4 bytes: along x, then along y
      0x87  COMMENT     a remark, at most 65536 bytes

Payload of LATENTS:

      size  field
         4  CRC32 of the symbols of z; this field is absent in version 1
         4  CRC32 of all symbols, z and then y in the order of coding
        4n  the n >= 0 words of one range-coder stream

Payloads are opaque here, but for the frames of LATENTS and DENSITY.
"""

import enum
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aiocodec.config import DECODED_MAX_PIXELS, MAX_SIDE
from aiocodec.errors import AicError, BitstreamError, LimitError, VersionError

MAGIC = b"\x8aAIC"
VERSION = 2
HEADER_SIZE = 32
MAX_CHUNKS = 1024  # in a file

_MAX_U32 = (1 << 32) - 1
_MAX_LENGTH_BYTES = 5
_SKIPPABLE = 0x80

_U32 = struct.Struct("<I")
_FIELDS = struct.Struct("<4s4BII8sI")  # the header without its CRC
_DENSITY = struct.Struct("<II")


class Flags(enum.IntFlag):
    """What the source image was; no symbol depends on it. Unknown bits are preserved."""

    GRAY = 1
    ALPHA = 2
    SIXTEEN_BIT = 4
    ORIENTED = 8


_NO_FLAGS = Flags(0)


class ChunkType(enum.IntEnum):
    """The chunk types that are defined, the same in both versions."""

    LATENTS = 0x01
    ALPHA = 0x81
    ICC = 0x82
    EXIF = 0x83
    XMP = 0x84
    PROVENANCE = 0x85
    DENSITY = 0x86
    COMMENT = 0x87


@dataclass(frozen=True)
class Header:
    """The header's meaning, without what follows from the rest of the file.

    The ranges are enforced by `pack` and `unpack`, not on construction.
    """

    quality: int  # 0..100
    width: int  # pixels, 1..65535
    height: int  # pixels, 1..65535
    fingerprint: bytes  # exactly 8 bytes
    flags: Flags = _NO_FLAGS  # 0..255
    version: int = VERSION  # 1..VERSION


@dataclass(frozen=True)
class Container:
    """A whole file, taken apart."""

    header: Header
    # (type, payload) in file order; LATENTS exactly once, other known types at most once, unknown
    # types have bit 7 set and may repeat
    chunks: tuple[tuple[int, bytes], ...]

    def get(self, type: int) -> bytes | None:
        """Return the payload of the (first) chunk of this type, None if the file has none."""
        return next((payload for known, payload in self.chunks if known == type), None)


@dataclass(frozen=True)
class Latents:
    """A LATENTS payload, taken apart. The ranges are enforced by `pack_latents`."""

    words: bytes  # a range-coder stream, as little-endian words of 4 bytes
    symbols_crc: int  # CRC32 of all symbols, 0..2^32 - 1
    z_crc: int | None  # CRC32 of the symbols of z, 0..2^32 - 1; None in version 1, and only there


def pack(header: Header, chunks: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the file made of `header` and `chunks`, (type, payload) pairs kept in order.

    Raises ValueError for anything that `unpack` would refuse, the pixel limit aside.
    """
    chunks = tuple(chunks)
    try:
        _check_version(header.version)
        _check_header(header)
        _check_types([type for type, _ in chunks])
    except AicError as fault:
        raise ValueError(str(fault)) from None
    body = b"".join(_pack_chunk(type, payload) for type, payload in chunks)
    if len(body) > _MAX_U32:
        raise ValueError(f"a body of {len(body)} bytes is too long")
    fields = _FIELDS.pack(
        MAGIC,
        header.version,
        0,
        header.flags,
        header.quality,
        header.width,
        header.height,
        header.fingerprint,
        len(body),
    )
    return fields + _crc(fields) + body


def unpack(data: bytes, *, max_pixels: int = DECODED_MAX_PIXELS) -> Container:
    """Take a whole file apart.

    All of the table above is checked, but for the frame of LATENTS: see `unpack_latents`.

    Raises LimitError if the image has more than `max_pixels` pixels, whatever the body holds;
    VersionError for a version, critical flag or critical chunk that is not known; BitstreamError
    for all other faults.
    """
    header, body_length = _unpack_header(data)
    if header.width * header.height > max_pixels:
        raise LimitError(
            f"{header.width}x{header.height} pixels are more than the limit of {max_pixels}"
        )
    present = len(data) - HEADER_SIZE
    if present < body_length:
        raise BitstreamError(f"truncated: {present} of {body_length} bytes follow the header")
    if present > body_length:
        raise BitstreamError(f"bytes after the end of the image: {present - body_length}")
    chunks: list[tuple[int, bytes]] = []
    at = HEADER_SIZE
    while at < len(data):
        if len(chunks) == MAX_CHUNKS:
            raise BitstreamError(f"more than {MAX_CHUNKS} chunks")
        type, payload, at = _unpack_chunk(data, at)
        chunks.append((type, payload))
    _check_types([type for type, _ in chunks])
    return Container(header, tuple(chunks))


def unpack_header(data: bytes) -> tuple[Header, int]:
    """The header with which `data` begins, and how many bytes the file has by it.

    Raises VersionError for a version or a critical flag that is not known, BitstreamError for all other
    faults. Nothing behind the header is looked at, nor is the number of pixels.
    """
    header, body_length = _unpack_header(data)
    return header, HEADER_SIZE + body_length


def pack_latents(latents: Latents) -> bytes:
    """Return the payload for a file of version 1 if `latents.z_crc` is None, else of version 2.

    Raises ValueError if the words end within a word or a CRC is not a 32-bit number.
    """
    if len(latents.words) % 4:
        raise ValueError(f"{len(latents.words)} bytes are not a whole number of words")
    crcs = [crc for crc in (latents.z_crc, latents.symbols_crc) if crc is not None]
    for crc in crcs:
        if not 0 <= crc <= _MAX_U32:
            raise ValueError(f"the CRC {crc} is not a 32-bit number")
    return b"".join(map(_U32.pack, crcs)) + latents.words


def unpack_latents(payload: bytes, version: int) -> Latents:
    """Take the LATENTS payload of a file of this version, 1 or 2, apart.

    Raises BitstreamError unless the payload is 4 + 4n bytes long in version 1, 8 + 4n in version 2.
    """
    start = 4 if version == 1 else 8
    if len(payload) < start or len(payload) % 4:
        raise BitstreamError(f"the LATENTS chunk has an impossible length of {len(payload)} bytes")
    symbols_crc = _U32.unpack_from(payload, start - 4)[0]
    z_crc = None if version == 1 else _U32.unpack_from(payload)[0]
    return Latents(payload[start:], symbols_crc, z_crc)


def pack_density(density: tuple[int, int]) -> bytes:
    """Return the DENSITY payload for pixels per metre along x and y.

    Raises ValueError unless both are in 1..2^32 - 1.
    """
    if not all(1 <= number <= _MAX_U32 for number in density):
        raise ValueError(f"{density[0]} and {density[1]} pixels per metre are not in 1..2^32 - 1")
    return _DENSITY.pack(*density)


def unpack_density(payload: bytes) -> tuple[int, int] | None:
    """Return the pixels per metre along x and y, each in 1..2^32 - 1.

    None for a malformed payload: no pixel depends on it, and older readers do not look at it either.
    """
    if len(payload) != _DENSITY.size:
        return None
    x, y = _DENSITY.unpack(payload)
    return (x, y) if x and y else None


def _unpack_header(data: bytes) -> tuple[Header, int]:
    """Return the checked header and the body length that it claims.

    The version comes before the CRC: a later version may place its CRC elsewhere.
    """
    if data[:4] != MAGIC:
        raise BitstreamError("not an .aic file")
    if len(data) > 4:
        _check_version(data[4])
    if len(data) < HEADER_SIZE:
        raise BitstreamError(f"truncated: {len(data)} of {HEADER_SIZE} header bytes")
    fields = data[: _FIELDS.size]
    if data[_FIELDS.size : HEADER_SIZE] != _crc(fields):
        raise BitstreamError("the header is corrupt (wrong CRC)")
    _, version, critical, flags, quality, width, height, fingerprint, body_length = _FIELDS.unpack(
        fields
    )
    if critical:
        raise VersionError(f"unknown critical flags 0x{critical:02x}")
    header = Header(quality, width, height, fingerprint, Flags(flags), version)
    _check_header(header)
    return header, body_length


def _check_version(version: int) -> None:
    """Raise VersionError unless this is a version that can be read and written."""
    if not 1 <= version <= VERSION:
        raise VersionError(f"unknown bitstream version {version}, 1 to {VERSION} are supported")


def _check_header(header: Header) -> None:
    """Raise BitstreamError unless every field but the version is in the range `Header` names."""
    if not 0 <= header.quality <= 100:
        raise BitstreamError(f"quality {header.quality} is not in 0..100")
    if not (1 <= header.width <= MAX_SIDE and 1 <= header.height <= MAX_SIDE):
        raise BitstreamError(
            f"{header.width}x{header.height} pixels: each side must be in 1..{MAX_SIDE}"
        )
    if len(header.fingerprint) != 8:
        raise BitstreamError(f"a fingerprint of {len(header.fingerprint)} bytes instead of 8")
    if not 0 <= header.flags <= 255:
        raise BitstreamError(f"flags {int(header.flags)} do not fit in a byte")


def _check_types(types: Sequence[int]) -> None:
    """Raise BitstreamError or VersionError unless chunks of these types make a file."""
    if len(types) > MAX_CHUNKS:
        raise BitstreamError(f"more than {MAX_CHUNKS} chunks")
    for type in types:
        if not 0 <= type <= 255:
            raise BitstreamError(f"chunk type {type} does not fit in a byte")
        if type != ChunkType.LATENTS and not type & _SKIPPABLE:
            raise VersionError(f"unknown critical chunk type 0x{type:02x}")
    for known in ChunkType:
        if types.count(known) > 1:
            raise BitstreamError(f"more than one {known.name} chunk")
    if ChunkType.LATENTS not in types:
        raise BitstreamError("no LATENTS chunk")


def _pack_chunk(type: int, payload: bytes) -> bytes:
    chunk = bytes([type]) + _pack_leb128(len(payload)) + payload
    return chunk + _crc(chunk)


def _unpack_chunk(data: bytes, start: int) -> tuple[int, bytes, int]:
    """Return the type and payload of the chunk at `start` < len(data), and where the next starts.

    Raises BitstreamError if the chunk is corrupt or does not fit in `data`.
    """
    length, at = _unpack_leb128(data, start + 1)
    end = at + length
    if end + _U32.size > len(data):
        raise BitstreamError(f"the chunk at byte {start} runs past the end of the file")
    if data[end : end + _U32.size] != _crc(data[start:end]):
        raise BitstreamError(f"the chunk at byte {start} is corrupt (wrong CRC)")
    return data[start], data[at:end], end + _U32.size


def _pack_leb128(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _unpack_leb128(data: bytes, start: int) -> tuple[int, int]:
    """Return the number at `start` and where it ends; BitstreamError if it is malformed."""
    value = 0
    for i, byte in enumerate(data[start : start + _MAX_LENGTH_BYTES]):
        value |= (byte & 0x7F) << 7 * i
        if not byte & 0x80:
            if i > 0 and byte == 0:
                raise BitstreamError(f"the chunk length at byte {start} has needless zeros")
            return value, start + i + 1
    raise BitstreamError(f"the chunk length at byte {start} does not end")


def _crc(data: bytes) -> bytes:
    return _U32.pack(zlib.crc32(data))
