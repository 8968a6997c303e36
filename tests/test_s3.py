"""Object stores: a server of S3 in a process of its own, which may deny, fail, and come back."""

import dataclasses
import http.client
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image

from aiocodec import manifest
from aiocodec.batch import Decode, Encode, Job
from aiocodec.batch import run as run_here
from aiocodec.errors import AicError, BitstreamError, ImageError, OutputError
from aiocodec.manifest import FOLDER, RunManifest
from aiocodec.places import Place, patiently

ray = pytest.importorskip("ray")
boto3 = pytest.importorskip("boto3")
pytest.importorskip("moto.server")

import aiocodec.ray  # noqa: E402
from aiocodec.ray import Fleet, _Job, _Sources, _Stop, _Task  # noqa: E402

PHOTOS = Path(__file__).parent / "photos"
KEY, SECRET = "AKIDEXAMPLE", "Not/for+the/eyes=of/others"
WHO = f"{KEY}:{quote(SECRET, safe='')}@"
PATIENT = Fleet(workers=1, patience=60.0)
NAMES = ["a.png", "b/c.png", "b/d e.png", "ü.png"]
SECONDS = 30  # in which bad input ends; most take one
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")


# --------------------------------------------------------------------------- the server, and a bad line to it


class Server:
    """A server of S3 with nothing in it."""

    def __init__(self):
        with socket.create_server(("localhost", 0)) as free:
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "moto.server", "-H", "localhost", "-p", str(self.port)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.url = f"http://localhost:{self.port}"
        self.client = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )
        for _ in range(300):
            with suppress(OSError):
                self.tell("reset")
                return
            assert self.process.poll() is None
            time.sleep(0.1)
        raise AssertionError("it does not start")

    def tell(self, what, body=None):
        connection = http.client.HTTPConnection("localhost", self.port, timeout=10)
        try:
            connection.request("POST", f"/moto-api/{what}", body)
            assert connection.getresponse().status == 200
        finally:
            connection.close()

    def put(self, bucket, files):
        for name, data in files.items():
            self.client.put_object(Bucket=bucket, Key=name, Body=data)

    def objects(self, bucket):
        """All that is in a bucket but folders."""
        listed = self.client.list_objects_v2(Bucket=bucket).get("Contents", [])
        return {
            entry["Key"]: self.client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
            for entry in listed
            if not entry["Key"].endswith("/")
        }

    def outputs(self, bucket="out"):
        """The same but the manifest."""
        return {name: data for name, data in self.objects(bucket).items() if FOLDER not in name}


class Line:
    """A port that leads to the server while it is `up`. Otherwise connections are reset, or, where it is
    `mute`, taken and not answered."""

    def __init__(self, port):
        self.up, self.mute = True, False
        self.requests = 0
        self.hear = lambda data: None  # is told what is asked for, before the server is
        self._there = port
        self.listening = socket.create_server(("localhost", 0), backlog=64)
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        while True:
            try:
                ours, _ = self.listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(ours,), daemon=True).start()

    def _serve(self, ours):
        with (
            ours,
            socket.create_connection(("localhost", self._there)) as theirs,
            suppress(OSError),
        ):
            while True:
                ready, _, _ = select.select([ours, theirs], [], [], 0.05)
                if not self.up and not self.mute:
                    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    return  # and what was under way is reset
                if self.mute:
                    time.sleep(0.05)
                    continue
                for end in ready:
                    data = end.recv(1 << 16)
                    if not data:
                        return
                    if end is ours:
                        self.requests += data.count(b" HTTP/1.1\r\n")
                        self.hear(data)
                    if self.up:
                        (theirs if end is ours else ours).sendall(data)

    def close(self):
        self.up = self.mute = False
        self.listening.close()


@pytest.fixture(scope="session")
def running():
    server = Server()
    yield server
    server.process.kill()
    server.process.wait()


