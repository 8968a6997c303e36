"""Coding of files, one or many: what is to be done as values that can be pickled, and processes that
share nothing but the list of files.

    work = Encode(quality=40, threads=1)
    jobs = guard(spread(["photographs"], "coded", work, recursive=True))
    for job, row in run(jobs, work, processes=4):
        print(job.source, row)

A row says what came of a file, with the keys of the command line's JSON.
"""

import functools
import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Protocol

from aiocodec import files, signals
from aiocodec.config import (
    DECODED_MAX_PIXELS,
    DEFAULT_EFFORT,
    DEFAULT_MAX_PIXELS,
    DEFAULT_QUALITY,
    MAX_EFFORT,
)
from aiocodec.container import ChunkType, Container, Flags, unpack, unpack_latents
from aiocodec.errors import (
    AicError,
    BitstreamError,
    ImageError,
    LimitError,
    OutputError,
    as_aic_error,
)
from aiocodec.loading import loading

if TYPE_CHECKING:
    from aiocodec.codec import Codec
    from aiocodec.entropy.frozen import FrozenEntropyModel
    from aiocodec.image import Picture
    from aiocodec.light import LightCodec

    AnyCodec = Codec | LightCodec

LARGE = 2_000_000  # pixels of a picture from which on progress within it is told

RUNTIMES = ("auto", "torch", "onnx")  # of a decoder; see `load_decoder`

Row = dict[str, Any]
Progress = Callable[[float], None]  # is told the fraction that is done, 0 to 1

_ONLY_READ = {  # suffixes of formats that image.write does not know
    *(".gif", ".jfif", ".jpe", ".jp2", ".j2k", ".jpx", ".dib", ".ico", ".pbm", ".pfm"),
    *(".qoi", ".tga", ".pcx", ".psd", ".apng", ".mpo", ".avifs"),
    *(".heic", ".heif", ".heics", ".heifs", ".hif", ".jxl"),  # these, and RAW, need an extra
    *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".orf", ".raf", ".rw2", ".pef"),
    *(".srw", ".3fr", ".iiq", ".rwl", ".mrw", ".x3f"),
}


@dataclass(frozen=True)
class Job:
    """A file to be coded: from where, to where, and why not, where that is known beforehand."""

    source: str  # a path, or "-" for stdin
    target: str  # a path, or "-" for stdout
    fault: AicError | None = None


@dataclass(frozen=True)
class _Coding:
    """What encoding and decoding have in common."""

    model: str | None = None  # transforms; None: the best that fits
    device: str = "auto"  # "cpu", "cuda", or "auto": cuda where there is one
    threads: int | None = None  # at least 1; None: all cores. The bytes of a file depend on it
    max_pixels: int = DEFAULT_MAX_PIXELS  # larger pictures are refused
    force: bool = False  # replace outputs that exist
    skip_existing: bool = False  # leave out what has an output already

    unreadable: ClassVar[type[AicError]]

    def run(self, job: Job, progress: Progress | None = None) -> Row:
        """Read, code and write one file; `progress` is told of pictures of LARGE or more pixels.

        Raises AicError: the fault of the job, before anything is read that of an input which cannot be
        opened, then OutputError, and whatever reading and coding raise.
        """
        started = time.perf_counter()
        if job.fault is not None:
            raise job.fault
        row: Row = {"input": job.source, "output": job.target}
        special = job.target == "-" or files.is_special(job.target)
        if self.skip_existing and not special and os.path.lexists(job.target):
            return {**row, "skipped": True}
        files.check_input(job.source, self.unreadable)
        files.check_output(job.target, self.force)
        coded, measured = self.code(lambda: self.read(job.source), job.target, progress)
        files.write(job.target, coded, force=self.force)
        row |= measured
        row["seconds"] = round(time.perf_counter() - started, 3)
        return row

    def takes(self, path: str) -> bool:
        """Whether a path is that of an input, by its suffix or by the first bytes of the file."""
        suffix = os.path.splitext(path)[1].lower()
        return suffix in self.suffixes() or self._is_input(files.kind_of(path))

    def read(self, path: str) -> bytes:
        """The bytes of an input; errors as of `files.read_image` or `files.read_aic`."""
        raise NotImplementedError

    def read_of(self, file: BinaryIO, regular: bool) -> bytes:
        """The bytes of an input that is open; errors as of `files.image_of` or `files.aic_of`."""
        raise NotImplementedError

    def code(
        self, read: Callable[[], bytes], target: str, progress: Progress | None = None
    ) -> tuple[bytes, Row]:
        """Code what `read` gives, and what to say of it; nothing is written. The name `target`, or "-",
        may tell the format of the output."""
        raise NotImplementedError

    def _is_input(self, kind: str | None) -> bool:
        """Whether files of this kind, see `files.kind_of`, are inputs."""
        raise NotImplementedError

    def suffixes(self) -> frozenset[str]:
        """The suffixes, in lower case, of the files in a folder that are inputs."""
        raise NotImplementedError

    def output_suffix(self) -> str:
        """The suffix of outputs that are named after their inputs."""
        raise NotImplementedError


