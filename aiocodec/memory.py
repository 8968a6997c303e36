"""How much memory there is, and to give it back. Standard library only."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")  # where Linux shows itself


def available_memory() -> int | None:
    """Bytes that this process may still allocate before it is refused, killed, or the machine is
    slowed down: the least of what the machine, its control groups and the process limits leave. None
    where the system does not tell."""
    return min(_limits(), default=None)


def group_limit() -> int | None:
    """The least limit in bytes of the control groups around this process; None without one."""
    return min((limit for limit, _ in _groups()), default=None)


def _limits() -> Iterator[int]:
    with suppress(OSError, ValueError, KeyError):
        fields = _fields(PROC / "meminfo")
        yield 1024 * (fields["MemAvailable:"] + fields["SwapFree:"])
    yield from (left for _, left in _groups())
    if sys.platform != "win32":
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        with suppress(OSError, ValueError, IndexError):
            pages = int((PROC / "self" / "statm").read_text().split()[0])
            if limit != resource.RLIM_INFINITY:
                yield max(0, limit - pages * os.sysconf("SC_PAGE_SIZE"))


def _groups() -> Iterator[tuple[int, int]]:
    """The limit and what is left of it, in bytes, of every control group that has one, from that of
    this process up. A container may show its own group as the root, under the path of the host."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            root, names = GROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = GROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError, KeyError):  # the limit may be "max"
                limit, used = (int((folder / name).read_text()) for name in names[:2])
                cached = _fields(folder / "memory.stat")[names[2]]
                if limit < 1 << 60:  # version 1 has a huge number for none
                    yield limit, max(0, limit - used + cached)
            if folder == root:
                break


def _fields(path: Path) -> dict[str, int]:
    """The names and the first numbers of a file of lines."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {name: int(value) for name, value, *_ in lines}


def trim() -> None:
    """Return to the system what glibc keeps, in pieces, of memory that was given back. It does not do
    so by itself where anything that lives on lies above."""
    with suppress(OSError, AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
