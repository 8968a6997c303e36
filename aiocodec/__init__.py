"""A learned image codec that restores what it compresses.

    import aiocodec
    data = aiocodec.encode(rgb, quality=50)     # uint8 [H, W, 3] -> bytes of an .aic file
    rgb = aiocodec.decode(data)                 # and back, clean
    info = aiocodec.inspect(data)               # what the file says of itself; loads no network

`aiocodec.Codec` keeps a loaded model for many images and handles alpha and metadata. Errors are the
tree of `aiocodec.errors`. Nothing heavy is imported before it is used.
"""

TYPE_CHECKING = False  # as in typing, whose import takes longer than all of this

__version__ = "0.1.0"
__all__ = ["Codec", "__version__", "decode", "encode", "errors", "inspect"]

if TYPE_CHECKING:
    from typing import Any

    from aiocodec import errors as errors
    from aiocodec.codec import Codec as Codec
    from aiocodec.codec import decode as decode
    from aiocodec.codec import encode as encode
    from aiocodec.container import unpack as inspect
else:  # to a type checker, it would be a promise of any name

    def __getattr__(name: str) -> "Any":
        from importlib import import_module

        if name in ("Codec", "encode", "decode"):
            return getattr(import_module("aiocodec.codec"), name)
        if name == "inspect":
            return import_module("aiocodec.container").unpack
        if name == "errors":
            return import_module("aiocodec.errors")
        raise AttributeError(f"module 'aiocodec' has no attribute {name!r}")
