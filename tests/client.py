"""A program of somebody else, who uses all that `aiocodec` names and trusts its types: mypy reads it in
test_package.py, and it runs there. Whoever adds a public name uses it here."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import aiocodec
from aiocodec.container import Container
from aiocodec.image import Picture

if TYPE_CHECKING:
    from typing_extensions import assert_type
else:

    def assert_type(value, kind):
        """Nothing happens when it runs."""
        return value


def errors() -> None:
    """The tree of errors, by which a client tells what it can do."""
    try:
        aiocodec.inspect(b"")
    except aiocodec.errors.BitstreamError as error:
        assert_type(error.exit_code, int)
    assert_type(aiocodec.__version__, str)


def functions(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Arrays to bytes and back."""
    data = aiocodec.encode(rgb, quality=50, model=None, device="cpu")
    assert_type(data, bytes)
    container = aiocodec.inspect(data)
    assert_type(container, Container)
    assert_type(container.header.quality, int)
    picture = aiocodec.to_picture(rgb)
    assert_type(picture, aiocodec.Picture)
    found = aiocodec.encode_to(picture, max_bytes=len(data), device="cpu")
    assert_type(found.quality, int)
    return assert_type(aiocodec.decode(data, device="cpu"), NDArray[Any])


def a_codec(rgb: NDArray[np.uint8]) -> Picture:
    """A loaded model, for pictures with more than pixels."""
    told: list[float] = []
    codec = aiocodec.Codec(device="cpu")
    assert_type(codec.name, str)
    picture = Picture(rgb=rgb, alpha=rgb[..., 0])
    data = codec.encode(picture, 40, strip=True, verify=True, progress=told.append)
    assert_type(data, bytes)
    found = codec.encode_to(picture, max_bytes=len(data))
    assert_type(found.data, bytes)
    assert_type(found.quality, int)
    light = aiocodec.LightCodec(threads=1)
    assert_type(light.decode(data, bits=16), Picture)
    return assert_type(codec.decode(found.data, max_pixels=1 << 20), Picture)


def misuse(anything: Any) -> None:
    """What mypy must find, or it would find nothing: an unused `ignore` is an error."""
    if anything:
        aiocodec.encode("picture.png", "best")  # type: ignore[arg-type]
        anything = aiocodec.decode(b"").nonsense  # type: ignore[attr-defined]
        anything = aiocodec.nonsense  # type: ignore[attr-defined]
