"""Files as they come in and go out: read whole within limits, written whole or not at all.

"-" is stdin as an input and stdout as an output. Endless inputs end in an error soon: an .aic file is
read as far as its header says, an image only where its first bytes are those of one, and neither
beyond MAX_FILE_BYTES. What is claimed is never allocated before it has arrived.
"""

import functools
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import IO, BinaryIO

from aiocodec import signals
from aiocodec.container import HEADER_SIZE, MAGIC
from aiocodec.errors import (
    AicError,
    BitstreamError,
    BrokenPipe,
    ImageError,
    LimitError,
    OutputError,
)
from aiocodec.loading import loading

MAX_FILE_BYTES = 1 << 30
TEMPORARY = f".aic-{os.urandom(8).hex()}-"  # how names of temporary files of this process begin

_HEAD = 4096  # bytes by which the format of an image is known
_CHUNK = 1 << 20
_BINARY = getattr(os, "O_BINARY", 0)


# --------------------------------------------------------------------------- reading


def read_aic(path: str) -> bytes:
    """The bytes of an .aic file, and one more where it goes on after its end.

    Raises BitstreamError for what does not begin as one or cannot be read, LimitError for more than
    MAX_FILE_BYTES.
    """
    with _input(path, BitstreamError) as file:
        return aic_of(file)


def aic_of(file: BinaryIO) -> bytes:
    """The bytes of an .aic file that is open at its beginning, otherwise as `read_aic`; OSError is let
    through."""
    data = BytesIO()
    _fill(data, file, HEADER_SIZE)
    if not data.getvalue().startswith(MAGIC):
        raise BitstreamError("not an .aic file")
    _fill_aic(data, file)
    return _within_limit(data)


def read_image(path: str) -> bytes:
    """The bytes of an image file of any format that `image.read` knows.

    Raises ImageError for what does not begin as one or cannot be read, LimitError for more than
    MAX_FILE_BYTES.
    """
    with _input(path, ImageError) as file:
        return image_of(file, _is_regular(file))


def image_of(file: BinaryIO, regular: bool) -> bytes:
    """The bytes of an image file that is open at its beginning, otherwise as `read_image`; OSError is let
    through. `regular`: it has an end, so that TGA, which has no bytes that it is known by, may be tried."""
    data = BytesIO()
    _fill_image(data, file, regular)
    return _within_limit(data)


def read_either(path: str) -> bytes:
    """The bytes of an .aic file, as `read_aic` reads it, or else of an image, as `read_image` does, and
    with its errors; `container.MAGIC` tells which."""
    data = BytesIO()
    with _input(path, ImageError) as file:
        _fill(data, file, HEADER_SIZE)
        if data.getvalue().startswith(MAGIC):
            _fill_aic(data, file)
        else:
            _fill_image(data, file, _is_regular(file))
    return _within_limit(data)


def check_input(path: str, error: type[AicError]) -> None:
    """`error` where there is no file at `path` that can be opened, or stdin for "-" is closed or a
    terminal. Nothing is read."""
    if path == "-" or not is_special(path):  # a pipe that is opened waits for its other end
        with _input(path, error):
            pass


def kind_of(path: str) -> str | None:
    """What the ordinary file at `path` is, by its first bytes: "AIC", the name of an image format, or
    None for anything else, for what cannot be read, and where there is no such file."""
    if path == "-" or not os.path.isfile(path) or _descriptor(path) is not None:
        return None
    try:
        with open(path, "rb") as file:
            return _kind(file.read(_HEAD))
    except OSError:
        return None


def identity(path: str) -> object:
    """Equal for two paths that lead to the same file, be it by links of either sort; for a file that
    is not there, for two paths that would make the same."""
    with suppress(OSError):
        status = os.stat(path)
        if status.st_ino:
            return status.st_dev, status.st_ino
    return os.path.normcase(os.path.realpath(path))


