"""The training loop in miniature: it learns, goes on where it stopped, and refuses what is wrong."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from aiocodec.cli import cli
from aiocodec.config import VARIANTS, EntropyConfig, ModelConfig, Stage
from aiocodec.errors import Diverged, ImageError, LimitError, TrainingError
from aiocodec.model import Model, lmbda
from aiocodec.training.benchmark import benchmark
from aiocodec.training.checkpoint import (
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from aiocodec.training.config import TrainConfig
from aiocodec.training.data import Pairs, Photographs
from aiocodec.training.loop import _draw, train
from aiocodec.training.muon import Muon, orthogonalise
from aiocodec.training.run import HOPELESS, Run, compile_parts, optimisers, rate_distortion
from aiocodec.training.validate import VALIDATION, plot, validate

TINY = ModelConfig(
    "tiny",
    (Stage(8, 16, ("hatb",)),),
    (Stage(4, 16, ("dcb",)), Stage(8, 16, ("dcb",))),
    EntropyConfig(latents=24, hyper=8, width=16),
)
QUICK = TrainConfig(
    minutes=2.5 / 60, phases=((0.0, 64, 2),), warmup=5, report_seconds=0.2, checkpoint_seconds=0.5
)
TICK = 0.025  # seconds that a step takes by the clock of `ticks`


@pytest.fixture
def ticks(monkeypatch):
    """A clock that goes by steps, so that budgets do not depend on how busy the machine is."""
    clock = SimpleNamespace(monotonic=partial(next, itertools.count(0, TICK)))
    monkeypatch.setattr("aiocodec.training.loop.time", clock)


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


def test_training_learns_and_goes_on(folder, tmp_path, ticks):
    out = tmp_path / "run"
    torch.manual_seed(0)
    rows = []
    start = Model(TINY)
    batch = Photographs.load(folder).batch(8, 64, torch.Generator().manual_seed(0))
    quality = torch.linspace(0, 100, 8)
    before = rate_distortion(start, batch, batch, quality)[0].item()
    run = train(folder, out, config=QUICK, start=start, validation=folder, report=rows.append)
    assert rate_distortion(run.model, batch, batch, quality)[0].item() < before * 0.9
    assert any("loss" in row for row in rows)
    assert json.loads(json.dumps(rows)) == [
        json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()
    ]
    assert rows[0]["unreadable"] == ["broken.png"]
    assert {(r["degradation"], r["quality"]) for r in rows[-1]["validation"]} == {
        (name, q) for name in VALIDATION for q in (10, 50, 90)
    }
    with Image.open(out / "rd.png") as picture:
        assert min(picture.size) > 300

    for source in (out, out / "checkpoint.pt"):
        for a, b in zip(load_weights(source).parameters(), run.average.parameters(), strict=True):
            assert torch.equal(a, b)

    longer = replace(QUICK, minutes=QUICK.minutes + 0.5 / 60)
    again = train(folder, out, config=longer, start=Model(TINY))
    assert again.step == pytest.approx(run.step + 0.5 / TICK, abs=2)
    assert again.patches == 2 * again.step
    assert again.seconds == pytest.approx(60 * longer.minutes, abs=2 * TICK)  # of both together


def test_a_run_in_two_parts(folder, tmp_path, ticks):
    first = train(folder, tmp_path, config=QUICK, start=Model(TINY), stop_minutes=0.5 / 60)
    assert first.step == pytest.approx(0.5 / TICK, abs=2)
    assert first.progress == pytest.approx(0.2, abs=0.03)
    with pytest.raises(TrainingError, match="learning rate not yet zero"):
        load_weights(tmp_path, annealed=True)
    second = train(folder, tmp_path, config=QUICK, start=Model(TINY))
    assert second.progress == 1
    load_weights(tmp_path, annealed=True)
    assert second.step == pytest.approx(2.5 / TICK, abs=3)


def test_weights_travel_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("aiocodec.training.checkpoint.PART_BYTES", 20_000)
    model = Model(TINY)
    paths = save_weights(model, tmp_path)
    assert len(paths) > 2
    again = load_weights(tmp_path)
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(b, a if name.startswith("entropy.") else a.half().float())
    later = tmp_path / "later"
    later.mkdir()
    (tmp_path / "whole").mkdir()
    for path in paths:
        (tmp_path / "whole" / path.name).write_bytes(path.read_bytes())
    save_weights(model, later, progress=0.5)
    with pytest.raises(TrainingError, match="50%"):
        load_weights(later, annealed=True)
    assert load_weights(later).config == TINY
    paths[1].write_bytes((later / paths[1].name).read_bytes())
    with pytest.raises(TrainingError, match="not of one time"):
        load_weights(tmp_path)
    paths[1].unlink()
    with pytest.raises(TrainingError, match="not whole"):
        load_weights(tmp_path)
    paths[0].write_bytes(paths[0].read_bytes()[:1000])
    with pytest.raises(TrainingError, match="damaged"):
        load_weights(tmp_path)
    assert load_weights(tmp_path / "whole", annealed=True).config == TINY
    with pytest.raises(TrainingError, match="no weights"):
        load_weights(tmp_path / "nowhere")


def test_a_checkpoint_of_another_model_is_refused(folder, tmp_path):
    save_checkpoint(Run.create(Model(TINY), QUICK), tmp_path / "checkpoint.pt")
    other = Model(replace(TINY, lapped=False))
    with pytest.raises(TrainingError, match="another model"):
        train(folder, tmp_path, config=QUICK, start=other)


def test_weights_that_this_version_does_not_build_are_refused(tmp_path):
    save_checkpoint(Run.create(Model(TINY), QUICK), tmp_path / "checkpoint.pt")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    name = next(name for name, tensor in state["average"].items() if tensor.ndim == 4)
    state["average"][name] = state["average"][name][:1]
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(TrainingError, match="another network"):
        load_weights(tmp_path)


def test_a_damaged_checkpoint_is_refused(folder, tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    save_checkpoint(Run.create(Model(TINY), QUICK), checkpoint)
    whole = checkpoint.read_bytes()
    for damaged in (whole[:-1000], b"nonsense", b""):
        checkpoint.write_bytes(damaged)
        with pytest.raises(TrainingError, match="damaged"):
            train(folder, tmp_path, config=QUICK, start=Model(TINY))
        with pytest.raises(TrainingError, match="damaged"):
            load_weights(checkpoint)


def test_a_loss_that_is_no_number_stops_the_run(folder, tmp_path):
    model = Model(TINY)
    with torch.no_grad():
        model.transforms.g_s.tail.bias.fill_(math.nan)
    with pytest.raises(Diverged, match="not finite"):
        train(folder, tmp_path, config=QUICK, start=model)
    assert not (tmp_path / "checkpoint.pt").exists()
    with pytest.raises(Diverged, match="nothing was saved"):
        save_checkpoint(Run.create(model, QUICK), tmp_path / "checkpoint.pt")
    assert not list(tmp_path.glob("checkpoint*"))


def test_one_bad_step_is_skipped():
    run = Run.create(Model(TINY), QUICK)
    rng = torch.Generator().manual_seed(0)
    before = [p.clone() for p in run.model.parameters()]
    assert run.update(torch.full((1, 3, 64, 64), math.nan), rng) is None
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    assert run.update(torch.rand(1, 3, 64, 64), rng) is not None


def test_too_little_memory_halves_the_batch(folder, tmp_path, monkeypatch, ticks):
    rows, sizes = [], []
    update = Run.update

    def greedy(self, clean, rng, spoiled=None):
        sizes.append(len(clean))
        if len(clean) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return update(self, clean, rng, spoiled)

    monkeypatch.setattr(Run, "update", greedy)
    config = replace(QUICK, minutes=0.5 / 60, phases=((0.0, 64, 8),))
    run = train(folder, tmp_path, config=config, start=Model(TINY), report=rows.append)
    assert sizes[:3] == [8, 4, 2]
    assert set(sizes[3:]) == {2}
    assert [row["batch"] for row in rows if "memory" in row] == [4, 2]
    assert run.patches == 2 * run.step
    monkeypatch.setattr(Run, "update", lambda *args: torch.empty(1 << 60, dtype=torch.uint8))
    with pytest.raises(LimitError, match="one patch of 64x64"):
        train(folder, tmp_path / "other", config=config, start=Model(TINY))


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as POSIX does")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on(folder, tmp_path, number):
    """Ctrl-C and kill lose nothing, kill -9 what came after the last checkpoint."""
    command = [
        sys.executable,
        "-m",
        "aiocodec",
        "train",
        str(folder),
        "--out",
        str(tmp_path / "run"),
    ]
    command += ["--minutes", "5", "--patches", "64", "--batch", "1"]
    script = (
        "import sys, torch; from aiocodec.training import config; from dataclasses import replace\n"
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from aiocodec.cli import main; from aiocodec.config import VARIANTS, EntropyConfig, Stage\n"
        "VARIANTS['nano'] = replace(VARIANTS['nano'], analysis=(Stage(8, 16, ('dcb',)),),"
        " synthesis=(Stage(8, 16, ('dcb',)),), entropy=EntropyConfig(24, 8, 16))\n"
        "init = config.TrainConfig.__init__\n"
        "config.TrainConfig.__init__ = lambda self, **k: init(self, **k, report_seconds=0.2,"
        " checkpoint_seconds=0.5)\n"
        "main(sys.argv[1:])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, *command[3:]], stderr=subprocess.PIPE, text=True
    )
    checkpoint = tmp_path / "run/checkpoint.pt"
    deadline = time.monotonic() + 100
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.3)
    os.kill(process.pid, number)
    error = process.communicate(timeout=200)[1]
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in error
    state = torch.load(checkpoint, weights_only=True)
    assert state["counters"]["step"] > 0
    last = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])
    if number != signal.SIGKILL:
        assert state["counters"]["step"] >= last["step"]
    run = Run.create(load_weights(checkpoint).requires_grad_(True), TrainConfig())
    load_checkpoint(run, checkpoint)
    assert run.step == state["counters"]["step"]


def test_a_run_starts_from_shallower_weights_of_its_variant_and_no_others(
    folder, tmp_path, monkeypatch
):
    shallow = replace(TINY, name="nano")
    for name, config in (
        ("shallow", shallow),
        ("wide", replace(shallow, entropy=EntropyConfig(32, 8, 16))),
    ):
        (tmp_path / name).mkdir()
        save_weights(Model(config), tmp_path / name)
    deep = replace(shallow, analysis=(Stage(8, 16, ("hatb", "dcb")),))
    monkeypatch.setitem(VARIANTS, "nano", deep)
    command = ["train", str(folder), "--out", str(tmp_path / "run"), "--minutes", "0.01"]
    command += ["--patches", "64", "--batch", "1", "--start"]
    result = CliRunner().invoke(cli, [*command, str(tmp_path / "wide")])
    assert result.exit_code == 2 and "only the depths" in result.stderr
    result = CliRunner().invoke(cli, [*command, str(tmp_path / "shallow")])
    assert result.exit_code == 0, result.output
    assert load_weights(tmp_path / "run").config == deep


def test_training_needs_neither_the_entropy_coder_nor_an_installation(folder, tmp_path):
    script = (
        "import sys; sys.modules['constriction'] = sys.modules['aiocodec.weights'] = None\n"
        "from aiocodec.cli import main; main(sys.argv[1:])\n"
    )
    run = ["train", folder, "--out", tmp_path, "--minutes", "0.01"]
    subprocess.run(
        [sys.executable, "-c", script, *run, "--patches", "64", "--batch", "1"],
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    assert load_weights(tmp_path).config == VARIANTS["nano"]


def test_folders_without_images(tmp_path):
    with pytest.raises(ImageError, match="no images"):
        train(tmp_path, tmp_path / "run", config=QUICK, start=Model(TINY))
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(ImageError, match="none of its 1 images can be read"):
        train(tmp_path, tmp_path / "run", config=QUICK, start=Model(TINY))


def test_images_that_are_too_small_are_noticed_at_once(folder, tmp_path):
    config = replace(QUICK, phases=((0.0, 64, 1), (0.9, 128, 1)))
    with pytest.raises(ImageError, match="128 pixels"):
        train(folder, tmp_path / "run", config=config, start=Model(TINY))
    (tmp_path / "small").mkdir()
    Image.new("RGB", (100, 40)).save(tmp_path / "small/0.png")
    with pytest.raises(ImageError, match="less than 64 pixels"):
        train(
            folder,
            tmp_path / "run",
            config=QUICK,
            start=Model(TINY),
            validation=tmp_path / "small",
        )
    assert not (tmp_path / "run/checkpoint.pt").exists()


def test_photographs_are_those_of_the_folder(folder):
    photographs = Photographs.load(folder)
    assert len(photographs) == 3
    assert photographs.unreadable == ("broken.png",)
    assert photographs.megapixels == pytest.approx(3 * 96 * 128 / 1e6)
    for i, image in enumerate(photographs):
        with Image.open(folder / f"{i}.png") as file:
            assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(file))


def test_patches_are_windows_of_photographs(tmp_path):
    """Pixels say where they come from: image, row, column. Patches are contiguous windows, mirrored
    and transposed in all eight ways, drawn in proportion to area."""
    for i, (height, width) in enumerate(((100, 80), (64, 250), (60, 200))):
        rows, columns = np.mgrid[:height, :width]
        pixels = np.stack([np.full_like(rows, i), rows, columns], axis=2).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    rng = torch.Generator().manual_seed(0)
    photographs = Photographs.load(tmp_path)
    patches = (photographs.batch(600, 64, rng) * 255).round().int()
    assert patches.shape == (600, 3, 64, 64)
    ways, images = set(), []
    for image, row, column in patches:
        assert image.min() == image.max()
        images.append(int(image[0, 0]))
        steps = [
            int(plane[i]) - int(plane[0, 0]) for plane in (row, column) for i in ((0, 1), (1, 0))
        ]
        assert sorted(map(abs, steps)) == [0, 0, 1, 1]
        ways.add(tuple(steps))
        expected = [s * torch.arange(64) for s in steps]
        for plane, along, down in ((row, *expected[:2]), (column, *expected[2:])):
            assert torch.equal(plane - plane[0, 0], (along[None, :] + down[:, None]).int())
    assert len(ways) == 8
    assert set(images) == {0, 1}  # the third is too low for a patch
    assert images.count(0) / 600 == pytest.approx(8000 / (8000 + 16000), abs=0.06)
    with pytest.raises(ImageError, match="128 pixels"):
        photographs.batch(1, 128, rng)
    a, b = (photographs.batch(4, 64, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(a, b)


def save_pair(folder, name, sides=(64, 64), clean_sides=None):
    """A picture whose pixels say row and column, and it spoiled: with every blue of 0 at 200."""
    folder.mkdir(exist_ok=True)
    for half, (height, width), blue in (("in", sides, 200), ("gt", clean_sides or sides, 0)):
        rows, columns = np.mgrid[:height, :width]
        pixels = np.stack([rows, columns, np.full_like(rows, blue)], axis=2).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}_{half}.png")


def test_pairs_that_cannot_be_used_are_named_and_left_out(tmp_path):
    save_pair(tmp_path, "good")
    save_pair(tmp_path, "odd", (64, 64), (64, 65))
    save_pair(tmp_path, "half")
    (tmp_path / "half_gt.png").unlink()
    save_pair(tmp_path, "broken")
    (tmp_path / "broken_in.png").write_bytes(b"not an image")
    pairs = Pairs.load(tmp_path)
    assert (len(pairs), pairs.names) == (1, ("good",))
    assert sorted(pairs.left_out) == [
        "broken: one of the two cannot be read",
        "half: one of the two cannot be read",
        "odd: the two differ in size",
    ]
    (tmp_path / "good_gt.png").unlink()
    with pytest.raises(ImageError, match="no pairs"):
        Pairs.load(tmp_path)


def test_every_tenth_run_of_ten_pairs_is_held_out(tmp_path):
    names = [f"{i:03}" for i in range(205)]
    for name in names:
        save_pair(tmp_path, name, (1, 1))
    seen, held = (Pairs.load(tmp_path, held_out=held_out).names for held_out in (False, True))
    assert list(held) == names[90:100] + names[190:200]
    assert sorted(seen + held) == names


def test_a_batch_of_pairs_is_of_the_same_places(tmp_path):
    for i, sides in enumerate(((64, 90), (100, 70), (80, 80))):
        save_pair(tmp_path, str(i), sides)
    pairs = Pairs.load(tmp_path)
    spoiled, clean = pairs.batch(20, 64, torch.Generator().manual_seed(0))
    assert spoiled.shape == clean.shape == (20, 3, 64, 64)
    assert torch.equal(spoiled[:, :2], clean[:, :2])
    assert (spoiled[:, 2] * 255 == 200).all() and (clean[:, 2] == 0).all()
    assert len({tuple(patch[:2, 0, 0].tolist()) for patch in clean}) > 10


def test_a_share_of_a_batch_is_drawn_from_pairs(folder, tmp_path):
    """Over many batches it is the share asked for, the same of every folder; the spoiled patches
    belong to the last of the clean ones, and the first is never of a pair."""
    images = Photographs.load(folder)
    save_pair(tmp_path / "rain", "a")
    save_pair(tmp_path / "snow", "a", (70, 70))
    weather = [Pairs.load(tmp_path / name) for name in ("rain", "snow")]
    rng = torch.Generator().manual_seed(0)
    drawn = 0
    for _ in range(200):
        clean, spoiled = _draw(images, weather, 6, 64, rng, 0.3)
        assert clean.shape == (6, 3, 64, 64)
        if spoiled is not None:
            drawn += len(spoiled)
            assert torch.equal(clean[-len(spoiled) :, :2], spoiled[:, :2])
            assert (clean[-len(spoiled) :, 2] == 0).all()
    assert drawn / 1200 == pytest.approx(0.3, abs=0.03)
    assert len(_draw(images, weather, 4, 64, rng, 1.0)[1]) == 3
    assert _draw(images, weather, 4, 64, rng, 0.0)[1] is None
    assert _draw(images, [], 4, 64, rng, 0.3)[1] is None


def test_a_step_takes_spoiled_patches_as_they_are(monkeypatch):
    """Only those before them are degraded here."""
    seen = []

    def watched(model, clean, degraded, quality, balance):
        seen.append((clean, degraded))
        return rate_distortion(model, clean, degraded, quality, balance)

    monkeypatch.setattr("aiocodec.training.run.rate_distortion", watched)
    run = Run.create(Model(TINY), replace(QUICK, clean=0.0))
    rng = torch.Generator().manual_seed(0)
    clean, spoiled = torch.rand(4, 3, 64, 64), torch.rand(2, 3, 64, 64)
    assert run.update(clean, rng, spoiled) is not None
    ((given, degraded),) = seen
    assert torch.equal(given, clean) and torch.equal(degraded[2:], spoiled)
    assert all(not torch.equal(a, b) for a, b in zip(clean[:2], degraded[:2], strict=True))


def test_pairs_are_trained_on_and_validated(folder, tmp_path, ticks):
    for i in range(100):
        save_pair(tmp_path / "rainy", f"{i:02}")
    (tmp_path / "rainy/95_gt.png").unlink()
    (tmp_path / "rainy/05_gt.png").unlink()
    rows = []
    config = replace(QUICK, minutes=0.2 / 60)
    train(
        folder,
        tmp_path / "run",
        config=config,
        pairs=[tmp_path / "rainy"],
        validation=folder,
        start=Model(TINY),
        report=rows.append,
    )
    assert rows[0]["pairs"] == 89
    assert rows[0]["unreadable"] == [
        "broken.png",
        "05: one of the two cannot be read",
        "95: one of the two cannot be read",
    ]
    validation = rows[-1]["validation"]
    assert [row["quality"] for row in validation if row["degradation"] == "rainy pairs"] == [
        10,
        50,
        90,
    ]
    assert {row["degradation"] for row in validation} == {*VALIDATION, "rainy pairs"}


def test_patch_sides_are_multiples_of_64():
    with pytest.raises(ValueError, match="64"):
        TrainConfig(phases=((0.0, 100, 1),))


def test_later_patches_are_larger_and_fewer():
    cpu, cuda = TrainConfig.for_device("cpu"), TrainConfig.for_device("cuda")
    assert cpu == TrainConfig()
    assert [phase[1:] for phase in cpu.phases] == [(128, 8), (192, 3), (256, 2)]
    assert [phase[1:] for phase in cuda.phases] == [(256, 32), (320, 20), (384, 14)]
    two = TrainConfig.for_device("cpu", (64, 640), 4, clean=1.0)
    assert two.phases == ((0.0, 64, 4), (0.7, 640, 1))
    assert two.clean == 1
    assert (two.phase(0.69), two.phase(0.7)) == ((64, 4), (640, 1))


def test_the_options_of_training_default_to_its_config():
    options = {option.name: option.default for option in cli.commands["train"].params}
    config = TrainConfig()
    for option, field in (
        ("minutes", "minutes"),
        ("clean", "clean"),
        ("balance", "balance"),
        ("lr", "lr_matrix"),
        ("compile", "compile"),
        ("seed", "seed"),
    ):
        assert options[option] == getattr(config, field)
    assert config.lr_other == config.lr_matrix / 5


def test_the_loss_is_rate_plus_weighted_distortion():
    torch.manual_seed(0)
    model = Model(TINY)
    clean, quality = torch.rand(2, 3, 64, 64), torch.tensor([0.0, 100.0])
    loss, bpp, mse = rate_distortion(model, clean, clean, quality)
    lam = torch.tensor([40.0, 8000.0])
    hopeless = HOPELESS / lam.sqrt()
    expected = bpp + lam * hopeless * torch.log(1 + mse / hopeless)
    assert loss.item() == pytest.approx(expected.mean().item(), rel=1e-5)


def test_a_small_error_counts_in_full(monkeypatch):
    """The gradient of the loss by the error, on an image that is nearly right, is lmbda."""
    model = Model(TINY)
    clean, quality = torch.rand(1, 3, 64, 64), torch.tensor([50.0])
    losses = []
    for off in (0.0, 0.001):
        torch.manual_seed(0)
        with torch.no_grad():
            monkeypatch.setattr(
                type(model.transforms.g_s), "forward", lambda s, y, q, off=off: clean + 0.004 + off
            )
            loss, bpp, mse = rate_distortion(model, clean, clean, quality)
        losses.append((loss.item() - bpp.mean().item(), mse.item()))
    slope = (losses[1][0] - losses[0][0]) / (losses[1][1] - losses[0][1])
    assert slope == pytest.approx(lmbda(quality).item(), rel=0.02)


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    model = Model(TINY)
    for head in (model.entropy.fusion[-1], model.entropy.head):
        torch.nn.init.normal_(head.weight, std=0.1)
    clean = torch.rand(2, 3, 128, 128)
    rate_distortion(model, clean, clean, torch.tensor([30.0, 80.0]))[0].backward()
    dead = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert not dead


def test_muon_trains_the_convolutions_and_adamw_the_rest():
    """Shortcuts, filters per channel, convolutions of few inputs, biases and gains are the rest."""
    model = Model(TINY)
    muon, adamw = optimisers(model, QUICK)
    assert isinstance(muon, Muon) and isinstance(adamw, torch.optim.AdamW)
    matrices, others = (
        {id(p) for group in optimiser.param_groups for p in group["params"]}
        for optimiser in (muon, adamw)
    )
    assert not matrices & others
    assert matrices | others == {id(p) for p in model.parameters()}
    assert {id(model.transforms.g_a.stem.weight), id(model.transforms.g_s.tail.weight)} <= matrices
    assert {
        id(model.transforms.g_a.linear.weight),
        id(model.transforms.g_s.linear.weight),
    } <= others
    assert all(
        (id(m.weight) in others)
        == (
            m.weight.shape[1] < 16
            or m in (model.transforms.g_a.linear, model.transforms.g_s.linear)
        )
        for m in model.modules()
        if isinstance(m, torch.nn.Conv2d)
    )


def test_muon_orthogonalises():
    """By either iteration: the second pair of shapes takes the one on the Gram matrix."""
    torch.manual_seed(0)
    for shape in ((2, 24, 40), (2, 40, 24), (2, 24, 60), (2, 60, 24)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_nano_is_what_quick_training_trains():
    assert sum(p.numel() for p in Model(VARIANTS["nano"]).parameters()) < 6e6


def test_steps_lower_the_loss_and_go_on_from_a_checkpoint(tmp_path):
    torch.manual_seed(0)
    config = replace(QUICK, warmup=1)
    run = Run.create(Model(TINY), config)
    rng = torch.Generator().manual_seed(0)
    clean = torch.nn.functional.interpolate(torch.rand(2, 3, 8, 8, generator=rng), scale_factor=8)
    quality = torch.tensor([20.0, 80.0])
    before = rate_distortion(run.model, clean, clean, quality)[0].item()
    for _ in range(15):
        run.update(clean, rng)
    assert rate_distortion(run.model, clean, clean, quality)[0].item() < before
    save_checkpoint(run, tmp_path / "checkpoint.pt")
    other = Run.create(Model(TINY), config)
    load_checkpoint(other, tmp_path / "checkpoint.pt")
    for a in (run, other):
        torch.manual_seed(1)
        a.update(clean, torch.Generator().manual_seed(2))
    for a, b in zip(run.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    config = TrainConfig(warmup=10)
    assert config.lr_factor(0, 0.0) == pytest.approx(0.1)
    assert config.lr_factor(10, 0.1) == config.lr_factor(10, 0.5) == 1
    assert config.lr_factor(10, 0.75) == pytest.approx(0.5)
    assert config.lr_factor(10, 1.0) == 0


def test_balance_weighs_rates():
    torch.manual_seed(0)
    model = Model(TINY)
    clean = torch.rand(2, 3, 64, 64)
    for end, factor in ((0.0, 200**0.25), (50.0, 1.0), (100.0, 200**-0.25)):
        losses = []
        for balance in (0.0, 0.5):
            torch.manual_seed(1)
            quality = torch.full((2,), end)
            losses.append(rate_distortion(model, clean, clean, quality, balance)[0].item())
        assert losses[1] == pytest.approx(losses[0] * factor, rel=1e-4)


def test_validation_degrades_the_same_way_every_time(folder):
    model = Model(TINY).eval()
    images = Photographs.load(folder)
    names = ("clean", "noise:25", "rain", "snow+jpeg:50")
    rows = validate(model, images, names)
    assert rows == validate(model, images, names)
    assert [row["degradation"] for row in rows] == [name for name in names for _ in range(3)]
    assert rows != validate(model, images, names, every=2)


def test_a_log_without_validation_is_plotted(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 0}\n')
    assert plot(tmp_path / "log.jsonl", tmp_path / "rd.png")


@pytest.mark.slow
@pytest.mark.skipif("AIC_SLOW" not in os.environ, reason="takes a minute: set AIC_SLOW to run it")
def test_a_compiled_model_trains_the_same():
    """One step of a compiled model is that of the model as it is."""
    runs = []
    for compile in (False, True):
        torch.manual_seed(0)
        run = Run.create(Model(TINY), QUICK)
        if compile:
            compile_parts(run.model)
        clean = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        run.update(clean, torch.Generator().manual_seed(2))
        runs.append(run)
    for a, b in zip(*(run.model.parameters() for run in runs), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    assert runs[0].model.state_dict().keys() == runs[1].model.state_dict().keys()


def test_benchmark_measures_whole_steps():
    rows = list(benchmark(TINY, "cpu", 64, (1, 2), seconds=0.1))
    assert [row["batch"] for row in rows] == [1, 2]
    for row in rows:
        assert row["patches_per_second"] == pytest.approx(1000 * row["batch"] / row["ms"], rel=0.1)
        assert row["compute_floor_ms"] > 0  # the share of a busy machine rounds to 0
    assert rows[1]["memory_floor_ms"] >= rows[0]["memory_floor_ms"]


@pytest.mark.cuda
@pytest.mark.parametrize("compiled", [False, True])
def test_training_on_cuda(folder, tmp_path, ticks, compiled):
    """With two sizes of batches, validation, and a second run on the CPU."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    phases = ((0.0, 64, 4), (0.6, 64, 2))
    config = replace(QUICK, phases=phases, compile=compiled)
    run = train(
        folder, tmp_path, config=config, start=Model(TINY), validation=folder, device="cuda"
    )
    assert run.step > 50
    for device in ("cuda", "cpu"):
        longer = replace(config, minutes=run.config.minutes * 1.2, compile=False)
        again = train(folder, tmp_path, config=longer, start=Model(TINY), device=device)
        assert again.step >= run.step
    assert next(load_weights(tmp_path).parameters()).device.type == "cpu"
