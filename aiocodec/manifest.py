"""What a fleet has done: a folder of Parquet files in the destination, a row for every picture, which is the
truth of what need not be done again.

    with RunManifest.open(destination, settings, force=False, retry=False) as manifest:
        todo = manifest.missing(jobs)
        manifest.add(row)

One process writes at a time, and only adds: rows are kept for a while and stored as a new file, whole or
not at all. Of two rows with one path the one that was finished last counts, so that nothing is wrong where
a run ended between two steps; `tidy` leaves one row each, in few files.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from aiocodec.errors import OutputError
from aiocodec.places import Place, patiently, sentence

FOLDER = "manifest.parquet"  # in the destination
SCRATCH = "_writing"  # in it: files that are not yet whole; readers of Parquet leave out what begins with "_"
SETTINGS = "_settings.json"  # in it: what the last run was told to do
LOCK = "_lock"  # in it, for folders: whoever holds it writes

FLUSH_ROWS, FLUSH_SECONDS = 10_000, 20.0  # when rows are stored at the latest
MERGED_ROWS = 500_000  # of a file that is not merged with others any more
FEW = 64  # files of a run from which on they are merged

Row = dict[str, Any]


class Known(Protocol):
    """What a manifest knows a picture by."""

    @property
    def path(self) -> str:
        """Its path or URL, the same for every run."""

    @property
    def size(self) -> int:
        """Its bytes; -1 where nobody says."""

    @property
    def modified(self) -> int:
        """When, in microseconds since 1970; 0 where nobody says."""


K = TypeVar("K", bound=Known)


def schema() -> Any:
    """The columns, as a pyarrow.Schema. A picture that failed has no more than path, size, modified, error,
    exit_code, attempts, settings and finished."""
    import pyarrow as pa

    return pa.schema(
        [
            ("path", pa.string()),  # of the picture, absolute, or its URL
            ("output", pa.string()),
            ("input_bytes", pa.int64()),  # as it was listed
            ("modified", pa.timestamp("us", "UTC")),  # of the picture; 1970 where nobody says
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("bytes", pa.int64()),  # of the .aic file, be it output or input
            ("output_bytes", pa.int64()),
            ("bpp", pa.float64()),
            ("quality", pa.int16()),
            ("psnr", pa.float64()),  # where a target asked for it, as the next
            ("ssim", pa.float64()),
            ("model", pa.string()),
            ("device", pa.string()),
            ("seconds", pa.float64()),
            ("sha256", pa.string()),  # of the output, 64 hexadecimal digits
            ("warnings", pa.list_(pa.string())),
            ("error", pa.string()),  # null: it was done
            ("exit_code", pa.int16()),  # that of aic; 0: it was done
            ("attempts", pa.int16()),  # how often it was begun by this run
            ("settings", pa.string()),  # which of them, see `settings_key`
            ("finished", pa.timestamp("us", "UTC")),
        ]
    )


def settings_key(settings: Row) -> str:
    """What tells settings apart in rows: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def read(destination: "str | os.PathLike[str]", filesystem: Any = None) -> Any:
    """The manifest of a destination as a pyarrow.Table: one row for every picture, see `schema`.

    Args:
        destination: as for `aiocodec.ray.encode`, a path or a URL.
        filesystem: of pyarrow or fsspec, which `destination` is a path in.

    Raises OSError or ValueError where there is none or it cannot be read.
    """
    import pyarrow as pa

    folder = Place.of(destination, filesystem) / FOLDER
    names = _parts(folder)
    tables = [
        _table(folder, name).filter(kept)
        for name, kept in zip(names, _latest(folder, names), strict=True)
    ]
    return pa.concat_tables(tables) if tables else schema().empty_table()


