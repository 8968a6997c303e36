"""The functions at the top of the package: a picture in any form gives the same file, and what has no
meaning as a picture is refused in a sentence."""

import io
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import aiocodec
from aiocodec.errors import BitstreamError, ImageError, ModelError
from aiocodec.image import Picture, read, write

RGB = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
GRAY, ALPHA = RGB[..., 0], RGB[..., 1]
RGBA = np.dstack([RGB, ALPHA])


def same(a: Picture, b: Picture) -> bool:
    alphas = (np.zeros(0) if p.alpha is None else p.alpha for p in (a, b))
    return np.array_equal(a.rgb, b.rgb) and np.array_equal(*alphas) and a.gray == b.gray


PLAIN, GRAYS, BOTH = (
    Picture(rgb=RGB),
    Picture(rgb=np.dstack([GRAY] * 3), gray=True),
    Picture(rgb=RGB, alpha=ALPHA),
)


@pytest.mark.parametrize(
    ("image", "meant"),
    [
        (PLAIN, PLAIN),
        (RGB, PLAIN),
        (RGB[::-1][::-1], PLAIN),
        (np.asfortranarray(RGB), PLAIN),
        (RGB.astype(np.uint16) * 257, PLAIN),
        (RGB.astype(np.float64) / 255, PLAIN),
        (RGB.astype(np.float32) / 255, PLAIN),
        (RGB.astype(">u2") * 257, PLAIN),
        (np.dstack([RGB, np.full_like(ALPHA, 255)]), PLAIN),
        (GRAY, GRAYS),
        (GRAY[..., None], GRAYS),
        (RGBA, BOTH),
        (torch.from_numpy(RGB).permute(2, 0, 1), PLAIN),
        (torch.from_numpy(RGB).permute(2, 0, 1) / 255, PLAIN),
        ((torch.from_numpy(RGB).permute(2, 0, 1) / 255).double().requires_grad_(), PLAIN),
        (torch.from_numpy(GRAY), GRAYS),
        (torch.from_numpy(GRAY)[None], GRAYS),
        (torch.from_numpy(RGBA).permute(2, 0, 1), BOTH),
        (Image.fromarray(RGB), PLAIN),
        (Image.fromarray(GRAY), GRAYS),
        (Image.fromarray(RGBA), BOTH),
    ],
)
def test_a_picture_is_the_same_in_any_form(image, meant):
    assert same(aiocodec.to_picture(image), meant)


def test_files_are_the_same_however_they_come(tmp_path):
    data = write(BOTH, "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    for file in (path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data)):
        assert same(aiocodec.to_picture(file), BOTH)
    with open(path, "rb") as file:
        assert same(aiocodec.to_picture(file), BOTH)


def test_nothing_is_said_of_an_array_that_cannot_be_written():
    """As what numpy makes of an image of Pillow cannot. PyTorch warned, once in a process."""
    whole = np.resize(RGB, (64, 128, 3))  # sides that need no padding, which would copy it
    pixels = np.asarray(Image.fromarray(whole))
    assert not pixels.flags.writeable
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            data = aiocodec.encode(pixels, device="cpu")
    finally:
        torch.set_warn_always(False)
    assert data == aiocodec.encode(whole, device="cpu")


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (RGB.astype(np.int64), TypeError),
        (RGB.astype(np.int8), TypeError),
        (RGB > 100, TypeError),
        (RGB.astype(np.complex64), TypeError),
        (RGB.astype(object), TypeError),
        (RGB.astype(np.float32), ValueError),
        (RGB / 255 - 0.001, ValueError),
        (np.full((8, 8, 3), np.nan), ValueError),
        (np.full((8, 8, 3), np.inf), ValueError),
        (RGB.transpose(2, 0, 1), ValueError),
        (RGB[None], ValueError),
        (RGB[..., :2], ValueError),
        (RGB[0, 0], ValueError),
        (RGB[:0], ValueError),
        (torch.from_numpy(RGB), ValueError),
        (torch.zeros(1, 3, 8, 8), ValueError),
        (torch.zeros(3, 8, 8, dtype=torch.int64), TypeError),
        (torch.zeros(3, 8, 8, dtype=torch.complex64), TypeError),
        (torch.full((3, 8, 8), 255.0), ValueError),
        (torch.eye(8).to_sparse(), TypeError),
        (RGB.tolist(), TypeError),
        (None, TypeError),
        (7, TypeError),
        (io.StringIO("text"), TypeError),
        (b"not an image", ImageError),
        (Image.new("RGB", (0, 8)), ImageError),
        (Path("nowhere.png"), OSError),
    ],
)
def test_what_has_no_meaning_as_a_picture_is_refused_in_a_sentence(image, error):
    with pytest.raises(error) as raised:
        aiocodec.to_picture(image)
    assert raised.type is error or issubclass(raised.type, error)
    assert "\n" not in str(raised.value)


