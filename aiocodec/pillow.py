"""Pillow reads and writes .aic files once this module is imported.

    import aiocodec.pillow
    from PIL import Image

    with Image.open("small.aic") as image:  # its size, mode and info; no network is loaded
        image.load()  # now it is
    image.save("smaller.aic", quality=30)

The mode is L, LA, RGB or RGBA. The info has "quality", 0..100, and what the file has of "icc_profile",
"exif", "xmp", "dpi" and "comment". As everywhere in Pillow, an EXIF orientation is left to
`ImageOps.exif_transpose`.

Options of `save`: quality, 0..100; effort, as in `Codec.encode`; exif, bytes or an `Image.Exif`, xmp and
dpi, which are written only if given; icc_profile and comment, by default those of the image. Modes other than those
four are converted as `image.from_pillow` does, and transparency is without loss.

What Pillow's own plugins raise, this one does, with the error of aiocodec as the cause: a file that
is none, or whose header is damaged, is not identified; OSError says why a file cannot be decoded or an
image not be coded, ValueError which option is wrong. Pillow's limit of pixels holds.

Threads may open, load and save at once. The networks code one picture at a time, on all cores, and a
process has one copy of each. (Processes are to be spawned: one that is forked after a picture was coded
may hang, as with all that uses PyTorch.) Opening, `verify` and all that asks for no pixels need no
PyTorch.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import SEEK_END, BytesIO
from typing import IO, TYPE_CHECKING, Any

from PIL import Image, ImageFile

from aiocodec import tiff
from aiocodec.batch import load_codec, load_decoder, load_frozen
from aiocodec.config import DEFAULT_QUALITY, MAX_COMMENT, MAX_SIDE
from aiocodec.container import (
    HEADER_SIZE,
    MAGIC,
    ChunkType,
    Container,
    Flags,
    unpack,
    unpack_density,
    unpack_header,
)
from aiocodec.errors import AicError, BitstreamError, ModelError, VersionError, as_aic_error
from aiocodec.loading import loading
from aiocodec.pretrained import Manifest

if TYPE_CHECKING:
    from PIL._imaging import PixelAccess

_PART = 1 << 20  # bytes that are read at once; what is claimed is not allocated before it is there
_EXIF_PREFIX = b"Exif\0\0"
_INCH = 0.0254  # metres
# Two pictures at once would take the memory of both for little time gained, and each would count only
# its own.
_CODING = threading.Lock()


class AicImageFile(ImageFile.ImageFile):
    """An .aic file that Pillow has opened; its pixels are decoded by `load`."""

    format = "AIC"
    format_description = "All-in-one image codec"
    _data: bytes | None = None  # the file, until it is loaded or closed

    def _open(self) -> None:
        assert self.fp is not None
        head = self.fp.read(HEADER_SIZE)
        try:
            header, length = unpack_header(head)
        except VersionError as fault:
            raise OSError(str(fault)) from fault
        except BitstreamError as fault:  # Pillow says that it cannot identify the file
            raise SyntaxError(str(fault)) from fault
        data = BytesIO(head)
        data.seek(0, SEEK_END)
        while part := self.fp.read(
            min(_PART, length + 1 - data.tell())
        ):  # one more: it is too long
            data.write(part)
        self._data = data.getvalue()
        self._size = header.width, header.height
        self.info["quality"] = header.quality
        alpha = bool(header.flags & Flags.ALPHA)
        with suppress(AicError):  # `load` raises it
            container = _taken_apart(self._data)
            alpha = container.get(ChunkType.ALPHA) is not None
            for key, kind, prefix in (
                ("icc_profile", ChunkType.ICC, b""),
                ("exif", ChunkType.EXIF, _EXIF_PREFIX),
                ("xmp", ChunkType.XMP, b""),
                ("comment", ChunkType.COMMENT, b""),
            ):
                if payload := container.get(kind):
                    self.info[key] = prefix + payload
            if dpi := _dpi(container):
                self.info["dpi"] = dpi
        self._mode = ("L" if header.flags & Flags.GRAY else "RGB") + ("A" if alpha else "")

    def load(self) -> "PixelAccess | None":
        """Decode the pixels, if that was not done yet.

        Raises OSError where the file is damaged or made with another model, or memory does not
        suffice; ValueError for an image that was closed.
        """
        data = self._data
        if data is not None:
            with _pillow_errors():
                image = _decoded(_taken_apart(data))
            self.im, self.readonly, self._data = image.im, image.readonly, None
            if self.fp and self._exclusive_fp:
                self.fp.close()
            self.fp = None
        return super().load()

    def verify(self) -> None:
        """Check all of the file that can be checked without a network: every CRC of the container, and
        the symbols that come first. Raises OSError for a damaged one."""
        if self._data is not None:
            with _pillow_errors():
                _screen(_taken_apart(self._data))
        super().verify()

    def close(self) -> None:
        """Forget file and pixels, as for any image."""
        self._data = None
        super().close()


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(MAGIC)


def _taken_apart(data: bytes) -> Container:
    """The container of a file whose size Pillow has accepted."""
    return unpack(data, max_pixels=MAX_SIDE * MAX_SIDE)


def _dpi(container: Container) -> tuple[float, float] | None:
    """Dots per inch along x and y, of the file or else of its EXIF; None where they say nothing."""
    if density := unpack_density(container.get(ChunkType.DENSITY) or b""):
        return density[0] * _INCH, density[1] * _INCH
    x, y, unit = tiff.resolution(container.get(ChunkType.EXIF) or b"") or (0, 0, 1)
    return None if unit == 1 else (x, y) if unit == 2 else (x * 100 * _INCH, y * 100 * _INCH)


def _decoded(container: Container) -> Image.Image:
    with loading("numpy"):
        from aiocodec.image import to_pillow
    name = Manifest.read().for_fingerprint(container.header.fingerprint)
    with _CODING:
        picture = load_decoder(name, "auto", None).decode(container)
    return to_pillow(picture)


def _screen(container: Container) -> None:
    with loading("numpy"):
        from aiocodec.hyper import screen
    try:
        frozen = load_frozen(Manifest.read().for_fingerprint(container.header.fingerprint))
    except ModelError:  # nothing is wrong with the file
        return
    screen(container, frozen)


def _save(im: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    options = im.encoderinfo
    quality = options.get("quality", DEFAULT_QUALITY)
    if not isinstance(quality, int) or not 0 <= quality <= 100:
        raise ValueError(f"quality {quality!r} is not a whole number in 0..100")
    if 0 in im.size:
        raise ValueError("cannot write empty image as AIC")
    exif = options.get("exif")
    metadata = {
        "icc_profile": options.get("icc_profile", im.info.get("icc_profile")),
        "exif": exif.tobytes() if isinstance(exif, Image.Exif) else exif,
        "xmp": options.get("xmp"),
        "dpi": options.get("dpi"),
        "comment": options.get("comment", im.info.get("comment")),
    }
    if not _is_density(metadata["dpi"]):
        raise ValueError(f"dpi {metadata['dpi']!r} are not two numbers, from 0 on")
    further = {"effort": options["effort"]} if "effort" in options else {}
    with _pillow_errors():
        data = _coded(im, metadata, quality, further)
    fp.write(data)


def _coded(
    image: Image.Image, metadata: dict[str, Any], quality: int, further: dict[str, Any]
) -> bytes:
    with loading("numpy"):
        from aiocodec.image import MAX_EXIF, MAX_XMP, from_pillow
    picture = from_pillow(image, upright=False, metadata=metadata)
    if metadata["icc_profile"] and not isinstance(metadata["icc_profile"], bytes):
        raise ValueError("the ICC profile is not given as bytes")
    if metadata["exif"] and picture.exif is None:
        raise ValueError(f"the EXIF is not a TIFF block of at most {MAX_EXIF >> 20} MiB")
    if metadata["xmp"] and picture.xmp is None:
        raise ValueError(f"the XMP is not a packet of at most {MAX_XMP >> 20} MiB")
    if image.encoderinfo.get("comment") and picture.comment is None:
        raise ValueError(f"the comment is not text of at most {MAX_COMMENT >> 10} KiB")
    with _CODING:
        codec = load_codec(Manifest.read().models[0], "auto", None)
        return codec.encode(picture, quality, **further)


def _is_density(dpi: object) -> bool:
    """Whether this may be dots per inch, or stand for none."""
    try:
        return dpi is None or [float(number) >= 0 for number in dpi] == [True, True]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        return False


@contextmanager
def _pillow_errors() -> Iterator[None]:
    """OSError for what goes wrong, as Pillow's own plugins raise, with the error as its cause; those
    of wrong arguments stay as they are."""
    try:
        yield
    except (TypeError, ValueError):
        raise
    except Exception as fault:
        error = as_aic_error(fault)
        raise OSError(str(error)) from error


Image.register_open(AicImageFile.format, AicImageFile, _accept)
Image.register_save(AicImageFile.format, _save)
Image.register_extension(AicImageFile.format, ".aic")
Image.register_mime(AicImageFile.format, "image/x-aic")
