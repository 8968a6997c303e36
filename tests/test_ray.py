"""Fleets: the same files as without one, a manifest that says what is done, and sentences before anything
starts. What dies is in test_ray_faults.py, object stores are in test_s3.py."""

import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aiocodec.batch import Decode, Encode, Job, Tally
from aiocodec.batch import run as run_here
from aiocodec.errors import (
    BitstreamError,
    ClusterError,
    ImageError,
    LimitError,
    OutputError,
    RuntimeMissing,
)

ray = pytest.importorskip("ray")

import aiocodec.ray  # noqa: E402
from aiocodec import manifest  # noqa: E402
from aiocodec.ray import Fleet, _Job, _Sources  # noqa: E402

PHOTOS = Path(__file__).parent / "photos"
QUICK = Fleet(workers=1, patience=2.0)


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine, for all that follows."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=10**8
    )
    yield
    ray.shutdown()


def tree(folder, *names):
    """A folder of small photographs, or of what is none where the name says so."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if "bad" in name:
            path.write_bytes(b"no picture")
        else:
            shutil.copy(PHOTOS / "lake-noisy.png", path)
    return folder


def outputs(folder):
    """The names and bytes of all that was written but the manifest."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and manifest.FOLDER not in path.parts
    }


def rows(folder):
    """The manifest, by the paths of the pictures."""
    table = aiocodec.ray.read_manifest(folder).to_pylist()
    found = {row["path"]: row for row in table}
    assert len(found) == len(table)
    return found


# --------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def coded(cluster, tmp_path_factory):
    """A folder of photographs, where it was encoded to, and what was told. One of them is large: small
    actors refuse it."""
    folder = tmp_path_factory.mktemp("fleet")
    photos = tree(folder / "photos", "a.png", "b/a.png", "b/bad.jpg", ".hidden.png", "note.txt")
    shutil.copy(PHOTOS / "lake-noisy.png", photos / "b" / "large.tif.png")
    from PIL import Image

    with Image.open(PHOTOS / "lake-noisy.png") as image:
        image.resize((960, 640)).save(photos / "large.png")
    fleet = dataclasses.replace(QUICK, large=480 * 320)
    told = {}
    done = aiocodec.ray.encode(
        photos, folder / "coded", fleet=fleet, tell=told.__setitem__, quality=40, device="cpu"
    )
    return photos, folder / "coded", told, done


def test_outputs_are_the_bytes_of_encode(coded, tmp_path):
    photos, folder, _, done = coded
    assert (done.done, done.failed, done.skipped) == (4, 1, 0)
    names = {"a.aic": "a.png", "b/a.aic": "b/a.png", "large.aic": "large.png"}
    names["b/large.tif.aic"] = "b/large.tif.png"
    found = outputs(folder)
    assert set(found) == set(names)
    work = Encode(quality=40, device="cpu", threads=1)
    jobs = [
        Job(str(photos / name), str(tmp_path / f"{n}.aic")) for n, name in enumerate(names.values())
    ]
    for (job, _), target in zip(run_here(jobs, work), names, strict=True):
        assert Path(job.target).read_bytes() == found[target]
    sizes = [(photos / name).stat().st_size for name in names.values()]
    assert (done.input_bytes, done.output_bytes) == (sum(sizes), sum(map(len, found.values())))


