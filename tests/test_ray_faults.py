"""Fleets under fire: whatever is killed, full or gone, nothing is lost, nothing is half, nothing is done twice
that was recorded, and the same call goes on. The codec is a stand-in; see fleet.py."""

import dataclasses
import errno
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress

import pytest

from aiocodec import manifest
from aiocodec.errors import ImageError, OutputError
from aiocodec.manifest import RunManifest
from aiocodec.places import Place
from aiocodec.ray import _Job, _Sources, _Stop, _Task, read_manifest

pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs the signals of POSIX")

import fleet  # noqa: E402
from fleet import Driver, begun, done, eventually, everything_is_done, pictures, rows  # noqa: E402


@pytest.fixture(scope="module")
def cluster():
    """A head and another node."""
    cluster = fleet.Cluster()
    yield cluster
    cluster.close()


@pytest.fixture
def out(tmp_path):
    """A destination that is not there yet."""
    return tmp_path / "out"


@contextmanager
def mounted(folder, *options):
    """A block in which a small file system of its own is at a folder; skipped where that may not be."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", *options, "none", folder]
    if os.name != "posix" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def outputs(folder):
    return list(folder.rglob("*.aic"))


def is_one_sentence(text):
    return text.startswith("aic: ") and text.count("\n") == 1 and text.endswith("\n")


# --------------------------------------------------------------------------- what is killed


class Chaos:
    """Drivers one after the other over the same pictures, and kills at random moments."""

    def __init__(self, cluster, source, out, seed, pause):
        self.cluster, self.source, self.out, self.pause = cluster, source, out, pause
        self.rng = random.Random(seed)
        self.kills = dict.fromkeys(("child", "actor", "driver", "node"), 0)
        self.driver, self.lives = None, 0
        print(f"seed {seed}")

    def start(self):
        """The same call as before, which is to leave alone what is recorded."""
        self.log, self.recorded = self.out.parent / f"begun-{self.lives}", done(self.out)
        self.lives += 1
        self.driver = Driver(
            self.cluster,
            *(self.source, self.out),
            stand={"log": str(self.log), "pause": self.pause},
            manifest={"FLUSH_ROWS": 3, "FEW": 4},  # it stores and merges all the time
        )

    def nothing_was_done_twice(self):
        assert not self.recorded & set(begun(self.log))

    def kill(self, what):
        """Whether there was something of the sort."""
        if what == "driver":
            self.driver.__exit__()
            self.nothing_was_done_twice()
            self.start()
        elif what == "node":
            self.cluster.kill_node(self.rng)
            time.sleep(self.rng.uniform(0, 2))
            self.cluster.add()
        else:
            found = (fleet.children if what == "child" else fleet.actors)(self.cluster.mark)
            if not found or not fleet.kill(self.rng.choice(found)):
                return
        self.kills[what] += 1

    def run(self, plan):
        """Kill what the plan says, as long as the drivers are not through; what is left of the plan."""
        plan = list(plan)
        self.start()
        try:
            with fleet.watched(fleet.expected(self.source, self.out)):
                while self.driver.process.poll() is None:
                    time.sleep(self.rng.uniform(0.1, 1.5))
                    if plan and (begun(self.log) or self.rng.random() < 0.1):
                        before = sum(self.kills.values())
                        self.kill(plan[0])
                        del plan[: sum(self.kills.values()) - before]
                code, errors = self.driver.wait()
        finally:
            self.driver.__exit__()
        print(self.kills, self.lives, "lives")
        assert (code, errors) == (0, "")
        self.nothing_was_done_twice()
        everything_is_done(self.source, self.out)
        return plan


def test_whatever_is_killed_everything_is_done(cluster, tmp_path, out):
    source = pictures(tmp_path / "in", 120)
    chaos = Chaos(cluster, source, out, seed=1, pause=0.1)
    assert not chaos.run(["child", "actor", "driver", "child", "node", "child", "actor", "child"])


@pytest.mark.slow
def test_whatever_is_killed_sixty_times(cluster, tmp_path):
    seed = int(os.environ.get("AIC_SEED", "2"))
    plan = ["child"] * 30 + ["actor"] * 14 + ["driver"] * 10 + ["node"] * 8
    random.Random(seed).shuffle(plan)
    source, kills = pictures(tmp_path / "in", 400), 0
    cluster.add()
    while plan:
        seed += 1
        folder = tmp_path / str(seed)
        folder.mkdir()
        chaos = Chaos(cluster, source, folder / "out", seed, pause=0.3)
        plan = chaos.run(plan)
        kills += sum(chaos.kills.values())
        shutil.rmtree(folder)
    assert kills >= 60


@pytest.mark.slow
@pytest.mark.parametrize("what", ["raylet", "gcs_server"])
def test_the_head_takes_the_driver_along_and_the_next_run_goes_on(tmp_path, out, what):
    source, log = pictures(tmp_path / "in", 60), tmp_path / "log"
    often = {"FLUSH_ROWS": 3}
    with (
        closing(fleet.Cluster()) as lost,
        Driver(lost, source, out, stand={"pause": 0.3}, manifest=often) as driver,
    ):
        eventually(lambda: done(out))
        lost.kill_head(what)
        assert driver.wait()[0]  # Ray ends the process, and says nothing
        eventually(lambda: not driver.coding())
    recorded = done(out)
    with (
        closing(fleet.Cluster()) as found,
        Driver(found, source, out, stand={"log": str(log)}) as driver,
    ):
        assert driver.wait() == (0, "")
    assert not recorded & set(begun(log))
    everything_is_done(source, out)


@pytest.mark.slow
def test_a_node_that_does_not_come_back_is_done_without(cluster, tmp_path, out):
    source = pictures(tmp_path / "in", 60)
    with Driver(cluster, source, out, stand={"pause": 0.1}) as driver:
        eventually(lambda: len(outputs(out)) > 5)
        cluster.kill_node(random.Random(1))
        try:
            assert driver.wait() == (0, "")
        finally:
            cluster.add()
    everything_is_done(source, out)


def test_of_two_runs_one_is_refused_and_nothing_survives_a_driver(cluster, tmp_path, out):
    source, log = pictures(tmp_path / "in", 60), tmp_path / "log"
    with Driver(cluster, source, out, stand={"pause": 0.2, "log": str(log)}) as first:
        eventually(lambda: len(outputs(out)) > 5)
        with Driver(cluster, source, out) as second:
            code, error = second.wait()
        assert code == 7 and is_one_sentence(error) and "another run is at work" in error
        assert first.process.poll() is None
        first.kill()
    eventually(lambda: not first.coding(), 10)
    before = begun(log)
    with Driver(cluster, source, out) as third:  # the lock has gone with its holder
        assert third.wait() == (0, "")
    assert begun(log) == before
    everything_is_done(source, out)


@pytest.mark.slow
def test_a_cluster_of_its_own_ends_with_its_driver(tmp_path, out):
    source = pictures(tmp_path / "in", 60)
    with Driver(None, source, out, stand={"pause": 0.5}, workers=1) as driver:
        eventually(lambda: len(outputs(out)) > 1)
        driver.kill()
        eventually(lambda: not driver.coding(), 10)
    assert {path.name for path in out.iterdir()} <= {"manifest.parquet", *map(str, range(7))}


# --------------------------------------------------------------------------- what kills


@pytest.mark.parametrize(
    "harm",
    [
        ("faulty",),
        pytest.param(
            ("unreadable", "killed", "faulty", "murderous", "huge"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_poison_is_begun_a_few_times_and_recorded(cluster, tmp_path, out, harm):
    source, attempts = tmp_path / "in", 2
    pictures(source, 20, large=2 * (len(harm) > 1), **dict.fromkeys(harm, 1))

    def run(number, *arguments, attempts=attempts):
        log = tmp_path / f"log-{number}"
        stand = {"log": str(log)}
        with Driver(cluster, source, out, *arguments, stand=stand, attempts=attempts) as driver:
            assert driver.wait()[0] == 8, driver.errors
        everything_is_done(source, out)
        assert driver.tally["failed"] == len(harm)
        return {fleet.fate(name): count for name, count in begun(log).items()}

    first = run(1)
    begun_again = {"killed": attempts, "faulty": attempts, "huge": 2, "large": 2}  # in both lanes
    for fate, count in first.items():
        assert begun_again.get(fate, 1) <= count <= attempts**2, fate
    assert first.get("unreadable", 1) == 1 and {
        first.get(fate, 2) for fate in ("huge", "large")
    } == {2}
    codes = {"unreadable": 3, "huge": 6, "killed": 6, "faulty": 1, "murderous": 1}
    found = {fleet.fate(row["path"]): row["exit_code"] for row in rows(out)}
    assert {fate: found[fate] for fate in harm} == {fate: codes[fate] for fate in harm}
    assert not run(2)
    assert set(run(3, "--retry", attempts=1)) == set(harm)


# --------------------------------------------------------------------------- what is full or gone


@pytest.mark.slow
def test_folders_that_are_gone_are_waited_for_and_then_the_next_run_goes_on(cluster, tmp_path, out):
    source, log = pictures(tmp_path / "in", 100), tmp_path / "log"

    def run(*folders, seconds=None, **options):
        """What comes of a run while folders are gone, for so long or to its end; nothing is in their place,
        and nothing is begun that was recorded before."""
        log.write_bytes(b"")
        recorded, before = done(out), len(outputs(out))
        stand = {"pause": 0.15, "log": str(log)}
        often = {"FLUSH_ROWS": 3}
        with Driver(cluster, source, out, stand=stand, manifest=often, **options) as driver:
            eventually(lambda: len(outputs(out)) > before + 5)
            for folder in folders:
                folder.rename(f"{folder}-aside")
            time.sleep(seconds) if seconds else driver.wait()
            for folder in folders:
                assert not folder.exists()
                folder.with_name(f"{folder.name}-aside").rename(folder)
            code, error = driver.wait()
        assert not recorded & set(begun(log))
        assert {row["exit_code"] for row in rows(out)} <= {0}
        return code, error

    for folder, code in ((source, 3), (out, 7)):
        found, error = run(folder, patience=1)
        assert found == code and is_one_sentence(error) and str(folder) in error
    assert run(source, out, seconds=3) == (0, "")
    everything_is_done(source, out)


@pytest.mark.slow
def test_a_disk_that_is_full_is_waited_for(cluster, tmp_path, out):
    source = pictures(tmp_path / "in", 120)  # of 4 MB

    def run(**options):
        return Driver(cluster, source, out, manifest={"FLUSH_ROWS": 3}, **options)

    def size(megabytes):
        command = ["mount", "-o", f"remount,size={megabytes}m", out]
        subprocess.run(command, check=True)

    with mounted(out, "-o", "size=1m"):
        with run(patience=2) as driver:
            code, error = driver.wait()
        assert code == 7 and is_one_sentence(error) and "space" in error
        whole = fleet.expected(source, out)
        assert done(out) and all(path.read_bytes() == whole[path] for path in outputs(out))
        size(2)
        with run() as driver:
            eventually(lambda: shutil.disk_usage(out).free < 64 << 10)
            time.sleep(2)
            size(64)
            assert driver.wait() == (0, "")
        everything_is_done(source, out)


@pytest.fixture
def task(tmp_path, out):
    """What a process does with the pictures in in/, that take no time."""
    source = pictures(tmp_path / "in", 1)
    with RunManifest.open(Place.of(out), {}, 5.0, force=False, retry=False) as record:
        yield _Task(fleet.Stand(), (Place.of(source),), record.destination, record.scratch, 1.5)


def job(source):
    (path,) = source.rglob("*.png")
    name = str(path.relative_to(source))
    return _Job(str(path), f"{name}.aic", name=name)


@pytest.mark.parametrize("what", ["in", "out"])
def test_a_folder_that_nothing_is_mounted_at_any_more_is_waited_for(task, tmp_path, what):
    """What was in it is gone, and it is there still."""
    place, aside, todo = tmp_path / what, tmp_path / "aside", job(tmp_path / "in")
    place.rename(aside)
    place.mkdir()
    with pytest.raises(_Stop) as stop:
        task.run(todo)
    assert stop.value.args[1] == {"in": 3, "out": 7}[what]
    assert not list(place.iterdir())
    threading.Timer(0.5, aside.rename, (place,)).start()
    assert task.run(todo)["output"] == str(tmp_path / "out" / todo.target)


def test_a_source_that_is_gone_while_it_is_listed_is_waited_for(tmp_path):
    source, aside = pictures(tmp_path / "in", 20), tmp_path / "aside"
    jobs = _Sources.of(source, fleet.Stand(), None, 2.0).jobs()
    first = next(jobs)
    source.rename(aside)
    threading.Timer(0.5, aside.rename, (source,)).start()
    found = [first, *jobs]
    assert sorted(job.source for job in found) == sorted(map(str, source.rglob("*.png")))
    assert not any(job.fault for job in found)
    jobs = _Sources.of(source, fleet.Stand(), None, 0.5).jobs()
    next(jobs)
    source.rename(aside)
    with pytest.raises(ImageError, match="cannot be read any more: it is gone"):
        list(jobs)


def test_a_folder_can_be_listed_while_files_are_deleted(tmp_path):
    over, folder = threading.Event(), Place.of(tmp_path)

    def change():
        while not over.is_set():
            for name in "abcdefgh":
                (tmp_path / name).write_bytes(b"")
            for name in "abcdefgh":
                (tmp_path / name).unlink()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        assert not [entry for _ in range(2000) for entry in folder.walk() if entry.fault]
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("single", [False, True])
def test_a_picture_that_was_deleted_fails_alone(task, tmp_path, single):
    (tmp_path / "in" / "other").write_bytes(b"")
    todo = job(tmp_path / "in")
    os.unlink(todo.source)
    if single:
        place = tmp_path / "in" / "gone.png"
        task = dataclasses.replace(task, sources=(Place.of(place),))
        todo = _Job(str(place), "gone.aic")
    with pytest.raises(ImageError, match="No such file"):
        task.run(todo)


# --------------------------------------------------------------------------- the manifest, at every step

STEPS = """
import os, signal, sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace
import numpy, pyarrow.parquet
from aiocodec import manifest
from aiocodec.places import Place
from fleet import nothing_is_foreign, rows

