"""Signals: whenever they come, `aic` ends soon with their code, and leaves whole files and no others."""

import gc
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aiocodec import signals
from aiocodec.container import unpack

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs the signals of POSIX")

AIC = [sys.executable, "-m", "aiocodec"]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
LINES = {b"aic: interrupted\n": 130, b"aic: terminated\n": 143, b"aic: hung up\n": 129, b"": None}

# `aic` with a codec that takes no time, and so is mostly at work on files
STUBBED = """
from aiocodec import __main__, signals

try:
    from types import SimpleNamespace
    from aiocodec import batch
    from aiocodec.container import ChunkType, Header, Latents, pack, pack_latents
except signals.Stopped as stopped:
    signals.leave(stopped.code, say=True)

class Stub:
    name, device = "stub", SimpleNamespace(type="cpu")

    def encode(self, picture, quality, *, effort, strip, verify):
        height, width, _ = picture.rgb.shape
        latents = pack_latents(Latents(bytes(1 << 16), 1, 1))
        return pack(Header(quality, width, height, b"8 bytes!"), [(ChunkType.LATENTS, latents)])

batch.load_codec = lambda *args: Stub()
if __name__ == "__main__":
    __main__.main()
"""


@pytest.fixture(autouse=True)
def state():
    yield
    signals.install()  # forgets the signal that came


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a hundred pictures in pictures/."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for i in range(100):
        Image.new("RGB", (60 + i, 50)).save(tmp_path / f"pictures/{i:03}.png")
    (tmp_path / "stubbed.py").write_text(STUBBED)
    return tmp_path