@contextmanager
def _input(path: str, error: type[AicError]) -> Iterator[BinaryIO]:
    """The file to read, stdin for "-"; `error` where it cannot be opened or read."""
    try:
        if path != "-":
            with open(path, "rb") as file:
                yield file
            return
        if sys.stdin is None:
            raise error("stdin is closed")
        if sys.stdin.isatty():
            raise error("stdin is a terminal, give a file or a pipe")
        yield sys.stdin.buffer
    except OSError as fault:
        if not fault.errno:  # a library that cannot be loaded
            raise
        raise error(f"cannot be read: {fault.strerror}") from None


def _is_regular(file: BinaryIO) -> bool:
    """Whether an open file is an ordinary one, which has an end."""
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except OSError:  # there is no descriptor behind it
        return False


def _fill(data: BytesIO, file: BinaryIO, length: int) -> None:
    """Read on from `file` until `data` has `length` bytes or the file ends."""
    while part := file.read(min(_CHUNK, length - data.tell())):
        data.write(part)


def _fill_aic(data: BytesIO, file: BinaryIO) -> None:
    """Read on, from the end of a header, as far as that says, and a byte more."""
    head = data.getvalue()
    if len(head) == HEADER_SIZE:
        body = int.from_bytes(head[24:28], "little")
        _fill(data, file, min(HEADER_SIZE + body, MAX_FILE_BYTES) + 1)


def _fill_image(data: BytesIO, file: BinaryIO, regular: bool) -> None:
    """Read on to the end of what begins as an image; ImageError for anything else."""
    _fill(data, file, _HEAD)
    kind = _kind(data.getvalue())
    if kind == "AIC":
        raise ImageError("the input is an .aic file already")
    if not data.tell():
        raise ImageError("the input is empty")
    if kind is None and not regular:
        raise ImageError("not an image of a format known here")
    _fill(data, file, MAX_FILE_BYTES + 1)


def _within_limit(data: BytesIO) -> bytes:
    if data.tell() > MAX_FILE_BYTES:
        raise LimitError(f"the file has more than {MAX_FILE_BYTES} bytes")
    return data.getvalue()


def _kind(head: bytes) -> str | None:
    """The format of a file that begins with `head`, as `kind_of` names it."""
    if head.startswith(MAGIC):
        return "AIC"
    with loading("numpy"):
        from aiocodec.image import kind
    return kind(head)


# --------------------------------------------------------------------------- writing


def check_output(path: str, force: bool) -> None:
    """OutputError where `path`, or stdout for "-", is not a place that `write` may write to."""
    if path == "-":
        if sys.stdout is None or not sys.stdout.writable():
            raise OutputError("stdout is closed")
        if sys.stdout.isatty() and not force:
            raise OutputError("stdout is a terminal; --force writes there all the same")
        return
    if is_special(path):
        return
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise OutputError(f"{path} is a folder; --out-dir writes into it")
    if not os.path.isdir(folder):
        raise OutputError(f"the folder {folder} does not exist")
    if not force and os.path.lexists(path):
        raise _exists(path)
    if not os.access(os.path.dirname(os.path.realpath(path)), os.W_OK):
        raise OutputError(f"the folder of {path} cannot be written")


def is_special(path: str) -> bool:
    """Whether `path` is a device, a pipe or a descriptor of this process (/dev/stdout, /dev/fd/N, what
    a shell makes of `>(...)`), which are written in place and never overwritten."""
    if _descriptor(path) is not None:
        return True
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def is_stdout(path: str) -> bool:
    """Whether what is written to `path` comes out of stdout."""
    return path == "-" or _descriptor(path) == 1


def is_stream(path: str) -> bool:
    """Whether `path` is "-" or a descriptor of this process: a file without a name of its own."""
    return path == "-" or _descriptor(path) is not None


