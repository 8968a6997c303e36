"""Rate, distortion and the distance between curves of them: one implementation for training and for
reports."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_Plane = NDArray[np.float32]
Points = Sequence[tuple[float, float]]  # (bpp, quality in dB or any scale that grows), any order


def psnr_from_mse(mse: float) -> float:
    """Peak signal-to-noise ratio in dB for a mean squared error on [0, 1]; infinite for 0."""
    return math.inf if mse == 0 else -10 * math.log10(mse)


def _check_shapes(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> None:
    if a.shape != b.shape:
        raise ValueError(f"images of different shapes: {a.shape} and {b.shape}")


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """PSNR in dB between two uint8 images of one shape, over all pixels and channels."""
    _check_shapes(a, b)
    difference = a.astype(np.float64) - b
    return psnr_from_mse(float(np.mean(difference**2)) / 255**2)


def bpp(size: int, width: int, height: int) -> float:
    """Bits per pixel of a file of `size` bytes."""
    return 8 * size / (width * height)


MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, finest first
MS_SSIM_SIDE = 161  # the shortest side that five scales and a window of 11 pixels leave room for
_BAND = 32  # rows of windows that are looked at together: they stay in the processor's cache


def ms_ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float | None:
    """Multi-scale structural similarity of two uint8 images [H, W, 3], at most 1, mean over channels
    (Wang, Simoncelli, Bovik 2003); None for images with a side below MS_SSIM_SIDE. It takes some 20
    bytes per pixel, beside the images, and one thread."""
    _check_shapes(a, b)
    if min(a.shape[:2]) < MS_SSIM_SIDE:
        return None
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

    def similarity(x: _Plane, y: _Plane) -> float:
        """Of one channel: a channel and a band at a time, for the sake of memory."""
        product = 1.0
        for scale, weight in enumerate(MS_SSIM_WEIGHTS):
            total, rows, columns = 0.0, x.shape[0] - 10, x.shape[1] - 10
            for top in range(0, rows, _BAND):
                u, v = (plane[top : top + _BAND + 10] for plane in (x, y))
                mean_u, mean_v, uu, vv, uv = _blurred(np.stack([u, v, u * u, v * v, u * v]))
                variances = (uu - mean_u**2) + (vv - mean_v**2)
                part = (2 * (uv - mean_u * mean_v) + c2) / (variances + c2)
                if scale == len(MS_SSIM_WEIGHTS) - 1:  # luminance counts at the coarsest scale only
                    part *= (2 * mean_u * mean_v + c1) / (mean_u**2 + mean_v**2 + c1)
                total += float(part.sum(dtype=np.float64))
            product *= max(total / (rows * columns), 0.0) ** weight
            x, y = _halved(x), _halved(y)
        return product

    channels = ([image[:, :, c].astype(np.float32) for image in (a, b)] for c in range(3))
    return sum(similarity(x, y) for x, y in channels) / 3


def _blurred(planes: _Plane) -> _Plane:
    """Planes [N, H, W] under a Gaussian window of 11x11 pixels and deviation 1.5: [N, H - 10, W - 10]."""
    taps = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    taps = (taps / taps.sum()).astype(np.float32)
    for _ in ("down", "across"):
        count = planes.shape[1] - 10
        total = taps[5] * planes[:, 5 : 5 + count]
        for k in range(5):
            total += taps[k] * (planes[:, k : k + count] + planes[:, 10 - k : 10 - k + count])
        planes = total.swapaxes(1, 2)
    return planes


def _halved(plane: _Plane) -> _Plane:
    """Means of 2x2 pixels; an odd side begins with zeros, as pytorch-msssim has it."""
    plane = np.pad(plane, [(side % 2, 0) for side in plane.shape])
    rows = plane[::2] + plane[1::2]
    return np.float32(0.25) * (rows[:, ::2] + rows[:, 1::2])


LUMA = np.array([0.299, 0.587, 0.114])  # of R, G and B
BLOCK = 16  # side of the blocks whose edges blockiness looks for, in pixels


def blockiness(image: NDArray[np.uint8]) -> float | None:
    """How much larger the steps of luma between neighbours are at the edges of 16x16 blocks than
    elsewhere in a uint8 image [H, W, 3]: the ratio of their mean absolute values, averaged over
    columns and rows (after Wu and Yuen 1997, without their masking). At least 0; photographs have
    about 1, blocks that one sees 1.4 and more.

    A direction without block edges, of at most 16 pixels, does not count; None where neither has any.
    To both means a millionth of a code value is added: flat images have 1, and a mosaic of flat
    blocks has a number, though a huge one.
    """
    luma = image @ LUMA
    ratios = []
    for plane in (luma, luma.T):
        if plane.shape[1] > BLOCK:
            steps = np.abs(np.diff(plane, axis=1)).mean(0)
            edges = np.arange(1, plane.shape[1]) % BLOCK == 0
            ratios.append((steps[edges].mean() + 1e-6) / (steps[~edges].mean() + 1e-6))
    return float(np.mean(ratios)) if ratios else None


def edge_agreement(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Whether an edge detector sees the same in two uint8 images [H, W, 3]: the F-measure, 0..1, of
    the edges that scikit-image's Canny detector (sigma 2) finds in b against those that it finds in
    a; an edge counts as found where the other has one within a pixel, diagonals included. 1 where
    neither has any. Raises ImportError without scikit-image."""
    from scipy.ndimage import maximum_filter
    from skimage.feature import canny

    _check_shapes(a, b)
    edges = [canny(image @ (LUMA / 255), sigma=2) for image in (a, b)]
    if not edges[0].any() or not edges[1].any():
        return float(edges[0].any() == edges[1].any())
    precision, recall = (
        float(maximum_filter(there, 3)[here].mean()) for here, there in (edges[::-1], edges)
    )
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _curve(points: Points) -> "_Curve":
    """log10 of the rates and the qualities of the points that anyone would choose: none has another
    that is at least as good and not larger. Both strictly grow."""
    chosen: list[tuple[float, float]] = []
    for rate, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if math.isfinite(quality) and rate > 0 and (not chosen or quality > chosen[-1][1]):
            chosen.append((rate, quality))
    if len(chosen) < 2:
        raise ValueError("fewer than two points of growing quality")
    return np.log10([rate for rate, _ in chosen]), np.array([quality for _, quality in chosen])


_Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # abscissae, strictly growing; ordinates


MIN_OVERLAP = 0.25  # of the shorter curve, that two must share before anything is said of them


def _overlap(a: _Curve, b: _Curve, what: str) -> tuple[float, float]:
    low, high = float(max(a[0][0], b[0][0])), float(min(a[0][-1], b[0][-1]))
    if high - low < MIN_OVERLAP * min(float(curve[0][-1] - curve[0][0]) for curve in (a, b)):
        raise ValueError(f"too little {what} in common")
    return low, high


def _mean_difference(anchor: _Curve, test: _Curve, what: str) -> float:
    """The mean of test - anchor where they overlap, each interpolated by PCHIP."""
    from scipy.interpolate import PchipInterpolator as Pchip

    low, high = _overlap(anchor, test, what)
    integrals = [float(Pchip(*curve).integrate(low, high)) for curve in (anchor, test)]
    return (integrals[1] - integrals[0]) / (high - low)


def overlap(anchor: Points, test: Points) -> tuple[float, float]:
    """Lowest and highest quality over which `bd_rate` compares two curves; ValueError where it
    refuses to."""
    (rates_a, quality_a), (rates_t, quality_t) = _curve(anchor), _curve(test)
    return _overlap((quality_a, rates_a), (quality_t, rates_t), "quality")


def bd_rate(anchor: Points, test: Points) -> float:
    """Bjøntegaard delta rate in percent: how many more bits `test` needs than `anchor` for equal
    quality, negative where it needs fewer (Bjøntegaard, VCEG-M33), between piecewise cubic (PCHIP)
    curves of the logarithm of the rate over the quality.

    Of each curve, only points count that no other point of it beats in rate and quality at once.
    Raises ValueError where the curves share less than MIN_OVERLAP of the shorter range of qualities,
    or one has fewer than two points, and ImportError without SciPy.
    """
    (rates_a, quality_a), (rates_t, quality_t) = _curve(anchor), _curve(test)
    exponent = _mean_difference((quality_a, rates_a), (quality_t, rates_t), "quality")
    return 100 * (10**exponent - 1)


def bd_psnr(anchor: Points, test: Points) -> float:
    """Bjøntegaard delta PSNR in dB (or whatever the qualities are): how much better `test` is than
    `anchor` at equal rate. Points and errors as for `bd_rate`, but it is rates that are shared."""
    return _mean_difference(_curve(anchor), _curve(test), "rate")