@dataclass
class RunManifest:
    """The manifest of a destination while a run is at work on it."""

    destination: Place
    settings: Row  # what decides the bytes of outputs
    patience: float = 60.0  # seconds that a destination which fails is waited for
    retried: frozenset[int] = frozenset({5, 7})  # exit codes of rows that are tried again
    _done: Any = None  # sorted keys of 16 bytes of what was done
    _failed: Any = None  # the same of what has failed and is not tried again
    _rows: dict[str, Row] = field(default_factory=dict)  # those that wait to be stored, by path
    _since: float = 0.0  # when the first of them came
    _new: list[str] = field(default_factory=list)  # files of this run that are not merged
    _lock: Any = None

    @classmethod
    def open(
        cls, destination: Place, settings: Row, patience: float, *, force: bool, retry: bool
    ) -> "RunManifest":
        """Take possession of a destination, and read what is done there.

        Args:
            settings: what decides the bytes of outputs, as JSON has it.
            patience: seconds that a destination which fails is waited for.
            force: take a destination that has files but no manifest, or was made with other settings.
            retry: do what has failed once more.

        Raises OutputError where that cannot be done: the destination cannot be written, is at work, or
        is somebody else's.
        """
        retried = frozenset(range(1, 256)) if retry else cls.retried
        self = cls(destination, settings, patience, retried)
        try:
            str(destination).encode()  # rows name it
            self._check(force)
            if self._take_lock():
                self._check(force)  # somebody else may have been the first
            # What a run that was killed has left, and may still be at for a moment.
            with suppress(OSError):
                self.scratch.remove()
            if destination.local:
                os.makedirs(self.scratch.path, exist_ok=True)
            text = json.dumps(settings, sort_keys=True, indent=1).encode()
            (self.folder / SETTINGS).publish(text, self.scratch)
            self._read()
        except UnicodeEncodeError:
            raise OutputError("the name of the destination is not UTF-8") from None
        except (OSError, ValueError) as fault:
            self.close()
            raise OutputError(f"{destination} cannot be used: {sentence(fault)}") from None
        except BaseException:
            self.close()
            raise
        return self

    @property
    def folder(self) -> Place:
        """Where the Parquet files are."""
        return self.destination / FOLDER

    @property
    def scratch(self) -> Place:
        """Where temporary files are, of the outputs too."""
        return self.folder / SCRATCH

    def sift(self, jobs: Sequence[K]) -> tuple[list[K], int, int]:
        """Those of the jobs that are to be done, and how many of the others were done and have failed."""
        import numpy as np

        keys = np.array([_key(job.path, job.size, job.modified) for job in jobs], "S16")
        done, failed = (_among(keys, known) for known in (self._done, self._failed))
        todo = [job for job, known in zip(jobs, done | failed, strict=True) if not known]
        return todo, int(done.sum()), int(failed.sum())

    def add(self, job: Known, row: Row) -> None:
        """Record what came of a job; OutputError where rows cannot be stored any more."""
        now = time.time()
        self._since = self._since or now
        known = {
            "path": job.path,
            "input_bytes": None if job.size < 0 else job.size,
            "modified": job.modified,
            "settings": settings_key(self.settings),
            "finished": int(1e6 * now),
        }
        self._rows[job.path] = {**row, **known}
        if len(self._rows) >= FLUSH_ROWS or now - self._since >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Store the rows that wait; OutputError where that cannot be done."""
        if not self._rows:
            return
        import pyarrow as pa

        self._new.append(self._store(pa.Table.from_pylist([*self._rows.values()], schema())))
        self._rows, self._since = {}, 0.0
        if len(self._new) >= FEW:
            with suppress(OSError, ValueError):  # they are stored; `tidy` is patient, and says it
                self._merge(self._new)
            self._new = []

    def tidy(self) -> None:
        """Leave one row for each picture, in few files, and nothing temporary; OutputError where that
        cannot be done."""
        self.flush()
        try:
            patiently(self._tidy, self.patience)
        except (OSError, ValueError) as fault:
            raise OutputError(f"{self.folder} cannot be tidied: {sentence(fault)}") from None
        self._new = []

    def close(self) -> None:
        """Let others write; rows that were not stored are forgotten."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> "RunManifest":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---------------------------------------------------------------- within

    def _check(self, force: bool) -> None:
        """OutputError where the destination is somebody else's."""
        try:
            text = (self.folder / SETTINGS).read()
        except FileNotFoundError:
            if not force:
                self._check_empty()
            return
        if force:
            return
        try:
            before = json.loads(text)
            if not isinstance(before, dict):
                raise ValueError
        except (ValueError, RecursionError):
            raise OutputError(
                f"{self.folder / SETTINGS} is damaged; give another folder, or --force to replace what is "
                "there"
            ) from None
        after = json.loads(json.dumps(self.settings))
        changed = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
        if changed:
            raise OutputError(
                f"{self.destination} was made with other settings ({', '.join(changed)}); give another "
                "folder, or --force to replace what is there"
            )

    def _check_empty(self) -> None:
        """OutputError where there are files, besides what a run has left that was killed at its start."""
        if self.destination.status() == "missing":
            return
        for entry in self.destination.walk():
            if entry.fault is not None:
                raise OSError(entry.fault)
            if not entry.name.startswith(f"{FOLDER}/_"):
                raise OutputError(
                    f"{self.destination} has files and no manifest; give an empty folder, or --force to "
                    "replace what gets in the way"
                )

    def _take_lock(self) -> bool:
        """Be the only one at work, among those who see this folder; an object store has no such thing, and
        nothing is taken."""
        if not self.destination.local:
            return False
        try:
            import fcntl
        except ImportError:  # Windows
            return False
        with suppress(FileExistsError):
            os.mkdir(self.destination.path)
        os.makedirs(self.folder.path, exist_ok=True)
        self._lock = open((self.folder / LOCK).path, "ab")  # noqa: SIM115 (as long as the run)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"another run is at work on {self.destination}") from None
        return True

    def _tidy(self) -> None:
        names = _parts(self.folder)
        if len(names) > 1:
            self._merge(names)
        with suppress(FileNotFoundError):
            self.scratch.remove()

    def _read(self) -> None:
        """Learn what is done."""
        import numpy as np

        mine, names = settings_key(self.settings), _parts(self.folder)
        wanted = ["path", "input_bytes", "modified", "exit_code", "settings"]
        done, failed = [np.empty(0, "S16")], [np.empty(0, "S16")]
        for name, kept in zip(names, _latest(self.folder, names), strict=True):
            table = _table(self.folder, name, wanted).filter(kept)
            table = table.set_column(2, "modified", table["modified"].cast("int64"))
            keys: dict[bool, list[bytes]] = {True: [], False: []}
            for path, size, modified, code, settings in zip(
                *(column.to_pylist() for column in table.columns), strict=True
            ):
                if settings == mine and code not in self.retried:
                    key = _key(path, -1 if size is None else size, modified)
                    keys[code == 0].append(key)
            done.append(np.array(keys[True], "S16"))
            failed.append(np.array(keys[False], "S16"))
        self._done, self._failed = np.sort(np.concatenate(done)), np.sort(np.concatenate(failed))

    def _merge(self, names: Sequence[str]) -> None:
        """Store the rows of these files, the last for each path, in as few, and delete them. Large files
        of which nothing is to be left out stay."""
        waiting, whole = dict[str, Any](), True
        for name, kept in zip(names, _latest(self.folder, names), strict=True):
            if len(kept) >= MERGED_ROWS and kept.all():
                continue
            waiting[name] = _table(self.folder, name).filter(kept)
            whole = whole and bool(kept.all())
            if sum(map(len, waiting.values())) >= MERGED_ROWS:
                self._replace(waiting)
                waiting, whole = {}, True
        if len(waiting) > 1 or not whole:
            self._replace(waiting)

    def _replace(self, tables: dict[str, Any]) -> None:
        """Store these tables as one file, and delete the files that they are from."""
        import pyarrow as pa

        self._store(pa.concat_tables(tables.values()))
        for name in tables:
            with suppress(FileNotFoundError):
                (self.folder / name).remove()

    def _store(self, table: Any) -> str:
        """Store a table as a new file; its name."""
        import pyarrow as pa
        from pyarrow import parquet

        sink = pa.BufferOutputStream()
        parquet.write_table(table, sink, compression="zstd", write_page_checksum=True)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        name = f"part-{stamp}-{os.urandom(6).hex()}.parquet"
        place, data = self.folder / name, sink.getvalue().to_pybytes()
        patiently(lambda: place.publish(data, self.scratch), self.patience)
        return name


