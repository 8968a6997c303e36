"""Places: the same tree by whatever file system, secrets kept, and files whole or not there."""

import errno
import os
import pickle
import stat
import sys
import time
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem as FsspecLocal
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from aiocodec import files, places
from aiocodec.errors import OutputError, RuntimeMissing
from aiocodec.places import (
    Entry,
    Place,
    _filesystem,
    _look_for_metadata,
    passing,
    patiently,
    sentence,
    without_secrets,
)

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs links or modes")
unprivileged = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read and write everything"
)
AT = "endpoint_override=localhost:9&scheme=http"  # nobody is asked before something is read


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working directory, no files in memory, and nothing of Amazon in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    return tmp_path


def s3(path, secret="", more=""):
    return Place.of(f"s3://{secret}{path}?{AT}{more}")


class Slow(MemoryFileSystem):
    """A file system of fsspec that fails while it is told to, with what is no OSError."""

    protocol = "slow"
    failures = 0

    def _check(self):
        if Slow.failures:
            Slow.failures -= 1
            raise RuntimeError("the service\nis busy")

    def ls(self, *arguments, **options):
        self._check()
        return super().ls(*arguments, **options)

    def pipe_file(self, *arguments, **options):
        self._check()
        return super().pipe_file(*arguments, **options)


# --------------------------------------------------------------------------- paths and URLs


def test_a_path_is_of_this_machine_and_absolute(folder):
    for where in ("a/b", Path("a/b"), b"a/b", "./a//b/", folder / "x" / ".." / "a" / "b"):
        place = Place.of(where)
        assert place.local
        assert place.path == str(place) == str(folder / "a" / "b")
    assert Place.of("C:x").local  # on Windows a drive, elsewhere an odd name


@pytest.mark.parametrize("name", ["plain", "with blank", "ümlaut", "a%25b"])
def test_a_file_url_is_a_path(folder, name):
    url = f"file://{folder}/{name}"
    assert Place.of(url) == Place.of(folder / name.replace("%25", "%"))


def test_file_systems_of_this_machine_are_its_paths(folder):
    """Be they of whatever package, and within each other: its locks, links and permissions are known."""
    expected = Place.of(folder / "a")
    base = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
    within = fs.SubTreeFileSystem(str(folder), fs.PyFileSystem(fs.FSSpecHandler(FsspecLocal())))
    assert Place.of("a", fs.LocalFileSystem()) == expected
    assert Place.of("a", FsspecLocal()) == expected
    assert Place.of(f"file://{folder}/a", FsspecLocal()) == expected
    assert Place.of(f"local://{folder}/a") == expected
    assert Place.of("a", base) == Place.of("/a", base) == expected
    assert Place.of("a", within) == expected


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("s3://bucket/photos/", "bucket/photos"),
        ("S3://bucket/photos", "bucket/photos"),
        ("s3a://bucket/photos", "bucket/photos"),
        ("s3://bucket", "bucket"),
        ("s3://bucket/my photos/ümlaut#1", "bucket/my photos/ümlaut#1"),
        ("s3://bucket/a%20b", "bucket/a b"),
    ],
)
def test_a_url_of_a_bucket_names_what_is_in_it(url, path):
    place = Place.of(f"{url}?{AT}")
    assert not place.local
    assert place.path == path
    assert str(place) == f"s3://{path}"
    assert str(place / "x/y.png") == f"s3://{path}/x/y.png"


@pytest.mark.parametrize("path", ["bucket/photos", "/bucket/photos/", "s3://bucket/photos"])
def test_a_path_within_a_file_system_may_have_its_scheme(path):
    store = fs.S3FileSystem(endpoint_override="localhost:9", region="x")
    place = Place.of(path, store)
    assert (place.path, str(place)) == ("bucket/photos", "s3://bucket/photos")
    memory = Place.of(f"memory://{path.removeprefix('s3://')}", MemoryFileSystem())
    assert str(memory) == "memory://bucket/photos"
    assert memory == Place.of("memory://bucket/photos")


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("", ValueError),
        ("nosuch://x/y", ValueError),
        ("s3://bucket/100%/x", ValueError),
        (f"s3://bucket/x?{AT}&nosuch=1", ValueError),
        ("oci://bucket/x", RuntimeMissing),  # a scheme of fsspec whose package is not here
    ],
)
def test_what_cannot_be_understood_is_said_in_a_sentence(url, error):
    with pytest.raises(error) as caught:
        Place.of(url)
    assert "\n" not in str(caught.value)
    assert len(sentence(caught.value)) > 5


