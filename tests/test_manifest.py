"""The manifest of a run: a row for every picture that was stored, whatever happened in between."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import dataset, parquet

from aiocodec import manifest
from aiocodec.errors import OutputError
from aiocodec.manifest import FOLDER, LOCK, SCRATCH, SETTINGS, RunManifest, schema, settings_key
from aiocodec.places import Place

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs locks of files")
MINE = {"command": "encode", "quality": 40, "model": None}


@dataclass(frozen=True)
class Picture:
    path: str
    size: int = 100
    modified: int = 1_700_000_000_000_000


DONE = {"exit_code": 0, "output": "out/x.aic", "width": 3, "height": 2, "warnings": ["pale", "ä"]}


def failed(code):
    return {"exit_code": code, "error": "it cannot be done", "attempts": 1}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working directory, and no files in memory."""
    monkeypatch.chdir(tmp_path)
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    return tmp_path


def opened(where="out", settings=MINE, force=False, retry=False, patience=0.0):
    return RunManifest.open(Place.of(where), settings, patience, force=force, retry=retry)


def rows(where="out"):
    return {row["path"]: row for row in manifest.read(where).to_pylist()}


def parts(where="out"):
    return sorted(
        entry.name for entry in (Place.of(where) / FOLDER).walk() if entry.name.endswith(".parquet")
    )


def taken(path, code, where="out", **options):
    """Store one row and go."""
    with opened(where, **options) as record:
        record.add(Picture(path), DONE if code == 0 else failed(code))
        record.flush()


# --------------------------------------------------------------------------- one row for each, the last


class Crash(BaseException):
    """The process is gone."""


class Doom:
    """Crash at the k-th time that a file is published or removed, before or after it is."""

    def __init__(self, k, after):
        self.left, self.after = k, after

    def around(self, action):
        def act(place, *arguments):
            self.left -= 1
            if self.left == 0 and not self.after:
                raise Crash
            action(place, *arguments)
            if self.left == 0:
                raise Crash

        return act

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(Place, "publish", self.around(Place.publish))
        self.patch.setattr(Place, "remove", self.around(Place.remove))
        return self

    def __exit__(self, *error):
        self.patch.undo()


STEP = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 4), st.sampled_from([0, 0, 3, 7])),
    st.tuples(st.sampled_from(["flush", "flush", "tidy", "again", "lost"])),
    st.tuples(st.just("doom"), st.integers(1, 6), st.booleans()),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(STEP, max_size=30))
def test_whatever_happens_every_path_has_the_row_that_was_stored_last(steps):
    """Rows are marked by their number of attempts, which is one for all."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    stored, waiting, number, where = {}, {}, 0, "memory://out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "FEW", 3)
        patch.setattr(manifest, "MERGED_ROWS", 4)
        record = opened(where)
        for step, *values in steps:
            if step == "add":
                number += 1
                row = DONE if values[1] == 0 else failed(values[1])
                record.add(Picture(f"p{values[0]}"), {**row, "attempts": number})
                waiting[f"p{values[0]}"] = number
                continue
            maybe = {**stored, **waiting}
            if step in ("flush", "tidy"):
                getattr(record, step)()
                stored = maybe
            elif step == "doom":
                with Doom(*values), suppress(Crash):
                    record.tidy()
                seen = {path: row["attempts"] for path, row in rows(where).items()}
                assert seen in (stored, maybe)
                stored = seen
            if step != "flush" and step != "tidy":
                record.close()
                record = opened(where)
            waiting = {}
            assert {path: row["attempts"] for path, row in rows(where).items()} == stored
        record.tidy()
        stored |= waiting
        assert {path: row["attempts"] for path, row in rows(where).items()} == stored
        if stored:  # and no row is left beside
            table = parquet.read_table(FOLDER, filesystem=inside(where))
            assert sorted(table["path"].to_pylist()) == sorted(stored)


def inside(where):
    from pyarrow import fs

    place = Place.of(where)
    return fs.SubTreeFileSystem(place.path, place.filesystem)


@pytest.mark.parametrize("after", [False, True])
def test_a_run_that_dies_at_any_step_loses_and_doubles_nothing(after, monkeypatch):
    """At every publishing and removing of opening, storing and merging, on this machine's own files."""
    monkeypatch.setattr(manifest, "FEW", 3)

    def run():
        with opened() as record:
            for name in "abcd":
                record.add(Picture(name), {**DONE, "attempts": 2})
                record.flush()
                told.add(name)
            record.tidy()

    for k in range(1, 40):
        where, told = Path(f"{k}"), set()
        where.mkdir()
        monkeypatch.chdir(where)
        with opened() as record:  # something is there already
            record.add(Picture("a"), failed(5))
            record.add(Picture("z"), DONE)
            record.flush()
        with Doom(k, after) as doom:
            with suppress(Crash):
                run()
            over = doom.left > 0
        found = rows()
        assert told | {"a", "z"} <= set(found) <= set("abcdz")
        assert all(found[name]["attempts"] == 2 for name in told)
        run()
        assert (
            set(rows())
            == set("abcdz")
            == set(parquet.read_table(f"out/{FOLDER}")["path"].to_pylist())
        )
        assert len(parts()) == 1 and len(parquet.read_table(f"out/{FOLDER}")) == len("abcdz")
        assert not Path(f"out/{FOLDER}/{SCRATCH}").is_dir() or not list(
            Path(f"out/{FOLDER}/{SCRATCH}").iterdir()
        )
        monkeypatch.chdir("..")
        if over:
            assert k > 8
            return
    raise AssertionError("it never got to its end")


