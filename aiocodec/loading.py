"""The import of large libraries, NumPy, PyTorch and onnxruntime, just before they are needed.

A signal in the middle of it waits for its end: an exception there aborts the process. So does too
little address space (`ulimit -v`), which is therefore looked at beforehand.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from aiocodec import signals
from aiocodec.errors import LimitError

_MEGABYTES = {  # of address space, besides the libraries of PyTorch
    "numpy": 110,
    "torch": 110,
    "onnxruntime": 150,
}
_PER_THREAD = 10  # megabytes, of its stack above all

# How threads of OpenMP wait, unless the environment says it: asleep. Otherwise they spin, which takes the
# cores away from those that are waited for wherever the cores are shared: a picture took 3 s and not 0.5.
# It is read when PyTorch is imported.
_WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}


@contextmanager
def loading(library: str) -> Iterator[None]:
    """A block that imports "numpy" (with Pillow), "torch" or "onnxruntime" (with all that comes along), in
    which signals are held; LimitError where the address space that is left cannot suffice."""
    space = _space() if library not in sys.modules else None
    if space is not None:
        missing = {"numpy", library} - set(sys.modules)  # the others import NumPy
        needed = sum(_MEGABYTES[name] for name in missing) + _PER_THREAD * (os.cpu_count() or 1)
        if library == "torch":
            needed += _size_of_torch() >> 20
        if space >> 20 < needed:
            raise LimitError(
                f"not enough memory: {library} takes about {needed} MiB of address space, "
                f"the limit (ulimit -v) leaves {space >> 20}"
            )
    if library == "torch" and library not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.update(_WAITING)
    with signals.held():
        yield


def _space() -> int | None:
    """Bytes of address space that the process may still take; None without a limit."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return None
        with open("/proc/self/statm") as file:
            return limit - int(file.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError, ValueError):
        return None


def _size_of_torch() -> int:
    """Bytes of PyTorch's shared libraries; 0 where there are none."""
    from importlib.util import find_spec

    spec = find_spec("torch")
    try:
        folder = os.path.join((spec.submodule_search_locations or [""])[0], "lib") if spec else ""
        return sum(file.stat().st_size for file in os.scandir(folder) if ".so" in file.name)
    except OSError:
        return 0
