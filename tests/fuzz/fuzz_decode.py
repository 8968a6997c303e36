"""Fuzz target: all of decoding an .aic file that is done without a network.

Mutations rarely get past a checksum, so every input is run twice: as it is, and with its checksums and
lengths put right.
"""

import zlib
from contextlib import suppress

from driver import CORPUS, drive, instrumented

with instrumented():
    import numpy as np

    from aiocodec.container import (
        HEADER_SIZE,
        MAGIC,
        VERSION,
        ChunkType,
        Flags,
        Header,
        Latents,
        pack,
        pack_latents,
        unpack,
        unpack_density,
        unpack_latents,
    )
    from aiocodec.errors import AicError
    from aiocodec.image import Picture, read, unpack_alpha, write

    describe = None
    for place in ("aiocodec.cli.info", "aiocodec.cli"):
        with suppress(ImportError, AttributeError):
            describe = __import__(place, fromlist=["describe"]).describe
            break

MAX_PIXELS = 1 << 21
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "AVIF", "BMP")


def repaired(data):
    """The file that `data` nearly is: chunks are cut where their lengths say, as far as there are bytes,
    and get their checksums."""
    chunks, at = [], HEADER_SIZE
    while at < len(data):
        kind, length, shift = data[at] | (0x80 if data[at] != 1 else 0), 0, 0
        at += 1
        while at < len(data) and shift < 35:
            length |= (data[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if not data[at - 1] & 0x80:
                break
        chunks.append((kind, data[at : at + length]))
        at += length + 4
    kept, known = [], set()
    for kind, payload in chunks:
        if kind not in known:
            kept.append((kind, payload))
        known |= {kind} & set(ChunkType)  # which may stand once
    if ChunkType.LATENTS not in known:
        kept.insert(0, (ChunkType.LATENTS, pack_latents(Latents(b"", 0, 0))))
    head = data[:HEADER_SIZE].ljust(HEADER_SIZE, b"\1")
    sides = (int.from_bytes(head[i : i + 4], "little") for i in (8, 12))
    width, height = (max(1, side % 65536) for side in sides)
    version = 1 + (head[4] - 1) % VERSION
    return pack(Header(head[7] % 101, width, height, head[16:24], Flags(head[6]), version), kept)


def decode(data):
    for file in (data, repaired(data)):
        with suppress(AicError):
            whole(file)


def whole(data):
    """What a decoder does with a file up to the network, and with its metadata after it."""
    container = unpack(data, max_pixels=MAX_PIXELS)
    header = container.header
    assert data.startswith(MAGIC) and pack(header, container.chunks) == data
    with suppress(AicError):
        latents = unpack_latents(container.get(ChunkType.LATENTS), header.version)
        assert pack_latents(latents) == container.get(ChunkType.LATENTS)
    if describe is not None:
        with suppress(AicError):
            describe("x", data, container)
    alpha = container.get(ChunkType.ALPHA)
    if alpha is not None:
        with suppress(AicError):
            plane = unpack_alpha(alpha, header.width, header.height)
            assert plane.shape == (header.height, header.width) and plane.dtype == np.uint8
    picture = Picture(
        rgb=np.zeros((3, 4, 3), np.uint8),
        gray=bool(header.flags & Flags.GRAY),
        icc=container.get(ChunkType.ICC),
        exif=container.get(ChunkType.EXIF),
        xmp=container.get(ChunkType.XMP),
        density=unpack_density(container.get(ChunkType.DENSITY) or b""),
        comment=container.get(ChunkType.COMMENT),
    )
    with suppress(AicError):
        written = write(picture, FORMATS[zlib.crc32(data) % len(FORMATS)])
        assert sorted(read(written).rgb.shape) == [3, 3, 4]  # metadata may say that it is turned


if __name__ == "__main__":
    drive(decode, CORPUS / "decode")
