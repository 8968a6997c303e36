import math

import numpy as np
import pytest

from aiocodec.metrics import bpp, psnr, psnr_from_mse


def test_psnr_of_a_known_error():
    a = np.zeros((4, 4, 3), np.uint8)
    b = a.copy()
    b[0, 0, 0] = 48  # one error of 48 in 48 samples: a mean squared error of 48
    assert psnr(a, b) == pytest.approx(10 * math.log10(255**2 / 48))
    assert psnr(b, a) == psnr(a, b)


def test_psnr_of_equal_images_is_infinite():
    a = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert psnr(a, a) == math.inf
    assert psnr_from_mse(0) == math.inf


def test_psnr_does_not_wrap_around():
    a, b = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert psnr(a, b) == psnr(b, a) == 0


def test_psnr_refuses_different_shapes():
    with pytest.raises(ValueError, match="shapes"):
        psnr(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 1, 3), np.uint8))


def test_bpp_counts_the_whole_file():
    assert bpp(1000, 100, 80) == 1.0
