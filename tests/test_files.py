"""Files: whole or not at all, nobody else's overwritten, and no more read than allowed."""

import errno
import io
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from aiocodec import files
from aiocodec.container import ChunkType, Header, Latents, pack, pack_latents
from aiocodec.errors import BitstreamError, ImageError, LimitError, OutputError

AIC = pack(
    Header(50, 70, 50, b"8 bytes!"), [(ChunkType.LATENTS, pack_latents(Latents(b"word" * 9, 1, 1)))]
)
BMP = b"BM" + bytes(4096)  # more than enough to be taken for one

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs links, modes and devices")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder="."):
    return {path.name for path in Path(folder).iterdir()}


# --------------------------------------------------------------------------- reading


class Endless(io.RawIOBase):
    """A head, then zeros for ever; counts what is read."""

    def __init__(self, head):
        self.head, self.count = head, 0

    def readable(self):
        return True

    def readinto(self, buffer):
        part = self.head[self.count :][: len(buffer)] or bytes(len(buffer))
        buffer[: len(part)] = part
        self.count += len(part)
        return len(part)


@pytest.fixture
def endless(monkeypatch):
    """Make stdin an endless file."""

    def make(head):
        source = Endless(head)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(source, 1 << 12)))
        return source

    return make


@pytest.mark.parametrize("head", [b"", b"y\n" * 5000, b"\x8aAID", AIC[1:]])
def test_what_is_no_aic_file_is_not_read_on(endless, head):
    source = endless(head)
    with pytest.raises(BitstreamError, match="not an .aic file"):
        files.read_aic("-")
    assert source.count <= 1 << 12  # one buffer


def test_an_aic_file_is_read_to_its_end_and_one_byte_more(endless):
    source = endless(AIC)
    assert files.read_aic("-") == AIC + b"\0"
    assert source.count <= len(AIC) + (1 << 13)


def test_either_is_read_as_what_it_begins_as(endless):
    source = endless(AIC)
    assert files.read_either("-") == AIC + b"\0"
    assert source.count <= len(AIC) + (1 << 13)
    source = endless(b"y\n" * 5000)
    with pytest.raises(ImageError, match="not an image"):
        files.read_either("-")
    assert source.count <= 1 << 13
    Path("x").write_bytes(AIC[:20])
    assert files.read_either("x") == AIC[:20]
    Path("x").write_bytes(BMP)
    assert files.read_either("x") == BMP
    Path("x").write_bytes(b"")
    with pytest.raises(ImageError, match="empty"):
        files.read_either("x")


@pytest.mark.parametrize("claimed", [1 << 16, (1 << 32) - 1])
def test_a_claimed_length_is_not_believed(claimed, monkeypatch):
    """A short file of any claim costs what it has, an endless one no more than the limit."""
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 1 << 15)
    head = AIC[:24] + claimed.to_bytes(4, "little") + AIC[28:]
    Path("short.aic").write_bytes(head)
    assert files.read_aic("short.aic") == head
    Path("long.aic").write_bytes(head + bytes(1 << 16))
    with pytest.raises(LimitError, match="32768 bytes"):
        files.read_aic("long.aic")


def test_images_are_limited_too(endless, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 1 << 15)
    source = endless(BMP)
    with pytest.raises(LimitError, match="32768 bytes"):
        files.read_image("-")
    assert source.count <= (1 << 15) + (1 << 13)
    Path("x.bmp").write_bytes(BMP)
    assert files.read_image("x.bmp") == BMP


@pytest.mark.parametrize(
    ("head", "words"), [(b"", "not an image"), (b"y\n" * 5000, "not an image"), (AIC, "already")]
)
def test_what_is_no_image_is_not_read_on(endless, head, words):
    source = endless(head)
    with pytest.raises(ImageError, match=words):
        files.read_image("-")
    assert source.count <= 1 << 13


def test_an_empty_file_is_named_so():
    Path("x.png").touch()
    with pytest.raises(ImageError, match="empty"):
        files.read_image("x.png")


@posix
def test_the_kind_of_a_file_is_asked_of_the_file():
    Path("picture.aic").write_bytes(BMP)
    Path("coded.png").write_bytes(AIC)
    Path("text").write_text("text")
    Path("sub").mkdir()
    os.mkfifo("fifo")  # which is not opened: nobody writes
    paths = ("picture.aic", "coded.png", "text", "sub", "fifo", "missing", "-", "/dev/stdin")
    assert [files.kind_of(path) for path in paths] == ["BMP", "AIC", *[None] * 6]


# --------------------------------------------------------------------------- identity


@posix
def test_links_of_either_sort_lead_to_the_same_file():
    Path("a").touch()
    Path("b").touch()
    os.link("a", "hard")
    os.symlink("a", "soft")
    Path("sub").mkdir()
    os.symlink("sub", "there")
    same = [files.identity(path) for path in ("a", "./a", "hard", "soft", "there/../a")]
    assert len(set(same)) == 1 and files.identity("b") not in same
    assert files.identity("there/new") == files.identity("sub/new") != files.identity("new")


# --------------------------------------------------------------------------- writing


def test_without_force_the_first_has_the_name():
    files.write("x", b"first")
    with pytest.raises(OutputError, match="exists"):
        files.write("x", b"second")
    assert Path("x").read_bytes() == b"first"
    files.write("x", b"second", force=True)
    assert Path("x").read_bytes() == b"second"
    assert names() == {"x"}


