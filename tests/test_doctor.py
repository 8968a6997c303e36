"""The examination finds nothing where nothing is wrong, and names what is wrong where something is."""

import dataclasses
import json
import time

import numpy as np
import pytest
import torch
from test_entropy import FOUR, random_model
from test_format import WrittenDecoder, written

from aiocodec import doctor, pretrained
from aiocodec.doctor import Check, examine, report
from aiocodec.entropy import exact
from aiocodec.rangecoder import Encoder
from aiocodec.training.release import frozen_of


@pytest.fixture(autouse=True)
def fresh():
    """Codecs that a check loaded are not kept from one test to the next."""
    doctor._codec.cache_clear()
    yield
    doctor._codec.cache_clear()


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the weights that may be spoiled."""
    for path in pretrained._folder().iterdir():
        if path.suffix in (".json", ".safetensors", ".onnx"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(pretrained, "_folder", lambda: tmp_path)
    return tmp_path


def found():
    return {check.name: check for check in examine()}


def test_nothing_is_wrong_here_and_it_is_quick():
    started = time.perf_counter()
    checks = list(examine())
    assert time.perf_counter() - started < 10
    assert not [check for check in checks if check.ok is False]
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    needed = [
        "torch",
        "memory",
        "weights nano",
        "range coder",
        "exact path on cpu",
        "round trip on cpu",
    ]
    assert set(needed) <= {check.name for check in checks if check.ok}
    assert found()["golden files on cpu"].values["files"] >= 6


def test_every_check_is_a_line_for_people_and_an_object_for_machines():
    for check in examine():
        line = report(check)
        assert line.isprintable() and check.name in line and check.detail in line
        assert Check(**json.loads(json.dumps(dataclasses.asdict(check)))) == check
    assert report(Check("x", True, "y")) == "ok   x: y"
    assert report(Check("x", False, "y")) == "FAIL x: y"
    assert report(Check("x", None, "y")) == "-    x: y"


def test_threads_are_left_as_they_were():
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        list(examine())
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


BROKEN = """
import json, sys

class Broken:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == sys.argv[1]:
            raise {error}

sys.meta_path.insert(0, Broken())
from aiocodec.doctor import examine
print(json.dumps({{check.name: check.ok for check in examine()}}))
"""


@pytest.mark.parametrize("error", ["ImportError('gone')", "OSError('libx.so: cannot open')"])
@pytest.mark.parametrize(
    ("module", "package"),
    [("torch", "torch"), ("numpy", "numpy"), ("constriction", "constriction")],
)
def test_a_library_that_is_missing_or_broken_is_a_failed_check(python, module, package, error):
    checks = json.loads(python(BROKEN.format(error=error), module))
    assert checks[package] is False
    assert checks["aiocodec"] and checks["safetensors" if module != "numpy" else "click"]
    assert not any(ok for name, ok in checks.items() if name.startswith("round trip"))


def test_without_weights_what_needs_them_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "_folder", lambda: tmp_path)
    checks = found()
    assert checks["weights"].ok is False and "manifest" in checks["weights"].detail
    assert checks["exact path on cpu"].ok is False and checks["round trip on cpu"].ok is False
    assert checks["range coder"].ok


def test_a_flipped_bit_in_weights_is_named(copied):
    for file in {*copied.glob("*.safetensors"), *copied.glob("*.onnx")}:
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        check = found()["weights nano"]
        assert check.ok is False and file.name in check.detail
        data[-1] ^= 1
        file.write_bytes(data)
    assert found()["weights nano"].ok


def test_one_wrong_rounding_in_the_exact_path_is_found(monkeypatch):
    """The reference shares nothing with what it is compared with."""

    def forward(self, x):
        return torch.maximum(x, torch.round(x * 0.125))  # halves to even, where they go up

    monkeypatch.setattr(exact.IntegerLeakyReLU, "forward", forward)
    check = found()["exact path on cpu"]
    assert check.ok is False and "differs" in check.detail


@pytest.mark.parametrize("seed", range(3))
def test_the_reference_follows_any_program(monkeypatch, seed):
    """Four passes and levels of quality as well, which the shipped model may not have."""
    frozen = frozen_of(random_model(FOUR, seed, 1.0))
    monkeypatch.setattr(doctor, "_frozen", lambda: frozen)
    assert found()["exact path on cpu"].ok


@pytest.mark.cuda
def test_devices_agree():
    checks = found()
    assert checks["exact path on cuda:0"].values == checks["exact path on cpu"].values
    assert checks["round trip on cuda:0"].ok


def test_the_words_of_the_range_coder_are_those_of_the_document(monkeypatch):
    """The constant is not what the coder happened to give: a decoder written from docs/format.md reads it."""
    streams = []

    class Kept(Encoder):
        def encode(self, symbols, indexes, tables):
            arrays = np.concatenate(tables._frequencies), tables._lengths, tables._lows
            streams.append((symbols.tolist(), indexes.tolist(), written(*arrays)))
            super().encode(symbols, indexes, tables)

        def finish(self):
            streams.append(super().finish())
            return streams[-1]

    monkeypatch.setattr("aiocodec.rangecoder.Encoder", Kept)
    assert found()["range coder"].ok
    (symbols, indexes, tables), words = streams
    decoder = WrittenDecoder(words)
    assert decoder.call(indexes, tables) == symbols
    decoder.finish()


def test_noise_is_the_same_everywhere_and_spread():
    noise = doctor._noise(10_000, 100)
    assert noise[:4].tolist() == doctor._noise(4, 100).tolist()
    assert noise.min() == -100 and noise.max() == 100 and abs(noise.mean()) < 3


def test_a_picture_that_comes_back_wrong_is_found(monkeypatch):
    from aiocodec.codec import Codec

    decode = Codec.decode

    def dark(self, data, **options):
        picture = decode(self, data, **options)
        return dataclasses.replace(picture, rgb=picture.rgb // 2)

    monkeypatch.setattr(Codec, "decode", dark)
    checks = found()
    assert (
        checks["round trip on cpu"].ok is False
        and "less than" in checks["round trip on cpu"].detail
    )
    assert checks["golden files on cpu"].ok is False


def test_outside_of_the_repository_golden_files_do_not_apply(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "GOLDEN", tmp_path)
    assert found()["golden files on cpu"].ok is None


def test_little_memory_is_found(monkeypatch):
    monkeypatch.setattr(doctor, "available_memory", lambda: 1000)
    monkeypatch.setattr(doctor, "group_limit", lambda: 1 << 30)
    check = found()["memory"]
    assert check.ok is False and check.values["available_bytes"] == 1000
    assert "limited to 1.0 GiB" in check.detail and check.values["bytes"] > 1 << 28
    monkeypatch.setattr(doctor, "available_memory", lambda: None)
    assert found()["memory"].ok is None


def test_the_doctor_says_which_extras_are_installed(monkeypatch):
    found = doctor.importlib.util.find_spec
    missing = {"rawpy"}
    monkeypatch.setattr(
        doctor.importlib.util, "find_spec", lambda name: None if name in missing else found(name)
    )
    (check,) = [check for check in doctor.examine() if check.name == "image formats"]
    assert check.ok
    assert "raw not installed" in check.detail
    assert not check.values["raw"]