@dataclass(frozen=True)
class Encode(_Coding):
    """Images to .aic files. At most one of `quality` and the targets is given."""

    quality: int | None = None  # 0..100; None: DEFAULT_QUALITY
    max_bytes: int | None = None  # the best quality within so many bytes, at least 1
    target_bpp: float | None = None  # the best quality within so many bits per pixel, above 0
    target_psnr: float | None = None  # the lowest quality of so many dB, above 0; see `encode_to`
    target_ssim: float | None = None  # the lowest quality of such an MS-SSIM, above 0, below 1
    effort: int = DEFAULT_EFFORT  # 0..9, of the search for a better file
    strip: bool | str = False  # what metadata to leave out; see `Codec.encode`
    verify: bool = False  # decode the symbols before the file is written
    strict: bool = False  # refuse damaged images that could be read in part
    formats: tuple[str, ...] | None = None  # the only ones to be tried, as Pillow names them

    unreadable: ClassVar[type[AicError]] = ImageError

    def __post_init__(self) -> None:
        targets = (self.target_bpp, self.target_psnr, self.target_ssim)
        if sum(goal is not None for goal in (self.quality, self.max_bytes, *targets)) > 1:
            raise ValueError(
                "quality, max_bytes, target_bpp, target_psnr and target_ssim exclude each other"
            )
        for goal, what, most in zip(
            targets,
            ("bits per pixel", "dB", "of MS-SSIM"),
            (math.inf, math.inf, 1.0),
            strict=True,
        ):
            if goal is not None and not 0 < goal < most:
                raise ValueError(f"{goal} {what} are not above 0 and below {most}")
        if not 0 <= self.effort <= MAX_EFFORT:
            raise ValueError(f"effort {self.effort} is not in 0..{MAX_EFFORT}")

    def read(self, path: str) -> bytes:
        """The bytes of an image."""
        return files.read_image(path)

    def read_of(self, file: BinaryIO, regular: bool) -> bytes:
        """The bytes of an image."""
        return files.image_of(file, regular)

    def code(
        self, read: Callable[[], bytes], target: str, progress: Progress | None = None
    ) -> tuple[bytes, Row]:
        """An image to the bytes of an .aic file."""
        data = read()
        with loading("numpy"):
            from aiocodec import image
        picture = image.read(
            data, max_pixels=self.max_pixels, strict=self.strict, formats=self.formats
        )
        length = len(data)
        del data
        codec = load_codec(self.model, self.device, self.threads)
        height, width, _ = picture.rgb.shape
        options: dict[str, Any] = {
            "effort": self.effort,
            "strip": self.strip,
            "verify": self.verify,
        }
        options |= _told(progress, width, height)
        targets: dict[str, Any] = {"min_psnr": self.target_psnr, "min_ssim": self.target_ssim}
        targets["max_bytes"] = self.max_bytes
        if self.target_bpp is not None:
            targets["max_bytes"] = int(self.target_bpp * width * height / 8)
        extra: Row = {}
        if all(target is None for target in targets.values()):
            quality = DEFAULT_QUALITY if self.quality is None else self.quality
            coded = codec.encode(picture, quality, **options)
        else:
            found = codec.encode_to(picture, **targets, **options)
            coded, quality = found.data, found.quality
            extra = {"encodes": found.encodes}
            measured = {"psnr": found.psnr, "ssim": found.ssim, "against": found.against}
            extra |= {name: value for name, value in measured.items() if value is not None}
        return coded, {
            **_measures(width, height, len(coded), quality, codec),
            **extra,
            "input_bytes": length,
            "output_bytes": len(coded),
            "warnings": list(picture.warnings),
        }

    def _is_input(self, kind: str | None) -> bool:
        return kind not in (None, "AIC")

    def suffixes(self) -> frozenset[str]:
        """Those of photographs in formats that Pillow reads."""
        with loading("numpy"):
            from aiocodec.image import SUFFIXES
        return SUFFIXES | _ONLY_READ

    def output_suffix(self) -> str:
        """.aic"""
        return ".aic"


