"""The pipeline: picture -> .aic bytes -> picture. The only module that knows the whole order.

The symbols are exact on every machine, see latents.py. The transforms g_a, h_a and g_s run in float32,
so decoded pixels of two devices agree within 1 of 255.
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from operator import index
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aiocodec import __version__
from aiocodec.config import (
    DECODED_MAX_PIXELS,
    DEFAULT_EFFORT,
    DEFAULT_QUALITY,
    MAX_COMMENT,
    MAX_EFFORT,
    MAX_SIDE,
)
from aiocodec.container import (
    ChunkType,
    Container,
    Flags,
    Header,
    Latents,
    pack,
    pack_density,
    pack_latents,
)
from aiocodec.entropy.model import EntropyModel
from aiocodec.envelope import Envelope, bounded_memory, check_bits
from aiocodec.errors import AicError, ImageError, LimitError, ModelError
from aiocodec.image import Picture, eight_bits, exif_density, pack_alpha
from aiocodec.latents import CELL, LatentCoder
from aiocodec.metrics import MS_SSIM_SIDE, ms_ssim, psnr
from aiocodec.pretrained import Manifest
from aiocodec.search import EVALUATIONS, MEMORY, WINDOW_PIXELS, cost, search, target
from aiocodec.tiles import Area, Progress, part_of
from aiocodec.tiling import local, transform

TILE = 16  # positions of z that h_a makes at once, per side, at most


class Codec:
    """A loaded model on a device. It may be used by several threads at once, and be pickled.

    Args:
        model: name of the transforms; by default the package's default.
        device: "cpu", "cuda" or "auto", which is "cuda" where there is one.

    Raises:
        ModelError: no such weights, or damaged ones, or no such device.
    """

    def __init__(self, model: str | None = None, device: str = "auto") -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = _device(device)
        manifest = Manifest.read()
        self.name = model or manifest.models[0]
        self.fingerprint = manifest.fingerprint(self.name)
        with _own_state(self.device):
            pretrained = manifest.load(self.name)
            transforms = pretrained.transforms()
            self.transforms = transforms.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.latents = LatentCoder(pretrained.frozen, self.device)
        self.program = pretrained.frozen.program

    def __reduce__(self) -> tuple[type["Codec"], tuple[str, str]]:
        """Another process loads the weights that it has itself."""
        return Codec, (self.name, str(self.device))

    # ----------------------------------------------------------------- encode

    def encode(
        self,
        picture: Picture,
        quality: int = DEFAULT_QUALITY,
        *,
        effort: int = DEFAULT_EFFORT,
        strip: bool | str = False,
        verify: bool = False,
        progress: Progress | None = None,
    ) -> bytes:
        """A picture to the bytes of an .aic file.

        Args:
            quality: 0..100.
            effort: 0..9, how long to search for a better file; 0: not at all. See search.py.
            strip: what to leave out. True or "all": ICC profile, EXIF, XMP, comment and density;
                "private": EXIF, XMP and comment, but not what says how the picture looks.
            verify: decode the symbols again and compare, before anything is returned.
            progress: told again and again how much is done, 0..1.

        Raises:
            ImageError: a side is 0 or longer than 65535 pixels.
            LimitError: not enough memory.
            TypeError, ValueError: quality or effort are no whole numbers, or out of range, or `strip`
                is none of these.
        """
        quality, effort = whole("quality", quality, 100), whole("effort", effort, MAX_EFFORT)
        picture, beside = _eight_bit(picture), _beside(picture, strip)
        with self._ready(picture, effort):
            wanted = None
            if effort:
                restored = self._restored(picture, part_of(progress, 0.0, 0.1))
                wanted, _ = target(picture.rgb, restored)
                progress = part_of(progress, 0.1, 1.0)
            latents, _ = self._latents(picture, quality, effort, wanted, progress)
            if verify:
                self._verify(latents, picture, quality)
        return self._packed(picture, quality, latents, beside)

    def encode_to(
        self,
        picture: Picture,
        *,
        max_bytes: int | None = None,
        min_psnr: float | None = None,
        min_ssim: float | None = None,
        effort: int = DEFAULT_EFFORT,
        strip: bool | str = False,
        verify: bool = False,
        progress: Progress | None = None,
    ) -> "Found":
        """The file of the highest quality that has at most `max_bytes`, or of the lowest one that
        decodes to at least `min_psnr` dB or to an MS-SSIM of `min_ssim`; exactly one is given.

        Files are made and measured until it is certain, which takes few of them: where the next one
        is made is interpolated. Pixels are compared with those of the picture, or, where it is spoiled,
        with what the network restores of it at quality 100 (`Found.against`; see search.py).

        Args are otherwise those of `encode`.

        Raises:
            ImageError: a side is 0 or longer than 65535 pixels, or too short for MS-SSIM.
            LimitError: no quality is enough, or not enough memory.
            TypeError, ValueError: the target is not a number, or not exactly one is given.
        """
        effort = whole("effort", effort, MAX_EFFORT)
        goals = {"max_bytes": max_bytes, "min_psnr": min_psnr, "min_ssim": min_ssim}
        given = {name: goal for name, goal in goals.items() if goal is not None}
        if len(given) != 1:
            raise ValueError("give exactly one of max_bytes, min_psnr and min_ssim")
        ((name, goal),) = given.items()
        if not isinstance(goal, int | float) or not goal > 0 or goal == float("inf"):
            raise ValueError(f"{name} {goal!r} is not a number above 0")
        picture, beside = _eight_bit(picture), _beside(picture, strip)
        if min_ssim is not None and min(picture.rgb.shape[:2]) < MS_SSIM_SIDE:
            raise ImageError(f"MS-SSIM needs sides of {MS_SSIM_SIDE} pixels and more")
        with self._ready(picture, effort):
            wanted, against = None, "input"
            reference = picture.rgb
            if effort or max_bytes is None:
                restored = self._restored(picture, part_of(progress, 0.0, 0.1))
                wanted, share = target(picture.rgb, restored)
                if share < 0.5:
                    reference, against = restored, "restored"
            made: dict[int, tuple[Latents, float]] = {}

            def measure(quality: int) -> float:
                """What the target is about, of the file of a quality."""
                start = min(0.9, 0.1 + 0.1 * len(made))
                latents, decoded = self._latents(
                    picture,
                    quality,
                    effort,
                    wanted,
                    part_of(progress, start, start + 0.1),
                    restore=max_bytes is None,
                )
                if decoded is None or max_bytes is not None:
                    value = float(len(self._packed(picture, quality, latents, beside)))
                elif min_psnr is not None:
                    value = psnr(reference, decoded)
                else:
                    value = ms_ssim(reference, decoded) or 0.0
                made[quality] = latents, value
                return value

            if max_bytes is not None:
                quality = highest(lambda q: math.log(max_bytes / measure(q)), 0.03)
                missed = f"even quality 0 needs more than {max_bytes} bytes"
            elif min_psnr is not None:
                quality = lowest(lambda q: measure(q) - min_psnr, 0.1)
                missed = "even quality 100 has no more than {:.2f} dB"
            else:
                bound = _decibels(min_ssim or 0.0)
                quality = lowest(lambda q: _decibels(measure(q)) - bound, 0.1)
                missed = "even quality 100 has no more than an MS-SSIM of {:.4f}"
            if quality is None:
                raise LimitError(missed.format(made[0 if max_bytes is not None else 100][1]))
            latents, value = made[quality]
            if verify:
                self._verify(latents, picture, quality)
        return Found(
            data=self._packed(picture, quality, latents, beside),
            quality=quality,
            encodes=len(made),
            psnr=value if min_psnr is not None else None,
            ssim=value if min_ssim is not None else None,
            against=against if max_bytes is None else None,
        )

    @contextmanager
    def _ready(self, picture: Picture, effort: int) -> Iterator[None]:
        """Whatever encoding a picture needs about it; errors as of `encode`."""
        height, width, _ = picture.rgb.shape
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise ImageError(f"a picture of {width}x{height} pixels cannot be coded")
        pixels = height * width
        extra = MEMORY * min(pixels, WINDOW_PIXELS) if effort else 0
        with _bounded_memory(pixels, extra), torch.inference_mode(), _own_state(self.device):
            yield

    def _latents(
        self,
        picture: Picture,
        quality: int,
        effort: int,
        wanted: NDArray[np.uint8] | None,
        progress: Progress | None,
        restore: bool = False,
    ) -> tuple[Latents, NDArray[np.uint8] | None]:
        """What a picture is coded as, and, where that was asked for or needed, what it decodes to.
        With an effort, it is to decode to what is `wanted`."""
        height, width, _ = picture.rgb.shape

        def coded(y: Tensor, start: float, stop: float) -> tuple[Latents, NDArray[np.uint8] | None]:
            share = part_of(progress, start, stop)
            latents = self.latents.encode(y, z, quality, share, restore=restore)
            if not restore:
                return latents, None
            share = part_of(progress, stop, stop)
            return latents, self._g_s(y, width, height, quality, picture.gray, share)

        y = self._g_a(picture.rgb, quality, part_of(progress, 0.0, 0.05 if effort else 0.6))
        z = self._h_a(y)
        if wanted is None or not effort:
            return coded(y, 0.6, 1.0)
        restore, start = True, y.clone()
        before = coded(y, 0.05, 0.1)
        del y
        found = search(
            start,
            self.latents.z_hat(z),
            quality,
            EVALUATIONS[effort],
            self.transforms.g_s,
            self._entropy,
            wanted,
            picture.gray,
            part_of(progress, 0.1, 0.9),
        )
        del start
        after = coded(found, 0.9, 1.0)
        costs = [
            cost(len(latents.words), decoded, wanted, quality)
            for latents, decoded in (before, after)
            if decoded is not None
        ]
        return before if costs[0] <= costs[1] else after

    def _restored(self, picture: Picture, progress: Progress) -> NDArray[np.uint8]:
        """What the network makes of a picture at its best, uint8 [H, W, 3], before anything is
        quantised."""
        height, width, _ = picture.rgb.shape
        y = self._g_a(picture.rgb, 100, part_of(progress, 0.0, 0.5))
        return self._g_s(y, width, height, 100, picture.gray, part_of(progress, 0.5, 1.0))

    @cached_property
    def _entropy(self) -> EntropyModel:
        """The entropy model with gradients."""
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            return Manifest.read().load(self.name).entropy().to(self.device)

    def _packed(
        self,
        picture: Picture,
        quality: int,
        latents: Latents,
        beside: list[tuple[int, bytes]],
    ) -> bytes:
        """The file of what a picture was coded as."""
        height, width, _ = picture.rgb.shape
        flags = Flags(0)
        for flag, present in (
            (Flags.GRAY, picture.gray),
            (Flags.ALPHA, picture.alpha is not None),
            (Flags.SIXTEEN_BIT, picture.sixteen_bit),
            (Flags.ORIENTED, picture.oriented),
        ):
            flags |= flag if present else Flags(0)
        chunks = [(int(ChunkType.LATENTS), pack_latents(latents)), *beside]
        chunks.append((ChunkType.PROVENANCE, f"{self.name} aiocodec/{__version__}".encode()))
        return pack(Header(quality, width, height, self.fingerprint, flags), chunks)

    def _verify(self, latents: Latents, picture: Picture, quality: int) -> None:
        """Decode what was coded; ModelError where that fails, as a decoder would."""
        height, width, _ = picture.rgb.shape
        try:
            self.latents.decode(latents, width, height, quality)
        except AicError:
            fault = "the symbols do not decode to what was coded"
            raise ModelError(f"verification failed: {fault}") from None

    # ----------------------------------------------------------------- decode

    def decode(
        self,
        data: bytes | Container,
        *,
        bits: int = 8,
        max_pixels: int = DECODED_MAX_PIXELS,
        progress: Progress | None = None,
    ) -> Picture:
        """The bytes of an .aic file (or one already taken apart) to the restored picture.

        Args:
            bits: 8 or 16, of the samples of `rgb`; what g_s computes is finer than either.
            max_pixels: refuse larger pictures; a file that was taken apart has passed its limit.
            progress: told again and again how much is done, 0..1.

        Raises:
            BitstreamError: the file is corrupt or truncated.
            VersionError, ModelError: it needs another version or other weights.
            LimitError: more than `max_pixels` pixels, or not enough memory.
            ValueError: other `bits`.
        """
        check_bits(bits)
        envelope = Envelope.open(data, max_pixels, self.name, self.fingerprint)
        header = envelope.header
        height, width = header.height, header.width
        with (
            _bounded_memory(width * height),
            torch.inference_mode(),
            _own_state(self.device),
        ):
            share = part_of(progress, 0.0, 0.4)
            y_hat = self.latents.decode(envelope.latents, width, height, header.quality, share)
            share = part_of(progress, 0.4, 1.0)
            rgb = self._g_s(y_hat, width, height, header.quality, envelope.gray, share, bits)
            del y_hat
        return envelope.picture(rgb)

    # ----------------------------------------------------------------- the transforms, in tiles

    def _g_a(self, rgb: NDArray[np.uint8], quality: int, progress: Progress) -> Tensor:
        """uint8 [H, W, 3] -> y [N, H', W'] of the picture, padded to multiples of 64 by its last rows
        and columns."""
        height, width, _ = rgb.shape
        stride = self.program.latent_stride
        rows, columns = (-(-side // self.program.stride) * CELL for side in (height, width))
        y = torch.empty(self.program.latents, rows, columns, device=self.device)

        def read(area: Area) -> Tensor:
            (top, bottom), (left, right) = (
                (part.start * stride, part.stop * stride) for part in area
            )
            pixels = rgb[top:bottom, left:right]
            if bottom > height or right > width:
                missing = ((0, max(0, bottom - height)), (0, max(0, right - width)), (0, 0))
                pixels = np.pad(pixels, missing, mode="edge")
            x = (
                torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
                .to(self.device)
                .permute(2, 0, 1)[None]
                .float()
                / 255
            )
            return x.contiguous(memory_format=torch.channels_last)

        def write(area: Area, part: Tensor) -> None:
            y[(..., *area)] = part[0]

        q = torch.tensor([float(quality)], device=self.device)
        transform(self.transforms.g_a, q, (rows, columns), self.program.tile, read, write, progress)
        return y

    def _h_a(self, y: Tensor) -> Tensor:
        """y [N, H, W] -> z [Z, H/4, W/4]."""
        cells = y.shape[1] // CELL, y.shape[2] // CELL
        z = torch.empty(self.program.hyper, *cells, device=self.device)
        h_a = self.transforms.h_a
        return local(lambda part: h_a(part[None])[0], y, cells, TILE, h_a.halo, z)

    def _g_s(
        self,
        y_hat: Tensor,
        width: int,
        height: int,
        quality: int,
        gray: bool,
        progress: Progress,
        bits: int = 8,
    ) -> NDArray[Any]:
        """y_hat [N, H', W'] -> [H, W, 3] of so many bits, rounded and clipped; three times their mean if
        `gray`."""
        stride, top = self.program.latent_stride, 2**bits - 1
        rgb = np.empty((height, width, 3), np.uint8 if bits == 8 else np.uint16)

        def read(area: Area) -> Tensor:
            return y_hat[(..., *area)][None].contiguous(memory_format=torch.channels_last)

        def write(area: Area, part: Tensor) -> None:
            rows, columns = (slice(a.start * stride, a.stop * stride) for a in area)
            room = rgb[rows, columns]
            part = part[0, :, : room.shape[0], : room.shape[1]]
            if gray:
                part = part.mean(0, keepdim=True).expand(3, -1, -1)
            pixels = part.mul(top).add_(0.5).floor_().clamp_(0, top)
            kind = torch.uint8 if bits == 8 else torch.int32
            room[:] = pixels.to(kind).permute(1, 2, 0).cpu().numpy()

        q = torch.tensor([float(quality)], device=self.device)
        size = int(y_hat.shape[1]), int(y_hat.shape[2])
        transform(self.transforms.g_s, q, size, self.program.tile, read, write, progress)
        return rgb


def _eight_bit(picture: Picture) -> Picture:
    """A picture of 16 bits with the 8 bits that are coded; TypeError for what is no picture."""
    if not isinstance(picture, Picture):
        kind = type(picture).__name__
        raise TypeError(
            f"a {kind} is no Picture; aiocodec.to_picture makes one of images and arrays"
        )
    if picture.rgb.dtype == np.uint8:
        return picture
    return replace(picture, rgb=eight_bits(picture.rgb), sixteen_bit=True)


def _beside(picture: Picture, strip: bool | str) -> list[tuple[int, bytes]]:
    """The chunks beside the latents: alpha, and the metadata but for what `strip`, see `Codec.encode`,
    leaves out; a density that the EXIF has, and a comment of more than MAX_COMMENT bytes, get none."""
    if strip not in (False, True, "all", "private"):
        raise ValueError(f"strip is {strip!r}, not False, True, 'all' or 'private'")
    alpha = None if picture.alpha is None else pack_alpha(picture.alpha)
    if strip in (True, "all"):
        return [] if alpha is None else [(ChunkType.ALPHA, alpha)]
    exif, xmp, comment = picture.exif, picture.xmp, picture.comment
    if strip == "private":
        exif = xmp = comment = None
    density = picture.density if picture.density != exif_density(exif) else None
    chunks = (
        (ChunkType.ALPHA, alpha),
        (ChunkType.ICC, picture.icc),
        (ChunkType.EXIF, exif),
        (ChunkType.XMP, xmp),
        (ChunkType.DENSITY, pack_density(density) if density else None),
        (ChunkType.COMMENT, comment if comment and len(comment) <= MAX_COMMENT else None),
    )
    return [(kind, payload) for kind, payload in chunks if payload]


def needed_memory(pixels: int) -> int:
    """Bytes that coding a picture takes at most, either way, beside its pixels and the model: a map
    of features that is kept while it is small, or more for each pixel of a small picture."""
    return min(60 * pixels + (100 << 20), 12 * pixels + (600 << 20))


@dataclass(frozen=True)
class Found:
    """A file that meets a target, and how it was found."""

    data: bytes
    quality: int  # 0..100
    encodes: int  # how many files were made to find it
    psnr: float | None = None  # in dB, where that was the target
    ssim: float | None = None  # MS-SSIM, at most 1, where that was the target
    against: str | None = (
        None  # "input" or "restored": what pixels were compared with, if they were
    )


def whole(name: str, value: object, most: int) -> int:
    """`value` as a whole number 0..most; TypeError for what is none, ValueError beyond."""
    try:
        exact = int(value) if isinstance(value, float) and value.is_integer() else value
        number = index(exact)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} {value!r} is not a whole number") from None
    if not 0 <= number <= most:
        raise ValueError(f"{name} {number} is not in 0..{most}")
    return int(number)


def highest(margin: Callable[[int], float], slope: float) -> int | None:
    """The highest quality 0..100 whose margin is not negative, if margins fall as qualities grow, by
    about `slope` from each to the next; None where even that of 0 is negative. The next quality to try
    is where the line through the two that are nearest to it says, until one and the next one up tell;
    where that takes long, halfway."""
    good, bad, known = -1, 101, dict[int, float]()
    quality = 50
    while bad - good > 1:
        known[quality] = min(max(margin(quality), -1e3), 1e3)
        good, bad = (quality, bad) if known[quality] >= 0 else (good, quality)
        if len(known) > 5:
            quality = (good + bad) // 2
            continue
        near, *others = sorted(known, key=lambda q: abs(known[q]))
        if others and known[near] != known[others[0]]:
            slope = (known[others[0]] - known[near]) / (near - others[0])
        root = near + known[near] / slope if slope > 0 else (good + bad) // 2
        quality = min(max(math.floor(root), good + 1), bad - 1)
    return None if good < 0 else good


def lowest(excess: Callable[[int], float], slope: float) -> int | None:
    """The lowest quality 0..100 whose excess is not negative, if excesses grow with the quality, by about
    `slope`; None where even that of 100 is negative."""
    found = highest(lambda rest: excess(100 - rest), slope)
    return None if found is None else 100 - found


def _decibels(ssim: float) -> float:
    """MS-SSIM on a scale on which curves of codecs are nearly straight."""
    return -10 * math.log10(max(1 - ssim, 1e-9))


def _bounded_memory(pixels: int, extra: int = 0) -> AbstractContextManager[None]:
    """The bound for coding a picture, with `extra` bytes on top; see `bounded_memory`."""
    return bounded_memory(pixels, needed_memory(pixels) + extra)


class _State:
    """What belongs to the whole process of how torch computes, while any thread of it codes: float32,
    and float32 in full, without TF32. The first thread in sets it, the last one out restores it."""

    def __init__(self) -> None:
        self.lock, self.count = threading.Lock(), 0

    def __enter__(self) -> None:
        with self.lock:
            self.count += 1
            if self.count > 1:
                return
            cudnn = torch.backends.cudnn
            self.before = (
                torch.get_default_dtype(),
                torch.get_float32_matmul_precision(),
                cudnn.allow_tf32,
            )
            torch.set_default_dtype(torch.float32)
            torch.set_float32_matmul_precision("highest")
            cudnn.allow_tf32 = False

    def __exit__(self, *fault: object) -> None:
        with self.lock:
            self.count -= 1
            if self.count == 0:
                dtype, precision, torch.backends.cudnn.allow_tf32 = self.before
                torch.set_default_dtype(dtype)
                torch.set_float32_matmul_precision(precision)


_STATE = _State()


@contextmanager
def _own_state(device: torch.device) -> Iterator[None]:
    """Computing as if nobody had told torch anything: no autocast, no other default type or device."""
    with torch.autocast(device.type, enabled=False), torch.device(device), _STATE:
        yield


def _device(name: str) -> torch.device:
    """ModelError for what is no device, or none that is here. Others than these two have no float64, which
    the exact networks need, or are not tested."""
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise ValueError
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError, TypeError):
        raise ModelError(f"no device {name!r} is available") from None
    return device