def test_rows_are_stored_when_they_are_many_or_old(monkeypatch):
    monkeypatch.setattr(manifest, "FLUSH_ROWS", 3)
    with opened() as record:
        record.add(Picture("a"), DONE)
        record.add(Picture("b"), DONE)
        assert not parts()
        record.add(Picture("c"), DONE)
        assert len(parts()) == 1
        monkeypatch.setattr(manifest, "FLUSH_SECONDS", 0.0)
        record.add(Picture("d"), DONE)
        assert len(parts()) == 2
    assert set(rows()) == set("abcd")


def test_tidying_what_is_tidy_changes_nothing(monkeypatch):
    monkeypatch.setattr(manifest, "MERGED_ROWS", 3)
    with opened() as record:
        for name in "abcd":
            record.add(Picture(name), DONE)
            record.flush()
        record.tidy()
        before = parts()
        record.tidy()
        assert parts() == before and len(before) == 2
    with opened() as record:
        record.tidy()
        assert parts() == before


def test_rows_that_cannot_be_stored_are_kept(monkeypatch):
    with opened() as record:
        record.add(Picture("a"), DONE)
        with monkeypatch.context() as patch:
            patch.setattr(Place, "publish", refuse)
            with pytest.raises(OutputError, match="the disk is full"):
                record.flush()
        record.flush()
    assert set(rows()) == {"a"}


def refuse(*arguments):
    raise OutputError("the disk is full")


@pytest.mark.parametrize("name", ["_listed", "read", "remove"])
def test_what_fails_while_files_are_merged_is_a_sentence_or_waited_for(name, monkeypatch):
    real, left = getattr(Place, name), 1

    def fail(self, *arguments):
        nonlocal left
        left -= 1
        if left >= 0:
            raise OSError(5, "Input/output error")
        return real(self, *arguments)

    with opened() as record:
        for path in "ab":
            record.add(Picture(path), DONE)
            record.flush()
        monkeypatch.setattr(Place, name, fail)
        with pytest.raises(OutputError, match="cannot be tidied: .*Input/output error"):
            record.tidy()
        left, record.patience = 1, 5.0
        record.tidy()
    assert set(rows()) == {"a", "b"} and len(parts()) == 1


# --------------------------------------------------------------------------- what is left to do


