"""From a folder to a fleet: millions of pictures on the machines of a Ray cluster.

    import aiocodec.ray
    done = aiocodec.ray.encode("s3://photos/2019", "s3://archive/2019", quality=40)
    print(done.done, done.skipped, done.failed, done.input_bytes, done.output_bytes)

Ray Data distributes, keeps back what would be too much, and replaces machines that die. Here is what it
distributes: names of pictures, in small blocks, to actors. Every actor has one process with one loaded
model, which reads a picture, codes it and publishes the output; a picture that kills the process kills
nothing else. What comes back are rows of the manifest, which the driver alone writes.

    driver   walks the sources, leaves out what the manifest has, and fills segments
    Ray Data one dataset for each segment: blocks of jobs -> actors -> blocks of rows
    actor    job -> process -> row, again in a new process where it died
    driver   rows -> manifest; jobs without a row, because an actor or its machine died, come again
"""

import dataclasses
import functools
import hashlib
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from aiocodec import batch, files, manifest, signals
from aiocodec.batch import Decode, Encode, Progress, Row, Tally, Work
from aiocodec.config import DEFAULT_QUALITY
from aiocodec.errors import (
    AicError,
    BitstreamError,
    ClusterError,
    CompatibilityError,
    ImageError,
    LimitError,
    ModelError,
    OutputError,
    RuntimeMissing,
    as_aic_error,
)
from aiocodec.image import no_standard_error
from aiocodec.manifest import RunManifest
from aiocodec.places import Entry, Place, patiently, sentence, without_secrets

__all__ = ["Fleet", "Tally", "decode", "encode", "read_manifest", "run"]

read_manifest = manifest.read

if TYPE_CHECKING:
    from pyarrow import Table

    Source = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


@dataclass(frozen=True)
class Fleet:
    """How the cluster is used."""

    address: str | None = None  # "auto", "local" or host:port; None: $RAY_ADDRESS, or "local"
    workers: int | None = None  # actors, at least 1; None: as many as fit into the cluster as it is
    gpus: float | None = (
        None  # of each; None: 1 with the device "cuda", or where the cluster has any
    )
    memory: int = 3 << 29  # bytes that an actor reserves, twice as many where there is effort
    large: int = (
        1 << 25
    )  # pixels of a picture from which on it waits for actors with `large_memory`
    large_memory: int = 6 << 30  # bytes that these reserve; less where no machine has as many
    attempts: int = 3  # how often a picture is begun before the death of its process is its fault
    patience: float = 60.0  # seconds that a file system which fails is waited for
    segment: int = 2000  # pictures of a dataset for each actor; the driver remembers no more
    block: int = 16  # pictures that an actor is given at once, at most
    retry: bool = False  # do what has failed before once more
    quiet: bool = False  # a process that is of no cluster yet says nothing that is Ray's

    def __post_init__(self) -> None:
        least = {"workers": 1, "memory": 1, "large": 1, "large_memory": 1, "attempts": 1}
        for name, bound in {**least, "segment": 1, "block": 1, "patience": 0, "gpus": 0}.items():
            value = getattr(self, name)
            if value is not None and not value >= bound:
                raise ValueError(f"{name} is {value}, not at least {bound}")


def encode(
    source: "Source",
    destination: "str | os.PathLike[str]",
    *,
    fleet: Fleet | None = None,
    filesystem: Any = None,
    tell: Callable[[str, Row | AicError], None] | None = None,
    **options: Any,
) -> Tally:
    """Encode every picture of a folder, a bucket or a list, on a cluster.

    What the manifest in the destination has is left out, so that the same call goes on after any
    interruption. Files are the same bytes as those of `aic encode -j`, where the device is the same.

    Args:
        source: folders, which are walked, and files: paths, or URLs as pyarrow and fsspec have them.
        destination: a folder, or the URL of one; outputs keep their places in the tree. It must be
            empty, or of an earlier run with the same settings, and lie in no source.
        filesystem: of pyarrow or fsspec, which sources and destination are paths in.
        tell: is called with the name of each picture, and its row or error.
        options: fields of `batch.Encode`: quality, effort, max_bytes ...; `threads` is 1 by default.

    Raises ImageError for a source without pictures or that cannot be read, OutputError for the destination,
    RuntimeMissing without Ray, ClusterError for a cluster that cannot be reached or is lost, ValueError for
    options. A picture that fails is a row, and counted.
    """
    options.setdefault("threads", 1)
    return _all(source, destination, Encode(**options), fleet, filesystem, tell)


