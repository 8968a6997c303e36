"""Whether this installation computes what it should: what `aic doctor` looks at.

    for check in examine():
        print(report(check))                          # for people
        print(json.dumps(dataclasses.asdict(check)))  # for machines

It goes from the outside in: versions, libraries, the machine, weights, then what they compute. The exact
path is held against an independent reference, integers in numpy that run the same program, so nothing
that is stored could grow stale with the weights. Nothing is written. It takes a few seconds, and is itself
made to run where things are broken: no check raises, and heavy libraries are imported inside the
checks alone.
"""

import functools
import importlib.util
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiocodec import __version__
from aiocodec.errors import AicError
from aiocodec.memory import available_memory, group_limit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from aiocodec.entropy.frozen import FrozenEntropyModel, Layers
    from aiocodec.image import Picture

LIBRARIES = {  # what is imported: what is installed
    "torch": "torch",
    "onnxruntime": "onnxruntime",
    "numpy": "numpy",
    "PIL": "pillow",
    "constriction": "constriction",
    "safetensors": "safetensors",
    "click": "click",
    "jinja2": "jinja2",
    "platformdirs": "platformdirs",
    "threadpoolctl": "threadpoolctl",
}
MIN_PYTHON = (3, 10)
MIN_MEMORY = (
    1 << 30
)  # bytes that coding a picture of one megapixel takes, torch included, and some more
MIN_PSNR = 28.0  # dB, of the picture that is coded, at GOOD_QUALITY
GOOD_QUALITY = 60
GOLDEN = Path(__file__).parent.parent / "tests" / "golden"  # in a clone of the repository

_WORDS = "a9311d7d345957d5"  # what the range coder makes of `_range_coder`'s symbols, for ever


@dataclass(frozen=True)
class Check:
    """What one look came to."""

    name: str  # once in an examination, "numpy" or "exact path on cpu"
    ok: (
        bool | None
    )  # None: it does not apply here, or cannot be looked at for want of something else
    detail: str  # one line, for people
    values: dict[str, Any] = field(default_factory=dict)  # the same and more, as JSON can have it


Look = Callable[[], Check]


def examine() -> Iterator[Check]:
    """All checks, each as soon as it is done; the same names in the same order on the same machine.

    A library that cannot be imported is a failed check, and those that need it do not apply.
    """
    yield _checked("aiocodec", _versions)
    for module, package in LIBRARIES.items():
        yield _checked(package, functools.partial(_library, module, package))
    yield _checked("image formats", _formats)
    yield _checked("processor", _processor)
    yield _checked("cuda", _cuda)
    yield _checked("memory", _memory)
    yield from _each("weights", _models, _weights)
    yield _checked("range coder", _range_coder)
    yield from _each("exact path on", _devices, _exact_path)
    yield from _each("round trip on", _devices, _round_trip)
    yield from _each("golden files on", _devices, _golden_files)


def report(check: Check) -> str:
    """A check as one line for people."""
    mark = {True: "ok  ", False: "FAIL", None: "-   "}[check.ok]
    return f"{mark} {check.name}: {check.detail}"


def _checked(name: str, look: Look) -> Check:
    """The check that `look` gives, under this name; a failed one where it raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = look()
        return Check(name, found.ok, found.detail, found.values)
    except ImportError as fault:
        return Check(name, None, f"cannot be looked at: {_one_line(fault)}")
    except AicError as fault:
        return Check(name, False, _one_line(fault))
    except Exception as fault:
        return Check(name, False, f"{type(fault).__name__}: {_one_line(fault)}")


def _each(
    name: str, things: Callable[[], list[str]], look: Callable[[str], Check]
) -> Iterator[Check]:
    """A check for each of several things, or one that says why they cannot be counted."""
    found: list[str] = []

    def count() -> Check:
        found.extend(things())
        return Check(name, True, "")

    counted = _checked(name, count)
    if not counted.ok:
        yield counted
    for thing in found:
        yield _checked(f"{name} {thing}", functools.partial(look, thing))


def _on_one_thread(look: Callable[[str], Check]) -> Callable[[str], Check]:
    """The same look on one thread: what is small takes several times as long on more of them, where
    anything else runs on the same cores."""

    @functools.wraps(look)
    def on_one_thread(thing: str) -> Check:
        if not _installed("torch"):
            return look(thing)
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return look(thing)
        finally:
            torch.set_num_threads(before)

    return on_one_thread


def _one_line(fault: BaseException) -> str:
    text = "".join(c if c.isprintable() else " " for c in str(fault))
    return " ".join(text.split())[:200] or type(fault).__name__


# --------------------------------------------------------------------------- what is installed


def _versions() -> Check:
    python = platform.python_version()
    values = {
        "version": __version__,
        "python": python,
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "machine": platform.machine(),
    }
    detail = f"{__version__}, {values['implementation']} {python} on {values['platform']}"
    return Check("", sys.version_info >= MIN_PYTHON, detail, values)


def _library(module: str, package: str) -> Check:
    if module == "torch" and not _installed("torch"):
        what = "not installed: files are decoded without it; aiocodec[torch] encodes too"
        return Check("", None, what, {"module": module})
    try:
        import_module(module)
    except Exception as fault:  # a shared library that is missing raises OSError, for one
        what = f"cannot be imported: {type(fault).__name__}: {_one_line(fault)}"
        return Check("", False, what, {"module": module})
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        version = str(getattr(sys.modules[module], "__version__", "of unknown version"))
    return Check("", True, version, {"module": module, "version": version})


def _installed(module: str) -> bool:
    """Whether a library is there, be it broken."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return True