def link_is_unsupported(*args):
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("force", [True, False])
def test_of_many_at_once_one_has_the_name(links, force, monkeypatch):
    """Without `force` one and no other succeeds, with it the last; no reader ever sees a part."""
    if not links:
        monkeypatch.setattr(os, "link", link_is_unsupported)
    count = 8
    for attempt in range(20):
        path, won, lost = f"{attempt}", [], []
        start = threading.Barrier(count)

        def write(i, path=path, won=won, lost=lost, start=start):
            start.wait()
            try:
                files.write(path, bytes([i]) * 10000, force=force)
            except OutputError:
                lost.append(i)
            else:
                won.append(i)

        threads = [threading.Thread(target=write, args=(i,)) for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == (count if force else 1) and len(won) + len(lost) == count
        data = Path(path).read_bytes()
        assert len(data) == 10000 and len(set(data)) == 1 and data[0] in won
    assert names() == {str(attempt) for attempt in range(20)}


RACE = """
import sys
from aiocodec import files
from aiocodec.errors import OutputError
me = sys.argv[1]
for line in sys.stdin:
    try:
        files.write(line.strip(), me.encode() * 1000)
        print("won", flush=True)
    except OutputError as error:
        print(error.exit_code, flush=True)
"""


def test_of_two_processes_one_has_the_name():
    """Each says of 200 names whether it has written them: exactly one has."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, me],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for me in "ab"
    ]
    for attempt in range(200):
        for racer in racers:
            racer.stdin.write(f"{attempt}\n")
            racer.stdin.flush()
        said = [racer.stdout.readline().strip() for racer in racers]
        assert sorted(said) == ["7", "won"], attempt
        assert Path(str(attempt)).read_text() == "ab"[said.index("won")] * 1000
    for racer in racers:
        racer.communicate()
    assert names() == {str(attempt) for attempt in range(200)}


@posix
def test_without_links_a_failure_leaves_no_empty_file(monkeypatch):
    def replace(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", link_is_unsupported)
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OutputError, match="Input/output error"):
        files.write("x", b"data")
    assert names() == set()


@posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_new_files_have_the_permissions_of_new_files(umask):
    before = os.umask(umask)
    try:
        files.write("x", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat("x").st_mode) == 0o666 & ~umask


@posix
@pytest.mark.parametrize("mode", [0o600, 0o444, 0o755, 0o1640])
def test_replaced_files_keep_their_permissions(mode, monkeypatch):
    """And are at no moment readable for more than before."""
    Path("x").touch()
    os.chmod("x", mode)
    fsync, seen = os.fsync, []

    def watch(handle):
        seen.append(stat.S_IMODE(os.fstat(handle).st_mode))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watch)
    files.write("x", b"data", force=True)
    assert stat.S_IMODE(os.stat("x").st_mode) == mode
    assert seen and not seen[0] & 0o077 & ~mode


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root gives files away"
)
def test_replaced_files_keep_their_owner():
    Path("x").touch()
    os.chown("x", 12345, 54321)
    os.chmod("x", 0o6751)
    files.write("x", b"data", force=True)
    status = os.stat("x")
    assert (status.st_uid, status.st_gid) == (12345, 54321)
    assert stat.S_IMODE(status.st_mode) == 0o6751  # as cp of root leaves it


@posix
def test_who_cannot_give_a_file_away_gives_no_rights_away(monkeypatch):
    def refused(*args, **more):
        raise OSError(errno.EPERM, "Operation not permitted")

    Path("x").touch()
    os.chmod("x", 0o6755)
    monkeypatch.setattr(os, "chown", refused)
    files.write("x", b"data", force=True)
    assert stat.S_IMODE(os.stat("x").st_mode) == 0o755


@posix
def test_symbolic_links_are_followed():
    Path("sub").mkdir()
    os.symlink("sub/target", "link")
    with pytest.raises(OutputError, match="exists"):  # it leads nowhere yet
        files.write("link", b"data")
    files.write("link", b"data", force=True)
    assert os.path.islink("link") and Path("sub/target").read_bytes() == b"data"


DESCRIPTORS = """
import os, sys
from aiocodec import files
print("head", flush=False)
files.write("/dev/stdout", b"one ")
files.write("/dev/fd/1", b"two ")
os.symlink("/dev/fd/1", "link")
files.write("link", b"three ", force=True)
print("tail")
"""


@pytest.mark.skipif(not Path("/dev/fd/1").exists(), reason="needs /dev/fd")
def test_descriptors_are_written_where_they_stand(python):
    """Also where stdout is a file, which is neither truncated nor replaced."""
    with open("out", "wb") as out:
        out.write(b"before ")
        out.flush()
        subprocess.run([sys.executable, "-c", DESCRIPTORS], stdout=out, check=True)
    assert Path("out").read_bytes() == b"before head\none two three tail\n"
    assert os.path.islink("link") and names() == {"out", "link"}


@pytest.mark.skipif(not Path("/dev/fd/1").exists(), reason="needs /dev/fd")
def test_pipes_are_written_in_place():
    reading, writing = os.pipe()
    files.write(f"/dev/fd/{writing}", b"data")
    os.close(writing)
    assert os.read(reading, 9) == b"data"
    os.close(reading)
    with pytest.raises(OutputError, match="Bad file descriptor"):
        files.write(f"/dev/fd/{writing}", b"data")

    os.mkfifo("fifo")
    read = []
    reader = threading.Thread(target=lambda: read.append(Path("fifo").read_bytes()))
    reader.start()
    files.write("fifo", b"data")
    reader.join()
    assert read == [b"data"] and stat.S_ISFIFO(os.stat("fifo").st_mode)


def test_sweeping_takes_what_one_process_left():
    for name in (".aic-mine-1", ".aic-mine-2", ".aic-other-1", "x", "mine"):
        Path(name).touch()
    files.sweep("x", ".aic-mine-")
    assert names() == {".aic-other-1", "x", "mine"}
    files.sweep("missing/x", ".aic-")
