"""Laws of the entropy model: passes, exact execution, freezing, likelihoods."""

import hashlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from aiocodec.config import CHECKERBOARD, QUADTREE, EntropyConfig
from aiocodec.entropy import passes
from aiocodec.entropy.exact import ExactEntropyModel
from aiocodec.entropy.frozen import (
    ACTIVATION_MAX,
    FrozenEntropyModel,
    Program,
    dequantise,
    freeze,
    thaw,
)
from aiocodec.entropy.frozen import (
    quantise as quantise_conv,
)
from aiocodec.entropy.model import (
    SCALES,
    Z_MAX,
    EntropyModel,
    FactorisedPrior,
    level_of_quality,
    quality_of_level,
    scale_values,
)
from aiocodec.errors import ModelError
from aiocodec.pretrained import Manifest
from aiocodec.rangecoder import PRECISION, Tables
from aiocodec.training.release import frozen_of, gaussian_tables

N, Z, WIDTH = 8, 6, 12
TWO = EntropyConfig(N, Z, WIDTH, CHECKERBOARD, quality_levels=1)
FOUR = EntropyConfig(N, Z, WIDTH, QUADTREE, quality_levels=5)
CONFIGS = pytest.mark.parametrize("config", [TWO, FOUR], ids=["two", "four"])


def random_model(config, seed, gain):
    """A small entropy model with weights that use the number range; `gain` > 1 saturates it. They are
    numpy's: those of torch depend on the instruction set."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = EntropyModel(config)

    def draw(p, std):
        p.data.copy_(torch.from_numpy(rng.normal(0, std, p.shape)))

    for network in (model.h_s, model.fusion, model.adaptors, model.body, model.head):
        for p in network.parameters():
            draw(p, gain / math.sqrt(p[0].numel()))
    for curve in (model.embedding, model.prior_z.log_width, model.prior_z.centre):
        if curve is not None:
            draw(curve.coefficients, 0.3 * gain)
    return model


def random_inputs(frozen, seed, h=3, w=4, width=40000):
    """z_hat, and for each pass a v_hat that is 0 where nothing is coded yet."""
    rng = np.random.default_rng(seed)
    program = frozen.program
    z_hat = rng.integers(-Z_MAX, Z_MAX + 1, (program.hyper, h, w))
    shape = (program.latents, 4 * h, 4 * w)
    v_hat = rng.integers(-width, width, shape)
    coded = np.cumsum(passes.masks(program.order, shape), axis=0) > 0
    return z_hat, [np.zeros_like(v_hat), *(np.where(before, v_hat, 0) for before in coded[:-1])]


# --------------------------------------------------------------------------- an independent reference


class Reference:
    """The networks in int64, written from docs/format.md and from the shapes of the weights alone: no
    torch, no float, no shared code, and no look at the program, which it thereby puts to the test."""

    def __init__(self, frozen):
        self.tensors = {name: np.asarray(t).astype(np.int64) for name, t in frozen.tensors.items()}
        self.levels = len(self.tensors.get("embedding", [0]))

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
        return np.clip(x, -32767, 32767)

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

    def features(self, z_hat, quality):
        x = z_hat * 256
        if "embedding" in self.tensors:
            level = (2 * quality * (self.levels - 1) + 100) // 200
            x = self.saturate(x + self.tensors["embedding"][level][:, None, None])
        x = self.block(self.up(x, "h_s.0"), "h_s.1")
        x = self.conv(self.block(self.up(x, "h_s.2"), "h_s.3"), "h_s.4")
        return self.conv(self.block(self.block(x, "fusion.0"), "fusion.1"), "fusion.2")

    def parameters(self, k, features, v_hat):
        _, index, mean = np.split(features, 3)
        if k > 0:
            x = np.concatenate([self.saturate(v_hat), features])
            x = self.conv(x, f"adaptor_{k}")
            x = self.block(self.block(x, "body.0"), "body.1")
            more_index, more_mean = np.split(self.conv(x, "head"), 2)
            index, mean = self.saturate(index + more_index), self.saturate(mean + more_mean)
        return np.clip(28 + ((index + 16) >> 5), 0, 63), mean  # eight indexes per 256, from 28


def assert_equals_the_reference(frozen, inputs, quality):
    exact, reference = ExactEntropyModel(frozen), Reference(frozen)
    z_hat, v_hats = inputs
    features = exact.features(torch.from_numpy(z_hat), quality)
    expected = reference.features(z_hat, quality)
    assert np.array_equal(features.numpy(), expected)
    for k, v_hat in enumerate(v_hats):
        parameters = exact.predict(k, features, torch.from_numpy(v_hat).double())
        indexes, means = reference.parameters(k, expected, v_hat)
        assert np.array_equal(parameters.indexes.numpy(), indexes)
        assert np.array_equal(parameters.means.numpy(), means)
    return expected


@CONFIGS
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gain", [0.3, 1.0, 4.0])
def test_execution_equals_the_int64_reference(config, seed, gain):
    frozen = frozen_of(random_model(config, seed, gain))
    features = assert_equals_the_reference(frozen, random_inputs(frozen, seed), 25 * seed)
    if gain > 1:
        assert np.abs(features).max() == ACTIVATION_MAX, "saturation was not put to the test"


def shipped():
    manifest = Manifest.read()
    return manifest.load_frozen(manifest.models[0])


def test_shipped_execution_equals_the_int64_reference():
    frozen = shipped()
    z_hat, v_hats = random_inputs(frozen, 0, 2, 3, width=2000)
    inputs = np.rint(z_hat / 30).astype(np.int64), v_hats
    assert_equals_the_reference(frozen, inputs, 50)


@CONFIGS
def test_execution_does_not_depend_on_memory_layout(config):
    frozen = frozen_of(random_model(config, 0, 1.0))
    exact = ExactEntropyModel(frozen)
    z_hat, v_hats = random_inputs(frozen, 0)
    z_hat, v_hat = torch.from_numpy(z_hat), torch.from_numpy(v_hats[-1]).double()
    features = exact.features(z_hat, 50)
    turned = z_hat.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(features, exact.features(turned, 50))
    last = features.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    a, b = (exact.predict(len(v_hats) - 1, f, v_hat) for f in (features, last))
    assert torch.equal(a.indexes, b.indexes)
    assert torch.equal(a.means, b.means)


def digest_of_execution(device="cpu"):
    """A digest of everything that a decoder derives, from seeded symbols: by the shipped model, and by
    one of four passes."""
    digest = hashlib.sha256()
    for frozen in (shipped(), frozen_of(random_model(FOUR, 5, 1.0))):
        exact = ExactEntropyModel(frozen).to(device)
        z_hat, v_hats = random_inputs(frozen, 7, width=3000)
        features = exact.features(torch.from_numpy(z_hat // 20).to(device), 40)
        tensors = [features, exact.when(*features.shape[1:])]
        for k, v_hat in enumerate(v_hats):
            parameters = exact.predict(k, features, torch.from_numpy(v_hat).double().to(device))
            tensors += [parameters.indexes, parameters.means]
        for tensor in tensors:
            digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


DIGEST = """
import sys, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(int(sys.argv[2]))
from test_entropy import digest_of_execution
print(digest_of_execution())
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
    assert printed.strip() == digest_of_execution()