def test_the_manifest_says_what_came_of_every_picture(coded):
    photos, folder, told, _ = coded
    found = rows(folder)
    assert found.keys() == told.keys() and len(found) == 5
    for row in found.values():
        assert row["input_bytes"] == Path(row["path"]).stat().st_size
        if row["exit_code"]:
            continue
        data = Path(row["output"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["bytes"] == row["output_bytes"] == len(data)
        assert row["bpp"] == pytest.approx(8 * len(data) / (row["width"] * row["height"]), abs=1e-4)
        assert (row["error"], row["quality"], row["device"], row["attempts"]) == (
            None,
            40,
            "cpu",
            1,
        )
        assert row["seconds"] > 0
        assert told[row["path"]]["sha256"] == row["sha256"]
    bad = found[str(photos / "b" / "bad.jpg")]
    assert (bad["exit_code"], bad["output"], bad["bytes"]) == (3, None, None)
    assert isinstance(told[bad["path"]], ImageError) and str(told[bad["path"]]) == bad["error"]
    assert not (folder / manifest.FOLDER / manifest.SCRATCH).exists()


def test_the_same_call_does_nothing_more(coded):
    photos, folder, _, first = coded
    before = outputs(folder)
    told = []
    again = aiocodec.ray.encode(
        photos, folder, fleet=QUICK, tell=lambda *what: told.append(what), quality=40, device="cpu"
    )
    assert (again.done, again.skipped, again.failed, told) == (0, 4, 1, [])
    assert (
        outputs(folder) == before and len(list((folder / manifest.FOLDER).glob("*.parquet"))) == 1
    )


def test_what_is_missing_is_done_and_what_has_failed_when_asked(coded, tmp_path):
    photos, folder = (shutil.copytree(path, tmp_path / path.name) for path in coded[:2])
    for name in ("a.png", "large.png", "b/large.tif.png"):
        (photos / name).unlink()
    shutil.copy(PHOTOS / "lake.png", photos / "b/bad.jpg")  # another picture now, and one more
    tree(photos, "new.png")
    options = {"quality": 40, "device": "cpu"}
    # The copies have other names than what the manifest has: the folder is a new source.
    done = aiocodec.ray.encode(photos, folder, fleet=QUICK, **options)
    assert (done.done, done.failed, done.skipped) == (3, 0, 0)
    (photos / "b/bad.jpg").write_bytes(b"no picture")
    done = aiocodec.ray.encode(photos, folder, fleet=QUICK, **options)
    assert (done.done, done.failed, done.skipped) == (0, 1, 2)
    codes = {path: row["exit_code"] for path, row in rows(folder).items()}
    assert codes.pop(str(photos / "b/bad.jpg")) == 3
    assert [codes[str(photos / name)] for name in ("b/a.png", "new.png")] == [0, 0]
    told = []
    aiocodec.ray.encode(
        photos,
        folder,
        fleet=dataclasses.replace(QUICK, retry=True),
        tell=lambda path, outcome: told.append(path),
        **options,
    )
    assert told == [str(photos / "b/bad.jpg")]


def test_decoded_pictures_are_those_of_decode(coded, tmp_path):
    _, folder, _, _ = coded
    done = aiocodec.ray.decode(folder, tmp_path / "back", fleet=QUICK, device="cpu", suffix=".webp")
    assert (done.done, done.failed) == (4, 0)
    work = Decode(suffix=".webp", device="cpu", threads=1)
    for name, data in outputs(tmp_path / "back").items():
        source = folder / Path(name).with_suffix(".aic")
        work.run(Job(str(source), str(tmp_path / "x.webp")))
        assert (tmp_path / "x.webp").read_bytes() == data
        (tmp_path / "x.webp").unlink()


def test_a_picture_that_is_too_large_for_all_is_a_row(cluster, tmp_path):
    photos = tree(tmp_path / "photos", "a.png")
    told = {}
    done = aiocodec.ray.encode(
        photos, tmp_path / "out", fleet=QUICK, tell=told.__setitem__, max_pixels=1000
    )
    assert (done.done, done.failed) == (0, 1)
    assert isinstance(told[str(photos / "a.png")], LimitError)
    assert rows(tmp_path / "out")[str(photos / "a.png")]["exit_code"] == 6


def test_weights_that_no_process_can_load_stop_the_run(cluster, tmp_path):
    photos = tree(tmp_path / "photos", "a.png", "b.png")
    with pytest.raises(aiocodec.errors.ModelError, match="there are no weights"):
        aiocodec.ray.encode(photos, tmp_path / "out", fleet=QUICK, model="base")
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------- jobs


def jobs(work, *sources):
    found = _Sources.of([str(source) for source in sources], work, None).jobs()
    return [(job.source, job.target, job.fault and str(job.fault)) for job in found]


def test_outputs_keep_their_places_in_the_tree(tmp_path):
    tree(tmp_path / "in", "a.png", "b/c/d.JPG", "b/e.heic", "b/x.txt", ".git/f.png", "z.aic")
    (tmp_path / "single.dat").write_bytes(b"")
    found = jobs(Encode(), tmp_path / "in", tmp_path / "single.dat")
    assert [(Path(source).name, target, fault) for source, target, fault in found] == [
        ("a.png", "a.aic", None),
        ("d.JPG", "b/c/d.aic", None),
        ("e.heic", "b/e.aic", None),
        ("single.dat", "single.aic", None),
    ]
    assert [target for _, target, _ in jobs(Decode(suffix=".webp"), tmp_path / "in")] == ["z.webp"]


def test_an_output_is_of_one_picture_alone(tmp_path):
    tree(tmp_path / "in", "a.jpg", "a.jpg.d/a.png", "a.png", "a/a.png", "b/a.png", "b/a.webp")
    tree(tmp_path / "more", "b/a.gif", "c.png")
    clashes = [Path(source).name for source, _, fault in jobs(Encode(), tmp_path / "in") if fault]
    assert clashes == ["a.png", "a.webp"]
    found = jobs(Encode(), tmp_path / "in", tmp_path / "more", tmp_path / "in" / "a.jpg")
    faults = {source: fault for source, _, fault in found if fault}
    assert [Path(source).name for source in faults] == ["a.png", "a.webp", "a.gif"]
    assert faults[str(tmp_path / "in" / "b" / "a.webp")].endswith(
        f"another input, {tmp_path}/in/b/a.png"
    )
    assert len(found) == len({source for source, _, _ in found}) == 8, (
        "what is given twice is done once"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_a_name_that_no_manifest_can_have_is_a_fault(tmp_path):
    tree(tmp_path / "in", "é.png")
    os.rename(tmp_path / "in" / "é.png", os.fsencode(tmp_path) + b"/in/\xe9.png")
    tree(tmp_path / "in", "é.png")
    (bad, good) = sorted(jobs(Encode(), tmp_path / "in"))
    assert "UTF-8" in bad[2] and bad[0].endswith("\\udce9.png") and good[2] is None


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root reads all")
def test_a_folder_that_cannot_be_read_is_told(tmp_path):
    tree(tmp_path / "in", "a.png", "b/c.png")
    (tmp_path / "in" / "b").chmod(0)
    assert [fault for _, _, fault in jobs(Encode(), tmp_path / "in")] == [
        None,
        "cannot be read: Permission denied",
    ]


@pytest.mark.parametrize("field", ["workers", "memory", "large", "attempts", "segment", "block"])
def test_nothing_of_a_fleet_is_less_than_one(field):
    with pytest.raises(ValueError, match=f"{field} is 0, not at least 1"):
        Fleet(**{field: 0})


def test_a_fleet_and_jobs_are_values():
    for value in (Fleet(workers=2), _Job("a", "b", size=3)):
        assert pickle.loads(pickle.dumps(value)) == value


# --------------------------------------------------------------------------- before anything starts


def refused(kind, match, source, destination, work=None, **fleet):
    with pytest.raises(kind, match=match):
        next(aiocodec.ray.run(source, destination, work or Encode(), Fleet(**fleet)), None)


def test_bad_input_is_a_sentence(tmp_path):
    photos = tree(tmp_path / "photos", "a.png")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    refused(ImageError, "no such file or folder", tmp_path / "nowhere", out)
    refused(ImageError, "no files to be coded", tmp_path / "empty", out)
    refused(BitstreamError, "no files to be coded", photos, out, Decode())
    refused(OutputError, "lies in the source", photos, photos / "out")
    refused(OutputError, "lies in the source", [tmp_path / "empty", photos], photos)
    refused(ImageError, "nosuch", "nosuch://x/y", out)
    refused(OutputError, "nosuch", photos, "nosuch://x/y")
    refused(ClusterError, "cannot be reached", photos, out, address="127.0.0.1:1")
    refused(ClusterError, "cannot be reached", photos, out, address="nowhere")
    refused(ClusterError, "not supported", photos, out, address="ray://127.0.0.1:1")
    assert not out.exists()
    refused(OutputError, "out/deep", photos, out / "deep")
    tree(tmp_path / "other", "x.png")
    refused(OutputError, "has files and no manifest", photos, tmp_path / "other")
    assert outputs(tmp_path / "other").keys() == {"x.png"}


def test_other_settings_are_not_mixed_unless_forced(coded):
    photos, folder, _, _ = coded
    refused(OutputError, r"other settings \(quality\)", photos, folder, Encode(quality=41))
    refused(
        OutputError,
        r"other settings \(effort, quality\)",
        photos,
        folder,
        Encode(quality=41, effort=1),
    )
    (folder.parent / "aic").mkdir(exist_ok=True)
    shutil.copy(folder / "a.aic", folder.parent / "aic")
    refused(OutputError, r"other settings \(command", folder.parent / "aic", folder, Decode())


# --------------------------------------------------------------------------- the command


def aic(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "aiocodec", *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_command_does_the_same_as_the_call(coded, tmp_path):
    photos, folder, _, _ = coded
    (tmp_path / "list").write_text(f"{photos / 'a.png'}\n\n{photos / 'b'}\n")
    command = ("encode", "--files-from", tmp_path / "list", "--out-dir", tmp_path / "out", "-q", 40)
    done = aic(*command, "--ray", "--device", "cpu", "--json")
    assert done.returncode == 8, done.stderr
    *lines, last = map(json.loads, done.stdout.splitlines())
    assert {Path(line["input"]).name for line in lines} == {"a.png", "bad.jpg", "large.tif.png"}
    summary = last["summary"]
    # Both are named a.aic: one from the list itself, one from the folder beside it.
    assert (summary["done"], summary["failed"]) == (2, 2)
    assert set(done.stderr.splitlines()[-1:]) == {"aic: 2 of 4 files failed"}
    assert (tmp_path / "out" / "a.aic").read_bytes() == (folder / "a.aic").read_bytes()
    again = aic(*command, "--ray", "local", "--device", "cpu")
    assert again.returncode == 8 and "2 skipped, 2 failed" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.png", "--ray"], "--ray needs --out-dir"),
        (["--ray", "a.png"], "--ray needs --out-dir"),
        (["a.png", "--out-dir", "x", "--ray", "--skip-existing"], "--skip-existing is not for it"),
        (["-", "--out-dir", "x", "--ray"], "has no name"),
        (["a.png", "--out-dir", "x", "--retry"], "--retry is for --ray"),
        (["--ray", "--out-dir", "x"], "Missing argument"),
        (["--files-from", "nowhere"], "nowhere cannot be read"),
    ],
)
def test_wrong_usage_is_a_sentence(arguments, words, tmp_path, monkeypatch):
    from click.testing import CliRunner

    from aiocodec.cli.main import cli

    monkeypatch.chdir(tmp_path)
    tree(tmp_path, "a.png")
    for command in ("encode", "decode"):
        result = CliRunner().invoke(cli, [command, *arguments])
        assert result.exit_code == 2 and words in result.output
    assert {path.name for path in tmp_path.iterdir()} == {"a.png"}


def test_an_address_that_nobody_has_ends_in_its_code(tmp_path):
    tree(tmp_path / "in", "a.png")
    done = aic("encode", tmp_path / "in", "--out-dir", tmp_path / "out", "--ray", "127.0.0.1:1")
    assert done.returncode == ClusterError.exit_code == 10
    assert done.stderr == "aic: the cluster at 127.0.0.1:1 cannot be reached: Connection refused\n"


def test_without_ray_a_sentence_says_what_is_missing(tmp_path, python):
    tree(tmp_path / "in", "a.png")
    script = """
import sys
sys.modules["ray"] = sys.modules["pyarrow"] = None
from aiocodec.cli.main import main
main(["encode", sys.argv[1], "--out-dir", sys.argv[2], "--ray"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "in", tmp_path / "out"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == RuntimeMissing.exit_code
    assert "pip install 'aiocodec[ray]'" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_ray_is_loaded_when_it_is_needed(python):
    script = """
import sys
import aiocodec.batch, aiocodec.cli.main
print({"ray", "pyarrow", "pandas"} & set(sys.modules))
"""
    assert python(script) == "set()\n"


def test_a_tally_counts_every_outcome():
    tally = Tally()
    for outcome in ({"input_bytes": 5, "output_bytes": 2}, {"skipped": True}, ImageError("no")):
        tally.count(outcome)
    assert dataclasses.astuple(tally) == (1, 1, 1, 5, 2, 0.0)
