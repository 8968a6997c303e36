"""How fast a model trains on this machine, and what share of the machine's floor that reaches.

The floor of a step is the larger of two times: its arithmetic (three times that of the forward
pass) at the rate of a large matrix product, and the bytes that its operations read and write at
the rate of a large copy, both measured here, on this device. Degradation and optimisers are part
of the step, not of its floor. Fusing operations (torch.compile) saves traffic, so a step can be
faster than the second.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aiocodec.config import ModelConfig
from aiocodec.degrade import degrade
from aiocodec.errors import out_of_memory
from aiocodec.model import Model, complexity
from aiocodec.training.config import TrainConfig
from aiocodec.training.cores import has_bfloat16, prepare
from aiocodec.training.run import Run, compile_parts, rate_distortion


class _Traffic(TorchDispatchMode):
    """Sums the bytes of all tensors that operations take and give, views left out."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            self.bytes += sum(t.nbytes for t in tensors)
        return out


def _seconds(work: Callable[[], object], device: str, budget: float = 0.5) -> list[float]:
    """The times of as many calls as fit into a budget of seconds, after one to warm up."""

    def timed() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - start

    timed()
    end = time.perf_counter() + budget
    times = [timed()]
    while time.perf_counter() < end:
        times.append(timed())
    return times


def machine(device: str) -> dict[str, float]:
    """Operations per second of a matrix product in the precision of training, and bytes per second
    of a copy (read and written)."""
    cuda = device.startswith("cuda")
    side = 8192 if cuda else 1536
    half = has_bfloat16(torch.device(device))
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16 if half else torch.float32)
    b = torch.empty(1 << (30 if cuda else 26), dtype=torch.uint8, device=device)
    c = torch.empty_like(b)
    return {
        "flops": 2 * side**3 / min(_seconds(lambda: a @ a, device)),
        "bandwidth": 2 * b.nbytes / min(_seconds(lambda: c.copy_(b), device)),
    }


def benchmark(
    config: ModelConfig,
    device: str,
    side: int,
    batches: tuple[int, ...],
    compiled: tuple[bool, ...] = (False,),
    seconds: float = 8.0,
) -> Iterator[dict[str, Any]]:
    """One row per way to train on patches of `side`: megapixels per second of whole steps (batch of
    random pixels, degradation, both passes, optimisers), milliseconds, the floors of a step, and
    the share of the larger one that is reached. A batch that does not fit ends a series."""
    prepare()
    peak = machine(device)
    for compile in compiled:
        for count in batches:
            try:
                yield {
                    "side": side,
                    "batch": count,
                    "compile": compile,
                    **_measure(config, device, side, count, compile, seconds, peak),
                }
            except (RuntimeError, MemoryError) as fault:
                if not out_of_memory(fault):
                    raise
                break


def _measure(
    config: ModelConfig,
    device: str,
    side: int,
    count: int,
    compile: bool,
    seconds: float,
    peak: dict[str, float],
) -> dict[str, float]:
    torch.manual_seed(0)
    model = Model(config).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = Run.create(model.train(), TrainConfig(phases=((0.0, side, count),)))
    rng = torch.Generator(device).manual_seed(0)
    clean = torch.rand(count, 3, side, side, generator=rng, device=device)
    clean = clean.contiguous(memory_format=torch.channels_last)
    quality = torch.full((count,), 50.0, device=device)
    with _Traffic() as traffic:
        rate_distortion(run.model, clean, clean, quality)[0].backward()  # type: ignore[no-untyped-call]
    if compile:
        torch.compiler.reset()
        compile_parts(run.model)

    def update() -> None:
        run.update(clean, degrade(clean, rng, run.config.clean))

    step = statistics.mean(_seconds(update, device, seconds))
    forward = 2 * count * sum(complexity(config, side, side).macs.values())
    floors = (3 * forward / peak["flops"], traffic.bytes / peak["bandwidth"])
    return {
        "megapixels_per_second": round(count * side**2 / step / 1e6, 4),
        "ms": round(1000 * step, 1),
        "compute_floor_ms": round(1000 * floors[0], 1),
        "memory_floor_ms": round(1000 * floors[1], 1),
        "share": round(max(floors) / step, 3),
    }
