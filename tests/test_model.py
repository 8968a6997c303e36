import json
from dataclasses import replace

import pytest
import torch

from aiocodec.model import (
    LMBDA_MAX,
    LMBDA_MIN,
    VARIANTS,
    Model,
    ModelConfig,
    complexity,
    deepen,
    lmbda,
)

TINY = ModelConfig("tiny", 8, (24,), (1,), (1,), latents=24, hyper=8, prior_width=16)
TINY_STAGES = ModelConfig("stages", 1, (8, 8, 16, 24), (1,) * 4, (1,) * 4, 24, 8, 16)


@pytest.mark.parametrize("config", [*VARIANTS.values(), TINY, TINY_STAGES], ids=lambda c: c.name)
def test_shapes(config):
    with torch.device("meta"):
        model = Model(config)
        x, quality = torch.empty(2, 3, 128, 192), torch.empty(2)
        y = model.g_a(x, quality)
        assert y.shape == (2, config.latents, 8, 12)
        assert model.h_a(y).shape == (2, config.hyper, 2, 3)
        assert model.g_s(y, quality).shape == x.shape


@pytest.mark.parametrize(("name", "paper"), [("s", 37e9), ("l", 67e9)])
def test_complexity_agrees_with_the_paper(name, paper):
    """Table 2: multiply-accumulates of the whole model at 256x256."""
    assert sum(complexity(VARIANTS[name]).macs.values()) == pytest.approx(paper, rel=0.2)


def test_complexity_counts_what_hooks_count():
    """The convolutions of g_a, counted by hand; the rest is C-GA's two products per block."""
    config = VARIANTS["nano"]
    total = 0

    def count(layer, inputs, output):
        nonlocal total
        total += layer.weight[0].numel() * output.numel()

    with torch.device("meta"):
        model = Model(config)
        for layer in model.g_a.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.register_forward_hook(count)
        model.g_a(torch.empty(1, 3, 256, 256), torch.empty(1))
    attention = config.blocks_a[0] * 2 * 32 * 32 * 32 * config.widths[0]
    assert complexity(config).macs["g_a"] == total + attention


@pytest.mark.parametrize("config", [TINY, TINY_STAGES], ids=lambda c: c.name)
def test_without_the_deep_path_an_untrained_model_is_a_transform_codec(config):
    """The linear shortcut starts as a DCT of 16x16 blocks and its inverse, so smooth images survive
    before any training, the better the higher the quality, at more bits."""
    torch.manual_seed(0)
    model = Model(config).eval().requires_grad_(False)
    for layer in (model.g_a.head, model.g_s.tail):
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
    "fields",
    [{"patch": 4}, {"widths": (24, 24)}, {"latents": 23}, {"widths": (22,)}, {"blocks_a": (1, 1)}],
)
def test_config_refuses_what_cannot_be_built(fields):
    with pytest.raises(ValueError, match="must"):
        ModelConfig(**{**TINY.to_dict(), **fields})


def test_config_refuses_unknown_fields():
    with pytest.raises(TypeError):
        ModelConfig.from_dict({**TINY.to_dict(), "colour": 1})


@pytest.mark.parametrize("config", [TINY, TINY_STAGES], ids=lambda c: c.name)
def test_a_deepened_model_computes_the_same_and_learns_more(config):
    deep = replace(
        config,
        blocks_a=tuple(b + 1 for b in config.blocks_a),
        blocks_s=tuple(b + i % 2 + 1 for i, b in enumerate(config.blocks_s)),
    )
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
        assert any(n.startswith(transform) for n in new & moved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks_a": (0,)}, "lose"),
        ({"blocks_s": (0,)}, "lose"),
        ({"latents": 32}, "only the depths"),
    ],
)
def test_only_depths_grow(change, message):
    with pytest.raises(ValueError, match=message):
        deepen(Model(TINY), replace(TINY, **change))