@dataclass(frozen=True)
class Decode(_Coding):
    """.aic files to images."""

    max_pixels: int = DECODED_MAX_PIXELS
    suffix: str | None = None  # names the format, as ".jpg" does; None: that of the target does
    depth: int | None = (
        None  # bits per sample, 8 or 16; None: 16 in a PNG where the source had more than 8
    )

    runtime: str = "auto"  # what runs the network, one of RUNTIMES

    unreadable: ClassVar[type[AicError]] = BitstreamError

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise ValueError(f"runtime {self.runtime!r} is none of {', '.join(RUNTIMES)}")
        if self.runtime == "onnx" and self.device == "cuda":
            raise ValueError("onnxruntime computes on the CPU alone")

    def read(self, path: str) -> bytes:
        """The bytes of an .aic file."""
        return files.read_aic(path)

    def read_of(self, file: BinaryIO, regular: bool) -> bytes:
        """The bytes of an .aic file."""
        return files.aic_of(file)

    def code(
        self, read: Callable[[], bytes], target: str, progress: Progress | None = None
    ) -> tuple[bytes, Row]:
        """An .aic file to the bytes of an image."""
        with loading("numpy"):
            from aiocodec.image import format_of, losses, write

        suffix = self.suffix or os.path.splitext(target)[1]
        if not suffix and (target == "-" or files.is_special(target)):
            suffix = ".png"
        format = format_of(f"x{suffix}")
        data = read()
        container = unpack(data, max_pixels=self.max_pixels)
        header = container.header
        length = len(data)
        del data
        wide = format == "PNG" and Flags.SIXTEEN_BIT in header.flags
        depth = self.depth or (16 if wide else 8)
        picture, codec = self.restore(container, progress, depth)
        image = write(picture, format)
        return image, {
            **_measures(header.width, header.height, length, header.quality, codec),
            "input_bytes": length,
            "output_bytes": len(image),
            "warnings": [*picture.warnings, *losses(picture, format)],
        }

    def restore(
        self, container: Container, progress: Progress | None = None, bits: int = 8
    ) -> "tuple[Picture, AnyCodec]":
        """The picture in a file that was taken apart, of 8 or 16 bits per sample, and the codec that
        decoded it.

        Raises what `Codec.decode` and `load_decoder` raise; of a damaged file as little as possible is
        loaded before.
        """
        from aiocodec.pretrained import Manifest

        header = container.header
        unpack_latents(container.get(ChunkType.LATENTS) or b"", header.version)
        fitting = Manifest.read().for_fingerprint(header.fingerprint)
        with loading("numpy"):
            from aiocodec.hyper import screen
        screen(container, load_frozen(fitting))
        codec = load_decoder(self.model or fitting, self.device, self.threads, self.runtime)
        options: dict[str, Any] = _told(progress, header.width, header.height)
        if bits != 8:
            options["bits"] = bits
        return codec.decode(container, **options), codec

    def _is_input(self, kind: str | None) -> bool:
        return kind == "AIC"

    def suffixes(self) -> frozenset[str]:
        """.aic"""
        return frozenset({".aic"})

    def output_suffix(self) -> str:
        """That of the format, by default .png."""
        return self.suffix or ".png"


