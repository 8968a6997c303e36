"""The codecs that an evaluation compares, and what a file costs: bytes, seconds, memory.

A codec is named by a specification,

    [RESTORER[:SIGMA]+]CODEC[:MODEL][/EFFORT][@QUALITY,QUALITY,...]

`aic`, `aic:fast@30,60`, `aic/3`, `jpeg`, `webp`, `avif@20,40`, `nlm+avif`: the last is a cascade, which restores
with a classical method of `restorers` and codes what it gives. Every codec works in a process of its own, so that
its peak memory is its own and its crash is no one else's.
"""

import functools
import io
import math
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aiocodec.errors import AicError, CodecMissing, out_of_memory
from aiocodec.evaluate.restorers import RESTORERS, Pixels

# Of a codec by default; on photographs they span about 0.1 to 1.2 bpp.
QUALITIES: dict[str, tuple[int, ...]] = {
    "aic": (10, 30, 50, 70, 90),
    "jpeg": (8, 20, 40, 60, 80),
    "webp": (1, 15, 40, 65, 85),
    "avif": (8, 20, 32, 44, 56),
}
PILLOW = {  # format, and the options that make the most of it
    "jpeg": ("JPEG", {"optimize": True, "progressive": True}),
    "webp": ("WEBP", {"method": 6}),
    "avif": (
        "AVIF",
        {"codec": "aom", "speed": 4, "subsampling": "4:4:4", "advanced": {"tune": "psnr"}},
    ),
}
SIGMAS = (0.0, 255.0)


@dataclass(frozen=True)
class CodecSpec:
    """What to compare, as parsed from its specification."""

    codec: str  # a name of QUALITIES
    qualities: tuple[int, ...]  # 0..100, growing, at least one
    model: str | None = None  # of aic; None is the default of the package
    restorer: str | None = None  # a name of RESTORERS, run before the codec
    sigma: float | None = None  # of the noise that the restorer removes; None: as was added
    effort: int = 0  # of aic, 0..9

    @classmethod
    def parse(cls, text: str) -> "CodecSpec":
        """A specification as in the docstring above; ValueError for any other text."""
        match = re.fullmatch(
            r"(?:(?P<restorer>\w+)(?::(?P<sigma>[\d.]+))?\+)?"
            r"(?P<codec>\w+)(?::(?P<model>[\w-]+))?(?:/(?P<effort>\d))?(?:@(?P<qualities>\d+(?:,\d+)*))?",
            text,
        )
        if match is None:
            raise ValueError(
                f"{text!r} is no codec; write aic, jpeg@20,40 or nlm+avif, for example"
            )
        codec, restorer, sigma = match["codec"], match["restorer"], match["sigma"]
        if codec not in QUALITIES:
            raise ValueError(f"no codec is called {codec!r}; there are {', '.join(QUALITIES)}")
        if restorer is not None and restorer not in RESTORERS:
            raise ValueError(
                f"no restorer is called {restorer!r}; there are {', '.join(RESTORERS)}"
            )
        if (match["model"] or match["effort"]) and codec != "aic":
            raise ValueError(f"{text!r}: only aic has models and efforts")
        qualities = QUALITIES[codec]
        if match["qualities"]:
            qualities = tuple(sorted({int(q) for q in match["qualities"].split(",")}))
        if qualities[-1] > 100:
            raise ValueError(f"{text!r}: qualities are 0 to 100")
        try:
            strength = None if sigma is None else float(sigma)
        except ValueError:
            strength = math.inf
        if strength is not None and not SIGMAS[0] < strength <= SIGMAS[1]:
            raise ValueError(f"{text!r}: the noise is above 0 and at most 255, not {sigma}")
        if strength is not None and restorer and not RESTORERS[restorer].of_noise:
            raise ValueError(f"{text!r}: {restorer} is told no strength")
        return cls(codec, qualities, match["model"], restorer, strength, int(match["effort"] or 0))

    @property
    def name(self) -> str:
        """The specification without qualities: how tables and plots call it."""
        codec = f"{self.codec}:{self.model}" if self.model else self.codec
        codec += f"/{self.effort}" if self.effort else ""
        if self.restorer is None:
            return codec
        sigma = "" if self.sigma is None else f":{self.sigma:g}"
        return f"{self.restorer}{sigma}+{codec}"

    def told(self, added: float | None) -> float | None:
        """The standard deviation of the noise that the restorer is told, where `added` was added, or
        None where that is unknown or there is none; 0 where there is no restorer, or one that is told
        nothing. None: the codec cannot be run."""
        if self.restorer is None or not RESTORERS[self.restorer].of_noise:
            return 0
        return (added or None) if self.sigma is None else self.sigma

    def check(self) -> None:
        """Raises CodecMissing where this installation cannot run the codec."""
        if self.codec in PILLOW:
            from PIL import features

            name = {"jpeg": "jpg"}.get(self.codec, self.codec)
            if not features.check(name):
                raise CodecMissing(f"this Pillow has no {self.codec.upper()}")
        if self.restorer is not None:
            RESTORERS[self.restorer].check(self.restorer)
        try:
            self.identity  # noqa: B018 - of aic it reads the weights' manifest
        except AicError as error:
            raise CodecMissing(str(error)) from None

    @functools.cached_property
    def identity(self) -> str:
        """What the files depend on besides pixels and quality: options, versions of libraries or, of
        aic, code and weights. Equal identities give equal files."""
        parts = [self.name]
        if self.codec in PILLOW:
            import PIL
            from PIL import features

            library = (
                features.version_codec("jpg")
                if self.codec == "jpeg"
                else features.version_module(self.codec)
            )
            parts.append(f"Pillow {PIL.__version__}, library {library}, {PILLOW[self.codec]}")
        else:
            parts.append(_aic_digest(self.model))
        if self.restorer is not None:
            parts.append(RESTORERS[self.restorer].identity)
        return "; ".join(parts)


