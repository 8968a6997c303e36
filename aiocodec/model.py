"""The network: transforms g_a, g_s, h_a around an entropy model (paper, figure 2a).

    y = g_a(x, quality)         [B, 3, H, W] in 0..1, sides multiples of 64  ->  [B, N, H/16, W/16]
    z = h_a(y)                  [B, Z, H/64, W/64]
    y_hat = entropy(y, z)       rounded, see entropy.py
    x_hat = g_s(y_hat, quality)

One `ModelConfig` describes every variant. `s` and `l` are the paper's Ours-S and Ours-L: four stages
at full to 1/8 resolution. `fast` and `nano` put all blocks at 1/8, where a block costs the same
arithmetic per channel but moves 64 times less memory than at full resolution.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aiocodec.entropy import EntropyModel, LeakyReLU, block, down
from aiocodec.layers import GROUPS, HATB, Gain, frequency_basis, no_autocast, pointwise

LATENT_STRIDE = 16  # pixels of x per element of y, per side
STRIDE = 64  # pixels of x per element of z; images are padded to multiples of it
LMBDA_MIN, LMBDA_MAX = 40.0, 8000.0  # at quality 0 and 100, for MSE on [0, 1]
BASIS_SCALE = 8.0  # of the linear shortcut's analysis at the start


def lmbda(quality: Tensor) -> Tensor:
    """The weight of the distortion for a quality in 0..100, log-interpolated."""
    return LMBDA_MIN * (LMBDA_MAX / LMBDA_MIN) ** (quality / 100)


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the shape of a model; it travels in the metadata of a weight file."""

    name: str
    patch: int  # of the pixel-unshuffle in front; patch * 2 ** len(widths) == 16
    widths: tuple[int, ...]  # channels of each stage, finest first; multiples of 24
    blocks_a: tuple[int, ...]  # HATBs of each stage of g_a, finest first
    blocks_s: tuple[int, ...]  # HATBs of each stage of g_s, finest first
    latents: int = 192  # N, channels of y; even
    hyper: int = 128  # Z, channels of z
    prior_width: int = 384  # channels inside the entropy model's networks

    def __post_init__(self) -> None:
        if self.patch * 2 ** len(self.widths) != LATENT_STRIDE:
            raise ValueError("patch and stages must take x to 1/16 of its size")
        if not len(self.widths) == len(self.blocks_a) == len(self.blocks_s):
            raise ValueError("widths, blocks_a and blocks_s must name the same stages")
        if self.latents % 2 or any(width % GROUPS for width in self.widths):
            raise ValueError("latents must be even, widths multiples of the groups of C-GA")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ModelConfig":
        """The inverse of `to_dict`, from JSON too; TypeError or ValueError on other fields."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        return cls(**values)

    @property
    def gain_stage(self) -> int:
        """The stage before whose blocks the quality enters: the first at 1/4 resolution or less."""
        return next(i for i in range(len(self.widths)) if self.patch * 2**i >= 4)


_STAGES = (2, 3, 3, 4)
VARIANTS = {
    config.name: config
    for config in (
        ModelConfig("nano", 8, (128,), (4,), (5,), hyper=96, prior_width=192),
        ModelConfig("fast", 8, (256,), (6,), (9,)),
        ModelConfig("s", 1, (32, 64, 128, 256), _STAGES, _STAGES),
        ModelConfig("l", 1, (48, 96, 192, 384), _STAGES, _STAGES),
    )
}


def _conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1)


def _latent_gain(channels: int, sign: int) -> Gain:
    """The gain next to the latent starts where unit steps are best for an orthonormal transform:
    there step^2 = 12 * 768 / (256 * 2 ln 2 * lambda), a step of 1 / BASIS_SCALE being gain 1."""
    unit = 12 * 768 / (256 * 2 * math.log(2)) * BASIS_SCALE**2
    low, high = ((value / unit) ** (sign / 2) for value in (LMBDA_MIN, LMBDA_MAX))
    return Gain(channels, low, high)


class Analysis(nn.Module):
    """g_a: x and quality to y. A linear transform of 16x16 blocks, which starts as a DCT, runs
    beside the deep path, which learns what the linear one misses (after AuxT, arXiv 2501.13751)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths, n = config.widths, config.latents
        self.patch, self.gain_stage = config.patch, config.gain_stage
        pixels = 3 * config.patch**2
        self.stem = (
            pointwise(pixels, widths[0], bias=True) if config.patch > 1 else _conv3(3, widths[0])
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(HATB(width) for _ in range(depth)))
            for width, depth in zip(widths, config.blocks_a, strict=True)
        )
        self.downs = nn.ModuleList(
            nn.Sequential(_conv3(a, b // 4), nn.PixelUnshuffle(2))
            for a, b in zip(widths, widths[1:], strict=False)
        )
        self.gain = Gain(widths[self.gain_stage])
        self.head = _conv3(widths[-1], n, stride=2)
        self.head_gain = _latent_gain(n, 1)
        self.linear = pointwise(3 * LATENT_STRIDE**2, n)
        self.linear_gain = _latent_gain(n, 1)
        with torch.no_grad():
            self.head.weight *= 0.1
            self.linear.weight.copy_(BASIS_SCALE * frequency_basis(n)[:, :, None, None])

    def forward(self, x: Tensor, quality: Tensor) -> Tensor:
        x = x - 0.5
        features = self.stem(F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        for i, stage in enumerate(self.stages):
            if i > 0:
                features = self.downs[i - 1](features)
            if i == self.gain_stage:
                features = self.gain(features, quality)
            features = stage(features)
        features = self.head(features)
        with no_autocast(x):  # bfloat16 is too coarse for y and x_hat
            y = self.linear_gain(self.linear(F.pixel_unshuffle(x, LATENT_STRIDE)), quality)
            out: Tensor = y + self.head_gain(features.float(), quality)
        return out


class Synthesis(nn.Module):
    """g_s: y_hat and quality to x_hat, the mirror of `Analysis`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths, n = config.widths, config.latents
        self.patch, self.gain_stage = config.patch, config.gain_stage
        self.head_gain = _latent_gain(n, -1)
        head = (
            pointwise(n, 4 * widths[-1], bias=True)
            if config.patch > 1
            else _conv3(n, 4 * widths[-1])
        )
        self.head = nn.Sequential(head, nn.PixelShuffle(2))
        self.stages = nn.ModuleList(
            nn.Sequential(*(HATB(width) for _ in range(depth)))
            for width, depth in zip(widths, config.blocks_s, strict=True)
        )
        self.ups = nn.ModuleList(
            nn.Sequential(_conv3(b, 4 * a), nn.PixelShuffle(2))
            for a, b in zip(widths, widths[1:], strict=False)
        )
        self.gain = Gain(widths[self.gain_stage])
        pixels = 3 * config.patch**2
        self.tail = _conv3(widths[0], pixels)  # 3x3: its patches overlap, blocks show less
        self.linear = pointwise(n, 3 * LATENT_STRIDE**2)
        self.linear_gain = _latent_gain(n, -1)
        with torch.no_grad():
            self.tail.weight *= 0.1
            basis = frequency_basis(n).T / BASIS_SCALE
            self.linear.weight.copy_(basis[:, :, None, None])

    def forward(self, y_hat: Tensor, quality: Tensor) -> Tensor:
        features = self.head(self.head_gain(y_hat, quality))
        for i in reversed(range(len(self.stages))):
            if i == self.gain_stage:
                features = self.gain(features, quality)
            features = self.stages[i](features)
            if i > 0:
                features = self.ups[i - 1](features)
        features = self.tail(features)
        with no_autocast(y_hat):
            linear = self.linear(self.linear_gain(y_hat, quality))
            x_hat = F.pixel_shuffle(linear, LATENT_STRIDE) + 0.5
            features = features.float()
            return x_hat + (F.pixel_shuffle(features, self.patch) if self.patch > 1 else features)


class Output(NamedTuple):
    """What `Model.forward` gives. Likelihoods are in 2^-24..1; -log2 of them are bits."""

    x_hat: Tensor  # [B, 3, H, W], not clamped
    likelihoods_y: Tensor  # [B, N, H/16, W/16]
    likelihoods_z: Tensor  # [B, Z, H/64, W/64]

    def bpp(self) -> Tensor:
        """Bits per pixel of every image, [B]."""
        pixels = self.x_hat.shape[-1] * self.x_hat.shape[-2]
        parts = (self.likelihoods_y, self.likelihoods_z)
        return sum((-p.log2().flatten(1).sum(1) for p in parts), torch.tensor(0.0)) / pixels


class Model(nn.Module):
    """g_a, h_a and g_s with the entropy model that they were trained with, in floating point."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        z = config.hyper
        self.g_a = Analysis(config)
        self.h_a = nn.Sequential(
            pointwise(config.latents, z, bias=True),
            LeakyReLU(),
            down(z, z),
            block(z),
            down(z, z),
            block(z),
            pointwise(z, z, bias=True),
        )
        self.g_s = Synthesis(config)
        self.entropy = EntropyModel(config.latents, z, config.prior_width)
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                if not name.endswith(
                    ("linear", "head", "head.0", "tail", "fusion.2", "spatial_prior.3")
                ):
                    nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, quality: Tensor, noise: bool = True) -> Output:
        """x [B, 3, H, W] in 0..1 with sides that are multiples of 64, quality [B] in 0..100."""
        y = self.g_a(x, quality)
        z = self.h_a(y)
        y_hat, likelihoods_y, likelihoods_z = self.entropy(y, z, noise)
        return Output(self.g_s(y_hat, quality), likelihoods_y, likelihoods_z)


def deepen(model: Model, config: ModelConfig) -> Model:
    """`model` with the depths of `config`: further blocks at the end of each stage, whose branches
    start at zero, so that it computes what it did before and can be trained on from there.

    Raises ValueError where `config` differs in more than its depths, or has fewer blocks.
    """
    old = model.config
    if replace(config, blocks_a=old.blocks_a, blocks_s=old.blocks_s) != old:
        raise ValueError("only the depths of a model can grow")
    before, after = (c.blocks_a + c.blocks_s for c in (old, config))
    if any(b < a for a, b in zip(before, after, strict=True)):
        raise ValueError("a model cannot lose blocks")
    deeper = Model(config)
    deeper.load_state_dict(model.state_dict(), strict=False)
    for transform, depths in ((deeper.g_a, old.blocks_a), (deeper.g_s, old.blocks_s)):
        for stage, depth in zip(transform.stages, depths, strict=True):
            for name, weight in stage.named_parameters():
                if int(name.split(".")[0]) >= depth and name.endswith("project.weight"):
                    nn.init.zeros_(weight)
    return deeper


class Complexity(NamedTuple):
    """Parameters and multiply-accumulates of g_a, h_a, g_s and the entropy networks."""

    parameters: dict[str, int]
    macs: dict[str, int]


def complexity(config: ModelConfig, height: int = 256, width: int = 256) -> Complexity:
    """What a model costs for one image, counted from the shapes of its convolutions and matrix
    products; nothing is computed. Element-wise work is not counted, as is usual.

    The paper (table 2) gives 37 G for Ours-S and 67 G for Ours-L at 256x256; ours count 33 G and
    71 G. Two things differ. The depths: section 11.1 speaks of four blocks in every stage, with
    which ours would count 42 G and 91 G, so we take 2-3-3-4, which is near the table for both.
    The entropy model: ours has 4.6 M parameters at 1/16 resolution (1.1 G), a fifth of the hybrid
    spatial model that the paper adopts, because it must run in exact integers.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = Model(config)
        x, quality = torch.empty(1, 3, height, width), torch.empty(1)
        y = torch.empty(1, config.latents, height // LATENT_STRIDE, width // LATENT_STRIDE)
        z = torch.empty(1, config.hyper, height // STRIDE, width // STRIDE)
    runs = {
        "g_a": lambda: model.g_a(x, quality),
        "h_a": lambda: model.h_a(y),
        "g_s": lambda: model.g_s(y, quality),
        "entropy": lambda: model.entropy.spatial_prior(
            torch.cat([y, model.entropy.fusion(model.entropy.h_s(z))], dim=1)
        ),
    }
    macs = {}
    for name, run in runs.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run()
        macs[name] = counter.get_total_flops() // 2
    parameters = {name: sum(p.numel() for p in getattr(model, name).parameters()) for name in runs}
    return Complexity(parameters, macs)
