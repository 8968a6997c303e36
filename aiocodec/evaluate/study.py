"""Rate, distortion and cost of codecs over a folder of images: every figure comes from len(file) and
decoded pixels, PSNR and its like always against the clean image, blocks of the decoded one alone.

    with Study(Path("kodak"), degradations=["noise:25"], codecs=["aic", "jpeg"]) as study:
        results = study.run()
    results.curves, results.deltas, results.failures

What cannot be done is named in `failures` and left out, the rest is done. Means are over the same
images for every codec of a degradation. Measurements are kept in a cache, so that an interrupted
study goes on where it was, and a repeated one measures only what has changed.
"""

import functools
import json
import math
import os
import platform
import sqlite3
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from platformdirs import user_cache_path

from aiocodec import __version__
from aiocodec.errors import AicError, CodecMissing, ImageError, LimitError, out_of_memory
from aiocodec.evaluate.codecs import CodecSpec, Coded, Worker
from aiocodec.evaluate.restorers import Pixels
from aiocodec.image import SUFFIXES, Picture, read
from aiocodec.metrics import (
    bd_psnr,
    bd_rate,
    blockiness,
    bpp,
    edge_agreement,
    ms_ssim,
    overlap,
    psnr,
)

FORMAT = 2  # of results as JSON, and of the cache
T = TypeVar("T")
NO_EXTRA = "BD figures, edges and plots need: pip install 'aiocodec[evaluate]'"
DEFAULT_CODECS = ("aic", "jpeg", "webp", "avif", "nlm+avif")


# --------------------------------------------------------------------------- inputs


def add_noise(picture: Picture, sigma: float, seed: int) -> Picture:
    """White Gaussian noise of standard deviation `sigma` (of 255) from
    `numpy.random.default_rng(seed)`, rounded and clipped to 8 bits."""
    noise = np.random.default_rng(seed).normal(0, sigma, picture.rgb.shape)
    noisy = np.clip(np.round(picture.rgb + noise), 0, 255).astype(np.uint8)
    return replace(picture, rgb=noisy)


def spoil(picture: Picture, degradation: str, seed: int) -> Picture:
    """A picture after a degradation as `degrade.apply` names them, drawn with a seed on the
    CPU. Noise of a given strength alone, `noise:25`, is that of `add_noise`, with which other
    projects can be compared. AicError for a name that does not exist."""
    import torch

    from aiocodec.degrade import apply

    rng = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(np.ascontiguousarray(picture.rgb.transpose(2, 0, 1)))[None].float() / 255
    sigma = noise_of(degradation)
    if sigma is not None:
        apply(x[..., :1, :1], degradation, rng)  # an error where the number is out of range
        return add_noise(picture, sigma, seed)
    pixels = (apply(x, degradation, rng)[0] * 255).round().byte().permute(1, 2, 0)
    return replace(picture, rgb=np.ascontiguousarray(pixels.numpy()))


def noise_of(degradation: str) -> float | None:
    """The standard deviation of a degradation that is noise of a given strength alone."""
    name, _, number = degradation.partition(":")
    with suppress(ValueError):
        return float(number) if name == "noise" else None
    return None


@dataclass(frozen=True)
class Source:
    """A clean image of a study."""

    path: Path
    number: int  # from 1, in the order of the names in the folder; the seed of its degradations


def _read(path: Path) -> Picture:
    try:
        return read(path.read_bytes())
    except OSError as fault:
        raise ImageError(f"cannot be read: {fault.strerror}") from None


def _images(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.glob("*")
        if path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file()
    )