def test_arrays_come_back_in_the_type_that_is_asked_for(tmp_path):
    data = aiocodec.encode(RGBA, 60, device="cpu")
    path = tmp_path / "coded.aic"
    path.write_bytes(data)
    narrow = aiocodec.decode(path, device="cpu")
    assert (narrow.dtype, narrow.shape) == (np.uint8, RGB.shape)
    assert np.array_equal(narrow, aiocodec.decode(io.BytesIO(data), device="cpu"))
    wide = aiocodec.decode(data, dtype="uint16", alpha=True, device="cpu")
    assert np.array_equal(wide[..., 3], ALPHA.astype(np.uint16) * 257)
    floats = aiocodec.decode(data, dtype=np.float32, device="cpu")
    assert floats.dtype == np.float32
    assert np.abs(floats * 255 - narrow).max() <= 0.51
    assert np.array_equal(wide[..., :3], np.rint(floats * 65535))
    opaque = aiocodec.decode(aiocodec.encode(RGB, 60, device="cpu"), alpha=True, device="cpu")
    assert (opaque[..., 3] == 255).all()
    for dtype in ("int32", "float64", "nonsense"):
        with pytest.raises((ValueError, TypeError)):
            aiocodec.decode(data, dtype=dtype)


def test_the_functions_do_what_a_codec_does(codec, photo):
    assert aiocodec.encode(photo, 30, device="cpu") == codec.encode(photo, 30)
    found = aiocodec.encode_to(photo.rgb, max_bytes=9000, device="cpu")
    assert len(found.data) <= 9000
    header = aiocodec.inspect(found.data).header
    assert (header.quality, header.width, header.height) == (found.quality, 480, 320)
    file = io.BytesIO(b"nothing of ours")
    for function in (aiocodec.decode, aiocodec.inspect):
        file.seek(0)
        with pytest.raises(BitstreamError):
            function(file)
    with pytest.raises(ModelError, match="gpu"):
        aiocodec.encode(RGB, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="cuda"):
            aiocodec.encode(RGB, device="cuda")


def test_a_picture_keeps_what_its_file_said(photo):
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "JPEG", exif=exif, quality=95)
    picture = aiocodec.to_picture(Image.open(file))
    assert b"Maker" in picture.exif
    assert same(picture, read(file.getvalue()))


def test_all_names_are_shown_and_nothing_heavy_is_imported_for_them(python):
    script = """
import sys, aiocodec
assert set(aiocodec.__all__) <= set(dir(aiocodec))
aiocodec.errors, aiocodec.inspect
try:
    aiocodec.inspect(b"")
except aiocodec.errors.BitstreamError:
    pass
print(sorted({"torch", "numpy", "PIL"} & set(sys.modules)))
"""
    assert python(script) == "[]\n"
    assert all(getattr(aiocodec, name) is not None for name in aiocodec.__all__)


def test_pictures_can_be_sent_to_other_processes():
    assert same(pickle.loads(pickle.dumps(BOTH)), BOTH)
