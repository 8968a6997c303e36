"""The pipeline: picture -> .aic bytes -> picture. The only module that knows the whole order.

What crosses devices is exact: z_hat and the symbols of y are integers, and so is everything that
the decoder derives their tables from (entropy.ExactEntropyModel). The transforms g_a, h_a and g_s
run in float32, so decoded pixels of two devices agree within 1 of 255.
"""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aiocodec import __version__
from aiocodec.container import (
    DEFAULT_MAX_PIXELS,
    ChunkType,
    Container,
    Flags,
    Header,
    pack,
    pack_latents,
    unpack,
    unpack_latents,
)
from aiocodec.entropy import SYMBOL_UNIT, Z_MAX, ExactEntropyModel, Parameters, checkerboard
from aiocodec.errors import BitstreamError, ImageError, LimitError, ModelError, out_of_memory
from aiocodec.image import Picture, pack_alpha, unpack_alpha
from aiocodec.model import LATENT_STRIDE, STRIDE
from aiocodec.pretrained import Manifest
from aiocodec.rangecoder import MAX_MAGNITUDE, Decoder, Encoder, Tables

TILE = 48  # latent positions (of 16 pixels) per side that a transform sees at once, at most
HALO = 4  # latent positions around a tile that it sees besides; see TRAINING.md for both


