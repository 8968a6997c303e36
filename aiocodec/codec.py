"""The pipeline: picture -> .aic bytes -> picture. The only module that knows the whole order.

The symbols are exact on every machine, see latents.py. The transforms g_a, h_a and g_s run in float32,
so decoded pixels of two devices agree within 1 of 255.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aiocodec import __version__
from aiocodec.config import DECODED_MAX_PIXELS, DEFAULT_QUALITY, MAX_COMMENT, MAX_SIDE
from aiocodec.container import (
    ChunkType,
    Container,
    Flags,
    Header,
    Latents,
    pack,
    pack_density,
    pack_latents,
    unpack,
    unpack_density,
    unpack_latents,
)
from aiocodec.errors import AicError, ImageError, LimitError, ModelError, out_of_memory
from aiocodec.image import Picture, exif_density, pack_alpha, unpack_alpha
from aiocodec.latents import CELL, LatentCoder
from aiocodec.memory import available_memory, trim
from aiocodec.pretrained import Manifest
from aiocodec.tiling import Area, Progress, local, transform

LARGE = 1 << 22  # pixels of a picture from which on what is left over in memory counts
TILE = 16  # positions of z that h_a makes at once, per side, at most


class Codec:
    """A loaded model on a device.

    Args:
        model: name of the transforms; by default the package's default.
        device: "cpu", "cuda" or "auto", which is "cuda" where there is one.

    Raises:
        ModelError: no such weights, or damaged ones.
    """

    def __init__(self, model: str | None = None, device: str = "auto") -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        manifest = Manifest.read()
        self.name = model or manifest.models[0]
        self.fingerprint = manifest.fingerprint(self.name)
        pretrained = manifest.load(self.name)
        self.device = torch.device(device)
        transforms = pretrained.transforms()
        self.transforms = transforms.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.latents = LatentCoder(pretrained.frozen, self.device)
        self.program = pretrained.frozen.program

    # ----------------------------------------------------------------- encode

    def encode(
        self,
        picture: Picture,
        quality: int = DEFAULT_QUALITY,
        *,
        strip: bool | str = False,
        verify: bool = False,
        progress: Progress | None = None,
    ) -> bytes:
        """A picture to the bytes of an .aic file.

        Args:
            quality: 0..100.
            strip: what to leave out. True or "all": ICC profile, EXIF, XMP, comment and density;
                "private": EXIF, XMP and comment, but not what says how the picture looks.
            verify: decode the symbols again and compare, before anything is returned.
            progress: told again and again how much is done, 0..1.

        Raises:
            ValueError: a quality or `strip` that is none of these.
            ImageError: a side is 0 or longer than 65535 pixels.
            LimitError: not enough memory.
        """
        if not 0 <= quality <= 100:
            raise ValueError(f"quality {quality} is not in 0..100")
        metadata = _metadata(picture, strip)
        height, width, _ = picture.rgb.shape
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise ImageError(f"a picture of {width}x{height} pixels cannot be coded")
        with _bounded_memory(width * height), torch.inference_mode(), _float32():
            y = self._g_a(picture.rgb, quality, part_of(progress, 0.0, 0.6))
            z = self._h_a(y)
            latents = self.latents.encode(y, z, quality, part_of(progress, 0.6, 1.0))
            del y, z
            if verify:
                self._verify(latents, width, height, quality)

        flags = Flags(0)
        for flag, present in (
            (Flags.GRAY, picture.gray),
            (Flags.ALPHA, picture.alpha is not None),
            (Flags.SIXTEEN_BIT, picture.sixteen_bit),
            (Flags.ORIENTED, picture.oriented),
        ):
            flags |= flag if present else Flags(0)
        chunks: list[tuple[int, bytes]] = [(ChunkType.LATENTS, pack_latents(latents))]
        if picture.alpha is not None:
            chunks.append((ChunkType.ALPHA, pack_alpha(picture.alpha)))
        chunks += metadata
        chunks.append((ChunkType.PROVENANCE, f"{self.name} aiocodec/{__version__}".encode()))
        return pack(Header(quality, width, height, self.fingerprint, flags), chunks)

    def encode_to_size(
        self,
        picture: Picture,
        max_bytes: int,
        *,
        strip: bool | str = False,
        verify: bool = False,
        progress: Progress | None = None,
    ) -> tuple[bytes, int]:
        """The file of the highest quality that has at most `max_bytes`, and that quality, found by
        bisection on real files; LimitError where even quality 0 is larger."""
        low, high, best = 0, 100, None
        trials = 0
        while low <= high:
            quality = (low + high) // 2
            share = part_of(progress, min(1.0, trials / 7), min(1.0, (trials + 1) / 7))
            data, trials = self.encode(picture, quality, strip=strip, progress=share), trials + 1
            if len(data) <= max_bytes:
                best, low = (data, quality), quality + 1
            else:
                high = quality - 1
        if best is None:
            raise LimitError(f"even quality 0 needs more than {max_bytes} bytes")
        if verify:
            self.encode(picture, best[1], strip=strip, verify=True)
        return best

    def _verify(self, latents: Latents, width: int, height: int, quality: int) -> None:
        """Decode what was coded; ModelError where that fails, as a decoder would."""
        try:
            self.latents.decode(latents, width, height, quality)
        except AicError:
            fault = "the symbols do not decode to what was coded"
            raise ModelError(f"verification failed: {fault}") from None

    # ----------------------------------------------------------------- decode

    def decode(
        self,
        data: bytes | Container,
        *,
        max_pixels: int = DECODED_MAX_PIXELS,
        progress: Progress | None = None,
    ) -> Picture:
        """The bytes of an .aic file (or one already taken apart) to the restored picture.

        Args:
            max_pixels: refuse larger pictures; a file that was taken apart has passed its limit.
            progress: told again and again how much is done, 0..1.

        Raises:
            BitstreamError: the file is corrupt or truncated.
            VersionError, ModelError: it needs another version or other weights.
            LimitError: more than `max_pixels` pixels, or not enough memory.
        """
        container = data if isinstance(data, Container) else unpack(data, max_pixels=max_pixels)
        header = container.header
        height, width = header.height, header.width
        latents = unpack_latents(container.get(ChunkType.LATENTS) or b"", header.version)
        if header.fingerprint != self.fingerprint:
            raise ModelError(
                f"made with entropy model {header.fingerprint.hex()}, "
                f"model {self.name!r} has {self.fingerprint.hex()}"
            )
        packed_alpha = container.get(ChunkType.ALPHA)
        alpha = None if packed_alpha is None else unpack_alpha(packed_alpha, width, height)
        with _bounded_memory(width * height), torch.inference_mode(), _float32():
            share = part_of(progress, 0.0, 0.4)
            y_hat = self.latents.decode(latents, width, height, header.quality, share)
            gray = bool(header.flags & Flags.GRAY)
            share = part_of(progress, 0.4, 1.0)
            rgb = self._g_s(y_hat, width, height, header.quality, gray, share)
            del y_hat
        return Picture(
            rgb=rgb,
            alpha=alpha,
            gray=gray,
            sixteen_bit=bool(header.flags & Flags.SIXTEEN_BIT),
            oriented=bool(header.flags & Flags.ORIENTED),
            icc=container.get(ChunkType.ICC),
            exif=container.get(ChunkType.EXIF),
            xmp=container.get(ChunkType.XMP),
            density=unpack_density(container.get(ChunkType.DENSITY) or b"")
            or exif_density(container.get(ChunkType.EXIF)),
            comment=_comment(container),
        )

    # ----------------------------------------------------------------- the transforms, in tiles

    def _g_a(self, rgb: NDArray[np.uint8], quality: int, progress: Progress) -> Tensor:
        """uint8 [H, W, 3] -> y [N, H', W'] of the picture, padded to multiples of 64 by its last rows
        and columns."""
        height, width, _ = rgb.shape
        stride = self.program.latent_stride
        rows, columns = (-(-side // self.program.stride) * CELL for side in (height, width))
        y = torch.empty(self.program.latents, rows, columns, device=self.device)

        def read(area: Area) -> Tensor:
            (top, bottom), (left, right) = (
                (part.start * stride, part.stop * stride) for part in area
            )
            pixels = rgb[top:bottom, left:right]
            if bottom > height or right > width:
                missing = ((0, max(0, bottom - height)), (0, max(0, right - width)), (0, 0))
                pixels = np.pad(pixels, missing, mode="edge")
            x = (
                torch.from_numpy(np.ascontiguousarray(pixels))
                .to(self.device)
                .permute(2, 0, 1)[None]
                .float()
                / 255
            )
            return x.contiguous(memory_format=torch.channels_last)

        def write(area: Area, part: Tensor) -> None:
            y[(..., *area)] = part[0]

        q = torch.tensor([float(quality)], device=self.device)
        transform(self.transforms.g_a, q, (rows, columns), self.program.tile, read, write, progress)
        return y

    def _h_a(self, y: Tensor) -> Tensor:
        """y [N, H, W] -> z [Z, H/4, W/4]."""
        cells = y.shape[1] // CELL, y.shape[2] // CELL
        z = torch.empty(self.program.hyper, *cells, device=self.device)
        h_a = self.transforms.h_a
        return local(lambda part: h_a(part[None])[0], y, cells, TILE, h_a.halo, z)

    def _g_s(
        self, y_hat: Tensor, width: int, height: int, quality: int, gray: bool, progress: Progress
    ) -> NDArray[np.uint8]:
        """y_hat [N, H', W'] -> uint8 [H, W, 3], rounded and clipped; three times their mean if `gray`."""
        stride = self.program.latent_stride
        rgb = np.empty((height, width, 3), np.uint8)

        def read(area: Area) -> Tensor:
            return y_hat[(..., *area)][None].contiguous(memory_format=torch.channels_last)

        def write(area: Area, part: Tensor) -> None:
            rows, columns = (slice(a.start * stride, a.stop * stride) for a in area)
            room = rgb[rows, columns]
            part = part[0, :, : room.shape[0], : room.shape[1]]
            if gray:
                part = part.mean(0, keepdim=True).expand(3, -1, -1)
            pixels = part.mul(255).add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)
            room[:] = pixels.permute(1, 2, 0).cpu().numpy()

        q = torch.tensor([float(quality)], device=self.device)
        size = int(y_hat.shape[1]), int(y_hat.shape[2])
        transform(self.transforms.g_s, q, size, self.program.tile, read, write, progress)
        return rgb


def _metadata(picture: Picture, strip: bool | str) -> list[tuple[int, bytes]]:
    """The chunks of a picture's metadata but for what `strip`, see `Codec.encode`, leaves out; a density
    that the EXIF has, and a comment of more than MAX_COMMENT bytes, get none."""
    if strip not in (False, True, "all", "private"):
        raise ValueError(f"strip is {strip!r}, not False, True, 'all' or 'private'")
    if strip in (True, "all"):
        return []
    exif, xmp, comment = picture.exif, picture.xmp, picture.comment
    if strip == "private":
        exif = xmp = comment = None
    density = picture.density if picture.density != exif_density(exif) else None
    metadata = (
        (ChunkType.ICC, picture.icc),
        (ChunkType.EXIF, exif),
        (ChunkType.XMP, xmp),
        (ChunkType.DENSITY, pack_density(density) if density else None),
        (ChunkType.COMMENT, comment if comment and len(comment) <= MAX_COMMENT else None),
    )
    return [(kind, payload) for kind, payload in metadata if payload]


def _comment(container: Container) -> bytes | None:
    """The comment in a file; None where it is too long."""
    comment = container.get(ChunkType.COMMENT)
    return comment if comment and len(comment) <= MAX_COMMENT else None


def part_of(progress: Progress | None, start: float, stop: float) -> Progress:
    """What to tell the progress of a part, which goes from `start` to `stop` of the whole."""
    if progress is None:
        return lambda done: None
    return lambda done: progress(start + (stop - start) * done)


def needed_memory(pixels: int) -> int:
    """Bytes that coding a picture takes at most, either way, beside its pixels and the model: a map
    of features that is kept while it is small, or more for each pixel of a small picture."""
    return min(60 * pixels + (100 << 20), 12 * pixels + (600 << 20))


@contextmanager
def _bounded_memory(pixels: int) -> Iterator[None]:
    """LimitError, before anything is allocated, where a picture needs more memory than there is, and
    where an allocation fails after all."""
    needed, available = needed_memory(pixels), available_memory()
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


@contextmanager
def _float32() -> Iterator[None]:
    """Full float32 precision on CUDA: no TF32 anywhere."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@lru_cache(maxsize=2)
def _codec(model: str | None, device: str) -> Codec:
    return Codec(model, device)


def encode(
    rgb: NDArray[np.uint8],
    quality: int = DEFAULT_QUALITY,
    *,
    model: str | None = None,
    device: str = "auto",
) -> bytes:
    """uint8 [H, W, 3], clean or degraded, to the bytes of an .aic file; see `Codec.encode`."""
    return _codec(model, device).encode(Picture(rgb=rgb), quality)


def decode(data: bytes, *, model: str | None = None, device: str = "auto") -> NDArray[np.uint8]:
    """The bytes of an .aic file to the restored pixels, uint8 [H, W, 3]; see `Codec.decode`."""
    container = unpack(data)
    name = model or Manifest.read().for_fingerprint(container.header.fingerprint)
    return _codec(name, device).decode(container).rgb