@pytest.mark.parametrize("secret", ["KEYID:SECRET@", "KEYID:SEC%2FRET@", "KEYID@"])
def test_nothing_that_is_said_has_a_secret(secret):
    place = s3("bucket/photos", secret, "&region=SECRET")
    below = place / "a.png"
    for said in (str(place), repr(place), str(below), str(below.parent), below.name):
        assert "SEC" not in said and "KEYID" not in said


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEYID:SEC/RET@bucket/x",
        "s3://KEYID:SECRET@bucket/x?nosuch=SECRET",
        "s3://KEYID:SECRET@bucket/100%/x",
        "nosuch://KEYID:SECRET@host/x?SECRET",
        "https://KEYID:SECRET@host/x?token=SECRET",
    ],
)
def test_no_fault_of_a_url_has_a_secret(url):
    try:
        said = str(Place.of(url))
    except (OSError, ValueError, RuntimeMissing) as fault:
        said = f"{fault} {sentence(fault)}"
    assert "SEC" not in said and "KEYID" not in said
    assert "SEC" not in without_secrets(url) and "KEYID" not in without_secrets(url)


@pytest.mark.parametrize("where", ["a@b/c", "s3://bucket/me@home/x:y.png", "x?y"])
def test_what_is_no_secret_is_said(where):
    assert without_secrets(where) == where


@given(st.lists(st.text("ab@:?#% é", min_size=1).map(str.strip).filter(bool), min_size=1))
def test_the_parent_of_what_is_below_is_the_place(parts):
    for place in (Place.of("x"), Place("bucket/x", "s3://")):
        below = place / "/".join(parts)
        assert below.name == parts[-1]
        assert below.inside(place) and not place.inside(below)
        for _ in parts:
            below = below.parent
        assert below == place


def test_a_bucket_is_its_own_parent():
    bucket = s3("bucket")
    assert bucket.parent.path == "bucket"
    assert Place.of(os.path.abspath(os.sep)).parent == Place.of(os.path.abspath(os.sep))


# --------------------------------------------------------------------------- inside


@pytest.mark.parametrize(
    ("inner", "outer", "inside"),
    [
        ("bucket/photo/x", "bucket/photo", True),
        ("bucket/photo", "bucket/photo", True),
        ("bucket/photos", "bucket/photo", False),
        ("bucket/photo", "bucket/photo/x", False),
        ("bucket/photo", "bucket", True),
        ("buckets/photo", "bucket", False),
        ("bucket/Photo/x", "bucket/photo", False),  # keys are told apart by their letters
    ],
)
def test_inside_goes_by_whole_names(inner, outer, inside):
    assert s3(inner).inside(s3(outer)) is inside
    assert Place.of(inner.lower()).inside(Place.of(outer)) is (inside or inner != inner.lower())
    assert not s3(inner).inside(Place.of(outer)) and not Place.of(inner).inside(s3(outer))
    assert Place.of(f"s3a://{inner}?{AT}").inside(s3(outer)) is inside


@posix
def test_inside_sees_through_links_and_dots(folder):
    (folder / "photos" / "2019").mkdir(parents=True)
    (folder / "link").symlink_to("photos/2019")
    photos = Place.of("photos")
    assert Place.of("link/new/out").inside(photos)
    assert Place.of("other/../photos/x").inside(photos)
    assert not Place.of("photos/../other").inside(photos)
    assert photos.inside(Place.of("/"))
    assert Place.of("photos/x").inside(Place.of("link/.."))  # as it is read: a link is not followed


def test_everything_is_inside_of_the_root_of_a_store():
    root = Place("", "s3://", s3("bucket").filesystem)
    assert s3("bucket/x").inside(root) and not root.inside(s3("bucket"))


# --------------------------------------------------------------------------- what is there


TREE = {
    "b.png": b"bb",
    "a/z.png": b"z",
    "a/deep/er/1.png": b"111",
    "a.png": b"",
    "a-.txt": b"text",
    ".hidden.png": b"h",
    ".git/x.png": b"x",
    "c/.aic-0-1": b"temporary",
}
# In the order of names within a folder; what is in a folder has the place of the folder.
EXPECTED = ["a/deep/er/1.png", "a/z.png", "a-.txt", "a.png", "b.png"]