CODES = st.sampled_from([None, 0, 1, 3, 4, 5, 6, 7, 8])


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(CODES, st.sampled_from(["same", "size", "modified", "settings"]))),
    st.booleans(),
)
def test_what_is_left_out_was_done_or_failed_as_it_would_now(pictures, retry):
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    listed = [Picture(f"{i}") for i in range(len(pictures))]
    for own in (True, False):
        with opened("memory://out", MINE if own else {**MINE, "quality": 7}, force=True) as record:
            for picture, (code, differs) in zip(listed, pictures, strict=True):
                if code is not None and (differs != "settings") is own:
                    before = Picture(
                        picture.path,
                        picture.size + (differs == "size"),
                        picture.modified + (differs == "modified"),
                    )
                    record.add(before, DONE if code == 0 else failed(code))
            record.flush()
    again = {5, 7} if not retry else set(range(1, 256))
    known = [
        code is not None and differs == "same" and code not in again for code, differs in pictures
    ]
    with opened("memory://out", force=True, retry=retry) as record:
        todo, done, bad = record.sift(listed)
    assert todo == [picture for picture, out in zip(listed, known, strict=True) if not out]
    assert done == sum(out and code == 0 for out, (code, _) in zip(known, pictures, strict=True))
    assert done + bad == sum(known)


def test_a_size_or_time_that_nobody_says_is_known_again():
    picture = Picture("a", -1, 0)
    with opened() as record:
        record.add(picture, DONE)
        record.flush()
    with opened() as record:
        assert record.sift([picture]) == ([], 1, 0)
        assert record.sift([]) == ([], 0, 0)
    assert rows()["a"]["input_bytes"] is None


def test_the_last_row_counts_not_the_best():
    taken("a", 0)
    taken("a", 3)
    with opened() as record:
        assert record.sift([Picture("a")]) == ([], 0, 1)
    taken("a", 5)
    with opened() as record:
        assert record.sift([Picture("a")]) == ([Picture("a")], 0, 0)


def test_a_name_that_is_not_utf8_is_no_traceback():
    with opened() as record:
        assert record.sift([Picture("\udcff.png")])[0]
    with pytest.raises(OutputError, match="UTF-8"):
        opened("\udcff")


# --------------------------------------------------------------------------- whose it is


def test_other_settings_are_refused_by_name_and_taken_with_force():
    taken("a", 0)
    other = {**MINE, "quality": 7, "strip": True}
    with pytest.raises(OutputError, match=r"other settings \(quality, strip\); .*--force"):
        opened(settings=other)
    with opened(settings=other, force=True) as record:
        assert record.sift([Picture("a")])[0]
    with pytest.raises(OutputError, match="quality, strip"):
        opened()
    with opened(settings=other):
        pass


def test_settings_are_compared_as_they_are_stored():
    with opened(settings={**MINE, "formats": ("PNG",)}):
        pass
    with opened(settings={**MINE, "formats": ("PNG",)}):
        pass
    assert settings_key({"a": 1, "b": (2,)}) == settings_key({"b": [2], "a": 1})


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"null", b"[" * 100_000])
def test_settings_that_are_damaged_are_said_to_be(text):
    taken("a", 0)
    Path("out", FOLDER, SETTINGS).write_bytes(text)
    with pytest.raises(OutputError, match=f"{SETTINGS} is damaged; .*--force"):
        opened()
    with opened(force=True) as record:
        assert record.sift([Picture("a")]) == ([], 1, 0)


@pytest.mark.parametrize("where", ["out", "memory://out"])
def test_a_folder_with_files_and_no_manifest_is_refused(where, folder):
    for name in ("x.png", "deep/er/x", f"{FOLDER}/part-0.parquet"):
        place = Place.of(where) / name
        if place.local:
            (folder / where / ".scratch").mkdir(parents=True, exist_ok=True)
        place.publish(b"somebody's", Place.of(where) / ".scratch")
        with pytest.raises(OutputError, match="files and no manifest; .*--force"):
            opened(where)
        assert [entry.name for entry in Place.of(where).walk()] == [name]  # nothing was written
        place.remove()
    with opened(where):
        pass


