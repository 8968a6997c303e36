"""A fleet to be shot at: a cluster of several nodes on this machine, `aic encode --ray` with a codec that takes
no time, pictures that do harm, and a look at what is left that shares no code with what it looks at.

What a picture does is its first word, see FATES; "well" is coded to bytes that depend on it alone. Every
beginning is a line in a log outside of the destination.
"""

import functools
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from aiocodec import batch
from aiocodec.errors import ImageError, LimitError

FATES = {
    "well": lambda work: None,
    "unreadable": lambda work: _raise(ImageError("not a picture")),
    "killed": lambda work: os.kill(os.getpid(), signal.SIGKILL),
    "faulty": lambda work: os.kill(os.getpid(), signal.SIGSEGV),
    "murderous": lambda work: os.kill(os.getppid(), signal.SIGKILL) or time.sleep(60),
    "large": lambda work: work.max_pixels <= LARGE and _raise(LimitError("too many pixels")),
    "huge": lambda work: _raise(LimitError("too many pixels")),
}
LARGE = 1 << 24  # pixels that actors take which are not large
MARK = "AIC_TEST_FLEET"  # in the environment of all processes of a fleet


def _raise(error):
    raise error


def coded(data):
    """What a picture is coded to: 1 to 64 KiB."""
    body = hashlib.shake_128(data).digest(1024 * (1 + data[-1] % 64))
    return body + hashlib.sha256(body).digest()


@dataclass(frozen=True)
class Stand(batch.Encode):
    """A codec whose pictures say what is to become of them."""

    log: str = os.devnull  # gets the name of every output that is begun
    pause: float = 0.0  # seconds that a picture takes

    def code(self, read, target, progress=None):
        data = read()
        with open(self.log, "ab", buffering=0) as log:
            log.write(f"{target}\n".encode())
        time.sleep(self.pause)
        FATES[data.split()[0].decode()](self)
        output = coded(data)
        sizes = {"input_bytes": len(data), "bytes": len(output), "output_bytes": len(output)}
        picture = {"width": 8, "height": 8, "bpp": 1.0, "quality": 50, "warnings": []}
        return output, {**picture, **sizes, "model": "stand", "device": "cpu"}


def drive():
    """`aic encode --ray` with a Stand: the arguments are JSON, see `Driver`, and those of the command."""
    from aiocodec import __main__, manifest
    from aiocodec import ray as fleets
    from aiocodec.cli import coding

    options = json.loads(sys.argv[1])
    for name, value in options["manifest"].items():
        setattr(manifest, name, value)
    fleets.Fleet = functools.partial(fleets.Fleet, **options["fleet"])
    coding.Encode = functools.partial(Stand, **options["stand"])
    sys.argv[:2] = ["aic"]
    __main__.main()


def environment(mark):
    """The environment of a fleet's processes."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    told = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0"}
    return {**os.environ, **told, "PYTHONPATH": os.pathsep.join(filter(None, paths)), MARK: mark}


# --------------------------------------------------------------------------- pictures, and what is left


def pictures(folder, count, seed=1, **fates):
    """Make so many pictures that are well, in a tree, and of every fate so many more."""
    rng = random.Random(seed)
    words = ["well"] * count + [fate for fate, number in fates.items() for _ in range(number)]
    rng.shuffle(words)
    for index, word in enumerate(words):
        path = folder / f"{index % 7}/{index:04}-{word}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{word} ".encode() + rng.randbytes(rng.randrange(20, 2000)))
    return folder


def fate(path):
    return Path(path).stem.rpartition("-")[2]


def rows(destination):
    """The rows of a manifest as they lie there, in no order."""
    from pyarrow import parquet

    found = []
    for path in sorted((destination / "manifest.parquet").glob("*.parquet")):
        with suppress(FileNotFoundError):  # it is being merged
            found += parquet.ParquetFile(path).read().to_pylist()
    return found


def done(destination):
    """The names of outputs that the manifest has as done."""
    return {
        os.path.relpath(row["output"], destination)
        for row in rows(destination)
        if row["exit_code"] == 0
    }


def begun(log):
    """How often each output was begun."""
    names = log.read_text().split() if log.exists() else []
    return {name: names.count(name) for name in names}


def expected(source, destination):
    """The bytes of every output of the pictures in a folder that can be coded, by its path."""
    return {
        destination / path.relative_to(source).with_suffix(".aic"): coded(path.read_bytes())
        for path in source.rglob("*.png")
        if fate(path) in ("well", "large")
    }


def everything_is_done(source, destination):
    """A row for every picture, whole outputs, the right ones, and nothing else."""
    outputs = expected(source, destination)
    found = rows(destination)
    assert sorted(row["path"] for row in found) == sorted(map(str, source.rglob("*.png")))
    for row in found:
        if fate(row["path"]) not in ("well", "large"):
            assert row["error"] and row["exit_code"], row
            continue
        assert row["exit_code"] == 0 and row["error"] is None, row
        data = outputs[Path(row["output"])]
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["output_bytes"] == len(data)
    nothing_is_foreign(destination)
    for path, data in outputs.items():
        assert path.read_bytes() == data, path
    left = {path for path in destination.rglob("*") if path.is_file()} - set(outputs)
    assert all(path.parent.name == "manifest.parquet" for path in left), left


def nothing_is_foreign(destination):
    """No file but outputs and the manifest's own."""
    for path in destination.rglob("*"):
        if path.is_file() and path.suffix not in (".aic", ".parquet"):
            assert path.name in ("_settings.json", "_lock"), path


