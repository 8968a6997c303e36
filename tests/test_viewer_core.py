"""The viewer decodes what the package decodes: its own tests, in Node, with material written here."""

import json
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from test_entropy import random_model
from test_format import random_symbols, random_tables

from aiocodec.codec import Codec
from aiocodec.config import QUADTREE, EntropyConfig, ModelConfig, Stage
from aiocodec.container import ChunkType, unpack, unpack_latents
from aiocodec.errors import BitstreamError
from aiocodec.image import Picture
from aiocodec.model import Model
from aiocodec.pretrained import Manifest
from aiocodec.rangecoder import Decoder, Encoder, Tables
from aiocodec.training.release import release

VIEWER = Path(__file__).parents[1] / "viewer"
GOLDEN = Path(__file__).parent / "golden"
TILES = 1200, 70  # pixels of a picture that takes two tiles of every network

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed"),
    pytest.mark.skipif(
        not (VIEWER / "node_modules").is_dir(), reason="npm ci has not been run in viewer/"
    ),
]


def streams(rng):
    """Tables, and for each some streams, the first of which is good: the words, the tables of every call,
    and what the package makes of them."""
    for _ in range(20):
        arrays = random_tables(rng)
        tables = Tables(*arrays)
        indexes = [rng.integers(0, len(tables), rng.integers(0, 60)).tolist() for _ in range(3)]
        encoder = Encoder()
        for numbers in indexes:
            encoder.encode(random_symbols(rng, len(numbers)), numbers, tables)
        good = encoder.finish()
        damaged = [rng.bytes(4 * size) for size in range(8)] + [good[:-8], good + b"01234567"]
        damaged += [good[:at] + rng.bytes(1) + good[at + 1 :] for at in range(0, len(good), 9)]
        calls = [decoded(words, indexes, tables) for words in [good, *damaged]]
        yield {"tables": [np.asarray(a).tolist() for a in arrays], "calls": calls}


def decoded(words, indexes, tables):
    """The symbols are None, and it does not end, where the package refuses them."""
    found = {"words": words.hex(), "indexes": indexes, "symbols": None, "ends": False}
    decoder = Decoder(words)
    with suppress(BitstreamError):
        found["symbols"] = [decoder.decode(numbers, tables).tolist() for numbers in indexes]
        decoder.finish()
        found["ends"] = True
    return found


def rgba(picture):
    height, width, _ = picture.rgb.shape
    opaque = np.full((height, width), 255, np.uint8)
    alpha = opaque if picture.alpha is None else picture.alpha
    return np.dstack([picture.rgb, alpha]).tobytes()


@pytest.fixture
def material(tmp_path, codec, photo, monkeypatch):
    """A folder with what the tests in viewer/test need of the package."""
    for file in GOLDEN.glob("*.aic"):
        pixels = rgba(codec.decode(file.read_bytes()))
        (tmp_path / file.with_suffix(".rgba").name).write_bytes(pixels)
    found = list(streams(np.random.default_rng(0)))
    (tmp_path / "streams.json").write_text(json.dumps(found))

    config = EntropyConfig(8, 6, 12, QUADTREE, quality_levels=5)
    stages = (Stage(4, 16, ("dcb",)), Stage(8, 16, ("dcb",)))
    model = Model(ModelConfig("nano", stages, stages, config)).eval()
    model.entropy = random_model(config, 1, 0.6)
    with torch.no_grad():
        for p in model.transforms.g_s.stages.parameters():
            p += 0.1 * torch.randn_like(p)
    weights = tmp_path / "weights"
    release(model, weights)
    manifest = Manifest.read(weights)
    monkeypatch.setattr(Manifest, "read", lambda: manifest)
    second = Codec(device="cpu")
    width, height = TILES
    pixels = np.resize(photo.rgb, (height, width, 3))
    data = second.encode(Picture(pixels), 30)
    header = unpack(data).header
    latents = unpack_latents(unpack(data).get(ChunkType.LATENTS), header.version)
    y_hat = second.latents.decode(latents, header.width, header.height, header.quality)
    entry = manifest.entries["models"]["nano"]
    graph, halo = manifest.synthesis("nano")
    (tmp_path / "second.aic").write_bytes(data)
    (tmp_path / "second.rgba").write_bytes(rgba(second.decode(data)))
    (tmp_path / "second.f32").write_bytes(y_hat.numpy().astype("<f4").tobytes())
    (tmp_path / "second.onnx").write_bytes(graph)
    shutil.copy(weights / entry["entropy"][0], tmp_path / "second.safetensors")
    told = {"fingerprint": entry["fingerprint"], "halo": halo, "y": "second.f32"}
    (tmp_path / "second.json").write_text(json.dumps(told))
    return tmp_path


def test_the_viewer_decodes_what_the_package_decodes(material):
    done = subprocess.run(
        ["npm", "test", "--silent"],
        cwd=VIEWER,
        env={**os.environ, "AIC_MATERIAL": str(material)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert "# skipped 0" in done.stdout
