"""Where the pictures of a fleet are: folders, and object stores under URLs.

    photos = Place.of("s3://bucket/photos")
    for path, kind, size, modified in photos.walk(suffixes): ...
    with photos.open(path) as file: ...

A path without a scheme is a file or folder of the machine that looks at it, every other one goes through
pyarrow's file systems (s3, gs, abfs, hdfs) or, where that has none for the scheme, fsspec's. What is
published is whole or not there: in an object store by the nature of the request that stores it, elsewhere
by a temporary file that is renamed.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from aiocodec import files
from aiocodec.errors import OutputError, RuntimeMissing

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_SCHEME = re.compile(
    r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE
)  # a letter alone is a drive of Windows
_STORES = {
    "s3",
    "s3a",
    "gs",
    "gcs",
    "abfs",
    "abfss",
    "az",
    "oss",
    "r2",
}  # they store in one request
_READ_AHEAD = 1 << 20  # bytes that are asked for at once; photographs are one or a few requests
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


@dataclass(frozen=True)
class Entry:
    """A file that was found."""

    name: str  # below the place, with "/"
    size: int  # bytes; -1 where the file system does not say
    modified: int  # microseconds since 1970; 0 where it does not say
    fault: str | None = None  # why a folder of this name could not be read


@dataclass(frozen=True)
class Place:
    """A folder or a file, and how to get at it. It can be pickled, with the credentials of its file system."""

    path: str  # absolute, as the file system has it, without a "/" at its end
    scheme: str = ""  # with "://", which goes before the path in what is said; "" for this machine's own files
    filesystem: "FileSystem | None" = None  # None for this machine's own files

    @classmethod
    def of(cls, where: "str | os.PathLike[str]", filesystem: Any = None) -> "Place":
        """The place of a path or URL, or of a path within `filesystem`, one of pyarrow's or fsspec's.

        Raises ValueError where the URL cannot be understood, OSError where what it names cannot be
        reached, RuntimeMissing where a package that its scheme needs is not installed.
        """
        where = os.fspath(where)
        scheme = _SCHEME.match(where)
        if filesystem is None and scheme is None:
            return cls(os.path.abspath(where))
        from pyarrow import fs

        if filesystem is not None:
            kind = getattr(filesystem, "type_name", None) or "fsspec"
            if not isinstance(filesystem, fs.FileSystem):
                filesystem = fs.PyFileSystem(fs.FSSpecHandler(filesystem))
            if isinstance(filesystem, fs.LocalFileSystem):
                return cls(os.path.abspath(where))
            return cls(where.rstrip("/"), scheme[0] if scheme else f"{kind}://", filesystem)
        assert scheme is not None
        try:
            filesystem, path = fs.FileSystem.from_uri(where)
        except ValueError as fault:
            if "nrecognized filesystem type" not in str(fault):
                raise
            filesystem, path = _through_fsspec(where, scheme[1])
        if isinstance(filesystem, fs.LocalFileSystem):
            return cls(os.path.abspath(path))
        return cls(path.rstrip("/"), scheme[0], filesystem)

    def __str__(self) -> str:
        """The path or URL, without credentials."""
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
            paths = [os.path.normcase(os.path.realpath(path)) + os.sep for path in paths]
        else:
            paths = [f"{path}/" for path in paths]
        return paths[0].startswith(paths[1])

    def status(self) -> str:
        """ "file", "folder", or "missing"; OSError where it cannot be told."""
        if self.local:
            if os.path.isdir(self.path):
                return "folder"
            return "file" if os.path.lexists(self.path) else "missing"
        from pyarrow.fs import FileType

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
        info = self._pyarrow.get_file_info(self.path)
        if not info.is_file:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return _entry(self.name, info)

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
                found = sorted(self._listed(name), key=lambda item: item[0], reverse=True)
            except OSError as fault:
                yield Entry(name or ".", -1, 0, sentence(fault))
                continue
            waiting += [(child, entry) for child, entry in found]

    def _listed(self, name: str) -> Iterator[tuple[str, Entry | None]]:
        """What is directly in a folder below: names, and None for folders."""
        lead = f"{name}/" if name else ""
        if self.local:
            with os.scandir((self / name).path if name else self.path) as children:
                for child in children:
                    if child.name.startswith("."):
                        continue
                    if child.is_dir(follow_symlinks=False):
                        yield lead + child.name, None
                    elif child.is_file():
                        with suppress(FileNotFoundError):  # it was deleted at this moment
                            status = child.stat()
                            modified = status.st_mtime_ns // 1000
                            yield (name := lead + child.name), Entry(name, status.st_size, modified)
            return
        from pyarrow.fs import FileSelector

        folder = f"{self.path}/{name}".rstrip("/")
        for info in self._pyarrow.get_file_info(FileSelector(folder)):
            base = info.base_name
            if base.startswith(".") or not base or info.path.rstrip("/") == folder:
                continue
            yield lead + base, _entry(lead + base, info) if info.is_file else None

    def open(self) -> BinaryIO:
        """This file, to be read from its beginning; OSError where that cannot be done."""
        if self.local:
            return open(self.path, "rb")
        return self._pyarrow.open_input_stream(self.path, buffer_size=_READ_AHEAD)

    def read(self) -> bytes:
        """All of this file."""
        with self.open() as file:
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
                self._pyarrow.create_dir(scratch.path)
                self._pyarrow.create_dir(self.path.rpartition("/")[0])
                temporary._store(data)
                self._pyarrow.move(temporary.path, self.path)
        except OSError as fault:
            raise OutputError(f"{self} cannot be written: {sentence(fault)}") from None
        if self.local:
            files.write(self.path, data, force=True, scratch=scratch.path)

    def _store(self, data: bytes) -> None:
        """Write this file as its file system does. All is written at once: a stream that was left in the
        middle would be closed, and with it the half of a file be stored."""
        handler = getattr(self._pyarrow, "handler", None)
        if handler is not None and hasattr(handler, "fs"):
            handler.fs.pipe_file(self.path, data)
            return
        with self._pyarrow.open_output_stream(self.path) as file:
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
        elif self.status() == "folder":
            self._pyarrow.delete_dir(self.path)
        else:
            self._pyarrow.delete_file(self.path)

    @property
    def _pyarrow(self) -> Any:
        assert self.filesystem is not None
        return self.filesystem


def passing(fault: OSError) -> bool:
    """Whether waiting may help against what went wrong."""
    return not isinstance(fault, _FINAL)


def _entry(name: str, info: Any) -> Entry:
    modified = (info.mtime_ns or 0) // 1000
    return Entry(name, -1 if info.size is None else info.size, modified)


def _through_fsspec(where: str, scheme: str) -> tuple[Any, str]:
    from pyarrow import fs

    try:
        from fsspec.core import url_to_fs

        found, path = url_to_fs(where)
    except ImportError as fault:
        raise RuntimeMissing(f"{scheme}:// needs a package: {sentence(fault)}") from None
    return fs.PyFileSystem(fs.FSSpecHandler(found)), path


def without_secrets(where: "str | os.PathLike[str]") -> str:
    """A path, or a URL without user, password and parameters, as it may be said."""
    where = os.fspath(where)
    if not _SCHEME.match(where):
        return where
    return re.sub(r"//[^/@]*@", "//", where.partition("?")[0])


def sentence(fault: BaseException) -> str:
    """Why, in one line."""
    text = getattr(fault, "strerror", None) or str(fault)
    return " ".join(str(text).split())[:300]
