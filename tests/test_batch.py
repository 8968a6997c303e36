"""Batches: which files, where to, nothing overwritten, and processes that may die."""

import dataclasses
import multiprocessing
import os
import pickle
import signal
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from aiocodec import batch, files
from aiocodec.batch import Decode, Encode, Job, guard, run, spread
from aiocodec.errors import AicError, BitstreamError, ImageError, LimitError, OutputError

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs links or signals")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*paths):
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def names(folder="."):
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def pairs(jobs):
    return [(job.source, job.target) for job in jobs]


# --------------------------------------------------------------------------- work as a value


@pytest.mark.parametrize(
    "value",
    [
        Encode(quality=3, threads=1, strip=True, formats=("PNG",)),
        Encode(max_bytes=1000, force=True),
        Decode(suffix=".jpg", skip_existing=True),
        Job("a", "b"),
    ],
)
def test_everything_can_be_pickled_and_compared(value):
    assert pickle.loads(pickle.dumps(value)) == value
    assert hash(pickle.loads(pickle.dumps(value))) == hash(value)
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.model = "other"


@pytest.mark.parametrize(
    "goals",
    [
        {"quality": 50, "max_bytes": 1},
        {"target_bpp": 1.0, "max_bytes": 1},
        {"target_bpp": 0.0},
        {"target_bpp": float("inf")},
        {"target_bpp": float("nan")},
    ],
)
def test_goals_exclude_each_other(goals):
    with pytest.raises(ValueError):
        Encode(**goals)


# --------------------------------------------------------------------------- the list


def test_a_tree_is_kept():
    make("in/b.png", "in/a.JPG", "in/sub/deep/c.gif", "in/notes.txt", "in/x.aic", "in/png", "d.bmp")
    make("in/.hidden.png", "in/.hidden/e.png")
    jobs = spread(["d.bmp", "in"], "out", Encode(), recursive=True)
    assert pairs(jobs) == [
        ("d.bmp", "out/d.aic"),
        ("in/a.JPG", "out/a.aic"),
        ("in/b.png", "out/b.aic"),
        ("in/sub/deep/c.gif", "out/sub/deep/c.aic"),
    ]
    assert Path("out/sub/deep").is_dir() and not any(job.fault for job in jobs)
    jobs = spread(["in"], "out", Decode(suffix=".webp"), recursive=True)
    assert pairs(jobs) == [("in/x.aic", "out/x.webp")]


def test_a_folder_is_a_file_that_cannot_be_read_unless_it_is_asked_for():
    make("in/b.png")
    assert pairs(spread(["in"], "out", Encode())) == [("in", "out/in.aic")]


def test_outputs_are_no_inputs():
    make("in/a.png", "in/out/old.png")
    assert pairs(spread(["in"], "in/out", Encode(), recursive=True)) == [
        ("in/a.png", "in/out/a.aic")
    ]
    assert pairs(spread(["in"], "in", Encode(), recursive=True)) == [
        ("in/a.png", "in/a.aic"),
        ("in/out/old.png", "in/out/old.aic"),
    ]


@posix
def test_links_to_folders_are_not_followed():
    make("in/a.png", "other/b.png")
    os.symlink("../other", "in/other")
    os.symlink("..", "in/loop")
    os.symlink("../other/b.png", "in/b.png")
    os.symlink("in", "link")
    os.mkfifo("in/fifo.png")
    for path in ("in", "link"):
        jobs = spread([path], "out", Encode(), recursive=True)
        assert [job.source for job in jobs] == [f"{path}/a.png", f"{path}/b.png"]


@pytest.mark.parametrize(("work", "kind"), [(Encode(), ImageError), (Decode(), BitstreamError)])
def test_a_folder_without_files_is_a_failure(work, kind):
    make("in/sub/notes.txt", "a.png", "a.aic")
    first, second = spread(["in", f"a{min(work.suffixes())}"], "out", work, recursive=True)
    assert type(first.fault) is kind and first.source == "in"
    assert second.fault is None


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read anything")
def test_a_folder_that_cannot_be_read_is_a_failure():
    make("in/a.png", "in/closed/b.png")
    os.chmod("in/closed", 0)
    first, second = spread(["in"], "out", Encode(), recursive=True)
    os.chmod("in/closed", 0o755)
    assert first.fault is None and second.source == "in/closed"
    assert type(second.fault) is ImageError and "Permission denied" in str(second.fault)


def test_a_tree_that_cannot_be_made_costs_its_files():
    make("in/a.png", "in/sub/b.png", "out/sub")
    first, second = spread(["in"], "out", Encode(), recursive=True)
    assert first.fault is None and type(second.fault) is OutputError