@pytest.fixture
def server(running, monkeypatch):
    """Two empty buckets, photos and coded, and who may use them in the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    running.tell("reset-auth", "inf")
    running.tell("reset")
    for bucket in ("photos", "coded"):
        running.client.create_bucket(Bucket=bucket)
    return running


@pytest.fixture
def line(server):
    line = Line(server.port)
    yield line
    line.close()


def at(url, port, who=""):
    """A URL with where its server is, and who it is asked by."""
    return f"{url.replace('://', f'://{who}')}?endpoint_override=localhost:{port}&scheme=http"


@pytest.fixture(scope="session")
def pictures():
    """Little pieces of a photograph, by their names."""
    found = {}
    with Image.open(PHOTOS / "lake-noisy.png") as image:
        for i, name in enumerate(NAMES):
            file = BytesIO()
            image.crop((64 * i, 96, 64 * i + 64, 144)).save(file, "PNG")
            found[name] = file.getvalue()
    return found


@pytest.fixture(scope="session")
def expected(pictures, tmp_path_factory):
    """What `aic encode --threads 1` makes of them."""
    folder = tmp_path_factory.mktemp("expected")
    work, jobs = Encode(quality=40, threads=1, device="cpu"), []
    lay(folder, pictures)
    for name in pictures:
        source = folder / name
        jobs.append(Job(str(source), str(source.with_suffix(".aic"))))
    for _, row in run_here(jobs, work):
        assert not isinstance(row, AicError)
    return {
        str(Path(name).with_suffix(".aic")): (folder / name).with_suffix(".aic").read_bytes()
        for name in pictures
    }


def lay(folder, files):
    """Write files in a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def below(folder, files):
    return {f"{folder}/{name}": data for name, data in files.items()}


# --------------------------------------------------------------------------- places


