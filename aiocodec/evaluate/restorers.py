"""Classical restorers, which a cascade runs before its codec: one kind of degradation each, and told of it.

    RESTORERS["nlm"].restore(x, sigma)

Those of noise are told its strength; those of weather take no strength, and do to every picture what they
would do to a spoiled one.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from aiocodec.errors import CodecMissing

Pixels = NDArray[np.uint8]  # [H, W, 3], code values 0..255
Plane = NDArray[np.float64]  # [H, W]


@dataclass(frozen=True)
class Restorer:
    """A method and what it needs."""

    restore: Callable[[Pixels, float], Pixels]  # of a picture and the strength of its noise, of 255
    module: str  # that it imports
    package: str  # that has it
    extra: str  # what to install
    of_noise: bool  # whether it must be told the strength

    def check(self, name: str) -> None:
        """Raises CodecMissing where this installation cannot run it."""
        if not importlib.util.find_spec(self.module):
            raise CodecMissing(f"{name} needs: pip install {self.extra}")

    @property
    def identity(self) -> str:
        """What its results depend on besides its arguments."""
        return f"{self.package} {version(self.package)}"


def non_local_means(x: Pixels, sigma: float) -> Pixels:
    """Non-local means (Buades et al. 2005), told sigma, with scikit-image's usual patches; h = 0.6
    sigma is its advice for this variant."""
    from skimage.restoration import denoise_nl_means

    s = sigma / 255
    return _pixels(
        denoise_nl_means(
            x / 255,
            patch_size=5,
            patch_distance=6,
            h=0.6 * s,
            sigma=s,
            fast_mode=True,
            channel_axis=-1,
        )
    )


def bm3d(x: Pixels, sigma: float) -> Pixels:
    """Colour BM3D (Dabov et al. 2007) by the package of its authors, told sigma."""
    from bm3d import bm3d_rgb

    return _pixels(bm3d_rgb(x / 255, sigma / 255))


def dark_channel_prior(x: Pixels, sigma: float = 0) -> Pixels:
    """Haze removed by the dark channel prior (He, Sun and Tang 2009): windows of 15 pixels, the transmission
    fitted to the picture by a guided filter (He et al. 2010). It keeps 15 % of the haze of far things,
    not the 5 % of the paper: by 0.8 dB the better choice on pairs of hazy rooms."""
    from scipy.ndimage import minimum_filter

    window, kept, least = 15, 0.15, 0.1
    picture = x / 255
    dark = minimum_filter(picture.min(2), window)
    haziest = np.argsort(dark, axis=None)[-max(1, dark.size // 1000) :]
    candidates = picture.reshape(-1, 3)[haziest]
    air = np.maximum(candidates[candidates.sum(1).argmax()], 1e-3)
    t = 1 - (1 - kept) * minimum_filter((picture / air).min(2), window)
    t = _guided(t, picture.mean(2), 40).clip(least, 1)[..., None]
    return _pixels((picture - air) / t + air)


def directional_sparsity(x: Pixels, sigma: float = 0) -> Pixels:
    """Streaks of rain removed by the directional global sparse model (Deng, Huang, Zhao and Jiang 2018):
    the layer S of the streaks, which is brighter than the scene, is sparse and smooth along the
    vertical, and the picture without it is smooth across,

        min over 0 <= S <= I of  a |D_y S| + b |S| + c |D_x (I - S)|,

    by ADMM with Fourier transforms, on luma; a, b and c by the PSNR of pairs of rain."""
    a, b, c, rounds, border = 0.03, 0.003, 0.03, 60, 8
    picture = x / 255
    luma = np.pad(picture @ [0.299, 0.587, 0.114], border, mode="symmetric")
    height, width = luma.shape
    down, across = np.zeros((2, height, width))
    down[0, 0] = across[0, 0] = -1
    down[-1, 0] = across[0, -1] = 1
    d_y, d_x = np.fft.rfft2(down), np.fft.rfft2(across)

    def plane(spectrum: NDArray[np.complex128]) -> Plane:
        return np.fft.irfft2(spectrum, s=luma.shape)

    def shrunk(values: Plane, by: float) -> Plane:
        return np.sign(values) * np.maximum(np.abs(values) - by, 0)

    streaks = np.zeros_like(luma)
    dual_a, dual_b, dual_c = np.zeros((3, height, width))
    across_picture = plane(d_x * np.fft.rfft2(luma))
    inverse = 1 / (np.abs(d_y) ** 2 + 1 + np.abs(d_x) ** 2)
    for _ in range(rounds):
        spectrum = np.fft.rfft2(streaks)
        along, rest = plane(d_y * spectrum), across_picture - plane(d_x * spectrum)
        part_a, part_b, part_c = (
            shrunk(along + dual_a, a),
            shrunk(streaks + dual_b, b),
            shrunk(rest + dual_c, c),
        )
        dual_a += along - part_a
        dual_b += streaks - part_b
        dual_c += rest - part_c
        spectrum = np.fft.rfft2(part_b - dual_b)
        spectrum += np.conj(d_y) * np.fft.rfft2(part_a - dual_a)
        spectrum += np.conj(d_x) * np.fft.rfft2(across_picture - part_c + dual_c)
        streaks = plane(spectrum * inverse).clip(0, luma)
    return _pixels(picture - streaks[border:-border, border:-border, None])


def _guided(x: Plane, guide: Plane, radius: int, epsilon: float = 1e-3) -> Plane:
    """x smoothed, but with the edges of `guide` (guided filter, He et al. 2010)."""
    from scipy.ndimage import uniform_filter

    def mean(values: Plane) -> Plane:
        means: Plane = uniform_filter(values, 2 * radius + 1)
        return means

    mean_x, mean_g = mean(x), mean(guide)
    slope = mean(x * guide) - mean_x * mean_g
    slope = slope / (mean(guide * guide) - mean_g**2 + epsilon)
    return mean(slope) * guide + mean(mean_x - slope * mean_g)


def _pixels(picture: NDArray[np.float64]) -> Pixels:
    return np.clip(np.round(255 * picture), 0, 255).astype(np.uint8)


_EXTRA = "'aiocodec[evaluate]'"
RESTORERS = {
    "nlm": Restorer(non_local_means, "skimage", "scikit-image", _EXTRA, True),
    "bm3d": Restorer(bm3d, "bm3d", "bm3d", "bm3d", True),
    "dcp": Restorer(dark_channel_prior, "scipy", "scipy", _EXTRA, False),
    "dgsm": Restorer(directional_sparsity, "scipy", "scipy", _EXTRA, False),
}