def _formats() -> Check:
    """Pillow can be built without codecs; without PNG there is no alpha either. The others are extras."""
    from PIL import features

    from aiocodec.decoders import EXTRAS

    parts = {
        "PNG": "zlib",
        "JPEG": "jpg",
        "WebP": "webp",
        "AVIF": "avif",
        "TIFF": "libtiff",
        "colour profiles": "littlecms2",
    }
    values = {name: bool(features.check(part)) for name, part in parts.items()}
    there, missing = ([n for n in values if values[n] is there] for there in (True, False))
    extras = {extra: bool(importlib.util.find_spec(module)) for extra, module in EXTRAS.items()}
    names = [f"{extra} {'there' if extras[extra] else 'not installed'}" for extra in extras]
    detail = ", ".join(there) + (f"; Pillow lacks {', '.join(missing)}" if missing else "")
    detail += f"; extras: {', '.join(names)}"
    return Check("", values["PNG"] and values["JPEG"], detail, values | extras)


# --------------------------------------------------------------------------- the machine


def _processor() -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    values = {
        "name": _lines("/proc/cpuinfo").get("model name") or platform.processor() or "unknown",
        "cores": os.cpu_count(),
        "usable_cores": usable,
    }
    detail = f"{values['name']}, {usable} of {values['cores']} cores"
    if _installed("torch"):
        import torch

        values["threads"] = torch.get_num_threads()
        values["instruction_set"] = torch.backends.cpu.get_cpu_capability()
        detail += f", {values['threads']} threads, {values['instruction_set']}"
    return Check("", True, detail, values)


def _cuda() -> Check:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = (
            f"no device (torch is built for CUDA {built})" if built else "torch is built without it"
        )
        return Check("", None, why, {"built_for": built, "devices": []})
    devices: list[dict[str, Any]] = []
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        devices.append({"name": about.name, "bytes": about.total_memory})
    detail = "; ".join(f"{d['name']}, {_size(d['bytes'])}" for d in devices)
    return Check("", True, detail, {"built_for": torch.version.cuda, "devices": devices})


def _memory() -> Check:
    """What a process may still take, by the same account as coding."""
    left, limit = available_memory(), group_limit()
    if left is None:
        return Check("", None, "this system does not say")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    detail = f"{_size(left)} available of {_size(total)}"
    if limit is not None:
        detail += f", limited to {_size(limit)}"
    if left < MIN_MEMORY:
        detail += f"; a picture of a megapixel needs {_size(MIN_MEMORY)}"
    values = {"bytes": total, "available_bytes": left, "limit_bytes": limit}
    return Check("", left >= MIN_MEMORY, detail, values)


def _lines(path: str) -> dict[str, str]:
    """`KEY: VALUE` of a file of the kernel, the first of each; empty where there is no such file."""
    try:
        text = Path(path).read_text("utf-8", "replace")
    except OSError:
        return {}
    pairs = [line.partition(":") for line in reversed(text.splitlines())]
    return {key.strip(): value.strip() for key, _, value in pairs}


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 1 << 29 else f"{count / 2**20:.1f} MiB"


# --------------------------------------------------------------------------- weights


def _models() -> list[str]:
    from aiocodec.pretrained import Manifest

    return Manifest.read().models


@_on_one_thread
def _weights(name: str) -> Check:
    """Hashes of all files, the fingerprint, and that the networks can be built of them."""
    from aiocodec.light import load_synthesis
    from aiocodec.pretrained import Manifest

    manifest = Manifest.read()
    for file in manifest.files(name):
        manifest.verified(file)
    fingerprint = manifest.load_frozen(name).fingerprint.hex()
    if _installed("torch"):
        manifest.load(name).transforms()
    load_synthesis(manifest, name, threads=1)
    size = manifest.weight_bytes(name)
    values = {
        "files": manifest.files(name),
        "bytes": size,
        "fingerprint": fingerprint,
        "folder": str(manifest.folder),
    }
    count = len(manifest.files(name))
    detail = f"{count} files, {_size(size)}, entropy model {fingerprint}"
    return Check("", True, detail, values)


