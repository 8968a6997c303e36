"""The symbols of z <-> words: what comes first in a stream, and can be read with tables alone.

Torch is not needed for it, and next to no time and memory. So a file that is damaged, or claims a
picture that its few bytes cannot hold, is refused before anything else is loaded: see `screen`.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

from aiocodec.container import ChunkType, Container, Latents, unpack_latents
from aiocodec.entropy.frozen import FrozenEntropyModel
from aiocodec.errors import BitstreamError, ModelError
from aiocodec.rangecoder import SLACK, Decoder, Encoder, Tables


class HyperCoder:
    """The tables of z of a frozen entropy model.

    Raises:
        ModelError: the tables are not what they should be.
    """

    def __init__(self, frozen: FrozenEntropyModel) -> None:
        self.program, self.tables = frozen.program, tables(frozen, "z")

    def encode(self, encoder: Encoder, symbols: NDArray[np.int32], quality: int) -> int:
        """Append symbols of z, int32 [Z, h, w], of a picture of a quality 0..100; their CRC."""
        encoder.encode(symbols.ravel(), self._indexes(symbols.shape, quality), self.tables)
        return symbols_crc(symbols)

    def decode(
        self, decoder: Decoder, latents: Latents, width: int, height: int, quality: int
    ) -> NDArray[np.int32]:
        """The symbols of z, int32 [Z, h, w], of a picture of `width` x `height` pixels, with which the
        stream of `latents` begins.

        Raises:
            BitstreamError: there are too few words for so many symbols, or they are damaged.
        """
        program = self.program
        shape = (program.hyper, -(-height // program.stride), -(-width // program.stride))
        least = self.tables.least_bits(self._tables(quality)) * shape[1] * shape[2]
        if least > 8 * len(latents.words) + SLACK:
            raise BitstreamError(
                f"{len(latents.words)} bytes of symbols cannot be a picture of {width}x{height} pixels"
            )
        symbols = decoder.decode(self._indexes(shape, quality), self.tables).astype(np.int32)
        symbols = symbols.reshape(shape)
        if latents.z_crc not in (None, symbols_crc(symbols)):
            raise BitstreamError("the decoded symbols of z have the wrong CRC")
        if max(symbols.max(), -symbols.min()) > program.z_max:
            raise BitstreamError("coded symbols are corrupt: a symbol is out of range")
        return symbols

    def _tables(self, quality: int) -> NDArray[np.int32]:
        """The table of every channel of z, at the level of the quality."""
        first = self.program.level(quality) * self.program.hyper
        return np.arange(first, first + self.program.hyper, dtype=np.int32)

    def _indexes(self, shape: tuple[int, ...], quality: int) -> NDArray[np.int32]:
        return np.repeat(self._tables(quality), shape[1] * shape[2])


def screen(container: Container, frozen: FrozenEntropyModel) -> None:
    """Look at all of a file that can be looked at before a network is loaded.

    Raises:
        BitstreamError: the file is corrupt; what passes may still be.
        ModelError: the weights are malformed.
    """
    header = container.header
    latents = unpack_latents(container.get(ChunkType.LATENTS) or b"", header.version)
    HyperCoder(frozen).decode(
        Decoder(latents.words), latents, header.width, header.height, header.quality
    )


def tables(frozen: FrozenEntropyModel, which: str) -> Tables:
    """The tables for "y" or "z"; ModelError where they are not what they should be."""
    try:
        return Tables(*frozen.tables(which))
    except ValueError as fault:
        raise ModelError(f"the tables of the weights are malformed: {fault}") from None


def symbols_crc(symbols: NDArray[np.integer], crc: int = 0) -> int:
    """CRC32 of symbols as little-endian int32, going on from `crc`."""
    flat = symbols.reshape(-1)
    for start in range(0, len(flat), 1 << 20):
        crc = zlib.crc32(flat[start : start + (1 << 20)].astype("<i4").tobytes(), crc)
    return crc
