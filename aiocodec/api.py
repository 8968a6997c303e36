"""What `aiocodec` offers at its top: functions that take a picture in whatever form it is at hand.

    a path, an open file, bytes of one    as `image.read` reads it, with alpha and metadata
    PIL.Image.Image                       of any mode, turned upright; its info is the metadata
    numpy [H, W], [H, W, 1], 3 or 4       gray, RGB or RGB with alpha: uint8, uint16 or floating point
    torch [H, W], [1, H, W], 3 or 4       the same with the channels first, on any device
    aiocodec.image.Picture                as it is

Samples of uint16 are 0..65535 and those of floating point 0..1, scaled and rounded to the 8 bits that
are coded. Whatever else there is, also numbers beyond these, is a TypeError or a ValueError.
"""

import os
import sys
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from aiocodec.batch import load_codec, load_decoder
from aiocodec.config import DEFAULT_EFFORT, DEFAULT_QUALITY
from aiocodec.container import Container, unpack
from aiocodec.pretrained import Manifest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from aiocodec.codec import Found
    from aiocodec.image import Picture

File: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]
"""A path, what is in a file, or an open one."""

Source: TypeAlias = (
    Any  # File, Picture, and what numpy, torch and Pillow have, which import too much
)
"""A picture in one of the forms above."""


def encode(
    image: Source,
    quality: int = DEFAULT_QUALITY,
    *,
    effort: int = DEFAULT_EFFORT,
    strip: bool | str = False,
    model: str | None = None,
    device: str = "auto",
) -> bytes:
    """A picture, clean or degraded, to the bytes of an .aic file.

    Args:
        image: see the table at the top of this module.
        quality, effort, strip: those of `Codec.encode`.
        model, device: those of `Codec`, which is kept for the next call.

    Raises:
        TypeError, ValueError: what is no picture, quality or effort.
        OSError: a path that cannot be read.
        AicError: whatever `image.read`, `Codec` and `Codec.encode` raise.
    """
    picture = to_picture(image)
    return load_codec(model, device, None).encode(picture, quality, effort=effort, strip=strip)


def encode_to(
    image: Source,
    *,
    max_bytes: int | None = None,
    min_psnr: float | None = None,
    min_ssim: float | None = None,
    effort: int = DEFAULT_EFFORT,
    strip: bool | str = False,
    model: str | None = None,
    device: str = "auto",
) -> "Found":
    """A picture to an .aic file of at most so many bytes, or of at least such a fidelity, and the quality
    that it took: see `Codec.encode_to`. Arguments and errors are otherwise those of `encode`."""
    return load_codec(model, device, None).encode_to(
        to_picture(image),
        max_bytes=max_bytes,
        min_psnr=min_psnr,
        min_ssim=min_ssim,
        effort=effort,
        strip=strip,
    )


def decode(
    file: File,
    *,
    dtype: Any = "uint8",
    alpha: bool = False,
    model: str | None = None,
    device: str = "auto",
) -> "NDArray[Any]":
    """An .aic file to the restored pixels, [H, W, 3], gray ones too.

    Args:
        file: a path, an open file, or what is in one.
        dtype: uint8, uint16 (0..65535), or float32 (0..1).
        alpha: give [H, W, 4], opaque where the file has no alpha.

    Raises:
        TypeError, ValueError: what is no file, and another dtype.
        OSError: a path that cannot be read.
        AicError: whatever `Codec` and `Codec.decode` raise.
    """
    import numpy as np

    kind = np.dtype(dtype)
    if kind not in (np.uint8, np.uint16, np.float32):
        raise ValueError(f"dtype {kind} is none of uint8, uint16 and float32")
    container = unpack(_contents(file))
    name = model or Manifest.read().for_fingerprint(container.header.fingerprint)
    bits = 8 if kind == np.uint8 else 16
    picture = load_decoder(name, device, None).decode(container, bits=bits)
    pixels: NDArray[Any] = picture.rgb
    if alpha:
        plane = np.full(pixels.shape[:2], 255, np.uint8) if picture.alpha is None else picture.alpha
        top = np.iinfo(pixels.dtype).max // 255
        pixels = np.dstack([pixels, plane.astype(pixels.dtype) * top])
    return pixels if kind != np.float32 else pixels / np.float32(65535)


