"""Laws that hold for any input, put to the test on generated ones.

The examples are the same in every run, and few enough for half a minute; with AIC_SLOW set they are new
each time, and twenty times as many.
"""

import importlib
import io
import json
import os
import re
import shutil
import signal
import sys
import zlib
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from test_cli import latents as coded_z
from test_entropy import FOUR, TWO, random_model

from aiocodec import container
from aiocodec.cli import main
from aiocodec.codec import Found
from aiocodec.container import (
    HEADER_SIZE,
    MAGIC,
    ChunkType,
    Flags,
    Header,
    Latents,
    pack,
    pack_latents,
    unpack,
    unpack_latents,
)
from aiocodec.errors import AicError, BitstreamError
from aiocodec.image import Picture, pack_alpha, read, unpack_alpha, write
from aiocodec.latents import LatentCoder
from aiocodec.pretrained import Manifest
from aiocodec.rangecoder import MAX_MAGNITUDE, PRECISION, Decoder, Encoder, Tables
from aiocodec.training.release import frozen_of

SLOW = "AIC_SLOW" in os.environ


def law(examples):
    return settings(
        derandomize=not SLOW,
        max_examples=examples * (20 if SLOW else 1),
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@pytest.fixture(autouse=True)
def denormal_numbers():
    """They are among the floats to try; what trains flushes them to zero, for the whole process."""
    torch.set_flush_denormal(False)


@st.composite
def mutations(draw, data):
    """A few bytes of `data` replaced, inserted, removed or moved, or its end cut off."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        part = draw(st.binary(max_size=8))
        match draw(st.sampled_from(["replace", "insert", "remove", "repeat", "cut"])):
            case "replace":
                data[at : at + len(part)] = part
            case "insert":
                data[at:at] = part
            case "remove":
                del data[at : at + draw(st.integers(1, 9))]
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 40))]
            case "cut":
                del data[at:]
    return bytes(data)


@st.composite
def flips(draw, data):
    """One bit of `data`, which is not empty, the other way round."""
    at = draw(st.integers(0, len(data) - 1))
    return data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]


# --------------------------------------------------------------------------- the container

payloads = st.binary(max_size=300) | st.sampled_from([bytes(n) for n in (127, 128, 16383, 16384)])
headers = st.builds(
    Header,
    quality=st.integers(0, 100),
    width=st.integers(1, 65535),
    height=st.integers(1, 65535),
    fingerprint=st.binary(min_size=8, max_size=8),
    flags=st.integers(0, 255).map(Flags),
    version=st.sampled_from([1, 2]),
)


@st.composite
def chunk_lists(draw):
    known = draw(st.sets(st.sampled_from(sorted(set(ChunkType) - {ChunkType.LATENTS}))))
    unknown = st.integers(0x80, 0xFF).filter(lambda kind: kind not in set(ChunkType))
    kinds = [ChunkType.LATENTS, *known, *draw(st.lists(unknown, max_size=3))]
    return [(int(kind), draw(payloads)) for kind in draw(st.permutations(kinds))]


files = st.builds(pack, headers, chunk_lists())


@law(150)
@given(header=headers, chunks=chunk_lists())
def test_any_header_and_chunks_come_back(header, chunks):
    data = pack(header, chunks)
    found = unpack(data, max_pixels=1 << 32)
    assert found.header == header and list(found.chunks) == chunks
    assert pack(found.header, found.chunks) == data
    assert len(data) <= HEADER_SIZE + sum(len(payload) + 10 for _, payload in chunks)


def opened(data):
    """What `unpack` makes of any bytes, None where it refuses them; nothing but an AicError may come."""
    try:
        found = unpack(data, max_pixels=1 << 32)
    except AicError as error:
        assert error.exit_code in (4, 5) and str(error).isprintable()
        return None
    assert pack(found.header, found.chunks) == data
    return found


@law(150)
@given(data=st.binary(max_size=100), magic=st.booleans())
def test_any_bytes_are_a_file_or_are_refused(data, magic):
    opened(MAGIC + data if magic else data)


@law(100)
@given(header=headers, body=st.binary(max_size=60))
def test_any_body_is_one_or_is_refused(header, body):
    """Behind a header that is right, also in its length."""
    fields = bytearray(pack(header, [(ChunkType.LATENTS, b"")])[:28])
    fields[24:28] = len(body).to_bytes(4, "little")
    opened(bytes(fields) + zlib.crc32(fields).to_bytes(4, "little") + body)


@law(300)
@given(data=st.data())
def test_a_changed_file_is_refused(data):
    whole = data.draw(files)
    changed = data.draw(flips(whole) | mutations(whole))
    assume(changed != whole)
    assert opened(changed) is None


@law(100)
@given(data=st.data())
def test_a_file_that_is_cut_is_refused(data):
    whole = data.draw(files)
    assert opened(whole[: data.draw(st.integers(0, len(whole) - 1))]) is None


@law(200)
@given(value=st.integers(0, (1 << 32) - 1))
@example(0x7F)
@example(0x80)
@example((1 << 35) - 1)
def test_lengths_come_back_in_the_fewest_bytes(value):
    coded = container._pack_leb128(value)
    assert len(coded) == max(1, -(-value.bit_length() // 7)) <= 5
    assert container._unpack_leb128(b"." + coded + b"\xff", 1) == (value, 1 + len(coded))


@law(200)
@given(
    data=st.binary(max_size=8)
    | st.lists(st.sampled_from([0, 0x80, 0xFF, 1]), max_size=7).map(bytes)
)
def test_a_length_has_one_spelling(data):
    try:
        value, end = container._unpack_leb128(data, 0)
    except BitstreamError:
        return
    assert container._pack_leb128(value) == data[:end]


@law(100)
@given(payload=st.binary(max_size=40), version=st.sampled_from([1, 2]))
def test_any_latents_payload_comes_back_or_is_refused(payload, version):
    try:
        latents = unpack_latents(payload, version)
    except BitstreamError:
        assert len(payload) % 4 or len(payload) < 4 * version
        return
    assert pack_latents(latents) == payload


# --------------------------------------------------------------------------- the range coder


@st.composite
def frequency_tables(draw):
    """Arguments of Tables: tables of every shape, even ones and nearly certain ones."""
    frequencies, lengths, lows = [], [], []
    for _ in range(draw(st.integers(1, 5))):
        size = draw(st.integers(2, 40))
        cuts = st.integers(1, (1 << PRECISION) - 1) | st.integers(1, 100)
        edges = sorted(draw(st.sets(cuts, min_size=size - 1, max_size=size - 1)))
        frequencies += np.diff([0, *edges, 1 << PRECISION]).tolist()
        lengths.append(size)
        most = MAX_MAGNITUDE - size + 2
        lows.append(draw(st.integers(-30, 10) | st.sampled_from([-MAX_MAGNITUDE, most])))
    return frequencies, lengths, lows


symbols = st.integers(-5, 5) | st.integers(-MAX_MAGNITUDE, MAX_MAGNITUDE)


@law(150)
@given(data=st.data())
def test_any_symbols_in_any_tables_come_back(data):
    calls, encoder, bits = [], Encoder(), 0.0
    for _ in range(data.draw(st.integers(0, 3))):
        tables = Tables(*data.draw(frequency_tables()))
        pairs = data.draw(
            st.lists(st.tuples(symbols, st.integers(0, len(tables) - 1)), max_size=60)
        )
        values, indexes = [a for a, _ in pairs], [b for _, b in pairs]
        encoder.encode(values, indexes, tables)
        bits += tables.code_length(values, indexes)
        calls.append((values, indexes, tables))
    words = encoder.finish()
    assert len(words) % 4 == 0 and len(words) <= bits / 8 * 1.005 + 16
    decoder = Decoder(words)
    for values, indexes, tables in calls:
        assert decoder.decode(indexes, tables).tolist() == values
    decoder.finish()


@law(150)
@given(words=st.binary(max_size=60), arguments=frequency_tables(), data=st.data())
def test_any_words_are_symbols_or_are_refused(words, arguments, data):
    tables = Tables(*arguments)
    indexes = data.draw(st.lists(st.integers(0, len(tables) - 1), max_size=40))
    try:
        decoder = Decoder(words)
        found = decoder.decode(indexes, tables)
        decoder.finish()
    except BitstreamError:
        return
    assert len(words) % 4 == 0 and len(found) == len(indexes)
    assert not len(found) or np.abs(found).max() <= MAX_MAGNITUDE
    encoder = Encoder()
    encoder.encode(found, indexes, tables)  # what was decoded can be coded
    again = Decoder(encoder.finish())
    assert again.decode(indexes, tables).tolist() == found.tolist()


# --------------------------------------------------------------------------- latents


@pytest.fixture(scope="module")
def coders():
    return [LatentCoder(frozen_of(random_model(config, 2, 1.0))) for config in (TWO, FOUR)]


floats = st.floats(-40, 40, width=32) | st.floats(width=32)


@st.composite
def latents(draw, program):
    """y and z of some size, of any floats."""
    h, w = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    seed = draw(st.integers(0, 2**32 - 1))
    rng, spread = np.random.default_rng(seed), draw(st.sampled_from([0.1, 3.0, 300.0, 1e9]))
    y = rng.normal(0, spread, (program.latents, 4 * h, 4 * w)).astype(np.float32)
    z = rng.normal(0, min(spread, 200), (program.hyper, h, w)).astype(np.float32)
    for array in (y, z):
        for value in draw(st.lists(floats, max_size=4)):
            array.flat[draw(st.integers(0, array.size - 1))] = value
    return torch.from_numpy(y), torch.from_numpy(z), draw(st.integers(0, 100))


@law(60)
@given(data=st.data())
def test_any_latents_come_back_as_symbols(coders, data):
    """Whatever the numbers, not-a-number among them: what is decoded is coded again to the same words,
    but where a symbol was held to its range."""
    coder = coders[data.draw(st.integers(0, 1))]
    y, z, quality = data.draw(latents(coder.program))
    width, height = 64 * z.shape[2], 64 * z.shape[1]
    coded = coder.encode(y.clone(), z, quality)
    y_hat = coder.decode(coded, width, height, quality)
    assert y_hat.shape == y.shape and y_hat.isfinite().all()
    smaller = coder.decode(coded, width - 63, height - 63, quality)
    assert torch.equal(smaller, y_hat)
    rounded = z.add(0.5).floor().nan_to_num(0).clamp(-coder.program.z_max, coder.program.z_max)
    steps = coder.entropy.steps(coder.entropy.features(rounded, quality))
    near = (y.abs() < 1000 * steps) & y.isfinite()
    assert ((y_hat - y).abs() <= steps * 0.5 + 1e-3 * steps)[near].all()


@law(60)
@given(data=st.data())
def test_changed_words_are_refused_or_mean_the_same(coders, data):
    coder = coders[data.draw(st.integers(0, 1))]
    y, z, quality = data.draw(latents(coder.program))
    size = 64 * z.shape[2], 64 * z.shape[1]
    coded = coder.encode(y, z, quality)
    tail = flips(coded.words[-8:]).map(lambda end: coded.words[:-8] + end)  # no other check sees it
    words = data.draw(tail | flips(coded.words) | mutations(coded.words) | st.binary(max_size=40))
    assume(words != coded.words)
    try:
        found = coder.decode(Latents(words, coded.symbols_crc, coded.z_crc), *size, quality)
    except BitstreamError:
        return
    assert torch.equal(found, coder.decode(coded, *size, quality))


# --------------------------------------------------------------------------- pictures


@st.composite
def pictures(draw):
    shape = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    gray = draw(st.booleans())
    colours = (1,) if gray else (3,)
    rgb = draw(arrays.arrays(np.uint8, (*shape, *colours)))
    alpha = draw(st.none() | arrays.arrays(np.uint8, shape))
    if alpha is not None and alpha.min() == 255:
        alpha[0, 0] = 254
    return Picture(
        rgb=np.ascontiguousarray(np.broadcast_to(rgb, (*shape, 3))), alpha=alpha, gray=gray
    )


def same_plane(a, b):
    return (a is None) == (b is None) and (a is None or np.array_equal(a, b))


@law(150)
@given(picture=pictures())
def test_a_png_file_has_every_bit_of_a_picture(picture):
    data = write(picture)
    found = read(data)
    assert np.array_equal(found.rgb, picture.rgb) and same_plane(found.alpha, picture.alpha)
    assert found.gray == picture.gray and not found.oriented and not found.sixteen_bit
    assert write(found) == data


@law(60)
@given(picture=pictures(), format=st.sampled_from(["TIFF", "WEBP", "BMP", "PPM"]))
def test_other_lossless_formats_have_every_colour(picture, format):
    found = read(write(picture, format))
    assert np.array_equal(found.rgb, picture.rgb)
    assert same_plane(found.alpha, picture.alpha if format in ("TIFF", "WEBP") else None)


@law(100)
@given(
    alpha=arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=20)),
    data=st.data(),
)
def test_an_alpha_plane_comes_back_or_is_refused(alpha, data):
    packed, size = pack_alpha(alpha), alpha.shape[::-1]
    assert np.array_equal(unpack_alpha(packed, *size), alpha)
    changed = data.draw(mutations(packed) | st.binary(max_size=60))
    with suppress(BitstreamError):
        assert unpack_alpha(changed, *size).shape == alpha.shape
    for other in ((size[0] + 1, size[1]), (size[0], size[1] + 1)):
        with pytest.raises(BitstreamError):
            unpack_alpha(packed, *other)


@law(150)
@given(data=st.data())
def test_a_changed_picture_is_read_or_refused(data):
    whole = data.draw(
        st.builds(write, pictures(), st.sampled_from(["PNG", "TIFF", "WEBP", "BMP", "PPM"]))
    )
    try:
        found = read(data.draw(mutations(whole)), max_pixels=1 << 20)
    except AicError as error:
        assert error.exit_code in (3, 6) and str(error).isprintable()
        return
    assert found.rgb.dtype == np.uint8 and found.rgb.shape[2] == 3 and found.rgb.size


# --------------------------------------------------------------------------- the command line


class Stub:
    """Stands for a Codec: makes files of nothing but a header, and gray pictures of them."""

    name, device = "stub", SimpleNamespace(type="cpu")
    fingerprint = Manifest.read().fingerprint(Manifest.read().models[0])

    def encode(self, picture, quality=50, *, strip=False, **options):
        height, width, _ = picture.rgb.shape
        note = (ChunkType.PROVENANCE, json.dumps({"strip": strip}).encode())
        chunks = [(ChunkType.LATENTS, pack_latents(coded_z(width, height, quality))), note]
        return pack(Header(quality, width, height, self.fingerprint), chunks)

    def encode_to(self, picture, *, max_bytes, min_psnr, min_ssim, **options):
        measured = {"psnr": min_psnr, "ssim": min_ssim}
        return Found(self.encode(picture, 7, **options), 7, 1, **measured)

    def decode(self, file, **options):
        header = (unpack(file) if isinstance(file, bytes) else file).header
        return Picture(np.full((header.height, header.width, 3), header.quality, np.uint8))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with some files in it, and Stub wherever codecs are loaded."""
    for place in ("aiocodec.batch", "aiocodec.cli", "aiocodec.cli.coding", "aiocodec.cli.main"):
        with suppress(ImportError):
            importlib.import_module(place)
    places = [m for name, m in sys.modules.items() if name.split(".")[0] == "aiocodec"]
    patched = [place for place in places if vars(place).get("load_codec") is not None]
    assert patched, "nothing to put the stub into"
    for place in patched:
        monkeypatch.setattr(place, "load_codec", lambda *args, **options: Stub())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AIC_DEBUG", raising=False)
    ramp = np.arange(120, dtype=np.uint8).reshape(8, 15)
    picture = Picture(rgb=np.ascontiguousarray(np.stack([ramp, ramp, 255 - ramp], axis=2)))
    for name in ("x.png", "-x.png", "--json", "é \n.png"):
        (tmp_path / name).write_bytes(write(picture))
    (tmp_path / "y.aic").write_bytes(Stub().encode(picture, 49))
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n")
    (tmp_path / "bad.aic").write_bytes(Stub().encode(picture)[:-1])
    (tmp_path / "made").mkdir()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)