@functools.cache
def _aic_digest(model: str | None) -> str:
    """A digest of all that aic's files and pictures come from: code, weights, torch."""
    import torch

    from aiocodec.pretrained import Manifest

    manifest = Manifest.read()
    name = model or manifest.models[0]
    digest = sha256(torch.__version__.encode())
    package = Path(__file__).parent.parent
    for path in sorted([*package.glob("*.py"), *package.glob("entropy/*.py")]):
        if path.stem != "cli":
            digest.update(path.read_bytes())
    return f"{name}, weights {manifest.digest(name)[:16]}, code {digest.hexdigest()[:16]}"


# --------------------------------------------------------------------------- coding


class Coder:
    """One codec, ready to code: `encode` and `decode` are what is timed."""

    def __init__(self, spec: CodecSpec, device: str = "auto", threads: int | None = None) -> None:
        if spec.codec == "aic":
            import torch

            from aiocodec.codec import Codec
            from aiocodec.image import Picture

            if threads is not None:
                torch.set_num_threads(threads)
            codec = Codec(spec.model, device)
            self.encode: Callable[[Pixels, int], bytes] = lambda x, quality: codec.encode(
                Picture(x), quality, effort=spec.effort, strip=True
            )
            self.decode: Callable[[bytes], Pixels] = lambda data: codec.decode(data).rgb
        else:
            from PIL import AvifImagePlugin, Image

            format, options = PILLOW[spec.codec]
            Image.MAX_IMAGE_PIXELS = None  # the files are our own
            if threads is not None:
                AvifImagePlugin.DEFAULT_MAX_THREADS = threads

            def encode(x: Pixels, quality: int) -> bytes:
                file = io.BytesIO()
                Image.fromarray(x).save(file, format, quality=quality, **options)  # type: ignore[arg-type]
                return file.getvalue()

            def decode(data: bytes) -> Pixels:
                with Image.open(io.BytesIO(data)) as image:
                    return np.asarray(image.convert("RGB"))

            self.encode, self.decode = encode, decode
        self.restorer = RESTORERS[spec.restorer].restore if spec.restorer else None
        self._restored: tuple[tuple[bytes, float], Restored] | None = None
        warm = np.full((64, 64, 3), 128, np.uint8)
        self.decode(self.encode(warm, 50))  # what is set up at the first use is no part of a file

    def restore(self, x: Pixels, sigma: float) -> "Restored":
        """What is to be coded; the last image is kept, as one restoration serves all qualities."""
        if self.restorer is None:
            return Restored(x)
        key = sha256(x.tobytes()).digest(), sigma
        if self._restored is None or self._restored[0] != key:
            _reset_peak()
            start, cpu = time.perf_counter(), time.process_time()
            clean = self.restorer(x, sigma)
            end, cpu_end = time.perf_counter(), time.process_time()
            self._restored = key, Restored(clean, end - start, cpu_end - cpu, _peak_mib() or 0)
        return self._restored[1]


