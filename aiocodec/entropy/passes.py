"""The passes over y: which elements are coded when, as masks. Nobody else knows how many there are."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aiocodec.config import Order
from aiocodec.errors import ModelError

Plane = NDArray[Any]
"""[N, H, W], an integer per element of y; H and W are even."""


def check(order: Order, latents: int) -> None:
    """ModelError unless `order` is one: groups of [2][2] passes that divide `latents` channels, every
    pass from 0 to the last at least once, at most 16 of them."""
    shape = np.shape(order)
    if len(shape) != 3 or shape[1:] != (2, 2) or latents % shape[0]:
        raise ModelError("the order of passes is not one for 2x2 cells of these channels")
    table = np.asarray(order)
    if table.dtype.kind != "i" or set(table.ravel().tolist()) != set(range(count(order))):
        raise ModelError("the order of passes leaves a pass out")
    if count(order) > 16:
        raise ModelError("the order has more than 16 passes")


def count(order: Order) -> int:
    """The number of passes, K."""
    return 1 + max(position for group in order for row in group for position in row)


def when(order: Order, shape: tuple[int, ...]) -> NDArray[np.int8]:
    """The pass that codes each element, [N, H, W], of a y (or a part that begins at an even row and
    column) of this shape."""
    channels, height, width = shape
    cells = np.repeat(np.asarray(order, dtype=np.int8), channels // len(order), axis=0)
    return np.tile(cells, (1, -(-height // 2), -(-width // 2)))[:, :height, :width]


def masks(order: Order, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """bool [K, N, H, W] for y of `shape` [N, H, W]: true where a pass codes. Every element is coded in
    exactly one pass."""
    turns = np.arange(count(order), dtype=np.int8)[:, None, None, None]
    found: NDArray[np.bool_] = when(order, shape) == turns
    return found


def gather(order: Order, k: int, plane: Plane) -> NDArray[Any]:
    """The elements of pass k, [n], of a whole plane, in the order of coding."""
    where = list(_where(order, k, plane))
    counts = [(group.stop - group.start) * int(at.sum()) for group, at in where]
    found, start = np.empty(sum(counts), plane.dtype), 0
    for (group, at), count in zip(where, counts, strict=True):
        found[start : start + count] = plane[group][:, at].reshape(-1)
        start += count
    return found


def scatter(order: Order, k: int, elements: NDArray[Any], plane: Plane) -> None:
    """The inverse of `gather`: put the elements of pass k where they belong."""
    start = 0
    for group, at in _where(order, k, plane):
        count = (group.stop - group.start) * int(at.sum())
        plane[group][:, at] = elements[start : start + count].reshape(-1, int(at.sum()))
        start += count


def _where(order: Order, k: int, plane: Plane) -> Iterator[tuple[slice, NDArray[np.bool_]]]:
    """The channels of every group, and the rows and columns [H, W] where pass k codes them."""
    channels, height, width = plane.shape
    size = channels // len(order)
    for i, cell in enumerate(np.asarray(order) == k):
        yield slice(i * size, (i + 1) * size), np.tile(cell, (height // 2, width // 2))
