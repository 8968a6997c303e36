"""Integer symbols and integer frequency tables <-> bytes, by range coding.

Everything that decides a bit is an integer here, so the same symbols and tables give the same bytes
on every machine. Each symbol names the table it is coded with by an index:

    tables = Tables(frequencies, lengths, lows)
    encoder = Encoder()
    encoder.encode(symbols, indexes, tables)
    words = encoder.finish()

    decoder = Decoder(words)
    symbols = decoder.decode(indexes, tables)
    decoder.finish()

One call of `encode` writes its symbols sorted by table (stably), all those of one table in one go,
and then the values of the escaped symbols, in that same order:

    magnitudes   the number of significant bits k in 0..16 of each value's zigzag code
                 (0, -1, 1, -2, ... -> 0, 1, 2, 3, ...), uniform over 17
    remainders   for k = 2, 3, ..., 16: the k - 1 bits below the leading one of each value that has
                 k bits, uniform over 2^(k-1)
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import constriction  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import ArrayLike, NDArray

from aiocodec.errors import BitstreamError

PRECISION = 24
"""Bits of a probability: the frequencies of every table sum to 1 << PRECISION."""

MAX_MAGNITUDE = (1 << 15) - 1
"""The largest |symbol| that can be coded, in a table or by escape."""

SLACK = 64
"""Bits by which the symbols of a stream can take up more than its words have: zeros at the end of a
stream are not written."""

CHUNK = 1 << 20
"""Symbols that are sorted or decoded at once, so that memory stays bounded."""

_TOTAL = 1 << PRECISION
_ESCAPE_BITS = 16  # of the zigzag code of +-MAX_MAGNITUDE

_Model = constriction.stream.model


class Tables:
    """T frequency tables over runs of integers, each with an escape for all other integers.

    Table t gives its first L_t - 1 entries to the symbols lows[t], lows[t] + 1, ...,
    lows[t] + L_t - 2 and its last one to the escape.
    """

    def __init__(self, frequencies: ArrayLike, lengths: ArrayLike, lows: ArrayLike) -> None:
        """Check and copy the tables.

        Args:
            frequencies: integers [sum(lengths)], all tables one behind the other; each is at least
                1, and those of one table sum to 1 << PRECISION.
            lengths: integers [T], T >= 1, the entries L_t >= 2 of each table, escape included.
            lows: integers [T], the first symbol of each table.

        Raises:
            ValueError: the arrays break one of these rules, or a table has a symbol beyond
                +-MAX_MAGNITUDE.
        """
        self._lengths, self._lows, counts = (
            _integers(name, values, low, high).astype(np.int32)
            for name, values, low, high in (
                ("lengths", lengths, 2, 2 * MAX_MAGNITUDE + 2),
                ("lows", lows, -MAX_MAGNITUDE, MAX_MAGNITUDE),
                ("frequencies", frequencies, 1, _TOTAL),
            )
        )
        if not len(self._lengths) == len(self._lows) > 0:
            raise ValueError(f"{len(self._lengths)} lengths but {len(self._lows)} lows")
        if np.any(self._lows + self._lengths - 2 > MAX_MAGNITUDE):
            raise ValueError(f"a table has symbols beyond {MAX_MAGNITUDE}")
        if self._lengths.sum() != len(counts):
            raise ValueError(
                f"lengths ask for {self._lengths.sum()} frequencies, not {len(counts)}"
            )
        self._frequencies = np.split(counts, np.cumsum(self._lengths)[:-1])
        for t, table in enumerate(self._frequencies):
            if table.sum(dtype=np.int64) != _TOTAL:
                raise ValueError(f"table {t} sums to {table.sum(dtype=np.int64)}, not {_TOTAL}")
        self._bits = [PRECISION - np.log2(table) for table in self._frequencies]
        self._least = np.array([bits.min() for bits in self._bits])
        self._models: dict[int, Any] = {}  # t -> constriction's model of table t, once it was used

    def __len__(self) -> int:
        """The number of tables, T."""
        return len(self._lengths)

    def code_length(self, symbols: ArrayLike, indexes: ArrayLike) -> float:
        """The ideal length, in bits, of what `Encoder.encode` writes for the same arguments.

        Args and errors are those of `Encoder.encode`. The real length is within 0.5 % and 16 bytes
        of this one.
        """
        bits = 0.0
        for t, entries, escaped in self._entries(symbols, indexes):
            used = np.bincount(entries, minlength=len(self._frequencies[t]))
            bits += float(used @ self._bits[t])
            extra = _bit_lengths(_zigzag(escaped)) - 1
            bits += len(escaped) * math.log2(_ESCAPE_BITS + 1) + float(extra.clip(min=0).sum())
        return bits

    def used(self, symbols: ArrayLike, indexes: ArrayLike) -> NDArray[np.int64]:
        """How often `Encoder.encode` codes each entry for the same arguments, int64 [sum(lengths)], as
        the frequencies are ordered. Args and errors are those of `Encoder.encode`."""
        counts = [np.zeros(length, np.int64) for length in self._lengths]
        for t, entries, _ in self._entries(symbols, indexes):
            counts[t] += np.bincount(entries, minlength=len(counts[t]))
        return np.concatenate(counts)

    def least_bits(self, tables: ArrayLike) -> float:
        """The fewest bits in which symbols of these tables, one each, can be coded."""
        counts = np.bincount(self._keys(tables), minlength=len(self))
        return float(counts @ self._least)

    def _keys(self, indexes: ArrayLike) -> NDArray[Any]:
        """`indexes` in the smallest type, as numpy sorts integers of up to 16 bits in linear time.

        Raises ValueError if an index is not in 0..T - 1.
        """
        keys = _integers("indexes", indexes, 0, len(self) - 1)
        return keys.astype(np.min_scalar_type(len(self) - 1), copy=False)

    def _entries(
        self, symbols: ArrayLike, indexes: ArrayLike
    ) -> Iterator[tuple[int, NDArray[np.int32], NDArray[np.int32]]]:
        """For each table that occurs, ascending, and in pieces: (table, its entries to code, symbols
        escaped).

        Raises ValueError, before anything else, if the arguments cannot be coded.
        """
        values = _integers("symbols", symbols, -MAX_MAGNITUDE, MAX_MAGNITUDE)
        keys = self._keys(indexes)
        if len(values) != len(keys):
            raise ValueError(f"{len(values)} symbols but {len(keys)} indexes")
        ordered = np.empty_like(values)
        groups = []
        for piece, order, runs in _sorted(keys, len(self)):
            chunk = values[piece][order]
            for t, run, place in runs:
                ordered[place] = chunk[run]
                groups.append((t, place))
        del values, keys
        for t, place in _merged(groups):
            escape = np.uint32(self._lengths[t] - 1)
            for piece in _pieces(place):
                group = ordered[piece].astype(np.int32, copy=False)
                # as unsigned numbers, symbols below the table are far above it
                entries = np.minimum((group - self._lows[t]).view(np.uint32), escape)
                yield t, entries.view(np.int32), group[entries == escape]

    def _model(self, t: int) -> Any:
        """Constriction's model of table t: entry i has exactly the integer frequency given for it.

        Constriction gives each entry 1 and shares out the rest in proportion. The rest is the sum
        of frequencies - 1, so the proportion is 1, and sums below 2^53 are exact in float64.
        """
        if t not in self._models:
            weights = (self._frequencies[t] - 1).astype(np.float64)
            self._models[t] = _Model.Categorical(weights, lazy=False, perfect=False)
        return self._models[t]


class Encoder:
    """Writes symbols to a stream; `Decoder` reads them in the same order."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def encode(self, symbols: ArrayLike, indexes: ArrayLike, tables: Tables) -> None:
        """Append symbols to the stream; call it as often as there are things to code.

        Args:
            symbols: integers [n], within +-MAX_MAGNITUDE.
            indexes: integers [n], the table of each symbol, in 0..len(tables) - 1.
            tables: what the symbols are coded with.

        Raises:
            ValueError: the arguments are not as described; nothing was written.
        """
        escaped = []
        for t, entries, values in tables._entries(symbols, indexes):
            self._coder.encode(entries, tables._model(t))
            escaped.append(values)
        if escaped:
            self._encode_escaped(np.concatenate(escaped))

    def finish(self) -> bytes:
        """The stream as little-endian 32-bit words; empty if nothing was encoded."""
        words: NDArray[np.uint32] = self._coder.get_compressed()
        return words.astype("<u4").tobytes()

    def _encode_escaped(self, values: NDArray[np.int32]) -> None:
        codes = _zigzag(values)
        lengths = _bit_lengths(codes)
        if len(values):
            self._coder.encode(lengths, _Model.Uniform(_ESCAPE_BITS + 1))
        for k in range(2, _ESCAPE_BITS + 1):
            group = codes[lengths == k]
            if len(group):
                leading = 1 << (k - 1)
                self._coder.encode(group - leading, _Model.Uniform(leading))