@contextmanager
def watched(outputs):
    """A block in which all outputs are read all the time, and are always whole where there are any."""
    torn, over, seen = [], threading.Event(), set()

    def watch():
        while not over.wait(0.02):
            for path, data in outputs.items():
                with suppress(FileNotFoundError):
                    if path.read_bytes() != data:
                        torn.append(path)
                    seen.add(path)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
    assert not torn


# --------------------------------------------------------------------------- processes


def processes(mark):
    """All processes of a fleet: their parents and command lines by their numbers."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with suppress(OSError):
            if f"{MARK}={mark}\0".encode() not in (folder / "environ").read_bytes() + b"\0":
                continue
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            found[int(folder.name)] = parent, command
    return found


def actors(mark):
    """The processes of actors that code."""
    found = processes(mark).items()
    return [pid for pid, (_, command) in found if command.startswith("ray::MapWorker")]


def children(mark):
    """The processes of actors in which pictures are coded."""
    return [pid for pid, (_, command) in processes(mark).items() if "spawn_main" in command]


def kill(pid):
    """Whether there was such a process."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def eventually(law, seconds=30.0):
    """Wait until it holds."""
    end = time.monotonic() + seconds
    while not law():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.1)


class Cluster:
    """A head and further nodes, of one CPU each, all on this machine."""

    def __init__(self, nodes=1):
        from ray.cluster_utils import Cluster

        self.mark = os.urandom(8).hex()
        self.temporary = tempfile.mkdtemp(prefix="aic-fleet-")
        before = dict(os.environ)
        os.environ.update(environment(self.mark))
        try:
            head = {**self._node(), "temp_dir": self.temporary, "include_dashboard": False}
            soon = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}
            head["_system_config"] = {**soon, "prestart_worker_first_driver": False}
            self._cluster = Cluster(initialize_head=True, head_node_args=head)
            self.address = self._cluster.address
            self.nodes = []
            for _ in range(nodes):
                self.add()
        finally:
            os.environ.clear()
            os.environ.update(before)

    @staticmethod
    def _node():
        return {"num_cpus": 1, "object_store_memory": 80 << 20, "memory": 4 << 30}

    def add(self):
        """One more node."""
        before = os.environ.get(MARK), os.environ.get("PYTHONPATH")
        os.environ.update(environment(self.mark))
        try:
            self.nodes.append(self._cluster.add_node(**self._node()))
        finally:
            for name, value in zip((MARK, "PYTHONPATH"), before, strict=True):
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    def kill_node(self, rng):
        """Kill the raylet of a node that is not the head."""
        node = self.nodes.pop(rng.randrange(len(self.nodes)))
        for process in node.all_processes["raylet"]:
            kill(process.process.pid)
        self._cluster.remove_node(node, allow_graceful=False)

    def kill_head(self, what):
        """Kill a process of the head, "raylet" or "gcs_server"."""
        for process in self._cluster.head_node.all_processes[what]:
            kill(process.process.pid)

    def close(self):
        """Stop everything."""
        try:
            self._cluster.shutdown()
        finally:
            for pid in processes(self.mark):
                kill(pid)
            shutil.rmtree(self.temporary, ignore_errors=True)


class Driver:
    """`aic encode --ray`, at work in a process of its own on the cluster, or on one that it starts itself.

    Args:
        stand: fields of the Stand.
        manifest: constants of `aiocodec.manifest` that are other than usual.
        fleet: fields of the Fleet.
    """

    def __init__(
        self, cluster, source, destination, *arguments, stand=None, manifest=None, **fleet
    ):
        small = {"memory": 64 << 20, "large_memory": 128 << 20, "block": 4, "large": LARGE}
        options = {"stand": stand or {}, "manifest": manifest or {}, "fleet": {**small, **fleet}}
        self._own = cluster is None
        self.mark = cluster.mark if cluster else os.urandom(8).hex()
        address = cluster.address if cluster else "local"
        command = ["encode", source, "--out-dir", destination, f"--ray={address}", "--json"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import fleet; fleet.drive()", json.dumps(options)]
            + [str(part) for part in (*command, *arguments)],
            env=environment(self.mark),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines, self.errors = [], []
        self._threads = [
            threading.Thread(target=into.extend, args=(stream,), daemon=True)
            for into, stream in (
                (self.lines, self.process.stdout),
                (self.errors, self.process.stderr),
            )
        ]
        for thread in self._threads:
            thread.start()

    def wait(self, seconds=120):
        """Its exit code, once it has ended by itself, and what it has said on stderr."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"it did not end: {''.join(self.errors)[-2000:]}") from None
        for thread in self._threads:
            thread.join(5)
        for line in self.lines:
            assert json.loads(line)  # and nothing of Ray's is between them
        return code, "".join(self.errors)

    def kill(self):
        """kill -9"""
        kill(self.process.pid)
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.kill()
        if self._own:
            for pid in processes(self.mark):  # agents of Ray outlive it
                kill(pid)
        for stream in (self.process.stdout, self.process.stderr):
            stream.close()

    def coding(self):
        """The processes on its cluster that code, or would."""
        return actors(self.mark) + children(self.mark)

    @property
    def tally(self):
        """The summary."""
        return json.loads(self.lines[-1])["summary"]
