"""Where the pictures of a fleet are: folders, and object stores under URLs.

    photos = Place.of("s3://bucket/photos")
    for entry in photos.walk():
        with (photos / entry.name).open() as file: ...

A path without a scheme is a file or folder of the machine that looks at it, every other one goes through
pyarrow's file systems (s3, gs, abfs, hdfs) or, where that has none for the scheme, fsspec's. What is
published is whole or not there: in an object store by the nature of the request that stores it, elsewhere
by a temporary file that is renamed.
"""

import errno
import functools
import http.client
import os
import pickle
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import quote, urlsplit

from aiocodec import files, signals
from aiocodec.errors import AicError, OutputError, RuntimeMissing, as_aic_error

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

# A letter alone is a drive of Windows.
_SCHEME = re.compile("([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_S3 = {"s3a", "s3n"}  # other names of s3, from Hadoop
_STORES = {*("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "r2")}  # one request stores
_READ_AHEAD = 1 << 20  # bytes that are asked for at once; photographs are one or a few requests
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_FINAL_AWS = {  # codes of Amazon's that waiting does not help against
    *("ACCESS_DENIED", "NO_SUCH_BUCKET", "NO_SUCH_KEY", "INVALID_ACCESS_KEY_ID"),
    *("SIGNATURE_DOES_NOT_MATCH", "INVALID_SIGNATURE", "INVALID_CLIENT_TOKEN_ID"),
    *("MISSING_AUTHENTICATION_TOKEN", "UNRECOGNIZED_CLIENT", "EXPIRED_TOKEN"),
}
_AWS = re.compile(
    r"AWS Error (\w+)( \(HTTP status \d+\))? during \w+ operation:(?: .*; Details:)? ?(.*)"
)

# An endpoint that is silent is given up after three attempts, each of so many seconds; what waits for
# longer is `patiently`. The defaults of the URLs of pyarrow come to 100 s, and of Google's to 15 minutes.
_SILENCE = 5
_METADATA_SILENCE = 2  # seconds

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """A file that was found."""

    name: str  # below the place, with "/"
    size: int  # bytes; -1 where the file system does not say
    modified: int  # microseconds since 1970; 0 where it does not say
    fault: str | None = None  # why a folder of this name could not be read


@dataclass(frozen=True)
class Place:
    """A folder or a file, and how to get at it. It can be pickled, with the credentials that its URL or file
    system was given; those of the environment are looked for where it is unpickled."""

    path: str  # absolute, as the file system has it, without a "/" at its end
    scheme: str = ""  # with "://", which goes before the path in what is said; "" for this machine's own files
    filesystem: "FileSystem | None" = None  # None for this machine's own files

    @classmethod
    def of(cls, where: "str | os.PathLike[str]", filesystem: Any = None) -> "Place":
        """The place of a path or URL, or of a path within `filesystem`, one of pyarrow's or fsspec's.

        Raises ValueError where the URL cannot be understood, OSError where what it names cannot be
        reached, RuntimeMissing where a package that its scheme needs is not installed.
        """
        where = os.fsdecode(where)
        scheme = _SCHEME.match(where)
        if not where:
            raise ValueError("a path without a character names nothing")
        if filesystem is None and scheme is None:
            return cls(os.path.abspath(where))
        try:
            from pyarrow import fs
        except ImportError as fault:
            raise as_aic_error(fault) from None
        if filesystem is not None:
            found, path, kind = _within(filesystem, where)
        else:
            assert scheme is not None
            kind = "s3" if scheme[1].lower() in _S3 else scheme[1].lower()
            found, path = _opened(where, kind, where[scheme.end() :])
        if isinstance(found, fs.LocalFileSystem):
            return cls(os.path.abspath(path))
        if found.type_name in _STORES:
            path = path.lstrip("/")
        return cls(path.rstrip("/"), f"{kind}://", found)

    def __reduce__(self) -> Any:
        # All places of a process that have equal file systems share one, and with it its connections.
        return _restored, (self.path, self.scheme, pickle.dumps(self.filesystem))

    def __str__(self) -> str:
        """The path or URL, without credentials."""
        if _SCHEME.match(self.path):  # some file systems keep the whole URL
            return without_secrets(self.path)
        return f"{self.scheme}{self.path.lstrip('/') if self.scheme else self.path}"

    def __truediv__(self, name: str) -> "Place":
        """What has this name, with "/" between its parts, below."""
        path = os.path.join(self.path, *name.split("/")) if self.local else f"{self.path}/{name}"
        return Place(path, self.scheme, self.filesystem)

    @property
    def local(self) -> bool:
        """Whether it is of this machine's own files, be they shared over a network."""
        return self.filesystem is None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.replace(os.sep, "/").rpartition("/")[2]

    @property
    def parent(self) -> "Place":
        """The folder around it; a bucket has none and is its own."""
        path = os.path.dirname(self.path) if self.local else self.path.rpartition("/")[0]
        return Place(path or self.path, self.scheme, self.filesystem)

    def inside(self, other: "Place") -> bool:
        """Whether it is `other` or below it."""
        if (self.scheme, self.local) != (other.scheme, other.local):
            return False
        paths = [place.path for place in (self, other)]
        if self.local:
            paths = [os.path.normcase(os.path.realpath(path)) for path in paths]
            paths = [path.rstrip(os.sep) + os.sep for path in paths]
        else:
            paths = [f"{path}/".lstrip("/") for path in paths]
        return paths[0].startswith(paths[1])

    def status(self) -> str:
        """ "file", "folder", or "missing"; OSError where it cannot be told."""
        if self.local:
            try:
                return "folder" if stat.S_ISDIR(os.stat(self.path).st_mode) else "file"
            except (FileNotFoundError, NotADirectoryError):
                return "file" if os.path.islink(self.path) else "missing"
        from pyarrow.fs import FileType

        with _as_os_error():
            kind = self._pyarrow.get_file_info(self.path).type
        return {FileType.NotFound: "missing", FileType.Directory: "folder"}.get(kind, "file")

    def gone(self) -> bool:
        """Whether nothing is here: no file, and no folder with anything in it, as where a file system is not
        mounted any more; OSError where it cannot be told."""
        if self.local and os.path.isdir(self.path):
            with os.scandir(self.path) as children:
                return next(children, None) is None
        return self.status() == "missing"

    def entry(self) -> Entry:
        """What is known of this file; OSError where there is none."""
        if self.local:
            status = os.stat(self.path)
            return Entry(self.name, status.st_size, status.st_mtime_ns // 1000)
        inner = _fsspec(self._pyarrow)
        with _as_os_error():
            if inner is not None:
                inner.invalidate_cache(self.parent.path)
                known = inner.info(self.path)
                if known["type"] != "directory":
                    return _known(self.name, known)
            elif (info := self._pyarrow.get_file_info(self.path)).is_file:
                return _entry(self.name, info)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))

    def walk(self, below: str = "") -> Iterator[Entry]:
        """The files in this folder, or in the folder `below` in it, and further below, sorted within each
        folder; nothing whose name begins with a dot, and no links to folders. A folder that cannot be read is
        an entry with a fault."""
        waiting: list[tuple[str, Entry | None]] = [(below, None)]
        while waiting:
            name, entry = waiting.pop()
            if entry is not None:
                yield entry
                continue
            try:
                found = self._listed(name)
            except OSError as fault:
                yield Entry(name or ".", -1, 0, sentence(fault))
                continue
            waiting += sorted(found, key=lambda item: item[0], reverse=True)

    def _listed(self, name: str) -> list[tuple[str, Entry | None]]:
        """What is directly in a folder below: names, and None for folders."""
        lead, found = f"{name}/" if name else "", list[tuple[str, Entry | None]]()
        if self.local:
            with os.scandir((self / name).path if name else self.path) as children:
                for child in children:
                    if child.name.startswith("."):
                        continue
                    if child.is_dir(follow_symlinks=False):
                        found.append((lead + child.name, None))
                    elif (status := _status(child)) is not None:
                        modified = status.st_mtime_ns // 1000
                        entry = Entry(lead + child.name, status.st_size, modified)
                        found.append((entry.name, entry))
            return found
        folder = f"{self.path}/{name}".rstrip("/")
        if (inner := _fsspec(self._pyarrow)) is not None:
            # pyarrow would ask it in a way in which folders that fail are empty.
            with _as_os_error():
                inner.invalidate_cache(folder)
                listed = inner.ls(folder, detail=True)
            for known in listed:
                path = known["name"].rstrip("/")
                base = path.rpartition("/")[2]
                if not base.startswith(".") and path.strip("/") != folder.strip("/"):
                    is_file = known["type"] != "directory"
                    found.append((lead + base, _known(lead + base, known) if is_file else None))
            return found
        from pyarrow.fs import FileSelector

        with _as_os_error():
            infos = self._pyarrow.get_file_info(FileSelector(folder))
        for info in infos:
            base = info.base_name
            if base.startswith(".") or not base or info.path.strip("/") == folder.strip("/"):
                continue
            found.append((lead + base, _entry(lead + base, info) if info.is_file else None))
        return found

    def open(self) -> BinaryIO:
        """This file, to be read from its beginning; OSError where that cannot be done."""
        if self.local:
            return open(self.path, "rb")
        with _as_os_error():  # by default pyarrow unpacks what is named .gz or the like
            return self._pyarrow.open_input_stream(
                self.path, compression=None, buffer_size=_READ_AHEAD
            )

    def read(self) -> bytes:
        """All of this file."""
        with self.open() as file, _as_os_error():
            return file.read()

    def publish(self, data: bytes, scratch: "Place") -> None:
        """Write this file, replacing what there is, and the folders around it; it is there in whole or as
        it was before. Temporary files lie in the folder `scratch` of the same file system, which must be
        there where it is of this machine's own: a file system that is not mounted any more has none, and
        nothing is made in the place where it was.

        Raises OutputError where that cannot be done.
        """
        try:
            if self.local:
                os.stat(scratch.path)
                os.makedirs(os.path.dirname(self.path), exist_ok=True)
            elif _STORES & set(re.findall("[a-z0-9]+", self._pyarrow.type_name)):
                self._store(data)
            else:
                temporary = scratch / f"{files.TEMPORARY}{os.urandom(4).hex()}"
                with _as_os_error():
                    self._pyarrow.create_dir(scratch.path)
                    self._pyarrow.create_dir(self.path.rpartition("/")[0])
                    temporary._store(data)
                    self._pyarrow.move(temporary.path, self.path)
        except OSError as fault:
            # `patiently` asks for the cause: what a store denies is final, while folders may be mounted anew.
            cause = None if self.local else fault
            raise OutputError(f"{self} cannot be written: {sentence(fault)}") from cause
        if self.local:
            files.write(self.path, data, force=True, scratch=scratch.path)

    def _store(self, data: bytes) -> None:
        """Write this file as its file system does. All is written at once, whatever signal comes: a stream
        that was left in the middle would be closed, and with it the half of a file be stored."""
        with _as_os_error(), signals.held():
            inner = _fsspec(self._pyarrow)
            if inner is not None:
                inner.pipe_file(self.path, data)
                return
            with self._pyarrow.open_output_stream(self.path, compression=None) as file:
                file.write(data)

    def remove(self) -> None:
        """Delete this file, or this folder with all that is in it, if it is there; OSError where that
        cannot be done."""
        if self.local:
            import shutil

            if os.path.isdir(self.path):
                shutil.rmtree(self.path)
            else:
                os.unlink(self.path)
            return
        folder = self.status() == "folder"
        with _as_os_error():
            (self._pyarrow.delete_dir if folder else self._pyarrow.delete_file)(self.path)

    @property
    def _pyarrow(self) -> Any:
        assert self.filesystem is not None
        return self.filesystem


def passing(fault: OSError) -> bool:
    """Whether waiting may help against what went wrong."""
    aws = _AWS.search(str(fault))
    return not isinstance(fault, _FINAL) and not (aws and aws[1] in _FINAL_AWS)


def patiently(action: Callable[[], T], patience: float) -> T:
    """Do it, and again, ever later, for so many seconds where an OSError that may pass, or an OutputError
    that is not of another one, comes of it. In the end that is raised."""
    end, pause = time.monotonic() + patience, 0.25
    while True:
        try:
            return action()
        except (OSError, OutputError) as fault:
            cause = fault.__cause__ if isinstance(fault, OutputError) else fault
            if isinstance(cause, OSError) and not passing(cause):
                raise
            if time.monotonic() + pause > end:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


def without_secrets(where: "str | os.PathLike[str]") -> str:
    """A path, or a URL without user, password and parameters, as it may be said."""
    where = os.fsdecode(where)
    if not _SCHEME.match(where):
        return where
    # A password with a "/" in it, as Amazon's have them, is an error, and still nobody's business.
    return re.sub(r"//([^/@:]*:[^@]*|[^/@]*)@", "//", where.partition("?")[0])


def sentence(fault: BaseException) -> str:
    """Why, in one line."""
    text = " ".join(str(getattr(fault, "strerror", None) or fault).split())
    text = re.sub(r"\.? Detail: \[.*| \(Request ID: .*", "", text)
    if (aws := _AWS.search(text)) is not None:
        silent = not aws[3] or aws[3].startswith("No response body")
        text = aws[1].replace("_", " ").lower() + (aws[2] or "") if silent else aws[3]
    return text.rstrip(".")[:300]


# --------------------------------------------------------------------------- file systems


def _opened(where: str, kind: str, rest: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it, as `Place.of` finds them."""
    from pyarrow import fs

    extra = {"s3": "allow_delayed_open=true", "gs": f"retry_limit_seconds={4 * _SILENCE}"}
    extra["gcs"] = extra["gs"]
    url = f"{kind}://{quote(rest, safe='/%?&=:@[]!$()*+,;~')}"  # keys may have blanks, and "#"
    if kind in extra and extra[kind].partition("=")[0] not in url.partition("?")[2]:
        url += ("&" if "?" in url else "?") + extra[kind]
    if kind == "s3":
        _look_for_metadata()
    try:
        found, path = fs.FileSystem.from_uri(url)
    except ValueError as fault:
        text = " ".join(str(fault).split())
        if "nrecognized filesystem type" in text:
            return _through_fsspec(where, kind)
        for secret in (url, where):
            text = text.replace(secret, without_secrets(where))
        raise ValueError(text) from None
    except (OSError, MemoryError):
        raise
    except Exception as fault:
        raise OSError(sentence(fault)) from None
    if isinstance(found, fs.S3FileSystem):
        # Made anew it has these timeouts, and the other way to try again, which is that of file systems that
        # were unpickled.
        restore, (options,) = found.__reduce__()
        found = restore({**options, "connect_timeout": _SILENCE, "request_timeout": _SILENCE})
    return found, path


def _through_fsspec(where: str, scheme: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs

        found, _ = url_to_fs(where)
    except ImportError as fault:
        raise RuntimeMissing(f"{scheme}:// needs a package: {sentence(fault)}") from None
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as fault:  # of the libraries behind it, for lack of credentials for example
        raise OSError(sentence(fault) or type(fault).__name__) from None
    return _within(found, where)[:2]


def _within(filesystem: Any, where: str) -> tuple[Any, str, str]:
    """A file system as pyarrow has it, the path in it, and what goes before "://". One that is within another
    is resolved, so that this machine's own files are known as such."""
    from pyarrow import fs

    if not isinstance(filesystem, fs.FileSystem):
        filesystem = fs.PyFileSystem(fs.FSSpecHandler(filesystem))
    inner = _fsspec(filesystem)
    if inner is not None:
        path, kind = inner._strip_protocol(where), inner.protocol
        kind = kind if isinstance(kind, str) else kind[0]
        return (fs.LocalFileSystem() if kind == "file" else filesystem), path, kind
    scheme = _SCHEME.match(where)
    path = where[scheme.end() :] if scheme else where
    while isinstance(filesystem, fs.SubTreeFileSystem):
        path = f"{filesystem.base_path.rstrip('/')}/{path.lstrip('/')}"
        filesystem = filesystem.base_fs
    if (inner := _fsspec(filesystem)) is not None:
        return _within(inner, path)
    return filesystem, path, scheme[1].lower() if scheme else filesystem.type_name


def _fsspec(filesystem: Any) -> Any:
    """The file system of fsspec that one of pyarrow stands for, or None."""
    return getattr(getattr(filesystem, "handler", None), "fs", None)


@contextmanager
def _as_os_error() -> Iterator[None]:
    """A block in which a file system is asked for something. They raise what they like, those of fsspec
    the errors of their libraries: all are OSError from here on."""
    try:
        yield
    except (OSError, AicError, MemoryError):
        raise
    except Exception as fault:
        raise OSError(sentence(fault) or type(fault).__name__) from None


@functools.cache
def _look_for_metadata() -> None:
    """Spare us the search for credentials and a region in Amazon's machines where this is none of them: the
    SDK would wait for seconds at first, and before every request."""
    if {"AWS_EC2_METADATA_DISABLED", "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"} & os.environ.keys():
        return
    service = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or "http://169.254.169.254"
    try:
        server = http.client.HTTPConnection(urlsplit(service).netloc, timeout=_METADATA_SILENCE)
        try:
            server.request("GET", "/latest/meta-data/")
            server.getresponse()  # whatever it says
        finally:
            server.close()
    except (OSError, ValueError, http.client.HTTPException):
        os.environ["AWS_EC2_METADATA_DISABLED"] = "true"


def _restored(path: str, scheme: str, filesystem: bytes) -> Place:
    return Place(path, scheme, _filesystem(filesystem))


@functools.cache
def _filesystem(pickled: bytes) -> Any:
    if b"S3FileSystem" in pickled:
        _look_for_metadata()
    return pickle.loads(pickled)


def _status(child: "os.DirEntry[str]") -> os.stat_result | None:
    """The status of an ordinary file; None for anything else, for a link that leads to itself, and for what was
    deleted at this moment."""
    try:
        return child.stat() if child.is_file() else None
    except OSError as fault:
        if fault.errno in (errno.ENOENT, errno.ELOOP):
            return None
        raise


def _known(name: str, known: dict[str, Any]) -> Entry:
    """What fsspec knows of a file; each of its file systems has other words for the time."""
    modified, size = 0, known.get("size")
    for word in ("mtime", "LastModified", "last_modified", "modified", "updated", "created"):
        when = known.get(word)
        if isinstance(when, str):
            with suppress(ValueError):
                when = datetime.fromisoformat(when.replace("Z", "+00:00"))
        if isinstance(when, datetime):
            when = when.replace(tzinfo=when.tzinfo or timezone.utc).timestamp()
        if isinstance(when, (int, float)):
            modified = round(1e6 * when)
            break
    return Entry(name, -1 if size is None else int(size), modified)


def _entry(name: str, info: Any) -> Entry:
    modified = (info.mtime_ns or 0) // 1000
    return Entry(name, -1 if info.size is None else info.size, modified)