manifest.FLUSH_ROWS, manifest.FEW = 2, 2
jobs = [SimpleNamespace(path=f"{i}.png", size=i, modified=i) for i in range(6)]

def run(out, log):
    with manifest.RunManifest.open(Place.of(out), {}, 1.0, force=False, retry=False) as record:
        todo, _, _ = record.sift(jobs)
        for job in todo:
            record.add(job, {"exit_code": 0})
            if not record._rows:
                log.write_text("".join(f"{before.path} " for before in jobs[: jobs.index(job) + 1]))
        record.tidy()

def killed(out, log, steps):
    left = [steps]
    def step(event, arguments):
        if event == "open" or event.startswith(("os.", "shutil.")):
            if str(out) in str(arguments) or event == "os.rmdir":
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
    child = os.fork()
    if not child:
        try:
            sys.addaudithook(step)
            run(out, log)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

folder = Path(sys.argv[1])
for steps in count(1):
    out, log = folder / f"out-{steps}", folder / f"log-{steps}"
    code = killed(out, log, steps)
    assert code in (0, -signal.SIGKILL), (steps, code)
    stored = {row["path"] for row in rows(out)}
    told = set(log.read_text().split()) if log.exists() else set()
    assert told <= stored, (steps, told - stored)
    assert killed(out, log, 10**9) == 0, steps  # the next run
    found = sorted(row["path"] for row in rows(out))
    assert found == sorted(job.path for job in jobs), (steps, found)
    nothing_is_foreign(out)
    if not code:
        break