@pytest.fixture(params=["local", "memory", "subtree"])
def tree(request, folder):
    """The same files, by different file systems."""
    if request.param == "local":
        root = Place.of("tree")
        os.makedirs("tree/.scratch")
    elif request.param == "memory":
        root = Place.of("memory://tree")
    else:
        base = fs.SubTreeFileSystem("base", fs.PyFileSystem(fs.FSSpecHandler(MemoryFileSystem())))
        root = Place.of("tree", base)
    for name, data in TREE.items():
        (root / name).publish(data, root / ".scratch")
    return root


def test_a_walk_gives_the_same_everywhere_and_in_order(tree):
    began = int(1e6 * time.time())
    found = list(tree.walk())
    assert [entry.name for entry in found] == EXPECTED
    assert [entry.size for entry in found] == [len(TREE[name]) for name in EXPECTED]
    assert all(abs(entry.modified - began) < 60e6 for entry in found)
    assert not any(entry.fault for entry in found)
    for entry in found:
        assert (tree / entry.name).read() == TREE[entry.name]
        alone = Entry(entry.name.rpartition("/")[2], entry.size, entry.modified)
        assert (tree / entry.name).entry() == alone
        with (tree / entry.name).open() as file:
            assert file.read(1) + file.read() == TREE[entry.name]


def test_a_walk_below_a_folder_is_a_part_of_all(tree):
    found = list(tree.walk())
    for below in ("a", "a/deep"):
        part = [entry for entry in found if entry.name.startswith(f"{below}/")]
        assert list(tree.walk(below)) == part


def test_status_tells_files_from_folders_from_nothing(tree):
    assert tree.status() == (tree / "a").status() == "folder"
    assert (tree / "a/z.png").status() == "file"
    assert (tree / "none").status() == (tree / "none/x").status() == "missing"
    for action in (Place.entry, Place.open, Place.read):
        with pytest.raises(OSError):
            action(tree / "none")


def test_what_is_removed_is_gone_with_all_that_is_in_it(tree):
    (tree / "a/z.png").remove()
    (tree / "a/deep").remove()
    assert [entry.name for entry in tree.walk()] == ["a-.txt", "a.png", "b.png"]
    with pytest.raises(OSError):
        (tree / "none").remove()


def test_a_folder_that_is_missing_is_a_fault(tree):
    (entry,) = (tree / "none").walk()
    assert entry.name == "." and entry.fault and "\n" not in entry.fault


def test_a_store_that_lists_a_folder_in_itself_is_walked_once(monkeypatch):
    """As those do in which folders are empty objects."""
    place = Place.of("memory://tree")
    (place / "a/1.png").publish(b"1", place / ".scratch")
    ls = MemoryFileSystem.ls

    def with_itself(self, path, **options):
        return [*ls(self, path, **options), {"name": path, "type": "directory"}]

    monkeypatch.setattr(MemoryFileSystem, "ls", with_itself)
    assert [entry.name for entry in place.walk()] == ["a/1.png"]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst", ".png"])
def test_bytes_are_read_and_written_as_they_are(suffix):
    """Whatever the name says of compression."""
    place = Place.of(f"memory://a/x{suffix}")
    place.publish(b"as it is", place.parent)
    assert place.read() == b"as it is" == MemoryFileSystem().cat(place.path)
    mock = Place(f"x{suffix}", "mock://", fs._MockFileSystem())
    mock._store(b"as it is")
    assert mock.read() == b"as it is"
    with mock.filesystem.open_input_file(mock.path) as file:
        assert file.read() == b"as it is"


@posix
def test_links_to_folders_and_to_nothing_are_left_out(folder):
    (folder / "tree" / "a").mkdir(parents=True)
    (folder / "tree" / "a" / "1.png").write_bytes(b"1")
    (folder / "tree" / "up").symlink_to("..")
    (folder / "tree" / "folder").symlink_to("a")
    (folder / "tree" / "gone").symlink_to("nowhere")
    (folder / "tree" / "itself").symlink_to("itself")
    (folder / "tree" / "file").symlink_to("a/1.png")
    os.mkfifo(folder / "tree" / "pipe")
    for place in (Place.of("tree"), Place.of("tree", fs.LocalFileSystem())):
        assert [(entry.name, entry.size, entry.fault) for entry in place.walk()] == [
            ("a/1.png", 1, None),
            ("file", 1, None),
        ]


