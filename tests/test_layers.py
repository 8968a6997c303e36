"""Blocks against the equations they are taken from, and the laws of the linear path."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from aiocodec.layers import (
    DCB,
    GROUPS,
    HATB,
    ChannelGroupAttention,
    Gain,
    GatedFeedForward,
    LayerNorm,
    LinearAnalysis,
    LinearSynthesis,
    QualityCurve,
    SpatiallyDecoupledAttention,
    frequency_basis,
    lap,
    lapping_core,
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


def test_the_paper_s_block_has_no_biases():
    assert not [name for name, _ in HATB(16).named_parameters() if "bias" in name]


def test_the_plain_block_is_what_its_parts_say():
    block = DCB(8)
    x = torch.randn(2, 8, 6, 5)
    norm, one, _, around, two = block.branches[0]
    inner = F.leaky_relu(F.conv2d(norm(x), one.weight, one.bias), 1 / 8)
    inner = F.conv2d(inner, around.weight, around.bias, padding=1, groups=8)
    middle = x + F.conv2d(inner, two.weight, two.bias)
    norm, wide, _, narrow = block.branches[1]
    a, b = F.conv2d(norm(middle), wide.weight, wide.bias).split(16, dim=1)
    expected = middle + F.conv2d(a * b.clamp(min=0), narrow.weight, narrow.bias)
    assert torch.allclose(block(x), expected, atol=1e-6)


@pytest.mark.parametrize("kind", [HATB, DCB])
def test_a_silent_block_is_the_identity_and_can_learn(kind):
    block, x = kind(16), torch.randn(2, 16, 7, 5)
    assert block(x).shape == x.shape
    assert not torch.equal(block(x), x)
    block.silence()
    assert torch.equal(block(x), x)
    (block(x) - 1).square().sum().backward()
    assert all(any(p.grad.any() for p in branch.parameters()) for branch in block.branches)


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


@pytest.mark.parametrize(("channels", "block"), [(192, 16), (768, 16), (128, 8), (32, 4), (48, 4)])
def test_frequency_basis_of_any_block(channels, block):
    basis = frequency_basis(channels, block)
    assert basis.shape == (channels, 3 * block**2)
    assert torch.allclose(basis @ basis.T, torch.eye(channels), atol=1e-5)


def test_a_quality_curve_is_a_cubic_that_starts_at_nothing():
    curve, quality = QualityCurve(2), torch.tensor([0.0, 25.0, 50.0, 100.0])
    assert not curve(quality).any()
    with torch.no_grad():
        curve.coefficients.copy_(torch.tensor([[1.0, 0], [0, 0], [2, 0], [0, 8]]))
    expected = torch.tensor([[3.0, -8], [1.5, -1], [1, 0], [3, 8]])
    assert torch.allclose(curve(quality)[:, :, 0, 0], expected)


# --------------------------------------------------------------------------- the linear path


@pytest.mark.parametrize("lapped", [True, False])
@pytest.mark.parametrize("size", [(16, 16), (16, 48), (64, 32), (80, 112)])
def test_linear_synthesis_undoes_linear_analysis(lapped, size):
    """Where no frequency is cut off."""
    x = torch.rand(2, 3, *size)
    analysis, synthesis = LinearAnalysis(768, lapped), LinearSynthesis(768, lapped)
    assert torch.allclose(synthesis(analysis(x)), x, atol=1e-5)


def test_lapping_leaves_borders_alone_and_reaches_eight_pixels():
    cores = torch.stack([lapping_core()] * 2)
    x = torch.rand(1, 1, 48, 64)
    out = lap(x, cores)
    for corner in (np.s_[..., :8, :8], np.s_[..., :8, -8:], np.s_[..., -8:, :8]):
        assert torch.equal(out[corner], x[corner])
    changed = x.clone()
    changed[..., 20, 30] += 1  # eight rows and columns around the edges at 16 and 32
    moved = (lap(changed, cores) - out)[0, 0].abs() > 1e-7
    assert moved[8:24, 24:40].any()
    moved[8:24, 24:40] = False
    assert not moved.any()


def test_lapping_of_columns_is_that_of_rows():
    cores = torch.stack([lapping_core()] * 2)
    x = torch.rand(2, 3, 48, 48)
    assert torch.allclose(lap(x.mT, cores), lap(x, cores.flip(0)).mT, atol=1e-5)


@pytest.mark.parametrize(("lapped", "gain"), [(True, 9.91), (False, 9.46)])
def test_coding_gain(lapped, gain):
    """In decibels per dimension for an AR(1) process of correlation 0.95: the variance of a sample over
    the geometric mean of those of the coefficients, each times the energy of its basis function in
    the reconstruction (Katto and Yasuda 1991)."""
    size = 9 * 16
    n = torch.arange(16).double()
    dct = torch.cos(math.pi / 16 * (n + 0.5) * n[:, None]) * math.sqrt(2 / 16)
    dct[0] /= math.sqrt(2)
    analysis = torch.block_diag(*[dct] * 9)
    if lapped:
        core = lapping_core().double()
        one = torch.stack([core, torch.eye(8).double()])  # columns stay as they are
        analysis = analysis @ lap(torch.eye(size).double()[None, None], one)[0, 0]
    synthesis = torch.linalg.inv(analysis)
    steps = torch.arange(size)
    covariance = 0.95 ** (steps - steps[:, None]).abs().double()
    middle = slice(4 * 16, 5 * 16)
    variances = (analysis @ covariance @ analysis.T).diagonal()[middle]
    energies = synthesis.square().sum(0)[middle]
    found = -10 * (variances * energies).log10().mean().item()
    assert found == pytest.approx(gain, abs=0.01)


def edge_steps(luma):
    """Mean absolute step of luma between neighbours on the two sides of multiples of 16, over the mean
    step elsewhere: 1 where there are no blocks."""
    ratios = []
    for plane in (luma, luma.T):
        steps = np.abs(np.diff(plane, axis=1)).mean(0)
        at_edge = np.arange(1, plane.shape[1]) % 16 == 0
        ratios.append(steps[at_edge].mean() / steps[~at_edge].mean())
    return float(np.mean(ratios))


@pytest.mark.parametrize("quality", [0, 10, 30, 50, 80])
def test_the_linear_path_makes_no_blocks(photo, quality):
    """Quantised as an untrained model quantises, on a photograph; the DCT without lapping does."""
    from aiocodec.transforms import _latent_gain

    x = torch.from_numpy(photo.rgb[:320, :448]).permute(2, 0, 1)[None].float() / 255
    q = torch.tensor([float(quality)])
    found = {}
    with torch.no_grad():
        for lapped in (True, False):
            analysis, synthesis = LinearAnalysis(192, lapped), LinearSynthesis(192, lapped)
            y_hat = _latent_gain(192, 1)(analysis(x - 0.5), q).round()
            x_hat = synthesis(_latent_gain(192, -1)(y_hat, q)) + 0.5
            luma = (x_hat[0] * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
            found[lapped] = edge_steps(luma.clamp(0, 1).numpy())
    assert found[True] < 1.1
    assert found[False] > found[True] + 0.1