def decode(
    source: "Source",
    destination: "str | os.PathLike[str]",
    *,
    fleet: Fleet | None = None,
    filesystem: Any = None,
    tell: Callable[[str, Row | AicError], None] | None = None,
    **options: Any,
) -> Tally:
    """Decode every .aic file of a folder, a bucket or a list, on a cluster; all as of `encode`.

    Args:
        options: fields of `batch.Decode`: suffix, depth, runtime ...

    Raises BitstreamError for a source without .aic files or that cannot be read, otherwise as `encode`.
    """
    options.setdefault("threads", 1)
    return _all(source, destination, Decode(**options), fleet, filesystem, tell)


def _all(
    source: "Source",
    destination: "str | os.PathLike[str]",
    work: Work,
    fleet: Fleet | None,
    filesystem: Any,
    tell: Callable[[str, Row | AicError], None] | None,
) -> Tally:
    started, tally = time.perf_counter(), Tally()
    for path, outcome in run(source, destination, work, fleet, filesystem=filesystem, tally=tally):
        tally.count(outcome)
        if tell is not None:
            tell(path, outcome)
    tally.seconds = round(time.perf_counter() - started, 3)
    return tally


# --------------------------------------------------------------------------- jobs


@dataclass(frozen=True)
class _Job(batch.Job):
    """A picture of a source, as it was listed. `source` is its path or URL, `target` the name of its
    output below the destination."""

    root: int = 0  # the source that it is of
    name: str = ""  # below the source; "" where the source is the picture
    size: int = -1  # bytes
    modified: int = 0  # microseconds since 1970
    attempts: int = 0  # segments that it was in
    large: bool = False  # small actors have refused it

    @property
    def path(self) -> str:
        """What the manifest knows it by."""
        return self.source