Work = Encode | Decode


def _told(progress: Progress | None, width: int, height: int) -> dict[str, Any]:
    """The argument of a codec that makes it tell its progress, if that is wanted."""
    return {"progress": progress} if progress and width * height >= LARGE else {}


def _measures(width: int, height: int, length: int, quality: int, codec: "AnyCodec") -> Row:
    """What rows say of a picture and its .aic file of `length` bytes."""
    return {
        "width": width,
        "height": height,
        "bytes": length,
        "bpp": round(8 * length / (width * height), 5),
        "quality": quality,
        "model": codec.name,
        "device": codec.device.type,
    }


@dataclass
class Tally:
    """What came of many files."""

    done: int = 0  # files
    skipped: int = 0  # files that were left out, because there is an output
    failed: int = 0  # files
    input_bytes: int = 0  # of files that were done
    output_bytes: int = 0  # of the same
    seconds: float = 0.0  # of the clock

    def count(self, outcome: Row | AicError) -> None:
        """Count what came of one."""
        if isinstance(outcome, AicError):
            self.failed += 1
        elif "skipped" in outcome:
            self.skipped += 1
        else:
            self.done += 1
            self.input_bytes += outcome.get("input_bytes", 0)
            self.output_bytes += outcome.get("output_bytes", 0)


# --------------------------------------------------------------------------- PyTorch and onnxruntime


@functools.cache
def load_codec(model: str | None, device: str, threads: int | None) -> "Codec":
    """Import PyTorch and load a model.

    Raises LimitError for too little memory, RuntimeMissing where PyTorch is not installed or cannot be
    loaded, ModelError for a device or weights that are not there.
    """
    try:
        with loading("torch"):
            import torch

            from aiocodec.codec import Codec
    except Exception as fault:
        raise as_aic_error(fault) from None
    if threads is not None:
        torch.set_num_threads(threads)
    return Codec(model, device)


def load_decoder(
    model: str | None, device: str, threads: int | None, runtime: str = "auto"
) -> "AnyCodec":
    """Import PyTorch or onnxruntime, and load a model to decode with.

    Args:
        runtime: one of RUNTIMES; "auto" is "torch" where it is installed, and "onnx" otherwise.

    Raises as `load_codec` does, of both of them.
    """
    if runtime == "auto":
        runtime = "torch" if device == "cuda" or find_spec("torch") else "onnx"
    return load_codec(model, device, threads) if runtime == "torch" else load_light(model, threads)


@functools.cache
def load_light(model: str | None, threads: int | None) -> "LightCodec":
    """Import onnxruntime and load a model; errors as of `load_codec`."""
    try:
        with loading("onnxruntime"):
            import onnxruntime  # noqa: F401

            from aiocodec.light import LightCodec
    except Exception as fault:
        raise as_aic_error(fault) from None
    return LightCodec(model, threads)


@functools.cache
def load_frozen(model: str) -> "FrozenEntropyModel":
    """The entropy model of a model alone, without PyTorch; ModelError where there are no such weights."""
    from aiocodec.pretrained import Manifest

    return Manifest.read().load_frozen(model)


# --------------------------------------------------------------------------- the list


def spread(paths: Sequence[str], out_dir: str, work: Work, *, recursive: bool = False) -> list[Job]:
    """A job for every file of `paths`, its output in the folder `out_dir`, which is made if only it
    is missing.

    Where `recursive`, a folder stands for the files in it and below it that have one of the suffixes
    that `work` reads, in the order of their names; their outputs keep their places in the tree,
    whose folders are made. Hidden files and folders are left out, links to folders are not followed,
    and `out_dir` is not looked into where it lies inside. Folders that cannot be read or hold no such
    file become jobs with a fault.

    Raises OutputError where `out_dir` cannot be made.
    """
    if not os.path.isdir(out_dir):
        try:
            os.mkdir(out_dir)
        except OSError as fault:
            raise OutputError(f"the folder {out_dir} cannot be made: {fault.strerror}") from None

    def job(source: str, name: str) -> Job:
        target = os.path.join(out_dir, os.path.splitext(name)[0] + work.output_suffix())
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
        except OSError as fault:
            why = f"the folder of {target} cannot be made: {fault.strerror}"
            return Job(source, target, OutputError(why))
        return Job(source, target)

    jobs = []
    for path in paths:
        if not (recursive and os.path.isdir(path)):
            jobs.append(job(path, os.path.basename(path)))
            continue
        found = False
        for source, why in walk(path, work.suffixes(), out_dir):
            found = True
            if why is None:
                jobs.append(job(source, os.path.relpath(source, path)))
            else:
                jobs.append(Job(source, "-", work.unreadable(f"cannot be read: {why}")))
        if not found:
            jobs.append(Job(path, "-", work.unreadable("the folder has no files to be coded")))
    return jobs


