"""Decoding without PyTorch gives what decoding with it does, and fails as it does."""

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from test_codec import picture
from test_entropy import CONFIGS, random_inputs, random_model

import aiocodec
from aiocodec import batch, light, pretrained
from aiocodec.config import EntropyConfig, ModelConfig, Stage
from aiocodec.container import (
    ChunkType,
    Header,
    pack,
    pack_latents,
    unpack,
    unpack_latents,
)
from aiocodec.entropy.exact import ExactEntropyModel
from aiocodec.entropy.portable import PortableEntropyModel
from aiocodec.errors import AicError, LimitError, ModelError
from aiocodec.image import Picture
from aiocodec.light import LatentDecoder, LightCodec
from aiocodec.model import Model
from aiocodec.pretrained import Manifest
from aiocodec.training.release import frozen_of, release

# As the second generation is: nothing in g_s sees the whole picture.
LOCAL = ModelConfig(
    "nano",
    (Stage(8, 24, ("dcb",)),),
    (Stage(4, 16, ("dcb",)), Stage(8, 24, ("dcb",))),
    EntropyConfig(latents=24, hyper=8, width=16),
)


@pytest.fixture(scope="module")
def light_codec():
    return LightCodec(threads=1)


def assert_the_same(a: Picture, b: Picture) -> None:
    """Pixels within 1 of 255 (of 65535 as much), and all else equal."""
    assert a.rgb.shape == b.rgb.shape and a.rgb.dtype == b.rgb.dtype
    unit = np.iinfo(a.rgb.dtype).max // 255
    assert np.abs(a.rgb.astype(int) - b.rgb).max() <= unit
    assert (a.alpha is None) == (b.alpha is None)
    assert a.alpha is None or np.array_equal(a.alpha, b.alpha)
    rest = [field.name for field in fields(Picture) if field.name not in ("rgb", "alpha")]
    assert [getattr(a, name) for name in rest] == [getattr(b, name) for name in rest]


# --------------------------------------------------------------------------- the entropy model


@CONFIGS
@pytest.mark.parametrize("gain", [0.6, 4.0], ids=["usual", "saturating"])
@pytest.mark.parametrize("seed", range(3))
def test_numpy_gives_the_bits_of_torch(config, gain, seed):
    frozen = frozen_of(random_model(config, seed, gain))
    exact, portable = ExactEntropyModel(frozen), PortableEntropyModel(frozen)
    z_hat, seen = random_inputs(frozen, seed)
    quality = 37 * seed % 101
    features = exact.features(torch.from_numpy(z_hat), quality)
    found = portable.features(z_hat, quality)
    assert np.array_equal(found, features.numpy())
    assert np.abs(found).max() > 100
    for k, v_hat in enumerate(seen):
        expected = exact.predict(k, features, torch.from_numpy(v_hat).double())
        before = found.copy(), v_hat.copy()
        indexes, means = portable.predict(k, found, v_hat)
        assert np.array_equal(indexes, expected.indexes.numpy())
        assert np.array_equal(means, expected.means.numpy())
        assert np.array_equal(found, before[0]) and np.array_equal(v_hat, before[1])
    steps = exact.steps(features).numpy()
    assert np.allclose(portable.steps(found), steps, rtol=1e-6, atol=0)


def test_tiles_change_no_bit(light_codec, codec, monkeypatch):
    data = codec.encode(picture(700, 330), 80)
    container = unpack(data)
    latents = unpack_latents(container.get(ChunkType.LATENTS), 2)
    decoder = LatentDecoder(Manifest.read().load_frozen(codec.name))
    whole = decoder.decode(latents, 700, 330, 80)
    monkeypatch.setattr(light, "TILE", 2)
    assert np.array_equal(decoder.decode(latents, 700, 330, 80), whole)


# --------------------------------------------------------------------------- pictures