@posix
@unprivileged
def test_a_folder_that_cannot_be_read_is_a_fault_and_the_others_are_read(tree):
    if not tree.local:
        pytest.skip("permissions are of this machine")
    os.chmod(tree.path + "/a", 0)
    try:
        found = list(tree.walk())
    finally:
        os.chmod(tree.path + "/a", 0o700)
    assert [entry.name for entry in found] == ["a", *EXPECTED[2:]]
    assert found[0].fault == os.strerror(errno.EACCES)


def test_a_folder_that_fails_is_a_fault_and_the_others_are_read(tree, monkeypatch):
    listed = Place._listed

    def fail(self, name):
        if name == "a/deep":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return listed(self, name)

    monkeypatch.setattr(Place, "_listed", fail)
    found = list(tree.walk())
    assert [entry.name for entry in found] == ["a/deep", *EXPECTED[1:]]
    assert [entry.fault for entry in found if entry.fault] == [os.strerror(errno.EACCES)]


@posix
@unprivileged
def test_what_cannot_be_told_is_not_said_to_be_missing(folder):
    (folder / "closed" / "in").mkdir(parents=True)
    os.chmod(folder / "closed", 0)
    try:
        with pytest.raises(PermissionError):
            Place.of("closed/in").status()
    finally:
        os.chmod(folder / "closed", 0o700)


# --------------------------------------------------------------------------- publishing


@posix
def test_what_is_replaced_keeps_its_permissions(folder):
    (folder / "scratch").mkdir()
    place = Place.of("a/b/x")
    place.publish(b"1", Place.of("scratch"))
    os.chmod(place.path, 0o640)
    place.publish(b"2", Place.of("scratch"))
    assert place.read() == b"2"
    assert stat.S_IMODE(os.stat(place.path).st_mode) == 0o640
    assert not list((folder / "scratch").iterdir())


def test_a_file_is_whole_or_as_it_was(tree, monkeypatch):
    """Wherever the writing of it ends. Temporary files lie in the scratch folder alone."""
    if tree.local:
        monkeypatch.setattr(os, "replace", fail)
    else:
        monkeypatch.setattr(MemoryFileSystem, "mv", fail)
    for name in ("b.png", "new/1.png"):
        with pytest.raises(OutputError, match="cannot be written: ") as caught:
            (tree / name).publish(b"other", tree / ".scratch")
        assert "\n" not in str(caught.value)
    assert (tree / "b.png").read() == TREE["b.png"]
    assert (tree / "new/1.png").status() == "missing"
    assert [entry.name for entry in tree.walk()] == EXPECTED


def test_where_the_scratch_folder_is_gone_nothing_is_made(folder):
    """As where a file system is not mounted any more; it may be again, and that can be waited for."""
    place = Place.of("out/a/x")
    with pytest.raises(OutputError, match="out/a/x cannot be written: No such file"):
        place.publish(b"1", Place.of("out/scratch"))
    assert not os.listdir()

    def mount():
        if not tried:
            tried.append(1)
        else:
            os.makedirs("out/scratch", exist_ok=True)
        place.publish(b"1", Place.of("out/scratch"))

    tried = []
    patiently(mount, 5)
    assert place.read() == b"1"


def fail(*arguments, **options):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_every_byte_is_in_scratch_before_a_file_gets_its_name(tree, monkeypatch):
    if tree.local:
        pytest.skip("that is `files.write`")
    moved = []
    move = MemoryFileSystem.mv

    def look(self, source, target, **options):
        moved.append((self.cat(source), source.rpartition("/")[2], target))
        move(self, source, target, **options)

    monkeypatch.setattr(MemoryFileSystem, "mv", look)
    (tree / "x/y").publish(b"whole", tree / ".scratch")
    ((data, name, target),) = moved
    assert data == b"whole" and name.startswith(files.TEMPORARY) and target.endswith("/x/y")
    assert (tree / "x/y").read() == b"whole"


def test_where_there_is_a_folder_nothing_can_be_written(folder):
    (folder / "x").mkdir()
    (folder / "scratch").mkdir()
    (folder / "file").write_bytes(b"")
    for name in ("x", "file/x"):
        with pytest.raises(OutputError, match=name):
            Place.of(name).publish(b"", Place.of("scratch"))


# --------------------------------------------------------------------------- faults and patience


def test_faults_of_any_library_are_oserrors(monkeypatch):
    place = Place.of("data/x", Slow())
    monkeypatch.setattr(Slow, "failures", 9)
    with pytest.raises(OutputError, match="slow://data/x cannot be written: the service is busy"):
        place.publish(b"1", place.parent)
    (entry,) = place.parent.walk()
    assert entry.fault == "the service is busy"