@pytest.mark.cuda
def test_same_bits_on_cuda():
    assert digest_of_execution("cuda") == digest_of_execution("cpu")


# --------------------------------------------------------------------------- freezing


def test_weights_that_could_be_inexact_are_refused():
    frozen = frozen_of(random_model(FOUR, 0, 1.0))
    bias = np.full(3 * N, 2**52, np.int64)
    with pytest.raises(ModelError, match="exact"):
        FrozenEntropyModel.read({**frozen.tensors, "fusion.2.bias": bias})


def test_quantised_weights_use_int16_and_come_back():
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 24, 1)
    arrays = quantise_conv(conv)
    peak = np.abs(arrays["weight"].astype(int)).reshape(24, -1).max(1)
    assert (peak > 32767 // 2).all()
    copy = nn.Conv2d(16, 24, 1)
    dequantise(arrays, copy)
    step = np.exp2(-arrays["exponent"].astype(float))[:, None, None, None]
    assert ((copy.weight - conv.weight).abs().detach().numpy() <= step * 0.51).all()
    again = quantise_conv(copy)
    assert np.array_equal(again["exponent"], arrays["exponent"])
    assert np.array_equal(again["weight"], arrays["weight"])


@CONFIGS
def test_thawing_and_freezing_again_changes_nothing(config):
    model = random_model(config, 1, 1.0)
    frozen = frozen_of(model)
    thawed = thaw(frozen, config)
    for name, curve in (("embedding", model.embedding), ("prior_z", model.prior_z)):
        if curve is not None:
            getattr(thawed, name).load_state_dict(curve.state_dict())
    again = freeze(thawed, frozen.tables("y"), frozen.tables("z"))
    assert again.fingerprint == frozen.fingerprint
    with pytest.raises(ModelError, match="configuration"):
        thaw(frozen, replace(config, width=WIDTH + 1))


@CONFIGS
def test_the_fingerprint_sees_every_tensor(config):
    frozen = frozen_of(random_model(config, 1, 1.0))
    assert "program" in frozen.tensors
    for name, array in frozen.tensors.items():
        changed = array.copy()
        changed.reshape(-1)[-1] ^= 1
        other = FrozenEntropyModel(frozen.program, {**frozen.tensors, name: changed})
        assert other.fingerprint != frozen.fingerprint


@CONFIGS
def test_integers_follow_the_float_model(config):
    """Features within a few hundredths of a symbol, where nothing saturates."""
    model = random_model(config, 3, 0.3)
    frozen = frozen_of(model)
    exact = ExactEntropyModel(frozen)
    z_hat = torch.from_numpy(random_inputs(frozen, 3)[0] // 16)
    features = exact.features(z_hat, 75)
    with torch.no_grad():
        told = model.told(z_hat[None].float(), torch.tensor([75.0]))
        expected = model.fusion(model.h_s(told))[0] * 256
    assert (features - expected).abs().max() < 6
    assert (features - expected).abs().mean() < 1


@pytest.mark.parametrize("order", [CHECKERBOARD, QUADTREE])
def test_training_codes_in_the_passes_of_the_coder(order):
    """Of maps of odd sides too."""
    model = EntropyModel(EntropyConfig(8, 4, 8, order))
    for shape in ((8, 4, 6), (8, 5, 7)):
        expected = torch.from_numpy(passes.masks(order, shape))
        assert torch.equal(model.masks(torch.zeros(2, *shape)), expected)


def test_tables_are_valid_and_cover_what_they_should():
    """Those that ship, which are fitted to what photographs are coded as, and those of a model as it was
    trained: the masses of its two Gaussians."""
    trained = random_model(FOUR, 0, 1.0)
    for frozen, model in (
        (shipped(), Manifest.read().load(Manifest.read().models[0]).trainable().entropy),
        (frozen_of(trained), trained),
    ):
        assert len(Tables(*frozen.tables("y"))) == SCALES  # Tables checks sums and minima
        levels = frozen.program.quality_levels
        assert len(Tables(*frozen.tables("z"))) == frozen.program.hyper * levels
        frequencies, lengths, lows = frozen.tables("y")
        weight, ratio = model.tail_shape
        assert np.array_equal(-lows, np.ceil(5 * ratio * scale_values()))
        assert np.array_equal(lengths, 2 - 2 * lows)
        zero = frequencies[np.cumsum(lengths) - lengths - lows] / 2**PRECISION
        narrow = [math.erf(0.5 / scale / math.sqrt(2)) for scale in scale_values()]
        wide = [math.erf(0.5 / (ratio * scale) / math.sqrt(2)) for scale in scale_values()]
        masses = np.multiply(1 - weight, narrow) + np.multiply(weight, wide)
        if model is trained:
            assert np.allclose(zero, masses, atol=1e-4)
        assert np.abs(np.log(zero / masses)).max() < math.log(2)  # a fit is a correction


# --------------------------------------------------------------------------- the program


def forged(frozen, **changes):
    """The tensors of a frozen model whose program has other entries."""
    entries = json.loads(frozen.program.to_json())
    entries = {k: v for k, v in {**entries, **changes}.items() if v is not ...}
    text = np.frombuffer(json.dumps(entries).encode(), np.uint8)
    return {**frozen.tensors, "program": text}


def test_a_program_survives_its_text():
    frozen = frozen_of(random_model(FOUR, 0, 1.0))
    assert Program.from_json(frozen.program.to_json()) == frozen.program
    assert FrozenEntropyModel.read(forged(frozen)).program == frozen.program


NETWORKS = json.loads(frozen_of(random_model(FOUR, 0, 1.0)).program.to_json())["networks"]
FUSION = NETWORKS["fusion"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 2"),
        ({"latents": 10**9}, "impossible latents"),
        ({"latents": True}, "number"),
        ({"hyper": Z + 1}, "another shape"),
        ({"tile": 1 << 30}, "impossible tile"),
        ({"stride": 128}, "impossible stride"),
        ({"mean_unit": 3}, "power of two"),
        ({"scales": 65}, "tables"),
        ({"quality_levels": 101}, "tables"),
        ({"z_max": 128}, "impossible z_max"),
        ({"order": [[[0, 1], [2, 4]]]}, "leaves a pass out"),
        ({"order": [[[0, 1]]]}, "2x2"),
        ({"order": [[[0, 0], [0, 0]]] * 3}, "2x2"),
        ({"order": [[[0, 0], [0, 1]]]}, "networks"),
        ({"order": 7}, "malformed"),
        ({"networks": {**NETWORKS, "fusion": [["conv5x5", "fusion.2"]]}}, "'conv5x5'"),
        ({"networks": {**NETWORKS, "fusion": FUSION[:-1]}}, "fit together"),
        ({"networks": {**NETWORKS, "fusion": [*FUSION[:-1], ["conv1x1", "none"]]}}, "lack"),
        ({"networks": {**NETWORKS, "fusion": [["dw3x3", "fusion.2"]]}}, "another shape"),
        ({"networks": {**NETWORKS, "h_s": NETWORKS["h_s"][2:]}}, "resolution"),
        ({"networks": {**NETWORKS, "head": [*NETWORKS["head"], ["shuffle", 2]]}}, "fit together"),
        ({"networks": {**NETWORKS, "h_s": [["shuffle", 1000]]}}, "shuffles"),
        ({"networks": {**NETWORKS, "fusion": [["leaky"]] * 1000}}, "too deep"),
        ({"networks": {"h_s": NETWORKS["h_s"]}}, "networks"),
        ({"networks": {**NETWORKS, "fusion": [["conv1x1"]]}}, "malformed"),
        ({"networks": []}, "malformed"),
        ({"halo": ...}, "lacks or adds"),
        ({"colour": 1}, "lacks or adds"),
    ],
)
def test_a_program_that_does_not_fit_is_refused(changes, message):
    frozen = frozen_of(random_model(FOUR, 0, 1.0))
    with pytest.raises(ModelError, match=message):
        FrozenEntropyModel.read(forged(frozen, **changes))


def test_only_h_s_changes_the_resolution():
    frozen = frozen_of(random_model(FOUR, 0, 1.0))
    networks = {**NETWORKS, "body": [*NETWORKS["body"], ["shuffle", 2]]}
    head = frozen.tensors["head.weight"][:, : WIDTH // 4]
    with pytest.raises(ModelError, match="fit together"):
        FrozenEntropyModel.read({**forged(frozen, networks=networks), "head.weight": head})


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b"{", b"[" * 100_000, b"null"])
def test_a_program_that_is_none_is_refused(text):
    frozen = frozen_of(random_model(TWO, 0, 1.0))
    with pytest.raises(ModelError, match="program"):
        FrozenEntropyModel.read({**frozen.tensors, "program": np.frombuffer(text, np.uint8)})


