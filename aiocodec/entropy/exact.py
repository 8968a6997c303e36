"""A frozen entropy model, executed in integers by torch: bit-identical on every machine.

Any device, thread count, memory layout or library gives the same bits, so a decoder anywhere derives
the encoder's tables. Integers are held in float64 tensors: a sum of integers in float64 is exact in
whatever order it is taken as long as no partial sum reaches 2^53, which `Program.check` proves from
the weights.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from aiocodec.entropy import passes
from aiocodec.entropy.frozen import ACTIVATION_MAX, FrozenEntropyModel, Layers


@dataclass(frozen=True)
class Parameters:
    """What the entropy model says of the elements of y in one pass, integers in float64 tensors.

    indexes   [N, H, W], the table of every element, 0..scales - 1
    means     [N, H, W], in units of 1 / Program.symbol_unit symbols, -32767..32767
    """

    indexes: Tensor
    means: Tensor


class ExactEntropyModel(nn.Module):
    """What encoder and decoder derive from the symbols they have; see frozen.py for the arithmetic."""

    def __init__(self, frozen: FrozenEntropyModel) -> None:
        super().__init__()
        self.frozen, self.program = frozen, frozen.program
        self.networks = nn.ModuleDict(
            {name: _integer(layers, frozen) for name, layers in frozen.program.networks.items()}
        )
        self.passes = passes.count(frozen.program.order)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.buffers()).device

    @torch.no_grad()
    def features(self, z_hat: Tensor, quality: int) -> Tensor:
        """Integer z_hat [Z, h, w] in -z_max..z_max, of a picture coded at a quality 0..100, to the
        features [3 N, 4 h, 4 w] of all passes."""
        told = torch.from_numpy(self.frozen.embedding(quality)).to(z_hat.device).double()
        x = _saturate(z_hat.double() * 2**self.program.fraction + told[:, None, None])
        out: Tensor = self.networks["fusion"](self.networks["h_s"](x))
        return out

    def steps(self, features: Tensor) -> Tensor:
        """The quantisation step of every element of y, float32 [N, H, W]."""
        unit, most = 2**self.program.fraction, self.program.step_bits
        log_step = features[: self.program.latents].clamp(-most * unit, most * unit)
        return torch.exp2(log_step / unit).float()

    def when(self, height: int, width: int) -> Tensor:
        """The pass that codes each element, int8 [N, H, W], of a y (or a part that begins at an even
        row and column) of this height and width."""
        turns = passes.when(self.program.order, (self.program.latents, height, width))
        return torch.from_numpy(turns).to(self.device)

    @torch.no_grad()
    def predict(self, k: int, features: Tensor, v_hat: Tensor) -> Parameters:
        """Parameters for pass k, of which only those under its mask mean anything. `v_hat` [N, H, W]
        is (symbols + mean) of the passes before it in units of 1 / symbol_unit, and 0 elsewhere."""
        program = self.program
        _, index, mean = features.chunk(3)
        if k > 0:
            context = torch.cat([_saturate(v_hat.clone()), features])
            hidden = self.networks["body"](self.networks[f"adaptor_{k}"](context))
            more_index, more_mean = self.networks["head"](hidden).chunk(2)
            index, mean = _saturate(index + more_index), _saturate(mean + more_mean)
        scaled = torch.floor(index * (program.index_unit / 2**program.fraction) + 0.5)
        return Parameters((scaled + program.scale_zero).clamp(0, program.scales - 1), mean)


def _saturate(x: Tensor) -> Tensor:
    return x.clamp_(-ACTIVATION_MAX, ACTIVATION_MAX)


class IntegerConv(nn.Module):
    """A 1x1 or a 3x3 depth-wise convolution of integers held in float64: weight [O, I, 1, 1] or
    [O, 1, 3, 3], bias [O], exponent [O] of the power of two by which the sum is divided."""

    def __init__(
        self, weight: NDArray[np.int16], bias: NDArray[np.int64], exponent: NDArray[np.int16]
    ) -> None:
        super().__init__()
        # The division is a power of two, so it changes no bit to do it before the sum, nor to begin
        # the sum with the bias and the half of the rounding.
        scale = np.exp2(-exponent.astype(np.float64))
        self.register_buffer("weight", torch.from_numpy(weight * scale[:, None, None, None]))
        self.register_buffer("start", torch.from_numpy(bias * scale + 0.5)[:, None])
        self.weight: Tensor
        self.start: Tensor

    def forward(self, x: Tensor) -> Tensor:
        c, h, w = x.shape
        if self.weight.shape[-1] == 1:
            total = torch.addmm(self.start, self.weight[:, :, 0, 0], x.reshape(c, h * w))
            total = total.view(-1, h, w)
        else:  # nine shifted products; float64 has no fast depth-wise convolution
            x = F.pad(x, (1, 1, 1, 1))
            total = self.start[:, :, None].repeat(1, h, w)
            for i in range(3):
                for j in range(3):
                    total.addcmul_(self.weight[:, :, i, j, None], x[:, i : i + h, j : j + w])
        return _saturate(total.floor_())


class IntegerLeakyReLU(nn.Module):
    """max(x, floor(x / 8 + 1/2)), which is the leaky ReLU of slope 1/8, rounded."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.tensor(0.5, dtype=torch.float64))
        self.offset: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, torch.add(self.offset, x, alpha=0.125).floor_())


class IntegerResidual(nn.Module):
    """x + body(x), saturating."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return _saturate(x + self.body(x))


def _integer(layers: Layers, frozen: FrozenEntropyModel) -> nn.Sequential:
    """A network of the program as a module."""

    def module(kind: str, *rest: object) -> nn.Module:
        match kind:
            case "conv1x1" | "dw3x3":
                parts = ("weight", "bias", "exponent")
                return IntegerConv(*(frozen.tensors[f"{rest[0]}.{part}"] for part in parts))
            case "leaky":
                return IntegerLeakyReLU()
            case "residual":
                return IntegerResidual(_integer(rest[0], frozen))  # type: ignore[arg-type]
            case _:
                return nn.PixelShuffle(2)

    return nn.Sequential(*(module(*layer) for layer in layers))