AWS = "When doing it: AWS Error {} during HeadObject operation: {} (Request ID: 0123)"


@pytest.mark.parametrize(
    ("fault", "said", "waits"),
    [
        (OSError(errno.EIO, "broken"), "broken", True),
        (FileNotFoundError(errno.ENOENT, "gone"), "gone", False),
        (PermissionError(errno.EACCES, "not\nyours"), "not yours", False),
        (OSError(AWS.format("NO_SUCH_BUCKET", "It is not there.")), "It is not there", False),
        (OSError(AWS.format("ACCESS_DENIED", "No response body.")), "access denied", False),
        (OSError(AWS.format("SLOW_DOWN", "Please.")), "Please", True),
        (OSError(AWS.format("INTERNAL_FAILURE", "")), "internal failure", True),
        (
            OSError(AWS.format("UNKNOWN (HTTP status 500)", "No response body.")),
            "unknown (HTTP status 500)",
            True,
        ),
        (
            OSError(AWS.format("NETWORK_CONNECTION", "curlCode: 7, x; Details: Failed to connect")),
            "Failed to connect",
            True,
        ),
    ],
)
def test_a_fault_is_a_sentence_and_says_whether_waiting_helps(fault, said, waits):
    assert sentence(fault) == said
    assert passing(fault) is waits
    tries = []

    def act():
        tries.append(1)
        if len(tries) < 2:
            raise fault
        return "done"

    if waits:
        assert patiently(act, 5) == "done"
    else:
        with pytest.raises(OSError):
            patiently(act, 5)
    assert len(tries) == 1 + waits
    with pytest.raises(OSError):
        tries.clear()
        patiently(act, 0)


def test_what_cannot_be_written_for_good_is_not_waited_for():
    began = time.monotonic()
    with pytest.raises(OutputError):
        patiently(lambda: publish_fault(FileNotFoundError(errno.ENOENT, "no bucket")), 30)
    assert time.monotonic() - began < 5


def publish_fault(cause):
    raise OutputError("it cannot be written") from cause


# --------------------------------------------------------------------------- on their way


def test_places_go_to_other_processes_and_share_their_file_system():
    for place in (Place.of("x"), Place.of("memory://x"), s3("bucket/x", "KEYID:SECRET@")):
        one, two = (pickle.loads(pickle.dumps(p)) for p in (place, place / "y"))
        assert (one.path, one.scheme, one.local) == (place.path, place.scheme, place.local)
        assert two.parent.path == one.path and two.filesystem is one.filesystem
        assert one.inside(place) and two.inside(place)
    assert one.filesystem == place.filesystem  # with its credentials


def test_a_search_for_credentials_that_nobody_answers_is_short(monkeypatch, silent):
    """Amazon's SDK would ask fourteen times, and before every request again."""
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://localhost:{silent}")
    monkeypatch.setattr(places, "_METADATA_SILENCE", 0.3)
    began = time.monotonic()
    place = s3("bucket/x")
    assert time.monotonic() - began < 8
    assert os.environ["AWS_EC2_METADATA_DISABLED"] == "true"
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    _look_for_metadata.cache_clear()
    _filesystem.cache_clear()
    data = pickle.dumps(place)
    began = time.monotonic()
    pickle.loads(data)
    assert time.monotonic() - began < 8


def test_where_the_service_answers_it_is_asked(monkeypatch, answering):
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://localhost:{answering}")
    _look_for_metadata()
    assert "AWS_EC2_METADATA_DISABLED" not in os.environ


def test_an_endpoint_that_is_silent_is_given_up(silent, monkeypatch):
    monkeypatch.setattr(places, "_SILENCE", 1)
    began = time.monotonic()
    place = Place.of(f"s3://K:S@bucket/x?endpoint_override=localhost:{silent}&scheme=http&region=x")
    with pytest.raises(OSError) as caught:
        place.status()
    assert time.monotonic() - began < 15
    assert "\n" not in sentence(caught.value)


@pytest.fixture
def silent():
    """The port of a server that takes connections and says nothing."""
    import socket

    _look_for_metadata.cache_clear()
    with socket.create_server(("localhost", 0), backlog=64) as server:
        yield server.getsockname()[1]
    _look_for_metadata.cache_clear()


@pytest.fixture
def answering():
    """The port of a server that refuses everything, in words."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(401)

        def log_message(self, *arguments):
            pass

    _look_for_metadata.cache_clear()
    server = HTTPServer(("localhost", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()
    _look_for_metadata.cache_clear()
