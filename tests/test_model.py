import json
from dataclasses import replace

import pytest
import torch

from aiocodec.config import (
    CHECKERBOARD,
    LMBDA_MAX,
    LMBDA_MIN,
    VARIANTS,
    EntropyConfig,
    ModelConfig,
    Stage,
)
from aiocodec.model import Model, complexity, deepen, lmbda, widen

ENTROPY = EntropyConfig(latents=24, hyper=8, width=16)
TINY = ModelConfig(
    "tiny",
    (Stage(8, 24, ("hatb", "dcb")),),
    (Stage(4, 16, ("dcb",)), Stage(8, 24, ("dcb",))),
    ENTROPY,
    gated=True,
)
FIRST = ModelConfig(
    "first",
    (Stage(8, 24, ("hatb",)),),
    (Stage(8, 24, ("hatb",)),),
    replace(ENTROPY, order=CHECKERBOARD, quality_levels=1),
    lapped=False,
)
COARSE = ModelConfig(
    "coarse",
    (Stage(8, 24, ("dcb",)), Stage(16, 32, ("dcb",))),
    (Stage(4, 16, ("dcb",)), Stage(8, 24, ("dcb",)), Stage(16, 32, ("dcb",))),
    ENTROPY,
)
_STAGES = tuple(Stage(2**i, 8 * (i + 1), ("hatb",)) for i in range(4))
PAPER = ModelConfig("paper", _STAGES, _STAGES, ENTROPY, gain_stride=4)
SMALL = [TINY, FIRST, COARSE, PAPER]


@pytest.mark.parametrize("config", [*VARIANTS.values(), *SMALL], ids=lambda c: c.name)
def test_shapes(config):
    with torch.device("meta"):
        model = Model(config)
        x, quality = torch.empty(2, 3, 128, 192), torch.empty(2)
        y = model.transforms.g_a(x, quality)
        assert y.shape == (2, config.entropy.latents, 8, 12)
        assert model.transforms.h_a(y).shape == (2, config.entropy.hyper, 2, 3)
        assert model.transforms.g_s(y, quality).shape == x.shape


@pytest.mark.parametrize(("name", "paper"), [("s", 37e9), ("l", 67e9)])
def test_complexity_agrees_with_the_paper(name, paper):
    """Table 2: multiply-accumulates of the whole model at 256x256."""
    assert sum(complexity(VARIANTS[name]).macs.values()) == pytest.approx(paper, rel=0.2)


def test_complexity_counts_what_hooks_count():
    """The convolutions of g_a, counted by hand; the rest is C-GA's two products per HATB and the 16
    products per sample and direction of the lapping."""
    config = VARIANTS["nano"]
    total = 0

    def count(layer, inputs, output):
        nonlocal total
        total += layer.weight[0].numel() * output.numel()

    with torch.device("meta"):
        model = Model(config)
        for layer in model.transforms.g_a.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.register_forward_hook(count)
        model.transforms.g_a(torch.empty(1, 3, 256, 256), torch.empty(1))
    (stage,) = config.analysis
    attention = stage.blocks.count("hatb") * 2 * 32 * 32 * 32 * stage.width
    lapping = 2 * 3 * 256 * 240 * 16
    found = complexity(config).macs["g_a"]
    assert found == pytest.approx(
        total + attention + lapping, rel=1e-4
    )  # and the filters themselves


@pytest.mark.parametrize("config", SMALL, ids=lambda c: c.name)
def test_without_the_deep_path_an_untrained_model_is_a_transform_codec(config):
    """The linear path starts as a DCT of 16x16 blocks and its inverse, so smooth images survive
    before any training, the better the higher the quality, at more bits."""
    torch.manual_seed(0)
    model = Model(config).eval().requires_grad_(False)
    for layer in (model.transforms.g_a.head, model.transforms.g_s.tail):
        layer.weight.zero_()
    ramp = torch.linspace(0.2, 0.8, 64)
    x = torch.stack(
        [ramp.expand(64, 64), ramp[:, None].expand(64, 64), (ramp + ramp[:, None]) / 2]
    )[None]
    with torch.no_grad():
        outs = [model(x, torch.tensor([q]), noise=False) for q in (0.0, 100.0)]
    errors = [(out.x_hat - x).square().mean().item() for out in outs]
    assert errors[1] < errors[0] < 0.02
    assert errors[1] < 0.001
    assert outs[0].bpp() < outs[1].bpp()


def test_quality_is_per_image():
    torch.manual_seed(0)
    model = Model(TINY).eval()
    x = torch.rand(1, 3, 64, 64).expand(2, -1, -1, -1)
    with torch.no_grad():
        both = model(x, torch.tensor([10.0, 90.0]), noise=False)
        alone = model(x[:1], torch.tensor([90.0]), noise=False)
    assert torch.allclose(both.x_hat[1], alone.x_hat[0], atol=1e-4)
    assert both.bpp()[1].item() == pytest.approx(alone.bpp().item(), rel=1e-3)


def test_lmbda_is_log_linear():
    quality = torch.tensor([0.0, 50.0, 100.0])
    expected = torch.tensor([LMBDA_MIN, (LMBDA_MIN * LMBDA_MAX) ** 0.5, LMBDA_MAX])
    assert torch.allclose(lmbda(quality), expected)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=lambda c: c.name)
