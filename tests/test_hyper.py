"""What is refused before anything is computed: the cheap checks, and that they are cheap."""

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from aiocodec.container import ChunkType, Header, Latents, pack, pack_latents, unpack
from aiocodec.errors import BitstreamError
from aiocodec.hyper import HyperCoder, screen, symbols_crc
from aiocodec.latents import LatentCoder
from aiocodec.pretrained import Manifest
from aiocodec.rangecoder import SLACK, Decoder, Encoder


@pytest.fixture(scope="module")
def frozen():
    manifest = Manifest.read()
    return manifest.load_frozen(manifest.models[0])


def claim(frozen, words, width, height, z_crc=0, version=2):
    """A file of intact frames that claims a picture of some size."""
    latents = Latents(words, 0, z_crc if version == 2 else None)
    header = Header(50, width, height, frozen.fingerprint, version=version)
    return pack(header, [(ChunkType.LATENTS, pack_latents(latents))])


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("words", [b"", bytes(8), b"\xff" * 64, bytes(4000)])
def test_a_few_bytes_are_no_large_picture(frozen, words, version):
    """8192 x 8192 pixels in 42 bytes, and the like: refused at once."""
    data = claim(frozen, words, 8192, 8192, version=version)
    started = time.process_time()
    with pytest.raises(BitstreamError):
        screen(unpack(data), frozen)
    assert time.process_time() - started < 0.2


def test_no_honest_stream_is_refused(frozen):
    """The bound is what the likeliest symbols of all take up, less what zeros at the end save."""
    hyper = HyperCoder(frozen)
    likeliest = []
    for t in range(frozen.program.hyper):
        frequencies = hyper.tables._frequencies[t]
        likeliest.append(int(frequencies[:-1].argmax()) + int(hyper.tables._lows[t]))
    for cells in (1, 3, 40):
        symbols = np.repeat(np.array(likeliest, np.int32), cells * cells).reshape(-1, cells, cells)
        encoder = Encoder()
        crc = hyper.encode(encoder, symbols, 0)
        latents = Latents(encoder.finish(), 0, crc)
        side = 64 * cells
        decoded = hyper.decode(Decoder(latents.words), latents, side, side, 0)
        assert np.array_equal(decoded, symbols)
        least = hyper.tables.least_bits(range(frozen.program.hyper)) * cells * cells
        assert 8 * len(latents.words) <= least + SLACK


def test_weights_bound_the_pixels_of_a_byte(frozen):
    """Less than a bit for 4096 pixels would let a small file ask for hours of work."""
    hyper = HyperCoder(frozen)
    for level in range(frozen.program.quality_levels):
        first = level * frozen.program.hyper
        assert hyper.tables.least_bits(range(first, first + frozen.program.hyper)) >= 1


def test_z_is_checked_before_torch_is_loaded(frozen):
    """Neither the imports nor the check itself load it."""
    script = (
        "import sys; from aiocodec import hyper, pretrained, container\n"
        "manifest = pretrained.Manifest.read(); frozen = manifest.load_frozen(manifest.models[0])\n"
        "data = container.unpack(bytes.fromhex(sys.argv[1]))\n"
        "try: hyper.screen(data, frozen)\n"
        "except hyper.BitstreamError as fault: print(fault)\n"
        "assert 'torch' not in sys.modules\n"
    )
    data = claim(frozen, b"\x12\x34\x56\x78" * 40, 64, 64)
    done = subprocess.run(
        [sys.executable, "-c", script, data.hex()], capture_output=True, text=True, check=True
    )
    assert "CRC" in done.stdout or "words" in done.stdout


def test_a_stream_does_not_go_on_behind_its_words(frozen):
    """y that reads on where its words have ended is refused, though every CRC were right."""
    coder = LatentCoder(frozen)
    encoder = Encoder()
    rng = np.random.default_rng(0)
    symbols = rng.integers(-2, 3, (frozen.program.hyper, 2, 2)).astype(np.int32)
    crc = coder.hyper.encode(encoder, symbols, 50)
    latents = Latents(encoder.finish(), 0, crc)
    coder.hyper.decode(Decoder(latents.words), latents, 128, 128, 50)
    with pytest.raises(BitstreamError):
        coder.decode(latents, 128, 128, 50)
    cut = replace(latents, words=latents.words[: len(latents.words) // 8 * 4])
    with pytest.raises(BitstreamError, match="behind their words"):
        coder.hyper.decode(Decoder(cut.words), replace(cut, z_crc=None), 128, 128, 50)


def test_crcs_of_symbols_go_on(frozen):
    symbols = np.arange(-5, 3_000_000, 7, dtype=np.int32)
    assert symbols_crc(symbols) == symbols_crc(symbols[1000:], symbols_crc(symbols[:1000]))
    assert symbols_crc(symbols.astype(np.int64)) == symbols_crc(symbols)
