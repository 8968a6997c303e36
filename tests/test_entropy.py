"""Laws of the entropy model: exact execution, freezing, likelihoods, the order of the two passes."""

import hashlib
import math

import numpy as np
import pytest
import torch
from torch import nn

from aiocodec.entropy import (
    ACTIVATION_MAX,
    SCALES,
    SYMBOL_UNIT,
    Z_MAX,
    EntropyModel,
    ExactEntropyModel,
    FactorisedPrior,
    FrozenEntropyModel,
    IntegerConv,
    checkerboard,
    freeze,
    scale_values,
)
from aiocodec.errors import ModelError
from aiocodec.pretrained import Manifest
from aiocodec.rangecoder import PRECISION, Tables
from aiocodec.training.release import gaussian_tables, quantise

N, Z, WIDTH = 8, 6, 12


def random_model(seed, gain):
    """A small entropy model with weights that use the number range; `gain` > 1 saturates it."""
    torch.manual_seed(seed)
    model = EntropyModel(N, Z, WIDTH)
    for p in [
        p for name in ("h_s", "fusion", "spatial_prior") for p in getattr(model, name).parameters()
    ]:
        nn.init.normal_(p, std=gain / math.sqrt(p[0].numel()))
    return model


def frozen_of(model):
    mass = model.prior_z.pmf()
    tables = [quantise(np.append(row, 1e-6)) for row in mass]
    tables_z = (np.concatenate(tables), np.full(len(mass), 256), np.full(len(mass), -Z_MAX))
    return freeze(model, gaussian_tables(scale_values(), *model.tail_shape), tables_z)


def random_inputs(seed, h=3, w=4):
    rng = np.random.default_rng(seed)
    z_hat = rng.integers(-Z_MAX, Z_MAX + 1, (Z, h, w))
    v_hat = rng.integers(-40000, 40000, (N, 4 * h, 4 * w))
    first = checkerboard((N, 4 * h, 4 * w)).numpy()
    return z_hat, np.where(first, v_hat, 0)


# --------------------------------------------------------------------------- an independent reference