@dataclass(frozen=True)
class _Sources:
    """What is to be coded."""

    places: tuple[Place, ...]
    work: Work
    singles: tuple[bool, ...]  # which places are files
    patience: float = 0.0  # seconds that a source which is gone is waited for

    @classmethod
    def of(cls, source: Any, work: Work, filesystem: Any, patience: float = 0.0) -> "_Sources":
        """Raises the error of unreadable inputs for what is not there."""
        given = [source] if isinstance(source, (str, os.PathLike)) else list(source)
        places, singles = [], []
        for where in given:
            try:
                place = Place.of(where, filesystem)
                status = place.status()
            except (OSError, ValueError) as fault:
                why = f"{without_secrets(where)} cannot be read: {sentence(fault)}"
                raise work.unreadable(why) from None
            if status == "missing":
                raise work.unreadable(f"{place} cannot be read: there is no such file or folder")
            places.append(place)
            singles.append(status == "file")
        return cls(tuple(places), work, tuple(singles), patience)

    def jobs(self) -> Iterator[_Job]:
        """A job for each picture, in the order of the sources and of the names in a folder. Where the name
        of an output is taken, as that of a.png is by a.jpg before it, the job has a fault.

        Raises the error of unreadable inputs where a source is gone, and stays away.
        """
        suffixes = self.work.suffixes()
        taken: dict[str, dict[str, str]] = {}  # for each folder its outputs, and what they are of
        for root, (place, single) in enumerate(zip(self.places, self.singles, strict=True)):
            for entry in self._entries(place, single):
                if entry.fault is not None:
                    why = self.work.unreadable(f"cannot be read: {entry.fault}")
                    yield _Job(str(place / entry.name), "", why, root=root, name=entry.name)
                    continue
                stem, suffix = os.path.splitext(entry.name)
                if not single and suffix.lower() not in suffixes:
                    continue
                folder = entry.name.rpartition("/")[0]
                if folder not in taken and len(self.places) == 1:  # it has left those beside it
                    taken = {
                        name: taken[name]
                        for name in taken
                        if not name or f"{folder}/".startswith(f"{name}/")
                    }
                source = str(place if single else place / entry.name)
                target = stem + self.work.output_suffix()
                first = taken.setdefault(folder, {}).get(target)
                if first == source:  # it was given twice
                    continue
                taken[folder].setdefault(target, source)
                clash = f"its output {target} is also that of another input, {first}"
                fault: AicError | None = OutputError(clash) if first else None
                if not entry.name.isascii() and _escaped(source) != source:
                    source, target = _escaped(source), _escaped(target)
                    fault = self.work.unreadable(
                        "its name is not UTF-8, which no manifest can have"
                    )
                yield _Job(
                    source,
                    target,
                    fault,
                    root=root,
                    name="" if single else entry.name,
                    size=entry.size,
                    modified=entry.modified,
                )

    def _entries(self, place: Place, single: bool) -> Iterable[Entry]:
        if not single:
            return self._walk(place)
        try:
            return [place.entry()]
        except OSError as fault:
            return [Entry(place.name, -1, 0, sentence(fault))]

    def _walk(self, place: Place, below: str = "", again: bool = False) -> Iterator[Entry]:
        """What `Place.walk` gives. A folder that cannot be listed is listed `again` when the source is there."""
        for entry in place.walk(below):
            if entry.fault is None or (again and entry.name == (below or ".")):
                yield entry
                continue
            try:
                _wait_for(place, self.patience)
            except OSError as why:
                message = f"{place} cannot be read any more: {sentence(why)}"
                raise self.work.unreadable(message) from None
            yield from self._walk(place, "" if entry.name == "." else entry.name, again=True)


def _wait_for(folder: Place, patience: float) -> None:
    """Return when there is something in a folder of pictures; OSError where it stays away for so long."""

    def look() -> None:
        if folder.gone():
            raise ConnectionError("it is gone")

    patiently(look, patience)


def _escaped(name: str) -> str:
    """A name with escapes for what UTF-8 does not have."""
    return name.encode("utf-8", "backslashreplace").decode()


# --------------------------------------------------------------------------- in the processes of actors


class _Stop(AicError):
    """The run cannot go on: it is not the picture that fails. `args` are the message, and the exit code of
    the error that the driver raises."""


@dataclass(frozen=True)
class _Task:
    """What a process does with a job."""

    work: Work
    sources: tuple[Place, ...]
    destination: Place
    scratch: Place
    patience: float

    def run(self, job: batch.Job, progress: Progress | None = None) -> Row:
        """Read, code and publish one picture; `AicError` says why not."""
        assert isinstance(job, _Job)
        _end_with_parent()
        started = time.perf_counter()
        root, target = self.sources[job.root], self.destination / job.target
        place = root / job.name if job.name else root
        try:
            around = root if job.name else root.parent
            coded, row = self.work.code(lambda: self._read(place, around), job.target)
        except (RuntimeMissing, ModelError) as fault:
            if isinstance(self.work, Decode) and not isinstance(fault, RuntimeMissing):
                raise  # it is the file that is of another model
            raise _Stop(str(fault), fault.exit_code) from None
        self._publish(target, coded)
        row |= {
            "output": str(target),
            "sha256": hashlib.sha256(coded).hexdigest(),
            "seconds": round(time.perf_counter() - started, 3),
        }
        return row

    def _read(self, place: Place, source: Place) -> bytes:
        """The bytes of an input. Where its source fails as a whole, that is waited for, and then _Stop."""

        def read() -> bytes:
            with place.open() as file:
                return self.work.read_of(file, regular=True)

        for last in (False, True):
            try:
                return patiently(read, self.patience)
            except OSError as fault:
                try:
                    _wait_for(source, self.patience)
                except OSError as why:
                    message = f"{source} cannot be read any more: {sentence(why)}"
                    raise _Stop(message, self.work.unreadable.exit_code) from None
                if last:
                    raise self.work.unreadable(f"cannot be read: {sentence(fault)}") from None
        raise AssertionError

    def _publish(self, target: Place, data: bytes) -> None:
        """Write an output. Where another file of the same bytes cannot be written either, the destination
        fails as a whole; that is waited for, and then _Stop."""

        def probe() -> None:
            place = self.scratch / f"{files.TEMPORARY}probe"
            place.publish(data, self.scratch)
            place.remove()

        try:
            target.publish(data, self.scratch)
        except OutputError:
            try:
                patiently(probe, self.patience)
            except (OSError, OutputError) as why:
                raise _Stop(
                    f"the destination cannot be written any more: {sentence(why)}",
                    OutputError.exit_code,
                ) from None
            target.publish(data, self.scratch)


