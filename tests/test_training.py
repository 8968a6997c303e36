"""The training loop in miniature: it learns, goes on where it stopped, and refuses what is wrong."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from aiocodec.errors import AicError, ImageError
from aiocodec.model import VARIANTS, Model, ModelConfig
from aiocodec.training.data import Patches, load_folder
from aiocodec.training.degrade import degrade, gaussian_noise
from aiocodec.training.train import (
    Diverged,
    Run,
    TrainConfig,
    load_average,
    orthogonalise,
    rate_distortion,
    train,
    validate,
)

TINY = ModelConfig("tiny", 8, (16,), (1,), (1,), latents=24, hyper=8, prior_width=16)
QUICK = TrainConfig(
    minutes=6 / 60, phases=((0.0, 64, 2),), warmup=5, report_seconds=0.2, checkpoint_seconds=0.5
)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(3):
        small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((128, 96), Image.Resampling.BICUBIC).save(
            tmp_path / f"photos/{i}.png"
        )
    (tmp_path / "photos/notes.txt").write_text("not an image")
    (tmp_path / "photos/broken.png").write_bytes(b"not an image either")
    return tmp_path / "photos"


def test_training_learns_and_goes_on(folder, tmp_path):
    out = tmp_path / "run"
    torch.manual_seed(0)
    rows = []
    start = Model(TINY)
    batch, quality = Patches(load_folder(folder)).batch(8, 64), torch.linspace(0, 100, 8)
    before = rate_distortion(start, batch, batch, quality)[0].item()
    run = train(folder, out, config=QUICK, start=start, validation=folder, report=rows.append)
    assert rate_distortion(run.model, batch, batch, quality)[0].item() < before * 0.8
    assert any("loss" in row for row in rows)
    assert json.loads(json.dumps(rows)) == [
        json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()
    ]
    assert {(r["sigma"], r["quality"]) for r in rows[-1]["validation"]} == {
        (s, q) for s in (0, 25) for q in (10, 50, 90)
    }

    model, counters = load_average(out / "checkpoint.pt")
    assert counters["step"] == run.step > 0
    for a, b in zip(model.parameters(), run.average.parameters(), strict=True):
        assert torch.equal(a, b)

    longer = replace(QUICK, minutes=QUICK.minutes + 0.5 / 60)
    again = train(folder, out, config=longer, start=Model(TINY))
    assert again.step > run.step
    assert again.patches == 2 * again.step
    # the budget is of both runs together
    assert again.seconds < run.seconds + 5


def test_a_checkpoint_of_another_model_is_refused(folder, tmp_path):
    Run.create(Model(TINY), QUICK).save(tmp_path / "checkpoint.pt")
    other = Model(replace(TINY, hyper=16))
    with pytest.raises(AicError, match="another model"):
        train(folder, tmp_path, config=QUICK, start=other)


def test_a_loss_that_is_no_number_stops_the_run(folder, tmp_path):
    model = Model(TINY)
    with torch.no_grad():
        model.g_s.tail.bias.fill_(math.nan)
    with pytest.raises(Diverged, match="not finite"):
        train(folder, tmp_path, config=QUICK, start=model)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_one_bad_step_is_skipped():
    run = Run.create(Model(TINY), QUICK)
    rng = torch.Generator().manual_seed(0)
    before = [p.clone() for p in run.model.parameters()]
    assert run.update(torch.full((1, 3, 64, 64), math.nan), rng) is None
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    assert run.update(torch.rand(1, 3, 64, 64), rng) is not None


def test_a_folder_without_images(tmp_path):
    with pytest.raises(ImageError, match="no readable images"):
        train(tmp_path, tmp_path / "run", config=QUICK, start=Model(TINY))


def test_patches_that_do_not_fit(folder):
    images = load_folder(folder)
    assert [tuple(image.shape) for image in images] == [(3, 96, 128)] * 3
    assert Patches(images).batch(5, 64).shape == (5, 3, 64, 64)
    with pytest.raises(ImageError, match="128 pixels"):
        Patches(images).batch(1, 128)


def test_patch_sides_are_multiples_of_64():
    with pytest.raises(ValueError, match="64"):
        TrainConfig(phases=((0.0, 100, 1),))


def test_the_loss_is_rate_plus_weighted_distortion():
    torch.manual_seed(0)
    model = Model(TINY)
    clean, quality = torch.rand(2, 3, 64, 64), torch.tensor([0.0, 100.0])
    loss, bpp, mse = rate_distortion(model, clean, clean, quality)
    assert loss.item() == pytest.approx(
        (bpp + torch.tensor([40.0, 8000.0]) * mse).mean().item(), rel=1e-5
    )


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    model = Model(TINY)
    for head in (model.entropy.fusion[-1], model.entropy.spatial_prior[-1]):
        torch.nn.init.normal_(head.weight, std=0.1)
    clean = torch.rand(2, 3, 128, 128)
    rate_distortion(model, clean, clean, torch.tensor([30.0, 80.0]))[0].backward()
    dead = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert not dead


def test_muon_orthogonalises():
    torch.manual_seed(0)
    for shape in ((2, 24, 40), (2, 40, 24)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_nano_is_what_quick_training_trains():
    assert sum(p.numel() for p in Model(VARIANTS["nano"]).parameters()) < 6e6


def test_noise_is_seeded_and_of_the_given_strength():
    x = torch.full((2, 3, 128, 128), 0.5)
    noisy = gaussian_noise(x, torch.tensor([10.0, 30.0]), torch.Generator().manual_seed(3))
    assert torch.equal(
        noisy, gaussian_noise(x, torch.tensor([10.0, 30.0]), torch.Generator().manual_seed(3))
    )
    spread = ((noisy - x) * 255).flatten(1).std(1)
    assert spread.tolist() == pytest.approx([10, 30], rel=0.02)
    assert torch.equal((noisy * 255).round() / 255, noisy)
    assert noisy.min() >= 0
    assert noisy.max() <= 1


def test_degradation_leaves_the_given_share_clean():
    x = torch.full((400, 3, 8, 8), 0.5)
    out = degrade(x, torch.Generator().manual_seed(0), clean=0.3)
    untouched = (out == x).flatten(1).all(1).float().mean()
    assert untouched == pytest.approx(0.3, abs=0.08)


def test_validation_degrades_the_same_way_every_time(folder):
    model = Model(TINY).eval()
    images = load_folder(folder)
    assert validate(model, images) == validate(model, images)