def guard(jobs: Sequence[Job]) -> list[Job]:
    """The same jobs, with a fault for every one whose output is an input, its own or another, or is
    that of a job before it. This is for a whole batch, before the first of it is done."""
    sources = {files.identity(job.source): job.source for job in jobs if job.source != "-"}
    taken: dict[object, str] = {}
    guarded = []
    for job in jobs:
        fault = job.fault
        if fault is None and job.target != "-" and not files.is_special(job.target):
            place = files.identity(job.target)
            if place == files.identity(job.source):
                fault = OutputError("the output is the input")
            elif place in sources:
                fault = OutputError(f"its output {job.target} is another input, {sources[place]}")
            elif place in taken:
                what = f"its output {job.target} is also that of another input, {taken[place]}"
                fault = OutputError(what)
            else:
                taken[place] = job.source
        guarded.append(Job(job.source, job.target, fault))
    return guarded


def walk(
    folder: str, suffixes: frozenset[str], out_dir: str | None = None
) -> Iterator[tuple[str, str | None]]:
    """(path, None) for the files with these suffixes in a folder and below it, as `spread` takes them,
    and (path, why) for the folders that cannot be read."""
    outputs = None if out_dir is None else files.identity(out_dir)
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        if os.path.isdir(path):
            if path != folder and (os.path.islink(path) or files.identity(path) == outputs):
                continue
            try:
                names = sorted(os.listdir(path), reverse=True)
            except OSError as fault:
                yield path, fault.strerror
                continue
            waiting += [os.path.join(path, name) for name in names if not name.startswith(".")]
        elif os.path.splitext(path)[1].lower() in suffixes and os.path.isfile(path):
            yield path, None


# --------------------------------------------------------------------------- the work


def run(
    jobs: Sequence[Job], work: Work, processes: int = 1, progress: Progress | None = None
) -> Generator[tuple[Job, Row | AicError], None, None]:
    """Do every job; what came of each, in the order of the list.

    With more than one of `processes`, each is new, loads the model once and takes the next job when
    it is done with one. The outputs are the same for any number of them where `work.threads` is
    given. A process that dies costs the file that it was at. `progress` is told of a single job only.
    Close a generator that is not used up, so that no process stays.
    """
    count = min(processes, sum(job.fault is None for job in jobs))
    if count < 2:
        for job in jobs:
            yield job, outcome(job, work, progress if len(jobs) == 1 else None)
        return
    pool = _Pool(jobs, work, count)
    with signals.undoing(pool.end):
        yield from pool.outcomes()


class Runs(Protocol):
    """What a process can be given to do: `Encode`, `Decode`, or what is done with them elsewhere."""

    def run(self, job: Job, progress: Progress | None = None) -> Row:
        """Do a job; AicError says why not."""


def outcome(job: Job, work: Runs, progress: Progress | None = None) -> Row | AicError:
    """What comes of a job, done here and now; nothing is raised but what ends the process."""
    try:
        return work.run(job, progress)
    except Exception as fault:
        return as_aic_error(fault)