def test_what_is_empty_or_missing_or_was_begun_is_taken(folder):
    (folder / "empty" / "folder").mkdir(parents=True)
    (folder / "empty" / ".DS_Store").write_bytes(b"")
    begun = folder / "begun" / FOLDER
    (begun / SCRATCH).mkdir(parents=True)
    (begun / LOCK).write_bytes(b"")
    (begun / SCRATCH / "half").write_bytes(b"{")
    for where in ("empty", "missing", "begun", "memory://missing"):
        with opened(where) as record:
            assert record.sift([Picture("a")])[0]
    assert not list((begun / SCRATCH).iterdir())


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("no/such/folder", "No such file"),
        ("file", "Not a directory"),
        ("file/x", "Not a directory"),
    ],
)
def test_where_nothing_can_be_written_nothing_begins(where, why):
    Path("file").write_bytes(b"mine")
    with pytest.raises(OutputError, match=why) as caught:
        opened(where)
    assert "\n" not in str(caught.value)
    assert os.listdir() == ["file"] and Path("file").read_bytes() == b"mine"


@posix
def test_one_run_at_a_time_until_it_has_gone():
    with opened() as record:
        with pytest.raises(OutputError, match="another run is at work on .*out"):
            opened()
        with pytest.raises(OutputError, match="another run"):
            opened(force=True)
        record.add(Picture("a"), DONE)
        record.flush()
    with opened() as record:
        assert record.sift([Picture("a")]) == ([], 1, 0)