@posix
def test_no_output_is_any_input():
    """Under whatever name, before or after it in the list."""
    make("a.png", "a.aic", "b.png", "c.png")
    os.link("a.png", "out-hard")
    os.symlink("a.png", "out-soft")
    jobs = [
        Job("a.png", "a.png"),
        Job("b.png", "a.aic"),
        Job("b.png", "out-hard"),
        Job("c.png", "out-soft"),
        Job("a.aic", "./b.png"),
        Job("c.png", "fine"),
        Job("c.png", "-"),
        Job("c.png", "-"),
        Job("c.png", "/dev/null"),
        Job("c.png", "/dev/null"),
    ]
    faults = [str(job.fault or "") for job in guard(jobs)]
    assert faults[0] == "the output is the input"
    assert [fault.split()[-1] for fault in faults[1:5]] == ["a.aic", "a.png", "a.png", "b.png"]
    assert not any(faults[5:])


def test_no_two_outputs_are_the_same():
    make("one/x.png", "two/x.jpg", "three/x.png")
    jobs = guard(spread(["one/x.png", "two/x.jpg", "three/x.png"], "out", Encode()))
    assert [job.fault is None for job in jobs] == [True, False, False]
    assert "one/x.png" in str(jobs[1].fault) and "one/x.png" in str(jobs[2].fault)
    os.makedirs("there")
    os.symlink("there", "link")
    assert guard([Job("a", "there/x"), Job("b", "link/x")])[1].fault is not None
    known = AicError("as it was")
    assert guard([Job("a", "x", known), Job("b", "x")]) == [Job("a", "x", known), Job("b", "x")]


# --------------------------------------------------------------------------- processes


@dataclasses.dataclass(frozen=True)
class Strange(Encode):
    """Does what the name of the input says."""

    def run(self, job, progress=None):
        if job.fault:
            raise job.fault
        what = job.source.split("-")[0]
        if what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        if what == "exits":
            os._exit(3)
        if what == "writing":  # and killed then
            os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
            files.write(job.target, b"never seen")
        if what == "fails":
            raise LimitError("as told")
        if what == "wrong":
            raise ZeroDivisionError("as told")
        if what == "slow":
            time.sleep(0.5)
        if what == "sleeps":
            time.sleep(100)
        files.write(job.target, b"done", force=self.force)
        return {"input": job.source, "pid": os.getpid()}


def jobs_named(*whats):
    return [Job(f"{what}-{i}", f"{i}.out") for i, what in enumerate(whats)]


def nobody_is_left():
    return not multiprocessing.active_children()


def test_outcomes_come_in_the_order_of_the_list():
    jobs = jobs_named("slow", "fine", "fails", "wrong", "slow", "fine", "fine")
    jobs[1] = Job("fine", "no", ImageError("known before"))
    seen = list(run(jobs, Strange(), 3))
    assert [job for job, _ in seen] == jobs
    for (job, outcome), (_, alone) in zip(seen, run(jobs, Strange(force=True)), strict=True):
        if isinstance(outcome, AicError):
            assert (type(outcome), str(outcome)) == (type(alone), str(alone))
        else:
            assert outcome["input"] == alone["input"] == job.source
    assert names() == {"0.out", "4.out", "5.out", "6.out"}
    pids = {outcome["pid"] for _, outcome in seen if isinstance(outcome, dict)}
    assert 1 < len(pids) <= 3 and os.getpid() not in pids
    assert nobody_is_left()


@posix
def test_a_process_that_dies_costs_one_file():
    whats = ("fine", "killed", "fine", "crashes", "exits", "fine", "writing", "fine", "killed")
    seen = [outcome for _, outcome in run(jobs_named(*whats), Strange(), 2)]
    fine = {i for i, what in enumerate(whats) if what == "fine"}
    assert {i for i, outcome in enumerate(seen) if isinstance(outcome, dict)} == fine
    assert names() == {f"{i}.out" for i in fine}  # and no temporary file
    for i in (1, 6, 8):
        assert type(seen[i]) is LimitError and "killed" in str(seen[i])
    assert f"signal {int(signal.SIGSEGV)}" in str(seen[3]) and "code 3" in str(seen[4])
    assert nobody_is_left()


def test_a_generator_that_is_closed_leaves_nobody():
    with closing(run(jobs_named("fine", "sleeps", "sleeps"), Strange(), 2)) as outcomes:
        next(outcomes)
    assert nobody_is_left()
    assert names() == {"0.out"}