class Worker:
    """A process that does one job after the other, and the one that it is at."""

    def __init__(self, work: Runs) -> None:
        from multiprocessing import get_context

        context = get_context("spawn")  # PyTorch does not survive a fork
        self.pipe, self._theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(self._theirs, work), daemon=True)
        self.index: int | None = None  # of the job
        self._job: Job | None = None
        self._prefix: str | None = None  # of its temporary files

    def start(self) -> None:
        """Start the process; OSError where that is not possible."""
        with signals.held(firmly=True), _signals_blocked():
            self.process.start()
        self._theirs.close()

    def take(self, index: int, job: Job) -> None:
        """Begin a job."""
        self.index, self._job = index, job
        with suppress(OSError):  # `answer` says that the process is dead
            self.pipe.send(job)

    def answer(self) -> Row | AicError | None:
        """What came of the job, an error if the process died of it, see `alive`; None: nothing yet. It
        waits for whatever the process says next."""
        try:
            message: Row | AicError | str = self.pipe.recv()
        except (EOFError, OSError):
            self.end()
            code = self.process.exitcode or 0
            if code == -getattr(signal, "SIGKILL", 0):
                return LimitError("its process was killed, most likely for lack of memory")
            return AicError(
                f"its process died of {f'signal {-code}' if code < 0 else f'code {code}'}"
            )
        if isinstance(message, str):
            self._prefix = message
            return None
        return message

    def end(self) -> None:
        """Kill the process. What it has written is whole, and what it was about to write is removed."""
        if self.process.pid is not None:
            self.process.kill()
            self.process.join()
        if self._job is not None and self._prefix is not None:
            files.sweep(self._job.target, self._prefix)


def _serve(pipe: Any, work: Runs) -> None:
    """What a process of the pool does until its parent is gone."""
    for number in signals.SIGNALS:  # they are for the parent, which kills this process
        signal.signal(number, signal.SIG_IGN)
    with suppress(EOFError, OSError):
        pipe.send(files.TEMPORARY)
        while True:
            pipe.send(outcome(pipe.recv(), work))


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """A block in which a process is started that is never to see the signals of the terminal. The
    process of the block gets them nevertheless, in another thread."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # it would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Pool:
    """Up to `count` processes at work on a list of jobs."""

    def __init__(self, jobs: Sequence[Job], work: Work, count: int) -> None:
        self._jobs, self._work, self._count = jobs, work, count
        self._workers: list[Worker] = []
        self._waiting = deque(i for i, job in enumerate(jobs) if job.fault is None)
        self._done: dict[int, Row | AicError] = {
            i: job.fault for i, job in enumerate(jobs) if job.fault is not None
        }

    def outcomes(self) -> Iterator[tuple[Job, Row | AicError]]:
        """What came of every job, in the order of the list."""
        from multiprocessing.connection import wait

        for i, job in enumerate(self._jobs):
            while i not in self._done:
                self._hand_out()
                busy = {worker.pipe: worker for worker in self._workers if worker.index is not None}
                for pipe in wait(list(busy)) if busy else ():
                    self._collect(busy[pipe])  # type: ignore[index]
            yield job, self._done.pop(i)

    def _hand_out(self) -> None:
        """Give every process a job, and start those that are missing."""
        self._workers = [
            worker
            for worker in self._workers
            if worker.index is not None or worker.process.is_alive()
        ]
        idle = [worker for worker in self._workers if worker.index is None]
        while self._waiting and (idle or len(self._workers) < self._count):
            index = self._waiting.popleft()
            if not idle:
                worker = Worker(self._work)
                self._workers.append(worker)  # before it starts: a signal may come at once
                try:
                    worker.start()
                except OSError as fault:
                    self._workers.remove(worker)
                    if self._workers:  # they do it, then
                        self._count = len(self._workers)
                        self._waiting.appendleft(index)
                    else:
                        why = f"no process can be started: {fault.strerror}"
                        self._done[index] = AicError(why)
                    return
                idle.append(worker)
            idle.pop().take(index, self._jobs[index])

    def _collect(self, worker: Worker) -> None:
        outcome = worker.answer()
        if outcome is not None:
            assert worker.index is not None
            self._done[worker.index] = outcome
            worker.index = None

    def end(self) -> None:
        """Kill every process."""
        for worker in self._workers:
            worker.end()