# --------------------------------------------------------------------------- what is computed


def _devices() -> list[str]:
    """Those of PyTorch, and onnxruntime with numpy, which come without it."""
    if not _installed("torch"):
        return ["onnx"]
    import torch

    return ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), "onnx"]


def _range_coder() -> Check:
    """Some symbols to words that no model and no version changes, and back."""
    import numpy as np

    from aiocodec.rangecoder import Decoder, Encoder, Tables

    frequencies = [1 << 20, 1 << 22, (1 << 24) - (1 << 22) - (1 << 20) - 7, 7, 1 << 23, 1 << 23]
    tables = Tables(frequencies, [4, 2], [-1, 100])
    symbols = np.concatenate([_noise(40, 2), _noise(6, 32767)])
    indexes = np.arange(len(symbols)) % 2
    encoder = Encoder()
    encoder.encode(symbols, indexes, tables)
    words = encoder.finish()
    decoder = Decoder(words)
    if not np.array_equal(decoder.decode(indexes, tables), symbols):
        return Check("", False, "symbols do not come back")
    decoder.finish()
    digest = sha256(words).hexdigest()[:16]
    fine = digest == _WORDS
    detail = f"{len(symbols)} symbols give {len(words)} bytes, "
    detail += "those that they should" if fine else f"others ({digest}) than they should ({_WORDS})"
    return Check("", fine, detail, {"digest": digest, "expected": _WORDS})


@_on_one_thread
def _exact_path(device: str) -> Check:
    """The shipped entropy model by torch on a device, or by numpy, and by the reference."""
    import numpy as np

    from aiocodec.entropy import passes

    frozen = _frozen()
    program, quality = frozen.program, 40
    z = _noise(program.hyper * 2, 12).reshape(program.hyper, 1, 2)
    masks = passes.masks(program.order, (program.latents, 4, 8))
    v = _noise(masks[0].size, 3000).reshape(masks[0].shape)
    seen = [v * masks[:k].any(0) for k in range(len(masks))]
    if device == "onnx":
        from aiocodec.entropy.portable import PortableEntropyModel

        portable = PortableEntropyModel(frozen)
        found: list[Any] = [portable.features(z, quality)]
        for k, before in enumerate(seen):
            found += portable.predict(k, found[0], before)
    else:
        import torch

        from aiocodec.entropy.exact import ExactEntropyModel

        exact = ExactEntropyModel(frozen).to(device)
        features = exact.features(torch.from_numpy(z).to(device), quality)
        tensors = [features]
        for k, before in enumerate(seen):
            parameters = exact.predict(k, features, torch.from_numpy(before).to(device).double())
            tensors += [parameters.indexes, parameters.means]
        found = [tensor.cpu().numpy() for tensor in tensors]
    digest = sha256()
    for array in found:
        digest.update(np.asarray(array).astype("<i8").tobytes())
    given, expected = digest.hexdigest()[:16], _reference_digest(quality, z, v, masks)
    what = "equals" if given == expected else f"differs from {expected} of"
    detail = f"{given} {what} the integers of the reference"
    return Check("", given == expected, detail, {"digest": given, "expected": expected})


def _frozen() -> "FrozenEntropyModel":
    from aiocodec.pretrained import Manifest

    manifest = Manifest.read()
    return manifest.load_frozen(manifest.models[0])


def _noise(count: int, most: int) -> "NDArray[np.int64]":
    """Fixed pseudo-random integers in -most..most, by a hash of their positions."""
    import numpy as np

    mixed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    found: NDArray[np.int64] = (mixed >> np.uint64(32)).astype(np.int64) % (2 * most + 1) - most
    return found