def _parts(folder: Place) -> list[str]:
    """The names of the files of a manifest, the first that was stored first; OSError where their folder
    cannot be listed."""
    found = []
    for entry in folder.walk():
        if entry.fault is not None:
            raise OSError(f"{folder} cannot be read: {entry.fault}")
        if entry.name.endswith(".parquet") and not entry.name.startswith("_"):
            found.append(entry.name)
    return found


def _table(folder: Place, name: str, columns: Sequence[str] | None = None) -> Any:
    """A file of a manifest, or these columns of it; ValueError where it is damaged."""
    import pyarrow as pa
    from pyarrow import parquet

    fields = [schema().field(column) for column in columns or schema().names]
    data = (folder / name).read()
    try:
        table = parquet.read_table(
            pa.BufferReader(data),
            columns=[field.name for field in fields],
            page_checksum_verification=True,
        )
        return table.select([field.name for field in fields]).cast(pa.schema(fields))
    except (pa.ArrowException, KeyError, ValueError, OSError) as fault:
        raise ValueError(f"{folder / name} is damaged: {sentence(fault)}") from None


def _latest(folder: Place, names: Sequence[str]) -> list[Any]:
    """For each of these files which of its rows count, as an array of bool: those that no other of the
    same path was finished after."""
    import numpy as np

    keys, times = [np.empty(0, "S16")], [np.empty(0, np.int64)]
    for name in names:
        table = _table(folder, name, ["path", "finished"])
        keys.append(np.array([_key(path, 0, 0) for path in table["path"].to_pylist()], "S16"))
        times.append(table["finished"].cast("int64").to_numpy())
    key, finished = np.concatenate(keys), np.concatenate(times)
    order = np.lexsort((finished, key))
    last = np.ones(len(key), bool)
    last[:-1] = key[order][1:] != key[order][:-1]
    kept = np.zeros(len(key), bool)
    kept[order[last]] = True
    return np.split(kept, np.cumsum([len(part) for part in keys[1:]])[:-1]) if names else []


def _among(keys: Any, known: Any) -> Any:
    """Which of the keys are among those that are known, which are sorted, as an array of bool."""
    import numpy as np

    if not len(known):
        return np.zeros(len(keys), bool)
    return known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys


def _key(path: str, size: int, modified: int) -> bytes:
    """16 bytes for a picture as it was listed."""
    text = f"{path}\0{size}\0{modified}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(text, digest_size=16).digest()