def test_no_more_processes_than_jobs():
    (outcome,) = run(jobs_named("fine"), Strange(), 8)
    assert outcome[1]["pid"] == os.getpid()
    seen = run(jobs_named("slow", "slow"), Strange(force=True), 8)
    assert len({outcome["pid"] for _, outcome in seen}) == 2


def test_the_bytes_do_not_depend_on_the_number_of_processes(photo):
    """With the installed model, in this process too."""
    for i, size in enumerate(((90, 70), (64, 64), (130, 100), (33, 200))):
        Image.fromarray(photo.rgb[40 * i :, 50 * i :][: size[1], : size[0]]).save(f"{i}.png")
    sources = [f"{i}.png" for i in range(4)]
    work = Encode(quality=40, device="cpu", threads=1)
    for processes in (1, 2):
        for _, outcome in run(spread(sources, f"out{processes}", work), work, processes):
            assert isinstance(outcome, dict), outcome
    for i in range(4):
        assert Path(f"out1/{i}.aic").read_bytes() == Path(f"out2/{i}.aic").read_bytes()
    back = Decode(suffix=".png", device="cpu", threads=1)
    jobs = guard(spread(["out1", "out2/3.aic"], "back", back, recursive=True))
    rows = [outcome for _, outcome in run(jobs, back, 2)]
    assert type(rows.pop()) is OutputError  # that of out1/3.aic
    assert [row["width"] for row in rows] == [90, 64, 130, 33]
    assert names("back") == {f"{i}.png" for i in range(4)}


# --------------------------------------------------------------------------- one file


def test_existing_outputs_are_skipped_before_anything_is_read(monkeypatch):
    make("x.aic")
    row = Encode(skip_existing=True).run(Job("missing.png", "x.aic"))
    assert row == {"input": "missing.png", "output": "x.aic", "skipped": True}
    with pytest.raises(ImageError):  # pipes and stdout are not skipped
        Encode(skip_existing=True).run(Job("missing.png", "/dev/null"))
    with pytest.raises(OutputError):
        Encode().run(Job("x.aic", "x.aic"))
    with pytest.raises(ImageError):  # of two faults, that of the input is named
        Encode().run(Job("missing.png", "x.aic"))


class Told:
    """A codec that tells its progress, if it is asked to."""

    name, device = "stub", type("Device", (), {"type": "cpu"})

    def encode(self, picture, quality, *, effort, strip, verify, progress=None):
        if progress:
            progress(0.5)
        return b"coded"


@pytest.mark.parametrize(("size", "told"), [((1999, 1000), []), ((2000, 1000), [0.5])])
def test_progress_is_told_of_large_pictures(size, told, monkeypatch):
    monkeypatch.setattr(batch, "load_codec", lambda *args: Told())
    Image.new("L", size).save("x.png")
    seen = []
    Encode().run(Job("x.png", "x.aic"), seen.append)
    assert seen == told
    Encode(force=True).run(Job("x.png", "x.aic"))


@pytest.mark.parametrize(("strict", "formats"), [(False, None), (True, ("PNG", "JPEG"))])
def test_the_reader_is_told_how(strict, formats, monkeypatch):
    from aiocodec import image

    picture = dataclasses.replace(
        image.read(Path(__file__).parent.joinpath("photos/lake.png").read_bytes()),
        warnings=("only the first of 3 frames is kept",),
    )
    seen = {}

    def read(data, **options):
        seen.update(options)
        return picture

    monkeypatch.setattr(image, "read", read)
    monkeypatch.setattr(batch, "load_codec", lambda *args: Told())
    Image.new("L", (9, 9)).save("x.png")
    row = Encode(strict=strict, formats=formats, max_pixels=77).run(Job("x.png", "x.aic"))
    assert seen == {"strict": strict, "formats": formats, "max_pixels": 77}
    assert row["warnings"] == ["only the first of 3 frames is kept"]
    assert (row["bytes"], row["output_bytes"]) == (5, 5)
    assert row["input_bytes"] == Path("x.png").stat().st_size


def test_what_a_format_cannot_hold_is_a_warning(monkeypatch):
    from test_cli import container

    from aiocodec import image

    picture = image.read(Path(__file__).parent.joinpath("photos/lake.png").read_bytes())
    picture = dataclasses.replace(picture, alpha=picture.rgb[..., 0], warnings=("odd",))

    class Clear(Told):
        def decode(self, container):
            return picture

    monkeypatch.setattr(batch, "load_codec", lambda *args: Clear())
    Path("x.aic").write_bytes(container())
    assert Decode().run(Job("x.aic", "x.png"))["warnings"] == ["odd"]
    first, *losses = Decode().run(Job("x.aic", "x.jpg"))["warnings"]
    assert first == "odd" and len(losses) == 1 and "transparency" in losses[0]
