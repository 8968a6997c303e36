"""Rate and distortion: one implementation for training and for reports."""

import math

import numpy as np
from numpy.typing import NDArray


def psnr_from_mse(mse: float) -> float:
    """Peak signal-to-noise ratio in dB for a mean squared error on [0, 1]; infinite for 0."""
    return math.inf if mse == 0 else -10 * math.log10(mse)


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """PSNR in dB between two uint8 images of one shape, over all pixels and channels."""
    if a.shape != b.shape:
        raise ValueError(f"images of different shapes: {a.shape} and {b.shape}")
    difference = a.astype(np.float64) - b
    return psnr_from_mse(float(np.mean(difference**2)) / 255**2)


def bpp(size: int, width: int, height: int) -> float:
    """Bits per pixel of a file of `size` bytes."""
    return 8 * size / (width * height)
