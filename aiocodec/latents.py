"""Latents y and z <-> words of a range-coder stream. Entropy model and range coder meet here only.

What crosses machines is exact: z_hat and the symbols of y are integers, and so is everything that the
decoder derives their tables from. z comes first, see hyper.py, so that nothing is computed from a
damaged one. The entropy model runs in tiles with the halo that its reach asks for, which changes no
bit and bounds the memory; what is kept of a whole picture is y and two small integers per element.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aiocodec.config import LATENT_STRIDE, STRIDE
from aiocodec.container import Latents
from aiocodec.entropy.exact import ExactEntropyModel, Parameters
from aiocodec.entropy.frozen import FrozenEntropyModel
from aiocodec.entropy.passes import Plane, gather, scatter
from aiocodec.errors import BitstreamError
from aiocodec.hyper import HyperCoder, symbols_crc, tables
from aiocodec.memory import trim
from aiocodec.rangecoder import MAX_MAGNITUDE, Decoder, Encoder
from aiocodec.tiles import Progress, Tile, tiles
from aiocodec.tiling import KEPT_BYTES, local

TILE = 12  # positions of z that the entropy model sees at once, per side, at most
LARGE = 1 << 14  # elements of y per channel, 4 megapixels, from which on memory is handed back
CELL = STRIDE // LATENT_STRIDE  # elements of y per position of z, per side


class LatentCoder:
    """A frozen entropy model on a device, with its tables.

    Raises:
        ModelError: the tables are not what they should be.
    """

    def __init__(self, frozen: FrozenEntropyModel, device: torch.device | str = "cpu") -> None:
        self.program, self.device = frozen.program, torch.device(device)
        self.entropy = ExactEntropyModel(frozen).to(self.device)
        self.hyper, self.tables_y = HyperCoder(frozen), tables(frozen, "y")

    def z_hat(self, z: Tensor) -> Tensor:
        """z [Z, h, w], whatever its values, as the decoder will have it."""
        bound = self.program.z_max
        return z.add(0.5).floor().nan_to_num(0).clamp(-bound, bound)

    def encode(
        self,
        y: Tensor,
        z: Tensor,
        quality: int,
        progress: Progress = lambda done: None,
        *,
        restore: bool = False,
    ) -> Latents:
        """y [N, H, W] and z [Z, H/4, W/4], float32, whatever their values, of a picture that is coded
        at a quality 0..100, to the words that `decode` takes. y is used up: it holds what the decoder
        will know of it, in units of its steps, and with `restore` what `decode` returns."""
        encoder, z_hat = Encoder(), self.z_hat(z)
        crc = z_crc = self.hyper.encode(encoder, z_hat.int().cpu().numpy(), quality)
        grid = _Grid(self.entropy, z_hat, quality)
        for k, (coded, tables_of_coded) in enumerate(self._symbols(y, grid)):
            encoder.encode(coded, tables_of_coded, self.tables_y)
            crc = symbols_crc(coded, crc)
            progress((k + 1) / self.entropy.passes)
        if restore:
            for tile in grid:
                grid.of(y, tile).mul_(self.entropy.steps(grid.features(tile)))
        return Latents(encoder.finish(), crc, z_crc)

    def symbols(
        self, y: Tensor, z: Tensor, quality: int
    ) -> Iterator[tuple[NDArray[np.int16], NDArray[np.uint8]]]:
        """What `encode` codes of y in every pass: symbols, and the table of each. y is used up."""
        return self._symbols(y, _Grid(self.entropy, self.z_hat(z), quality))

    def _symbols(
        self, y: Tensor, grid: "_Grid"
    ) -> Iterator[tuple[NDArray[np.int16], NDArray[np.uint8]]]:
        for tile in grid:
            grid.of(y, tile).div_(self.entropy.steps(grid.features(tile)))
        unit = self.program.symbol_unit
        for k in range(self.entropy.passes):
            indexes, symbols = grid.plane(np.uint8), grid.plane(np.int16)
            for tile, parameters, turn in self._predict(k, grid, y):
                means = parameters.means / unit
                part = grid.of(y, tile)
                exact = (part.double() - means).add_(0.5).floor_().nan_to_num_(0.0)
                rounded = exact.clamp_(-MAX_MAGNITUDE, MAX_MAGNITUDE)
                part.copy_(torch.where(turn, rounded + means, part))
                grid.of(indexes, tile)[:] = _to_numpy(parameters.indexes, torch.uint8)
                grid.of(symbols, tile)[:] = _to_numpy(rounded, torch.int16)
            coded, tables_of_coded = (
                gather(self.program.order, k, symbols),
                gather(self.program.order, k, indexes),
            )
            del indexes, symbols
            grid.trim()
            yield coded, tables_of_coded

    def decode(
        self,
        latents: Latents,
        width: int,
        height: int,
        quality: int,
        progress: Progress = lambda done: None,
    ) -> Tensor:
        """y_hat [N, H/16, W/16], float32, for a picture of `width` x `height` pixels, padded.

        Raises:
            BitstreamError: the words or their CRCs are damaged.
        """
        decoder, unit = Decoder(latents.words), self.program.symbol_unit
        symbols_z = self.hyper.decode(decoder, latents, width, height, quality)
        crc = symbols_crc(symbols_z)
        grid = _Grid(self.entropy, torch.from_numpy(symbols_z).to(self.device), quality)
        y = torch.zeros(grid.shape, device=self.device)
        for k in range(self.entropy.passes):
            indexes, means = grid.plane(np.uint8), grid.plane(np.int16)
            for tile, parameters, _ in self._predict(k, grid, y):
                grid.of(indexes, tile)[:] = _to_numpy(parameters.indexes, torch.uint8)
                grid.of(means, tile)[:] = _to_numpy(parameters.means, torch.int16)
            tables_of_coded = gather(self.program.order, k, indexes)
            del indexes
            grid.trim()
            coded = decoder.decode(tables_of_coded, self.tables_y)
            crc = symbols_crc(coded, crc)
            symbols = grid.plane(np.int16)
            scatter(self.program.order, k, coded, symbols)
            for tile in grid:
                part = grid.of(y, tile)
                turn = self.entropy.when(part.shape[1], part.shape[2]) == k
                values, mean = (self._to_tensor(grid.of(p, tile)) for p in (symbols, means))
                part.copy_(torch.where(turn, values + mean / unit, part))
            progress((k + 1) / self.entropy.passes)
        decoder.finish()
        if crc != latents.symbols_crc:
            raise BitstreamError("the decoded symbols have the wrong CRC")
        for tile in grid:
            grid.of(y, tile).mul_(self.entropy.steps(grid.features(tile)))
        return y

    def _predict(
        self, k: int, grid: "_Grid", y: Tensor
    ) -> Iterator[tuple[Tile, Parameters, Tensor]]:
        """For every tile what pass k is coded with, and where it codes, bool [N, h, w]. y [N, H, W] is,
        where passes before it have coded, symbols + means, in units of a symbol."""
        for tile in grid:
            seen = y[(..., *tile.around(grid.cell))]
            turn = self.entropy.when(seen.shape[1], seen.shape[2])
            # float32 holds symbols + means exactly wherever they do not saturate.
            v_hat = torch.where(turn < k, seen.double() * self.program.symbol_unit, 0.0)
            parameters = self.entropy.predict(k, grid.features(tile, around=True), v_hat)
            within = (..., *tile.within(grid.cell))
            inner = Parameters(parameters.indexes[within], parameters.means[within])
            yield tile, inner, (turn == k)[within]
            if grid.kept is None:  # a picture so large that what lies about in pieces counts
                del seen, turn, v_hat, parameters, inner
                trim()

    def _to_tensor(self, integers: NDArray[np.int16]) -> Tensor:
        return torch.from_numpy(integers).to(self.device).double()


class _Grid:
    """The tiles of a picture, and the features in each: made once and kept as the int16 that they
    are, or, where the picture is too large for that, made anew whenever they are needed."""

    def __init__(self, entropy: ExactEntropyModel, z_hat: Tensor, quality: int) -> None:
        self.entropy, self.z_hat, self.quality = entropy, z_hat, quality
        self.cells = (int(z_hat.shape[1]), int(z_hat.shape[2]))
        self.shape = (entropy.program.latents, self.cells[0] * CELL, self.cells[1] * CELL)
        self.kept: Tensor | None = None
        if 2 * 3 * np.prod(self.shape) <= KEPT_BYTES:
            kept = torch.empty(
                (3 * self.shape[0], *self.shape[1:]), dtype=torch.int16, device=z_hat.device
            )
            halo = -(-entropy.program.features_reach // CELL)
            local(self._features, z_hat, self.cells, TILE, halo, kept)
            self.kept = kept
            self.trim()
        # Cells of two elements of y per side, which are what the order of passes repeats, make a
        # narrow halo; where features are made anew, a cell is a position of z.
        self.cell = CELL if self.kept is None else 2
        seen = entropy.program.predict_reach + (
            entropy.program.features_reach if self.kept is None else 0
        )
        height, width = (side // self.cell for side in self.shape[1:])
        self.tiles = tiles(height, width, TILE * CELL // self.cell, -(-seen // self.cell))

    def __iter__(self) -> Iterator[Tile]:
        return iter(self.tiles)

    def features(self, tile: Tile, around: bool = False) -> Tensor:
        """Float64 [3 N, h, w] of a tile, or, right as far as `predict` needs them, of all around."""
        area = tile.around(self.cell) if around else tile.of(self.cell)
        if self.kept is not None:
            return self.kept[(..., *area)].double()
        found = self._features(self.z_hat[(..., *tile.around(1))])
        return found if around else found[(..., *tile.within(self.cell))]

    def trim(self) -> None:
        """Return memory to the system between parts of the work; for a small picture that would take
        a fifth of its time."""
        if np.prod(self.shape[1:]) > LARGE:
            trim()

    def plane(self, kind: type[np.integer]) -> Plane:
        """Room for a number per element of y."""
        return np.zeros(self.shape, kind)

    def of(self, whole, tile: Tile):  # type: ignore[no-untyped-def]
        """The part of a tensor or a plane [N, H, W] that a tile is, as a view."""
        return whole[(..., *tile.of(self.cell))]

    def _features(self, z_hat: Tensor) -> Tensor:
        return self.entropy.features(z_hat, self.quality)


def _to_numpy(integers: Tensor, kind: torch.dtype) -> Plane:
    return integers.to(kind).cpu().numpy()
