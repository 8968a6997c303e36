import os
import signal
import subprocess
import sys
from pathlib import Path

# OpenMP's threads otherwise spin while they wait, and the small operations of tests take up to forty
# times as long where anything else runs on the same cores. It is read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
if "PYTEST_XDIST_WORKER" in os.environ:  # of several processes each keeps to one core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

PHOTOS = Path(__file__).parent / "photos"


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if "slow" in item.keywords and "AIC_SLOW" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="slow: set AIC_SLOW to run it"))


@pytest.fixture(autouse=True)
def python_handles_signals():
    """Every test begins with the handlers that Python sets, even where the runner ignores SIGINT, which
    processes would inherit; `aic` may set others."""
    defaults = {
        "SIGINT": signal.default_int_handler,
        "SIGTERM": signal.SIG_DFL,
        "SIGHUP": signal.SIG_DFL,
    }
    before = {
        number: signal.signal(number, handler)
        for name, handler in defaults.items()
        if (number := getattr(signal, name, None)) is not None
    }
    hook = sys.unraisablehook
    yield
    sys.unraisablehook = hook
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def codec():
    from aiocodec.codec import Codec

    return Codec(device="cpu")


@pytest.fixture(scope="session")
def photo():
    """A real photograph, 480x320."""
    from aiocodec.image import read

    return read((PHOTOS / "lake.png").read_bytes())


@pytest.fixture(scope="session")
def python():
    """Run a script in a new interpreter, with more environment variables, and give its stdout."""

    def run(script, *arguments, **environment):
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
