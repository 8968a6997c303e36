"""Laws of the pipeline: what goes in comes out, whatever the size, machine state or metadata."""

import json
import math
import pickle
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import aiocodec
from aiocodec import search
from aiocodec.codec import Codec, highest
from aiocodec.config import CHECKERBOARD, EntropyConfig, ModelConfig, Stage
from aiocodec.container import (
    HEADER_SIZE,
    ChunkType,
    Flags,
    pack,
    pack_latents,
    unpack,
    unpack_latents,
)
from aiocodec.entropy.exact import ExactEntropyModel
from aiocodec.errors import (
    BitstreamError,
    CompatibilityError,
    ImageError,
    LimitError,
    ModelError,
)
from aiocodec.hyper import symbols_crc
from aiocodec.image import Picture
from aiocodec.latents import LatentCoder
from aiocodec.metrics import ms_ssim, psnr
from aiocodec.model import Model
from aiocodec.pretrained import Manifest
from aiocodec.rangecoder import Tables
from aiocodec.training.data import Photographs
from aiocodec.training.release import fitted, frozen_of, release

TINY = ModelConfig(
    "tiny",
    (Stage(8, 24, ("dcb",)),),
    (Stage(4, 16, ("dcb",)), Stage(8, 24, ("hatb",))),
    EntropyConfig(latents=24, hyper=8, width=16),
)