# --------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Measures:
    """What was measured of one file, or the means over several."""

    bpp: float
    psnr: float  # dB; infinite where not a pixel differs
    ms_ssim: float | None  # None where an image is too small for five scales
    edges: float | None  # metrics.edge_agreement; None without scikit-image
    blocks: float | None  # metrics.blockiness of decoded pixels; None where they hold no block edge
    encode_seconds: float
    decode_seconds: float
    encode_cpu_seconds: float
    decode_cpu_seconds: float
    peak_mib: float | None  # of the codec's process; as a mean, the largest

    @classmethod
    def of(cls, clean: Pixels, coded: Coded) -> "Measures":
        """The measures of a coded file against the clean image."""
        height, width, _ = clean.shape
        edges = None
        with suppress(ImportError):
            edges = edge_agreement(clean, coded.decoded)
        return cls(
            bpp(len(coded.data), width, height),
            psnr(clean, coded.decoded),
            ms_ssim(clean, coded.decoded),
            edges,
            blockiness(coded.decoded),
            coded.encode_seconds,
            coded.decode_seconds,
            coded.encode_cpu_seconds,
            coded.decode_cpu_seconds,
            coded.peak_mib,
        )

    @classmethod
    def mean(cls, of: "Sequence[Measures]") -> "Measures":
        """The means of several; None where one of them is None."""
        columns: dict[str, Any] = {}
        for name in cls.__dataclass_fields__:
            values = [getattr(measures, name) for measures in of]
            combine = max if name == "peak_mib" else statistics.fmean
            columns[name] = None if None in values else combine(values)
        return cls(**columns)


class Sample(NamedTuple):
    """One image through one codec at one quality."""

    image: str
    degradation: str
    codec: str
    quality: int
    measures: Measures


@dataclass(frozen=True)
class Curve:
    """Rate and distortion of a codec on degraded images: means over `images` images."""

    degradation: str
    codec: str
    images: int
    points: tuple[tuple[int, Measures], ...]  # (quality, means), quality growing
    digest: str | None = None  # of the pixels that it was measured on

    def equals(self, other: "Curve") -> bool:
        """Whether the files of both are the same; seconds may differ."""
        keys = [
            (c.codec, c.digest, [(q, m.bpp, m.psnr) for q, m in c.points]) for c in (self, other)
        ]
        return keys[0] == keys[1]

    def of(self, metric: str) -> list[tuple[float, float]]:
        """(bpp, quality) for BD figures: `psnr` in dB, or `ms_ssim` as -10 log10(1 - MS-SSIM)."""
        values = [(m.bpp, getattr(m, metric)) for _, m in self.points]
        known = [(rate, value) for rate, value in values if value is not None]
        if metric == "ms_ssim":
            return [(rate, -10 * math.log10(1 - v)) for rate, v in known if v < 1]
        return known


@dataclass(frozen=True)
class Delta:
    """How far `codec` is from `anchor`; None where nothing can be said."""

    degradation: str
    codec: str
    anchor: str
    bd_rate: float | None  # percent of bits at equal PSNR, negative: fewer
    bd_psnr: float | None  # dB at equal bits
    bd_rate_ms_ssim: float | None  # percent of bits at equal MS-SSIM
    overlap: tuple[float, float] | None  # lowest and highest PSNR, in dB, that bd_rate is about
    reason: str | None  # why there is no bd_rate

    @classmethod
    def between(cls, anchor: Curve, curve: Curve) -> "Delta":
        """The Bjøntegaard figures of two curves."""
        reasons: list[str] = []

        def figure(f: Callable[..., T], metric: str) -> T | None:
            try:
                return f(anchor.of(metric), curve.of(metric))
            except ValueError as error:
                reasons.append(str(error))
            except ImportError:
                reasons.append("needs SciPy")
            return None

        rate = figure(bd_rate, "psnr")
        return cls(
            curve.degradation,
            curve.codec,
            anchor.codec,
            rate,
            figure(bd_psnr, "psnr"),
            figure(bd_rate, "ms_ssim"),
            None if rate is None else figure(overlap, "psnr"),
            reasons[0] if rate is None else None,
        )


