"""Metrics agree with independent implementations, and say nothing where nothing can be said."""

import math
import sys

import bjontegaard
import numpy as np
import pytest
import pytorch_msssim
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio

from aiocodec.metrics import (
    bd_psnr,
    bd_rate,
    blockiness,
    bpp,
    edge_agreement,
    ms_ssim,
    overlap,
    psnr,
    psnr_from_mse,
)

# Two codecs' rates in kbit/s and PSNR in dB, the example that circulates with implementations of
# Bjøntegaard's method.
ANCHOR = [(686.76, 40.28), (309.58, 37.18), (157.11, 34.24), (85.95, 31.42)]
TEST = [(893.34, 40.39), (407.8, 37.21), (204.93, 34.17), (112.75, 31.24)]


@pytest.fixture
def noisy(photo):
    noise = np.random.default_rng(0).normal(0, 25, photo.rgb.shape)
    return np.clip(np.round(photo.rgb + noise), 0, 255).astype(np.uint8)


def test_psnr_of_a_known_error():
    a = np.zeros((4, 4, 3), np.uint8)
    b = a.copy()
    b[0, 0, 0] = 48  # one error of 48 in 48 samples: a mean squared error of 48
    assert psnr(a, b) == pytest.approx(10 * math.log10(255**2 / 48))
    assert psnr(b, a) == psnr(a, b)


def test_psnr_is_that_of_scikit_image(photo, noisy):
    assert psnr(photo.rgb, noisy) == pytest.approx(peak_signal_noise_ratio(photo.rgb, noisy))


def test_psnr_of_equal_images_is_infinite():
    a = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert psnr(a, a) == math.inf
    assert psnr_from_mse(0) == math.inf


def test_psnr_does_not_wrap_around():
    a, b = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert psnr(a, b) == psnr(b, a) == 0


@pytest.mark.parametrize("metric", [psnr, ms_ssim, edge_agreement])
def test_different_shapes_are_refused(metric):
    with pytest.raises(ValueError, match="shapes"):
        metric(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 1, 3), np.uint8))


def test_bpp_counts_the_whole_file():
    assert bpp(1000, 100, 80) == 1.0


def reference_ms_ssim(a, b):
    x, y = (torch.from_numpy(i.transpose(2, 0, 1).copy())[None].float() for i in (a, b))
    return float(pytorch_msssim.ms_ssim(x, y, data_range=255))


@pytest.mark.parametrize(("height", "width"), [(320, 480), (301, 333), (161, 161)])
def test_ms_ssim_is_that_of_pytorch_msssim(photo, noisy, height, width):
    clean, spoiled = photo.rgb[:height, :width], noisy[:height, :width]
    for other in (spoiled, 255 - clean):
        assert ms_ssim(clean, other) == pytest.approx(reference_ms_ssim(clean, other), abs=1e-5)


def test_ms_ssim_of_equal_and_of_small_images(photo):
    assert ms_ssim(photo.rgb, photo.rgb) == 1
    assert ms_ssim(photo.rgb[:161, :161], photo.rgb[:161, :161]) == 1
    assert ms_ssim(photo.rgb[:160], photo.rgb[:160]) is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is not told")
def test_ms_ssim_takes_few_bytes_per_pixel_and_no_torch(python):
    script = """
import sys
import numpy as np
from pathlib import Path
from aiocodec.metrics import ms_ssim

def mib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))

a = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)
b = a[::-1].copy()
ms_ssim(a[:200], b[:200])  # what is loaded at the first use
Path("/proc/self/clear_refs").write_text("5")
before = mib("VmRSS")
ms_ssim(a, b)
print((mib("VmHWM") - before) * 2**20 / 2000**2, "torch" in sys.modules)
"""
    taken, torch_too = python(script).split()
    assert 5 < float(taken) < 40 and torch_too == "False"


def test_edges_agree_with_themselves_and_not_with_noise(photo, noisy):
    assert edge_agreement(photo.rgb, photo.rgb) == 1
    assert 0.2 < edge_agreement(photo.rgb, noisy) < 0.95
    flat = np.zeros_like(photo.rgb)
    assert edge_agreement(photo.rgb, flat) == edge_agreement(flat, photo.rgb) == 0
    assert edge_agreement(flat, flat) == 1


def test_an_edge_may_move_by_a_pixel_and_no_more():
    def step(at):
        image = np.zeros((64, 64, 3), np.uint8)
        image[:, at:] = 255
        return image

    assert edge_agreement(step(30), step(31)) == 1
    assert edge_agreement(step(30), step(33)) == 0


@pytest.fixture
def smooth():
    """Random waves, longer than a block; no side is a multiple of 16."""
    noise = np.random.default_rng(0).normal(size=(331, 475, 3))
    waves = gaussian_filter(noise, (6, 6, 0))
    return np.clip(np.round(128 + 40 * waves / waves.std()), 0, 255).astype(np.uint8)


def mosaic(image, share=1.0):
    """An image of which a share is replaced by the means of its 16x16 blocks."""
    means = image.astype(np.float64)
    for top in range(0, image.shape[0], 16):
        for left in range(0, image.shape[1], 16):
            block = means[top : top + 16, left : left + 16]
            block[:] = block.mean((0, 1))
    return np.round(share * means + (1 - share) * image).astype(np.uint8)


