"""docs/format.md is enough: range coder, order of symbols, programs and passes, written from it alone."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from test_entropy import random_model

from aiocodec.config import CHECKERBOARD, QUADTREE, EntropyConfig
from aiocodec.container import unpack, unpack_latents
from aiocodec.errors import BitstreamError
from aiocodec.latents import LatentCoder
from aiocodec.rangecoder import Decoder, Encoder, Tables
from aiocodec.training.release import frozen_of, gaussian_tables, quantise

FORMAT = Path(__file__).parents[1] / "docs" / "format.md"
GOLDEN = Path(__file__).parent / "golden"


class Refused(Exception):
    pass


class WrittenDecoder:
    def __init__(self, data):
        self.words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
        self.missing = 0  # words that were read behind the last one
        self.offset = self.next_word() << 32 | self.next_word()
        self.range = 2**64 - 1

    def next_word(self):
        self.missing += not self.words
        return self.words.pop(0) if self.words else 0

    def decode(self, frequencies):
        scale = self.range >> 24
        quantile = self.offset // scale
        if quantile >= 2**24:
            raise Refused
        i = left = 0
        while left + frequencies[i] <= quantile:
            left += frequencies[i]
            i += 1
        self.offset -= scale * left
        self.range = scale * frequencies[i]
        if self.range < 2**32:
            self.offset = self.offset << 32 | self.next_word()
            self.range <<= 32
        return i

    def finish(self):
        if self.words or self.offset >= 2**33 - 1:
            raise Refused

    def call(self, indexes, tables):
        """The symbols of one call; `tables` has (frequencies, low) for every table."""
        symbols, escaped = {}, {}
        for at in sorted(range(len(indexes)), key=lambda at: indexes[at]):
            frequencies, low = tables[indexes[at]]
            entry = self.decode(frequencies)
            symbols[at] = low + entry
            if entry == len(frequencies) - 1:
                escaped[at] = None
        for at in escaped:
            escaped[at] = self.decode(uniform(17))
        codes = {at: k for at, k in escaped.items() if k < 2}
        for k in range(2, 17):
            for at in escaped:
                if escaped[at] == k:
                    codes[at] = 2 ** (k - 1) + self.decode(uniform(2 ** (k - 1)))
        if 65535 in codes.values():
            raise Refused
        symbols |= {at: -(code + 1) // 2 if code % 2 else code // 2 for at, code in codes.items()}
        return [symbols[at] for at in range(len(indexes))]


class WrittenEncoder:
    def __init__(self):
        self.words, self.lower, self.range = [], 0, 2**64 - 1

    def encode(self, i, frequencies):
        scale = self.range >> 24
        self.lower += scale * sum(frequencies[:i])
        self.range = scale * frequencies[i]
        self.carry()
        if self.range < 2**32:
            self.words.append(self.lower >> 32)
            self.lower = (self.lower << 32) % 2**64
            self.range <<= 32

    def carry(self):
        if self.lower >= 2**64:
            self.lower -= 2**64
            k = len(self.words) - 1
            while self.words[k] == 2**32 - 1:
                self.words[k] = 0
                k -= 1
            self.words[k] += 1

    def finish(self):
        if self.range == 2**64 - 1:
            return b""
        upper = (self.lower + self.range) % 2**64
        self.lower += 2**32 - 1
        self.carry()
        self.words.append(self.lower >> 32)
        if upper >> 32 == self.lower >> 32:
            self.words.append(0)
        return b"".join(word.to_bytes(4, "little") for word in self.words)


def uniform(m):
    p = 2**24 // m
    return [p] * (m - 1) + [2**24 - (m - 1) * p]


def random_tables(rng):
    """Frequencies, lengths and lows; of all shapes, from even ones to nearly certain ones."""
    lengths = rng.integers(2, 30, rng.integers(1, 20))
    frequencies = [quantise(rng.random(n) ** rng.choice([0, 1, 9, 99]) + 1e-9) for n in lengths]
    return np.concatenate(frequencies), lengths, rng.integers(-20, 10, len(lengths))


def written(frequencies, lengths, lows):
    """What `Tables` gets, as `WrittenDecoder.call` takes it."""
    split = np.split(np.asarray(frequencies), np.cumsum(lengths)[:-1])
    return [(table.tolist(), int(low)) for table, low in zip(split, lows, strict=True)]


def random_symbols(rng, count):
    """Of all magnitudes, most of them small."""
    symbols = rng.integers(-32767, 32768, count)
    return symbols >> rng.integers(0, 17, count) * (rng.random(count) < 0.9)


@pytest.mark.parametrize("seed", range(40))
def test_the_written_decoder_reads_what_the_encoder_writes(seed):
    rng = np.random.default_rng(seed)
    calls, encoder = [], Encoder()
    for _ in range(rng.integers(1, 5)):
        arrays = random_tables(rng) if rng.random() < 0.7 else gaussian_tables([0.1, 1.5, 40.0])
        symbols = random_symbols(rng, rng.choice([0, 1, 2, 7, 200]))
        indexes = rng.integers(0, len(arrays[1]), len(symbols))
        encoder.encode(symbols, indexes, Tables(*arrays))
        calls.append((symbols.tolist(), indexes.tolist(), written(*arrays)))
    decoder = WrittenDecoder(encoder.finish())
    for symbols, indexes, tables in calls:
        assert decoder.call(indexes, tables) == symbols
    decoder.finish()


def test_every_magnitude_escapes_as_written():
    symbols = [sign * (2**k + d) for k in range(15) for d in (-1, 0, 1) for sign in (-1, 1)]
    symbols += [32767, -32767]
    arrays = [2**23, 2**23], [2], [100]
    encoder = Encoder()
    encoder.encode(symbols, [0] * len(symbols), Tables(*arrays))
    decoder = WrittenDecoder(encoder.finish())
    assert decoder.call([0] * len(symbols), written(*arrays)) == symbols
    decoder.finish()


@pytest.mark.parametrize("seed", range(40))
def test_any_words_decode_or_are_refused_as_written(seed):
    rng = np.random.default_rng(seed)
    arrays = random_tables(rng)
    tables = Tables(*arrays)
    indexes = rng.integers(0, len(tables), rng.integers(1, 40)).tolist()
    encoder = Encoder()
    encoder.encode(random_symbols(rng, len(indexes)), indexes, tables)
    good = encoder.finish()
    streams = [rng.bytes(4 * size) for size in range(12)] + [b"\xff" * 8, good[:-4], good + b"0123"]
    streams += [good[:at] + rng.bytes(1) + good[at + 1 :] for at in range(0, len(good), 3)]
    for words in streams:
        theirs, ours = Decoder(words), WrittenDecoder(words)
        try:
            expected = theirs.decode(indexes, tables).tolist()
            theirs.finish()
        except BitstreamError as fault:
            try:
                ours.call(indexes, written(*arrays))
                ours.finish()
            except Refused:
                continue
            assert "behind their words" in str(fault) and ours.missing >= 2
        else:
            assert ours.call(indexes, written(*arrays)) == expected
            ours.finish()


def assert_written_the_same(entries, frequencies):
    """The words; `entries` are of a single table, and none of them is its escape."""
    encoder, same = Encoder(), WrittenEncoder()
    tables = Tables(frequencies, [len(frequencies)], [0])
    encoder.encode(entries, [0] * len(entries), tables)
    for entry in entries:
        same.encode(entry, frequencies)
    words = same.finish()
    assert words == encoder.finish()
    return words


@pytest.mark.parametrize("seed", range(20))
def test_the_written_encoder_writes_the_same_words(seed):
    rng = np.random.default_rng(seed)
    for frequencies, _ in [*written(*random_tables(rng)), (uniform(17), 0), (uniform(2**10), 0)]:
        for count in (*range(10), 50):
            assert_written_the_same(rng.integers(0, len(frequencies) - 1, count), frequencies)


def test_carries_run_through_many_words():
    """Entries around the middle of the first interval hold back words upon words, until the last
    one decides whether a carry runs through all of them."""
    frequencies = [5_000_001, 7_000_000, 2**24 - 12_000_002, 1]
    middle = WrittenDecoder(bytes([0, 0, 0, 128]))
    entries = [middle.decode(frequencies) for _ in range(200)]
    starts = {
        assert_written_the_same([*entries[:count], last], frequencies)[:12]
        for count in range(100, 200)
        for last in (0, 2)
    }
    assert starts == {b"\xff\xff\xff\x7f" + b"\xff" * 8, b"\0\0\0\x80" + bytes(8)}


def test_the_example_file_is_one():
    text = FORMAT.read_text("utf-8")
    example = text[text.index("    8A 41 49 43  02") : text.index("## Range coder")]
    rows = re.findall(r"^ +((?:[0-9A-F]{2} {1,2})*[0-9A-F]{2})\b(?:  |$)", example, re.MULTILINE)
    container = unpack(bytes.fromhex("".join(rows)))
    latents = unpack_latents(container.chunks[0][1], container.header.version)
    assert (latents.z_crc, latents.symbols_crc) == (0x0FFEF00D, 0xDEADBEEF)
    assert latents.words == (0x01020304).to_bytes(4, "little")


# --------------------------------------------------------------------------- the frozen model


def summary(integers):
    """What a golden file says of a list or an array of integers."""
    flat = np.asarray(integers, "<i4").reshape(-1)
    return {
        "count": len(flat),
        "crc32": f"{zlib.crc32(flat.tobytes()):08x}",
        "first": flat[:8].tolist(),
        "last": flat[-8:].tolist(),
    }


def written_file(data):
    """The version, quality, width, height, flags, fingerprint and chunks of an intact file."""

    def number(start, size):
        return int.from_bytes(data[start : start + size], "little")

    def intact(start, stop):
        return zlib.crc32(data[start:stop]) == number(stop, 4)

    version, flags, quality, width, height = (
        number(at, size) for at, size in ((4, 1), (6, 1), (7, 1), (8, 4), (12, 4))
    )
    right = [data[:4] == b"\x8aAIC", version in (1, 2), data[5] == 0, quality <= 100]
    if not all(right) or not intact(0, 28) or number(24, 4) != len(data) - 32:
        raise Refused
    chunks, at = {}, 32
    while at < len(data):
        start, kind, length, shift = at, data[at], 0, 0
        while True:
            at += 1
            length |= (data[at] & 127) << shift
            shift += 7
            if data[at] < 128:
                break
        chunks[kind] = data[at + 1 : at + 1 + length]
        at += 1 + length
        if not intact(start, at):
            raise Refused
        at += 4
    return version, quality, width, height, flags, data[16:24].hex(), chunks


def written_weights(fingerprint):
    """The tensors of the frozen model with this fingerprint, and the graph of g_s."""
    folder = FORMAT.parents[1] / "weights"
    models = json.loads((folder / "manifest.json").read_text("utf-8"))["models"].values()
    model = next(model for model in models if model["fingerprint"] == fingerprint)
    tensors = {k: v for part in model["entropy"] for k, v in load_file(folder / part).items()}
    return tensors, (folder / model["synthesis"]["file"]).read_bytes()


class WrittenModel:
    """A frozen model run by its program in int64, with numpy alone."""

    def __init__(self, tensors):
        self.tensors = {name: np.asarray(t).astype(np.int64) for name, t in tensors.items()}
        self.program = json.loads(bytes(self.tensors["program"].astype(np.uint8)))

    def saturate(self, x):
        return np.clip(x, -self.program["activation_max"], self.program["activation_max"])

    def run(self, layers, x):
        for kind, *rest in layers:
            if kind in ("conv1x1", "dw3x3"):
                weight, bias, e = (
                    self.tensors[f"{rest[0]}.{p}"] for p in ("weight", "bias", "exponent")
                )
                if kind == "conv1x1":
                    s = np.einsum("oi,ihw->ohw", weight[:, :, 0, 0], x)
                else:
                    h, w = x.shape[1:]
                    pad = np.pad(x, ((0, 0), (1, 1), (1, 1)))
                    s = sum(
                        weight[:, 0, i, j, None, None] * pad[:, i : i + h, j : j + w]
                        for i in range(3)
                        for j in range(3)
                    )
                e = e[:, None, None]
                x = self.saturate((2 * (s + bias[:, None, None]) + (1 << e)) >> (e + 1))
            elif kind == "leaky":
                x = np.maximum(x, (x + 4) >> 3)
            elif kind == "residual":
                x = self.saturate(x + self.run(rest[0], x))
            elif kind == "shuffle":
                c, h, w = x.shape
                x = x.reshape(c // 4, 2, 2, h, w).transpose(0, 3, 1, 4, 2)
                x = x.reshape(c // 4, 2 * h, 2 * w)
        return x

    def decode(self, words, width, height, quality):
        """The symbols of a file, z and y in coding order, v and y_hat of every element of y, and the
        values on the way that golden files come with, as docs/format.md describes them."""
        p, networks = self.program, self.program["networks"]
        tables = {
            which: written(
                *(self.tensors[f"tables_{which}.{x}"] for x in ("frequencies", "lengths", "lows"))
            )
            for which in "yz"
        }
        decoder = WrittenDecoder(words)
        level = (2 * quality * (p["quality_levels"] - 1) + 100) // 200
        h, w = -(-height // p["stride"]), -(-width // p["stride"])
        numbers = [level * p["hyper"] + c for c in range(p["hyper"]) for _ in range(h * w)]
        symbols = decoder.call(numbers, tables["z"])
        steps = {"z": summary(symbols)}
        z = np.array(symbols).reshape(p["hyper"], h, w)
        told = self.tensors["embedding"][level][:, None, None] if "embedding" in self.tensors else 0
        x = self.saturate(z * 2 ** p["fraction"] + told)
        features = self.run(networks["fusion"], self.run(networks["h_s"], x))
        steps |= {"features": summary(features), "passes": []}
        _, index, mean = np.split(features, 3)
        n, order = p["latents"], p["order"]
        unit = 2 ** p["fraction"] // p["mean_unit"]
        v = np.zeros((n, 4 * h, 4 * w), np.int64)
        for k in range(1 + max(q for group in order for row in group for q in row)):
            index_k, mean_k = index, mean
            if k > 0:
                x = np.concatenate([self.saturate(v), features])
                for network in (f"adaptor_{k}", "body", "head"):
                    x = self.run(networks[network], x)
                more_index, more_mean = np.split(x, 2)
                index_k, mean_k = self.saturate(index + more_index), self.saturate(mean + more_mean)
            half = 2 ** p["fraction"] // p["index_unit"]
            table = p["scale_zero"] + (2 * index_k + half) // (2 * half)
            table = np.clip(table, 0, p["scales"] - 1)
            places = [
                place
                for place in np.ndindex(v.shape)
                if order[place[0] * len(order) // n][place[1] % 2][place[2] % 2] == k
            ]
            coded_with = [int(table[place]) for place in places]
            found = decoder.call(coded_with, tables["y"])
            steps["passes"].append({"tables": summary(coded_with), "symbols": summary(found)})
            for place, symbol in zip(places, found, strict=True):
                v[place] = symbol * unit + mean_k[place]
            symbols += found
        decoder.finish()
        y_hat = self.dequantised(v, features[:n])
        return np.array(symbols, "<i4"), v, y_hat, steps | {"v": summary(v)}

    def dequantised(self, v, step):
        p = self.program
        most = p["step_bits"] * 2 ** p["fraction"]
        sizes = 2.0 ** (np.clip(step, -most, most) / 2 ** p["fraction"])
        return (v / (2 ** p["fraction"] // p["mean_unit"]) * sizes).astype(np.float32)


def synthesised(graph, y_hat, width, height, quality, flags):
    """The pixels of a whole picture, by the graph of its model."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    inputs = {"y_hat": y_hat[None], "quality": np.array([quality], np.float32)}
    (x_hat,) = session.run(["x_hat"], inputs)
    x_hat = x_hat[0, :, :height, :width]
    if flags & 1:
        x_hat = np.repeat(x_hat.mean(0, keepdims=True), 3, axis=0)
    return np.clip(np.floor(x_hat * 255 + 0.5), 0, 255).transpose(1, 2, 0)


