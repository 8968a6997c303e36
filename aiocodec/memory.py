"""How much memory there is, and to use little of it. Standard library only."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def available_memory() -> int | None:
    """Bytes that this process may still allocate before it is refused, killed, or the machine is
    slowed down: the least of what the machine, its control group and the process limits leave. None
    where the system does not tell."""
    return min(_limits(), default=None)


def _limits() -> Iterator[int]:
    with suppress(OSError, ValueError, KeyError):
        fields = _fields("/proc/meminfo")
        yield 1024 * (fields["MemAvailable:"] + fields["SwapFree:"])
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError, KeyError):  # the limit may be "max"
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        yield max(0, limit - used + _fields(group / "memory.stat")["inactive_file"])
    if sys.platform != "win32":
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        with suppress(OSError, ValueError, IndexError):
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            if limit != resource.RLIM_INFINITY:
                yield max(0, limit - pages * os.sysconf("SC_PAGE_SIZE"))


def _fields(path: str | Path) -> dict[str, int]:
    """The names and the first numbers of a file of lines."""
    lines = (line.split() for line in Path(path).read_text().splitlines())
    return {name: int(value) for name, value, *_ in lines}


@contextmanager
def frugal(wanted: bool = True) -> Iterator[None]:
    """In this block, if `wanted`, glibc returns the memory of arrays of a few megabytes at once,
    where it would keep a good deal of it in pieces: a fifth less for a large picture. It is slower by
    a few per cent, as the system clears the pages for each."""
    mallopt = None
    if wanted:
        with suppress(OSError, AttributeError, TypeError):  # not glibc
            mallopt = ctypes.CDLL(None).mallopt
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
    if mallopt is not None:
        mallopt(mmap_threshold, 4 << 20)
        mallopt(trim_threshold, 4 << 20)
    try:
        yield
    finally:
        if mallopt is not None:  # what glibc comes to by itself
            mallopt(mmap_threshold, 32 << 20)
            mallopt(trim_threshold, 64 << 20)
