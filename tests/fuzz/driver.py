"""Runs a fuzz target, under atheris where it is installed, else on mutations of its own making.

A target takes bytes and must return. What it raises is a finding, and so is a crash of the interpreter,
more than a second, and more than 300 MB. README.md says how to run one.
"""

import argparse
import contextlib
import random
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

try:
    import resource
except ImportError:  # of Unix alone
    resource = None

CORPUS = Path(__file__).parent / "corpus"
SECONDS = 1.0  # for one input
MEMORY = 300 << 20  # bytes for one input
LONGEST = 40_000  # bytes of an input
NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


class TooSlow(Exception):
    pass


class TooLarge(Exception):
    pass


def instrumented():
    """The context in which a target imports what it tests, for atheris to see its branches."""
    if Path(sys.argv[0]).name.startswith("fuzz_") and "--plain" not in sys.argv:
        with contextlib.suppress(ImportError):
            import atheris

            return atheris.instrument_imports(include=["aiocodec", "PIL"])
    return contextlib.nullcontext()


def peak():
    """The most memory that this process has had, in bytes; 0 where that is not known."""
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def bounded(target):
    """The target with its limits. What is slow is tried again, for the machine may have been busy."""

    def run(data):
        before = peak()
        for attempt in range(3):
            started = time.perf_counter()
            target(data)
            seconds = time.perf_counter() - started
            if seconds < SECONDS:
                break
            if attempt == 2:
                raise TooSlow(f"{seconds:.2f} s for {len(data)} bytes")
        if peak() - before > MEMORY:
            raise TooLarge(f"{(peak() - before) >> 20} MB for {len(data)} bytes")

    return run


def mutated(rng, seeds):
    """A few changes to one of the seeds, or of two of them."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        at = rng.randrange(len(data) + 1)
        size = min(rng.choice([1, 1, 2, 4, 4, 16, 64, 300]), len(data) - at)
        match rng.randrange(8):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(data):
                data[at] = rng.randrange(256)
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = rng.randbytes(size)
            case 4:
                data[at:at] = data[at : at + size] * rng.choice([1, 2, 9])
            case 5:
                width, order = rng.choice([1, 2, 4]), rng.choice(["little", "big"])
                number = rng.choice(NUMBERS) & (1 << 8 * width) - 1
                data[at : at + width] = number.to_bytes(width, order)
            case 6:
                other = rng.choice(seeds)
                start = rng.randrange(len(other) + 1)
                data[at : at + size] = other[start : start + size]
            case 7 if rng.random() < 0.2:
                del data[at:]
    return bytes(data[:LONGEST])


def drive(target, corpus):
    """The command line of a target; exit code 1 after a finding, which is kept in the working folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="run these inputs, and no others")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="do without atheris")
    options = parser.parse_args()
    target = bounded(target)
    if options.files:
        for path in options.files:
            target(path.read_bytes())
        print(f"{len(options.files)} inputs run")
        return
    if not options.plain:
        with contextlib.suppress(ImportError):
            import atheris

            with tempfile.TemporaryDirectory() as found:
                arguments = [
                    f"-max_total_time={int(options.seconds)}",
                    f"-max_len={LONGEST}",
                    f"-seed={options.seed + 1}",
                    "-timeout=20",
                    "-rss_limit_mb=2000",
                    "-print_final_stats=1",
                ]
                atheris.Setup([sys.argv[0], *arguments, found, str(corpus)], target)
                atheris.Fuzz()  # which ends the process
    rng, count = random.Random(options.seed), 0
    seeds = [path.read_bytes() for path in sorted(corpus.iterdir())]
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        data, count = mutated(rng, seeds), count + 1
        try:
            target(data)
        except Exception:
            path = Path(f"crash-{sha256(data).hexdigest()[:16]}")
            path.write_bytes(data)
            print(f"input {count} is a finding, kept as {path}", file=sys.stderr)
            raise
    print(f"{count} inputs run")
