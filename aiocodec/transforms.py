"""The transforms g_a, h_a and g_s (paper, figure 2a), which need not be exact.

    y = g_a(x, quality)         [B, 3, H, W] in 0..1, sides multiples of 64  ->  [B, N, H/16, W/16]
    z = h_a(y)                  [B, Z, H/64, W/64]
    x_hat = g_s(y_hat, quality)

g_a and g_s are a linear path, which begins as a lapped DCT and its inverse, and beside it a deep one,
which learns what the linear one misses. A file depends on neither: any transforms that were trained
with the same entropy model are interchangeable.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aiocodec.config import LATENT_STRIDE, LMBDA_MAX, LMBDA_MIN, ModelConfig, Stage
from aiocodec.layers import (
    BASIS_SCALE,
    BLOCKS,
    ChannelGroupAttention,
    Gain,
    LeakyReLU,
    LinearAnalysis,
    LinearSynthesis,
    Statistic,
    conv3,
    down,
    equaliser,
    frequency_basis,
    no_autocast,
    pointwise,
    reach,
    separable,
)


def _latent_gain(channels: int, sign: int) -> Gain:
    """The gain next to the latent starts where unit steps are best for an orthonormal transform:
    there step^2 = 12 * 768 / (256 * 2 ln 2 * lambda), a step of 1 / BASIS_SCALE being gain 1."""
    unit = 12 * 768 / (256 * 2 * math.log(2)) * BASIS_SCALE**2
    low, high = ((value / unit) ** (sign / 2) for value in (LMBDA_MIN, LMBDA_MAX))
    return Gain(channels, low, high)


def _blocks(stage: Stage) -> nn.Sequential:
    return nn.Sequential(*(BLOCKS[kind](stage.width) for kind in stage.blocks))


def _resample(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    """What stands before a pixel shuffle where the finest stage has `stride`: the paper's 3x3
    convolution at full resolution, else a 1x1, as the shuffle itself is of many pixels."""
    return conv3(inputs, outputs) if stride == 1 else pointwise(inputs, outputs, bias=True)


@dataclass(frozen=True, eq=False)  # torch.compile hashes one before it has its fields
class Piece:
    """A step of a deep path. Steps one behind the other are the path; each but those of attention to
    the whole picture sees no farther than `reach`, so that a part of a picture is enough for it."""

    layer: Callable[[Tensor], Tensor]  # a residual branch if `residual`
    reach: int  # how far it sees, in pixels of x
    stride: int  # pixels of x per position of what it gives, per side
    residual: bool = False

    @property
    def attention(self) -> tuple[nn.Module, ChannelGroupAttention] | None:
        """The norm and the attention that a step is, if it is one."""
        if isinstance(self.layer, nn.Sequential):
            last = self.layer[-1]
            if isinstance(last, ChannelGroupAttention):
                return self.layer[0], last
        return None

    def __call__(self, x: Tensor, statistic: Statistic | None = None) -> Tensor:
        """[B, C, h, w] -> [B, D, h', w']; `statistic` is that of the picture, for attention in a part
        of it."""
        if statistic is not None and self.attention is not None:
            norm, attention = self.attention
            return x + attention(norm(x), statistic)
        return x + self.layer(x) if self.residual else self.layer(x)


def _branches(stage: nn.Module, stride: int) -> list[Piece]:
    return [
        Piece(branch, reach(branch) * stride, stride, residual=True)
        for block in stage.children()
        for branch in block.branches.children()  # type: ignore[union-attr]
    ]


class TwoPaths(nn.Module):
    """g_a or g_s: the sum of a linear path and of a deep one."""

    linear_reach = LATENT_STRIDE  # pixels of x that the linear path sees at most, beyond its block

    def linear_path(self, x: Tensor, quality: Tensor) -> Tensor:
        """Its share of the result."""
        raise NotImplementedError

    def pieces(self, quality: Tensor) -> list[Piece]:
        """The deep path, whose result is its share."""
        raise NotImplementedError

    def join(self, linear: Tensor, deep: Tensor) -> Tensor:
        """The result, of what both paths give."""
        return linear + deep

    def forward(self, x: Tensor, quality: Tensor) -> Tensor:
        deep = x
        for piece in self.pieces(quality):
            deep = piece(deep)
        with no_autocast(x):  # bfloat16 is too coarse for y and x_hat
            return self.join(self.linear_path(x, quality), deep.float())


class Analysis(TwoPaths):
    """g_a: x and quality to y."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        stages, n = config.analysis, config.entropy.latents
        self.stride, self.gain_at = stages[0].stride, _gain_at(stages, config)
        self.stem = _resample(3 * self.stride**2, stages[0].width, self.stride)
        self.stages = nn.ModuleList(map(_blocks, stages))
        self.downs = nn.ModuleList(
            nn.Sequential(conv3(a.width, b.width // 4), nn.PixelUnshuffle(2))
            for a, b in zip(stages, stages[1:], strict=False)
        )
        self.gain = Gain(stages[self.gain_at].width)
        self.head = conv3(stages[-1].width, n, stride=LATENT_STRIDE // stages[-1].stride)
        self.head_gain = _latent_gain(n, 1)
        self.gate = conv3(stages[-1].width, n, stride=self.head.stride[0]) if config.gated else None
        self.linear = LinearAnalysis(n, config.lapped)
        self.linear_gain = _latent_gain(n, 1)
        with torch.no_grad():
            self.head.weight *= 0.1
            if self.gate is not None:
                for parameter in self.gate.parameters():
                    parameter.zero_()
            if self.stride > 1:
                known = min(stages[0].width, 3 * self.stride**2)
                basis = frequency_basis(known, self.stride)
                basis = basis * equaliser(known, self.stride)[:, None]
                self.stem.weight[:known] = basis[:, :, None, None]

    def linear_path(self, x: Tensor, quality: Tensor) -> Tensor:
        y: Tensor = self.linear_gain(self.linear(x - 0.5), quality)
        return y

    def join(self, linear: Tensor, deep: Tensor) -> Tensor:
        """The linear path passes a gate, 0..2 and 1 before training, which the deep one controls: the
        highest frequencies of a picture with noise are more noise than picture, and few of them
        are left among the features that could cancel it."""
        if self.gate is None:
            return linear + deep
        deep, opened = deep.chunk(2, dim=1)
        return linear * (2 * opened.sigmoid()) + deep

    def pieces(self, quality: Tensor) -> list[Piece]:
        def enter(x: Tensor) -> Tensor:
            features: Tensor = self.stem(F.pixel_unshuffle(x - 0.5, self.stride))
            return features

        def leave(features: Tensor) -> Tensor:
            deep = self.head(features)
            with no_autocast(features):
                y: Tensor = self.head_gain(deep.float(), quality)
            return y if self.gate is None else torch.cat([y, self.gate(features).float()], dim=1)

        pieces, stride = [Piece(enter, reach(self.stem) * self.stride, self.stride)], self.stride
        for i, stage in enumerate(self.stages):
            if i > 0:
                seen, stride = reach(self.downs[i - 1]) * stride, stride * 2
                pieces.append(Piece(self.downs[i - 1], seen, stride))
            if i == self.gain_at:
                pieces.append(Piece(partial(self.gain, quality=quality), 0, stride))
            pieces += _branches(stage, stride)
        return [*pieces, Piece(leave, reach(self.head) * stride, LATENT_STRIDE)]


class HyperAnalysis(nn.Sequential):
    """h_a: y to z."""

    halo = 2  # positions of z: one and a half are seen around one, by the two `separable`

    def __init__(self, config: ModelConfig) -> None:
        n, z = config.entropy.latents, config.entropy.hyper
        super().__init__(
            pointwise(n, z, bias=True),
            LeakyReLU(),
            down(z, z),
            separable(z),
            down(z, z),
            separable(z),
            pointwise(z, z, bias=True),
        )


class Synthesis(TwoPaths):
    """g_s: y_hat and quality to x_hat. Where the finest stage is finer than those that do the work,
    it is a thin renderer (12 % fewer bits at equal cost in PULSE, arXiv 2609.18602)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        stages, n = config.synthesis, config.entropy.latents
        self.stride, self.gain_at = stages[0].stride, _gain_at(stages, config)
        self.head_gain = _latent_gain(n, -1)
        shuffle = LATENT_STRIDE // stages[-1].stride
        self.head = nn.Sequential(
            _resample(n, shuffle**2 * stages[-1].width, self.stride), nn.PixelShuffle(shuffle)
        )
        self.stages = nn.ModuleList(map(_blocks, stages))
        self.ups = nn.ModuleList(
            nn.Sequential(_resample(b.width, 4 * a.width, self.stride), nn.PixelShuffle(2))
            for a, b in zip(stages, stages[1:], strict=False)
        )
        self.gain = Gain(stages[self.gain_at].width)
        self.tail = conv3(stages[0].width, 3 * self.stride**2)  # 3x3: its patches overlap
        self.linear = LinearSynthesis(n, config.lapped)
        self.linear_gain = _latent_gain(n, -1)
        with torch.no_grad():
            first: nn.Conv2d = self.head[0]  # type: ignore[assignment]
            equal = equaliser(n).to(first.weight.device) / BASIS_SCALE
            first.weight *= equal[:, None, None]
            self.tail.weight *= 0.02
            if self.stride > 1:
                known = min(stages[0].width, 3 * self.stride**2)
                basis = frequency_basis(known, self.stride)
                basis = basis / equaliser(known, self.stride)[:, None]
                self.tail.weight[:, :known, 1, 1] = 0.03 * basis.T

    def linear_path(self, y_hat: Tensor, quality: Tensor) -> Tensor:
        x_hat: Tensor = self.linear(self.linear_gain(y_hat, quality)) + 0.5
        return x_hat

    def pieces(self, quality: Tensor) -> list[Piece]:
        def enter(y_hat: Tensor) -> Tensor:
            features: Tensor = self.head(self.head_gain(y_hat, quality))
            return features

        def leave(features: Tensor) -> Tensor:
            return F.pixel_shuffle(self.tail(features).float(), self.stride)

        stride = self.stride * 2 ** (len(self.stages) - 1)
        pieces = [Piece(enter, reach(self.head) * LATENT_STRIDE, stride)]
        for i in reversed(range(len(self.stages))):
            if i == self.gain_at:
                pieces.append(Piece(partial(self.gain, quality=quality), 0, stride))
            pieces += _branches(self.stages[i], stride)
            if i > 0:
                seen, stride = reach(self.ups[i - 1]) * stride, stride // 2
                pieces.append(Piece(self.ups[i - 1], seen, stride))
        return [*pieces, Piece(leave, reach(self.tail) * stride, 1)]


def _gain_at(stages: tuple[Stage, ...], config: ModelConfig) -> int:
    return next(i for i, stage in enumerate(stages) if stage.stride == config.gain_stride)


class Transforms(nn.Module):
    """g_a, h_a and g_s of one model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.g_a = Analysis(config)
        self.h_a = HyperAnalysis(config)
        self.g_s = Synthesis(config)