@functools.cache
def _end_with_parent() -> None:
    """From now on this process ends when that does which started it, be it in the middle of a picture."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


class _Begun:
    """An actor that counts how often each block of jobs was begun: Ray begins a block again, without end,
    when the actor that is at it dies."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def count(self, block: int) -> int:
        """Count a beginning; how many there were."""
        self._counts[block] += 1
        return self._counts[block]


class _Coder:
    """An actor: it keeps a process, gives it one job after the other, and replaces it when it dies.

    Args:
        begun: the actor of _Begun.
        attempts: how often a block, and a job in it, is begun at most.
    """

    def __init__(self, task: _Task, begun: Any, attempts: int) -> None:
        self._task, self._begun, self._attempts = task, begun, attempts
        self._process: batch.Worker | None = None
        self._block: int | None = None
        self._refused: Row | None = None  # what is said of every job of the block

    def __call__(self, job: "Table") -> "Table":
        """One job to what came of it: a row, {"stop": why, "exit_code": ...}, or {"again": True}."""
        import pyarrow as pa

        (columns,) = job.to_pylist()
        index, block = columns.pop("index"), columns.pop("block")
        if block != self._block:
            self._block = block
            self._refused = {"again": True} if self._count(block) > self._attempts else None
        row = self._refused or self._row(_Job(**columns))
        if "stop" in row:
            self._refused = row
        return pa.table({"index": [index], "row": [json.dumps(row)]})

    def _count(self, block: int) -> int:
        import ray
        from ray.exceptions import RayError

        try:
            return ray.get(self._begun.count.remote(block))
        except RayError:  # it is being replaced
            return 1

    def _row(self, job: _Job) -> Row:
        outcome: Row | AicError | None = None
        attempts = 0
        while attempts < self._attempts:
            attempts += 1
            process = self._process or batch.Worker(self._task)
            if self._process is None:
                with _main_hidden():
                    process.start()
                self._process = process
            process.take(0, job)
            while (outcome := process.answer()) is None:
                pass
            if process.process.is_alive():
                break
            self._process = None
        if isinstance(outcome, _Stop):
            why, code = outcome.args
            return {"stop": why, "exit_code": code}
        if isinstance(outcome, AicError):
            return {"error": str(outcome), "exit_code": outcome.exit_code, "attempts": attempts}
        assert outcome is not None
        return {**outcome, "exit_code": 0, "attempts": attempts}


@contextmanager
def _main_hidden() -> Iterator[None]:
    """A block in which processes are started that do not run the main module of this one: it is Ray's, and
    takes a second and 60 MB."""
    main = sys.modules["__main__"].__dict__
    names = ("__file__", "__spec__")
    hidden: dict[str, Any] = {name: main.pop(name) for name in names if name in main}
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(hidden)


# --------------------------------------------------------------------------- the driver


