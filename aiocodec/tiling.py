"""Networks on maps of any size: in tiles, with memory that is bounded, and without a seam.

A convolution sees a few pixels around, so a tile with a halo of that width gives what the whole
would. The attention of the paper's block sees the whole picture, but only as sums over its pixels:
they are added up over all tiles first, so that every tile is coded with the statistic of the picture
and not with its own. All agrees with the untiled network up to the rounding of float32, and in the
exact networks to the bit.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from aiocodec.config import LATENT_STRIDE
from aiocodec.layers import Statistic
from aiocodec.memory import trim
from aiocodec.tiles import Area, Progress, Tile, tiles
from aiocodec.transforms import Piece, TwoPaths

KEPT_BYTES = 1 << 28  # of a map between two attentions that is kept; larger ones are made again

LARGE = 1 << 17  # elements of y per channel of a picture, 33 megapixels of x


def transform(
    network: TwoPaths,
    quality: Tensor,
    size: tuple[int, int],
    side: int,
    read: Callable[[Area], Tensor],
    write: Callable[[Area, Tensor], None],
    progress: Progress = lambda done: None,
) -> None:
    """Apply g_a or g_s to a picture of which no more than a part is looked at at once.

    Args:
        quality: float [1], 0..100.
        size: rows and columns of y.
        side: elements of y in a tile, per side, at most; a picture with no more is done at once.
        read: rows and columns of y -> that part of the network's input, [1, C, h, w].
        write: takes rows and columns of y, and that part of the result; called once for every part.
    """
    if max(size) <= side:
        whole = (slice(0, size[0]), slice(0, size[1]))
        write(whole, network(read(whole), quality))
        progress(1.0)
        return
    deep = _DeepPath(network.pieces(quality), size, side, read)
    rounds = len(deep.attentions) + 1
    for i, attention in enumerate(deep.attentions):
        deep.meet(attention, lambda done, i=i: progress((i + done) / rounds))  # type: ignore[misc]
    grid = deep.grid(len(deep.pieces), network.linear_reach)
    for n, tile in enumerate(grid):
        linear = network.linear_path(read(tile.outer), quality)
        part = network.join(linear, deep.run(len(deep.pieces), tile))
        write(tile.inner, part[(..., *tile.within(LATENT_STRIDE // deep.pieces[-1].stride))])
        progress(1 - (1 - (n + 1) / len(grid)) / rounds)
    del deep
    trim()


class _DeepPath:
    """The deep path of a network in tiles. Its steps of attention are met in their order, and then
    all of it can be run."""

    def __init__(
        self, pieces: list[Piece], size: tuple[int, int], side: int, read: Callable[[Area], Tensor]
    ) -> None:
        self.pieces, self.size, self.side, self.read = pieces, size, side, read
        self.attentions = [i for i, piece in enumerate(pieces) if piece.attention is not None]
        self.statistics: dict[int, Statistic] = {}  # of those that were met, by their step
        self.kept: Tensor | None = None  # the map before the step `start`, so far as it is small
        self.start = 0
        # A picture so large that what lies about in pieces of memory counts.
        self.large = math.prod(size) > LARGE

    def scale(self, step: int) -> int:
        """Positions per element of y, per side, of the map before a step."""
        return LATENT_STRIDE // self.pieces[step - 1].stride

    def grid(self, stop: int, seen: int) -> list[Tile]:
        """Tiles, of elements of y, for the steps from `start` to before `stop`; at least so many
        pixels around them are `seen`."""
        reach = sum(piece.reach for piece in self.pieces[self.start : stop])
        return tiles(*self.size, self.side, -(-max(reach, seen) // LATENT_STRIDE))

    def run(self, stop: int, tile: Tile) -> Tensor:
        """The map before a step, of all that a tile sees."""
        if self.kept is None:
            x = self.read(tile.outer)
        else:
            x = self.kept[(..., *tile.around(self.scale(self.start)))]
            x = x.contiguous(memory_format=torch.channels_last)
        for i in range(self.start, stop):
            x = self.pieces[i](x, self.statistics.get(i))
        if self.kept is None and self.large:
            trim()
        return x

    def meet(self, stop: int, progress: Progress) -> None:
        """Take the statistic of the attention that is the step `stop`."""
        found = self.pieces[stop].attention
        assert found is not None
        (norm, attention), scale = found, self.scale(stop)
        reach = sum(piece.reach for piece in self.pieces[self.start : stop + 1])
        grid = self.grid(stop, reach)
        kept: Tensor | None = None
        waiting: list[tuple[Tile, Tensor]] = []  # what is not to be written before others have read
        for n, tile in enumerate(grid):
            while waiting and waiting[0][0].inner[0].stop <= tile.outer[0].start:
                self._write(kept, *waiting.pop(0), scale)
            x = self.run(stop, tile)
            statistic = attention.statistic(norm(x), tile.within(scale))
            if n > 0:
                sums = zip(self.statistics[stop], statistic, strict=True)
                statistic = Statistic(*(so_far + more for so_far, more in sums))
            self.statistics[stop] = statistic
            if n == 0:
                kept = self._room(x, scale)
            if kept is not None:
                waiting.append((tile, x[(..., *tile.within(scale))].clone()))
            progress((n + 1) / len(grid))
        for tile, part in waiting:
            self._write(kept, tile, part, scale)
        if kept is not None:
            self.kept, self.start = kept, stop
        trim()

    def _room(self, x: Tensor, scale: int) -> Tensor | None:
        """For the map of which x is a part: the one that is kept already, if it has the shape, a new
        one, or none where it were too large."""
        shape = (1, x.shape[1], self.size[0] * scale, self.size[1] * scale)
        if self.kept is not None and self.kept.shape == shape:
            return self.kept
        if math.prod(shape) * x.element_size() > KEPT_BYTES:
            return None
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)

    @staticmethod
    def _write(kept: Tensor | None, tile: Tile, part: Tensor, scale: int) -> None:
        assert kept is not None
        kept[(..., *tile.of(scale))] = part


def local(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    cells: tuple[int, int],
    side: int,
    halo: int,
    out: Tensor,
    progress: Progress = lambda done: None,
) -> Tensor:
    """Fill `out` [..., H', W'] with function(x), of a function that sees `halo` cells around a cell at
    most and of which x [..., H, W] and `out` have as many rows and columns of `cells` as they go."""
    grid = tiles(*cells, side, halo)
    inputs, outputs = x.shape[-1] // cells[1], out.shape[-1] // cells[1]
    for n, tile in enumerate(grid):
        part = function(x[(..., *tile.around(inputs))])
        out[(..., *tile.of(outputs))] = part[(..., *tile.within(outputs))]
        progress((n + 1) / len(grid))
    return out