print(steps)
"""


def test_a_manifest_survives_being_killed_at_every_step(tmp_path, python):
    path = fleet.environment("")["PYTHONPATH"]
    assert int(python(STEPS, tmp_path, PYTHONPATH=path)) > 30


def raises(fault):
    def call(*arguments):
        raise fault

    return call


def recorded(destination, *names):
    """A manifest with these pictures, which goes on."""
    record = RunManifest.open(Place.of(destination), {}, 5.0, force=False, retry=False)
    for name in names:
        record.add(_Job(name, f"{name}.aic", size=1), {"exit_code": 0})
    return record


def test_a_manifest_that_cannot_be_listed_is_not_an_empty_one(out, monkeypatch):
    with pytest.raises(OSError):
        read_manifest(out)
    with recorded(out, "a") as record:
        record.flush()
    monkeypatch.setattr(Place, "_listed", raises(OSError(errno.EIO, "I/O error")))
    with pytest.raises(OutputError, match="I/O error"):
        recorded(out)


def test_of_runs_that_begin_at_once_one_is_at_work(out):
    begin, came = threading.Barrier(8), []

    def run(folder):
        begin.wait()
        try:
            came.append(recorded(folder))
        except OutputError as error:
            came.append(str(error))

    for attempt in range(20):
        folder = out.with_name(f"out-{attempt}")
        threads = [threading.Thread(target=run, args=(folder,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ((record,), refused) = [[x for x in came if isinstance(x, str) == kind] for kind in (0, 1)]
        record.close()
        assert set(refused) == {f"another run is at work on {folder}"}
        came.clear()


def test_what_is_left_of_a_run_that_was_killed_keeps_no_other_from_beginning(out):
    """Its processes write for a moment still."""
    over = threading.Event()

    def write():
        folder = Place.of(out / "manifest.parquet" / "_writing")
        while not over.is_set():
            with suppress(OutputError):
                Place.of(out / "a.aic").publish(b"...", folder)

    threads = [threading.Thread(target=write) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        for _ in range(100):
            recorded(out).close()
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_rows_that_cannot_be_merged_yet_are_merged_in_the_end(out, monkeypatch):
    monkeypatch.setattr(manifest, "FEW", 2)
    with recorded(out, "a") as record:
        record.flush()
        with monkeypatch.context() as away:
            away.setattr(manifest, "_table", raises(FileNotFoundError()))
            record.add(_Job("b", "b.aic"), {"exit_code": 0})
            record.flush()
        aside = out.with_name("aside")
        out.rename(aside)
        threading.Timer(1, aside.rename, (out,)).start()
        record.tidy()
    assert [path.name for path in (out / "manifest.parquet").rglob("*.parquet")][1:] == []
    assert sorted(row["path"] for row in rows(out)) == ["a", "b"]