@pytest.mark.parametrize(
    "name", ["tables_y.lows", "tables_z.frequencies", "fusion.2.weight", "head.bias", "program"]
)
def test_missing_tensors_are_noticed(name):
    frozen = frozen_of(random_model(TWO, 0, 1.0))
    with pytest.raises(ModelError):
        FrozenEntropyModel.read({k: v for k, v in frozen.tensors.items() if k != name})


@pytest.mark.parametrize(
    ("name", "shape"),
    [("fusion.2.weight", ()), ("fusion.2.weight", (0, 12, 1, 1)), ("fusion.2.bias", (0,))],
)
def test_tensors_of_odd_shapes_are_refused(name, shape):
    frozen = frozen_of(random_model(TWO, 0, 1.0))
    odd = np.zeros(shape, frozen.tensors[name].dtype)
    with pytest.raises(ModelError, match="shape"):
        FrozenEntropyModel.read({**frozen.tensors, name: odd})


def test_a_frozen_model_is_read_without_torch(python):
    script = (
        "import sys; sys.modules['torch'] = sys.modules['constriction'] = None\n"
        "from aiocodec.pretrained import Manifest\n"
        "manifest = Manifest.read(); print(manifest.load_frozen(manifest.models[0]).program.latents)"
    )
    assert int(python(script)) == shipped().program.latents