@posix
def test_a_run_that_was_killed_holds_nothing():
    script = """
import sys, time
from aiocodec.manifest import RunManifest
from aiocodec.places import Place
record = RunManifest.open(Place.of("out"), {}, 0.0, force=False, retry=False)
print("mine", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"mine\n"
        with pytest.raises(OutputError, match="another run"):
            opened(settings={})
        process.kill()
    with opened(settings={}):
        pass


@posix
def test_of_two_that_begin_at_once_the_second_sees_the_first(monkeypatch):
    """Also where it looked before the first had come, and got the lock when that had gone."""
    take = RunManifest._take_lock

    def late(self):
        monkeypatch.setattr(RunManifest, "_take_lock", take)
        taken("a", 0, settings={**MINE, "quality": 7})
        return take(self)

    monkeypatch.setattr(RunManifest, "_take_lock", late)
    with pytest.raises(OutputError, match=r"other settings \(quality\)"):
        opened()
    assert json.loads(Path("out", FOLDER, SETTINGS).read_text())["quality"] == 7


@posix
def test_what_fails_at_the_start_lets_others_in(monkeypatch):
    taken("a", 0)
    (path,) = Path("out", FOLDER).glob("*.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    caught = []
    for _ in range(2):
        with pytest.raises(OutputError, match="damaged") as raised:
            opened()
        caught.append(raised)  # and with it what the frames of its traceback hold
    path.write_bytes(whole)
    with monkeypatch.context() as patch:
        patch.setattr(Place, "publish", refuse)
        for _ in range(2):
            with pytest.raises(OutputError, match="the disk is full") as raised:
                opened()
            caught.append(raised)
    with opened():
        pass


# --------------------------------------------------------------------------- damage


def test_every_damage_is_a_sentence():
    """Files that were cut, or changed in one byte; what is read is never something else."""
    with opened() as record:
        for name in "ab":
            record.add(Picture(name), DONE)
        record.flush()
    (path,) = Path("out", FOLDER).glob("*.parquet")
    whole, table, noticed = path.read_bytes(), manifest.read("out"), 0
    damaged = [whole[:n] for n in (0, 3, 4, 8, len(whole) // 2, len(whole) - 1)]
    for at in range(0, len(whole), 37):
        damaged.append(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
    for data in damaged:
        path.write_bytes(data)
        try:
            assert manifest.read("out").equals(table)
        except ValueError as fault:
            noticed += 1
            assert "is damaged: " in str(fault) and "\n" not in str(fault)
            with pytest.raises(OutputError, match=r"part-.*\.parquet is damaged: "):
                add_and_tidy()  # to open it takes a part of what is in it
            for other in path.parent.glob("*.parquet"):
                if other != path:
                    other.unlink()
    assert noticed > 0.7 * len(damaged)


def add_and_tidy():
    with opened(patience=60.0) as record:
        record.add(Picture("c"), DONE)
        record.tidy()


@pytest.mark.parametrize(
    "table",
    [
        {"other": [1]},
        {"path": [1], "finished": ["x"]},
        {name: ["x"] for name in schema().names},
    ],
)
def test_tables_of_somebody_else_are_said_to_be_damaged(table):
    taken("a", 0)
    parquet.write_table(pa.table(table), f"out/{FOLDER}/other.parquet")
    with pytest.raises(ValueError, match="other.parquet is damaged"):
        manifest.read("out")
    with pytest.raises(OutputError, match="other.parquet is damaged"):
        opened()


@pytest.mark.parametrize("where", ["none", "memory://none"])
def test_a_destination_without_a_manifest_has_none(where):
    with pytest.raises(OSError, match=f"{where}/{FOLDER}"):
        manifest.read(where)


def test_a_manifest_that_cannot_be_listed_is_not_an_empty_one(monkeypatch):
    taken("a", 0)
    monkeypatch.setattr(Place, "_listed", refuse_to_list)
    with pytest.raises(OSError, match="Input/output error"):
        manifest.read("out")
    with pytest.raises(OutputError, match="Input/output error"):
        opened()


def refuse_to_list(*arguments):
    raise OSError(5, "Input/output error")


# --------------------------------------------------------------------------- for others


def test_every_reader_of_parquet_reads_the_folder():
    """Also while a run is at work, with what lies beside the tables."""
    with opened() as record:
        record.add(Picture("ä/ö.png", 5, 1_600_000_000_123_456), {**DONE, "psnr": 31.5})
        record.flush()
        record.add(Picture("b.png"), failed(3))
        record.flush()
        scratch = Path("out", FOLDER, SCRATCH)
        scratch.mkdir(exist_ok=True)
        (scratch / "half.parquet").write_bytes(b"PAR1")
        expected = manifest.read("out")
        for table in (
            parquet.read_table(f"out/{FOLDER}"),
            dataset.dataset(f"out/{FOLDER}").to_table(),
        ):
            assert table.schema.equals(schema())
            assert table.sort_by("path").equals(expected.sort_by("path"))
        frame = pandas.read_parquet(f"out/{FOLDER}").set_index("path")
    assert list(frame.loc["ä/ö.png", "warnings"]) == DONE["warnings"]
    assert frame.loc["ä/ö.png", "psnr"] == 31.5
    assert frame.loc["ä/ö.png", "modified"] == pandas.Timestamp(
        1_600_000_000_123_456, unit="us", tz="UTC"
    )
    assert frame.loc["b.png", "error"] and pandas.isna(frame.loc["ä/ö.png", "error"])
    assert abs(frame["finished"].max().timestamp() - time.time()) < 60
    assert set(frame["settings"]) == {settings_key(MINE)}
    assert json.loads(Path("out", FOLDER, SETTINGS).read_text()) == MINE


def test_a_large_manifest_is_opened_within_seconds():
    count = 50_000
    with opened() as record:
        numbers = pa.array(range(count))
        columns = {field.name: pa.nulls(count, field.type) for field in schema()}
        columns["path"] = pa.array([f"s3://bucket/photos/{i:08}.jpg" for i in range(count)])
        columns["input_bytes"] = numbers
        columns["modified"] = numbers.cast(pa.timestamp("us", "UTC"))
        columns["finished"] = columns["modified"]
        columns["exit_code"] = pa.array([0] * count, pa.int16())
        columns["settings"] = pa.array([settings_key(MINE)] * count)
        record._store(pa.table(columns, schema()))
    began = time.monotonic()
    with opened() as record:
        assert time.monotonic() - began < 10
        jobs = [Picture(f"s3://bucket/photos/{i:08}.jpg", i, i) for i in range(0, count + 10, 5)]
        todo, done, _ = record.sift(jobs)
    assert todo == jobs[-2:] and done == len(jobs) - 2
