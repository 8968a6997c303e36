"""Files as they come in and go out: read whole, written whole or not at all."""

import os
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

from aiocodec.errors import AicError, OutputError


def read_input(path: str, error: type[AicError]) -> bytes:
    """The bytes of a file, or of stdin for "-"; `error` where they cannot be read."""
    try:
        if path != "-":
            return Path(path).read_bytes()
        if sys.stdin is None:
            raise error("stdin is closed")
        if sys.stdin.isatty():
            raise error("stdin is a terminal, give a file or a pipe")
        return sys.stdin.buffer.read()
    except OSError as fault:
        raise error(f"cannot be read: {fault.strerror}") from None


def check_output(path: str, force: bool) -> None:
    """OutputError where `path`, or stdout for "-", is not a place that may be written."""
    if path == "-":
        if sys.stdout is None:
            raise OutputError("stdout is closed")
        if sys.stdout.isatty() and not force:
            raise OutputError("stdout is a terminal; --force writes there all the same")
        return
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise OutputError(f"{path} is a folder; --out-dir writes into it")
    if not os.path.isdir(folder):
        raise OutputError(f"the folder {folder} does not exist")
    if is_special(path):
        return
    if not force and os.path.lexists(path):
        raise OutputError(f"{path} exists already; --force overwrites it")
    if not os.access(os.path.dirname(os.path.realpath(path)), os.W_OK):
        raise OutputError(f"the folder of {path} cannot be written")


def is_special(path: str) -> bool:
    """Whether `path` is a device or a pipe, which is written in place and never overwritten."""
    return os.path.exists(path) and not os.path.isfile(path)


def write_output(path: str, data: bytes, force: bool) -> None:
    """Write a whole file or none: into a temporary file beside it, synced, then renamed."""
    check_output(path, force)
    if path == "-":
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except OSError as fault:
            abandon(sys.stdout)
            raise OutputError(f"stdout cannot be written: {fault.strerror}") from None
        return
    target = os.path.realpath(path)
    temporary = os.path.join(os.path.dirname(target), f".aic-{os.urandom(8).hex()}")
    try:
        if is_special(target):
            Path(target).write_bytes(data)
            return
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(target):
            os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))
        os.replace(temporary, target)
    except OSError as fault:
        raise OutputError(f"{path} cannot be written: {fault.strerror}") from None
    finally:  # signals come through here too
        with suppress(OSError):
            os.unlink(temporary)


def is_same_file(source: str, target: str) -> bool:
    """Whether two paths lead to the same ordinary file."""
    return os.path.isfile(source) and os.path.isfile(target) and os.path.samefile(source, target)


def abandon(stream: IO[str] | None) -> None:
    """Let what a broken stream still buffers go nowhere: the interpreter would try to write it once
    more at its end, and complain."""
    if stream is not None:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