# --------------------------------------------------------------------------- the trainable model


@pytest.mark.parametrize("order", [CHECKERBOARD, QUADTREE])
@pytest.mark.parametrize("shape", [(8, 4, 4), (192, 8, 12), (4, 1, 1), (4, 5, 3)])
def test_passes_partition_the_latent(order, shape):
    masks = passes.masks(order, shape)
    assert masks.shape == (passes.count(order), *shape)
    assert (masks.sum(0) == 1).all()
    if shape[1] % 2 == shape[2] % 2 == 0:  # each pass codes its share of every 2x2 cell
        assert (masks.reshape(len(masks), -1).mean(1) == 1 / len(masks)).all()


def test_two_passes_are_a_checkerboard():
    first, second = passes.masks(CHECKERBOARD, (8, 4, 6))
    assert (first.sum(0) == 4).all()
    for axis in (0, 1):
        assert np.array_equal(first[0], np.roll(second[0], 1, axis))
    assert np.array_equal(first[0], second[-1])


def test_four_passes_are_a_quadtree():
    """Every pass codes one channel group at each position of a cell, and another one at each; its
    group's first and second positions lie diagonal."""
    masks = passes.masks(QUADTREE, (4, 2, 2))
    for mask in masks:
        assert (mask.sum(0) == 1).all()  # a group at each position
        assert (mask.sum((1, 2)) == 1).all()  # a position for each group
    for group in range(4):
        (first,), (second,) = (np.argwhere(masks[k, group]) for k in (0, 1))
        assert (np.abs(first - second) == 1).all()