def test_config_survives_json(config):
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: replace(TINY, analysis=(Stage(8, 24, ()), Stage(8, 24, ()))), "double"),
        (lambda: replace(TINY, synthesis=(Stage(4, 24, ()),)), "end at stride"),
        (lambda: replace(TINY, analysis=()), "end at stride"),
        (lambda: replace(TINY, gain_stride=2), "gain_stride"),
        (lambda: Stage(3, 24, ()), "stride"),
        (lambda: Stage(8, 22, ()), "channels"),
        (lambda: Stage(8, 24, ("conv",)), "dcb or hatb"),
        (lambda: EntropyConfig(latents=22), "groups"),
        (lambda: EntropyConfig(hyper=0), "positive"),
    ],
)
def test_config_refuses_what_cannot_be_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("fields", [{"colour": 1}, {"entropy": {"colour": 1}}, {"analysis": 3}])
def test_config_refuses_unknown_fields(fields):
    with pytest.raises(TypeError):
        ModelConfig.from_dict({**TINY.to_dict(), **fields})


@pytest.mark.parametrize("config", SMALL, ids=lambda c: c.name)
def test_a_deepened_model_computes_the_same_and_learns_more(config):
    analysis, synthesis = (
        tuple(
            replace(s, blocks=(*s.blocks, *("dcb", "hatb")[: 1 + i % 2])) for i, s in enumerate(t)
        )
        for t in (config.analysis, config.synthesis)
    )
    deep = replace(config, analysis=analysis, synthesis=synthesis)
    torch.manual_seed(0)
    model = Model(config).eval()
    deeper = deepen(model, deep).eval()
    assert deeper.config == deep
    x, quality = torch.rand(1, 3, 64, 64), torch.tensor([40.0])
    before, after = (m(x, quality, noise=False) for m in (model, deeper))
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b)
    after.x_hat.square().mean().backward()
    new = {n for n, _ in deeper.named_parameters()} - {n for n, _ in model.named_parameters()}
    moved = {n for n, p in deeper.named_parameters() if p.grad is not None and p.grad.any()}
    for transform in ("g_a", "g_s"):
        assert any(n.startswith(f"transforms.{transform}") for n in new & moved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"analysis": (Stage(8, 24, ("hatb",)),)}, "further blocks"),
        ({"analysis": (Stage(8, 24, ("dcb", "hatb", "dcb")),)}, "further blocks"),
        ({"synthesis": (Stage(8, 24, ("dcb",)),)}, "further blocks"),
        ({"entropy": replace(ENTROPY, latents=32)}, "only the depths"),
    ],
)
def test_only_depths_grow(change, message):
    with pytest.raises(ValueError, match=message):
        deepen(Model(TINY), replace(TINY, **change))


@pytest.mark.parametrize("config", SMALL, ids=lambda c: c.name)
def test_a_widened_model_gives_the_same_without_its_new_latents_and_more_with_them(config):
    torch.manual_seed(0)
    model = Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    wider = widen(model, replace(config, entropy=replace(config.entropy, latents=40), gated=True))
    wider.eval()
    x, quality = torch.rand(1, 3, 64, 64), torch.tensor([40.0])
    groups = len(config.entropy.order)
    old = torch.arange(40).view(groups, -1)[:, : 24 // groups].flatten()
    with torch.no_grad():
        y, y_wide = (m.transforms.g_a(x, quality) for m in (model, wider))
        torch.testing.assert_close(y_wide[:, old], y)
        padded = torch.zeros_like(y_wide)
        padded[:, old] = y
        for part in ("g_s", "h_a"):
            arguments = [quality] if part == "g_s" else []
            before, after = (
                getattr(m.transforms, part)(values, *arguments)
                for m, values in ((model, y), (wider, padded))
            )
            torch.testing.assert_close(after, before)
        z = model.transforms.h_a(y)
        before, after = (
            m.entropy(values, z, quality, noise=False)[1]
            for m, values in ((model, y), (wider, padded))
        )
        torch.testing.assert_close(after[:, old], before)
        errors = [
            (g_s.linear(g_a.linear(x)) - x).square().mean()
            for g_a, g_s in ((m.transforms.g_a, m.transforms.g_s) for m in (model, wider))
        ]
        assert errors[1] < errors[0]


@pytest.mark.parametrize(
    "change",
    [
        {"entropy": replace(ENTROPY, latents=16)},
        {"entropy": replace(ENTROPY, latents=772)},
        {"entropy": replace(ENTROPY, hyper=16)},
        {"analysis": (Stage(8, 24, ("hatb",)),)},
        {"gated": False},
    ],
    ids=str,
)
def test_latents_only_grow_and_nothing_else_does(change):
    with pytest.raises(ValueError, match=r"latents|frequencies"):
        widen(Model(TINY), replace(TINY, **change))


def test_a_gate_begins_open_and_shuts_the_linear_path():
    torch.manual_seed(0)
    g_a, plain = Model(TINY).transforms.g_a, Model(replace(TINY, gated=False)).transforms.g_a
    plain.load_state_dict(g_a.state_dict(), strict=False)
    x, quality = torch.rand(1, 3, 64, 64), torch.tensor([40.0])
    with torch.no_grad():
        torch.testing.assert_close(g_a(x, quality), plain(x, quality))
        linear = g_a.linear_path(x, quality)
        g_a.gate.bias.fill_(-100.0)
        torch.testing.assert_close(g_a(x, quality), plain(x, quality) - linear)


def test_a_gate_that_is_added_changes_nothing():
    torch.manual_seed(0)
    plain = Model(replace(TINY, gated=False))
    gated = widen(plain, TINY)
    x, quality = torch.rand(1, 3, 64, 64), torch.tensor([40.0])
    with torch.no_grad():
        for a, b in zip(*(m(x, quality, noise=False) for m in (plain, gated)), strict=True):
            torch.testing.assert_close(a, b)
