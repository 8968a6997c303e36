import math
from collections.abc import Iterator
from statistics import NormalDist

import constriction
import numpy as np
import pytest

from aiocodec.errors import BitstreamError
from aiocodec.rangecoder import (
    MAX_MAGNITUDE,
    PRECISION,
    Decoder,
    Encoder,
    Tables,
)
from aiocodec.training.release import gaussian_tables, quantise

TOTAL = 1 << PRECISION
SCALES = 2.0 ** ((np.arange(64) - 19) / 6)
GAUSSIAN = Tables(*gaussian_tables(SCALES))

# written out, so that no rounding of a Gaussian can move them: -1, 0, 1 and 3, rare escapes
GOLDEN = Tables([TOTAL // 4, TOTAL // 2, TOTAL // 4 - 1, 1, TOTAL - 1, 1], [4, 2], [-1, 3])
ESCAPING = Tables([TOTAL // 2, TOTAL // 2], [2], [7])  # half of the mass escapes


@pytest.fixture(autouse=True)
def _prints_nothing(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert capfd.readouterr() == ("", "")


def encoded(symbols, indexes, tables):
    encoder = Encoder()
    encoder.encode(symbols, indexes, tables)
    return encoder.finish()


def decoded(words, indexes, tables):
    decoder = Decoder(words)
    symbols = decoder.decode(indexes, tables)
    decoder.finish()
    return symbols


def assert_round_trip(symbols, indexes, tables):
    back = decoded(encoded(symbols, indexes, tables), indexes, tables)
    assert back.dtype == np.int16
    np.testing.assert_array_equal(back, symbols)


def gaussian_symbols(rng, indexes):
    return np.rint(rng.normal(size=len(indexes)) * SCALES[indexes]).astype(np.int32)


# --- round trips ---


def test_matching_symbols_come_back():
    rng = np.random.default_rng(0)
    indexes = rng.integers(0, 64, 50_000)
    assert_round_trip(gaussian_symbols(rng, indexes), indexes, GAUSSIAN)


@pytest.mark.parametrize("t", [0, 31, 63])
def test_symbols_of_a_single_table_come_back(t):
    rng = np.random.default_rng(t)
    indexes = np.full(1000, t)
    assert_round_trip(gaussian_symbols(rng, indexes), indexes, GAUSSIAN)


def test_each_table_once():
    assert_round_trip(np.arange(64) - 32, np.arange(64)[::-1], GAUSSIAN)


def test_every_possible_symbol_comes_back_by_escape():
    symbols = np.setdiff1d(np.arange(-MAX_MAGNITUDE, MAX_MAGNITUDE + 1), [7])
    symbols = np.random.default_rng(0).permutation(symbols)
    assert_round_trip(symbols, np.zeros(len(symbols), int), ESCAPING)


@pytest.mark.parametrize("symbol", [-MAX_MAGNITUDE, -1, 0, 1, 7, MAX_MAGNITUDE])
@pytest.mark.parametrize("count", [0, 1, 100])
def test_one_symbol_over_and_over(symbol, count):
    assert_round_trip(np.full(count, symbol), np.zeros(count, int), ESCAPING)
    assert_round_trip(np.full(count, symbol), np.arange(count) % 64, GAUSSIAN)


def test_symbols_anywhere_with_any_table():
    rng = np.random.default_rng(0)
    symbols = rng.integers(-MAX_MAGNITUDE, MAX_MAGNITUDE, 3000, endpoint=True)
    symbols >>= rng.integers(0, 16, 3000)  # all magnitudes
    assert_round_trip(symbols, rng.integers(0, 64, 3000), GAUSSIAN)


def test_tables_up_to_the_largest_magnitude():
    length = 2 * MAX_MAGNITUDE + 2
    widest = Tables(quantise(np.ones(length)), [length], [-MAX_MAGNITUDE])
    ends = Tables([TOTAL - 1, 1] * 2, [2, 2], [-MAX_MAGNITUDE, MAX_MAGNITUDE])
    symbols = np.array([-MAX_MAGNITUDE, 0, MAX_MAGNITUDE, -MAX_MAGNITUDE, MAX_MAGNITUDE])
    assert_round_trip(symbols, np.zeros(5, int), widest)
    assert_round_trip(symbols, np.array([0, 0, 0, 1, 1]), ends)


def test_more_tables_than_a_byte_or_two_can_count():
    for count in (300, 70_000):
        lows = np.arange(count) % 100
        tables = Tables(np.full(2 * count, TOTAL // 2), np.full(count, 2), lows)
        indexes = np.array([count - 1, 0, 256, count - 1, 255, 1])
        assert_round_trip(lows[indexes], indexes, tables)


def test_several_calls_share_one_stream():
    rng = np.random.default_rng(0)
    calls = []
    for tables, count in [
        (GAUSSIAN, 5000),
        (ESCAPING, 50),
        (GAUSSIAN, 0),
        (GOLDEN, 1),
        (GOLDEN, 9),
    ]:
        symbols = rng.integers(-9, 9, count)
        calls.append((symbols, rng.integers(0, len(tables), count), tables))
    encoder = Encoder()
    for call in calls:
        encoder.encode(*call)
    decoder = Decoder(encoder.finish())
    for symbols, indexes, tables in calls:
        np.testing.assert_array_equal(decoder.decode(indexes, tables), symbols)
    decoder.finish()


def test_nothing_is_no_bytes():
    assert Encoder().finish() == b""
    Decoder(b"").finish()
    assert encoded([], [], GAUSSIAN) == b""
    assert decoded(b"", np.empty(0, np.uint8), GAUSSIAN).shape == (0,)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.uint64, ">i4"])
def test_bytes_do_not_depend_on_dtypes_or_memory_layout(dtype):
    rng = np.random.default_rng(0)
    indexes = rng.integers(0, 64, 500)
    symbols = gaussian_symbols(rng, indexes)
    words = encoded(symbols, indexes, GAUSSIAN)
    assert encoded(symbols, indexes.astype(dtype), GAUSSIAN) == words
    spread = np.zeros((500, 3), dtype)
    spread[:, 1] = indexes
    wide = np.zeros((500, 2), np.int64)
    wide[:, 0] = symbols
    assert encoded(wide[:, 0], spread[:, 1], GAUSSIAN) == words
    np.testing.assert_array_equal(decoded(words, spread[:, 1], GAUSSIAN), symbols)
    np.testing.assert_array_equal(
        encoded(symbols[::-1], indexes[::-1], GAUSSIAN),
        encoded(symbols[::-1].copy(), indexes[::-1].copy(), GAUSSIAN),
    )


def test_arguments_are_left_as_they_are():
    symbols, indexes = np.array([90, -90, 0], np.int32), np.array([2, 1, 0], np.int32)
    symbols.flags.writeable = indexes.flags.writeable = False
    assert_round_trip(symbols, indexes, GAUSSIAN)


# --- exact bits ---


def test_golden_words():
    """These words may change only together with the bitstream version."""
    symbols = [0, 1, -1, 3, 0, 2, -2, 3, 0, MAX_MAGNITUDE, -MAX_MAGNITUDE, 3, 1000, 0]
    indexes = [0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 0, 1, 0, 0]
    words = encoded(symbols, indexes, GOLDEN)
    assert words.hex() == "e7ffffa50010c0fcfffffffffb3f00ff600280ffe181e17098bf2517"
    assert decoded(words, indexes, GOLDEN).tolist() == symbols


@pytest.mark.parametrize("name", ["gaussian", "skewed", "flat", "shortest"])
def test_constriction_uses_exactly_our_frequencies(name):
    """Both ends of each entry's interval decode to that entry, and so does no number beside it."""
    rng = np.random.default_rng(0)
    frequencies = {
        "gaussian": gaussian_tables([9.0])[0],
        "skewed": quantise(rng.dirichlet(np.full(300, 0.03))),
        "flat": quantise(np.ones(777)),
        "shortest": np.array([TOTAL - 1, 1]),
    }[name]
    frequencies[0] += frequencies[-1] - 1
    frequencies[-1] = 1  # so that one number means the escape, and what follows it is known
    tables = Tables(frequencies, [len(frequencies)], [0])
    ends = np.cumsum(frequencies)
    escape = len(frequencies) - 1
    model = constriction.stream.model.Uniform
    for entry, (first, last) in enumerate(zip(ends - frequencies, ends - 1, strict=True)):
        for number in (first, last):
            encoder = constriction.stream.queue.RangeEncoder()
            encoder.encode(np.array([number], np.int32), model(TOTAL))
            encoder.encode(np.array([16], np.int32), model(17))  # read after an escape only:
            encoder.encode(np.array([0], np.int32), model(1 << 15))  # zigzag code 1 << 15
            words = encoder.get_compressed().astype("<u4").tobytes()
            symbol = Decoder(words).decode([0], tables)[0]
            assert symbol == (1 << 14 if entry == escape else entry)


# --- sizes ---


@pytest.mark.parametrize("mismatch", [False, True])
def test_size_is_the_code_length(mismatch):
    rng = np.random.default_rng(0)
    for t in range(64):
        symbols = gaussian_symbols(rng, np.full(3000, t))
        indexes = np.full(3000, 63 - t if mismatch else t)
        size = len(encoded(symbols, indexes, GAUSSIAN))
        ideal = GAUSSIAN.code_length(symbols, indexes) / 8
        assert abs(size - ideal) <= 0.005 * ideal + 16


def test_matching_symbols_cost_their_entropy():
    """Exact expectations, over all symbols up to 8 standard deviations."""
    for t, scale in enumerate(SCALES.tolist()):
        gaussian = NormalDist(0, scale)
        entropy = length = 0.0
        for k in range(-math.ceil(8 * scale), 1):
            p = gaussian.cdf(k + 0.5) - gaussian.cdf(k - 0.5) if k else 1 - 2 * gaussian.cdf(-0.5)
            if p > 0:
                weight = p if k == 0 else 2 * p  # for k and -k
                entropy -= weight * math.log2(p)
                length += weight * GAUSSIAN.code_length([k], [t])
        assert entropy - 1e-9 < length < entropy * 1.001 + 6e-6  # the escape's 2^-18


def test_code_length_by_hand():
    assert GOLDEN.code_length([], []) == 0
    assert GOLDEN.code_length([0, -1, 0], [0, 0, 0]) == 4
    for value, low_bits in [(4, 3), (0, 0), (-1, 0), (1, 1), (-2, 1), (2, 2), (MAX_MAGNITUDE, 15)]:
        expected = 24 + math.log2(17) + low_bits
        assert GOLDEN.code_length([value], [1]) == pytest.approx(expected)


# --- invalid streams ---


def assert_fails_well(words, indexes, tables):
    try:
        symbols = decoded(words, indexes, tables)
    except BitstreamError:
        return
    assert symbols.dtype == np.int16 and symbols.shape == indexes.shape
    assert np.abs(symbols).max(initial=0) <= MAX_MAGNITUDE


@pytest.mark.parametrize("tables", [GAUSSIAN, ESCAPING, GOLDEN])
def test_garbage_is_refused_or_decodes_within_bounds(tables):
    rng = np.random.default_rng(0)
    for size in range(0, 400, 4):
        indexes = rng.integers(0, len(tables), 150)
        assert_fails_well(rng.bytes(size), indexes, tables)
    for words in (bytes(400), b"\xff" * 400, b"\xff" * 4):
        assert_fails_well(words, indexes, tables)


def test_truncations_and_flips_are_refused_or_decode_within_bounds():
    rng = np.random.default_rng(0)
    indexes = rng.integers(0, 40, 200)
    symbols = gaussian_symbols(rng, indexes)
    symbols[::20] = rng.integers(-MAX_MAGNITUDE, MAX_MAGNITUDE, 10)
    words = encoded(symbols, indexes, GAUSSIAN)
    for size in range(len(words)):
        assert_fails_well(words[:size], indexes, GAUSSIAN)
    for bit in range(8 * len(words)):
        flipped = bytearray(words)
        flipped[bit // 8] ^= 1 << bit % 8
        assert_fails_well(bytes(flipped), indexes, GAUSSIAN)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 4001])
def test_bytes_that_are_no_words_are_refused(size):
    with pytest.raises(BitstreamError, match=f"{size} bytes"):
        Decoder(bytes(size))


def test_surplus_words_are_refused():
    words = encoded(np.zeros(100, int), np.arange(100) % 64, GAUSSIAN)
    for surplus in (8, 12, 400):
        with pytest.raises(BitstreamError):
            decoded(words + b"\x5a" * surplus, np.arange(100) % 64, GAUSSIAN)


def test_all_but_all_is_refused():
    """The largest number that two words can hold is beyond the last interval."""
    with pytest.raises(BitstreamError):
        Decoder(b"\xff" * 8).decode([0], GAUSSIAN)


def test_an_escape_beyond_the_largest_magnitude_is_refused():
    model = constriction.stream.model.Uniform
    encoder = constriction.stream.queue.RangeEncoder()
    encoder.encode(np.array([1], np.int32), model(2))  # the escape of ESCAPING
    encoder.encode(np.array([16], np.int32), model(17))
    encoder.encode(np.array([(1 << 15) - 1], np.int32), model(1 << 15))  # zigzag code 65535
    with pytest.raises(BitstreamError, match="range"):
        Decoder(encoder.get_compressed().astype("<u4").tobytes()).decode([0], ESCAPING)


def test_panics_become_errors_and_interrupts_do_not(monkeypatch):
    class PanicException(BaseException):  # what pyo3 calls it
        pass

    class Stub:
        def __init__(self, error):
            self.error = error

        def decode(self, model, count):
            raise self.error

    for error, expected in [
        (PanicException(), BitstreamError),
        (AssertionError(), BitstreamError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (MemoryError(), MemoryError),
    ]:
        decoder = Decoder(b"")
        monkeypatch.setattr(decoder, "_coder", Stub(error))
        with pytest.raises(expected):
            decoder.decode([0], GAUSSIAN)


# --- arguments ---


@pytest.mark.parametrize(
    ("symbols", "indexes", "message"),
    [
        ([MAX_MAGNITUDE + 1], [0], "symbols"),
        ([-MAX_MAGNITUDE - 1], [0], "symbols"),
        ([np.iinfo(np.int64).min], [0], "symbols"),
        ([0.0], [0], "symbols"),
        ([[0]], [0], "symbols"),
        ([0], [64], "indexes"),
        ([0], [-1], "indexes"),
        ([0], [1 << 32], "indexes"),
        ([0], [0.0], "indexes"),
        ([0], 0, "indexes"),
        ([0, 0], [0], "2 symbols but 1 indexes"),
        ([], [0], "0 symbols but 1 indexes"),
    ],
)
def test_bad_arguments_are_refused_and_write_nothing(symbols, indexes, message):
    encoder = Encoder()
    encoder.encode([5, 500], [10, 11], GAUSSIAN)
    before = encoder.finish()
    with pytest.raises(ValueError, match=message):
        encoder.encode(symbols, indexes, GAUSSIAN)
    assert encoder.finish() == before
    with pytest.raises(ValueError, match=message):
        GAUSSIAN.code_length(symbols, indexes)
    if message == "indexes":
        with pytest.raises(ValueError, match=message):
            Decoder(before).decode(indexes, GAUSSIAN)


@pytest.mark.parametrize(
    ("frequencies", "lengths", "lows"),
    [
        ([TOTAL - 2, 1], [2], [0]),  # the sum is too small
        ([TOTAL, 1], [2], [0]),  # too large
        ([TOTAL, 0], [2], [0]),  # a zero
        ([TOTAL + 1, -1], [2], [0]),  # a negative
        ([TOTAL], [1], [0]),  # an escape alone
        ([TOTAL - 1, 1, 1], [2], [0]),  # more frequencies than the lengths say
        ([TOTAL - 1, 1], [3], [0]),  # fewer
        ([TOTAL - 1, 1, TOTAL, 1], [2, 2], [0, 0]),  # the second table is wrong
        ([TOTAL - 1, 1], [2], [0, 0]),  # lengths and lows differ
        ([], [], []),  # no table
        ([TOTAL - 1, 1], [2], [MAX_MAGNITUDE + 1]),  # beyond the largest magnitude
        ([TOTAL - 1, 1], [2], [-MAX_MAGNITUDE - 1]),
        ([TOTAL - 2, 1, 1], [3], [MAX_MAGNITUDE]),
        ([[TOTAL - 1, 1]], [2], [0]),  # no list
        ([TOTAL - 1.0, 1.0], [2], [0]),  # no integers
        ([TOTAL - 1, 1], [2.0], [0]),
    ],
)
def test_bad_tables_are_refused(frequencies, lengths, lows):
    with pytest.raises(ValueError):
        Tables(frequencies, lengths, lows)


def test_tables_are_copied():
    frequencies, lengths, lows = gaussian_tables([1.0, 2.0])
    tables = Tables(frequencies, lengths, lows)
    words = encoded([1, 30], [0, 1], tables)
    for array in (frequencies, lengths, lows):
        array[:] = 3
    assert decoded(words, [0, 1], tables).tolist() == [1, 30]
    assert len(tables) == 2


@pytest.mark.parametrize("scale", [1e-300, MAX_MAGNITUDE / 5])
def test_gaussian_tables_of_extreme_scales(scale):
    tables = Tables(*gaussian_tables([scale]))
    assert_round_trip([0, 1, -1, MAX_MAGNITUDE], [0, 0, 0, 0], tables)