# Takes the Parameters of one pass over y and the bool mask [N, H, W] of the elements that it covers;
# codes these, one way or the other, and gives their symbols, int32 [n].
CodePass = Callable[[Parameters, Tensor], NDArray[np.int32]]


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
        transforms = pretrained.transforms_only()
        del transforms.entropy  # runs in integers, below
        self.model = transforms.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.entropy = ExactEntropyModel(pretrained.frozen).to(self.device)
        self.tables_y = Tables(*pretrained.frozen.tables("y"))
        self.tables_z = Tables(*pretrained.frozen.tables("z"))

    # ----------------------------------------------------------------- encode

    def encode(
        self, picture: Picture, quality: int = 50, *, strip: bool = False, verify: bool = False
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
        if not (1 <= height <= 65535 and 1 <= width <= 65535):
            raise ImageError(f"a picture of {width}x{height} pixels cannot be coded")
        with _bounded_memory(), torch.inference_mode(), _float32():
            x = self._to_x(picture.rgb)
            q = torch.tensor([float(quality)], device=self.device)
            y = _tiled(lambda part: self.model.g_a(part, q), x, LATENT_STRIDE, 1)
            z_hat = self.model.h_a(y)[0].add(0.5).floor().nan_to_num(0).clamp(-Z_MAX, Z_MAX)
            words, crc = self._encode_latents(y[0], z_hat)
            if verify and self._decode_latents(words, width, height)[1] != crc:
                raise ModelError("verification failed: the symbols do not decode to what was coded")

        flags = Flags(0)
        for flag, present in (
            (Flags.GRAY, picture.gray),
            (Flags.ALPHA, picture.alpha is not None),
            (Flags.SIXTEEN_BIT, picture.sixteen_bit),
            (Flags.ORIENTED, picture.oriented),
        ):
            flags |= flag if present else Flags(0)
        chunks: list[tuple[int, bytes]] = [(ChunkType.LATENTS, pack_latents(words, crc))]
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

    def _encode_latents(self, y: Tensor, z_hat: Tensor) -> tuple[bytes, int]:
        """y [N, H, W] and z_hat [Z, H/4, W/4] to words and the CRC32 of the symbols."""
        encoder, symbols_z = Encoder(), _to_numpy(z_hat)
        encoder.encode(symbols_z.ravel(), self._indexes_z(symbols_z.shape), self.tables_z)
        crc = _crc(symbols_z)
        features = self.entropy.hyper(z_hat)
        v = (y / self.entropy.steps(features)).double()

        def code(parameters: Parameters, mask: Tensor) -> NDArray[np.int32]:
            nonlocal crc
            exact = (v - parameters.means / SYMBOL_UNIT)[mask]
            bounded = (
                exact.add_(0.5).floor_().nan_to_num_(0.0).clamp_(-MAX_MAGNITUDE, MAX_MAGNITUDE)
            )
            symbols = _to_numpy(bounded)
            encoder.encode(symbols, _to_numpy(parameters.indexes[mask]), self.tables_y)
            crc = _crc(symbols, crc)
            return symbols

        self._code_y(features, code)
        return encoder.finish(), crc

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
        words, crc = unpack_latents(container.get(ChunkType.LATENTS) or b"")
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
            y_hat, decoded_crc = self._decode_latents(words, header.width, header.height)
            if decoded_crc != crc:
                raise BitstreamError("the decoded symbols have the wrong CRC")
            q = torch.tensor([float(header.quality)], device=self.device)
            x_hat = _tiled(lambda part: self.model.g_s(part, q), y_hat[None], 1, LATENT_STRIDE)
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

    def _decode_latents(self, words: bytes, width: int, height: int) -> tuple[Tensor, int]:
        """Words to y_hat [N, H, W] and the CRC32 of the symbols."""
        decoder = Decoder(words)
        shape = (self.model.config.hyper, -(-height // STRIDE), -(-width // STRIDE))
        symbols_z = decoder.decode(self._indexes_z(shape), self.tables_z).reshape(shape)
        if np.abs(symbols_z).max() > Z_MAX:
            raise BitstreamError("coded symbols are corrupt: a symbol is out of range")
        crc = _crc(symbols_z)
        features = self.entropy.hyper(self._to_tensor(symbols_z))

        def code(parameters: Parameters, mask: Tensor) -> NDArray[np.int32]:
            nonlocal crc
            symbols = decoder.decode(_to_numpy(parameters.indexes[mask]), self.tables_y)
            crc = _crc(symbols, crc)
            return symbols

        v_hat = self._code_y(features, code)
        decoder.finish()
        return (v_hat / SYMBOL_UNIT).float() * self.entropy.steps(features), crc

    # ----------------------------------------------------------------- parts of both

    def _code_y(self, features: Tensor, code: CodePass) -> Tensor:
        """The two passes over y, the same for encoder and decoder; v_hat [N, H, W], which is
        symbols + means in units of 1 / SYMBOL_UNIT."""
        first = checkerboard(
            (self.entropy.latents, features.shape[1], features.shape[2]), self.device
        )
        v_hat = features.new_zeros(first.shape)
        parameters = self.entropy.first(features)
        for mask in (first, ~first):
            symbols = self._to_tensor(code(parameters, mask))
            v_hat[mask] = symbols * SYMBOL_UNIT + parameters.means[mask]
            if mask is first:
                parameters = self.entropy.second(features, v_hat)
        return v_hat

    def _to_x(self, rgb: NDArray[np.uint8]) -> Tensor:
        """uint8 [H, W, 3] -> float [1, 3, H', W'] in 0..1, padded to multiples of 64."""
        height, width, _ = rgb.shape
        pixels = np.pad(rgb, ((0, -height % STRIDE), (0, -width % STRIDE), (0, 0)), mode="edge")
        x = torch.from_numpy(pixels).to(self.device).permute(2, 0, 1)[None].float() / 255
        return x.contiguous(memory_format=torch.channels_last)

    def _to_tensor(self, symbols: NDArray[np.int32]) -> Tensor:
        return torch.from_numpy(symbols).to(self.device).double()

    @staticmethod
    def _indexes_z(shape: tuple[int, ...]) -> NDArray[np.int32]:
        """The table of every element of z: its channel."""
        return np.repeat(np.arange(shape[0], dtype=np.int32), shape[1] * shape[2])


def _to_numpy(integers: Tensor) -> NDArray[np.int32]:
    return integers.to(torch.int32).cpu().numpy()


def _to_rgb(x: Tensor) -> NDArray[np.uint8]:
    """float [3, H, W] -> uint8 [H, W, 3], rounded and clipped."""
    pixels = x.mul(255).add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())


def _crc(symbols: NDArray[np.int32], crc: int = 0) -> int:
    """CRC32 of symbols as little-endian int32, going on from `crc`."""
    return zlib.crc32(symbols.astype("<i4").tobytes(), crc)


def _tiled(
    transform: Callable[[Tensor], Tensor], x: Tensor, stride_in: int, stride_out: int
) -> Tensor:
    """Apply a transform to tiles of at most TILE latent positions and a halo around them, so that
    memory stays bounded; a picture of up to TILE * 16 pixels per side is one tile.

    `stride_in` and `stride_out` are the units of x and of the result per latent position. The tiling
    depends on the size alone, so all decoders agree.
    """
    height, width = (side // stride_in for side in x.shape[2:])
    if max(height, width) <= TILE:
        return transform(x)
    out: Tensor | None = None
    for top, bottom in _spans(height):
        for left, right in _spans(width):
            y0, x0 = max(0, top - HALO), max(0, left - HALO)
            y1, x1 = min(height, bottom + HALO), min(width, right + HALO)
            part = x[:, :, y0 * stride_in : y1 * stride_in, x0 * stride_in : x1 * stride_in]
            tile = transform(part.contiguous(memory_format=torch.channels_last))
            if out is None:
                out = tile.new_empty(1, tile.shape[1], height * stride_out, width * stride_out)
            rows = slice((top - y0) * stride_out, (bottom - y0) * stride_out)
            columns = slice((left - x0) * stride_out, (right - x0) * stride_out)
            out[
                :, :, top * stride_out : bottom * stride_out, left * stride_out : right * stride_out
            ] = tile[:, :, rows, columns]
    assert out is not None
    return out


def _spans(length: int) -> list[tuple[int, int]]:
    """0..length in equal parts of at most TILE."""
    count = -(-length // TILE)
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
    rgb: NDArray[np.uint8], quality: int = 50, *, model: str | None = None, device: str = "auto"
) -> bytes:
    """uint8 [H, W, 3], clean or degraded, to the bytes of an .aic file; see `Codec.encode`."""
    return _codec(model, device).encode(Picture(rgb=rgb), quality)


def decode(data: bytes, *, model: str | None = None, device: str = "auto") -> NDArray[np.uint8]:
    """The bytes of an .aic file to the restored pixels, uint8 [H, W, 3]; see `Codec.decode`."""
    container = unpack(data)
    name = model or Manifest.read().for_fingerprint(container.header.fingerprint)
    return _codec(name, device).decode(container).rgb