class Decoder:
    """Reads what `Encoder` wrote, given the same indexes and tables in the same calls.

    Bytes that no encoder wrote either raise BitstreamError or decode to some symbols within
    +-MAX_MAGNITUDE: a range coder has no redundancy to tell. Use a checksum for that.
    """

    def __init__(self, words: bytes) -> None:
        """Start at the beginning of a stream of little-endian 32-bit words.

        Raises:
            BitstreamError: `words` is not a whole number of words.
        """
        if len(words) % 4:
            raise BitstreamError(f"coded symbols are cut off: {len(words)} bytes, not in fours")
        self._coder = constriction.stream.queue.RangeDecoder(
            np.frombuffer(words, dtype="<u4").astype(np.uint32)
        )
        self._bits_left = 8.0 * len(words) + SLACK

    def decode(self, indexes: ArrayLike, tables: Tables) -> NDArray[np.int16]:
        """The symbols [n] of the next call of `Encoder.encode`, in the order it got them.

        Args:
            indexes: integers [n], the table of each symbol, in 0..len(tables) - 1.
            tables: what the symbols were coded with.

        Raises:
            BitstreamError: the stream is invalid; the decoder is of no more use.
            ValueError: an index is out of range.
        """
        keys = tables._keys(indexes)
        chunks = list(_sorted(keys, len(tables), orders=False))
        ordered = np.empty(len(keys), dtype=np.int16)
        escapes = []  # positions in `ordered`
        for t, place in _merged((t, place) for _, _, runs in chunks for t, _, place in runs):
            for piece in _pieces(place):
                entries = self._take(tables._model(t), piece.stop - piece.start, tables._bits[t])
                ordered[piece] = entries + tables._lows[t]
                escapes.append(np.flatnonzero(entries == tables._lengths[t] - 1) + piece.start)
        if escapes:
            positions = np.concatenate(escapes)
            ordered[positions] = self._decode_escaped(len(positions))
        symbols = np.empty(len(keys), dtype=np.int16)
        for (piece, order, _), (_, _, runs) in zip(_sorted(keys, len(tables)), chunks, strict=True):
            chunk = np.empty(len(order), dtype=np.int16)
            for _, run, place in runs:
                chunk[run] = ordered[place]
            symbols[piece][order] = chunk
        return symbols

    def finish(self) -> None:
        """Check that the stream is used up.

        The coder reads ahead, so one surplus word may pass; and missing words read as 0, so a
        stream that was cut short may pass.

        Raises:
            BitstreamError: there is more to decode.
        """
        if not self._coder.maybe_exhausted():
            raise BitstreamError("coded symbols do not end where they should")

    def _decode_escaped(self, count: int) -> NDArray[np.int32]:
        if count == 0:
            return np.empty(0, dtype=np.int32)
        same = np.full(_ESCAPE_BITS + 1, math.log2(_ESCAPE_BITS + 1))
        lengths = self._take(_Model.Uniform(_ESCAPE_BITS + 1), count, same)
        codes = (lengths > 0).astype(np.int32)  # right for lengths 0 and 1
        for k in range(2, _ESCAPE_BITS + 1):
            group = np.flatnonzero(lengths == k)
            if len(group):
                leading = 1 << (k - 1)
                codes[group] = leading + self._take(_Model.Uniform(leading), len(group), k - 1)
        values = (codes >> 1) ^ -(codes & 1)
        if values.min() < -MAX_MAGNITUDE:  # the one 16-bit code beyond: 65535, for -32768
            raise BitstreamError("coded symbols are corrupt: a symbol is out of range")
        return values

    def _take(self, model: Any, count: int, bits: NDArray[np.float64] | int) -> NDArray[np.int32]:
        """Decode `count` >= 1 entries of one constriction model, which take up so many `bits`: of each
        entry, or of any."""
        try:
            entries: NDArray[np.int32] = self._coder.decode(model, count)
        except BaseException as error:
            # constriction reports invalid data by assertion; its panics derive from BaseException,
            # of a class that cannot be imported
            if isinstance(error, AssertionError) or type(error).__name__ == "PanicException":
                raise BitstreamError("coded symbols are corrupt") from error
            raise
        if isinstance(bits, int):
            self._bits_left -= count * bits
        else:
            self._bits_left -= float(np.bincount(entries, minlength=len(bits)) @ bits)
        if self._bits_left < 0:
            raise BitstreamError("coded symbols are corrupt: they go on behind their words")
        return entries


