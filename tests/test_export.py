"""g_s as an ONNX graph computes what g_s does, whole and in tiles."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from aiocodec.config import LATENT_STRIDE, VARIANTS, EntropyConfig, ModelConfig, Stage
from aiocodec.layers import ResidualBranches
from aiocodec.model import Model
from aiocodec.pretrained import Manifest
from aiocodec.tiles import tiles
from aiocodec.training.export import synthesis_halo, synthesis_onnx
from aiocodec.training.release import export, release
from aiocodec.transforms import Synthesis

MODELS = Manifest.read().models
SMALL = EntropyConfig(latents=8, hyper=4, width=8)
STAGES = (Stage(4, 16, ("dcb",)), Stage(8, 16, ("dcb", "dcb")))
LOCAL = ModelConfig("nano", STAGES, STAGES, SMALL)  # as the second generation is
GLOBAL = ModelConfig(
    "nano", (Stage(8, 16, ("hatb",)),), (Stage(8, 16, ("hatb",) * 2),), SMALL, lapped=False
)
FINEST = tuple(Stage(2**i, 16, ("hatb",)) for i in range(4))
PAPER = ModelConfig("s", FINEST, FINEST, SMALL, gain_stride=4)


def lively(config: ModelConfig) -> Synthesis:
    """A g_s none of whose parameters is what initialisation makes of it."""
    torch.manual_seed(1)
    g_s = Synthesis(config).eval().requires_grad_(False)
    for p in g_s.parameters():
        p += 0.1 * torch.randn_like(p)
    return g_s


def run(graph: bytes, y_hat: torch.Tensor, quality: float) -> torch.Tensor:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    inputs = {"y_hat": y_hat.numpy(), "quality": np.array([quality], np.float32)}
    return torch.from_numpy(session.run(["x_hat"], inputs)[0])


def assert_the_same(graph: bytes, g_s: Synthesis, y_hat: torch.Tensor, quality: float) -> None:
    expected = g_s(y_hat, torch.tensor([quality]))
    scale = max(1.0, float(expected.abs().max()))
    assert (run(graph, y_hat, quality) - expected).abs().max() < 1e-4 * scale


@pytest.mark.parametrize("config", [LOCAL, GLOBAL, PAPER], ids=["local", "global", "paper"])
def test_a_graph_computes_what_g_s_does_at_every_size_and_quality(config):
    g_s = lively(config)
    graph = synthesis_onnx(g_s)
    for height, width, quality in [(4, 4, 0.0), (2, 12, 50.0), (8, 6, 100.0)]:
        assert_the_same(graph, g_s, torch.randn(1, 8, height, width), quality)


def test_tiles_with_the_halo_give_the_whole_picture():
    g_s = lively(LOCAL)
    halo, graph = synthesis_halo(g_s), synthesis_onnx(g_s)
    y_hat = torch.randn(1, 8, 20, 24)
    whole = run(graph, y_hat, 30)
    seen = torch.zeros_like(whole)
    for tile in tiles(20, 24, 6, halo):
        part = run(graph, y_hat[(..., *tile.around(1))].contiguous(), 30)
        seen[(..., *tile.of(LATENT_STRIDE))] = part[(..., *tile.within(LATENT_STRIDE))]
    assert (seen - whole).abs().max() < 1e-5 * whole.abs().max()


def test_the_halo_is_none_too_wide_nor_too_narrow():
    """A change of y beyond the halo changes nothing, one within it does."""
    g_s = lively(LOCAL)
    halo = synthesis_halo(g_s)
    y_hat, quality = torch.randn(1, 8, 2, 24), torch.tensor([50.0])
    edge = 12 * LATENT_STRIDE  # right of it nothing may depend on what lies left of the halo
    before = g_s(y_hat, quality)[..., edge:]
    beyond, within = y_hat.clone(), y_hat.clone()
    beyond[..., : 12 - halo] += 1
    within[..., 11] += 1
    assert torch.equal(g_s(beyond, quality)[..., edge:], before)
    assert not torch.equal(g_s(within, quality)[..., edge:], before)
    assert halo < 12


def test_attention_has_no_halo():
    assert synthesis_halo(lively(GLOBAL)) is None


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_that_ships_is_g_s_of_the_weights_that_ship(name):
    manifest = Manifest.read()
    graph, halo = manifest.synthesis(name)
    g_s = manifest.load(name).transforms().g_s
    assert halo == synthesis_halo(g_s)
    torch.manual_seed(0)
    y_hat = 3 * torch.randn(1, manifest.config(name).entropy.latents, 8, 12)
    for quality in (0.0, 50.0, 100.0):
        assert_the_same(graph, g_s, y_hat, quality)


def test_half_precision_is_only_of_what_it_holds_exactly():
    """A graph of weights that float16 lacks is as exact, and twice as large."""
    coarse, fine = lively(LOCAL), lively(LOCAL)
    for p in coarse.parameters():
        p.copy_(p.half().float())
    sizes = []
    for g_s in (coarse, fine):
        graph = synthesis_onnx(g_s)
        sizes.append(len(graph))
        assert_the_same(graph, g_s, torch.randn(1, 8, 4, 4), 70)
    assert sizes[0] < 0.7 * sizes[1]


def test_a_layer_without_counterpart_is_refused():
    g_s = lively(LOCAL)
    g_s.stages[0] = nn.Sequential(ResidualBranches(nn.BatchNorm2d(16)))
    with pytest.raises(TypeError, match="BatchNorm2d has no counterpart"):
        synthesis_onnx(g_s)


def test_every_variant_has_a_graph():
    for config in VARIANTS.values():
        with torch.device("meta"):
            kinds = {type(m) for m in Synthesis(config).modules()}
        assert kinds <= {type(m) for c in (LOCAL, GLOBAL, PAPER) for m in Synthesis(c).modules()}


def test_a_release_ships_the_graph_and_a_second_one_replaces_it(tmp_path):
    torch.manual_seed(0)
    release(Model(LOCAL), tmp_path)
    first, halo = Manifest.read(tmp_path).synthesis("nano")
    assert halo == synthesis_halo(lively(LOCAL))
    torch.manual_seed(1)
    release(Model(LOCAL), tmp_path)
    second, _ = Manifest.read(tmp_path).synthesis("nano")
    assert first != second
    assert_the_same(
        second,
        Manifest.read(tmp_path).load("nano").transforms().g_s,
        torch.randn(1, 8, 4, 4),
        50,
    )
    assert export(tmp_path, "nano").read_bytes() == second, "an export is reproducible"
