"""PNG with 16 bits a sample, which Pillow cannot write in colour."""

import struct
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"\x89PNG\r\n\x1a\n"
_COLOUR = {1: 0, 2: 4, 3: 2, 4: 6}  # colour type by channels
_LONGEST = 1 << 16  # bytes that wait for a chunk
_PIXELS = (b"IHDR", b"IDAT", b"IEND", b"PLTE", b"tRNS")


def compose(
    like: bytes, size: tuple[int, int], strips: Iterable[NDArray[np.uint16]], level: int
) -> bytes:
    """A PNG of width and height `size` with the metadata of another one.

    Args:
        like: a PNG; all of its chunks are taken over that do not hold its pixels, those before them
            before and those after them after.
        strips: uint16 [h, width, channels], from top to bottom, `height` rows in all: gray, gray and
            alpha, RGB, or RGBA. Only one is held at a time.
        level: of zlib, 0..9.
    """
    before: list[bytes] = []
    after: list[bytes] = []
    seen = False
    for name, chunk in _chunks(like):
        seen = seen or name == b"IDAT"
        if name not in _PIXELS:
            (after if seen else before).append(chunk)
    parts: list[bytes] = []
    header = packed = b""
    deflate = zlib.compressobj(level)
    above: NDArray[np.uint8] | None = None  # the last row of the strip before
    for strip in strips:
        channels = strip.shape[2]
        header = struct.pack(">IIBBBBB", *size, 16, _COLOUR[channels], 0, 0, 0)
        rows = strip.astype(">u2").view(np.uint8).reshape(len(strip), -1)
        if above is None:
            above = np.zeros_like(rows[0])
        packed += deflate.compress(_filtered(rows, above, 2 * channels).tobytes())
        if len(packed) >= _LONGEST:
            parts.append(_chunk(b"IDAT", packed))
            packed = b""
        above = rows[-1]
    parts.append(_chunk(b"IDAT", packed + deflate.flush()))
    return b"".join(
        [_MAGIC, _chunk(b"IHDR", header), *before, *parts, *after, _chunk(b"IEND", b"")]
    )


def _filtered(rows: NDArray[np.uint8], above: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """Rows of bytes [h, n], `step` of which are a pixel, each with its filter in front [h, n + 1]: the
    one of the five whose differences are the smallest in sum, as is usual."""
    left = np.zeros_like(rows)
    left[:, step:] = rows[:, :-step]
    up = np.vstack([above[None], rows[:-1]])
    corner = np.zeros_like(rows)
    corner[:, step:] = up[:, :-step]
    best = np.zeros((rows.shape[0], rows.shape[1] + 1), np.uint8)
    least = np.full(len(rows), np.iinfo(np.int64).max)
    average = (left.astype(np.uint16) + up >> 1).astype(np.uint8)
    for number, guess in enumerate((0, left, up, average, _paeth(left, up, corner))):
        differences = rows - np.asarray(guess, np.uint8)
        # 255 is a difference of -1, and -128 counts as 128
        cost = np.minimum(differences, -differences).sum(axis=1, dtype=np.int64)
        better = cost < least
        best[better, 0] = number
        best[better, 1:] = differences[better]
        least = np.where(better, cost, least)
    return best


def _paeth(
    left: NDArray[np.uint8], up: NDArray[np.uint8], corner: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Whichever of the three is nearest to left + up - corner; in case of a tie the first."""
    a, b, c = (plane.astype(np.int16) for plane in (left, up, corner))
    from_a, from_b = np.abs(b - c), np.abs(a - c)
    from_c = np.abs(a + b - 2 * c)
    nearest = np.where(from_b <= from_c, up, corner)
    return np.where((from_a <= from_b) & (from_a <= from_c), left, nearest)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and bytes of every chunk of an intact PNG."""
    at = len(_MAGIC)
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        yield data[at + 4 : at + 8], data[at : at + 12 + length]
        at += 12 + length


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