@pytest.mark.parametrize("order", [CHECKERBOARD, QUADTREE], ids=["two", "four"])
def test_latents_are_decoded_by_the_document_alone(order):
    model = random_model(EntropyConfig(8, 6, 12, order, quality_levels=5), 1, 0.6)
    coder = LatentCoder(frozen_of(model))
    torch.manual_seed(0)
    latents = coder.encode(torch.randn(8, 8, 4) * 3, torch.randn(6, 2, 1) * 9, 30)
    model = WrittenModel(coder.entropy.frozen.tensors)
    symbols, v, found, _ = model.decode(latents.words, 64, 100, 30)
    assert zlib.crc32(symbols[: 6 * 2].tobytes()) == latents.z_crc
    assert zlib.crc32(symbols.tobytes()) == latents.symbols_crc
    y_hat = coder.decode(latents, 64, 100, 30)
    steps = coder.entropy.steps(
        coder.entropy.features(torch.tensor(symbols[:12]).view(6, 2, 1), 30)
    )
    assert torch.equal(y_hat, (torch.from_numpy(v).double() / 128).float() * steps)
    assert np.allclose(found, y_hat, rtol=1e-6, atol=0)


@pytest.mark.parametrize("golden", sorted(GOLDEN.glob("*.aic")), ids=lambda path: path.stem)
def test_golden_files_are_decoded_by_the_document_alone(golden):
    """To the symbols, the values on the way, and, by the graph that ships, the pixels."""
    version, quality, width, height, flags, fingerprint, chunks = written_file(golden.read_bytes())
    tensors, graph = written_weights(fingerprint)
    latents, before = chunks[0x01], 4 * version  # the CRC of all symbols is the last one
    model = WrittenModel(tensors)
    symbols, _, y_hat, steps = model.decode(latents[before:], width, height, quality)
    assert zlib.crc32(symbols.tobytes()) == int.from_bytes(latents[before - 4 : before], "little")
    assert steps == json.loads(golden.with_suffix(".json").read_text())["steps"]
    rgb = synthesised(graph, y_hat, width, height, quality, flags)
    expected = np.asarray(Image.open(golden.with_suffix(".png")).convert("RGB"))
    assert np.abs(rgb - expected).max() <= 1
