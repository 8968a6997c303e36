"""What surrounds the networks when a file is decoded, whatever runs them: the file is opened before, the picture
is completed behind, and there is a bound on memory. No torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aiocodec.config import MAX_COMMENT
from aiocodec.container import (
    ChunkType,
    Container,
    Flags,
    Header,
    Latents,
    unpack,
    unpack_density,
    unpack_latents,
)
from aiocodec.errors import LimitError, ModelError, out_of_memory
from aiocodec.image import Picture, exif_density, unpack_alpha
from aiocodec.memory import available_memory, trim

LARGE = 1 << 22  # pixels of a picture from which on what is left over in memory counts


@dataclass(frozen=True)
class Envelope:
    """A file that was taken apart, and found to be of a model."""

    container: Container
    latents: Latents
    alpha: NDArray[np.uint8] | None  # [H, W], 255 is opaque

    @classmethod
    def open(
        cls, data: bytes | Container, max_pixels: int, model: str, fingerprint: bytes
    ) -> "Envelope":
        """The bytes of an .aic file, or one already taken apart, for a model with this fingerprint.

        Raises BitstreamError, VersionError and LimitError as `container.unpack` does, and ModelError
        where the file is of another model.
        """
        container = data if isinstance(data, Container) else unpack(data, max_pixels=max_pixels)
        header = container.header
        latents = unpack_latents(container.get(ChunkType.LATENTS) or b"", header.version)
        if header.fingerprint != fingerprint:
            raise ModelError(
                f"made with entropy model {header.fingerprint.hex()}, "
                f"model {model!r} has {fingerprint.hex()}"
            )
        packed = container.get(ChunkType.ALPHA)
        alpha = None if packed is None else unpack_alpha(packed, header.width, header.height)
        return cls(container, latents, alpha)

    @property
    def header(self) -> Header:
        """That of the file."""
        return self.container.header

    @property
    def gray(self) -> bool:
        """Whether the three channels are to become their mean."""
        return bool(self.header.flags & Flags.GRAY)

    def picture(self, rgb: NDArray[Any]) -> Picture:
        """The whole picture with these pixels, [H, W, 3]."""
        container, flags = self.container, self.header.flags
        comment = container.get(ChunkType.COMMENT)
        return Picture(
            rgb=rgb,
            alpha=self.alpha,
            gray=self.gray,
            sixteen_bit=bool(flags & Flags.SIXTEEN_BIT),
            oriented=bool(flags & Flags.ORIENTED),
            icc=container.get(ChunkType.ICC),
            exif=container.get(ChunkType.EXIF),
            xmp=container.get(ChunkType.XMP),
            density=unpack_density(container.get(ChunkType.DENSITY) or b"")
            or exif_density(container.get(ChunkType.EXIF)),
            comment=comment if comment and len(comment) <= MAX_COMMENT else None,
        )


def check_bits(bits: int) -> None:
    """ValueError unless samples can be decoded to so many bits."""
    if bits not in (8, 16):
        raise ValueError(f"bits is {bits!r}, not 8 or 16")


@contextmanager
def bounded_memory(pixels: int, needed: int) -> Iterator[None]:
    """LimitError, before anything is allocated, where a picture needs more memory than there is, and
    where an allocation fails after all."""
    available = available_memory()
    if available is not None and needed > available:
        raise LimitError(
            f"a picture of {pixels / 1e6:.1f} megapixels needs {needed >> 20} MiB of memory, "
            f"there are {available >> 20}"
        )
    if pixels > LARGE:
        trim()  # what reading the picture has left
    try:
        yield
    except (MemoryError, RuntimeError) as fault:
        if not out_of_memory(fault):
            raise
        raise LimitError("not enough memory for a picture of this size") from None