def start(*args, **options):
    return subprocess.Popen(
        list(map(str, args)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options
    )


def wait_for_handlers(process):
    """Return when the process has set its handlers, or has ended."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        time.sleep(0.5)
        return
    while process.poll() is None:
        try:
            caught = int(re.search(r"SigCgt:\s*(\w+)", status.read_text())[1], 16)
        except (OSError, TypeError):
            return
        if caught >> (signal.SIGHUP - 1) & 1:  # Python itself does not handle this one
            return


def everything_is_whole(folder):
    """Every output is a whole file, and there is nothing else."""
    for path in folder.rglob("*"):
        if path.is_file():
            assert path.suffix == ".aic", path
            unpack(path.read_bytes())


# --------------------------------------------------------------------------- in this process


def test_a_held_signal_waits_for_the_end_of_the_outermost_block():
    signals.install()
    done = []
    with pytest.raises(signals.Stopped) as stopped, signals.held():
        with signals.held():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("inner")
        done.append("outer")
    assert stopped.value.code == 143 and done == ["inner", "outer"]
    with signals.held():  # it has been raised
        pass


def test_what_was_begun_is_undone_however_its_block_ends():
    undone = []
    with signals.undoing(lambda: undone.append(1)):
        assert not undone
    with pytest.raises(ZeroDivisionError), signals.undoing(lambda: undone.append(2)):
        raise ZeroDivisionError
    with signals.undoing(lambda: os.unlink("not there")):
        pass
    signals.undo()
    assert undone == [1, 2]


def test_ignored_signals_stay_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signals.install()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGINT)


def test_ordinary_failures_of_finalisers_are_still_reported(monkeypatch):
    class Unlucky:
        def __del__(self):
            raise ZeroDivisionError

    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    signals.install()
    Unlucky()
    gc.collect()
    assert [fault.exc_type for fault in seen] == [ZeroDivisionError]


# --------------------------------------------------------------------------- in processes


LATE = """
import os, signal, sys
from aiocodec import signals
signals.install()
def kill(*args): os.kill(os.getpid(), signal.SIGTERM)
{}
print("still here")
"""


@pytest.mark.parametrize(
    "action",
    [
        "class A:\n    __del__ = kill\nA()",  # where Python can but print an exception
        "with signals.undoing(lambda: os.unlink('x')):\n"
        "    open('x', 'w').close()\n"
        "    with signals.held():\n        kill()\n        kill()",  # the second does not wait
        "with signals.undoing(lambda: print('undone', flush=True)):\n"
        "    with signals.held(firmly=True):\n        kill()\n        kill()\n"
        "        print('the end', flush=True)",
    ],
)
def test_no_signal_is_lost(action, folder):
    script = LATE.format(action)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert done.returncode == 143
    assert done.stdout == (b"the end\nundone\n" if "firmly" in action else b"")
    assert not Path("x").exists()


@pytest.mark.parametrize("number", CODES)
def test_a_process_that_waits(number, folder):
    os.mkfifo("pipe.png")
    process = start(*AIC, "encode", "pipe.png")
    with open("pipe.png", "wb"):  # returns when the other side has opened it
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == CODES[number] and LINES[err] == CODES[number]


@pytest.mark.parametrize("module", ["torch", "numpy", "click"])
def test_a_signal_during_an_import(module, folder):
    """It comes from within, at the worst of times: nothing aborts, and there is one line."""
    (folder / "sitecustomize.py").write_text(
        "import builtins, os, signal, sys\n"
        "real, sent = builtins.__import__, []\n"
        "def hooked(name, *args, **more):\n"
        f"    if {module!r} in sys.modules and not sent and name != {module!r}:\n"
        "        sent.append(name)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(name, *args, **more)\n"
        "builtins.__import__ = hooked\n"
    )
    path = os.pathsep.join([str(folder), *sys.path])
    process = start(*AIC, "encode", "pictures/000.png", env={**os.environ, "PYTHONPATH": path})
    _, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (130, b"aic: interrupted\n")
    assert not Path("pictures/000.aic").exists()


def test_an_ignored_signal_changes_nothing(folder):
    """As under nohup."""
    process = start(
        *(sys.executable, "stubbed.py", "encode", "-r", "pictures", "--out-dir", "out"),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    assert process.returncode == 0
    assert len(list((folder / "out").iterdir())) == 100


def test_the_second_signal_does_not_wait(folder):
    """The first one cannot take effect: Python is busy for a minute with its end."""
    (folder / "slow.py").write_text(
        STUBBED.replace(
            "batch.load_codec = lambda *args: Stub()",
            "import os, signal, time\n"
            "def fsync(handle):\n"
            "    try:\n"
            "        os.kill(os.getpid(), signal.SIGTERM)\n"
            "    finally:\n"
            "        print('now', flush=True)\n"
            "        time.sleep(60)\n"
            "os.fsync = fsync\n"
            "batch.load_codec = lambda *args: Stub()",
        )
    )
    process = subprocess.Popen(
        [sys.executable, "slow.py", "encode", "pictures/000.png", "out.aic"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"now\n"
    assert any(path.name.startswith(".aic-") for path in folder.iterdir())
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 143  # of the first
    assert time.monotonic() - started < 10
    assert {path.name for path in folder.iterdir()} == {"pictures", "stubbed.py", "slow.py"}


def volley(folder, rng, tries, jobs):
    """Signals at random moments of a batch, some of them twice, and how the batches ended."""
    args = [sys.executable, "stubbed.py", "encode", "-r", "pictures", "--out-dir"]
    began = time.monotonic()
    process = start(*args, "whole", *jobs)
    assert process.wait() == 0
    duration = time.monotonic() - began
    ends = {}
    for attempt in range(tries):
        out = folder / f"out{attempt}"
        number = rng.choice(list(CODES))
        process = start(*args, out, *jobs, start_new_session=True)
        wait_for_handlers(process)
        time.sleep(rng.uniform(0, duration))
        group = rng.random() < 0.5  # as a terminal does
        for _ in range(rng.choice((1, 1, 2))):
            if process.poll() is None:
                (os.killpg if group else os.kill)(process.pid, number)
            time.sleep(rng.choice((0, 0.001)))
        _, err = process.communicate(timeout=60)
        ends[process.returncode] = ends.get(process.returncode, 0) + 1
        assert process.returncode in (0, CODES[number]), err
        assert b"Traceback" not in err and b"ignored" not in err, err
        with pytest.raises(ProcessLookupError):  # nobody of its session is left
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                os.killpg(process.pid, 0)
                time.sleep(0.01)
        if out.exists():
            everything_is_whole(out)
    return ends


@pytest.mark.parametrize("jobs", [(), ("-j", "2")], ids=["alone", "pool"])
def test_signals_at_random_moments(folder, jobs):
    assert set(volley(folder, random.Random(1), 10, jobs)) & set(CODES.values())


@pytest.mark.slow
@pytest.mark.skipif("AIC_SLOW" not in os.environ, reason="takes minutes: set AIC_SLOW to run it")
@pytest.mark.parametrize("jobs", [(), ("-j", "2")], ids=["alone", "pool"])
def test_hundreds_of_signals_at_random_moments(folder, jobs):
    ends = volley(folder, random.Random(2), 300, jobs)
    print(ends)
    assert set(ends) >= set(CODES.values())
