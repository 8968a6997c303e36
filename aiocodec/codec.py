"""The pipeline: picture -> .aic bytes -> picture. The only module that knows the whole order.

The symbols are exact on every machine, see latents.py. The transforms g_a, h_a and g_s run in float32,
so decoded pixels of two devices agree within 1 of 255.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aiocodec import __version__
from aiocodec.config import DEFAULT_MAX_PIXELS, DEFAULT_QUALITY, MAX_SIDE
from aiocodec.container import (
    ChunkType,
    Container,
    Flags,
    Header,
    Latents,
    pack,
    pack_latents,
    unpack,
    unpack_latents,
)
from aiocodec.errors import AicError, ImageError, LimitError, ModelError, out_of_memory
from aiocodec.image import Picture, pack_alpha, unpack_alpha
from aiocodec.latents import LatentCoder
from aiocodec.pretrained import Manifest


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
        strip: bool = False,
        verify: bool = False,
    ) -> bytes:
        """A picture to the bytes of an .aic file.

        Args:
            quality: 0..100.
            strip: leave ICC profile, EXIF and XMP out.
            verify: decode the symbols again and compare, before anything is returned.

        Raises:
            ImageError: a side is 0 or longer than 65535 pixels.
            LimitError: not enough memory.
        """
        if not 0 <= quality <= 100:
            raise ValueError(f"quality {quality} is not in 0..100")
        height, width, _ = picture.rgb.shape
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise ImageError(f"a picture of {width}x{height} pixels cannot be coded")
        with _bounded_memory(), torch.inference_mode(), _float32():
            x = self._to_x(picture.rgb)
            q = torch.tensor([float(quality)], device=self.device)
            y = self._tiled(lambda part: self.transforms.g_a(part, q), x, analysis=True)
            z = self.transforms.h_a(y)
            latents = self.latents.encode(y[0], z[0], quality)
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
        if not strip:
            metadata = (
                (ChunkType.ICC, picture.icc),
                (ChunkType.EXIF, picture.exif),
                (ChunkType.XMP, picture.xmp),
            )
            chunks += [(kind, payload) for kind, payload in metadata if payload]
        chunks.append((ChunkType.PROVENANCE, f"{self.name} aiocodec/{__version__}".encode()))
        return pack(Header(quality, width, height, self.fingerprint, flags), chunks)

    def encode_to_size(
        self, picture: Picture, max_bytes: int, *, strip: bool = False, verify: bool = False
    ) -> tuple[bytes, int]:
        """The file of the highest quality that has at most `max_bytes`, and that quality, found by
        bisection on real files; LimitError where even quality 0 is larger."""
        low, high, best = 0, 100, None
        while low <= high:
            quality = (low + high) // 2
            data = self.encode(picture, quality, strip=strip)
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

    def decode(self, data: bytes | Container, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Picture:
        """The bytes of an .aic file (or one already taken apart) to the restored picture.

        Raises:
            BitstreamError: the file is corrupt or truncated.
            VersionError, ModelError: it needs another version or other weights.
            LimitError: more than `max_pixels` pixels, or not enough memory.
        """
        container = data if isinstance(data, Container) else unpack(data, max_pixels=max_pixels)
        header = container.header
        latents = unpack_latents(container.get(ChunkType.LATENTS) or b"", header.version)
        if header.fingerprint != self.fingerprint:
            raise ModelError(
                f"made with entropy model {header.fingerprint.hex()}, "
                f"model {self.name!r} has {self.fingerprint.hex()}"
            )
        packed_alpha = container.get(ChunkType.ALPHA)
        alpha = None
        if packed_alpha is not None:
            alpha = unpack_alpha(packed_alpha, header.width, header.height)
        with _bounded_memory(), torch.inference_mode(), _float32():
            y_hat = self.latents.decode(latents, header.width, header.height, header.quality)
            q = torch.tensor([float(header.quality)], device=self.device)
            x_hat = self._tiled(
                lambda part: self.transforms.g_s(part, q), y_hat[None], analysis=False
            )
            if header.flags & Flags.GRAY:
                x_hat = x_hat.mean(1, keepdim=True).expand(-1, 3, -1, -1)
            rgb = _to_rgb(x_hat[0, :, : header.height, : header.width])
        return Picture(
            rgb=rgb,
            alpha=alpha,
            gray=bool(header.flags & Flags.GRAY),
            sixteen_bit=bool(header.flags & Flags.SIXTEEN_BIT),
            oriented=bool(header.flags & Flags.ORIENTED),
            icc=container.get(ChunkType.ICC),
            exif=container.get(ChunkType.EXIF),
            xmp=container.get(ChunkType.XMP),
        )

    # ----------------------------------------------------------------- parts of both

    def _tiled(self, transform: Callable[[Tensor], Tensor], x: Tensor, analysis: bool) -> Tensor:
        """Apply g_a (`analysis`) or g_s in the tiles that the program names."""
        strides = (self.program.latent_stride, 1) if analysis else (1, self.program.latent_stride)
        return tiled(transform, x, *strides, self.program.tile, self.program.halo)

    def _to_x(self, rgb: NDArray[np.uint8]) -> Tensor:
        """uint8 [H, W, 3] -> float [1, 3, H', W'] in 0..1, padded to multiples of 64."""
        height, width, _ = rgb.shape
        stride = self.program.stride
        pixels = np.pad(rgb, ((0, -height % stride), (0, -width % stride), (0, 0)), mode="edge")
        x = torch.from_numpy(pixels).to(self.device).permute(2, 0, 1)[None].float() / 255
        return x.contiguous(memory_format=torch.channels_last)


def _to_rgb(x: Tensor) -> NDArray[np.uint8]:
    """float [3, H, W] -> uint8 [H, W, 3], rounded and clipped."""
    pixels = x.mul(255).add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())


def tiled(
    transform: Callable[[Tensor], Tensor],
    x: Tensor,
    stride_in: int,
    stride_out: int,
    tile: int,
    halo: int,
) -> Tensor:
    """Apply a transform to tiles of at most `tile` latent positions and a halo around them, so that
    memory stays bounded; a picture of up to tile * 16 pixels per side is one tile.

    `stride_in` and `stride_out` are the units of x and of the result per latent position. The tiling
    depends on the size alone, so all decoders agree.
    """
    height, width = (side // stride_in for side in x.shape[2:])
    if max(height, width) <= tile:
        return transform(x)
    out: Tensor | None = None
    for top, bottom in spans(height, tile):
        for left, right in spans(width, tile):
            y0, x0 = max(0, top - halo), max(0, left - halo)
            y1, x1 = min(height, bottom + halo), min(width, right + halo)
            part = x[:, :, y0 * stride_in : y1 * stride_in, x0 * stride_in : x1 * stride_in]
            piece = transform(part.contiguous(memory_format=torch.channels_last))
            if out is None:
                out = piece.new_empty(1, piece.shape[1], height * stride_out, width * stride_out)
            rows = slice((top - y0) * stride_out, (bottom - y0) * stride_out)
            columns = slice((left - x0) * stride_out, (right - x0) * stride_out)
            out[
                :, :, top * stride_out : bottom * stride_out, left * stride_out : right * stride_out
            ] = piece[:, :, rows, columns]
    assert out is not None
    return out


def spans(length: int, tile: int) -> list[tuple[int, int]]:
    """0..length in equal parts of at most `tile`."""
    count = -(-length // tile)
    edges = [length * i // count for i in range(count + 1)]
    return list(zip(edges, edges[1:], strict=False))


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """Turn a failed allocation into a LimitError."""
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
