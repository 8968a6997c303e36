"""The transforms g_a, h_a and g_s (paper, figure 2a), which need not be exact.

    y = g_a(x, quality)         [B, 3, H, W] in 0..1, sides multiples of 64  ->  [B, N, H/16, W/16]
    z = h_a(y)                  [B, Z, H/64, W/64]
    x_hat = g_s(y_hat, quality)

g_a and g_s are a linear path, which begins as a lapped DCT and its inverse, and beside it a deep one,
which learns what the linear one misses. A file depends on neither: any transforms that were trained
with the same entropy model are interchangeable.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aiocodec.config import LATENT_STRIDE, LMBDA_MAX, LMBDA_MIN, ModelConfig, Stage
from aiocodec.layers import (
    BASIS_SCALE,
    BLOCKS,
    Gain,
    LeakyReLU,
    LinearAnalysis,
    LinearSynthesis,
    conv3,
    down,
    frequency_basis,
    no_autocast,
    pointwise,
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


class Analysis(nn.Module):
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
        self.linear = LinearAnalysis(n, config.lapped)
        self.linear_gain = _latent_gain(n, 1)
        with torch.no_grad():
            self.head.weight *= 0.1
            if self.stride > 1:
                known = min(stages[0].width, 3 * self.stride**2)
                basis = frequency_basis(known, self.stride)
                self.stem.weight[:known] = basis[:, :, None, None]

    def forward(self, x: Tensor, quality: Tensor) -> Tensor:
        x = x - 0.5
        features = self.stem(F.pixel_unshuffle(x, self.stride))
        for i, stage in enumerate(self.stages):
            if i > 0:
                features = self.downs[i - 1](features)
            if i == self.gain_at:
                features = self.gain(features, quality)
            features = stage(features)
        features = self.head(features)
        with no_autocast(x):  # bfloat16 is too coarse for y and x_hat
            y = self.linear_gain(self.linear(x), quality)
            out: Tensor = y + self.head_gain(features.float(), quality)
        return out


class HyperAnalysis(nn.Sequential):
    """h_a: y to z."""

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


class Synthesis(nn.Module):
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
            self.tail.weight *= 0.1
            if self.stride > 1:
                known = min(stages[0].width, 3 * self.stride**2)
                basis = frequency_basis(known, self.stride)
                self.tail.weight[:, :known, 1, 1] = 0.1 * basis.T

    def forward(self, y_hat: Tensor, quality: Tensor) -> Tensor:
        features = self.head(self.head_gain(y_hat, quality))
        for i in reversed(range(len(self.stages))):
            if i == self.gain_at:
                features = self.gain(features, quality)
            features = self.stages[i](features)
            if i > 0:
                features = self.ups[i - 1](features)
        features = self.tail(features)
        with no_autocast(y_hat):
            x_hat: Tensor = self.linear(self.linear_gain(y_hat, quality)) + 0.5
            return x_hat + F.pixel_shuffle(features.float(), self.stride)


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
