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
    return assert_type(aiocodec.decode(data, device="cpu"), NDArray[np.uint8])


def a_codec(rgb: NDArray[np.uint8]) -> Picture:
    """A loaded model, for pictures with more than pixels."""
    told: list[float] = []
    codec = aiocodec.Codec(device="cpu")
    assert_type(codec.name, str)
    picture = Picture(rgb=rgb, alpha=rgb[..., 0])
    data = codec.encode(picture, 40, strip=True, verify=True, progress=told.append)
    assert_type(data, bytes)
    limited, quality = codec.encode_to_size(picture, len(data))
    assert_type(limited, bytes)
    assert_type(quality, int)
    return assert_type(codec.decode(limited, max_pixels=1 << 20), Picture)


def misuse(anything: Any) -> None:
    """What mypy must find, or it would find nothing: an unused `ignore` is an error."""
    if anything:
        aiocodec.encode("picture.png")  # type: ignore[arg-type]
        anything = aiocodec.decode(b"").nonsense  # type: ignore[attr-defined]
        anything = aiocodec.nonsense  # type: ignore[attr-defined]