def test_what_is_published_is_what_is_read_and_found(server):
    root = Place.of(at("s3://coded/a b/ü#1", server.port))
    sizes = {"x/1.aic": 0, "x/2.aic": 7, "x.gz": 1 << 16, "big": (12 << 20) + 1, ".hidden": 1}
    for name, size in sizes.items():
        (root / name).publish(bytes(range(256)) * (size // 256) + bytes(size % 256), root)
    found = {entry.name: entry.size for entry in root.walk()}
    assert found == {name: size for name, size in sizes.items() if not name.startswith(".")}
    assert list(found) == ["big", "x/1.aic", "x/2.aic", "x.gz"]
    for name, size in sizes.items():
        data = (root / name).read()
        assert len(data) == size and data == server.objects("coded")[f"a b/ü#1/{name}"]
    assert (root / "big").entry().size == sizes["big"]
    assert abs((root / "big").entry().modified - 1e6 * time.time()) < 60e6
    assert [place.status() for place in (root, root / "x", root / "big", root / "none")] == [
        *("folder", "folder", "file", "missing")
    ]


def test_the_tree_of_a_bucket_is_that_of_a_folder(server, tmp_path):
    names = ["b.png", "a/z.png", "a/deep/er/1.png", "a.png", "a-.txt", ".hidden.png", ".git/x.png"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    server.put("photos", {f"tree/{name}": name.encode() for name in names})
    server.put("photos", {"tree/": b"", "tree/a/": b"", "tree/empty/": b"", "treetop/x.png": b""})
    here = [(entry.name, entry.size) for entry in Place.of(tmp_path).walk()]
    there = Place.of(at("s3://photos/tree", server.port))
    assert [(entry.name, entry.size) for entry in there.walk()] == here
    assert [entry.name for entry in there.parent.walk()] == [
        *(f"tree/{name}" for name, _ in here),
        "treetop/x.png",
    ]


def test_an_object_is_stored_in_one_request(server, line):
    place = Place.of(at("s3://coded/x", line.port))
    place.publish(b"1" * 100_000, place.parent)
    assert line.requests == 1


@posix
def test_a_signal_in_the_middle_stores_a_whole_object_or_none(server, python):
    """And not an empty one: pyarrow closes what an exception has left open, and closing stores."""
    script = """
import os, signal, sys
from aiocodec import signals
from aiocodec.places import Place
signals.install()
place = Place.of(sys.argv[1])
store = place.filesystem
class Interrupted:
    def open_output_stream(self, *arguments, **options):
        file = store.open_output_stream(*arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)
        return file
object.__setattr__(place, "filesystem", Interrupted())
try:
    place._store(b"whole")
except signals.Stopped:
    print("stopped")
"""
    assert python(script, at("s3://coded/x", server.port)) == "stopped\n"
    assert server.objects("coded") in ({}, {"x": b"whole"})


def test_a_missing_object_is_no_fault_of_the_line(server):
    place = Place.of(at("s3://coded/x", server.port))
    for action in (Place.read, Place.open, Place.entry, Place.remove):
        with pytest.raises(FileNotFoundError):
            patiently(lambda action=action: action(place), 20)


def test_the_endpoint_is_taken_from_the_environment_and_goes_along(server, monkeypatch):
    """To machines whose environment has none."""
    import pickle

    server.put("photos", {"x.png": b"1"})
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    place = Place.of("s3://photos")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert [entry.name for entry in pickle.loads(pickle.dumps(place)).walk()] == ["x.png"]


# --------------------------------------------------------------------------- the manifest


class Seen:
    """A picture as it was listed."""

    def __init__(self, path):
        self.path, self.size, self.modified = path, 5, 6


def test_a_manifest_in_a_bucket_is_one_for_everybody(server):
    from pyarrow import dataset

    where = at("s3://coded/2019", server.port)
    for run in range(3):
        with RunManifest.open(Place.of(where), {"q": 1}, 0.0, force=False, retry=False) as record:
            seen = [Seen(f"s3://photos/{i}") for i in range(3)]
            assert record.sift(seen) == (seen[run:], run, 0)
            record.add(seen[run], {"exit_code": 0})
            record.flush()
            if run == 1:
                record.tidy()
    assert {row["path"] for row in manifest.read(where).to_pylist()} == {one.path for one in seen}
    place = Place.of(where)
    folder = dataset.dataset(f"{place.path}/{FOLDER}", filesystem=place.filesystem)
    assert folder.to_table().equals(manifest.read(where))
    with pytest.raises(OutputError, match=r"s3://coded/2019 was made with other settings \(q\)"):
        RunManifest.open(Place.of(where), {"q": 2}, 0.0, force=False, retry=False)


def test_a_prefix_with_objects_and_no_manifest_is_refused(server):
    server.put("coded", {"mine/x.txt": b"mine"})
    for where in ("s3://coded", "s3://coded/mine"):
        with pytest.raises(OutputError, match=f"{where} has files and no manifest"):
            opened(at(where, server.port))
    opened(at("s3://coded/min", server.port)).close()


def opened(where, patience=0.0):
    return RunManifest.open(Place.of(where), {}, patience, force=False, retry=False)


def test_rows_wait_for_a_store_that_comes_back(server, line):
    with opened(at("s3://coded", line.port), patience=20.0) as record:
        for i in range(2):
            record.add(Seen(f"{i}"), {"exit_code": 0})
            with down(line, 1.0):
                record.flush()
        with down(line, 1.0):
            record.tidy()
        record.patience = 0.5
        record.add(Seen("2"), {"exit_code": 0})
        line.up = False
        with pytest.raises(OutputError, match=f"s3://coded/{FOLDER}/part-.* cannot be written: "):
            record.flush()
        line.up = True
        record.flush()
    assert manifest.read(at("s3://coded", line.port)).num_rows == 3


@contextmanager
def down(line, seconds):
    """A block at whose beginning the line goes down, for so long."""
    line.up = False
    timer = threading.Timer(seconds, setattr, (line, "up", True))
    timer.start()
    yield
    timer.join()


# --------------------------------------------------------------------------- one picture


def task(port, patience, work=None):
    work = work or Encode(quality=40, threads=1, device="cpu")
    destination = Place.of(at("s3://coded", port))
    scratch = destination / FOLDER / "_writing"
    return _Task(work, (Place.of(at("s3://photos", port)),), destination, scratch, patience)


JOB = _Job("s3://photos/a.png", "a.aic", name="a.png")


def test_a_picture_waits_for_a_store_that_comes_back(server, line, pictures, expected):
    server.put("photos", pictures)
    with down(line, 1.5):
        row = task(line.port, 30.0).run(JOB)
    assert row["output"] == "s3://coded/a.aic"
    assert server.objects("coded") == {"a.aic": expected["a.aic"]}


def test_a_listing_waits_for_a_store_that_comes_back(server, line, pictures):
    server.put("photos", pictures)
    work = Encode(threads=1)
    sources = _Sources.of(at("s3://photos", line.port), work, None, 30.0)
    with down(line, 1.5):
        assert [job.name for job in sources.jobs()] == NAMES
    line.up = False
    with pytest.raises(ImageError, match="s3://photos cannot be read any more: "):
        list(dataclasses.replace(sources, patience=0.5).jobs())


@pytest.mark.parametrize("mute", [False, True])
def test_a_store_that_does_not_come_back_stops_the_run(server, line, pictures, mute, monkeypatch):
    from aiocodec import places

    monkeypatch.setattr(places, "_SILENCE", 1)
    server.put("photos", pictures)
    here = task(line.port, 1.0)
    line.up, line.mute = mute, mute
    with pytest.raises(_Stop, match="s3://photos cannot be read any more: ") as caught:
        here.run(JOB)
    assert caught.value.args[1] == ImageError.exit_code
    if mute:
        return
    line.up = True
    coded = here.work.code(lambda: pictures["a.png"], "a.aic")[0]
    line.up = False
    with pytest.raises(_Stop, match="the destination cannot be written any more: ") as caught:
        here._publish(here.destination / "a.aic", coded)
    assert caught.value.args[1] == OutputError.exit_code
    assert not server.objects("coded")


def test_what_a_store_does_not_have_or_denies_is_a_fault_of_the_picture_alone(server, pictures):
    """At once, however patient the run is: nothing would become of it."""
    server.put("photos", {"other.png": b""})
    began = time.monotonic()
    with pytest.raises(ImageError, match="cannot be read: ") as caught:
        task(server.port, 60.0).run(JOB)
    assert not isinstance(caught.value, _Stop)
    assert time.monotonic() - began < 20


def test_a_destination_that_is_deleted_stops_the_run_at_once(server, pictures):
    server.put("photos", pictures)
    here = task(server.port, 60.0)
    server.client.delete_bucket(Bucket="coded")
    began = time.monotonic()
    with pytest.raises(_Stop, match="bucket does not exist"):
        here.run(JOB)
    assert time.monotonic() - began < 20


# --------------------------------------------------------------------------- bad input, before anything starts


def bad(server):
    """What is wrong, with where from, where to, and who is to blame: the source, "in", or "out"."""
    port, photos, coded = server.port, "s3://photos/2019", "s3://coded/2019"
    with socket.create_server(("localhost", 0)) as free:
        closed = free.getsockname()[1]
    return [
        ("no such bucket", at("s3://nosuch/x", port), at(coded, port), "in"),
        ("no such bucket", at(photos, port), at("s3://nosuch/x", port), "out"),
        ("nothing below", at("s3://photos/none", port), at(coded, port), "in"),
        ("no pictures", at("s3://photos/text", port), at(coded, port), "in"),
        ("inside", at(photos, port), at("s3://photos/2019/coded", port), "out"),
        ("the same", at(photos, port), at(photos, port), "out"),
        ("inside the bucket", at("s3://photos", port), at("s3a://photos/coded", port), "out"),
        ("nobody listens", at(photos, closed), at(coded, port), "in"),
        ("nobody listens", at(photos, port), at(coded, closed), "out"),
        ("no such host", at(photos, "1").replace("localhost", "nosuch.invalid"), coded, "in"),
        ("no such option", at(photos, port) + "&nosuch=1", at(coded, port), "in"),
        ("no such scheme", "nosuch://photos", at(coded, port), "in"),
        ("no such scheme", at(photos, port), f"nosuch://{WHO}coded?token={SECRET}", "out"),
        ("a password with a slash", at(f"s3://{KEY}:{SECRET}@photos", port), coded, "in"),
        ("TLS to a server without", at(photos, port).replace("&scheme=http", ""), coded, "in"),
    ]


@pytest.mark.parametrize(
    ("call", "unreadable"), [("encode", ImageError), ("decode", BitstreamError)]
)
def test_bad_input_is_a_sentence_before_anything_starts(server, call, unreadable, monkeypatch):
    """And within seconds. Nothing is written, and no cluster is begun."""
    monkeypatch.setattr(aiocodec.ray, "_cluster", None)
    server.put("photos", {"2019/a.png": b"1", "2019/a.aic": b"1", "text/a.txt": b"1"})
    before = server.objects("photos")
    for what, source, destination, blamed in bad(server):
        began = time.monotonic()
        with pytest.raises((unreadable, OutputError)) as caught:
            getattr(aiocodec.ray, call)(source, destination)
        assert time.monotonic() - began < SECONDS, what
        assert type(caught.value) is (unreadable if blamed == "in" else OutputError), what
        said = str(caught.value)
        assert "\n" not in said and len(said) < 300, what
        assert not any(part in said for part in (SECRET, *SECRET.split("/"), KEY)), what
    assert server.objects("photos") == before and not server.objects("coded")


@pytest.mark.parametrize("who", ["somebody", "nobody"])
def test_who_is_not_let_in_is_told_so_at_once(server, who, monkeypatch):
    monkeypatch.setattr(aiocodec.ray, "_cluster", None)
    server.put("photos", {"a.png": b"1"})
    if who == "nobody":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    server.tell("reset-auth", "0")
    try:
        began = time.monotonic()
        with pytest.raises(ImageError, match="s3://photos cannot be read: ") as caught:
            aiocodec.ray.encode(at("s3://photos", server.port), at("s3://coded", server.port))
        assert "\n" not in str(caught.value)
        place = Place.of(at("s3://coded", server.port))
        with pytest.raises(OutputError, match="s3://coded cannot be ") as caught:
            RunManifest.open(place, {}, 60.0, force=False, retry=False)
        assert "\n" not in str(caught.value)
        if who == "somebody":  # to nobody this server says that it has failed itself
            assert "denied" in str(caught.value)
        assert time.monotonic() - began < SECONDS
    finally:
        server.tell("reset-auth", "inf")
    assert not server.objects("coded")


# --------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine, for all that follows; its environment has no credentials."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=10**8
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def test_from_bucket_to_bucket_with_the_same_bytes(server, pictures, expected):
    """By the command; the endpoint is in the environment."""
    server.put("photos", below("2019", pictures) | {"2019/note.txt": b"", "2019/bad.jpg": b"bad"})
    server.client.put_object(Bucket="photos", Key="2019/", Body=b"")
    command = [sys.executable, "-m", "aiocodec", "encode", "s3://photos/2019", "--ray", "local"]
    command += ["--out-dir", "s3://coded/2019", "-q", "40", "-j", "1", "--device", "cpu"]
    environment = {**os.environ, "AWS_ENDPOINT_URL": server.url}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 8, done.stderr  # the bad one
    assert "aic: s3://photos/2019/bad.jpg: " in done.stderr
    assert "s3://photos/2019/a.png -> s3://coded/2019/a.aic: " in done.stderr
    assert server.outputs("coded") == below("2019", expected)

    before = server.objects("coded")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 8 and "4 skipped, 1 failed" in done.stderr
    assert server.objects("coded") == before

    where = at("s3://coded/2019", server.port)
    table = {row["path"]: row for row in manifest.read(where).to_pylist()}
    assert set(table) == {f"s3://photos/2019/{name}" for name in [*NAMES, "bad.jpg"]}
    assert table["s3://photos/2019/ü.png"]["output"] == "s3://coded/2019/ü.aic"
    assert not any(SECRET in str(value) for row in table.values() for value in row.values())


@pytest.mark.slow
def test_a_store_that_fails_in_the_middle_of_a_run_is_waited_for(
    server, line, cluster, pictures, expected, tmp_path
):
    """From a folder to a bucket."""
    lay(tmp_path / "photos", pictures)
    timer = threading.Timer(2.0, setattr, (line, "up", True))

    def hear(data):
        if b"/b/c.aic" in data and not timer.is_alive() and not timer.finished.is_set():
            line.up = False
            timer.start()

    line.hear = hear
    done = aiocodec.ray.encode(
        tmp_path / "photos",
        at("s3://coded", line.port, WHO),
        fleet=PATIENT,
        quality=40,
        device="cpu",
    )
    assert timer.finished.is_set()
    assert (done.done, done.skipped, done.failed) == (len(NAMES), 0, 0)
    assert server.outputs("coded") == expected
    assert manifest.read(at("s3://coded", server.port)).num_rows == len(NAMES)


@pytest.mark.slow
def test_a_store_that_does_not_come_back_ends_the_run_and_the_next_goes_on(
    server, line, cluster, expected, tmp_path
):
    """From a bucket to a folder."""
    server.put("coded", below("2019", expected))

    def hear(data):
        if b"GET /coded/2019/b/c.aic" in data:
            line.up = False

    line.hear = hear
    call = {"fleet": dataclasses.replace(PATIENT, patience=1.0), "device": "cpu"}
    source = at("s3://coded/2019", line.port, WHO)
    with pytest.raises(BitstreamError, match="s3://coded/2019 cannot be read any more: ") as caught:
        aiocodec.ray.decode(source, tmp_path / "decoded", **call)
    assert "\n" not in str(caught.value) and SECRET not in str(caught.value)
    known = manifest.read(tmp_path / "decoded").num_rows
    assert known < len(NAMES)
    line.hear, line.up = (lambda data: None), True
    done = aiocodec.ray.decode(source, tmp_path / "decoded", **call)
    assert (done.done, done.skipped, done.failed) == (len(NAMES) - known, known, 0)
    lay(tmp_path / "coded", expected)
    work = Decode(suffix=".png", threads=1, device="cpu")
    for name in expected:
        target = (tmp_path / name.replace("/", "-")).with_suffix(".png")
        ((_, row),) = run_here([Job(str(tmp_path / "coded" / name), str(target))], work)
        assert not isinstance(row, AicError)
        written = (tmp_path / "decoded" / name).with_suffix(".png")
        assert written.read_bytes() == target.read_bytes()


@pytest.mark.slow
@posix
def test_a_driver_that_is_killed_leaves_nothing_half_and_loses_nothing(
    server, cluster, pictures, expected
):
    """In buckets of a file system that is given."""
    from pyarrow import fs

    server.put("photos", pictures)
    script = f"""
import os, signal, sys
from pyarrow import fs
import aiocodec.ray
store = fs.S3FileSystem(endpoint_override=sys.argv[1], access_key={KEY!r}, secret_key={SECRET!r}, region="x")
fleet = aiocodec.ray.Fleet(workers=1, address=sys.argv[2])
aiocodec.ray.encode("photos", "coded/x", filesystem=store, quality=40, device="cpu", fleet=fleet,
    tell=lambda path, row: os.kill(os.getpid(), signal.SIGKILL))
"""
    killed = subprocess.run([sys.executable, "-c", script, server.url, cluster], timeout=300)
    assert killed.returncode == -signal.SIGKILL
    half = server.outputs("coded")
    assert half and half.items() <= below("x", expected).items()
    store = fs.S3FileSystem(
        endpoint_override=server.url, access_key=KEY, secret_key=SECRET, region="x"
    )
    call = {"filesystem": store, "quality": 40, "device": "cpu", "fleet": PATIENT}
    done = aiocodec.ray.encode("photos", "coded/x", **call)
    assert (done.done, done.skipped, done.failed) == (len(NAMES), 0, 0)
    assert server.outputs("coded") == below("x", expected)
    again = aiocodec.ray.encode("photos", "s3://coded/x", **call)
    assert (again.done, again.skipped, again.failed) == (0, len(NAMES), 0)
    table = aiocodec.ray.read_manifest("coded/x", store).to_pylist()
    assert {row["path"] for row in table} == {f"s3://photos/{name}" for name in NAMES}
