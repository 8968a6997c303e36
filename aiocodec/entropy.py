"""The entropy model: quantisation, likelihoods for training, freezing, exact integer execution.

Every element of the latent y [N, H/16, W/16] is quantised with a step and coded with a density
whose mean and scale come from what the decoder has already (the dual spatial prior, paper
section 3.2):

    z_hat = round(h_a(y))                            coded with a factorised prior
    step, index, mean = fusion(h_s(z_hat))           for all of y
    symbols = round(y / step - mean)                 first half: a checkerboard
    index, mean += spatial_prior(first half, ...)    for the second half, which is coded next
    y_hat = (symbols + mean) * step

The density is a mixture of two Gaussians of one mean, the wider one for the outliers. Their weights
and the ratio of their widths are learned and the same everywhere, so a table is still chosen by its
scale alone. A single Gaussian, the paper's choice, spent 10 % more bits on the same symbols early in
training: real residuals have heavy tails.

`EntropyModel` does this in floating point and is trained. `freeze` turns its weights into integers,
and `ExactEntropyModel` runs these: any device, thread count, memory layout or library gives the
same bits, so a decoder anywhere derives the encoder's tables. The two share one definition of the
networks, made of four kinds of layers that mean the same in both arithmetics:

    number        float                          integer
    activation    -128 .. 128                    -32767 .. 32767 in units of 2^-8, saturating
    1x1, 3x3 dw   conv + bias                    int16 weights, one power of two per output channel,
                                                 floor(sum * 2^-e + 1/2)
    LeakyReLU     max(x, x / 8)                  max(x, floor(x / 8 + 1/2))
    residual      x + f(x)                       the same, saturating

Integers are held in float64 tensors. A sum of integers in float64 is exact in whatever order it is
taken as long as no partial sum reaches 2^53, which `IntegerConv` proves from its weights.
"""

import copy
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from aiocodec.errors import ModelError
from aiocodec.layers import depthwise, pointwise

SCALES = 64  # tables for y; the scale of index i is 2 ** ((i - SCALE_ZERO) / SCALE_OCTAVE)
SCALE_ZERO = 28
SCALE_OCTAVE = 6
INDEX_UNIT = 8  # indexes per unit of network output
MEAN_UNIT = 2  # symbols per unit of network output; and of network input, where y_hat goes back in
FRACTION = 8  # fractional bits of an activation
ACTIVATION_MAX = 32767
WEIGHT_MAX = 32767
STEP_BITS = 4.0  # log2(step) stays within +-4
Z_MAX = 127  # |z_hat|; what an activation can hold

MIN_LIKELIHOOD = 2.0**-24  # the least that a table can give
TAIL_WEIGHT, TAIL_RATIO = 0.15, 3.0  # of the wide Gaussian, before training


def scale_values() -> NDArray[np.float64]:
    """The scales of the tables for y, [64], from 0.039 to 57, six per octave."""
    return np.exp2((np.arange(SCALES) - SCALE_ZERO) / SCALE_OCTAVE)


def checkerboard(
    shape: tuple[int, int, int] | torch.Size, device: torch.device | None = None
) -> Tensor:
    """bool of a shape [channels, height, width], true where the first pass codes: half of the channels where
    row + column is even, the other half where it is odd."""
    channels, height, width = shape
    rows = torch.arange(height, device=device)[:, None]
    odd = ((rows + torch.arange(width, device=device)) % 2).bool()
    half = channels // 2
    return torch.cat([~odd.expand(half, -1, -1), odd.expand(channels - half, -1, -1)])


# --------------------------------------------------------------------------- networks


class LeakyReLU(nn.LeakyReLU):
    """Slope 1/8: a power of two, so that integers can follow."""

    def __init__(self) -> None:
        super().__init__(1 / 8)


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


def block(channels: int) -> nn.Sequential:
    """Depth-wise-separable block: a spatial and a channel-mixing residual branch."""
    return nn.Sequential(
        Residual(
            pointwise(channels, channels, bias=True),
            LeakyReLU(),
            depthwise(channels, 3, bias=True),
            LeakyReLU(),
            pointwise(channels, channels, bias=True),
        ),
        Residual(
            pointwise(channels, 2 * channels, bias=True),
            LeakyReLU(),
            pointwise(2 * channels, channels, bias=True),
        ),
    )


