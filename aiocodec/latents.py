"""Latents y and z <-> words of a range-coder stream. Entropy model and range coder meet here only.

What crosses machines is exact: z_hat and the symbols of y are integers, and so is everything that the
decoder derives their tables from. z comes first, with a CRC of its own, so that nothing is computed
from a damaged one.
"""

import zlib
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aiocodec.container import Latents
from aiocodec.entropy.exact import ExactEntropyModel, Parameters
from aiocodec.entropy.frozen import FrozenEntropyModel
from aiocodec.errors import BitstreamError, ModelError
from aiocodec.rangecoder import MAX_MAGNITUDE, Decoder, Encoder, Tables

CodePass = Callable[[Parameters, Tensor], NDArray[np.int32]]
"""Codes the elements of one pass, one way or the other: takes the parameters and the bool mask
[N, H, W] of the elements that it covers, gives their symbols, int32 [n]."""


class LatentCoder:
    """A frozen entropy model on a device, with its tables.

    Raises:
        ModelError: the tables are not what they should be.
    """

    def __init__(self, frozen: FrozenEntropyModel, device: torch.device | str = "cpu") -> None:
        self.program, self.device = frozen.program, torch.device(device)
        self.entropy = ExactEntropyModel(frozen).to(self.device)
        try:
            self.tables_y, self.tables_z = (Tables(*frozen.tables(which)) for which in "yz")
        except ValueError as fault:
            raise ModelError(f"the tables of the weights are malformed: {fault}") from None

    def encode(self, y: Tensor, z: Tensor, quality: int) -> Latents:
        """y [N, H, W] and z [Z, H/4, W/4], float, whatever their values, of a picture that is coded at
        a quality 0..100, to the words that `decode` takes."""
        encoder, bound = Encoder(), self.program.z_max
        z_hat = z.add(0.5).floor().nan_to_num(0).clamp(-bound, bound)
        symbols_z = _to_numpy(z_hat)
        encoder.encode(symbols_z.ravel(), self._indexes_z(symbols_z.shape, quality), self.tables_z)
        crc = z_crc = symbols_crc(symbols_z)
        features = self.entropy.features(z_hat, quality)
        v = (y / self.entropy.steps(features)).double()

        def code(parameters: Parameters, mask: Tensor) -> NDArray[np.int32]:
            nonlocal crc
            exact = (v - parameters.means / self.program.symbol_unit)[mask]
            bounded = (
                exact.add_(0.5).floor_().nan_to_num_(0.0).clamp_(-MAX_MAGNITUDE, MAX_MAGNITUDE)
            )
            symbols = _to_numpy(bounded)
            encoder.encode(symbols, _to_numpy(parameters.indexes[mask]), self.tables_y)
            crc = symbols_crc(symbols, crc)
            return symbols

        self._code_y(features, code)
        return Latents(encoder.finish(), crc, z_crc)

    def decode(self, latents: Latents, width: int, height: int, quality: int) -> Tensor:
        """y_hat [N, H/16, W/16], float32, for a picture of `width` x `height` pixels, padded.

        Raises:
            BitstreamError: the words or their CRCs are damaged.
        """
        decoder, program = Decoder(latents.words), self.program
        shape = (program.hyper, -(-height // program.stride), -(-width // program.stride))
        symbols_z = decoder.decode(self._indexes_z(shape, quality), self.tables_z).reshape(shape)
        crc = symbols_crc(symbols_z)
        if latents.z_crc not in (None, crc):
            raise BitstreamError("the decoded symbols of z have the wrong CRC")
        if np.abs(symbols_z).max() > program.z_max:
            raise BitstreamError("coded symbols are corrupt: a symbol is out of range")
        features = self.entropy.features(self._to_tensor(symbols_z), quality)

        def code(parameters: Parameters, mask: Tensor) -> NDArray[np.int32]:
            nonlocal crc
            symbols = decoder.decode(_to_numpy(parameters.indexes[mask]), self.tables_y)
            crc = symbols_crc(symbols, crc)
            return symbols

        v_hat = self._code_y(features, code)
        decoder.finish()
        if crc != latents.symbols_crc:
            raise BitstreamError("the decoded symbols have the wrong CRC")
        return (v_hat / program.symbol_unit).float() * self.entropy.steps(features)

    def _code_y(self, features: Tensor, code: CodePass) -> Tensor:
        """The passes over y, the same for both directions; v_hat [N, H, W], which is symbols + means
        in units of 1 / symbol_unit."""
        masks = self.entropy.masks(features)
        v_hat = features.new_zeros(masks.shape[1:])
        for k, mask in enumerate(masks):
            parameters = self.entropy.predict(k, features, v_hat)
            symbols = self._to_tensor(code(parameters, mask))
            v_hat[mask] = symbols * self.program.symbol_unit + parameters.means[mask]
        return v_hat

    def _to_tensor(self, symbols: NDArray[np.int32]) -> Tensor:
        return torch.from_numpy(symbols).to(self.device).double()

    def _indexes_z(self, shape: tuple[int, ...], quality: int) -> NDArray[np.int32]:
        """The table of every element of z [Z, h, w], flat: its channel, at the level of the quality."""
        channels, height, width = shape
        first = self.program.level(quality) * channels
        return np.repeat(np.arange(first, first + channels, dtype=np.int32), height * width)


def symbols_crc(symbols: NDArray[np.int32], crc: int = 0) -> int:
    """CRC32 of symbols as little-endian int32, going on from `crc`."""
    return zlib.crc32(symbols.astype("<i4").tobytes(), crc)


def _to_numpy(integers: Tensor) -> NDArray[np.int32]:
    return integers.to(torch.int32).cpu().numpy()
