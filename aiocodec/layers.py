"""The hybrid-attention transformer block (HATB) and what more than one transform uses.

Everything takes and gives [B, C, H, W] float tensors and is fastest in channels-last memory. "Paper"
is All-in-One Image Compression and Restoration (WACV 2025); the block is its section 3.3.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 4  # N_g, groups of channels in C-GA (paper, section 11.1)
KERNEL = 5  # K_v and K_h, reach of S-DA in pixels of its resolution (paper, section 11.1)
EXPANSION = 2.66  # hidden channels of the feed-forward per input channel, as in Restormer


class LayerNorm(nn.Module):
    """Layer normalisation over the channels of every pixel, with a weight and no bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        with no_autocast(x):  # which would make float32 of bfloat16
            x = F.layer_norm(x, self.weight.shape, self.weight.to(x.dtype))
        return x.permute(0, 3, 1, 2)


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Lets operations on x be computed as they are written, where training uses autocast."""
    return torch.autocast("cuda", enabled=False) if x.is_cuda else nullcontext()


def pointwise(inputs: int, outputs: int, bias: bool = False) -> nn.Conv2d:
    """1x1 convolution: a linear layer on the channels of every pixel."""
    return nn.Conv2d(inputs, outputs, 1, bias=bias)


def depthwise(channels: int, kernel: int | tuple[int, int], bias: bool = False) -> nn.Conv2d:
    """A filter per channel, which keeps the resolution."""
    return nn.Conv2d(channels, channels, kernel, padding="same", groups=channels, bias=bias)


class ChannelGroupAttention(nn.Module):
    """C-GA: self-attention over channels, in groups (paper, equation 2).

    The attention map of a group is C_g x C_g and is summed over all pixels, so the cost is linear
    in H * W. As in the authors' implementation Q and K are normalised over the pixels and a learned
    temperature per group stands where the equation has 1 / sqrt(C_g).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Sequential(pointwise(channels, 3 * channels), depthwise(3 * channels, 3))
        self.temperature = nn.Parameter(torch.ones(GROUPS, 1, 1))
        self.project = pointwise(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(x).view(b, 3, GROUPS, c // GROUPS, h * w).unbind(1)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        attention = (q @ k.transpose(-2, -1) * self.temperature).softmax(dim=-1)
        out: Tensor = self.project((attention @ v).view(b, c, h, w))
        return out


class SpatiallyDecoupledAttention(nn.Module):
    """S-DA: a horizontal, then a vertical depth-wise convolution weigh every pixel of V
    (paper, equation 3). No sigmoid on the attention map: the paper found that it hurts."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attend = nn.Sequential(
            pointwise(channels, channels),
            nn.GELU(),
            depthwise(channels, (1, KERNEL)),
            nn.GELU(),
            depthwise(channels, (KERNEL, 1)),
        )
        self.value = pointwise(channels, channels)
        self.project = pointwise(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.attend(x) * self.value(x))
        return out


class GatedFeedForward(nn.Module):
    """Restormer's gated feed-forward, which the paper adopts: GELU(a) * b between two 1x1s."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = int(EXPANSION * channels)
        self.expand = nn.Sequential(pointwise(channels, 2 * hidden), depthwise(2 * hidden, 3))
        self.project = pointwise(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.expand(x).chunk(2, dim=1)
        out: Tensor = self.project(F.gelu(a) * b)
        return out


class HATB(nn.Module):
    """Hybrid-attention transformer block: C-GA, S-DA and feed-forward, each on a normalised
    residual branch (paper, figure 2b). Shape-preserving; `channels` is a multiple of 4."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(LayerNorm(channels), branch(channels))
            for branch in (ChannelGroupAttention, SpatiallyDecoupledAttention, GatedFeedForward)
        )

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = x + branch(x)
        return x


class Gain(nn.Module):
    """A factor per channel, log-interpolated over the quality:
    exp(lerp(log q_min[c], log q_max[c], quality / 100)).

    `quality` is [B], 0..100. `low` and `high` are the factors at quality 0 and 100 before training.
    """

    def __init__(self, channels: int, low: float = 1.0, high: float = 1.0) -> None:
        super().__init__()
        self.log_min = nn.Parameter(torch.full((channels,), math.log(low)))
        self.log_max = nn.Parameter(torch.full((channels,), math.log(high)))

    def forward(self, x: Tensor, quality: Tensor) -> Tensor:
        gain = torch.lerp(self.log_min, self.log_max, quality[:, None] / 100).exp()
        return x * gain[:, :, None, None].to(x.dtype)


def frequency_basis(channels: int, block: int = 16) -> Tensor:
    """[channels, 3 * block**2] orthonormal rows: the lowest frequencies of a two-dimensional DCT-II
    of RGB blocks in the channel order of `pixel_unshuffle`, two thirds of them luma and a sixth each
    of the two chroma axes. What a learned linear transform of `block` pixels starts from."""
    n = np.arange(block)
    dct = np.cos(math.pi / block * (n + 0.5) * n[:, None]) * math.sqrt(2 / block)
    dct[0] /= math.sqrt(2)
    colour = np.array([[1, 1, 1], [1, 0, -1], [-1, 2, -1]])
    colour = colour / np.linalg.norm(colour, axis=1, keepdims=True)
    order = sorted(((u, v) for u in n for v in n), key=lambda f: (sum(f), f))
    chroma = channels // 6
    counts = (channels - 2 * chroma, chroma, chroma)
    rows = [
        np.einsum("c,i,j->cij", colour[axis], dct[u], dct[v]).ravel()
        for axis, count in enumerate(counts)
        for u, v in order[:count]
    ]
    return torch.from_numpy(np.stack(rows).astype(np.float32))
