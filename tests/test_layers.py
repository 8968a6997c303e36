"""The block against the paper's equations, written out with loops."""

import math

import pytest
import torch
from torch.nn import functional as F

from aiocodec.layers import (
    GROUPS,
    HATB,
    ChannelGroupAttention,
    Gain,
    GatedFeedForward,
    LayerNorm,
    SpatiallyDecoupledAttention,
    frequency_basis,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_channel_group_attention_is_equation_2():
    c, h, w = 16, 5, 7
    attention = ChannelGroupAttention(c)
    torch.nn.init.normal_(attention.temperature)
    x = torch.randn(2, c, h, w)
    size = c // GROUPS
    for b in range(2):
        q, k, v = attention.qkv(x)[b].reshape(3, c, h * w)
        groups = []
        for g in range(GROUPS):
            rows = slice(g * size, (g + 1) * size)
            qg, kg, vg = (t[rows] / t[rows].norm(dim=1, keepdim=True) for t in (q, k, v))
            scores = torch.stack([torch.stack([(a * b).sum() for b in kg]) for a in qg])
            groups.append((scores * attention.temperature[g]).softmax(1) @ v[rows])
        expected = attention.project(torch.cat(groups).view(1, c, h, w))
        assert torch.allclose(attention(x)[b : b + 1], expected, atol=1e-5)


def test_channel_group_attention_sees_the_whole_image():
    """A change of one pixel moves the output everywhere: the receptive field is global."""
    attention = ChannelGroupAttention(8)
    x = torch.randn(1, 8, 9, 9)
    changed = x.clone()
    changed[..., 0, 0] += 1
    assert ((attention(x) - attention(changed))[0, :, 8, 8].abs() > 0).any()


def test_spatially_decoupled_attention_is_equation_3():
    c = 8
    attention = SpatiallyDecoupledAttention(c)
    x = torch.randn(1, c, 9, 9)
    one, _, across, _, down = attention.attend
    assert across.weight.shape == (c, 1, 1, 5)
    assert down.weight.shape == (c, 1, 5, 1)
    a = F.gelu(F.conv2d(x, one.weight))
    a = F.gelu(F.conv2d(a, across.weight, padding=(0, 2), groups=c))
    a = F.conv2d(a, down.weight, padding=(2, 0), groups=c)
    v = F.conv2d(x, attention.value.weight)
    assert torch.allclose(attention(x), F.conv2d(a * v, attention.project.weight), atol=1e-6)


def test_feed_forward_is_gated():
    forward = GatedFeedForward(8)
    x = torch.randn(1, 8, 6, 6)
    a, b = forward.expand(x).split(int(2.66 * 8), dim=1)
    assert torch.allclose(forward(x), forward.project(F.gelu(a) * b))


def test_layer_norm_is_over_channels_and_has_no_bias():
    norm = LayerNorm(32)
    x = 5 * torch.randn(2, 32, 3, 3) + 2
    out = norm(x)
    assert torch.allclose(out.mean(1), torch.zeros(2, 3, 3), atol=1e-5)
    assert torch.allclose(out.var(1, unbiased=False), torch.ones(2, 3, 3), atol=1e-3)
    assert [name for name, _ in norm.named_parameters()] == ["weight"]


def test_block_keeps_shape_and_has_no_biases():
    block = HATB(16)
    assert block(torch.randn(2, 16, 7, 5)).shape == (2, 16, 7, 5)
    assert not [name for name, _ in block.named_parameters() if "bias" in name]


def test_gain_is_log_linear_in_quality():
    gain = Gain(3, 0.25, 4.0)
    x = torch.ones(3, 3, 1, 1)
    out = gain(x, torch.tensor([0.0, 50.0, 100.0]))[:, 0, 0, 0]
    assert torch.allclose(out, torch.tensor([0.25, 1.0, 4.0]))


def test_frequency_basis_is_orthonormal_and_starts_with_the_mean():
    basis = frequency_basis(192)
    assert torch.allclose(basis @ basis.T, torch.eye(192), atol=1e-5)
    grey = F.pixel_unshuffle(torch.full((1, 3, 16, 16), 0.5), 16).flatten()
    coefficients = basis @ grey
    assert coefficients[0] == pytest.approx(0.5 * math.sqrt(3 * 256), rel=1e-5)
    assert coefficients[1:].abs().max() < 1e-4
