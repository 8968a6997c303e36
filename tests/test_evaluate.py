"""RD tables: figures of real files, reproducible, and errors that name the file."""

import numpy as np
import pytest
from PIL import Image

from aiocodec.errors import ImageError
from aiocodec.evaluate import add_noise, rd_table
from aiocodec.image import read
from aiocodec.metrics import psnr


@pytest.fixture
def folder(tmp_path, photo):
    for i in range(2):
        Image.fromarray(photo.rgb[i * 64 : i * 64 + 64, :128]).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("sigma", [0.0, 25.0])
def test_rows_are_those_of_real_files(codec, folder, sigma):
    (row,) = rd_table(codec, folder, [40], sigma)
    sizes, errors = [], []
    for number in (1, 2):
        clean = read((folder / f"{number - 1}.png").read_bytes())
        noise = np.random.default_rng(number).normal(0, sigma, clean.rgb.shape)
        degraded = np.clip(np.round(clean.rgb + noise), 0, 255).astype(np.uint8)
        data = codec.encode(add_noise(clean, sigma, number) if sigma else clean, 40, strip=True)
        assert sigma == 0 or np.array_equal(add_noise(clean, sigma, number).rgb, degraded)
        sizes.append(8 * len(data) / (64 * 128))
        errors.append(psnr(clean.rgb, codec.decode(data).rgb))
    assert row["bpp"] == pytest.approx(np.mean(sizes), abs=1e-4)
    assert row["psnr"] == pytest.approx(np.mean(errors), abs=1e-3)
    assert (row["images"], row["quality"], row["sigma"]) == (2, 40, sigma)


def test_bad_folders(codec, folder, tmp_path):
    (folder / "bad.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"bad\.png"):
        list(rd_table(codec, folder, [40]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no images"):
        list(rd_table(codec, tmp_path / "empty", [40]))
