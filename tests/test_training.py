"""The training loop in miniature: it learns, goes on where it stopped, and refuses what is wrong."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

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
    history,
    load_run,
    load_weights,
    save_checkpoint,
    save_weights,
    seen,
)
from aiocodec.training.config import AHEAD, ANNEALING, PHASES, TrainConfig
from aiocodec.training.data import Mixture, Pairs, Photographs, held_out
from aiocodec.training.loop import anneal, train
from aiocodec.training.muon import Muon, orthogonalise
from aiocodec.training.run import (
    HOPELESS,
    Passes,
    Run,
    compile_parts,
    optimisers,
    rate_distortion,
)
from aiocodec.training.validate import VALIDATION, deep_share, plot, validate
from aiocodec.transforms import Piece

TINY = ModelConfig(
    "tiny",
    (Stage(8, 16, ("hatb",)),),
    (Stage(4, 16, ("dcb",)), Stage(8, 16, ("dcb",))),
    EntropyConfig(latents=24, hyper=8, width=16),
)
QUICK = TrainConfig(phases=((0.0, 64, 2),), warmup=5, report_seconds=0.2, checkpoint_seconds=0.5)
STEP = 2 * 64 * 64 / 1e6  # megapixels of a step of QUICK


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A variant for tests."""
    monkeypatch.setitem(VARIANTS, "tiny", TINY)


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
    batch, _ = Photographs.load(folder).batch(8, 64, torch.Generator().manual_seed(0))
    quality = torch.linspace(0, 100, 8)
    before = rate_distortion(start, batch, batch, quality)[0].item()
    run = train(
        folder,
        out,
        "tiny",
        QUICK,
        start=start,
        validation=folder,
        until=100 * STEP,
        report=rows.append,
    )
    assert run.step == 100
    assert rate_distortion(run.model, batch, batch, quality)[0].item() < before - 0.1
    assert any("loss" in row for row in rows)
    assert json.loads(json.dumps(rows)) == [
        json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()
    ]
    assert rows[0]["left_out"] == ["broken.png", "broken.png"]  # of training and of validation
    assert {(r["degradation"], r["quality"]) for r in rows[-1]["validation"]} == {
        (name, q) for name in VALIDATION for q in (10, 50, 90)
    }
    for name in ("rd.png", "progress.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 300

    for source in (out, out / "checkpoint.pt"):
        for a, b in zip(load_weights(source).parameters(), run.average.parameters(), strict=True):
            assert torch.equal(a, b)

    again = train(folder, out, "tiny", QUICK, until=120 * STEP)
    assert again.step == 120
    assert again.seconds > run.seconds  # of both together


def test_a_run_that_was_interrupted_ends_where_another_does(folder, tmp_path):
    """Of one seed, the second in four parts, one of which was killed: what came after its last checkpoint
    is done again as it was."""
    batch, _ = Photographs.load(folder).batch(16, 64, torch.Generator().manual_seed(0))
    quality = torch.linspace(0, 100, 16)

    def loss(name, stops, seed=0):
        out = tmp_path / name
        for stop in stops:
            run = train(folder, out, "tiny", replace(QUICK, seed=seed), until=stop * STEP)
            if stop == 24:
                early = (out / "checkpoint.pt").read_bytes()
            elif stop == 31:
                (out / "checkpoint.pt").write_bytes(early)
        assert run.step == 60
        torch.manual_seed(0)
        return rate_distortion(run.average, batch, batch, quality)[0].item()

    whole, parts = loss("whole", [60]), loss("parts", [11, 24, 31, 49, 60])
    other = loss("other", [60], seed=5)
    assert parts == pytest.approx(whole, rel=0.01)
    assert abs(other / whole - 1) > 0.01


def test_a_branch_is_annealed_and_leaves_its_run_alone(folder, tmp_path):
    run, branch = tmp_path / "run", tmp_path / "branch"
    train(folder, run, "tiny", QUICK, until=20 * STEP)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(TrainingError, match="0%.*anneal"):
        load_weights(run, annealed=True)
    rows = []
    done = anneal(
        run,
        folder,
        branch,
        "tiny",
        QUICK,
        side=64,
        batch=2,
        report=rows.append,
        megapixels=10 * STEP,
    )
    assert done.step == 30 and done.progress == 1
    assert done.optimisers[0].param_groups[0]["lr"] < 0.1 * QUICK.lr_matrix
    assert before == {path.name: path.read_bytes() for path in run.iterdir()}
    load_weights(branch, annealed=True)
    seen, span = history(branch / "checkpoint.pt")
    assert (seen, *span) == pytest.approx((30 * STEP, 20 * STEP, 30 * STEP))
    again = anneal(run, folder, branch, "tiny", QUICK, side=64, batch=2)
    assert again.step == 30  # it is at its end

    # Without a length it is a share of what the run has seen.
    usual = anneal(run, folder, tmp_path / "usual", "tiny", QUICK, side=64, batch=1)
    assert usual.step == 20 + 8
    for wrong, match in ((run, "folder of its own"), (branch, "annealed already")):
        with pytest.raises(TrainingError, match=match):
            anneal(wrong, folder, run if wrong == run else tmp_path / "other", "tiny", QUICK)
    with pytest.raises(TrainingError, match="cannot be read"):
        anneal(tmp_path / "nowhere.pt", folder, tmp_path / "other", "tiny", QUICK)


def test_a_branch_that_was_interrupted_goes_on_to_its_end(folder, tmp_path, monkeypatch):
    train(folder, tmp_path / "run", "tiny", QUICK, until=10 * STEP)
    options = {"side": 64, "batch": 2}

    def stop(self, *batch):
        if self.step == 14:
            signal.raise_signal(signal.SIGINT)
        return update(self, *batch)

    update = Run.update
    monkeypatch.setattr(Run, "update", stop)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            anneal(
                tmp_path / "run",
                folder,
                tmp_path / "branch",
                "tiny",
                QUICK,
                megapixels=20 * STEP,
                **options,
            )
    finally:
        signal.signal(signal.SIGINT, handler)
    monkeypatch.setattr(Run, "update", update)
    train(folder, tmp_path / "run", "tiny", QUICK, until=15 * STEP)  # the run has gone on
    done = anneal(tmp_path / "run", folder, tmp_path / "branch", "tiny", QUICK, **options)
    assert done.step == 30
    assert done.config.anneal == pytest.approx((10 * STEP, 30 * STEP))


def test_a_folder_of_another_configuration_is_refused_untouched(folder, tmp_path):
    run = tmp_path / "run"
    train(folder, run, "tiny", QUICK, until=2 * STEP)
    anneal(run, folder, tmp_path / "branch", "tiny", QUICK, 2 * STEP, side=64, batch=2)
    VARIANTS["tiny"] = replace(TINY, lapped=False)
    for output, match in ((run, "another model"), (tmp_path / "branch", "another model")):
        before = {path.name: path.read_bytes() for path in output.iterdir()}
        with pytest.raises(TrainingError, match=match):
            train(folder, output, "tiny", QUICK)
        assert before == {path.name: path.read_bytes() for path in output.iterdir()}
    VARIANTS["tiny"] = TINY
    before = (tmp_path / "branch/log.jsonl").read_bytes()
    with pytest.raises(TrainingError, match="that of an annealed branch"):
        train(folder, tmp_path / "branch", "tiny", QUICK)
    assert before == (tmp_path / "branch/log.jsonl").read_bytes()
    with pytest.raises(TrainingError, match="that of a run without an end"):
        anneal(tmp_path / "branch", folder, run, "tiny", QUICK)
    with pytest.raises(TrainingError, match="not those of a nano"):
        train(folder, tmp_path / "new", "nano", QUICK, start=Model(TINY))
    assert not (tmp_path / "new").exists()


def test_a_run_deepens_and_goes_on_as_it_was(folder, tmp_path):
    """At the megapixels that were told, in one sitting or several; the network computes what it did, and
    its blocks keep their momenta."""
    deep = VARIANTS["tiny"] = replace(
        TINY,
        analysis=(Stage(8, 16, ("hatb", "dcb", "dcb")),),
        synthesis=(Stage(4, 16, ("dcb",)), Stage(8, 16, ("dcb", "hatb"))),
    )
    config = replace(QUICK, depths=((0.0, 1), (10 * STEP, 2), (20 * STEP, 99)))
    rows = []
    for stop, depth in ((5, 1), (15, 2), (25, 3)):
        run = train(folder, tmp_path / "run", "tiny", config, until=stop * STEP, report=rows.append)
        assert run.model.config == run.average.config == deep.shallow(depth)
        assert run.step == stop
    assert [row["step"] for row in rows if "deepened" in row] == [10, 20]
    train(folder, tmp_path / "young", "tiny", config, until=5 * STEP)
    branch = anneal(
        tmp_path / "young", folder, tmp_path / "branch", "tiny", config, side=64, batch=2
    )
    assert branch.model.config == deep.shallow(1)  # a branch does not grow

    run = Run.create(Model(deep.shallow(1)), QUICK)
    x = torch.rand(2, 3, 64, 64)
    for _ in range(3):
        run.update(x, x)
    quality = torch.tensor([20.0, 80.0])
    before = [model(x, quality, noise=False) for model in (run.model, run.average)]
    momenta = sum(len(optimiser.state) for optimiser in run.optimisers)
    run.grow(deep)
    for old, model in zip(before, (run.model, run.average), strict=True):
        for a, b in zip(old, model(x, quality, noise=False), strict=True):
            assert torch.allclose(a, b, atol=1e-5)
    assert sum(len(optimiser.state) for optimiser in run.optimisers) == momenta
    assert run.update(x, x) is not None
    with pytest.raises(ValueError, match="grows by further blocks"):
        run.grow(TINY)


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
            train(folder, tmp_path, "tiny", QUICK)
        with pytest.raises(TrainingError, match="damaged"):
            load_weights(checkpoint)


def test_a_loss_that_is_no_number_stops_the_run(folder, tmp_path):
    model = Model(TINY)
    with torch.no_grad():
        model.transforms.g_s.tail.bias.fill_(math.nan)
    with pytest.raises(Diverged, match="not finite"):
        train(folder, tmp_path, "tiny", QUICK, start=model)
    assert not (tmp_path / "checkpoint.pt").exists()
    with pytest.raises(Diverged, match="nothing was saved"):
        save_checkpoint(Run.create(model, QUICK), tmp_path / "checkpoint.pt")
    assert not list(tmp_path.glob("checkpoint*"))


def test_one_bad_step_is_skipped():
    run = Run.create(Model(TINY), QUICK)
    before = [p.clone() for p in run.model.parameters()]
    x, broken = torch.rand(1, 3, 64, 64), torch.full((1, 3, 64, 64), math.nan)
    assert run.update(broken, x) is None
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    assert run.update(x, x) is not None


def test_a_bad_step_that_was_queued_is_one_of_no_gradient():
    """Whether it is bad is known only when it is asked for, after others have been queued."""
    run = Run.create(Model(TINY), QUICK)
    x, broken = torch.rand(1, 3, 64, 64), torch.full((1, 3, 64, 64), math.nan)
    queued = [run.queue(x, x) for _ in range(3)]
    queued.append(run.queue(broken, x))
    assert not any(p.grad.any() for p in run.model.parameters())
    queued.append(run.queue(x, x))
    assert any(p.grad.any() for p in run.model.parameters())
    assert [result is None for result in run.settle(queued)] == [False, False, False, True, False]
    assert run.step == 5 and run.usual_norm > 0
    assert all(bool(p.isfinite().all()) for p in run.model.parameters())
    run.step, run.usual_norm = 100, 1e-6
    assert run.settle([run.queue(x, x)]) == [None]  # a spike


def test_a_queued_step_is_an_update():
    """But for the noise, of which they draw their own: the same loss, and gradients of one direction."""
    torch.manual_seed(0)
    model = Model(replace(VARIANTS["nano"].shallow(1), entropy=EntropyConfig(32, 8, 16)))
    clean, quality = torch.rand(4, 3, 64, 64), torch.tensor([10.0, 30.0, 50.0, 90.0])
    run = Run.create(model, TrainConfig())
    values = run.backward(clean, clean, quality)
    expected = torch.cat([p.grad.flatten() for p in run.model.parameters()])
    passes = Passes(run.model, clean, clip=1e9)
    loss, bpp, mse, norm, good = passes(clean, clean, quality, limit=math.inf).tolist()
    found = torch.cat([gradient.flatten() for gradient in passes.gradients])
    assert [loss, bpp, mse] == pytest.approx(torch.stack(values).tolist(), rel=0.02)
    assert good and norm == pytest.approx(found.norm().item(), rel=1e-3)
    assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.98
    passes.clip = norm / 2
    passes(clean, clean, quality, limit=math.inf)
    clipped = torch.cat([gradient.flatten() for gradient in passes.gradients])
    assert clipped.norm() == pytest.approx(norm / 2, rel=0.02)


def test_a_run_that_queues(folder, tmp_path, monkeypatch):
    """As on CUDA: steps are counted as they are queued, and a run that explodes ends."""
    monkeypatch.setitem(AHEAD, "cpu", 8)  # more than the steps of the warm-up
    rows = []
    phases = ((0.0, 64, 2), (16 * STEP, 64, 1))
    config = replace(QUICK, phases=phases, report_seconds=0.0)
    run = train(folder, tmp_path / "run", "tiny", config, until=24 * STEP, report=rows.append)
    assert (run.step, run.megapixels) == (32, pytest.approx(24 * STEP))
    reports = [row for row in rows if "loss" in row]
    assert len(reports) == 4 and all(math.isfinite(row["loss"]) for row in reports)
    assert not any(row["skipped"] for row in reports)
    model = Model(TINY)
    with torch.no_grad():
        model.transforms.g_s.tail.bias.fill_(math.nan)
    with pytest.raises(Diverged, match="not finite"):
        train(folder, tmp_path / "broken", "tiny", config, start=model)


def test_too_little_memory_halves_the_batch(folder, tmp_path, monkeypatch):
    rows, sizes = [], []
    update = Run.update

    def greedy(self, clean, spoiled):
        sizes.append(len(clean))
        if len(clean) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return update(self, clean, spoiled)

    monkeypatch.setattr(Run, "update", greedy)
    config = replace(QUICK, phases=((0.0, 64, 8),))
    run = train(folder, tmp_path, "tiny", config, until=10 * STEP, report=rows.append)
    assert sizes[:3] == [8, 4, 2]
    assert set(sizes[3:]) == {2}
    assert [row["batch"] for row in rows if "memory" in row] == [4, 2]
    assert run.step == 10
    monkeypatch.setattr(Run, "update", lambda *args: torch.empty(1 << 60, dtype=torch.uint8))
    with pytest.raises(LimitError, match="one patch of 64x64"):
        train(folder, tmp_path / "other", "tiny", config)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as POSIX does")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on(folder, tmp_path, number):
    """Ctrl-C and kill lose nothing, kill -9 what came after the last checkpoint."""
    command = ["train", "run", str(folder), "--out", str(tmp_path / "run")]
    command += ["--patches", "64", "--batch", "1"]
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
        [sys.executable, "-c", script, *command], stderr=subprocess.PIPE, text=True
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
    shape = ModelConfig.from_dict(state["model_config"])
    assert load_run(checkpoint, shape, TrainConfig(), "cpu").step == state["counters"]["step"]


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
    command = ["train", "run", str(folder), "--out", str(tmp_path / "run"), "--until", "0.01"]
    command += ["--patches", "64", "--batch", "1", "--start"]
    result = CliRunner().invoke(cli, [*command, str(tmp_path / "wide")])
    assert isinstance(result.exception, TrainingError) and "not those of a nano" in str(
        result.exception
    )
    result = CliRunner().invoke(cli, [*command, str(tmp_path / "shallow")])
    assert result.exit_code == 0, result.output
    assert load_weights(tmp_path / "run").config == deep


def test_a_run_counts_on_from_the_megapixels_of_what_it_starts_from(folder, tmp_path):
    """By its folder, its checkpoint, or the weights alone; so its schedules go on too."""
    command = ["train", "run", str(folder), "--patches", "64", "--batch", "1"]
    first = [*command, "--out", str(tmp_path / "first"), "--until", "0.01"]
    assert CliRunner().invoke(cli, first).exit_code == 0
    alone = tmp_path / "alone"
    alone.mkdir()
    for part in sorted((tmp_path / "first").glob("weights-*.safetensors")):
        part.rename(alone / part.name)
    for source in (tmp_path / "first", tmp_path / "first/checkpoint.pt", alone):
        begun = seen(source)
        assert begun == pytest.approx(0.0123, abs=1e-3)
        out = tmp_path / f"from-{source.name}"
        until = ["--until", str(begun + 0.005)]
        result = CliRunner().invoke(
            cli, [*command, "--out", str(out), "--start", str(source), *until]
        )
        assert result.exit_code == 0, result.output
        rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        assert rows[0]["megapixels"] == pytest.approx(begun, abs=0.06)
        assert history(out / "checkpoint.pt")[0] == pytest.approx(begun + 0.0082, abs=1e-4)
    save_weights(Model(TINY), tmp_path, megapixels=5420.04)
    assert seen(tmp_path) == 5420.04
    with pytest.raises(TrainingError, match="there is no checkpoint"):
        seen(tmp_path / "nowhere")


def test_training_needs_neither_the_entropy_coder_nor_an_installation(folder, tmp_path):
    script = (
        "import sys; sys.modules['constriction'] = sys.modules['aiocodec.weights'] = None\n"
        "from aiocodec.cli import main; main(sys.argv[1:])\n"
    )
    run = ["train", "run", folder, "--out", tmp_path, "--until", "0.01"]
    subprocess.run(
        [sys.executable, "-c", script, *run, "--patches", "64", "--batch", "1"],
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    assert load_weights(tmp_path).config == VARIANTS["nano"]


def test_folders_without_images(tmp_path):
    with pytest.raises(ImageError, match="no images"):
        train(tmp_path, tmp_path / "run", "tiny", QUICK)
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(ImageError, match="none of its 1 images can be read"):
        train(tmp_path, tmp_path / "run", "tiny", QUICK)


def test_images_that_are_too_small_are_noticed_at_once(folder, tmp_path):
    config = replace(QUICK, phases=((0.0, 64, 1), (0.9, 128, 1)))
    with pytest.raises(ImageError, match="128 pixels"):
        train(folder, tmp_path / "run", "tiny", config)
    (tmp_path / "small").mkdir()
    Image.new("RGB", (100, 40)).save(tmp_path / "small/0.png")
    with pytest.raises(ImageError, match="less than 64 pixels"):
        train(folder, tmp_path / "run", "tiny", QUICK, validation=tmp_path / "small")
    assert not (tmp_path / "run").exists()


def test_photographs_are_those_of_the_folder(folder):
    photographs = Photographs.load(folder)
    assert len(photographs) == 3
    assert photographs.left_out == ("broken.png",)
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
    patches, depth = photographs.batch(600, 64, rng)
    assert depth is None
    patches = (patches * 255).round().int()
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
    a, b = (photographs.batch(4, 64, torch.Generator().manual_seed(5))[0] for _ in range(2))
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
    seen, held = (Pairs.load(tmp_path, unseen=unseen).names for unseen in (False, True))
    assert list(held) == names[90:100] + names[190:200]
    assert sorted(seen + held) == names
    assert held_out(tmp_path) == set(held)


def test_of_few_pairs_fewer_are_held_out(tmp_path):
    for count, held in ((9, []), (10, ["09"]), (39, ["27", "28", "29"])):
        for i in range(count):
            save_pair(tmp_path / str(count), f"{i:02}", (1, 1))
        assert sorted(held_out(tmp_path / str(count))) == held


def test_a_batch_of_pairs_is_of_the_same_places(tmp_path):
    for i, sides in enumerate(((64, 90), (100, 70), (80, 80))):
        save_pair(tmp_path, str(i), sides)
    pairs = Pairs.load(tmp_path)
    clean, spoiled = pairs.batch(20, 64, torch.Generator().manual_seed(0))
    assert spoiled.shape == clean.shape == (20, 3, 64, 64)
    assert torch.equal(spoiled[:, :2], clean[:, :2])
    assert (spoiled[:, 2] * 255 == 200).all() and (clean[:, 2] == 0).all()
    assert len({tuple(patch[:2, 0, 0].tolist()) for patch in clean}) > 10


def save_depth(path, values, sides):
    """A depth map whose rows go from the first to the last of `values`."""
    path.parent.mkdir(exist_ok=True)
    rows = np.linspace(*values, sides[0]).round().astype(np.uint8)
    Image.fromarray(np.repeat(rows[:, None], sides[1], 1)).save(path)


def test_depth_is_that_of_the_places_of_the_patches(tmp_path):
    """The red of the pictures of `save_pair` is their row, and the depth grows with the row, too: both
    agree in every patch, whichever way it is turned."""
    save_pair(tmp_path / "scenes", "a", (200, 100))
    save_pair(tmp_path / "scenes", "b", (120, 160))
    save_depth(tmp_path / "depths/a_depth.png", (0, 199), (200, 50))
    save_depth(tmp_path / "depths/b_depth.png", (0, 119), (120, 160))
    scenes = Photographs.load_scenes(tmp_path / "scenes", tmp_path / "depths")
    assert len(scenes) == 2
    patches, depth = scenes.batch(40, 64, torch.Generator().manual_seed(0))
    assert torch.allclose(depth, patches[:, :1], atol=1 / 255)


def test_predicted_depth_is_that_of_the_logarithm(tmp_path):
    """255 is the farthest, at 1; the nearest is nearer or farther from patch to patch."""
    save_pair(tmp_path / "photos", "a", (64, 64))
    (tmp_path / "photos/a_in.png").rename(tmp_path / "photos/a.png")
    (tmp_path / "photos/a_gt.png").unlink()
    save_pair(tmp_path / "photos", "b", (64, 64))
    (tmp_path / "photos/b_in.png").unlink()
    save_depth(tmp_path / "depths/a.png", (0, 255), (64, 8))
    photographs = Photographs.load(tmp_path / "photos", depths=tmp_path / "depths")
    _, depth = photographs.batch(60, 64, torch.Generator().manual_seed(0))
    known = ~depth.isnan().flatten(1).all(1)
    assert 10 < known.sum() < 50  # b has no depth
    assert not depth[known].isnan().any()
    assert torch.allclose(depth[known].amax((1, 2, 3)), torch.tensor(1.0), atol=0.05)
    nearest = depth[known].amin((1, 2, 3)).log()
    assert nearest.min() > -3.6 and nearest.max() < -0.69
    assert nearest.std() > 0.5
    with pytest.raises(ImageError, match="no depths"):
        Photographs.load(tmp_path / "photos", depths=tmp_path)


def test_scenes_that_are_held_out_as_pairs_are_not_shown(folder, tmp_path):
    for i in range(20):
        save_pair(tmp_path / "haze", f"{i:02}", (64, 64))
        save_depth(tmp_path / f"depths/{i:02}_depth.png", (0, 99), (64, 64))
    (tmp_path / "depths/03_depth.png").write_bytes(b"not an image")
    places = (tmp_path / "haze", tmp_path / "depths")
    mixture = Mixture.load(folder, scenes=[places], pairs=[tmp_path / "haze"])
    assert len(mixture.scenes[0]) == 17  # two are held out, one has no depth
    assert sorted(mixture.left_out) == ["03_depth.png", "broken.png"]
    assert len(Mixture.load(folder, scenes=[places]).scenes[0]) == 19


def test_a_batch_has_its_share_of_every_source(folder, tmp_path):
    """Over many batches; spoiled patches are of the same places, and one is always of a photograph.
    Pictures smaller than the patches are not drawn."""
    for name in ("rain", "snow"):
        for i in range(12):
            save_pair(tmp_path / name, f"{i:02}", (64, 70))
    save_pair(tmp_path / "scenes", "a")
    save_depth(tmp_path / "depths/a_depth.png", (100, 255), (64, 64))
    mixture = Mixture.load(
        folder,
        scenes=[(tmp_path / "scenes", tmp_path / "depths")],
        pairs=[tmp_path / "rain", tmp_path / "snow"],
    )
    rng = torch.Generator().manual_seed(0)

    def shares(count, batches, side=64, **fields):
        config = TrainConfig(clean=1.0, **fields)
        found = {"photographs": 0, "pairs": 0, "scenes": 0}
        for _ in range(batches):
            clean, spoiled = mixture.batch(count, side, rng, config)
            assert clean.shape == spoiled.shape == (count, 3, side, side)
            for x, y in zip(clean, spoiled, strict=True):
                if torch.equal(x, y):
                    found["photographs"] += 1
                else:  # the blue of the spoiled half of pairs is 200, of scenes it is haze
                    found["pairs" if y[2].median() > 0.7 and y[:2].min() < 0.1 else "scenes"] += 1
        return {name: n / (count * batches) for name, n in found.items()}

    rng = torch.Generator().manual_seed(1)
    config = TrainConfig(clean=1.0, pairs=0.3, scenes=0.1)
    several = mixture.batches(4, 64, rng, config, ahead=5)  # of which each has some of all
    assert [(len(clean), len(spoiled)) for clean, spoiled in several] == [(4, 4)] * 5
    spoiled = [sum(not torch.equal(x, y) for x, y in zip(*some, strict=True)) for some in several]
    assert set(spoiled) <= {1, 2} and sum(spoiled) in (7, 8, 9)

    found = shares(6, 100, pairs=0.3, scenes=0.1)
    assert found["photographs"] == pytest.approx(0.6, abs=0.04)
    assert found["pairs"] + found["scenes"] == pytest.approx(0.4, abs=0.04)
    assert shares(6, 20, pairs=0.0, scenes=0.0)["photographs"] == 1
    assert shares(4, 20, pairs=1.0, scenes=0.0)["photographs"] == 0.25
    (folder / "large.png").write_bytes((folder / "0.png").read_bytes())
    Image.new("RGB", (128, 128)).save(folder / "large.png")
    mixture = Mixture(Photographs.load(folder), mixture.scenes, mixture.pairs)
    assert shares(4, 3, side=128, pairs=0.5, scenes=0.3)["photographs"] == 1


def test_only_photographs_that_stay_clean_are_shown_in_other_tones(tmp_path):
    """Of black and white ones all but these keep black and white as what they are restored to."""
    rng = np.random.default_rng(0)
    pixels = np.repeat(255 * rng.integers(0, 2, (96, 96, 1), dtype=np.uint8), 3, 2)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    mixture = Mixture.load(tmp_path)
    clean, spoiled = mixture.batch(
        200, 64, torch.Generator().manual_seed(0), TrainConfig(clean=0.5, faded=1.0)
    )
    stays = (clean == spoiled).flatten(1).all(1)
    toned = ((clean != 0) & (clean != 1)).flatten(1).any(1)
    assert torch.equal(stays, toned)
    assert stays.float().mean() == pytest.approx(0.5, abs=0.1)


def test_pairs_are_trained_on_and_validated(folder, tmp_path):
    for i in range(100):
        save_pair(tmp_path / "rainy", f"{i:02}", clean_sides=(64, 65) if i == 7 else None)
    (tmp_path / "rainy/95_gt.png").unlink()
    (tmp_path / "rainy/05_gt.png").unlink()
    rows = []
    train(
        folder,
        tmp_path / "run",
        "tiny",
        QUICK,
        pairs=[tmp_path / "rainy"],
        validation=folder,
        until=5 * STEP,
        report=rows.append,
    )
    assert rows[0]["pairs"] == 88
    assert rows[0]["left_out"] == [
        "broken.png",
        "05: one of the two cannot be read",
        "07: the two differ in size",
        "broken.png",
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


def test_phases_go_by_megapixels():
    cpu, cuda = TrainConfig.for_device("cpu"), TrainConfig.for_device("cuda")
    assert cpu == TrainConfig() and cuda.phases == PHASES["cuda"]
    for start, side, batch in PHASES["cpu"]:
        assert cpu.phase(start) == cpu.phase(start + 1) == (side, batch)
    one = TrainConfig.for_device("cpu", side=640, clean=1.0)
    assert one.phases == ((0.0, 640, PHASES["cpu"][0][2]),)
    assert one.clean == 1
    assert TrainConfig.for_device("cuda", batch=4).phase(1e9) == (PHASES["cuda"][0][1], 4)
    for device in ("cpu", "cuda"):
        side, batch = ANNEALING[device]
        assert side >= 256  # a branch ends on patches that show more of the picture
        branch = TrainConfig().annealed(device, 100.0, 20.0, None, None)
        assert branch.phase(0) == branch.phase(110) == (side, batch)
    deep = TrainConfig(depths=((0.0, 2), (50.0, 4)))
    assert [deep.depth(megapixels) for megapixels in (0, 49, 50, 1000)] == [2, 2, 4, 4]
    for wrong in (
        {"phases": ((1.0, 64, 1),)},
        {"pace": ((1.0, 0.5),)},
        {"depths": ((1.0, 2),)},
        {"anneal": (10.0, 10.0)},
    ):
        with pytest.raises(ValueError):
            TrainConfig(**wrong)


def test_a_config_grows_from_its_first_blocks():
    nano = VARIANTS["nano"]
    assert nano.shallow(99) == nano.shallow(nano.depth) == nano
    two = nano.shallow(2)
    assert two.depth == 2
    assert [stage.blocks for stage in two.analysis] == [s.blocks[:2] for s in nano.analysis]
    assert "hatb" in two.analysis[-1].blocks  # it sees the whole picture from the beginning


def test_the_options_of_training_default_to_its_config():
    config = TrainConfig()
    for command in ("run", "anneal"):
        options = {
            option.name: option.default for option in cli.commands["train"].commands[command].params
        }
        for option, field in (
            ("clean", "clean"),
            ("lr", "lr_matrix"),
            ("compile", "compile"),
            ("seed", "seed"),
        ):
            assert options[option] == getattr(config, field)
    assert config.lr_other == config.lr_matrix / 5


def test_the_loss_is_the_logarithm_of_rate_plus_weighted_distortion():
    torch.manual_seed(0)
    model = Model(TINY)
    clean, quality = torch.rand(2, 3, 64, 64), torch.tensor([0.0, 100.0])
    loss, bpp, mse = rate_distortion(model, clean, clean, quality)
    lam = torch.tensor([40.0, 8000.0])
    hopeless = HOPELESS / lam.sqrt()
    expected = torch.log(bpp + lam * hopeless * torch.log(1 + mse / hopeless))
    assert loss.item() == pytest.approx(expected.mean().item(), rel=1e-5)


@pytest.mark.parametrize("quality", [10.0, 90.0])
def test_the_gradient_of_a_picture_is_relative_to_its_loss(monkeypatch, quality):
    """By the error of a picture that is nearly right it is lmbda over the loss within the logarithm; a
    picture that is far off, and at a high rate, does not outweigh one that is not."""
    model = Model(TINY)
    clean, lam = torch.rand(1, 3, 64, 64), lmbda(torch.tensor([quality])).item()

    def measured(off):
        monkeypatch.setattr(type(model.transforms.g_s), "forward", lambda s, y, q: clean + off)
        with torch.no_grad():
            loss, bpp, mse = rate_distortion(
                model, clean, clean, torch.tensor([quality]), noise=False
            )
        return loss.item(), mse.item(), lam * mse.item() + bpp.item()

    (low, mse, whole), (high, more, _) = measured(0.002), measured(0.003)
    assert (high - low) / (more - mse) == pytest.approx(lam / whole, rel=0.02)
    (low, mse, _), (high, more, _) = measured(0.5), measured(0.51)
    assert (high - low) / math.log(more / mse) < 1


def test_a_dead_deep_path_is_noticed(folder, monkeypatch):
    """It is worth decibels where it carries a part of the picture, and none where it is the same everywhere."""
    images = Photographs.load(folder)
    torch.manual_seed(0)
    model = Model(TINY).eval().requires_grad_(False)
    g_s = model.transforms.g_s
    g_s.tail.weight.zero_()
    g_s.tail.bias.copy_(torch.linspace(-0.1, 0.1, len(g_s.tail.bias)))
    assert deep_share(model, images) == pytest.approx(0, abs=1e-3)
    g_s.linear.weight.mul_(0.5)
    rest = Piece(lambda y_hat: g_s.linear_path(y_hat, torch.tensor([50.0])) - 0.5, 0, 1)
    monkeypatch.setattr(g_s, "pieces", lambda quality: [rest])
    assert deep_share(model, images) > 1


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
    g_a, g_s = model.transforms.g_a, model.transforms.g_s
    assert {id(g_a.stem.weight), id(g_s.tail.weight)} <= matrices
    assert {id(g_a.linear.weight), id(g_s.linear.weight)} <= others
    groups = [[group["params"] for group in o.param_groups] for o in (muon, adamw)]
    apart = [[[g_a.head.weight], [g_s.tail.weight]], [[g_s.linear.weight]]]
    assert [[*map(id, p)] for some in groups for p in some[1:]] == [
        [*map(id, p)] for some in apart for p in some
    ]
    rates = QUICK.rates
    assert [len(some) for some in rates] == [len(some) for some in groups]
    assert all(rate < some[0] for some in rates for rate in some[1:])
    assert all(
        (id(m.weight) in others)
        == (
            m.weight.shape[1] < 16
            or m in (model.transforms.g_a.linear, model.transforms.g_s.linear)
        )
        for m in model.modules()
        if isinstance(m, torch.nn.Conv2d)
    )


@pytest.mark.parametrize("half", [False, True])
def test_muon_orthogonalises(half, monkeypatch):
    """By either iteration, in float32 and in bfloat16: in float32 the second pair of shapes takes the one
    on the Gram matrix."""
    monkeypatch.setattr("aiocodec.training.muon.has_bfloat16", lambda device: half)
    torch.manual_seed(0)
    for shape in ((2, 24, 40), (2, 40, 24), (2, 24, 60), (2, 60, 24)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_nano_is_what_quick_training_trains():
    assert sum(p.numel() for p in Model(VARIANTS["nano"]).parameters()) < 6e6


def test_muon_moves_its_matrices_in_turns():
    """Within `every` steps each moves once, as far as it would in so many steps of its own."""
    torch.manual_seed(0)
    shapes = [(16, 16), (16, 16), (16, 40), (40, 16), (20, 20)]
    moved = {}
    for every in (1, 2):
        parameters = [torch.nn.Parameter(torch.zeros(*shape)) for shape in shapes]
        muon = Muon(parameters, 0.01, every=every)
        turns = []
        for _ in range(2):
            before = [p.clone() for p in parameters]
            for p, shape in zip(parameters, shapes, strict=True):
                p.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
            muon.step()
            turns.append([not torch.equal(p, q) for p, q in zip(parameters, before, strict=True)])
        assert [sum(turn) for turn in zip(*turns, strict=True)] == [2 // every] * len(shapes)
        moved[every] = torch.tensor([p.detach().norm() for p in parameters])
    assert torch.allclose(moved[1], moved[2], rtol=0.02)


def test_steps_lower_the_loss_and_go_on_from_a_checkpoint(tmp_path):
    torch.manual_seed(0)
    config = replace(QUICK, warmup=1)
    run = Run.create(Model(TINY), config)
    rng = torch.Generator().manual_seed(0)
    clean = torch.nn.functional.interpolate(torch.rand(2, 3, 8, 8, generator=rng), scale_factor=8)
    quality = torch.tensor([20.0, 80.0])
    before = rate_distortion(run.model, clean, clean, quality)[0].item()
    for _ in range(15):
        run.update(clean, clean)
    assert rate_distortion(run.model, clean, clean, quality)[0].item() < before
    save_checkpoint(run, tmp_path / "checkpoint.pt")
    other = load_run(tmp_path / "checkpoint.pt", TINY, config, "cpu")
    for a in (run, other):
        torch.manual_seed(1)
        a.update(clean, clean)
    for a, b in zip(run.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_learning_rate_rises_and_stays_and_falls_to_zero_in_a_branch():
    config = TrainConfig(warmup=10, pace=((0.0, 1.0), (300.0, 0.5)))
    assert config.lr_factor(0, 0.0) == pytest.approx(0.1)
    assert config.lr_factor(10, 0.1) == config.lr_factor(10, 299) == 1
    assert config.lr_factor(10, 300) == config.lr_factor(10, 1e9) == 0.5
    branch = replace(config, anneal=(100.0, 200.0))
    factors = [branch.lr_factor(10, megapixels) for megapixels in (50, 100, 125, 150, 200, 250)]
    assert factors == pytest.approx([1, 1, 0.5, 1 - 0.5**0.5, 0, 0])


def test_validation_degrades_the_same_way_every_time(folder):
    model = Model(TINY).eval()
    images = Photographs.load(folder)
    names = ("clean", "noise:25", "rain", "snow+jpeg:50")
    rows = validate(model, images, names)
    assert rows == validate(model, images, names)
    assert [row["degradation"] for row in rows] == [name for name in names for _ in range(3)]
    assert rows != validate(model, images, names, every=2)


def test_a_log_of_validations_that_changed_is_plotted(tmp_path):
    """A run may go on with a version of the package that validates other degradations."""
    rows = [
        {
            "megapixels": megapixels,
            "validation": [
                {"degradation": name, "quality": q, "bpp": q / 100, "psnr": 30 + q / 10}
                for name in names
                for q in (10, 50)
            ],
        }
        for megapixels, names in ((1, ["clean", "noise:15"]), (2, ["clean", "camera"]))
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert plot(tmp_path / "log.jsonl", tmp_path)
    for name in ("rd.png", "progress.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 300


def test_a_log_without_validation_is_plotted(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 0}\n')
    assert plot(tmp_path / "log.jsonl", tmp_path)
    assert (tmp_path / "rd.png").exists() and (tmp_path / "progress.png").exists()


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
        run.update(clean, clean)
        runs.append(run)
    for a, b in zip(*(run.model.parameters() for run in runs), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    assert runs[0].model.state_dict().keys() == runs[1].model.state_dict().keys()


def test_benchmark_measures_whole_steps():
    rows = list(benchmark(TINY, "cpu", 64, (1, 2), seconds=0.1))
    assert [row["batch"] for row in rows] == [1, 2]
    for row in rows:
        seen = row["batch"] * 64**2 / 1e6
        assert row["megapixels_per_second"] == pytest.approx(1000 * seen / row["ms"], rel=0.1)
        assert row["compute_floor_ms"] > 0  # the share of a busy machine rounds to 0
    assert rows[1]["memory_floor_ms"] >= rows[0]["memory_floor_ms"]


@pytest.mark.cuda
@pytest.mark.parametrize("compiled", [False, True])
def test_training_on_cuda(folder, tmp_path, compiled):
    """With two sizes of batches, validation, a second sitting on the CPU and a branch."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    phases = ((0.0, 64, 4), (1.0, 64, 2))
    config = replace(QUICK, phases=phases, compile=compiled)
    train(folder, tmp_path / "run", "tiny", config, validation=folder, device="cuda", until=1.4)
    for device in ("cuda", "cpu"):
        again = replace(config, compile=False)
        run = train(folder, tmp_path / "run", "tiny", again, device=device, until=1.6)
        assert run.megapixels >= 1.6
    branch = anneal(
        tmp_path / "run",
        folder,
        tmp_path / "branch",
        "tiny",
        config,
        side=64,
        batch=2,
        device="cuda",
    )
    assert branch.progress == 1
    assert next(load_weights(tmp_path / "branch").parameters()).device.type == "cpu"


def test_the_gradients_of_parts_are_those_of_the_batch(monkeypatch):
    """Where cores take a part of the batch each, of any sizes: the mean over all patches."""
    monkeypatch.setattr("aiocodec.training.run.has_bfloat16", lambda device: True)
    shape = replace(VARIANTS["nano"].shallow(1), entropy=EntropyConfig(32, 8, 16))
    torch.manual_seed(0)
    clean, quality = torch.rand(3, 3, 64, 64), torch.tensor([10.0, 50.0, 90.0])
    run = Run.create(Model(shape), TrainConfig())
    found = {}
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        run.seed()
        try:
            values = run.backward(clean, clean, quality)
        finally:
            torch.set_num_threads(before)
        found[threads] = torch.cat([p.grad.flatten() for p in run.model.parameters()]), values
        assert torch.get_num_threads() == before
    (whole, losses), (parts, others) = found[1], found[2]
    assert torch.nn.functional.cosine_similarity(whole, parts, dim=0) > 0.98  # the noise differs
    assert torch.stack(others).tolist() == pytest.approx(torch.stack(losses).tolist(), rel=0.02)
    run.seed()
    torch.set_num_threads(2)
    try:
        run.backward(clean, clean, quality)
    finally:
        torch.set_num_threads(before)
    again = torch.cat([p.grad.flatten() for p in run.model.parameters()])
    assert torch.equal(again, parts)  # and what the threads do first is no matter


@pytest.mark.parametrize("config", ["nano", "fast"])
def test_a_step_in_bfloat16(config):
    """What happens under autocast: networks in bfloat16, losses and gradients finite and near those in
    float32, x_hat and the likelihoods in float32."""
    shape = replace(VARIANTS[config].shallow(2), entropy=EntropyConfig(32, 8, 16))
    torch.manual_seed(0)
    model = Model(shape)
    x, quality = torch.rand(1, 3, 64, 64), torch.tensor([50.0])
    losses = []
    for half in (False, True):
        for p in model.parameters():
            p.grad = None
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = model(x, quality)
        assert {t.dtype for t in out} == {torch.float32}
        loss = 500 * (out.x_hat - x).square().mean() + out.bpp().mean()
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]