def _pieces(place: slice) -> Iterator[slice]:
    """A run in pieces, so that little memory is needed and a stream that is used up ends it early."""
    for start in range(place.start, place.stop, CHUNK):
        yield slice(start, min(start + CHUNK, place.stop))


def _sorted(
    keys: NDArray[Any], count: int, orders: bool = True
) -> Iterator[tuple[slice, NDArray[np.intp], list[tuple[int, slice, slice]]]]:
    """Sort keys 0..count - 1 stably, in pieces, so that little memory is needed beside them.

    Gives for each piece the slice of the keys that it is, the order that sorts it (nothing unless
    `orders`), and its runs of equal keys: (key, where in the sorted piece, where in all sorted).
    """
    pieces = [slice(start, start + CHUNK) for start in range(0, len(keys), CHUNK)]
    counts = np.array([np.bincount(keys[piece], minlength=count) for piece in pieces], np.int64)
    counts = counts.reshape(len(pieces), count)
    totals = counts.sum(axis=0)
    before = np.cumsum(totals) - totals + np.cumsum(counts, axis=0) - counts
    for i, piece in enumerate(pieces):
        order = np.argsort(keys[piece], kind="stable") if orders else np.empty(0, np.intp)
        runs, at = [], 0
        for key in np.flatnonzero(counts[i]).tolist():
            size, place = int(counts[i, key]), int(before[i, key])
            runs.append((key, slice(at, at + size), slice(place, place + size)))
            at += size
        yield piece, order, runs


