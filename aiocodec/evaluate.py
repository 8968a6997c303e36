"""Rate and distortion of real files: every figure comes from len(file) and decoded pixels."""

import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from aiocodec.codec import Codec
from aiocodec.errors import AicError, ImageError
from aiocodec.image import SUFFIXES, Picture, read
from aiocodec.metrics import bpp, psnr


def add_noise(picture: Picture, sigma: float, seed: int) -> Picture:
    """White Gaussian noise of standard deviation `sigma` (of 255) from
    `numpy.random.default_rng(seed)`, rounded and clipped to 8 bits."""
    noise = np.random.default_rng(seed).normal(0, sigma, picture.rgb.shape)
    noisy = np.clip(np.round(picture.rgb + noise), 0, 255).astype(np.uint8)
    return replace(picture, rgb=noisy)


def degraded(picture: Picture, degradation: str, seed: int) -> Picture:
    """A picture after a degradation as `training.degrade.apply` names them, drawn with a seed on the
    CPU. Noise of a given strength alone, `noise:25`, is that of `add_noise`, with which other
    projects can be compared. AicError for a name that does not exist."""
    import torch

    from aiocodec.training.degrade import apply

    name, _, number = degradation.partition(":")
    rng = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(np.ascontiguousarray(picture.rgb.transpose(2, 0, 1)))[None].float() / 255
    if name == "noise" and number and "+" not in number:
        apply(x[..., :1, :1], degradation, rng)  # an error where the number is none
        return add_noise(picture, float(number), seed)
    pixels = (apply(x, degradation, rng)[0] * 255).round().byte().permute(1, 2, 0)
    return replace(picture, rgb=np.ascontiguousarray(pixels.numpy()))


def _read(path: Path) -> Picture:
    try:
        return read(path.read_bytes())
    except AicError as error:
        raise type(error)(f"{path}: {error}") from None
    except OSError as fault:
        raise ImageError(f"{path} cannot be read: {fault.strerror}") from None


def rd_table(
    codec: Codec, folder: Path, qualities: Iterable[int], degradation: str = "clean"
) -> Iterator[dict[str, Any]]:
    """One row per quality: means over the images of a folder, in the order of their names.

    Image number i, from 1, gets its degradation with seed i; PSNR is always against the image as it
    was. Seconds are those of `Codec.encode` and `Codec.decode`, model loaded.

    Raises ImageError for a folder without images or an image that cannot be read, AicError for a
    degradation that does not exist.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ImageError(f"no images in {folder}")
    pictures = [_read(path) for path in paths]
    inputs = [degraded(picture, degradation, i) for i, picture in enumerate(pictures, start=1)]
    for quality in qualities:
        rates, psnrs, encode_seconds, decode_seconds = [], [], [], []
        for clean, spoiled in zip(pictures, inputs, strict=True):
            start = time.perf_counter()
            data = codec.encode(spoiled, quality, strip=True)
            middle = time.perf_counter()
            decoded = codec.decode(data)
            end = time.perf_counter()
            height, width, _ = clean.rgb.shape
            rates.append(bpp(len(data), width, height))
            psnrs.append(psnr(clean.rgb, decoded.rgb))
            encode_seconds.append(middle - start)
            decode_seconds.append(end - middle)
        yield {
            "model": codec.name,
            "degradation": degradation,
            "quality": quality,
            "images": len(pictures),
            "bpp": round(statistics.mean(rates), 4),
            "psnr": round(statistics.mean(psnrs), 3),
            "encode_seconds": round(statistics.mean(encode_seconds), 3),
            "decode_seconds": round(statistics.mean(decode_seconds), 3),
        }