def _reference_digest(
    quality: int,
    z: "NDArray[np.int64]",
    v: "NDArray[np.int64]",
    masks: "NDArray[np.bool_]",
) -> str:
    """What `_exact_path` should find, from docs/format.md in 64-bit integers: nothing is shared with
    what it is compared with but the program."""
    import numpy as np

    frozen = _frozen()
    p, most = frozen.program, frozen.program.activation_max

    def network(name: str, x: "NDArray[np.int64]") -> "NDArray[np.int64]":
        return _integers(p.networks[name], x, frozen)

    told = z * 2**p.fraction + frozen.embedding(quality)[:, None, None]
    features = network("fusion", network("h_s", told.clip(-most, most)))
    _, index, mean = np.split(features, 3)
    digest = sha256(features.astype("<i8").tobytes())
    half = 2**p.fraction // p.index_unit
    for k in range(len(masks)):
        index_k, mean_k = index, mean
        if k > 0:
            x = np.concatenate([(v * masks[:k].any(0)).clip(-most, most), features])
            more = network("head", network("body", network(f"adaptor_{k}", x)))
            index_k, mean_k = (features[p.latents :] + more).clip(-most, most).reshape(2, *v.shape)
        table = (p.scale_zero + (2 * index_k + half) // (2 * half)).clip(0, p.scales - 1)
        digest.update(table.astype("<i8").tobytes())
        digest.update(mean_k.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _integers(
    layers: "Layers", x: "NDArray[np.int64]", frozen: "FrozenEntropyModel"
) -> "NDArray[np.int64]":
    """Layers of a program over integers [channels, rows, columns]."""
    import numpy as np

    most = frozen.program.activation_max
    for kind, *rest in layers:
        c, h, w = x.shape
        if kind == "leaky":
            x = np.maximum(x, (x + 4) >> 3)
        elif kind == "residual":
            x = (x + _integers(rest[0], x, frozen)).clip(-most, most)
        elif kind == "shuffle":
            x = x.reshape(c // 4, 2, 2, h, w).transpose(0, 3, 1, 4, 2)
            x = x.reshape(c // 4, 2 * h, 2 * w)
        else:
            weight, bias, e = (
                frozen.tensors[f"{rest[0]}.{part}"].astype(np.int64)
                for part in ("weight", "bias", "exponent")
            )
            if kind == "conv1x1":
                total = np.einsum("oi,ihw->ohw", weight[:, :, 0, 0], x)
            else:
                padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
                total = np.zeros_like(x)
                for i in range(3):
                    for j in range(3):
                        total += weight[:, 0, i, j, None, None] * padded[:, i : i + h, j : j + w]
            total += bias[:, None, None]
            e = e[:, None, None]
            x = ((2 * total + (1 << e)) >> (e + 1)).clip(-most, most)
    return x


@functools.cache
def _codec(device: str) -> Any:
    if device == "onnx":
        from aiocodec.light import LightCodec

        return LightCodec()
    from aiocodec.codec import Codec

    return Codec(device=device)


@_on_one_thread
def _round_trip(device: str) -> Check:
    """A small picture to a file and back, and the same file on the CPU."""
    import numpy as np

    picture = _picture()
    codec = _codec(device)
    data = _codec("cpu" if device == "onnx" else device).encode(picture, GOOD_QUALITY, verify=True)
    decoded = codec.decode(data)
    elsewhere = decoded if device == "cpu" else _codec("cpu").decode(data)
    assert picture.alpha is not None
    if decoded.alpha is None or not np.array_equal(decoded.alpha, picture.alpha):
        return Check("", False, "the alpha plane does not come back")
    difference = decoded.rgb.astype(np.int64) - picture.rgb
    psnr = float(10 * np.log10(255**2 / max(1e-9, (difference**2).mean())))
    apart = int(np.abs(decoded.rgb.astype(np.int64) - elsewhere.rgb).max())
    detail = f"{len(data)} bytes, {psnr:.1f} dB"
    if psnr < MIN_PSNR:
        detail += f", less than the {MIN_PSNR:.0f} dB that it should have"
    if apart > 1:
        detail += f", {apart} of 255 apart from the CPU"
    values = {"bytes": len(data), "psnr": round(psnr, 2), "apart": apart}
    return Check("", psnr >= MIN_PSNR and apart <= 1, detail, values)


def _picture() -> "Picture":
    """100 x 70 pixels of smooth colour with an edge, and alpha."""
    import numpy as np

    from aiocodec.image import Picture

    y, x = np.mgrid[0:70, 0:100]
    planes = [np.sin(x / 17 + y / 29) * 70, np.cos(y / 23 - x / 41) * 60, (x > y) * 60.0]
    rgb = np.stack(planes, axis=2) + 120
    return Picture(rgb=rgb.astype(np.uint8), alpha=(x * 2 + y % 3).astype(np.uint8))


@_on_one_thread
def _golden_files(device: str) -> Check:
    """The files of the repository that must decode for ever."""
    import numpy as np

    from aiocodec.image import read

    files = sorted(GOLDEN.glob("*.aic"))
    if not files:
        return Check("", None, "only a clone of the repository has them")
    failures = {}
    for file in files:
        try:
            decoded = _codec(device).decode(file.read_bytes())
            expected = read(file.with_suffix(".png").read_bytes())
            if np.abs(decoded.rgb.astype(np.int64) - expected.rgb).max() > 1:
                failures[file.stem] = "other pixels than it should have"
        except AicError as fault:
            failures[file.stem] = _one_line(fault)
    detail = f"{len(files) - len(failures)} of {len(files)} decode to what they should"
    detail += "".join(f"; {name}: {what}" for name, what in failures.items())
    return Check("", not failures, detail, {"files": len(files), "failures": failures})
