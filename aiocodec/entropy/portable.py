"""A frozen entropy model, executed in integers by numpy: what decoding without PyTorch needs of it.

It gives the bits of `ExactEntropyModel`, by the same argument: integers in float64, whose sums are exact
in whatever order they are taken, see `Program.check`. docs/format.md is the specification.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from aiocodec.entropy.frozen import ACTIVATION_MAX, FrozenEntropyModel, Layers

Floats = NDArray[np.float64]  # integers [channels, rows, columns]


class PortableEntropyModel:
    """What a decoder derives from the symbols it has. It may be used by several threads at once."""

    def __init__(self, frozen: FrozenEntropyModel) -> None:
        self.frozen, self.program = frozen, frozen.program
        self._convolutions: dict[str, tuple[Floats, Floats]] = {}
        for name in self.program.convolutions():
            weight, bias, exponent = (
                frozen.tensors[f"{name}.{part}"] for part in ("weight", "bias", "exponent")
            )
            # The division is a power of two, so it changes no bit to do it before the sum, nor to
            # add the half of the rounding to the bias.
            scale = np.exp2(-exponent.astype(np.float64))
            start = bias * scale + 0.5
            self._convolutions[name] = weight * scale[:, None, None, None], start[:, None, None]

    def features(self, z_hat: NDArray[Any], quality: int) -> Floats:
        """Integer z_hat [Z, h, w] in -z_max..z_max, of a picture coded at a quality 0..100, to the
        features [3 N, 4 h, 4 w] of all passes."""
        told = self.frozen.embedding(quality)[:, None, None]
        x = _saturate(z_hat * 2.0**self.program.fraction + told)
        return self._run("fusion", self._run("h_s", x))

    def steps(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """The quantisation step of every element of y, float32 [N, H, W]."""
        unit, most = 2**self.program.fraction, self.program.step_bits
        log_step = features[: self.program.latents].clip(-most * unit, most * unit)
        steps: NDArray[np.float32] = np.exp2(log_step / unit).astype(np.float32)
        return steps

    def predict(
        self, k: int, features: Floats, v_hat: NDArray[Any]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
        """For pass k the table of every element of y, and its mean in units of 1 / symbol_unit, both
        [N, H, W]. `v_hat` [N, H, W] is (symbols + mean) of the passes before it in these units, and 0
        elsewhere."""
        program = self.program
        _, index, mean = np.split(features, 3)
        if k > 0:
            context = np.concatenate([_saturate(v_hat.astype(np.float64)), features])
            hidden = self._run("body", self._run(f"adaptor_{k}", context))
            more_index, more_mean = np.split(self._run("head", hidden), 2)
            index, mean = _saturate(index + more_index), _saturate(mean + more_mean)
        scaled = np.floor(index * (program.index_unit / 2**program.fraction) + 0.5)
        tables = (scaled + program.scale_zero).clip(0, program.scales - 1)
        return tables.astype(np.uint8), mean.astype(np.int16)

    def _run(self, network: str, x: Floats) -> Floats:
        return self._layers(self.program.networks[network], x)

    def _layers(self, layers: Layers, x: Floats) -> Floats:
        for kind, *rest in layers:
            match kind:
                case "conv1x1":
                    x = _pointwise(*self._convolutions[rest[0]], x)
                case "dw3x3":
                    x = _depthwise(*self._convolutions[rest[0]], x)
                case "leaky":
                    slow = x * 0.125
                    slow += 0.5
                    x = np.maximum(x, np.floor(slow, out=slow), out=slow)
                case "residual":
                    x = _saturate(x + self._layers(rest[0], x))
                case _:
                    x = _shuffle(x)
        return x


def _saturate(x: Floats) -> Floats:
    return np.clip(x, -ACTIVATION_MAX, ACTIVATION_MAX, out=x)


def _pointwise(weight: Floats, start: Floats, x: Floats) -> Floats:
    channels, height, width = x.shape
    total = weight[:, :, 0, 0] @ x.reshape(channels, height * width)
    total = total.reshape(-1, height, width)
    total += start
    return _saturate(np.floor(total, out=total))


def _depthwise(weight: Floats, start: Floats, x: Floats) -> Floats:
    _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    total, product = np.empty_like(x), np.empty_like(x)
    total[:] = start
    for i in range(3):
        for j in range(3):
            part = padded[:, i : i + height, j : j + width]
            total += np.multiply(part, weight[:, :, i, j, None], out=product)
    return _saturate(np.floor(total, out=total))


def _shuffle(x: Floats) -> Floats:
    channels, height, width = x.shape
    cells = x.reshape(channels // 4, 2, 2, height, width).transpose(0, 3, 1, 4, 2)
    return cells.reshape(channels // 4, 2 * height, 2 * width)