@dataclass
class Results:
    """All that a study found out."""

    system: dict[str, Any] = field(default_factory=dict)  # what seconds depend on
    codecs: dict[str, str] = field(default_factory=dict)  # name: options, versions, weights
    samples: list[Sample] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    deltas: list[Delta] = field(default_factory=list)  # of the reference against each other codec
    failures: list[tuple[str, str]] = field(default_factory=list)  # (what, why it is left out)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values: what is infinite is None there, like what is unknown."""

        def row(measures: Measures) -> dict[str, Any]:
            return {
                name: value if value is None or math.isfinite(value) else None
                for name, value in asdict(measures).items()
            }

        return {
            "format": FORMAT,
            "aiocodec": __version__,
            "system": self.system,
            "codecs": self.codecs,
            "curves": [
                {
                    "degradation": curve.degradation,
                    "codec": curve.codec,
                    "images": curve.images,
                    "digest": curve.digest,
                    "points": [{"quality": q, **row(m)} for q, m in curve.points],
                }
                for curve in self.curves
            ],
            "deltas": [asdict(delta) for delta in self.deltas],
            "samples": [{**s._asdict(), "measures": row(s.measures)} for s in self.samples],
            "failures": [{"what": what, "error": error} for what, error in self.failures],
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """One flat row per image, codec and quality, for CSV."""
        for sample in self.samples:
            row = sample._asdict()
            del row["measures"]
            yield {**row, **asdict(sample.measures)}


def read_curves(path: Path) -> list[Curve]:
    """The curves of results as JSON, written by `aic evaluate --json` or with the same keys by hand
    (of a point only `bpp` and `psnr` are needed). ValueError where the file holds none."""

    def number(value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise TypeError
        return float(value)

    def measures(point: dict[str, Any]) -> Measures:
        known = {
            name: None if point.get(name) is None else number(point[name])
            for name in Measures.__dataclass_fields__
        }
        known["psnr"] = math.inf if point["psnr"] is None else known["psnr"]
        known["bpp"] = number(point["bpp"])
        return Measures(**known)  # type: ignore[arg-type]

    def text(value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError
        return value

    try:
        document = json.loads(path.read_text("utf-8"))
        return [
            Curve(
                text(curve["degradation"]),
                text(curve["codec"]),
                int(curve["images"]),
                tuple(
                    (int(point.get("quality", i)), measures(point))
                    for i, point in enumerate(curve["points"])
                ),
                curve.get("digest"),
            )
            for curve in document["curves"]
        ]
    except OSError as fault:
        raise ValueError(f"{path} cannot be read: {fault.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} holds no results of aic evaluate") from None


def system(device: str, threads: int | None) -> dict[str, Any]:
    """What seconds depend on, besides the programs."""
    import PIL
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "processor": processor,
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": threads,  # of aic and AVIF; None: as they choose
        "device": torch.cuda.get_device_name() if device == "cuda" else device,  # of aic
        "platform": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pillow": PIL.__version__,
    }


@functools.cache
def _methods() -> str:
    """A digest of how things are measured, which the cache must know."""
    from importlib.metadata import PackageNotFoundError, version

    digest = sha256()
    for module in ("metrics.py", "evaluate/codecs.py"):
        digest.update((Path(__file__).parent.parent / module).read_bytes())
    edges = "no"
    with suppress(PackageNotFoundError):
        edges = version("scikit-image")
    return f"format {FORMAT}, methods {digest.hexdigest()[:16]}, {edges} scikit-image"


# --------------------------------------------------------------------------- cache


def default_cache() -> Path | None:
    """Where measurements are kept between runs, as the platform has it; None for a user who has no home,
    as containers know them."""
    try:
        return user_cache_path("aiocodec", appauthor=False, opinion=False) / "evaluate.sqlite"
    except RuntimeError:
        return None


class Cache:
    """Measures by key, in an SQLite file; where that cannot be used, nothing is kept and `fault`
    says why."""

    def __init__(self, path: Path | None) -> None:
        self.fault: str | None = None
        self._database: sqlite3.Connection | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=30, isolation_level=None)
            self._database.execute("CREATE TABLE IF NOT EXISTS measures (key PRIMARY KEY, row)")
        except (OSError, sqlite3.Error) as fault:
            self._broken(f"{path}: {fault}")

    def get(self, key: str) -> Measures | None:
        """What was measured under a key, if anything."""
        if self._database is not None:
            try:
                found = self._database.execute("SELECT row FROM measures WHERE key = ?", (key,))
                for (row,) in found:
                    return Measures(**json.loads(row))
            except (sqlite3.Error, ValueError, TypeError) as fault:
                self._broken(str(fault))
        return None

    def put(self, key: str, measures: Measures) -> None:
        """Keep measures under a key, on disk before this returns."""
        if self._database is not None:
            try:
                row = json.dumps(asdict(measures))
                self._database.execute("REPLACE INTO measures VALUES (?, ?)", (key, row))
            except sqlite3.Error as fault:
                self._broken(str(fault))

    def close(self) -> None:
        """Close the file."""
        if self._database is not None:
            self._database.close()
        self._database = None

    def _broken(self, fault: str) -> None:
        self.close()
        self.fault = f"the cache cannot be used: {fault}"


# --------------------------------------------------------------------------- the study


@contextmanager
def _out_of_memory() -> Iterator[None]:
    """Too little memory for one image is a LimitError of that image."""
    try:
        yield
    except (MemoryError, RuntimeError) as fault:
        if not out_of_memory(fault):
            raise
        raise LimitError("not enough memory") from None


class Study:
    """Codecs over a folder of clean images and their degraded versions.

    Args:
        folder: of clean images; image number i, in the order of names from 1, is degraded with seed
            i.
        degraded: folders of degraded versions, files of the same names (or of names that differ in
            the suffix alone); a folder's name, with its parent's where it must be told from others,
            is that of its degradation.
        degradations: what to do to the clean images besides, as `degraded` names it; `clean` alone
            where neither is given.
        codecs: specifications; the first is the reference, which is compared with every other. By
            default DEFAULT_CODECS; a restorer among them that is not installed is a note only.
        every: take every n-th image only, from the first; they keep their numbers.
        against: curves of another study (or by hand) to compare the first codec with as well.
        cache: file of the measurements that are kept; None: none are.

    Raises ValueError for a specification or degradation that does not exist, a codec that comes
    twice and where there is nothing to do, ImageError for a folder without images.
    """

    def __init__(
        self,
        folder: Path,
        *,
        degraded: Sequence[Path] = (),
        degradations: Sequence[str] = (),
        codecs: Sequence[str] | None = None,
        every: int = 1,
        against: Sequence[Curve] = (),
        device: str = "auto",
        threads: int | None = None,
        cache: Path | None = None,
    ) -> None:
        if not degraded and not degradations:
            degradations = ("clean",)
        tiny = Picture(np.zeros((16, 16, 3), np.uint8))
        for name in degradations:
            try:
                spoil(tiny, name, 1)
            except AicError as error:
                raise ValueError(str(error)) from None
        paths = _images(folder)
        if not paths:
            raise ImageError(f"no images in {folder}")
        self.results = Results()
        self.sources = [Source(path, i) for i, path in enumerate(paths, start=1)][::every]
        absolute = [path.absolute() for path in degraded]
        self._folders: dict[str, dict[str, Path]] = {}
        for path in absolute:
            name = path.name
            taken = sum(other.name == name for other in absolute) > 1 or name in degradations
            name = f"{path.parent.name}/{name}" if taken else name
            if name in self._folders or name in degradations:
                raise ValueError(f"two degradations are called {name}")
            self._folders[name] = self._pairs(path, paths)
        self.degradations = tuple(dict.fromkeys((*self._folders, *degradations)))
        self._against = against
        self._cache = Cache(cache)
        self.results.system = system(device, threads)
        self._settings = f"{_methods()}, {sorted(self.results.system.items(), key=str)}"
        self._digests: dict[str, dict[str, str]] = {}  # of pixels, by degradation and image
        self.workers: dict[str, Worker] = {}
        self.specs: list[CodecSpec] = []
        self.notes: list[str] = []  # what is left out and was not asked for
        asked = [CodecSpec.parse(text) for text in codecs or DEFAULT_CODECS]
        self.reference = asked[0].name
        for spec in asked:
            if spec.name in self.workers:
                raise ValueError(f"{spec.name} is given twice; qualities go together, as @30,50")
            try:
                spec.check()
            except CodecMissing as missing:
                if codecs is None and spec.restorer is not None:
                    self.notes.append(f"{spec.name} is left out: {missing}")
                else:
                    self._fail(spec.name, missing)
                continue
            self.specs.append(spec)
            self.workers[spec.name] = Worker(spec, device, threads)
        for name in self.degradations if codecs is not None else ():
            for spec in self.specs:
                if spec not in self.applicable(name):
                    hint = f"write {spec.restorer}:SIGMA+{spec.codec} to tell it"
                    self.notes.append(
                        f"{spec.name} is left out of {name}, of unknown noise; {hint}"
                    )
        if self.specs and not len(self):
            raise ValueError("there is nothing to do: " + "; ".join(self.notes))

    def __enter__(self) -> "Study":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _fail(self, what: str, error: AicError) -> None:
        self.results.failures.append((what, str(error)))

    def _pairs(self, folder: Path, clean: Sequence[Path]) -> dict[str, Path]:
        """Degraded files by the names of clean ones; what has no counterpart fails, in either folder."""
        spoiled = _images(folder)
        by_name = {path.name: path for path in spoiled}
        stems = Counter(path.stem for path in (*clean, *spoiled))
        by_stem = {path.stem: path for path in spoiled if stems[path.stem] == 2}
        pairs = {}
        used = set()
        chosen = {source.path for source in self.sources}
        for path in clean:
            if found := by_name.get(path.name, by_stem.get(path.stem)):
                pairs[path.name] = found
                used.add(found)
            elif path in chosen:
                self._fail(path.name, ImageError(f"has no degraded version in {folder}"))
        for path in spoiled:
            if path not in used:
                self._fail(str(path), ImageError("has no clean version"))
        return pairs

    def is_clean(self, degradation: str) -> bool:
        """Whether nothing was done to the images."""
        return degradation == "clean" and degradation not in self._folders

    def pixels(self, source: Source, degradation: str) -> tuple[Pixels, Pixels] | None:
        """An image, clean and degraded, of one size; None where it has no degraded version.
        ImageError where a file cannot be read or the sizes differ."""
        clean = _read(source.path)
        if degradation not in self._folders:
            return clean.rgb, spoil(clean, degradation, source.number).rgb
        path = self._folders[degradation].get(source.path.name)
        if path is None:
            return None
        try:
            spoiled = _read(path).rgb
        except AicError as error:
            raise type(error)(f"{path}: {error}") from None
        if spoiled.shape != clean.rgb.shape:
            (h, w, _), (height, width, _) = spoiled.shape, clean.rgb.shape
            raise ImageError(f"{path} has {w}x{h} pixels, the clean image {width}x{height}")
        return clean.rgb, spoiled

    def noise(self, degradation: str) -> float | None:
        """The standard deviation of the noise in degraded images, where it is known."""
        return None if degradation in self._folders else noise_of(degradation)

    def applicable(self, degradation: str) -> list[CodecSpec]:
        """The codecs that make sense for a degradation: a restorer of noise must know its strength."""
        noise = self.noise(degradation)
        return [spec for spec in self.specs if spec.told(noise) is not None]

    def __len__(self) -> int:
        """How many files there are to measure."""
        per_image = sum(
            len(spec.qualities) for name in self.degradations for spec in self.applicable(name)
        )
        return per_image * len(self.sources)

    def run(self, advance: Callable[[int], None] = lambda files: None) -> Results:
        """Measure everything; `advance` is told how many of the files are done or given up."""
        self.results.codecs = {spec.name: spec.identity for spec in self.specs}
        for source in self.sources:
            for degradation in self.degradations:
                planned = sum(len(spec.qualities) for spec in self.applicable(degradation))
                done = 0
                for files in self._measure(source, degradation):
                    done += files
                    advance(files)
                advance(planned - done)
        if self._cache.fault:
            self.notes.append(self._cache.fault)
        for degradation in self.degradations:
            self._conclude(degradation)
        unused = {curve.degradation for curve in self._against} - {*self.degradations}
        if unused:
            self.notes.append(f"earlier results for {', '.join(sorted(unused))} are not used")
        if not find_spec("scipy") or not find_spec("skimage"):
            self.notes.append(NO_EXTRA)
        self.notes = list(dict.fromkeys(self.notes))
        return self.results

    def close(self) -> None:
        """End the processes of the codecs, and close the cache."""
        self._cache.close()
        for worker in self.workers.values():
            worker.close()

    def _measure(self, source: Source, degradation: str) -> Iterator[int]:
        """All codecs on one image; gives how many files were just done."""
        try:
            with _out_of_memory():
                pair = self.pixels(source, degradation)
        except AicError as error:
            if (source.path.name, str(error)) not in self.results.failures:  # once is enough
                self._fail(source.path.name, error)
            return
        if pair is None:
            return
        clean, x = pair
        digest = sha256(clean.tobytes()).hexdigest() + sha256(x.tobytes()).hexdigest()
        self._digests.setdefault(degradation, {})[source.path.name] = digest
        for spec in self.applicable(degradation):
            for i, quality in enumerate(spec.qualities):
                try:
                    measures = self._measured(spec, quality, degradation, clean, x, digest)
                except CodecMissing as error:
                    self._fail(spec.name, error)
                    self.specs.remove(spec)
                    break
                except AicError as error:
                    self._fail(f"{source.path.name}, {degradation}, {spec.name}@{quality}", error)
                    yield len(spec.qualities) - i
                    break
                self.results.samples.append(
                    Sample(source.path.name, degradation, spec.name, quality, measures)
                )
                yield 1

    def _measured(
        self,
        spec: CodecSpec,
        quality: int,
        degradation: str,
        clean: Pixels,
        x: Pixels,
        digest: str,
    ) -> Measures:
        sigma = spec.told(self.noise(degradation))
        assert sigma is not None  # as the codec is applicable
        key = f"{self._settings}, {spec.identity}, {sigma}, {quality}, {digest}"
        key = sha256(key.encode()).hexdigest()
        measures = self._cache.get(key)
        if measures is None:
            coded = self.workers[spec.name].code(x, quality, sigma)
            if coded.decoded.shape != clean.shape:
                raise AicError(f"decoded to {coded.decoded.shape} instead of {clean.shape}")
            with _out_of_memory():
                measures = Measures.of(clean, coded)
            self._cache.put(key, measures)
        return measures

    def _conclude(self, degradation: str) -> None:
        """Means over the images that every codec has done, and what the first is worth beside the
        others."""
        by_codec: dict[str, dict[str, list[Sample]]] = {}
        for sample in self.results.samples:
            if sample.degradation == degradation:
                images = by_codec.setdefault(sample.codec, {})
                images.setdefault(sample.image, []).append(sample)
        complete = {
            spec.name: {
                image
                for image, samples in by_codec.get(spec.name, {}).items()
                if len(samples) == len(spec.qualities)
            }
            for spec in self.applicable(degradation)
        }
        complete = {name: images for name, images in complete.items() if images}
        if not complete:
            return
        common = sorted(set.intersection(*complete.values()))
        if not common:
            self._fail(degradation, AicError("no image was done by every codec"))
            return
        pixels = [f"{name} {self._digests[degradation][name]}" for name in common]
        digest = sha256("\n".join(pixels).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        curves = []
        for name in complete:
            columns = zip(*(by_codec[name][image] for image in common), strict=True)
            points = tuple(
                (column[0].quality, Measures.mean([sample.measures for sample in column]))
                for column in columns
            )
            curves.append(Curve(degradation, name, len(common), points, digest))
        self._note_oddities(degradation, len(common))
        self.results.curves += curves
        reference = next((curve for curve in curves if curve.codec == self.reference), None)
        others = [curve for curve in curves if curve is not reference]
        for curve in self._against:
            if curve.degradation != degradation or any(map(curve.equals, curves)):
                continue
            if curve.images != len(common) or curve.digest not in (None, digest):
                what = f"{curve.codec} of the earlier results, {degradation}"
                self._fail(what, AicError("was measured on other images"))
                continue
            taken = {other.codec for other in (*others, *curves)}
            name = curve.codec
            while name in taken:
                name += " before"
            others.append(replace(curve, codec=name))
            self.results.curves.append(others[-1])
        if reference is not None:
            self.results.deltas += [Delta.between(other, reference) for other in others]
        elif others:
            self.notes.append(
                f"{self.reference} has no curve for {degradation}, nothing to compare"
            )

    def _note_oddities(self, degradation: str, images: int) -> None:
        """Say what the tables cannot: means over fewer images, values that are missing."""
        if images < len(self.sources):
            self.notes.append(f"{degradation}: means over {images} of {len(self.sources)} images")
        for sample in self.results.samples:
            if sample.degradation == degradation:
                if sample.measures.ms_ssim is None:
                    self.notes.append(
                        f"{sample.image} is too small for MS-SSIM, its means are unknown"
                    )
                if math.isinf(sample.measures.psnr):
                    self.notes.append(
                        f"{sample.image} lost nothing to {sample.codec}@{sample.quality}, so that mean"
                        " PSNRs are infinite"
                    )