def down(inputs: int, outputs: int) -> nn.Sequential:
    """To half the resolution."""
    return nn.Sequential(nn.PixelUnshuffle(2), pointwise(4 * inputs, outputs, bias=True))


def up(inputs: int, outputs: int) -> nn.Sequential:
    """To twice the resolution."""
    return nn.Sequential(pointwise(inputs, 4 * outputs, bias=True), nn.PixelShuffle(2))


# --------------------------------------------------------------------------- training


class _Clamp(torch.autograd.Function):
    """clamp(x, low, high); outside, only gradients pass whose descent leads back inside. (With the
    gradient of the identity, values that are pushed outwards drift away for ever.)"""

    @staticmethod
    def forward(ctx, x: Tensor, low: float, high: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        ctx.low, ctx.high = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return grad * torch.where(grad < 0, x <= ctx.high, x >= ctx.low), None, None


def _clamp(x: Tensor, low: float, high: float) -> Tensor:
    return _Clamp.apply(x, low, high)  # type: ignore[no-untyped-call]


def _round(x: Tensor) -> Tensor:
    """floor(x + 1/2) with the gradient of the identity."""
    return x + ((x + 0.5).floor() - x).detach()


def _gaussian_mass(values: Tensor, scales: Tensor) -> Tensor:
    """Mass of [v - 1/2, v + 1/2], for v >= 0, under a zero-mean Gaussian."""
    upper = torch.special.ndtr((0.5 - values) / scales)
    return upper - torch.special.ndtr((-0.5 - values) / scales)


class FactorisedPrior(nn.Module):
    """A learned density per channel of z, the same everywhere in the image: the cumulative is a
    monotone network with three hidden layers of three units (Balle et al. 2018, section 6.1)."""

    def __init__(
        self, channels: int, hidden: tuple[int, ...] = (3, 3, 3), scale: float = 10.0
    ) -> None:
        super().__init__()
        sizes = (1, *hidden, 1)
        growth = scale ** (1 / (len(sizes) - 1))
        self.matrices = nn.ParameterList(
            torch.full((channels, m, n), math.log(math.expm1(1 / growth / m)))
            for n, m in zip(sizes, sizes[1:], strict=False)
        )
        self.biases = nn.ParameterList(
            torch.empty(channels, m, 1).uniform_(-0.5, 0.5) for m in sizes[1:]
        )
        self.factors = nn.ParameterList(torch.zeros(channels, m, 1) for m in hidden)

    def _logits(self, values: Tensor) -> Tensor:
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            values = F.softplus(matrix) @ values + bias
            if i < len(self.factors):
                values = values + torch.tanh(self.factors[i]) * torch.tanh(values)
        return values

    def forward(self, z: Tensor) -> Tensor:
        """Likelihoods of z [B, Z, h, w], of the same shape."""
        values = z.transpose(0, 1).reshape(z.shape[1], 1, -1)
        lower, upper = self._logits(values - 0.5), self._logits(values + 0.5)
        sign = -torch.sign(lower + upper).detach()
        likelihood = (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()
        likelihood = _clamp(likelihood, MIN_LIKELIHOOD, 1.0)
        return likelihood.reshape(z.shape[1], z.shape[0], *z.shape[2:]).transpose(0, 1)

    @torch.no_grad()
    def pmf(self) -> NDArray[np.float64]:
        """Probabilities of -127 .. 127 in every channel, [Z, 255]."""
        values = torch.arange(-Z_MAX, Z_MAX + 1, dtype=torch.float64)
        logits = copy.deepcopy(self).double()._logits
        values = values.expand(self.matrices[0].shape[0], 1, -1)
        lower, upper = logits(values - 0.5), logits(values + 0.5)
        sign = -torch.sign(lower + upper)
        mass = (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()
        return mass[:, 0].numpy()


class EntropyModel(nn.Module):
    """The networks and densities that a decoder needs to get from symbols to y_hat, trainable.

    `latents` is N, the channels of y (even); `hyper` is Z, those of z; `width` that of the networks.
    """

    def __init__(self, latents: int, hyper: int, width: int) -> None:
        super().__init__()
        self.latents, self.hyper, self.width = latents, hyper, width
        self.h_s = nn.Sequential(
            up(hyper, hyper),
            block(hyper),
            up(hyper, hyper),
            block(hyper),
            pointwise(hyper, width, bias=True),
        )
        self.fusion = nn.Sequential(
            block(width), block(width), pointwise(width, 3 * latents, bias=True)
        )
        self.spatial_prior = nn.Sequential(
            pointwise(4 * latents, width, bias=True),
            block(width),
            block(width),
            pointwise(width, 2 * latents, bias=True),
        )
        self.prior_z = FactorisedPrior(hyper)
        # the shape of all tables for y: log-odds of the wide Gaussian, log of its relative width
        logit = math.log(TAIL_WEIGHT / (1 - TAIL_WEIGHT))
        self.tail = nn.Parameter(torch.tensor([logit, math.log(TAIL_RATIO)]))
        for _, head in list(self.fusion.named_parameters())[-2:]:
            nn.init.zeros_(head)
        for _, head in list(self.spatial_prior.named_parameters())[-2:]:
            nn.init.zeros_(head)

    def forward(self, y: Tensor, z: Tensor, noise: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Latents y [B, N, H, W] and z [B, Z, H/4, W/4] to y_hat and the likelihoods of y and z.

        With `noise` the likelihoods are those of y and z plus uniform noise, the differentiable
        stand-in for rounding; y_hat is always rounded, with the gradient of the identity.
        """
        z_hat = _clamp(_round(z), -Z_MAX, Z_MAX)
        likelihoods_z = self.prior_z(z + torch.rand_like(z) - 0.5 if noise else z_hat)

        params = self.fusion(self.h_s(z_hat))
        log_step, index, mean = params.chunk(3, dim=1)
        step = torch.exp2(_clamp(log_step, -STEP_BITS, STEP_BITS))
        v = y / step
        first = checkerboard(y.shape[1:], y.device)

        v_hat = _round(v - MEAN_UNIT * mean) + MEAN_UNIT * mean
        context = torch.cat([torch.where(first, v_hat / MEAN_UNIT, 0), params], dim=1)
        index_2, mean_2 = self.spatial_prior(context).chunk(2, dim=1)
        index, mean = (
            torch.where(first, index, index + index_2),
            torch.where(first, mean, mean + mean_2),
        )

        residual = v - MEAN_UNIT * mean
        symbols = _round(residual)
        index = _clamp(SCALE_ZERO + INDEX_UNIT * index, 0, SCALES - 1)
        scales = torch.exp2((index - SCALE_ZERO) / SCALE_OCTAVE)
        noisy = residual + torch.rand_like(y) - 0.5 if noise else symbols
        likelihoods_y = self.likelihood(noisy, scales)
        y_hat = (symbols + MEAN_UNIT * mean) * step
        return y_hat, likelihoods_y, likelihoods_z

    def likelihood(self, values: Tensor, scales: Tensor) -> Tensor:
        """Mass of [v - 1/2, v + 1/2] under the scale mixture (1 - w) N(0, s) + w N(0, r s)."""
        weight, ratio = self.tail[0].sigmoid(), self.tail[1].exp()
        values = values.abs()
        narrow, wide = _gaussian_mass(values, scales), _gaussian_mass(values, ratio * scales)
        return _clamp(torch.lerp(narrow, wide, weight), MIN_LIKELIHOOD, 1.0)

    @property
    def tail_shape(self) -> tuple[float, float]:
        """The weight and the relative width of the wide Gaussian, w and r."""
        logit, log_ratio = self.tail.detach().double()
        return logit.sigmoid().item(), log_ratio.exp().item()


# --------------------------------------------------------------------------- exact integers


def _saturate(x: Tensor) -> Tensor:
    return x.clamp_(-ACTIVATION_MAX, ACTIVATION_MAX)


class IntegerConv(nn.Module):
    """A 1x1 or a 3x3 depth-wise convolution of integers held in float64.

    weight    int16 [O, I, 1, 1] or [O, 1, 3, 3]
    bias      int64 [O], in units of 2^-(8 + exponent)
    exponent  int16 [O], of the power of two by which the sum is divided
    """

    def __init__(self, weight: Tensor, bias: Tensor, exponent: Tensor) -> None:
        super().__init__()
        bound = weight.long().abs().flatten(1).sum(1) * ACTIVATION_MAX + bias.abs()
        # invariant: every partial sum, in any order, is an integer below 2^52, and so is the sum
        # after the half is added; float64 holds these exactly
        if int(bound.max()) >= 2**52:
            raise ModelError("weights too large for exact arithmetic")
        self.register_buffer("weight", weight.double())
        self.register_buffer("bias", bias.double()[:, None, None])
        self.register_buffer("divisor", torch.exp2(-exponent.double())[:, None, None])
        self.weight: Tensor
        self.bias: Tensor
        self.divisor: Tensor

    @staticmethod
    def quantise(conv: nn.Conv2d) -> dict[str, Tensor]:
        """The integers for a trained convolution: weights use all of int16 in every channel."""
        assert conv.bias is not None
        weight, bias = conv.weight.detach().double(), conv.bias.detach().double()
        largest = weight.abs().flatten(1).amax(1).clamp_min(2.0**-10)
        exponent = torch.floor(torch.log2(WEIGHT_MAX / largest))
        scale = torch.exp2(exponent)
        return {
            "weight": (weight * scale[:, None, None, None]).round().to(torch.int16),
            "bias": (bias * scale * 2**FRACTION).round().long(),
            "exponent": exponent.to(torch.int16),
        }

    @staticmethod
    def dequantise(tensors: Mapping[str, Tensor], conv: nn.Conv2d) -> None:
        """The inverse of `quantise`, up to its rounding: sets the weights of `conv`."""
        scale = torch.exp2(-tensors["exponent"].double())
        with torch.no_grad():
            conv.weight.copy_(tensors["weight"] * scale[:, None, None, None])
            assert conv.bias is not None
            conv.bias.copy_(tensors["bias"] * scale / 2**FRACTION)

    def forward(self, x: Tensor) -> Tensor:
        c, h, w = x.shape
        if self.weight.shape[-1] == 1:
            total = (self.weight[:, :, 0, 0] @ x.reshape(c, h * w)).view(-1, h, w)
        else:  # nine shifted products; float64 has no fast depth-wise convolution
            x = F.pad(x, (1, 1, 1, 1))
            total = x.new_zeros(c, h, w)
            for i in range(3):
                for j in range(3):
                    total.addcmul_(self.weight[:, :, i, j, None], x[:, i : i + h, j : j + w])
        return _saturate(total.add_(self.bias).mul_(self.divisor).add_(0.5).floor_())


class IntegerLeakyReLU(nn.Module):
    """max(x, floor(x / 8 + 1/2)), which is the leaky ReLU of slope 1/8, rounded."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, (x * 0.125).add_(0.5).floor_())


class IntegerResidual(nn.Module):
    """x + body(x), saturating."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return _saturate(x + self.body(x))


def _integer(layer: nn.Module, tensors: Mapping[str, Tensor], name: str) -> nn.Module:
    """The integer counterpart of a layer of the network above, recursively."""
    match layer:
        case nn.Conv2d():
            return IntegerConv(
                *(tensors[f"{name}.{part}"] for part in ("weight", "bias", "exponent"))
            )
        case nn.LeakyReLU():
            return IntegerLeakyReLU()
        case Residual():
            return IntegerResidual(_integer(layer.body, tensors, f"{name}.body"))
        case nn.Sequential():
            return nn.Sequential(
                *(
                    _integer(child, tensors, f"{name}.{key}")
                    for key, child in layer.named_children()
                )
            )
        case nn.PixelShuffle():
            return nn.PixelShuffle(layer.upscale_factor)
        case _:
            raise TypeError(f"{type(layer).__name__} has no integer counterpart")


NETWORKS = ("h_s", "fusion", "spatial_prior")


@dataclass(frozen=True)
class FrozenEntropyModel:
    """An entropy model as integers: what files depend on, what is shipped, what is fingerprinted.

    tensors   of every convolution `<network>.<path>.weight|bias|exponent` (see IntegerConv), and
              the frequency tables `tables_y.*` and `tables_z.*` as int32: `frequencies` (every table
              one behind the other), `lengths` and `lows` (see rangecoder.Tables)
    """

    latents: int
    hyper: int
    width: int
    tensors: Mapping[str, Tensor]

    @property
    def fingerprint(self) -> bytes:
        """8 bytes: SHA-256 over the sorted tensors, their names, types and shapes."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            array = np.ascontiguousarray(self.tensors[name].numpy())
            array = array.astype(array.dtype.newbyteorder("<"))
            digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
            digest.update(array.tobytes())
        return digest.digest()[:8]

    def tables(self, which: str) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """frequencies, lengths, lows of the tables for "y" (by scale index) or "z" (by channel)."""
        parts = ("frequencies", "lengths", "lows")
        a, b, c = (self.tensors[f"tables_{which}.{part}"].numpy() for part in parts)
        return a, b, c

    def thaw(self) -> EntropyModel:
        """The trainable model with these weights; its factorised prior is a fresh one, which the
        caller loads from where it was kept."""
        model = EntropyModel(self.latents, self.hyper, self.width)
        for name, conv in _convolutions(model):
            parts = ("weight", "bias", "exponent")
            IntegerConv.dequantise({part: self.tensors[f"{name}.{part}"] for part in parts}, conv)
        return model


def _convolutions(model: EntropyModel) -> list[tuple[str, nn.Conv2d]]:
    return [
        (f"{network}.{name}", layer)
        for network in NETWORKS
        for name, layer in getattr(model, network).named_modules()
        if isinstance(layer, nn.Conv2d)
    ]


def freeze(
    model: EntropyModel,
    tables_y: tuple[NDArray[np.int32], ...],
    tables_z: tuple[NDArray[np.int32], ...],
) -> FrozenEntropyModel:
    """Turn a trained entropy model into integers; the tables are made by the caller from
    `scale_values`, `EntropyModel.tail_shape` and `FactorisedPrior.pmf`."""
    tensors: dict[str, Tensor] = {}
    for name, conv in _convolutions(model):
        for part, tensor in IntegerConv.quantise(conv).items():
            tensors[f"{name}.{part}"] = tensor.cpu().contiguous()
    for which, tables in (("y", tables_y), ("z", tables_z)):
        for part, array in zip(("frequencies", "lengths", "lows"), tables, strict=True):
            tensors[f"tables_{which}.{part}"] = torch.from_numpy(array.astype(np.int32))
    return FrozenEntropyModel(model.latents, model.hyper, model.width, tensors)


@dataclass(frozen=True)
class Parameters:
    """What the entropy model says of the elements of y in one pass, integers in float64 tensors.

    indexes   0..63, the table of every element
    means     in units of 2^-7 symbols, -32767..32767
    """

    indexes: Tensor
    means: Tensor


class ExactEntropyModel(nn.Module):
    """A frozen entropy model, executed in integers: bit-identical on every machine."""

    def __init__(self, frozen: FrozenEntropyModel) -> None:
        super().__init__()
        self.latents = frozen.latents
        with torch.device("meta"):
            layout = EntropyModel(frozen.latents, frozen.hyper, frozen.width)
        self.h_s, self.fusion, self.spatial_prior = (
            _integer(getattr(layout, name), frozen.tensors, name) for name in NETWORKS
        )

    @torch.no_grad()
    def hyper(self, z_hat: Tensor) -> Tensor:
        """Integer z_hat [Z, h, w] in -127..127 to the features [3 N, 4 h, 4 w] of the first pass."""
        features: Tensor = self.fusion(self.h_s(z_hat.double() * 2**FRACTION))
        return features

    def steps(self, features: Tensor) -> Tensor:
        """The quantisation step of every element of y, float32 [N, H, W] in 1/16..16."""
        log_step = features[: self.latents].clamp(-STEP_BITS * 2**FRACTION, STEP_BITS * 2**FRACTION)
        return torch.exp2(log_step / 2**FRACTION).float()

    def first(self, features: Tensor) -> Parameters:
        """Parameters for the first pass, from `hyper`'s features."""
        _, index, mean = features.chunk(3)
        return self._fixed(index, mean)

    @torch.no_grad()
    def second(self, features: Tensor, v_hat: Tensor) -> Parameters:
        """Parameters for the second pass: `v_hat` [N, H, W] is (symbols + mean) of the first one in
        units of 2^-7, and 0 where the second one will code."""
        index_2, mean_2 = self.spatial_prior(torch.cat([_saturate(v_hat.clone()), features])).chunk(
            2
        )
        _, index, mean = features.chunk(3)
        return self._fixed(_saturate(index + index_2), _saturate(mean + mean_2))

    @staticmethod
    def _fixed(index: Tensor, mean: Tensor) -> Parameters:
        scaled = torch.floor(index * (INDEX_UNIT / 2**FRACTION) + 0.5) + SCALE_ZERO
        return Parameters(indexes=scaled.clamp(0, SCALES - 1), means=mean)


SYMBOL_UNIT = 2**FRACTION // MEAN_UNIT  # one symbol, in the units of Parameters.means