def run(
    source: Any,
    destination: "str | os.PathLike[str]",
    work: Work,
    fleet: Fleet | None = None,
    *,
    filesystem: Any = None,
    tally: Tally | None = None,
) -> Generator[tuple[str, Row | AicError], None, None]:
    """What comes of each picture, with its name, as it comes; otherwise as `encode` and `decode`.

    Args:
        work: what is done; `force` takes a destination that is somebody else's, or was made with
            other settings, and `skip_existing` says nothing here.
        tally: those are counted in it that the manifest has, which nothing else is said of.

    Close a generator that is not used up, so that no actor stays.
    """
    fleet, tally = fleet or Fleet(), tally if tally is not None else Tally()
    for library in ("ray", "pyarrow"):
        if find_spec(library) is None:
            raise as_aic_error(ModuleNotFoundError(name=library))
    _check_address(fleet.address)
    sources = _Sources.of(source, work, filesystem, fleet.patience)
    try:
        place = Place.of(destination, filesystem)
    except (OSError, ValueError) as fault:
        why = f"{without_secrets(destination)} cannot be written: {sentence(fault)}"
        raise OutputError(why) from None
    for other in sources.places:
        if place.inside(other):
            raise OutputError(f"the destination {place} lies in the source {other}")
    if next(sources.jobs(), None) is None:
        raise work.unreadable(f"{', '.join(map(str, sources.places))}: no files to be coded")
    with RunManifest.open(
        place, _settings(work), fleet.patience, force=work.force, retry=fleet.retry
    ) as record:
        pipeline = _Pipeline(fleet, work, sources, record, tally)
        fresh = pipeline.fresh()
        first = list(islice(fresh, 1))  # where there is nothing to do, no cluster is needed for it
        try:
            if first:
                with _cluster(fleet, work.threads or 1):
                    yield from pipeline.outcomes(chain(first, fresh))
            yield from pipeline.faults()
        finally:
            record.flush()
        record.tidy()


def _settings(work: Work) -> Row:
    """What decides the bytes of outputs, as far as one can choose it; `device` and `threads` only round
    otherwise."""
    settings: Row = {"model": work.model}
    if isinstance(work, Decode):
        suffix = work.output_suffix()
        return {**settings, "command": "decode", "suffix": suffix, "depth": work.depth}
    targets = ("max_bytes", "target_bpp", "target_psnr", "target_ssim")
    settings |= {name: getattr(work, name) for name in (*targets, "quality", "effort", "strip")}
    if all(settings[name] is None for name in (*targets, "quality")):
        settings["quality"] = DEFAULT_QUALITY
    return {**settings, "command": "encode", "weights": _weights(work.model)}


def _weights(model: str | None) -> str:
    """The fingerprint of the entropy model that files are made with."""
    from aiocodec.pretrained import Manifest

    weights = Manifest.read()
    return weights.fingerprint(model or weights.models[0]).hex()


@dataclass(frozen=True)
class _Lane:
    """Actors of one sort."""

    work: Work
    memory: int  # bytes that an actor reserves
    gpus: float
    fitting: int  # actors that fit into the cluster as it is
    workers: int  # actors, at most
    block: int  # jobs that an actor is given at once, at most