class Reference:
    """The networks in int64, written from the table in entropy.py's docstring and from the shapes of
    the weights alone: no torch, no float, no shared code."""

    def __init__(self, frozen):
        self.tensors = {
            name: tensor.numpy().astype(np.int64) for name, tensor in frozen.tensors.items()
        }

    def conv(self, x, name):
        weight, bias, exponent = (
            self.tensors[f"{name}.{p}"] for p in ("weight", "bias", "exponent")
        )
        if weight.shape[-1] == 1:
            total = np.einsum("oi,ihw->ohw", weight[:, :, 0, 0], x)
        else:
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
            h, w = x.shape[1:]
            total = sum(
                weight[:, 0, i, j, None, None] * padded[:, i : i + h, j : j + w]
                for i in range(3)
                for j in range(3)
            )
        total = total + bias[:, None, None]
        # floor(total / 2**e + 1/2) = (2 total + 2**e) >> (e + 1)
        e = exponent[:, None, None]
        assert e.min() >= 0
        return self.saturate((2 * total + (1 << e)) >> (e + 1))

    @staticmethod
    def saturate(x):
        return np.clip(x, -ACTIVATION_MAX, ACTIVATION_MAX)

    @staticmethod
    def relu(x):
        return np.maximum(x, (x + 4) >> 3)  # floor(x / 8 + 1/2)

    def block(self, x, name):
        inner = self.relu(self.conv(x, f"{name}.0.body.0"))
        inner = self.relu(self.conv(inner, f"{name}.0.body.2"))
        x = self.saturate(x + self.conv(inner, f"{name}.0.body.4"))
        inner = self.relu(self.conv(x, f"{name}.1.body.0"))
        return self.saturate(x + self.conv(inner, f"{name}.1.body.2"))

    def up(self, x, name):
        x = self.conv(x, f"{name}.0")
        c, h, w = x.shape
        return x.reshape(c // 4, 2, 2, h, w).transpose(0, 3, 1, 4, 2).reshape(c // 4, 2 * h, 2 * w)

    def features(self, z_hat):
        x = self.block(self.up(z_hat * 256, "h_s.0"), "h_s.1")
        x = self.conv(self.block(self.up(x, "h_s.2"), "h_s.3"), "h_s.4")
        return self.conv(self.block(self.block(x, "fusion.0"), "fusion.1"), "fusion.2")

    def second(self, features, v_hat):
        x = self.conv(np.concatenate([self.saturate(v_hat), features]), "spatial_prior.0")
        x = self.block(self.block(x, "spatial_prior.1"), "spatial_prior.2")
        index, mean = np.split(self.conv(x, "spatial_prior.3"), 2)
        _, index_1, mean_1 = np.split(features, 3)
        return self.index(self.saturate(index + index_1)), self.saturate(mean + mean_1)

    def index(self, x):
        return np.clip(28 + ((x + 16) >> 5), 0, 63)  # eight indexes per 256, from 28


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gain", [0.3, 1.0, 4.0])
def test_execution_equals_the_int64_reference(seed, gain):
    frozen = frozen_of(random_model(seed, gain))
    exact, reference = ExactEntropyModel(frozen), Reference(frozen)
    z_hat, v_hat = random_inputs(seed)
    features = exact.hyper(torch.from_numpy(z_hat))
    expected = reference.features(z_hat)
    assert np.array_equal(features.numpy(), expected)
    first = exact.first(features)
    assert np.array_equal(first.indexes.numpy(), reference.index(np.split(expected, 3)[1]))
    assert np.array_equal(first.means.numpy(), np.split(expected, 3)[2])
    second = exact.second(features, torch.from_numpy(v_hat).double())
    indexes, means = reference.second(expected, v_hat)
    assert np.array_equal(second.indexes.numpy(), indexes)
    assert np.array_equal(second.means.numpy(), means)
    if gain > 1:
        assert np.abs(expected).max() == ACTIVATION_MAX, "saturation was not put to the test"


def test_shipped_execution_equals_the_int64_reference():
    manifest = Manifest.read()
    frozen = manifest.load(manifest.models[0]).frozen
    exact, reference = ExactEntropyModel(frozen), Reference(frozen)
    rng = np.random.default_rng(0)
    z_hat = np.round(rng.normal(0, 3, (frozen.hyper, 2, 3))).astype(np.int64).clip(-Z_MAX, Z_MAX)
    first = checkerboard((frozen.latents, 8, 12)).numpy()
    v_hat = np.where(first, np.round(rng.normal(0, 5 * SYMBOL_UNIT, first.shape)), 0).astype(
        np.int64
    )
    features = exact.hyper(torch.from_numpy(z_hat))
    assert np.array_equal(features.numpy(), reference.features(z_hat))
    second = exact.second(features, torch.from_numpy(v_hat).double())
    indexes, means = reference.second(features.numpy().astype(np.int64), v_hat)
    assert np.array_equal(second.indexes.numpy(), indexes)
    assert np.array_equal(second.means.numpy(), means)


def test_execution_does_not_depend_on_memory_layout():
    frozen = frozen_of(random_model(0, 1.0))
    exact = ExactEntropyModel(frozen)
    z_hat, v_hat = (torch.from_numpy(a) for a in random_inputs(0))
    features = exact.hyper(z_hat)
    assert torch.equal(features, exact.hyper(z_hat.permute(1, 2, 0).contiguous().permute(2, 0, 1)))
    last = features.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    a, b = exact.second(features, v_hat.double()), exact.second(last, v_hat.double())
    assert torch.equal(a.indexes, b.indexes)
    assert torch.equal(a.means, b.means)


def digest_of_shipped(device="cpu"):
    """A digest of everything that a decoder derives, from seeded symbols."""
    manifest = Manifest.read()
    frozen = manifest.load(manifest.models[0]).frozen
    exact = ExactEntropyModel(frozen).to(device)
    rng = np.random.default_rng(7)
    z_hat = np.round(rng.normal(0, 4, (frozen.hyper, 3, 4))).clip(-Z_MAX, Z_MAX)
    features = exact.hyper(torch.from_numpy(z_hat).to(device))
    first = checkerboard((frozen.latents, 12, 16)).numpy()
    v_hat = np.where(first, np.round(rng.normal(0, 900, first.shape)), 0)
    parameters = [exact.first(features), exact.second(features, torch.from_numpy(v_hat).to(device))]
    digest = hashlib.sha256()
    for tensor in [features] + [t for p in parameters for t in (p.indexes, p.means)]:
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


DIGEST = """
import sys, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(int(sys.argv[2]))
from test_entropy import digest_of_shipped
print(digest_of_shipped())
"""


@pytest.mark.parametrize(
    ("threads", "environment"),
    [
        (1, {}),
        (2, {}),
        (
            2,
            {
                "ONEDNN_MAX_CPU_ISA": "SSE41",
                "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
                "ATEN_CPU_CAPABILITY": "default",
            },
        ),
        (1, {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}),
    ],
)
def test_same_bits_in_other_processes(python, request, threads, environment):
    printed = python(DIGEST, request.path.parent, threads, **environment)
    assert printed.strip() == digest_of_shipped()


@pytest.mark.cuda
def test_same_bits_on_cuda():
    assert digest_of_shipped("cuda") == digest_of_shipped("cpu")


# --------------------------------------------------------------------------- freezing


def test_weights_that_could_be_inexact_are_refused():
    weight = torch.full((1, 1 << 23, 1, 1), 32767, dtype=torch.int16)
    with pytest.raises(ModelError, match="exact"):
        IntegerConv(weight, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int16))