def write(path: str, data: bytes, *, force: bool = False, scratch: str | None = None) -> None:
    """Write a whole file or none, into a temporary file beside it, or in the folder `scratch` of the same
    file system, that is synced before it takes the name; symbolic links are followed. Special files, see
    `is_special`, are written in place.

    Without `force` the name must be free, and of several processes that want it one gets it. With
    `force` the file that has the name is replaced: its permissions stay, and its owner and group as
    far as this process may give files away. Set-user-ID and set-group-ID stay only where root keeps
    the owner, as when `cp` writes into a file. Other hard links keep the old content; extended
    attributes and access lists are not taken over. A new file has the permissions that umask leaves.

    Raises OutputError where that cannot be done, BrokenPipe where nobody reads what is written.
    """
    check_output(path, force)
    if path == "-":
        try:
            rest = memoryview(data)
            while rest:  # where Python does not buffer stdout, it may take a part only
                rest = rest[sys.stdout.buffer.write(rest) :]
            sys.stdout.buffer.flush()
        except OSError as fault:
            abandon(sys.stdout)
            raise unwritable("stdout", fault) from None
        return
    descriptor = _descriptor(path)
    try:
        if descriptor is not None:  # opened anew, a file that stdout goes to would be truncated
            if descriptor == 1 and sys.stdout is not None:
                sys.stdout.flush()
            with open(os.dup(descriptor), "wb") as file:
                file.write(data)
        elif is_special(path):
            with open(path, "wb") as file:
                file.write(data)
        else:
            _publish(path, data, force, scratch)
    except OSError as fault:
        raise unwritable(path, fault) from None


def unwritable(what: str, fault: OSError) -> OutputError:
    """The error for what failed while `what` was written."""
    kind = BrokenPipe if isinstance(fault, BrokenPipeError) else OutputError
    return kind(f"{what} cannot be written: {fault.strerror}")


def sweep(path: str, prefix: str) -> None:
    """Remove what a process that was killed while it wrote `path`, its TEMPORARY being `prefix`, has
    left behind."""
    folder = os.path.dirname(os.path.realpath(path))
    with suppress(OSError):
        for name in os.listdir(folder):
            if name.startswith(prefix):
                os.unlink(os.path.join(folder, name))


def abandon(stream: IO[str] | None) -> None:
    """Let what a broken stream still buffers go nowhere: the interpreter would try to write it once
    more at its end, and complain."""
    if stream is not None:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _publish(path: str, data: bytes, force: bool, scratch: str | None) -> None:
    target = os.path.realpath(path)
    temporary = os.path.join(scratch or os.path.dirname(target), TEMPORARY + os.urandom(4).hex())
    before = os.stat(target) if os.path.exists(target) else None
    if before is not None and not force:
        raise _exists(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY
    with signals.undoing(functools.partial(os.unlink, temporary)):
        # What replaces a private file is not for others to read, not even for a moment.
        with open(os.open(temporary, flags, 0o666 if before is None else 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if before is not None:
            _inherit(temporary, before)
        if force:
            os.replace(temporary, target)
            return
        try:
            os.link(temporary, target)
        except FileExistsError:
            raise _exists(path) from None
        except (OSError, NotImplementedError):
            _claim(temporary, target, path)


def _claim(temporary: str, target: str, path: str) -> None:
    """Give the file `temporary` the name `target`, if it is free, where there are no hard links. For
    the blink of an eye there is an empty file of that name."""
    with signals.held(firmly=True):
        try:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY))
        except FileExistsError:
            raise _exists(path) from None
        try:
            os.replace(temporary, target)
        except OSError:
            os.unlink(target)
            raise


def _inherit(temporary: str, before: os.stat_result) -> None:
    """Owner, group and permissions of the file that is replaced."""
    mode = stat.S_IMODE(before.st_mode)
    if hasattr(os, "chown"):
        kept = os.geteuid() == 0
        try:
            os.chown(temporary, before.st_uid, before.st_gid)
        except OSError:
            kept = False
            with suppress(OSError):
                os.chown(temporary, -1, before.st_gid)
        if not kept:
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
    os.chmod(temporary, mode)


def _descriptor(path: str) -> int | None:
    """N where `path` leads to /dev/fd/N of this process, else None."""
    own = os.path.realpath("/dev/fd")
    for _ in range(40):  # as many links as the kernel follows
        folder, name = os.path.split(path)
        if name.isdecimal() and os.path.realpath(folder) == own:
            return int(name)
        if not os.path.islink(path):
            return None
        path = os.path.join(folder, os.readlink(path))
    return None


def _exists(path: str) -> OutputError:
    return OutputError(f"{path} exists already; --force overwrites it")