def tree(folder):
    """All files and folders, and what is in them."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def restore(folder, files):
    """Make the folder what it was; a path that was a file may be a folder now."""
    for path in folder.iterdir():
        if str(path.relative_to(folder)) not in files or files[path.name] is None:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, data in files.items():
        (folder / name).mkdir(exist_ok=True) if data is None else (folder / name).write_bytes(data)


def aic(*args, stdin=b""):
    """Run `main` in this process: exit code, stdout, stderr. No traceback, and a code that is documented."""
    streams = sys.stdin, sys.stdout, sys.stderr
    out, err = io.BytesIO(), io.BytesIO()
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin))
    sys.stdout = io.TextIOWrapper(out, "utf-8")
    sys.stderr = io.TextIOWrapper(err, "utf-8", "backslashreplace")
    try:
        with pytest.raises(SystemExit) as exit:
            main(list(args))
        sys.stdout.flush()
        sys.stderr.flush()
        code, data, said = exit.value.code or 0, out.getvalue(), err.getvalue().decode()
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams
    assert "Traceback" not in said and "internal error" not in said, (args, said)
    assert code in documented(), (args, code)
    if code:
        assert re.search(r"^aic: .+$", said, re.MULTILINE) or "--quiet" in args or "--json" in args
    return code, data, said


def documented():
    """The exit codes that README.md names."""
    text = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    listed = text[text.index("Exit codes:") :].partition("\n\n")[0]
    return {int(code) for code in re.findall(r"\b(\d+) [a-z]", listed)}


@st.composite
def interleaved(draw, options, arguments):
    """Options in any order, and arguments in their order anywhere among them."""
    left = draw(st.permutations(options))
    places = sorted(draw(st.integers(0, len(left))) for _ in arguments)
    found = []
    for i in range(len(left) + 1):
        found += [a for a, place in zip(arguments, places, strict=True) if place == i]
        found += left[i] if i < len(left) else []
    return found


def outcome(folder, args):
    """What a run leaves: code, report without times, and the files."""
    files = tree(folder)
    code, out, err = aic(*args)
    report = re.sub(rb'"seconds": [0-9.]+', b"", out), re.sub(r"[0-9.]+ s\b", "", err)
    left = tree(folder)
    restore(folder, files)
    return code, report, left


ENCODE = [["-q", "30"], ["--strip"], ["-f"], ["--json"], ["--device", "cpu"], ["--threads", "1"]]
ENCODE += [["--max-pixels", "9999"], ["--verbose"], ["--verify"]]
DECODE = [["--format", "bmp"], ["--force"], ["--json"], ["--device=cpu"], ["--quiet"]]


@law(60)
@given(data=st.data())
def test_options_and_arguments_may_stand_in_any_order(folder, data):
    command, all_options, pair = data.draw(
        st.sampled_from(
            [("encode", ENCODE, ["x.png", "z.aic"]), ("decode", DECODE, ["y.aic", "z.bmp"])]
        )
    )
    options = data.draw(st.lists(st.sampled_from(all_options), unique_by=tuple))
    first = outcome(folder, [command, *(word for option in options for word in option), *pair])
    assert first[0] == 0 and pair[1] in first[2]
    assert outcome(folder, [command, *data.draw(interleaved(options, pair))]) == first


@law(60)
@given(data=st.data())
def test_behind_two_dashes_everything_is_a_path(folder, data):
    options = data.draw(st.lists(st.sampled_from(ENCODE), unique_by=tuple))
    words = [word for option in options for word in option]
    source = data.draw(st.sampled_from(["-x.png", "--json", "x.png", "é \n.png"]))
    target = data.draw(st.sampled_from(["-o.aic", "--help", "z.aic"]))
    code, _, left = outcome(folder, ["encode", *words, "--", source, target])
    assert code == 0 and target in left
    code, _, left = outcome(folder, ["encode", "--", source, target, *words])
    assert code == (0 if not words else 2) and (target in left) == (not words)
    code, (_, err), _ = outcome(folder, ["encode", "--", "--no-such-file"])
    assert code == 3 and "--no-such-file" in err


def known_options(command):
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", aic(command, "--help")[1].decode()))


@law(80)
@given(
    command=st.sampled_from(["encode", "decode", "info"]),
    option=st.from_regex(r"--[a-z][a-z0-9-]{0,14}(=[a-z]{0,3})?", fullmatch=True)
    | st.from_regex(r"-[b-eg-pr-z]", fullmatch=True),
    data=st.data(),
)
def test_unknown_options_are_wrong_usage(folder, command, option, data):
    assume(option.partition("=")[0] not in known_options(command))
    source = "x.png" if command == "encode" else "y.aic"
    arguments = data.draw(interleaved([[option]], [source]))
    code, (out, err), left = outcome(folder, [command, *arguments])
    assert code == 2 and out == b"" and err.count("\n") == 1 and "--help" in err
    assert left == tree(folder)


WORDS = [
    *("encode", "decode", "info", "x.png", "y.aic", "z.aic", "z.png", "bad.png", "bad.aic", "made"),
    *("-", "--", ".", "", "no/such", "-q", "--quality", "30", "101", "-1", "1e9", "--quality=5"),
    *(
        "--target-bpp",
        "0.5",
        "nan",
        "inf",
        "0",
        "--max-bytes",
        "100",
        "--strip",
        "--verify",
        "--help",
    ),
    *("--out-dir", "--model", "nano", "l", "--device", "cpu", "tpu", "--threads", "--max-pixels"),
    *(
        "-f",
        "--force",
        "--json",
        "--quiet",
        "--verbose",
        "--format",
        "png",
        "BMP",
        "gif",
        "--version",
    ),
    *("--json=1", "-fq", "-q50", "-qf", "z.jpg", "z.xyz", "é \n.png", "\udcff.png"),
]
words = st.sampled_from(WORDS) | st.text(
    st.characters(exclude_characters="/\\\0", exclude_categories=["Cs"]), max_size=9
)


paths = st.sampled_from(["x.png", "y.aic", "z.aic", "z.png", "bad.png", "bad.aic", "made", "-"])


@law(300)
@given(
    command=st.sampled_from(["encode", "decode", "info", ""]),
    arguments=st.lists(words, max_size=7)
    | st.tuples(paths, paths)
    | st.tuples(words, paths, paths),
    stdin=st.sampled_from([b"", b"x", b"\x8aAIC"]),
)
def test_any_words_end_in_a_documented_code(folder, command, arguments, stdin):
    """And whoever does not say --force loses no file."""
    assume(not {"train", "evaluate"} & {command, *arguments[:1]})
    files = tree(folder)
    code, _, err = aic(*([command] if command else []), *arguments, stdin=stdin)
    assert "\x1b" not in err
    left = tree(folder)
    forced = any(re.fullmatch(r"--force|-\w*f\w*", word) for word in arguments)
    if not forced:
        assert {name: left.get(name, ...) for name in files} == files
    if code == 2:
        assert left == files
    restore(folder, files)