SIZES = [(1, 1), (1, 65), (65, 1), (63, 64), (64, 64), (65, 63), (130, 70), (3, 200)]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "{}x{}".format(*size))
@pytest.mark.parametrize("quality", [0, 50, 100])
def test_any_picture_is_decoded_as_by_torch(codec, light_codec, size, quality):
    data = codec.encode(picture(*size), quality)
    assert_the_same(light_codec.decode(data), codec.decode(data))


def random_source(rng: np.random.Generator, photo: Picture) -> Picture:
    """A picture of a random size: noise, a crop of a photograph, or both; some gray, some transparent."""
    height, width = rng.integers(1, 150, 2)
    top, left = rng.integers(0, photo.rgb.shape[0] - height), rng.integers(0, 200)
    rgb = photo.rgb[top : top + height, left : left + width].astype(float)
    noise = rng.normal(0, rng.choice([0, 5, 80]), rgb.shape)
    rgb = np.clip(rgb * rng.choice([0, 1, 1]) + noise + rng.integers(0, 100), 0, 255)
    gray = bool(rng.random() < 0.2)
    if gray:
        rgb = np.repeat(rgb[..., :1], 3, axis=2)
    alpha = rng.integers(0, 256, rgb.shape[:2]).astype(np.uint8) if rng.random() < 0.2 else None
    return Picture(rgb=rgb.astype(np.uint8), alpha=alpha, gray=gray)


