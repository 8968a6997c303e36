"""Tiles are an economy of memory and nothing else: they leave no trace in files and pictures."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from aiocodec import latents, tiling
from aiocodec.codec import Codec
from aiocodec.config import CHECKERBOARD, QUADTREE, EntropyConfig, ModelConfig, Stage
from aiocodec.image import Picture
from aiocodec.latents import LatentCoder
from aiocodec.metrics import psnr
from aiocodec.model import Model
from aiocodec.tiles import spans, tiles
from aiocodec.training.release import frozen_of
from aiocodec.transforms import Transforms

DEEP = ModelConfig(
    "deep",
    (Stage(4, 16, ("dcb", "hatb")), Stage(8, 24, ("hatb", "dcb", "hatb"))),
    (Stage(4, 16, ("dcb", "dcb")), Stage(8, 24, ("hatb", "dcb", "hatb"))),
    EntropyConfig(latents=24, hyper=8, width=16),
    gated=True,
)
PAPER = ModelConfig(
    "paper",
    tuple(Stage(2**i, 8, ("hatb",)) for i in range(4)),
    tuple(Stage(2**i, 8, ("hatb",)) for i in range(4)),
    EntropyConfig(latents=24, hyper=8, width=16),
    gain_stride=4,
)
PLAIN = replace(DEEP, analysis=(Stage(8, 24, ("dcb",)),), synthesis=(Stage(8, 24, ("dcb",)),))


@pytest.mark.parametrize("length", [1, 48, 49, 239])
def test_spans_are_equal_parts_of_the_whole(length):
    found = spans(length, 48)
    assert found[0][0] == 0
    assert found[-1][1] == length
    assert all(a[1] == b[0] for a, b in zip(found, found[1:], strict=False))
    sizes = [b - a for a, b in found]
    assert max(sizes) <= 48
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 40), (17, 9)])
def test_tiles_cover_everything_once_and_see_their_halo(height, width):
    covered = np.zeros((height * 2, width * 2), int)
    rows, columns = np.mgrid[:height, :width]
    for tile in tiles(height, width, 6, 2):
        covered[tile.of(2)] += 1
        assert np.array_equal(rows[tile.around(1)][tile.within(1)], rows[tile.inner])
        assert np.array_equal(columns[tile.around(1)][tile.within(1)], columns[tile.inner])
        for inner, outer, length in zip(tile.inner, tile.outer, (height, width), strict=True):
            assert outer.start == max(0, inner.start - 2)
            assert outer.stop == min(length, inner.stop + 2)
    assert (covered == 1).all()


@pytest.mark.parametrize("kept", [1 << 30, 0], ids=["kept", "made-again"])
@pytest.mark.parametrize("config", [DEEP, PAPER, PLAIN], ids=lambda config: config.name)
def test_a_transform_in_tiles_is_the_transform(config, kept, monkeypatch):
    """Attention and all, up to rounding, whether maps in between are kept or made again."""
    monkeypatch.setattr(tiling, "KEPT_BYTES", kept)
    torch.manual_seed(0)
    transforms = Transforms(config).eval().requires_grad_(False)
    for parameter in transforms.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    height, width, quality = 13, 22, torch.tensor([40.0])
    x = torch.rand(1, 3, height * 16, width * 16) * torch.linspace(0.2, 1, width * 16)
    y = torch.randn(1, 24, height, width) * torch.linspace(1, 5, height)[:, None]
    for network, source, scale_in, scale_out in (
        (transforms.g_a, x, 16, 1),
        (transforms.g_s, y, 1, 16),
    ):
        expected = network(source, quality)
        found = torch.full_like(expected, float("nan"))
        told = [0.0]

        def read(area, source=source, scale=scale_in):
            return source[(..., *(slice(a.start * scale, a.stop * scale) for a in area))]

        def write(area, part, found=found, scale=scale_out):
            room = found[(..., *(slice(a.start * scale, a.stop * scale) for a in area))]
            assert room.isnan().all()
            room.copy_(part)

        tiling.transform(network, quality, (height, width), 5, read, write, told.append)
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert told == sorted(told)
        assert told[-1] == 1


@pytest.mark.parametrize("order", [CHECKERBOARD, QUADTREE], ids=["two", "four"])
@pytest.mark.parametrize("cells", [(1, 1), (1, 9), (9, 2), (5, 5), (7, 4)])
def test_the_entropy_model_in_tiles_gives_the_same_bits(order, cells, monkeypatch):
    """Words and y_hat, from tiles of any size, with features that are kept or made again."""
    torch.manual_seed(1)
    model = Model(replace(DEEP, entropy=replace(DEEP.entropy, order=order)))
    for p in model.entropy.parameters():
        if p.ndim == 4:
            torch.nn.init.normal_(p, std=0.5 / p[0].numel() ** 0.5)
    coder = LatentCoder(frozen_of(model.entropy))
    h, w = cells
    y, z = torch.randn(24, 4 * h, 4 * w) * 4, torch.randn(8, h, w) * 3
    expected = coder.encode(y.clone(), z, 30)
    y_hat = coder.decode(expected, 64 * w, 64 * h, 30)
    for tile in (1, 2, 3):
        for kept in (1 << 30, 0):
            monkeypatch.setattr(latents, "TILE", tile)
            monkeypatch.setattr(latents, "KEPT_BYTES", kept)
            assert coder.encode(y.clone(), z, 30) == expected
            assert torch.equal(coder.decode(expected, 64 * w, 64 * h, 30), y_hat)


def test_a_halo_one_narrower_would_not_do(monkeypatch):
    """The reach that the halo follows from is no more than is needed, counted in elements of y."""
    torch.manual_seed(2)
    model = Model(DEEP)
    for p in model.entropy.parameters():
        if p.ndim == 4:
            torch.nn.init.normal_(p, std=0.7 / p[0].numel() ** 0.5)
    entropy = LatentCoder(frozen_of(model.entropy)).entropy
    v_hat, features = torch.zeros(24, 1, 41), torch.zeros(72, 1, 41).double()
    before = entropy.predict(1, features, v_hat.double())
    v_hat[:, 0, 20] = 30000
    after = entropy.predict(1, features, v_hat.double())
    changed = ((before.means != after.means) | (before.indexes != after.indexes)).any(0)[0]
    seen = (changed.nonzero()[:, 0] - 20).abs().max().item()
    assert seen == entropy.program.predict_reach
    z_hat = torch.zeros(8, 1, 21)
    before = entropy.features(z_hat, 50)
    z_hat[:, 0, 10] = 100
    columns = (before != entropy.features(z_hat, 50)).any(0)[0].nonzero()[:, 0]
    seen = max(40 - int(columns.min()), int(columns.max()) - 43)
    assert seen <= entropy.program.features_reach < seen + 4


@pytest.mark.parametrize("kind", ["clean", "noise:25", "haze"])
def test_no_seam_on_a_real_photograph(photo, kind, monkeypatch):
    """Tiles of a third of the picture against none: at least 50 dB, whatever is wrong with it."""
    codec = Codec(device="cpu")
    x = torch.from_numpy(photo.rgb).permute(2, 0, 1)[None].float() / 255
    height, width = x.shape[2:]
    if kind == "noise:25":
        x = (x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) * 25 / 255).clamp(
            0, 1
        )
    if kind == "haze":
        clear = torch.exp(-2.5 * torch.linspace(1, 0, height))[:, None]
        x = x * clear + 0.9 * (1 - clear)
    source = Picture(rgb=(x[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
    assert max(height, width) <= codec.program.tile * 16
    whole = codec.decode(codec.encode(source, 70)).rgb
    monkeypatch.setattr(codec, "program", replace(codec.program, tile=10))
    tiled = codec.decode(codec.encode(source, 70)).rgb
    assert not np.array_equal(whole, source.rgb)
    assert psnr(whole, tiled) >= 50


@pytest.mark.parametrize("size", [(1, 65535), (65535, 1), (64 * 12 + 13, 70)])
def test_long_and_several_tiles_round_trip(codec, size):
    width, height = size
    rows, columns = np.mgrid[:height, :width] / 32
    rgb = np.stack([np.sin(rows + columns * k) for k in (0.5, 1, 1.5)], axis=2) * 100 + 128
    source = Picture(rgb=np.uint8(rgb))
    told = []
    data = codec.encode(source, 80, progress=told.append)
    assert told == sorted(told)
    assert len(told) > 2
    assert told[-1] == pytest.approx(1)
    decoded = codec.decode(data, progress=told.append)
    assert decoded.rgb.shape == source.rgb.shape
    assert psnr(source.rgb, decoded.rgb) > 25
