"""The entropy model in floating point, to be trained: quantisation and likelihoods.

Every element of the latent y [N, H/16, W/16] is quantised with a step and coded with a density
whose mean and scale come from what the decoder has already (after the dual spatial prior, paper
section 3.2, and the quadtree of DCVC-DC):

    z_hat = round(h_a(y))                            coded with a factorised prior
    step, index, mean = fusion(h_s(z_hat))           for all of y
    for every pass (passes.py), with what the passes before it have coded:
        index, mean += head(body(adaptor(v_hat, ...)))
        v_hat = round(y / step - mean) + mean        where the pass codes; the rounded are the symbols
    y_hat = v_hat * step

The density is a mixture of two Gaussians of one mean, the wider one for the outliers. Their weights
and the ratio of their widths are learned and the same everywhere, so a table is still chosen by its
scale alone. A single Gaussian, the paper's choice, spent 10 % more bits on the same symbols early in
training: real residuals have heavy tails.

The quality, which a decoder knows for free, moves and widens the densities of z and is added to z_hat
before h_s. Both take it in steps (`EntropyConfig.quality_levels`), so that integers can follow.

The networks are made of five kinds of layers that mean the same in floating point and in the integers
that files depend on: see frozen.py.
"""

import copy
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from aiocodec.config import EntropyConfig
from aiocodec.entropy import passes
from aiocodec.layers import QualityCurve, in_float32, no_autocast, pointwise, separable, up

SCALES = 64  # tables for y; the scale of index i is 2 ** ((i - SCALE_ZERO) / SCALE_OCTAVE)
SCALE_ZERO = 28
SCALE_OCTAVE = 6
INDEX_UNIT = 8  # indexes per unit of network output
MEAN_UNIT = 2  # symbols per unit of network output; and of network input, where v_hat goes back in
STEP_BITS = 4  # log2(step) stays within +-4
Z_MAX = 127  # |z_hat|; what an activation can hold

MIN_LIKELIHOOD = 2.0**-24  # the least that a table can give
TAIL_WEIGHT, TAIL_RATIO = 0.15, 3.0  # of the wide Gaussian, before training


def scale_values() -> NDArray[np.float64]:
    """The scales of the tables for y, [64], from 0.039 to 57, six per octave."""
    return np.exp2((np.arange(SCALES) - SCALE_ZERO) / SCALE_OCTAVE)


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


def _noisy(x: Tensor, noise: bool | torch.Generator) -> Tensor:
    """x plus uniform noise in -1/2..1/2, of a generator or torch's own."""
    generator = noise if isinstance(noise, torch.Generator) else None
    return x + torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype) - 0.5


def _gaussian_mass(values: Tensor, scales: Tensor) -> Tensor:
    """Mass of [v - 1/2, v + 1/2], for v >= 0, under a zero-mean Gaussian."""
    upper = torch.special.ndtr((0.5 - values) / scales)
    return upper - torch.special.ndtr((-0.5 - values) / scales)


