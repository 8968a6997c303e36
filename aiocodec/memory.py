"""How much memory there is, and to give it back. Standard library only."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
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


def trim() -> None:
    """Return to the system what glibc keeps, in pieces, of memory that was given back. It does not do
    so by itself where anything that lives on lies above."""
    with suppress(OSError, AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