def _merged(runs: Iterable[tuple[int, slice]]) -> list[tuple[int, slice]]:
    """Runs of one key as one, ascending by the key."""
    ends: dict[int, tuple[int, int]] = {}
    for key, place in runs:
        start, _ = ends.get(key, (place.start, 0))
        ends[key] = (start, place.stop)
    return [(key, slice(*ends[key])) for key in sorted(ends)]


def _integers(name: str, values: ArrayLike, low: int, high: int) -> NDArray[Any]:
    """`values` [n] as an array; ValueError unless they are integers in low..high."""
    array = np.asarray(values)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise ValueError(f"{name} are no list of integers: {array.dtype} {list(array.shape)}")
    if array.size and not low <= array.min() <= array.max() <= high:
        raise ValueError(f"{name} are not within {low}..{high}: {array.min()}..{array.max()}")
    return array if array.dtype.kind in "iu" else array.astype(np.int32)


def _zigzag(values: NDArray[np.int32]) -> NDArray[np.int32]:
    """0, -1, 1, -2, ... -> 0, 1, 2, 3, ..."""
    return (values << 1) ^ (values >> 31)


def _bit_lengths(values: NDArray[np.int32]) -> NDArray[np.int32]:
    """The number of significant bits of values >= 0; 0 for 0."""
    exponents: NDArray[np.int32] = np.frexp(values.astype(np.float64))[1]
    return exponents