def picture(width, height, seed=0):
    """A smooth random picture: a few blurred blobs of colour."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width] / 32
    waves = [np.sin(a * rows + b * columns + c) for a, b, c in rng.uniform(-2, 2, (3, 3))]
    return Picture(rgb=np.uint8(np.stack(waves, axis=2) * 100 + 128))


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 65), (65, 1), (63, 64), (64, 64), (65, 63), (130, 70), (3, 200)]
)
def test_any_size_round_trips(codec, size):
    source = picture(*size)
    decoded = codec.decode(codec.encode(source, 60, verify=True))
    assert decoded.rgb.shape == source.rgb.shape
    assert decoded.rgb.dtype == np.uint8
    assert decoded.alpha is None


def test_a_real_photograph_comes_back(codec, photo):
    sizes, errors = [], []
    for quality in (0, 50, 100):
        data = codec.encode(photo, quality)
        sizes.append(len(data))
        errors.append(psnr(photo.rgb, codec.decode(data).rgb))
    assert sizes == sorted(sizes)
    assert errors == sorted(errors)
    assert errors[1] > 25
    assert sizes[1] < photo.rgb.size / 10


def test_noise_is_removed(codec, photo):
    rng = np.random.default_rng(0)
    noisy = np.clip(np.round(photo.rgb + rng.normal(0, 25, photo.rgb.shape)), 0, 255).astype(
        np.uint8
    )
    decoded = codec.decode(codec.encode(replace(photo, rgb=noisy), 70))
    assert psnr(photo.rgb, decoded.rgb) > psnr(photo.rgb, noisy) + 3


def test_the_same_picture_gives_the_same_bytes(codec, photo):
    assert codec.encode(photo, 40) == codec.encode(photo, 40)


def test_file_size_is_the_model_s_rate(codec, photo):
    """Freezing to integers and coding for real costs at most 0.3 % over the likelihoods of the float
    model, and nothing in PSNR."""
    model = Manifest.read().load(codec.name).trainable().eval()
    x = torch.from_numpy(photo.rgb[:320, :448]).permute(2, 0, 1)[None].float() / 255
    clean = Picture(rgb=np.ascontiguousarray(photo.rgb[:320, :448]))
    for quality in (20, 80):
        with torch.inference_mode():
            out = model(x, torch.tensor([float(quality)]), noise=False)
        bits = float(out.bpp()) * 320 * 448
        data = codec.encode(clean, quality, strip=True)
        payload = unpack(data).get(ChunkType.LATENTS)
        assert 8 * len(payload) <= bits * 1.003 + 16 * 8
        expected = (
            (out.x_hat[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
        )
        difference = psnr(clean.rgb, codec.decode(data).rgb) - psnr(clean.rgb, expected)
        assert abs(difference) < 0.02


def test_overhead_is_small(codec):
    """Header, chunk frames and provenance: what a file costs besides its symbols."""
    data = codec.encode(picture(1, 1), 0)
    payload = unpack(data).get(ChunkType.LATENTS)
    assert len(data) - len(payload) < HEADER_SIZE + 64


# --------------------------------------------------------------------------- exactness


def test_any_memory_layout_and_thread_count_decodes(codec, photo):
    data = codec.encode(photo, 50)
    reference = codec.decode(data).rgb
    other = Codec(codec.name, "cpu")
    other.transforms = other.transforms.to(memory_format=torch.contiguous_format)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert np.abs(other.decode(data).rgb.astype(int) - reference).max() <= 1
            assert other.decode(other.encode(photo, 50)).rgb.shape == photo.rgb.shape
    finally:
        torch.set_num_threads(threads)


DECODE = """
import sys
from pathlib import Path
import torch
from aiocodec.codec import Codec
from aiocodec.image import read, write
torch.set_num_threads(1)
codec = Codec(device="cpu")
folder = Path(sys.argv[1])
(folder / "theirs.png").write_bytes(write(codec.decode((folder / "ours.aic").read_bytes())))
(folder / "theirs.aic").write_bytes(codec.encode(read(Path(sys.argv[2]).read_bytes()), 70))
"""


@pytest.mark.parametrize("isa", ["SSE41", "AVX2"])
def test_files_cross_instruction_sets(codec, photo, python, request, tmp_path, isa):
    from aiocodec.image import read

    (tmp_path / "ours.aic").write_bytes(codec.encode(photo, 70))
    capability = {"SSE41": "default", "AVX2": "avx2"}[isa]
    lake = request.path.parent / "photos" / "lake.png"
    python(DECODE, tmp_path, lake, ONEDNN_MAX_CPU_ISA=isa, ATEN_CPU_CAPABILITY=capability)
    ours = codec.decode((tmp_path / "ours.aic").read_bytes()).rgb
    theirs = read((tmp_path / "theirs.png").read_bytes()).rgb
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    codec.decode((tmp_path / "theirs.aic").read_bytes())  # the CRC of the symbols is checked inside


@pytest.mark.cuda
@pytest.mark.parametrize("quality", [10, 90])
def test_files_cross_between_cpu_and_cuda(codec, photo, quality):
    cuda = Codec(codec.name, "cuda")
    for encoder, decoder in ((codec, cuda), (cuda, codec)):
        data = encoder.encode(photo, quality)
        there, here = decoder.decode(data).rgb, encoder.decode(data).rgb
        assert np.abs(there.astype(int) - here).max() <= 1


# --------------------------------------------------------------------------- damage


def test_every_flipped_bit_and_every_truncation_is_noticed(codec):
    data = codec.encode(picture(1, 1), 0)
    damaged = [data[:length] for length in range(len(data))]
    for at in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        damaged.append(bytes(flipped))
    for each in damaged:
        with pytest.raises((BitstreamError, CompatibilityError, LimitError)):
            codec.decode(each)


def forge(container, latents):
    """A file whose every CRC of chunk and header is right, with other latents."""
    version = 1 if latents.z_crc is None else 2
    header = replace(container.header, version=version)
    return pack(header, [(ChunkType.LATENTS, pack_latents(latents))])


def latents_of(data):
    container = unpack(data)
    payload = container.get(ChunkType.LATENTS)
    return container, unpack_latents(payload, container.header.version)


def test_other_symbols_are_noticed(codec):
    """A file whose every CRC is right, but whose words are not those of its symbols. The last bits of
    the last word may be finer than any symbol; then the symbols are the same."""
    data = codec.encode(picture(64, 64), 50)
    expected = codec.decode(data).rgb
    container, latents = latents_of(data)
    for at in range(0, len(latents.words), 16):
        damaged = bytearray(latents.words)
        damaged[at] ^= 1
        try:
            decoded = codec.decode(forge(container, replace(latents, words=bytes(damaged)))).rgb
        except BitstreamError:
            continue
        assert at >= len(damaged) - 4 and np.array_equal(decoded, expected)


def test_a_damaged_z_is_noticed_before_anything_is_computed_from_it(codec, monkeypatch):
    container, latents = latents_of(codec.encode(picture(64, 64), 50))
    other = bytes([*latents.words[:3], latents.words[3] ^ 0xFF, *latents.words[4:]])
    forged = [
        forge(container, replace(latents, z_crc=latents.z_crc ^ 1)),
        forge(container, replace(latents, words=other)),
    ]
    monkeypatch.setattr(ExactEntropyModel, "features", None)
    for data in forged:
        with pytest.raises(BitstreamError):
            codec.decode(data)


def test_surplus_and_missing_words_are_noticed(codec):
    container, latents = latents_of(codec.encode(picture(64, 64), 50))
    words = latents.words
    for changed in (words + bytes(8), words[:-8], b"", words * 2):
        with pytest.raises(BitstreamError):
            codec.decode(forge(container, replace(latents, words=changed)))


def test_a_file_of_version_1_decodes_to_the_same(codec):
    data = codec.encode(picture(70, 40), 50)
    container, latents = latents_of(data)
    first = forge(container, replace(latents, z_crc=None))
    assert (data[4], first[4]) == (2, 1)
    assert np.array_equal(codec.decode(first).rgb, codec.decode(data).rgb)
    wrong = replace(latents, z_crc=None, symbols_crc=latents.symbols_crc ^ 1)
    with pytest.raises(BitstreamError, match="CRC"):
        codec.decode(forge(container, wrong))


def test_another_size_in_the_header_is_noticed(codec):
    container = unpack(codec.encode(picture(64, 64), 50))
    forged = pack(replace(container.header, width=640, height=640), container.chunks)
    with pytest.raises(BitstreamError):
        codec.decode(forged)


def test_other_weights_are_named(codec):
    container = unpack(codec.encode(picture(8, 8), 50))
    foreign = pack(replace(container.header, fingerprint=bytes(range(8))), container.chunks)
    with pytest.raises(ModelError, match="0001020304050607"):
        codec.decode(foreign)
    with pytest.raises(ModelError, match="0001020304050607"):
        aiocodec.decode(foreign, device="cpu")


def test_verification_notices_a_diverging_decoder(codec, monkeypatch):
    """A decoder that derives other parameters than the encoder did."""
    source = picture(64, 64)
    calls = 0
    features = ExactEntropyModel.features

    def drift(self, z_hat, quality):
        nonlocal calls
        calls += 1
        return features(self, z_hat, quality) + (calls - 1) * 256

    monkeypatch.setattr(ExactEntropyModel, "features", drift)
    with pytest.raises(ModelError, match="verification"):
        codec.encode(source, 50, verify=True)


def test_an_encoder_bounds_what_a_transform_gives(codec, monkeypatch):
    """Latents that are not numbers, or too large to code, still make a file that decodes."""
    monkeypatch.setattr(
        type(codec.transforms.g_a),
        "forward",
        lambda self, x, q: torch.full((1, codec.program.latents, 4, 4), float("nan")),
    )
    data = codec.encode(picture(64, 64), 50, verify=True)
    monkeypatch.undo()
    assert codec.decode(data).rgb.shape == (64, 64, 3)


# --------------------------------------------------------------------------- pictures


def test_alpha_is_lossless(codec):
    alpha = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    data = codec.encode(replace(picture(50, 40), alpha=alpha), 50)
    assert unpack(data).header.flags & Flags.ALPHA
    assert np.array_equal(codec.decode(data).alpha, alpha)


def test_metadata_is_kept_or_stripped(codec):
    source = replace(
        picture(20, 10), icc=b"icc" * 9, exif=b"II*\0" + bytes(8), xmp=b"<x/>", oriented=True
    )
    kept = codec.decode(codec.encode(source, 50))
    assert (kept.icc, kept.exif, kept.xmp, kept.oriented) == (
        source.icc,
        source.exif,
        source.xmp,
        True,
    )
    stripped = codec.decode(codec.encode(source, 50, strip=True))
    assert (stripped.icc, stripped.exif, stripped.xmp) == (None, None, None)


def test_gray_is_remembered(codec):
    data = codec.encode(replace(picture(20, 10), gray=True, sixteen_bit=True), 50)
    decoded = codec.decode(data)
    assert decoded.gray
    assert (decoded.rgb == decoded.rgb[..., :1]).all()
    assert decoded.sixteen_bit


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (1, 65536, 3)])
def test_impossible_sizes_are_refused(codec, shape):
    with pytest.raises(ImageError):
        codec.encode(Picture(rgb=np.zeros(shape, np.uint8)))


@pytest.mark.parametrize("quality", [-1, 101])
def test_impossible_qualities_are_refused(codec, quality):
    with pytest.raises(ValueError, match="0..100"):
        codec.encode(picture(8, 8), quality)


def test_the_pixel_limit_comes_first(codec):
    with pytest.raises(LimitError):
        codec.decode(codec.encode(picture(20, 10), 50), max_pixels=199)


def test_encoding_to_a_size(codec, photo):
    for limit in (6000, 20000):
        found = codec.encode_to(photo, max_bytes=limit)
        assert len(found.data) <= limit
        assert unpack(found.data).header.quality == found.quality
        assert found.encodes <= 8
        if found.quality < 100:
            assert len(codec.encode(photo, found.quality + 1)) > limit
    with pytest.raises(LimitError, match="50 bytes"):
        codec.encode_to(photo, max_bytes=50)


@pytest.mark.parametrize(
    ("goal", "measure"), [({"min_psnr": 31}, psnr), ({"min_ssim": 0.96}, ms_ssim)]
)
def test_encoding_to_a_fidelity(codec, photo, goal, measure):
    found = codec.encode_to(photo, **goal)
    wanted = min(goal.values())
    value = found.psnr if "min_psnr" in goal else found.ssim
    assert found.against == "input"
    assert value == measure(photo.rgb, codec.decode(found.data).rgb) >= wanted
    assert found.data == codec.encode(photo, found.quality)
    below = codec.encode(photo, found.quality - 1)
    assert measure(photo.rgb, codec.decode(below).rgb) < wanted


def test_a_spoiled_picture_is_compared_with_what_is_restored(codec, photo):
    noise = np.random.default_rng(0).normal(0, 25, photo.rgb.shape)
    noisy = (photo.rgb + noise).clip(0, 255).astype(np.uint8)
    found = codec.encode_to(replace(photo, rgb=noisy), min_psnr=32)
    assert found.against == "restored"
    assert found.psnr >= 32 > psnr(noisy, codec.decode(found.data).rgb) + 5


@pytest.mark.parametrize(
    "goal",
    [{}, {"min_psnr": 60}, {"max_bytes": 9, "min_psnr": 9}, {"max_bytes": 0}, {"min_psnr": "high"}],
)
def test_targets_that_cannot_be_met(codec, photo, goal):
    with pytest.raises(LimitError if goal == {"min_psnr": 60} else ValueError):
        codec.encode_to(photo, **goal)


@given(
    limit=st.integers(-1, 101), shape=st.sampled_from([0.3, 1.0, 3.0]), slope=st.floats(1e-4, 1e4)
)
def test_a_search_finds_the_last_quality_within_a_limit_in_few_steps(limit, shape, slope):
    asked = []

    def margin(quality):
        asked.append(quality)
        place = quality - limit - 0.5
        return -math.copysign(abs(place) ** shape, place)

    assert highest(margin, slope) == (None if limit < 0 else min(limit, 100))
    assert len(asked) == len(set(asked)) <= 13


# --------------------------------------------------------------------------- effort and bits


def test_an_effort_never_costs_more_in_bits_and_distortion(codec, photo):
    cut = replace(photo, rgb=np.ascontiguousarray(photo.rgb[100:228, 100:292]))
    lower = 0
    for quality in (20, 80):
        costs = []
        for effort in (0, 3):
            data = codec.encode(cut, quality, effort=effort)
            words = unpack_latents(unpack(data).get(ChunkType.LATENTS), 2).words
            costs.append(search.cost(len(words), codec.decode(data).rgb, cut.rgb, quality))
        assert costs[1] <= costs[0] * 1.001  # the target may hold a little of what is restored
        lower += costs[1] < costs[0]
    assert lower


def test_an_effort_spends_nothing_on_noise(codec, photo):
    clean = np.ascontiguousarray(photo.rgb[100:228, 100:292])
    noise = np.random.default_rng(0).normal(0, 25, clean.shape)
    noisy = replace(photo, rgb=(clean + noise).clip(0, 255).astype(np.uint8))
    plain, searched = (codec.encode(noisy, 50, effort=effort) for effort in (0, 3))
    assert len(searched) < 1.04 * len(plain)  # and what it adds serves what the encoder never sees:
    assert psnr(clean, codec.decode(searched).rgb) > psnr(clean, codec.decode(plain).rgb)


def test_windows_of_a_large_picture_are_searched_one_by_one(codec, photo, monkeypatch):
    monkeypatch.setattr(search, "WINDOW", 2)
    cut = replace(photo, rgb=np.ascontiguousarray(photo.rgb[:192, :256]))
    told = []
    plain = codec.encode(cut, 80)
    data = codec.encode(cut, 80, effort=1, progress=told.append)
    assert codec.decode(data).rgb.shape == cut.rgb.shape
    assert data != plain
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_sixteen_bits_are_the_eight_bits_before_their_rounding(codec, photo):
    data = codec.encode(photo, 50)
    narrow, wide = (codec.decode(data, bits=bits).rgb for bits in (8, 16))
    assert wide.dtype == np.uint16
    assert np.abs(wide / 257 - narrow).max() <= 0.51
    assert len(np.unique(wide)) > 1000
    with pytest.raises(ValueError, match="8 or 16"):
        codec.decode(data, bits=10)


# --------------------------------------------------------------------------- independence


def test_nothing_that_a_caller_tells_torch_changes_a_byte(codec, photo):
    cut = replace(photo, rgb=np.ascontiguousarray(photo.rgb[:128, :128]))
    plain = codec.encode(cut, 50)
    pixels = codec.decode(plain).rgb
    state = torch.random.get_rng_state()
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
            assert Codec(device="cpu").encode(cut, 50) == plain
            assert np.array_equal(codec.decode(plain).rgb, pixels)
            codec.encode(cut, 50, effort=1)
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_threads_may_share_a_codec(codec, photo):
    cuts = [replace(photo, rgb=np.ascontiguousarray(photo.rgb[i : 64 + i, :96])) for i in range(8)]
    alone = [codec.encode(cut, 50) for cut in cuts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda cut: codec.encode(cut, 50), cuts)) == alone


def test_a_codec_can_be_pickled(codec):
    again = pickle.loads(pickle.dumps(codec))
    assert (again.name, again.device, again.fingerprint) == (
        codec.name,
        codec.device,
        codec.fingerprint,
    )


@pytest.mark.parametrize("device", ["cuda:77", "gpu", "", "meta", "mps"])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(ModelError, match="device"):
        Codec(device=device)


@pytest.mark.parametrize("quality", [50.5, "50", None, [50], math.nan])
def test_a_quality_is_a_whole_number(codec, quality):
    with pytest.raises(TypeError, match="quality .* is not a whole number"):
        codec.encode(picture(8, 8), quality)
    with pytest.raises(TypeError, match="to_picture"):
        codec.encode(picture(8, 8).rgb, 50)


def test_running_out_of_memory_is_one_of_our_errors(codec, monkeypatch):
    def fail(self, x, q):
        torch.empty(1 << 60)

    monkeypatch.setattr(type(codec.transforms.g_a), "forward", fail)
    with pytest.raises(LimitError, match="memory"):
        codec.encode(picture(8, 8), 50)


# --------------------------------------------------------------------------- the public functions


def test_public_functions(photo):
    data = aiocodec.encode(photo.rgb, 30, device="cpu")
    info = aiocodec.inspect(data).header
    assert (info.quality, info.width, info.height) == (30, 480, 320)
    assert aiocodec.decode(data, device="cpu").shape == photo.rgb.shape
    assert issubclass(aiocodec.errors.ModelError, aiocodec.errors.AicError)
    with pytest.raises(AttributeError):
        aiocodec.nothing  # noqa: B018


# --------------------------------------------------------------------------- latents


@pytest.mark.parametrize("order", [CHECKERBOARD, TINY.entropy.order], ids=["two", "four"])
@pytest.mark.parametrize("quality", [0, 43, 100])
def test_latents_come_back(order, quality):
    """Whatever their values, with two passes and with four, at every level of quality; what is decoded
    is what was quantised, half a step away at most where nothing is clipped."""
    torch.manual_seed(quality)
    model = Model(replace(TINY, entropy=replace(TINY.entropy, order=order)))
    for p in (*model.entropy.fusion.parameters(), *model.entropy.head.parameters()):
        torch.nn.init.normal_(p, std=0.1)
    torch.nn.init.normal_(model.entropy.embedding.coefficients)
    coder = LatentCoder(frozen_of(model.entropy))
    y, z = torch.randn(24, 8, 12) * 4, torch.randn(8, 2, 3) * 5
    y[0, 0, 0], y[1, 2, 3], z[0, 0, 0] = 1e9, float("nan"), 1e9
    latents = coder.encode(y.clone(), z, quality)
    y_hat = coder.decode(latents, 190, 127, quality)
    z_hat = z.add(0.5).floor().clamp(-127, 127)
    steps = coder.entropy.steps(coder.entropy.features(z_hat, quality))
    error = ((y_hat - y) / steps).abs()
    error[0, 0, 0] = error[1, 2, 3] = 0
    assert error.max() <= 0.5 + 1e-3
    with pytest.raises(BitstreamError):
        coder.decode(replace(latents, z_crc=latents.z_crc ^ 1), 190, 127, quality)
    if quality:
        with pytest.raises(BitstreamError):
            coder.decode(latents, 190, 127, 0)


def test_symbols_crc_is_little_endian_int32():
    """What the format says of the CRC, computed from the symbols by hand."""
    symbols = np.array([0, -1, 300], np.int32)
    expected = zlib.crc32(bytes.fromhex("00000000ffffffff2c010000"))
    assert symbols_crc(symbols) == expected
    assert symbols_crc(symbols[2:], symbols_crc(symbols[:2])) == expected


# --------------------------------------------------------------------------- weights


def test_tables_fit_what_they_were_fitted_to(monkeypatch):
    """Symbols that were counted take fewer bits, nothing but frequencies of y is another, and what is
    coded with them is decoded."""
    torch.manual_seed(0)
    model = Model(TINY).eval()
    model.entropy.fusion[-1].weight.data.normal_(0, 0.02)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (3, 90, 130), np.uint8).cumsum(2) // 64
    images = {Path("a.png"): picture.astype(np.uint8)}
    photographs = Photographs.pack(images, Path("."))
    frozen = frozen_of(model.entropy)
    counted = []
    used = Tables.used
    monkeypatch.setattr(Tables, "used", lambda *args: counted.append(args[1:]) or used(*args))
    better = fitted(frozen, model.transforms, photographs, patches=6)
    before, after = LatentCoder(frozen), LatentCoder(better)
    bits = [sum(coder.tables_y.code_length(*one) for one in counted) for coder in (before, after)]
    assert len(counted) == 6 * before.entropy.passes and bits[1] < 0.99 * bits[0]
    other = {key for key, t in frozen.tensors.items() if not np.array_equal(t, better.tensors[key])}
    assert other == {"tables_y.frequencies"} and better.fingerprint != frozen.fingerprint
    unused = set(range(len(before.tables_y))) - set(
        np.concatenate([i for _, i in counted]).tolist()
    )
    ends = np.cumsum(frozen.tables("y")[1])[:-1]
    halves = (np.split(f.tables("y")[0], ends) for f in (frozen, better))
    for t, (old, new) in enumerate(zip(*halves, strict=True)):
        # One entry takes the remainder of rounding.
        assert np.abs(new[:-1] - new[-2::-1]).max() <= len(new)
        assert t not in unused or np.array_equal(old, new)
    y, z = torch.randn(TINY.entropy.latents, 8, 12) * 3, torch.randn(TINY.entropy.hyper, 2, 3)
    sent = y.clone()
    latents = after.encode(sent, z, 30, restore=True)
    assert torch.equal(after.decode(latents, 192, 128, 30), sent)


def test_release_and_load(tmp_path):
    torch.manual_seed(0)
    model = Model(TINY).eval()
    frozen = release(model, tmp_path)
    manifest = Manifest.read(tmp_path)
    assert manifest.models == ["tiny"]
    assert manifest.for_fingerprint(frozen.fingerprint) == "tiny"
    loaded = manifest.load("tiny").trainable()
    for (name, a), b in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=2e-3), name
    for (name, a), b in zip(model.named_buffers(), loaded.buffers(), strict=True):
        assert torch.equal(a, b), name
    weights = set(tmp_path.iterdir()) - {tmp_path / "manifest.json"}
    assert {f.name for f in weights} == set(manifest.files("tiny"))
    assert sum(f.stat().st_size for f in weights) == manifest.weight_bytes("tiny")
    again = release(loaded, tmp_path, frozen=manifest.load("tiny").frozen)
    assert again.fingerprint == frozen.fingerprint


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        "null",
        "[" * 100_000,
        '{"models": {}, "files": {}}',
        '{"models": [], "files": {}}',
        '{"models": {"x": 1}, "files": {}}',
        '{"models": {"x": {"fingerprint": "00", "transforms": [], "entropy": []}}, "files": {}}',
        '{"models": {"x": {"fingerprint": "0011223344556677", "transforms": ["a"], "entropy": []}},'
        ' "files": {}}',
        '{"models": {"x": {"fingerprint": "0011223344556677", "transforms": ["../a"], "entropy": []}},'
        ' "files": {"../a": {"bytes": 1, "sha256": ""}}}',
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ModelError, match="manifest"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("synthesis", "fault"),
    [
        (3, "no member"),
        ({}, "halo"),
        ({"halo": None}, "not listed"),
        ({"file": "b", "halo": 1}, "not listed"),
        ({"file": ["a"], "halo": 1}, "not listed"),
        ({"file": "a", "halo": True}, "halo"),
        ({"file": "a", "halo": -1}, "halo"),
        ({"file": "a", "halo": 1e9}, "halo"),
    ],
)
def test_a_manifest_with_a_malformed_graph_is_refused(tmp_path, synthesis, fault):
    model = {"fingerprint": "0011223344556677", "transforms": ["a"], "entropy": ["a"]}
    files = {"a": {"bytes": 1, "sha256": "0" * 64}}
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"models": {"x": model}, "files": files}))
    assert Manifest.read(tmp_path).models == ["x"]
    with pytest.raises(ModelError, match="no ONNX graph"):
        Manifest.read(tmp_path).synthesis("x")
    path.write_text(
        json.dumps({"models": {"x": {**model, "synthesis": synthesis}}, "files": files})
    )
    with pytest.raises(ModelError, match=fault):
        Manifest.read(tmp_path)


def test_weights_of_another_network_are_refused(tmp_path):
    release(Model(TINY), tmp_path)
    path = tmp_path / "manifest.json"
    whole = json.loads(path.read_text())
    for config, message in (
        ({"colour": 1}, "not of a shape known here"),
        (3, "not of a shape known here"),
        ({**TINY.to_dict(), "analysis": [Stage(8, 32, ()).__dict__]}, "another network"),
        ({**TINY.to_dict(), "entropy": {"latents": 32, "hyper": 8, "width": 16}}, "fit together"),
    ):
        whole["models"]["tiny"]["config"] = config
        path.write_text(json.dumps(whole))
        with pytest.raises(ModelError, match=message):
            Manifest.read(tmp_path).load("tiny").transforms()


def test_damaged_weights_are_refused(tmp_path):
    release(Model(TINY), tmp_path)
    file = next(tmp_path.glob("tiny*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelError, match="damaged"):
        Manifest.read(tmp_path).load("tiny")
    file.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        Manifest.read(tmp_path).load("tiny")
    with pytest.raises(ModelError, match="no weights for model 'l'"):
        Manifest.read(tmp_path).load("l")


def test_weights_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("aiocodec.training.checkpoint.PART_BYTES", 20_000)
    model = Model(TINY)
    release(model, tmp_path)
    assert len(list(tmp_path.glob("tiny-*.safetensors"))) > 1
    Manifest.read(tmp_path).load("tiny").trainable()
