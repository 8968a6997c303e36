"""What fuzzing starts from, and what it has found, passes: every input of the corpus, within its limits."""

import random
import time

import pytest
from driver import CORPUS, LONGEST, TooLarge, TooSlow, bounded, mutated
from fuzz_decode import decode, repaired
from fuzz_read import read_and_write

from aiocodec.container import unpack
from aiocodec.image import FORMATS, kind, read

INPUTS = [
    (target, path)
    for target, folder in ((decode, "decode"), (read_and_write, "read"))
    for path in sorted((CORPUS / folder).iterdir())
]


@pytest.mark.parametrize(("target", "path"), INPUTS, ids=lambda value: getattr(value, "name", ""))
def test_an_input_of_the_corpus_passes(target, path):
    bounded(target)(path.read_bytes())


@pytest.mark.parametrize("target", [decode, read_and_write])
def test_some_mutations_of_the_corpus_pass(target):
    rng, run = random.Random(1), bounded(target)
    seeds = [path.read_bytes() for of, path in INPUTS if of is target]
    for _ in range(150):
        run(mutated(rng, seeds))


def test_the_corpus_is_small_and_reaches_the_decoders():
    assert sum(path.stat().st_size for _, path in INPUTS) < 200_000
    read_whole = 0
    for target, path in INPUTS:
        if target is decode:
            unpack(path.read_bytes())
        elif kind(path.read_bytes()) in (*FORMATS, None) and path.suffix not in (".im", ".spider"):
            read_whole += read(path.read_bytes()).rgb.size > 0
    assert read_whole > 45


def test_a_repaired_file_is_one():
    rng = random.Random(2)
    seeds = [path.read_bytes() for target, path in INPUTS if target is decode]
    for _ in range(300):
        data = mutated(rng, seeds)
        assert len(data) <= LONGEST
        found = unpack(repaired(data), max_pixels=1 << 32)
        assert repaired(repaired(data)) == repaired(data) and found.chunks
    for data in seeds:
        assert repaired(data) == data


def test_what_is_slow_or_large_is_a_finding(monkeypatch):
    monkeypatch.setattr("driver.SECONDS", 0.01)
    with pytest.raises(TooSlow):
        bounded(lambda data: time.sleep(0.02))(b"")
    sizes = iter([0, 301 << 20, 301 << 20])
    monkeypatch.setattr("driver.peak", lambda: next(sizes))
    with pytest.raises(TooLarge):
        bounded(lambda data: None)(b"")
