"""A learned image codec that restores what it compresses.

    import aiocodec
    data = aiocodec.encode("photo.jpg", quality=50)     # a path, a file, an array ... -> bytes
    rgb = aiocodec.decode(data)                         # uint8 [H, W, 3], clean
    info = aiocodec.inspect(data)                       # what the file says of itself; no network
    found = aiocodec.encode_to(rgb, max_bytes=40_000)   # the best file of that size

`aiocodec.Codec` keeps a loaded model for many pictures, which `aiocodec.to_picture` makes of whatever
`encode` takes, and gives them back with alpha and metadata; see aiocodec/api.py. `aiocodec.LightCodec`
decodes without PyTorch, as `decode` does where it is missing. Errors are the tree of `aiocodec.errors`.
Nothing heavy is imported before it is used.
"""

TYPE_CHECKING = False  # as in typing, whose import takes longer than all of this

__version__ = "0.1.0"
__all__ = [
    "Codec",
    "LightCodec",
    "Picture",
    "__version__",
    "decode",
    "encode",
    "encode_to",
    "errors",
    "inspect",
    "to_picture",
]

if TYPE_CHECKING:
    from typing import Any

    from aiocodec import errors as errors
    from aiocodec.api import decode as decode
    from aiocodec.api import encode as encode
    from aiocodec.api import encode_to as encode_to
    from aiocodec.api import inspect as inspect
    from aiocodec.api import to_picture as to_picture
    from aiocodec.codec import Codec as Codec
    from aiocodec.image import Picture as Picture
    from aiocodec.light import LightCodec as LightCodec
else:  # to a type checker, it would be a promise of any name

    def __getattr__(name: str) -> "Any":
        from importlib import import_module

        if name == "errors":
            return import_module("aiocodec.errors")
        if name in __all__:
            home = {"Codec": "codec", "LightCodec": "light", "Picture": "image"}.get(name, "api")
            return getattr(import_module(f"aiocodec.{home}"), name)
        raise AttributeError(f"module 'aiocodec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