def inspect(file: File, *, max_pixels: int = 1 << 32) -> Container:
    """What an .aic file says of itself, without any network; errors as of `container.unpack`."""
    return unpack(_contents(file), max_pixels=max_pixels)


def to_picture(image: Source) -> "Picture":
    """A picture in any of the forms above as what a `Codec` takes; errors as of `encode`."""
    import numpy as np

    from aiocodec.image import Picture, from_pillow, read

    torch, pillow = sys.modules.get("torch"), sys.modules.get("PIL.Image")
    if isinstance(image, Picture):
        return image
    if isinstance(image, np.ndarray):
        return _from_array(image, "numpy", first=False)
    if pillow is not None and isinstance(image, pillow.Image):
        return from_pillow(image)
    if torch is not None and isinstance(image, torch.Tensor):
        if image.layout != torch.strided or image.is_complex():
            raise TypeError("a tensor is taken dense and real only")
        image = image.detach()
        if image.is_floating_point():
            image = image.to(dtype=torch.float32)
        return _from_array(image.cpu().numpy(), "torch", first=True)
    return read(_contents(image))


def _from_array(samples: "NDArray[Any]", whose: str, *, first: bool) -> "Picture":
    """An array of gray, RGB or RGBA samples as a picture; `first` has its channels before its rows."""
    import numpy as np

    from aiocodec.image import Picture

    layout = "[H, W] or [C, H, W]" if first else "[H, W] or [H, W, C]"
    axis = 0 if first else -1
    if samples.ndim not in (2, 3) or (samples.ndim == 3 and samples.shape[axis] not in (1, 3, 4)):
        shape = list(samples.shape)
        raise ValueError(f"a {whose} picture is {layout}, with 1, 3 or 4 channels, not {shape}")
    if 0 in samples.shape:
        raise ValueError("the picture has no pixels")
    if samples.ndim == 2:
        samples = samples[..., None]
    elif first:
        samples = samples.transpose(1, 2, 0)
    wide = samples.dtype != np.uint8
    samples = _in_eight_bits(samples)
    colours, plane = (
        (samples[..., :3], samples[..., 3]) if samples.shape[2] == 4 else (samples, None)
    )
    return Picture(
        rgb=np.ascontiguousarray(np.broadcast_to(colours, (*samples.shape[:2], 3))),
        alpha=None if plane is None or plane.min() == 255 else np.ascontiguousarray(plane),
        gray=samples.shape[2] == 1,
        sixteen_bit=wide,
    )


def _in_eight_bits(samples: "NDArray[Any]") -> "NDArray[np.uint8]":
    """Samples [H, W, C] of a type that has a meaning in 8 bits."""
    import numpy as np

    from aiocodec.image import eight_bits

    if samples.dtype == np.uint8:
        return samples
    if samples.dtype == np.uint16:
        return eight_bits(samples)
    if samples.dtype.kind != "f":
        raise TypeError(f"samples are uint8, uint16 or floating point, not {samples.dtype}")
    if not (samples.min() >= 0 and samples.max() <= 1):  # nor is what is no number
        raise ValueError("samples in floating point are 0..1, and these are not")
    return (samples.astype(np.float32) * 255 + np.float32(0.5)).astype(np.uint8)


def _contents(file: File) -> bytes:
    """What is in a file."""
    if isinstance(file, str | os.PathLike):
        with open(file, "rb") as opened:
            return opened.read()
    if hasattr(file, "read"):
        data = file.read()
        if not isinstance(data, bytes):
            raise TypeError("the file is not open for reading bytes")
        return data
    try:
        return memoryview(file).tobytes()
    except TypeError:
        raise TypeError(
            f"a {type(file).__name__} is no picture: give a path, a file, bytes, an array, a tensor or "
            "an image of Pillow"
        ) from None