@dataclass
class _Pipeline:
    """The jobs of a run on their way through Ray Data, segment by segment."""

    fleet: Fleet
    work: Work
    sources: _Sources
    record: RunManifest
    tally: Tally
    again: list[_Job] = field(default_factory=list)  # jobs without a row: what they were on died
    large: list[_Job] = field(default_factory=list)  # jobs that small actors have refused
    faulty: list[_Job] = field(default_factory=list)  # jobs that need not be begun

    def outcomes(self, fresh: Iterator[_Job]) -> Iterator[tuple[str, Row | AicError]]:
        """What comes of each job."""
        limit = min(self.work.max_pixels, self.fleet.large)
        work = dataclasses.replace(self.work, max_pixels=limit)
        searches = isinstance(work, Encode) and work.effort > 0
        memory = self.fleet.memory * (2 if searches else 1)
        small = self._lane(work, memory, self.fleet.block)
        while True:
            size = self.fleet.segment * small.workers
            jobs, self.again = self.again, []
            jobs += islice(fresh, max(0, size - len(jobs)))
            yield from self.faults()
            yield from self._segment(jobs, small)
            if len(self.large) >= size or not (jobs or self.again):
                if not self.large:
                    return
                jobs, self.large = self.large, []
                yield from self._segment(jobs, self._lane(self.work, self.fleet.large_memory, 1))

    def fresh(self) -> Iterator[_Job]:
        """The jobs of the sources that the manifest does not have; the others are counted."""
        listed = self.sources.jobs()
        while jobs := list(islice(listed, 1000)):
            todo, done, failed = self.record.sift(jobs)
            self.tally.skipped += done
            self.tally.failed += failed
            for job in todo:
                if job.fault is None:
                    yield job
                else:
                    self.faulty.append(job)

    def faults(self) -> Iterator[tuple[str, Row | AicError]]:
        """What is known beforehand of jobs that were listed."""
        jobs, self.faulty = self.faulty, []
        for job in jobs:
            fault = job.fault
            assert fault is not None
            yield self._told(job, {"error": str(fault), "exit_code": fault.exit_code})

    def _lane(self, work: Work, memory: int, block: int) -> _Lane:
        """Actors for this work in the cluster as it is now; ClusterError where not one fits."""
        import ray

        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        memory = int(min(memory, max((node.get("memory", 0) for node in machines), default=0)))
        threads = work.threads or 1
        gpus = self.fleet.gpus
        if gpus is None:
            any_gpu = work.device == "auto" and any(node.get("GPU", 0) for node in machines)
            gpus = 1.0 if work.device == "cuda" or any_gpu else 0.0
        wanted = {"CPU": threads, "memory": memory, "GPU": gpus}
        needed = {name: amount for name, amount in wanted.items() if amount}
        fitting = sum(
            int(min(node.get(name, 0) // amount for name, amount in needed.items()))
            for node in machines
        )
        if not fitting and self.fleet.workers is None:
            what = f"{threads} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
            raise ClusterError(f"no machine of the cluster has {what} for a worker")
        workers = self.fleet.workers or fitting
        return _Lane(work, memory, gpus, min(max(1, fitting), workers), workers, block)

    def _segment(self, jobs: Sequence[_Job], lane: _Lane) -> Iterator[tuple[str, Row | AicError]]:
        """Do these jobs as far as nothing dies; those without an outcome are kept for later."""
        from ray.exceptions import RayError

        if not jobs:
            return
        waiting = dict(enumerate(jobs))
        try:
            for index, row in self._dataset(waiting, lane):
                if index not in waiting:  # it was done twice, and counts once
                    continue
                job = waiting.pop(index)
                if "again" in row:
                    waiting[index] = job
                    continue
                if "stop" in row:
                    raise _failure(row["stop"], row["exit_code"])
                code = row["exit_code"]
                if code == LimitError.exit_code and not job.large:
                    self.large.append(dataclasses.replace(job, large=True))
                elif code == OutputError.exit_code and job.attempts + 1 < self.fleet.attempts:
                    self._put_back(job)
                else:
                    yield self._told(job, row)
        except RayError as lost:
            raise ClusterError(f"the cluster failed: {sentence(lost)}") from None
        for job in waiting.values():
            if job.attempts + 1 < self.fleet.attempts:
                self._put_back(job)
                continue
            why = f"its worker died of it, {self.fleet.attempts} times"
            yield self._told(job, {"error": why, "exit_code": 1, "attempts": job.attempts + 1})

    def _put_back(self, job: _Job) -> None:
        later = self.large if job.large else self.again
        later.append(dataclasses.replace(job, attempts=job.attempts + 1))

    def _told(self, job: _Job, row: Row) -> tuple[str, Row | AicError]:
        """Record a row of a job; what `run` tells of it."""
        if job.target:
            self.record.add(job, row)
        outcome: Row | AicError
        if "error" in row:
            outcome = _failure(row["error"], row["exit_code"])
        else:
            outcome = {"input": job.source, **row}
        return job.source, outcome

    def _dataset(self, jobs: dict[int, _Job], lane: _Lane) -> Iterator[tuple[int, Row]]:
        """What comes of jobs in Ray Data, as it comes: their indices and rows."""
        import pyarrow as pa
        import ray.data
        from ray.exceptions import RayError

        size = min(lane.block, -(-len(jobs) // (4 * lane.workers)))
        blocks: list[list[Row]] = [[]]
        for index, job in jobs.items():
            if len(blocks[-1]) >= (1 if job.attempts else size):
                blocks.append([])
            columns = {name: getattr(job, name) for name in ("source", "target", "root", "name")}
            blocks[-1].append({"index": index, "block": len(blocks), **columns})
        begun: Any = ray.remote(num_cpus=0, max_restarts=-1)(_Begun).remote()
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # what is missing is seen here, and comes again
        context.autoscaling_config = dataclasses.replace(
            context.autoscaling_config, actor_pool_util_upscaling_threshold=1.0
        )
        with ray.data.DataContext.current(context):
            dataset = ray.data.from_arrow([pa.Table.from_pylist(block) for block in blocks])
            done = dataset.map_batches(
                _Coder,
                fn_constructor_args=(self._task(lane.work), begun, self.fleet.attempts),
                batch_size=1,  # of the jobs of a block; with GPUs Ray Data asks for a number
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(
                    min_size=1,
                    max_size=lane.workers,
                    initial_size=min(lane.fitting, len(blocks)),
                    max_tasks_in_flight_per_actor=1,  # blocks take seconds: none waits for one actor
                ),
                num_cpus=lane.work.threads or 1,
                num_gpus=lane.gpus or None,
                memory=lane.memory,
            )
        try:
            for block in done.iter_batches(batch_size=None, batch_format="pyarrow"):
                assert isinstance(block, pa.Table)
                for row in block.to_pylist():
                    yield row["index"], json.loads(row["row"])
        finally:
            with suppress(RayError):
                ray.kill(begun)

    def _task(self, work: Work) -> _Task:
        return _Task(
            work,
            self.sources.places,
            self.record.destination,
            self.record.scratch,
            self.fleet.patience,
        )


def _failure(text: str, code: int) -> AicError:
    """The error with this exit code."""
    kinds = (ImageError, BitstreamError, CompatibilityError, LimitError, OutputError)
    return next((kind for kind in kinds if kind.exit_code == code), AicError)(text)


# --------------------------------------------------------------------------- the cluster


def _check_address(address: str | None) -> None:
    """ClusterError where nobody listens at this address; Ray itself would try for long."""
    if address is None or address in ("auto", "local"):
        return
    if "://" in address:
        raise ClusterError(
            f"{address}: Ray's client is not supported; start on a machine of the cluster, or as a job"
        )
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError) as fault:
        raise ClusterError(
            f"the cluster at {address} cannot be reached: {sentence(fault)}"
        ) from None


@contextmanager
def _cluster(fleet: Fleet, threads: int) -> Iterator[None]:
    """Ray, as it is initialised already, or else until the end of the block."""
    with signals.held():
        import ray
        import ray.data
    if ray.is_initialized():
        yield
        return
    address = fleet.address or (None if "RAY_ADDRESS" in os.environ else "local")
    options: dict[str, Any] = {"address": address, "log_to_driver": False}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
        options["include_dashboard"] = False
        options["object_store_memory"] = 200_000_000  # names and rows are all that goes through it
        if fleet.workers is not None:
            options["num_cpus"] = fleet.workers * threads
    if fleet.quiet:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        # Ray tells of actors that die on stdout, where rows of JSON go, and has no option against it.
        with suppress(AttributeError):
            ray._private.worker.print_to_stdstream = lambda *arguments, **options: None
        logging.disable()
        warnings.simplefilter("ignore")
    try:
        with _own_signals(), no_standard_error() if fleet.quiet else nullcontext():
            ray.init(**options)
    except (OSError, RuntimeError, ValueError) as fault:
        what = "Ray cannot be started"
        if address != "local":
            what = f"the cluster at {address or os.environ['RAY_ADDRESS']} cannot be joined"
        raise ClusterError(f"{what}: {sentence(fault)}") from None
    try:
        yield
    finally:
        with signals.held():
            ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """A block that leaves the handlers of signals as they were: Ray has its own for SIGTERM."""
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