@pytest.mark.parametrize(
    "count", [40, pytest.param(400, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_random_pictures_are_decoded_as_by_torch(codec, light_codec, photo, count):
    """The CRCs in a file hold all symbols of both decoders to those of the encoder."""
    if count > 100 and not os.environ.get("AIC_SLOW"):
        pytest.skip("AIC_SLOW is not set")
    rng = np.random.default_rng(5)
    for _ in range(count):
        data = codec.encode(random_source(rng, photo), int(rng.integers(0, 101)))
        assert_the_same(light_codec.decode(data), codec.decode(data))


def test_all_that_a_picture_has_comes_along(codec, light_codec, photo):
    source = replace(
        photo, sixteen_bit=True, xmp=b"<x/>", density=(3000, 3000), comment=b"by the lake"
    )
    data = codec.encode(source, 30)
    for bits in (8, 16):
        decoded = light_codec.decode(data, bits=bits)
        assert decoded.comment == b"by the lake" and decoded.density == (3000, 3000)
        assert_the_same(decoded, codec.decode(data, bits=bits))


def test_a_model_without_attention_is_run_in_tiles(tmp_path, monkeypatch):
    """The memory is bounded, and the seams do not show."""
    torch.manual_seed(3)
    release(Model(LOCAL), tmp_path)
    monkeypatch.setattr(pretrained, "_folder", lambda: tmp_path)
    codec, tiled = aiocodec.Codec(device="cpu"), LightCodec(threads=1)
    assert tiled.halo is not None
    sizes = []
    run = tiled._run
    monkeypatch.setattr(tiled, "_run", lambda y, q: sizes.append(y.shape[2:]) or run(y, q))
    data = codec.encode(picture(1700, 200), 60)
    assert_the_same(tiled.decode(data), codec.decode(data))
    assert len(sizes) == 3
    assert max(map(max, sizes)) <= tiled.program.tile + 2 * tiled.halo
    assert tiled.needed_memory(10**8) < 20 * 10**8


def test_progress_never_falls_and_ends_at_one(codec, light_codec, photo):
    told = []
    light_codec.decode(codec.encode(photo, 20), progress=told.append)
    assert told == sorted(told) and told[-1] == 1 and len(told) > 2


def test_it_is_shared_by_threads_and_pickled(codec, light_codec):
    files = [codec.encode(picture(90, 40 + i, seed=i), 40) for i in range(6)]
    expected = [light_codec.decode(data).rgb for data in files]
    again = pickle.loads(pickle.dumps(light_codec))
    with ThreadPoolExecutor(3) as pool:
        found = [decoded.rgb for decoded in pool.map(again.decode, files)]
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


# --------------------------------------------------------------------------- what is refused


def fault_of(codec, data) -> AicError:
    with pytest.raises(AicError) as caught:
        codec.decode(data)
    return caught.value


def test_damaged_files_are_refused_as_by_torch(codec, light_codec, photo):
    data = codec.encode(photo, 10)
    container = unpack(data)
    latents = unpack_latents(container.get(ChunkType.LATENTS), 2)
    rng = np.random.default_rng(0)
    damaged = [b"", data[:20], data[:-1], data + b"x", b"\x8aAIC\x09" + data[5:]]
    damaged += [
        data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :] for at in (17, 40, len(data) - 9)
    ]

    def repaired(latents, header=container.header):
        return pack(header, [(ChunkType.LATENTS, pack_latents(latents))])

    for _ in range(6):  # whose CRCs are right, so that only the symbols tell
        words = bytearray(latents.words)
        words[rng.integers(len(words))] ^= 1 << rng.integers(8)
        damaged.append(repaired(replace(latents, words=bytes(words))))
    damaged += [
        repaired(replace(latents, words=latents.words[: len(latents.words) // 8 * 4])),
        repaired(replace(latents, words=latents.words + b"12345678")),
        repaired(replace(latents, z_crc=latents.z_crc ^ 1)),
        repaired(replace(latents, symbols_crc=latents.symbols_crc ^ 1)),
        repaired(latents, replace(container.header, fingerprint=bytes(8))),
        repaired(latents, replace(container.header, width=60000, height=2000)),
    ]
    for data in damaged:
        expected, found = fault_of(codec, data), fault_of(light_codec, data)
        assert (type(found), str(found)) == (type(expected), str(expected))


def test_a_picture_that_needs_more_memory_than_there_is_is_refused_at_once(
    codec, light_codec, photo, monkeypatch
):
    data = codec.encode(photo, 10)
    pixels = photo.rgb.shape[0] * photo.rgb.shape[1]
    needed = light_codec.needed_memory(pixels)
    monkeypatch.setattr("aiocodec.envelope.available_memory", lambda: needed - 1)
    monkeypatch.setattr(light_codec.latents, "decode", None)
    with pytest.raises(LimitError, match="needs .* MiB of memory"):
        light_codec.decode(data)
    monkeypatch.setattr("aiocodec.envelope.available_memory", lambda: needed)
    with pytest.raises(TypeError):  # it goes on
        light_codec.decode(data)
    with pytest.raises(LimitError, match="limit"):
        light_codec.decode(data, max_pixels=pixels - 1)
    with pytest.raises(ValueError, match="bits"):
        light_codec.decode(data, bits=12)


@pytest.mark.parametrize(
    ("graph", "halo", "fault"),
    [
        (b"no graph", None, "does not take the graph"),
        (None, 5, "another halo"),
    ],
)
def test_graphs_that_do_not_fit_are_refused(graph, halo, fault, monkeypatch):
    shipped = Manifest.read().synthesis("nano")[0]
    monkeypatch.setattr(Manifest, "synthesis", lambda self, name: (graph or shipped, halo))
    with pytest.raises(ModelError, match=fault):
        LightCodec()


def test_lack_of_memory_in_onnxruntime_is_a_limit(codec, light_codec, photo, monkeypatch):
    class Session:
        def run(self, *args):
            raise Exception("Failed to allocate memory for requested buffer of size 8")

    monkeypatch.setattr(light_codec, "g_s", Session())
    with pytest.raises(LimitError, match="not enough memory"):
        light_codec.decode(codec.encode(photo, 0))


# --------------------------------------------------------------------------- where it is chosen


@pytest.fixture
def without_torch(tmp_path):
    """Environment variables of a Python that has no torch."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'torch' else found(name, *rest)\n"
    )
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(hook), *filter(None, sys.path)])}


def aic(*arguments, env=None):
    command = [sys.executable, "-m", "aiocodec", *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def test_without_torch_files_are_decoded_and_inspected_but_not_made(
    codec, photo, tmp_path, without_torch
):
    file, out, png = tmp_path / "x.aic", tmp_path / "x.png", tmp_path / "y.png"
    file.write_bytes(codec.encode(photo, 40))
    assert aic("decode", file, out, env=without_torch).returncode == 0
    assert aic("decode", file, png).returncode == 0
    from aiocodec.image import read

    assert_the_same(read(out.read_bytes()), read(png.read_bytes()))
    done = aic("info", "--json", file, env=without_torch)
    assert done.returncode == 0 and '"model": "nano"' in done.stdout
    done = aic("compare", file, out, env=without_torch)
    assert done.returncode == 0 and "infinite" in done.stdout
    for arguments in (
        ("encode", "-f", out, file),
        ("decode", "-f", "--runtime=torch", file, out),
        ("decode", "-f", "--device=cuda", file, out),
        ("evaluate", tmp_path),
        ("train", "run", tmp_path, "--out", tmp_path / "run"),
    ):
        done = aic(*arguments, env=without_torch)
        assert done.returncode == 5
        assert "PyTorch is not installed: pip install 'aiocodec[torch]'" in done.stderr
        assert done.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"x.aic", "x.png", "y.png", "hook"}
    done = aic("doctor", env=without_torch)
    assert done.returncode == 0, done.stdout
    assert "ok   golden files on onnx" in done.stdout and "torch: not installed" in done.stdout


def test_without_torch_python_and_pillow_decode(codec, photo, tmp_path, without_torch):
    file = tmp_path / "x.aic"
    file.write_bytes(codec.encode(photo, 40))
    script = f"""
import sys
import aiocodec, aiocodec.pillow
from PIL import Image
pixels = aiocodec.decode({str(file)!r}, device="cpu")
with Image.open({str(file)!r}) as image:
    assert image.size == pixels.shape[1::-1] and (pixels == image).all()
try:
    aiocodec.encode(pixels)
except aiocodec.errors.RuntimeMissing as fault:
    print(fault, "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=without_torch, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("PyTorch is not installed") and done.stdout.endswith("False\n")


def test_a_runtime_can_be_chosen(codec, photo, tmp_path):
    file = tmp_path / "x.aic"
    file.write_bytes(codec.encode(photo, 40))
    script = (
        "import sys; from aiocodec.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print('torch' in sys.modules, 'onnxruntime' in sys.modules)"
    )
    for runtime, loaded in (
        ("torch", "True False"),
        ("onnx", "False True"),
        ("auto", "True False"),
    ):
        command = [sys.executable, "-c", script, "decode", "-f", "--runtime", runtime, str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{loaded}\n"


def test_a_runtime_that_cannot_be_is_refused(tmp_path):
    done = aic("decode", "--runtime", "onnx", "--device", "cuda", "x.aic")
    assert done.returncode == 2
    assert aic("decode", "--runtime", "tensorrt", "x.aic").returncode == 2
    with pytest.raises(ValueError, match="CPU alone"):
        batch.Decode(runtime="onnx", device="cuda")
    with pytest.raises(ValueError, match="none of auto, torch, onnx"):
        batch.Decode(runtime="tensorrt")


def test_a_file_that_claims_too_much_is_refused_before_anything_is_loaded(light_codec, tmp_path):
    """A file of a few bytes that claims 64 megapixels."""
    header = Header(50, 8000, 8000, light_codec.fingerprint)
    file = tmp_path / "bomb.aic"
    file.write_bytes(pack(header, [(ChunkType.LATENTS, bytes(8))]))
    done = aic("decode", "--runtime", "onnx", file)
    assert done.returncode == 4 and "cannot be a picture of 8000x8000" in done.stderr