class Restored(NamedTuple):
    """An image after a restorer, and what that took."""

    x: Pixels
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mib: float = 0.0


@dataclass(frozen=True)
class Coded:
    """A file, its picture and their costs."""

    data: bytes
    decoded: Pixels
    encode_seconds: float  # of a restorer too; the model loaded, pixels in memory
    decode_seconds: float
    encode_cpu_seconds: float  # of all threads
    decode_cpu_seconds: float
    peak_mib: float | None  # resident memory of the codec's whole process; None where not measured


def code(coder: Coder, x: Pixels, quality: int, sigma: float = 0) -> Coded:
    """Code an image to a file and back; `sigma` is what a restorer is told (see `CodecSpec.told`)."""
    restored = coder.restore(x, sigma)
    _reset_peak()
    start, cpu_start = time.perf_counter(), time.process_time()
    data = coder.encode(restored.x, quality)
    middle, cpu_middle = time.perf_counter(), time.process_time()
    decoded = coder.decode(data)
    end, cpu_end = time.perf_counter(), time.process_time()
    peak = _peak_mib()
    return Coded(
        data,
        decoded,
        middle - start + restored.seconds,
        end - middle,
        cpu_middle - cpu_start + restored.cpu_seconds,
        cpu_end - cpu_middle,
        None if peak is None else max(peak, restored.peak_mib),
    )


def _reset_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark begins anew


def _peak_mib() -> float | None:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None


# --------------------------------------------------------------------------- processes


def serve() -> None:
    """The life of a codec's process: answers what comes on stdin until that closes. What libraries
    print goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def answer(value: object) -> None:
        pickle.dump(value, answers)
        answers.flush()

    with suppress(EOFError, OSError):
        try:
            coder = Coder(*pickle.load(sys.stdin.buffer))
        except Exception as fault:
            answer(_portable(fault))
            return
        answer(None)
        while True:
            request = pickle.load(sys.stdin.buffer)
            try:
                answer(code(coder, *request))
            except Exception as fault:
                answer(_portable(fault))


def _portable(fault: Exception) -> AicError:
    """An error that every process can unpickle."""
    if isinstance(fault, AicError):
        return fault
    if out_of_memory(fault):
        return AicError("not enough memory")
    return AicError(" ".join(str(fault).split())[:200] or type(fault).__name__)


class Worker:
    """A codec in a process of its own, started when first used and again after it died."""

    def __init__(self, spec: CodecSpec, device: str = "auto", threads: int | None = None) -> None:
        self._arguments = spec, device, threads
        self._process: subprocess.Popen[bytes] | None = None

    def code(self, x: Pixels, quality: int, sigma: float = 0) -> Coded:
        """As `code`, over there. Raises CodecMissing where the codec cannot be set up, the AicError
        that came back, or one that says that the process died."""
        if self._process is None:
            self._start()
        answer = self._ask((x, quality, sigma))
        if isinstance(answer, AicError):
            raise answer
        return answer

    def _ask(self, request: object) -> Any:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            pickle.dump(request, process.stdin)
            process.stdin.flush()
            return pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            self.close()
            raise AicError("its process died, perhaps for want of memory") from None

    def _start(self) -> None:
        script = "import sys; sys.path[:] = {!r}; from {} import serve; serve()"
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", script.format(sys.path, __name__)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # the terminal's Ctrl-C is for the parent alone
            )
        except OSError as error:
            raise AicError(f"its process cannot be started: {error.strerror}") from None
        fault = self._ask(self._arguments)
        if fault is not None:
            self.close()
            raise CodecMissing(str(fault))

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):  # what was still to be written
                    pipe.close()  # type: ignore[union-attr]
            process.wait()
