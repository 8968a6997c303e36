"""RD tables: figures of real files, reproducible, and errors that name the file."""

import numpy as np
import pytest
from PIL import Image

from aiocodec.errors import AicError, ImageError
from aiocodec.evaluate import add_noise, degraded, rd_table
from aiocodec.image import read
from aiocodec.metrics import psnr


@pytest.fixture
def folder(tmp_path, photo):
    for i in range(2):
        Image.fromarray(photo.rgb[i * 64 : i * 64 + 64, :128]).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("degradation", ["clean", "noise:25", "rain"])
def test_rows_are_those_of_real_files(codec, folder, degradation):
    (row,) = rd_table(codec, folder, [40], degradation)
    sizes, errors = [], []
    for number in (1, 2):
        clean = read((folder / f"{number - 1}.png").read_bytes())
        data = codec.encode(degraded(clean, degradation, number), 40, strip=True)
        sizes.append(8 * len(data) / (64 * 128))
        errors.append(psnr(clean.rgb, codec.decode(data).rgb))
    assert row["bpp"] == pytest.approx(np.mean(sizes), abs=1e-4)
    assert row["psnr"] == pytest.approx(np.mean(errors), abs=1e-3)
    assert (row["images"], row["quality"], row["degradation"]) == (2, 40, degradation)


def test_noise_is_that_of_other_projects(photo):
    noise = np.random.default_rng(7).normal(0, 25, photo.rgb.shape)
    expected = np.clip(np.round(photo.rgb + noise), 0, 255).astype(np.uint8)
    assert np.array_equal(add_noise(photo, 25, 7).rgb, expected)
    assert np.array_equal(degraded(photo, "noise:25", 7).rgb, expected)


def test_degradations_are_seeded(photo):
    assert np.array_equal(degraded(photo, "clean", 1).rgb, photo.rgb)
    for name in ("snow", "haze:0.5", "noise:10+jpeg:50"):
        a, b, c = (degraded(photo, name, seed).rgb for seed in (1, 1, 2))
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)
    for name in ("fog", "noise:x", "noise:-5", "haze:2", ""):
        with pytest.raises(AicError):
            degraded(photo, name, 1)


def test_bad_folders(codec, folder, tmp_path):
    (folder / "bad.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"bad\.png"):
        list(rd_table(codec, folder, [40]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no images"):
        list(rd_table(codec, tmp_path / "empty", [40]))