def test_blockiness_is_about_one_where_there_are_no_blocks(smooth, photo, noisy):
    for image in (smooth, photo.rgb, noisy):
        assert blockiness(image) == pytest.approx(1, abs=0.05)
        assert blockiness(255 - image) == pytest.approx(blockiness(image))


def test_blockiness_grows_with_blocks(smooth, photo):
    for image in (smooth, photo.rgb):
        values = [blockiness(mosaic(image, share)) for share in (0, 0.25, 0.5, 0.75, 1)]
        assert values == sorted(values) and values[2] > 1.4 and values[4] > 1e3


def test_blockiness_is_the_ratio_of_steps():
    ramp = np.arange(64, dtype=np.uint8)  # a step of 1 everywhere, and of 3 at three edges
    image = np.repeat((ramp + 2 * (ramp // 16))[None, :, None], 64, 0).repeat(3, 2)
    assert blockiness(image[:16]) == pytest.approx(3, abs=1e-4)
    assert blockiness(image) == pytest.approx((3 + 1) / 2, abs=1e-4)  # rows are flat: 1


def test_blockiness_counts_edges_at_multiples_of_16_alone(smooth, photo):
    for image in (smooth, photo.rgb):
        blocky = mosaic(image, 0.5)
        assert blockiness(blocky[8:, 8:]) <= 1 < blockiness(blocky[16:, 16:])


def test_blockiness_does_not_know_columns_from_rows(smooth):
    blocky = mosaic(smooth, 0.5)
    assert blockiness(blocky.transpose(1, 0, 2)) == pytest.approx(blockiness(blocky))


def test_blockiness_of_small_and_of_flat_images(smooth):
    assert blockiness(smooth[:16, :16]) is blockiness(smooth[:1, :1]) is None
    assert blockiness(smooth[:1, :17]) > 0 and blockiness(smooth[:17, :1]) > 0
    assert blockiness(np.full((50, 40, 3), 77, np.uint8)) == 1


@pytest.mark.parametrize(("anchor", "test"), [(ANCHOR, TEST), (TEST, ANCHOR), (ANCHOR, ANCHOR)])
def test_bd_figures_are_those_of_the_bjontegaard_package(anchor, test):
    (rate_a, psnr_a), (rate_t, psnr_t) = (np.array(points).T for points in (anchor, test))
    options = {"method": "pchip", "require_matching_points": False, "min_overlap": 0}
    expected = bjontegaard.bd_rate(rate_a, psnr_a, rate_t, psnr_t, **options)
    assert bd_rate(anchor, test) == pytest.approx(expected, abs=1e-6)
    expected = bjontegaard.bd_psnr(rate_a, psnr_a, rate_t, psnr_t, **options)
    assert bd_psnr(anchor, test) == pytest.approx(expected, abs=1e-6)


def test_bd_figures_are_near_those_of_cubic_polynomials():
    """Bjøntegaard's first proposal (VCEG-M33) put a cubic through the four points."""
    (rate_a, psnr_a), (rate_t, psnr_t) = (np.array(points).T for points in (ANCHOR, TEST))
    low, high = max(psnr_a.min(), psnr_t.min()), min(psnr_a.max(), psnr_t.max())
    integrals = []
    for rates, psnrs in ((rate_a, psnr_a), (rate_t, psnr_t)):
        cubic = np.polynomial.Polynomial.fit(psnrs, np.log(rates), 3).integ()
        integrals.append(cubic(high) - cubic(low))
    expected = 100 * (np.exp((integrals[1] - integrals[0]) / (high - low)) - 1)
    assert bd_rate(ANCHOR, TEST) == pytest.approx(expected, abs=0.1)


def test_bd_laws():
    half = [(rate / 2, quality) for rate, quality in ANCHOR]
    better = [(rate, quality + 1) for rate, quality in ANCHOR]
    assert bd_rate(ANCHOR, half) == pytest.approx(-50)
    assert bd_psnr(ANCHOR, better) == pytest.approx(1)
    there, back = bd_rate(ANCHOR, TEST), bd_rate(TEST, ANCHOR)
    assert (1 + there / 100) * (1 + back / 100) == pytest.approx(1)
    assert bd_rate(ANCHOR[::-1], TEST[1:] + TEST[:1]) == pytest.approx(there)  # any order
    assert overlap(ANCHOR, TEST) == (31.42, 40.28)


def test_points_that_nobody_would_choose_do_not_count():
    beaten = [*ANCHOR, (700.0, 35.0), (1e6, 40.0), (2e6, math.inf)]
    assert bd_rate(beaten, TEST) == bd_rate(ANCHOR, TEST)


def test_bd_refuses_curves_that_do_not_overlap():
    far = [(rate, quality + 20) for rate, quality in ANCHOR]
    touching = [(rate, quality + 8) for rate, quality in ANCHOR]  # 0.86 of 8.86 dB are shared
    for other in (far, touching):
        with pytest.raises(ValueError, match="quality in common"):
            bd_rate(ANCHOR, other)
        with pytest.raises(ValueError, match="quality in common"):
            overlap(other, ANCHOR)
    with pytest.raises(ValueError, match="rate in common"):
        bd_psnr(ANCHOR, [(rate * 1000, quality) for rate, quality in ANCHOR])
    for short in ([], ANCHOR[:1], [ANCHOR[0], (ANCHOR[0][0] * 2, ANCHOR[0][1])]):
        with pytest.raises(ValueError, match="two points"):
            bd_rate(ANCHOR, short)
