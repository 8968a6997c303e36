"""Files that must decode for ever (until 1.0: until the entropy model is replaced on purpose).

`python tests/test_golden.py` makes them anew, with the weights of the working tree.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aiocodec.container import ChunkType, pack, pack_latents, unpack, unpack_latents
from aiocodec.image import Picture, read, write

FOLDER = Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("*.aic"))


def facts(data):
    """What the container of a golden file says, apart from pixels."""
    container = unpack(data)
    header = container.header
    return {
        "version": header.version,
        "quality": header.quality,
        "width": header.width,
        "height": header.height,
        "flags": int(header.flags),
        "fingerprint": header.fingerprint.hex(),
        "chunks": [[kind, len(payload)] for kind, payload in container.chunks],
    }


@pytest.mark.parametrize("name", NAMES)
def test_golden_headers_parse(name):
    expected = json.loads((FOLDER / f"{name}.json").read_text())
    del expected["steps"]  # test_format.py looks at these
    assert facts((FOLDER / f"{name}.aic").read_bytes()) == expected


@pytest.mark.parametrize("name", NAMES)
def test_golden_files_decode(codec, name):
    """The symbols exactly, by the CRC in the file; the pixels within 1."""
    decoded = codec.decode((FOLDER / f"{name}.aic").read_bytes())
    expected = read((FOLDER / f"{name}.png").read_bytes())
    assert np.abs(decoded.rgb.astype(int) - expected.rgb).max() <= 1
    assert (decoded.alpha is None) == (expected.alpha is None)
    if decoded.alpha is not None:
        assert np.array_equal(decoded.alpha, expected.alpha)


def test_there_are_golden_files_of_both_versions():
    assert [unpack((FOLDER / f"{name}.aic").read_bytes()).header.version for name in NAMES] == [
        *[1] * 3,
        *[2] * 3,
    ]


def of_version_1(data):
    """The same file as the first version of the container had it."""
    container = unpack(data)
    latents = unpack_latents(container.get(ChunkType.LATENTS), container.header.version)
    first = pack_latents(replace(latents, z_crc=None))
    chunks = [(k, first if k == ChunkType.LATENTS else p) for k, p in container.chunks]
    return pack(replace(container.header, version=1), chunks)


def steps(data, frozen):
    """The values on the way that other decoders can compare theirs with, see docs/format.md."""
    from test_format import WrittenModel

    container = unpack(data)
    header = container.header
    words = unpack_latents(container.get(ChunkType.LATENTS), header.version).words
    model = WrittenModel(frozen.tensors)
    return model.decode(words, header.width, header.height, header.quality)[-1]


def make():
    from aiocodec.codec import Codec
    from aiocodec.pretrained import Manifest

    codec = Codec(device="cpu")
    frozen = Manifest.read().load_frozen(codec.name)
    lake = read((Path(__file__).parent / "photos" / "lake-noisy.png").read_bytes()).rgb
    ramp = np.arange(65, dtype=np.uint8)[None].repeat(33, axis=0)
    gray = Picture(rgb=np.ascontiguousarray(np.stack([ramp * 3] * 3, axis=2)), gray=True)
    pictures = {
        "lake": (Picture(rgb=np.ascontiguousarray(lake[100:196, 150:280])), 50),
        "alpha": (replace(gray, alpha=ramp, xmp=b"<x/>"), 10),
        "pixel": (Picture(rgb=np.full((1, 1, 3), 200, np.uint8)), 100),
    }
    for name, (picture, quality) in pictures.items():
        data = codec.encode(picture, quality)
        for stem, file in ((f"v1-{name}", of_version_1(data)), (f"v2-{name}", data)):
            (FOLDER / f"{stem}.aic").write_bytes(file)
            (FOLDER / f"{stem}.png").write_bytes(write(codec.decode(file)))
            said = {**facts(file), "steps": steps(file, frozen)}
            (FOLDER / f"{stem}.json").write_text(json.dumps(said) + "\n")


if __name__ == "__main__":
    make()
