"""How a map of any size is cut into tiles, each with what has to be seen around it; and the progress of work
that is done in parts. Standard library only."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

Progress = Callable[[float], None]
"""Told how much of the work is done, 0..1, never less than before."""


Area = tuple[slice, slice]
"""Rows and columns of a map."""


@dataclass(frozen=True)
class Tile:
    """A part of a map, and the part that has to be seen for it, in cells of some pixels each."""

    inner: Area  # rows and columns; those of all tiles are the map, without overlap
    outer: Area  # the same and a halo around it, as far as the map goes

    def of(self, scale: int) -> Area:
        """`inner` in a map that has `scale` elements to a cell, per side."""
        rows, columns = (slice(part.start * scale, part.stop * scale) for part in self.inner)
        return rows, columns

    def around(self, scale: int) -> Area:
        """`outer` in such a map."""
        rows, columns = (slice(part.start * scale, part.stop * scale) for part in self.outer)
        return rows, columns

    def within(self, scale: int) -> Area:
        """`inner` in what was computed from `outer`."""
        rows, columns = (
            slice((inner.start - outer.start) * scale, (inner.stop - outer.start) * scale)
            for inner, outer in zip(self.inner, self.outer, strict=True)
        )
        return rows, columns


def spans(length: int, side: int) -> list[tuple[int, int]]:
    """0..length in equal parts of at most `side`."""
    count = -(-length // side)
    edges = [length * i // count for i in range(count + 1)]
    return list(zip(edges, edges[1:], strict=False))


def tiles(height: int, width: int, side: int, halo: int) -> list[Tile]:
    """A map of height x width cells in tiles of at most `side` cells per side."""

    def cut(length: int) -> Iterator[tuple[slice, slice]]:
        for start, stop in spans(length, side):
            yield slice(start, stop), slice(max(0, start - halo), min(length, stop + halo))

    columns = list(cut(width))
    return [
        Tile((row, column), (row_around, column_around))
        for row, row_around in cut(height)
        for column, column_around in columns
    ]


def part_of(progress: Progress | None, start: float, stop: float) -> Progress:
    """What to tell the progress of a part, which goes from `start` to `stop` of the whole."""
    if progress is None:
        return lambda done: None
    return lambda done: progress(start + (stop - start) * done)