@CONFIGS
def test_no_pass_sees_a_later_one(config):
    """What pass k is coded with depends on the symbols of the passes before it alone."""
    model = random_model(config, 0, 0.5).eval()
    torch.manual_seed(1)
    y, z, quality = torch.randn(1, N, 8, 8) * 3, torch.randn(1, Z, 2, 2), torch.tensor([50.0])
    masks = passes.masks(config.order, (N, 8, 8))
    before = model(y, z, quality, noise=False)[1]
    for k, mask in enumerate(masks[1:], start=1):
        later = torch.from_numpy(masks[k:].any(0))
        after = model(torch.where(later, y + torch.randn_like(y), y), z, quality, noise=False)[1]
        assert torch.equal(before[0][~later], after[0][~later])
        assert not torch.equal(before[0][mask], after[0][mask])


@pytest.mark.parametrize("levels", [1, 5, 11, 101])
def test_levels_of_quality_are_the_same_in_both_arithmetics(levels):
    config = replace(FOUR, quality_levels=levels)
    program = replace(frozen_of(random_model(FOUR, 0, 1.0)).program, quality_levels=levels)
    found = level_of_quality(torch.arange(101.0), config)
    assert [program.level(quality) for quality in range(101)] == found.int().tolist()
    assert found.min() == 0 and found.max() == levels - 1
    if levels > 1:
        error = quality_of_level(found, config) - torch.arange(101.0)
        assert error.abs().max() <= 50 / (levels - 1) + 1e-4


def test_the_tables_of_z_are_those_of_the_quality():
    model = random_model(FOUR, 2, 1.0)
    frozen = frozen_of(model)
    frequencies, lengths, lows = frozen.tables("z")
    starts = np.cumsum(lengths) - lengths
    for level in range(5):
        mass = model.prior_z.pmf(25.0 * level)
        for channel in range(Z):
            table = level * Z + channel
            entries = frequencies[starts[table] :][: lengths[table] - 1] / 2**PRECISION
            expected = mass[channel][lows[table] + Z_MAX :][: len(entries)]
            assert np.allclose(entries, expected / mass[channel].sum(), atol=2e-3)


def test_likelihoods_are_those_of_the_tables():
    """-log2 of the float likelihoods of integer symbols is the length under the integer tables."""
    model = EntropyModel(TWO).double()
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


@pytest.mark.parametrize("quality", [0.0, 70.0])
def test_the_factorised_prior_is_a_distribution(quality):
    torch.manual_seed(0)
    prior = FactorisedPrior(5, by_quality=True)
    for p in prior.parameters():
        nn.init.normal_(p, std=0.5)
    mass = prior.pmf(quality)
    assert mass.shape == (5, 2 * Z_MAX + 1)
    assert (mass >= 0).all()
    assert (mass.sum(1) <= 1 + 1e-12).all()
    wide = torch.arange(-3000, 3001).float().expand(1, 5, 1, -1)
    at = torch.tensor([quality])
    with torch.no_grad():
        assert torch.allclose(prior(wide, at).sum((0, 2, 3)), torch.ones(5), atol=5e-3)
        middle = prior(torch.arange(-Z_MAX, Z_MAX + 1).float().expand(1, 5, 1, -1), at)[0, :, 0]
    assert np.allclose(middle.numpy(), mass, atol=1e-5)


@CONFIGS
def test_rounding_is_straight_through_and_noise_is_not(config):
    model = random_model(config, 0, 0.2)
    y, z = torch.randn(1, N, 4, 4, requires_grad=True), torch.randn(1, Z, 1, 1, requires_grad=True)
    y_hat, likelihoods_y, likelihoods_z = model(y, z, torch.tensor([30.0]))
    assert ((likelihoods_y > 0) & (likelihoods_y <= 1)).all()
    assert ((likelihoods_z > 0) & (likelihoods_z <= 1)).all()
    y_hat.sum().backward()
    assert y.grad.abs().sum() > 0
    assert z.grad.abs().sum() > 0