def test_quantised_weights_use_int16_and_come_back():
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 24, 1)
    tensors = IntegerConv.quantise(conv)
    peak = tensors["weight"].abs().flatten(1).amax(1)
    assert (peak > 32767 // 2).all()
    copy = nn.Conv2d(16, 24, 1)
    IntegerConv.dequantise(tensors, copy)
    step = torch.exp2(-tensors["exponent"].float())[:, None, None, None]
    assert ((copy.weight - conv.weight).abs() <= step * 0.51).all()
    again = IntegerConv.quantise(copy)
    assert torch.equal(again["exponent"], tensors["exponent"])
    assert torch.equal(again["weight"], tensors["weight"])


def test_thawing_and_freezing_again_changes_nothing():
    frozen = frozen_of(random_model(1, 1.0))
    thawed = freeze(frozen.thaw(), frozen.tables("y"), frozen.tables("z"))
    assert thawed.fingerprint == frozen.fingerprint


def test_the_fingerprint_sees_every_tensor():
    frozen = frozen_of(random_model(1, 1.0))
    for name, tensor in frozen.tensors.items():
        changed = tensor.clone()
        changed.view(-1)[-1] ^= 1
        other = FrozenEntropyModel(N, Z, WIDTH, {**frozen.tensors, name: changed})
        assert other.fingerprint != frozen.fingerprint


def test_integers_follow_the_float_model():
    """Indexes within one, means within a few hundredths of a symbol, where nothing saturates."""
    model = random_model(3, 0.3)
    frozen = frozen_of(model)
    exact = ExactEntropyModel(frozen)
    z_hat, _ = random_inputs(3)
    z_hat = z_hat // 16
    features = exact.hyper(torch.from_numpy(z_hat))
    with torch.no_grad():
        expected = model.fusion(model.h_s(torch.from_numpy(z_hat)[None].float()))[0] * 256
    assert (features - expected).abs().max() < 6
    assert (features - expected).abs().mean() < 1


def test_tables_are_valid_and_cover_what_they_should():
    manifest = Manifest.read()
    frozen = manifest.load(manifest.models[0]).frozen
    assert len(Tables(*frozen.tables("y"))) == SCALES  # Tables checks sums and minima
    assert len(Tables(*frozen.tables("z"))) == frozen.hyper
    frequencies, lengths, lows = frozen.tables("y")
    weight, ratio = manifest.load(manifest.models[0]).trainable().entropy.tail_shape
    assert np.array_equal(-lows, np.ceil(5 * ratio * scale_values()))
    assert np.array_equal(lengths, 2 - 2 * lows)
    zero = frequencies[np.cumsum(lengths) - lengths - lows] / 2**PRECISION
    narrow = [math.erf(0.5 / scale / math.sqrt(2)) for scale in scale_values()]
    wide = [math.erf(0.5 / (ratio * scale) / math.sqrt(2)) for scale in scale_values()]
    assert np.allclose(zero, np.multiply(1 - weight, narrow) + np.multiply(weight, wide), atol=1e-4)


# --------------------------------------------------------------------------- the trainable model


@pytest.mark.parametrize("shape", [(8, 4, 4), (192, 8, 12), (2, 1, 1)])
def test_the_checkerboard_halves_every_position(shape):
    first = checkerboard(shape)
    assert first.sum(0).eq(shape[0] // 2).all()
    if shape[1] > 1:
        assert torch.equal(first[0], ~first[0].roll(1, 0))
        assert torch.equal(first[0], ~first[0].roll(1, 1))
    assert torch.equal(first[0], ~first[-1])


def test_the_first_pass_cannot_see_the_second():
    model = random_model(0, 0.5).eval()
    torch.manual_seed(1)
    y, z = torch.randn(1, N, 8, 8) * 3, torch.randn(1, Z, 2, 2)
    first = checkerboard((N, 8, 8))
    changed = torch.where(first, y, y + torch.randn_like(y))
    a = model(y, z, noise=False)[1]
    b = model(changed, z, noise=False)[1]
    assert torch.equal(a[0][first], b[0][first])
    assert not torch.equal(a[0][~first], b[0][~first])


def test_likelihoods_are_those_of_the_tables():
    """-log2 of the float likelihoods of integer symbols is the length under the integer tables."""
    model = EntropyModel(N, Z, WIDTH).double()
    rng = np.random.default_rng(0)
    scales = scale_values()
    indexes = rng.integers(0, SCALES, 20000)
    outlier = np.where(rng.random(20000) < model.tail_shape[0], model.tail_shape[1], 1)
    symbols = np.round(rng.normal(0, outlier * scales[indexes])).astype(np.int32)
    with torch.no_grad():
        likelihoods = model.likelihood(torch.from_numpy(symbols), torch.from_numpy(scales[indexes]))
    bits = -likelihoods.log2()
    length = Tables(*gaussian_tables(scales, *model.tail_shape)).code_length(symbols, indexes)
    assert length == pytest.approx(bits.sum().item(), rel=1e-3)


def test_the_factorised_prior_is_a_distribution():
    torch.manual_seed(0)
    prior = FactorisedPrior(5)
    for p in prior.parameters():
        nn.init.normal_(p, std=0.5)
    mass = prior.pmf()
    assert mass.shape == (5, 2 * Z_MAX + 1)
    assert (mass >= 0).all()
    assert (mass.sum(1) <= 1 + 1e-12).all()
    wide = torch.arange(-3000, 3001).float().expand(1, 5, 1, -1)
    with torch.no_grad():
        assert torch.allclose(prior(wide).sum((0, 2, 3)), torch.ones(5), atol=5e-3)
        middle = prior(torch.arange(-Z_MAX, Z_MAX + 1).float().expand(1, 5, 1, -1))[0, :, 0]
    assert np.allclose(middle.numpy(), mass, atol=1e-5)


def test_rounding_is_straight_through_and_noise_is_not():
    model = random_model(0, 0.2)
    y, z = torch.randn(1, N, 4, 4, requires_grad=True), torch.randn(1, Z, 1, 1, requires_grad=True)
    y_hat, likelihoods_y, likelihoods_z = model(y, z)
    assert ((likelihoods_y > 0) & (likelihoods_y <= 1)).all()
    assert ((likelihoods_z > 0) & (likelihoods_z <= 1)).all()
    y_hat.sum().backward()
    assert y.grad.abs().sum() > 0
    assert z.grad.abs().sum() > 0
