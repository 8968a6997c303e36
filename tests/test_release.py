"""The making of integer tables from probabilities, at the release of a model."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from aiocodec.rangecoder import MAX_MAGNITUDE, PRECISION
from aiocodec.training.release import gaussian_tables, quantise

TOTAL = 1 << PRECISION
SCALES = 2.0 ** ((np.arange(64) - 19) / 6)


@pytest.mark.parametrize("count", [2, 3, 100, 5000, 2 * MAX_MAGNITUDE + 2])
@pytest.mark.parametrize("concentration", [0.001, 0.1, 1.0, 1e6])
def test_quantise_is_exact_and_close(count, concentration):
    rng = np.random.default_rng(count)
    p = rng.dirichlet(np.full(count, concentration))
    frequencies = quantise(7 * p)
    assert frequencies.dtype == np.int32
    assert frequencies.min() >= 1 and frequencies.sum(dtype=np.int64) == TOTAL
    surplus = frequencies - p * TOTAL
    mode = np.argmax(p)
    assert -count <= surplus[mode] <= count + 1
    surplus = np.delete(surplus, mode)
    assert surplus.max() <= 1 + 1e-6
    assert np.all(surplus >= -np.delete(p, mode) * count - 1e-6)


def test_quantise_gives_all_but_the_least_to_a_certain_symbol():
    assert quantise([0, 1, 0]).tolist() == [1, TOTAL - 2, 1]


@pytest.mark.parametrize(
    "probabilities", [[], [1], [0, 0], [-1, 2], [math.nan, 1], [math.inf, 1], [[0.5, 0.5]], 1.0]
)
def test_quantise_refuses_what_is_no_distribution(probabilities):
    with pytest.raises(ValueError):
        quantise(probabilities)


def test_gaussian_tables_are_symmetric():
    frequencies, lengths, lows = gaussian_tables(SCALES)
    assert {a.dtype for a in (frequencies, lengths, lows)} == {np.dtype(np.int32)}
    np.testing.assert_array_equal(lows, -(lengths // 2) + 1)
    for table in np.split(frequencies, np.cumsum(lengths)[:-1]):
        symbols = table[:-1]
        np.testing.assert_array_equal(symbols, symbols[::-1])
        assert np.all(np.diff(symbols[: len(symbols) // 2 + 1]) >= 0)
        assert 0 <= table[-1] - 2**6 <= 12  # 2^-18 and up to 6e-7 of the mass


@pytest.mark.parametrize("scale", [0, -1, math.nan, math.inf, MAX_MAGNITUDE])
def test_gaussian_tables_refuse_what_is_no_scale(scale):
    with pytest.raises(ValueError, match="scale"):
        gaussian_tables([1.0, scale])


def test_mixture_tables_are_mixtures():
    scales, weight, ratio = np.array([0.04, 0.5, 9.0]), 0.2, 3.5
    frequencies, lengths, lows = gaussian_tables(scales, weight, ratio)
    assert np.array_equal(-lows, np.ceil(5 * ratio * scales))
    for scale, table, low in zip(
        scales, np.split(frequencies, np.cumsum(lengths)), lows, strict=False
    ):
        parts = ((1 - weight, NormalDist(0, scale)), (weight, NormalDist(0, ratio * scale)))
        edges = np.arange(low, -low + 2) - 0.5
        cdf = sum(w * np.array([part.cdf(edge) for edge in edges]) for w, part in parts)
        assert np.allclose(table[:-1] / TOTAL, np.diff(cdf), atol=1e-5)
        assert np.array_equal(table[:-1], table[-2::-1]), "symmetric"


@pytest.mark.parametrize("tail", [(-0.1, 2.0), (1.1, 2.0), (0.1, 0.5), (0.1, math.nan)])
def test_impossible_mixtures_are_refused(tail):
    with pytest.raises(ValueError, match="impossible"):
        gaussian_tables([1.0], *tail)