class FactorisedPrior(nn.Module):
    """A learned density per channel of z, the same everywhere in the image: the cumulative is a
    monotone network with three hidden layers of three units (Balle et al. 2018, section 6.1). With
    `by_quality` the density is moved and widened by the quality."""

    def __init__(
        self,
        channels: int,
        by_quality: bool = False,
        hidden: tuple[int, ...] = (3, 3, 3),
        scale: float = 10.0,
    ) -> None:
        super().__init__()
        self.log_width = QualityCurve(channels) if by_quality else None
        self.centre = QualityCurve(channels) if by_quality else None
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

    def _cumulatives(self, z: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the cumulative at z - 1/2 and z + 1/2, [Z, 1, B * h * w] for z [B, Z, h, w]."""
        lower, upper = z - 0.5, z + 0.5
        if self.log_width is not None and self.centre is not None:
            narrowed, centre = torch.exp(-self.log_width(quality)), self.centre(quality)
            lower, upper = (lower - centre) * narrowed, (upper - centre) * narrowed
        by_channel = (t.transpose(0, 1).reshape(z.shape[1], 1, -1) for t in (lower, upper))
        first, second = (self._logits(values) for values in by_channel)
        return first, second

    def forward(self, z: Tensor, quality: Tensor) -> Tensor:
        """Likelihoods of z [B, Z, h, w], of the same shape; quality [B] in 0..100."""
        with no_autocast(z):
            likelihood = _clamp(_mass(*self._cumulatives(z, quality)), MIN_LIKELIHOOD, 1.0)
        return likelihood.reshape(z.shape[1], z.shape[0], *z.shape[2:]).transpose(0, 1)

    @torch.no_grad()
    def pmf(self, quality: float) -> NDArray[np.float64]:
        """Probabilities of -127 .. 127 in every channel at a quality, [Z, 255]."""
        prior = copy.deepcopy(self).double().cpu()
        values = torch.arange(-Z_MAX, Z_MAX + 1, dtype=torch.float64)
        z = values.expand(1, self.matrices[0].shape[0], 1, -1)
        at = torch.tensor([quality], dtype=torch.float64)
        return _mass(*prior._cumulatives(z, at))[:, 0].numpy()


def _mass(lower: Tensor, upper: Tensor) -> Tensor:
    """sigmoid(upper) - sigmoid(lower), accurate in both tails."""
    sign = -torch.sign(lower + upper).detach()
    return (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()


class EntropyModel(nn.Module):
    """The networks and densities that a decoder needs to get from symbols to y_hat, trainable."""

    turns: Tensor

    def __init__(self, config: EntropyConfig) -> None:
        super().__init__()
        self.config = config
        n, z, width = config.latents, config.hyper, config.width
        self.h_s = nn.Sequential(
            up(z, z), separable(z), up(z, z), separable(z), pointwise(z, width, bias=True)
        )
        self.fusion = nn.Sequential(
            separable(width), separable(width), _zeroed(pointwise(width, 3 * n, bias=True))
        )
        self.adaptors = nn.ModuleList(
            pointwise(4 * n, width, bias=True) for _ in range(1, passes.count(config.order))
        )
        self.body = nn.Sequential(separable(width), separable(width))
        self.head = _zeroed(pointwise(width, 2 * n, bias=True))
        self.register_buffer("turns", torch.tensor(config.order), persistent=False)
        by_quality = config.quality_levels > 1
        self.prior_z = FactorisedPrior(z, by_quality)
        self.embedding = QualityCurve(z) if by_quality else None
        # the shape of all tables for y: log-odds of the wide Gaussian, log of its relative width
        logit = math.log(TAIL_WEIGHT / (1 - TAIL_WEIGHT))
        self.tail = nn.Parameter(torch.tensor([logit, math.log(TAIL_RATIO)]))

    def forward(
        self, y: Tensor, z: Tensor, quality: Tensor, noise: bool | torch.Generator = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Latents y [B, N, H, W] and z [B, Z, H/4, W/4] to y_hat and the likelihoods of y and z;
        quality [B] in 0..100.

        With `noise`, torch's own or that of a generator, the likelihoods are those of y and z plus
        uniform noise, the differentiable stand-in for rounding; y_hat is always rounded, with the
        gradient of the identity.
        """
        quality = quality_of_level(level_of_quality(quality, self.config), self.config)
        z_hat = _clamp(_round(z), -Z_MAX, Z_MAX)
        likelihoods_z = self.prior_z(_noisy(z, noise) if noise else z_hat, quality)
        params = self.params(z_hat, quality)
        step = self.step(params)
        v_hat, likelihoods_y = self.code(y / step, params, noise)
        return v_hat * step, likelihoods_y, likelihoods_z

    def params(self, z_hat: Tensor, quality: Tensor) -> Tensor:
        """What the decoder learns from z_hat [B, Z, H/4, W/4] for every element of y: logarithm of the
        step, index and mean, [B, 3 N, H, W]; quality [B], one of those that levels stand for."""
        *inner, last = self.fusion
        features = self.h_s(self.told(z_hat, quality))
        for layer in inner:
            features = layer(features)
        return in_float32(last, features)

    def step(self, params: Tensor) -> Tensor:
        """The step of every element of y, [B, N, H, W], out of `params`."""
        return torch.exp2(_clamp(params.chunk(3, dim=1)[0], -STEP_BITS, STEP_BITS))

    def code(
        self, v: Tensor, params: Tensor, noise: bool | torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """v = y / step to v_hat and its likelihoods, all of them [B, N, H, W], in all passes."""
        _, index, mean = params.chunk(3, dim=1)
        v_hat = torch.zeros_like(v)
        scale_index, means = index, mean
        for k, mask in enumerate(self.masks(v)):
            if k > 0:
                more = self.refine(k, v_hat, params)
                scale_index, means = (
                    torch.where(mask, first + refined, known)
                    for first, refined, known in zip(
                        (index, mean), more, (scale_index, means), strict=True
                    )
                )
            rounded = _round(v - MEAN_UNIT * means) + MEAN_UNIT * means
            v_hat = torch.where(mask, rounded, v_hat)

        residual = v - MEAN_UNIT * means
        symbols = _round(residual)
        scale_index = _clamp(SCALE_ZERO + INDEX_UNIT * scale_index, 0, SCALES - 1)
        scales = torch.exp2((scale_index - SCALE_ZERO) / SCALE_OCTAVE)
        values = _noisy(residual, noise) if noise else symbols
        return v_hat, self.likelihood(values, scales)

    def told(self, z_hat: Tensor, quality: Tensor) -> Tensor:
        """z_hat with what the quality says of it, the input of h_s."""
        return z_hat if self.embedding is None else z_hat + self.embedding(quality)

    def refine(self, k: int, v_hat: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """What pass k >= 1 adds to index and mean, from v_hat (0 where nothing is coded yet)."""
        context = torch.cat([v_hat / MEAN_UNIT, params], dim=1)
        features = self.body(self.adaptors[k - 1](context))
        index, mean = in_float32(self.head, features).chunk(2, dim=1)
        return index, mean

    def masks(self, y: Tensor) -> Tensor:
        """Where each pass codes, bool [K, N, H, W]: `passes.masks`, made on the device of y."""
        groups, (_, n, height, width) = len(self.turns), y.shape
        cells = self.turns.repeat_interleave(n // groups, 0)
        turns = cells.repeat(1, -(-height // 2), -(-width // 2))[:, :height, :width]
        ks = torch.arange(passes.count(self.config.order), device=y.device)
        return turns == ks[:, None, None, None]

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


def level_of_quality(quality: Tensor, config: EntropyConfig) -> Tensor:
    """The nearest of the levels by which z is coded, 0..quality_levels - 1."""
    return torch.floor(quality * (config.quality_levels - 1) / 100 + 0.5)


def quality_of_level(level: Tensor, config: EntropyConfig) -> Tensor:
    """The quality 0..100 that a level stands for."""
    return level * 100 / max(1, config.quality_levels - 1)


def _zeroed(conv: nn.Conv2d) -> nn.Conv2d:
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv
