"""The command line: what it promises of files, messages and exit codes, above all for bad input.

Where the network does not matter, Stub takes its place: it makes real .aic files of nothing but a
header.
"""

import functools
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest

from aiocodec import batch, cli, errors, pretrained
from aiocodec.cli.man import manual
from aiocodec.cli.options import EXIT_CODES, SIZE
from aiocodec.config import VARIANTS
from aiocodec.container import ChunkType, Header, Latents, pack, pack_latents
from aiocodec.hyper import HyperCoder
from aiocodec.rangecoder import Encoder

AIC = [sys.executable, "-m", "aiocodec"]
EXACT = ["--device", "cpu", "--threads", "1"]  # the same input gives the same bytes
WIDTH, HEIGHT = 70, 50


# --------------------------------------------------------------------------- tools


def installed_fingerprint() -> bytes:
    manifest = pretrained.Manifest.read()
    return manifest.fingerprint(manifest.models[0])


def container(
    fingerprint: bytes | None = None,
    chunks: tuple[tuple[int, bytes], ...] | None = None,
    *,
    quality: int = 50,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> bytes:
    """An intact file, by default of the installed model, of whose symbols there are those of z alone."""
    if chunks is None:
        chunks = ((ChunkType.LATENTS, pack_latents(latents(*size, quality))),)
    return pack(Header(quality, *size, fingerprint or installed_fingerprint()), chunks)


@functools.cache
def latents(width: int, height: int, quality: int) -> Latents:
    """Symbols of z for a picture, all of them 0, as the installed model codes them."""
    hyper = HyperCoder(batch.load_frozen(pretrained.Manifest.read().models[0]))
    symbols = np.zeros((hyper.program.hyper, -(-height // 64), -(-width // 64)), np.int32)
    encoder = Encoder()
    crc = hyper.encode(encoder, symbols, quality)
    return Latents(encoder.finish(), 0, crc)


class Stub:
    """Stands for a Codec."""

    name = "stub"
    device = SimpleNamespace(type="cpu")

    def encode(
        self, picture: Any, quality: int, *, effort: int, strip: bool, verify: bool
    ) -> bytes:
        height, width, _ = picture.rgb.shape
        return container(quality=quality, size=(width, height))

    def decode(self, file: Any) -> Any:
        import numpy as np

        from aiocodec.image import Picture

        return Picture(np.zeros((file.header.height, file.header.width, 3), np.uint8))


@dataclass
class Result:
    code: int
    out: bytes
    err: str

    @property
    def error(self) -> str:
        """The one line of stderr that a failure must leave."""
        assert self.code != 0
        assert re.fullmatch(r"aic: [^\n]+\n", self.err), self.err
        return self.err[5:-1]

    @property
    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


def aic(*args: object, stdin: bytes = b"") -> Result:
    """Run `main` in this process."""
    streams = sys.stdin, sys.stdout, sys.stderr
    out, err = io.BytesIO(), io.BytesIO()
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin))
    sys.stdout = io.TextIOWrapper(out, "utf-8")
    sys.stderr = io.TextIOWrapper(err, "utf-8", "backslashreplace")
    try:
        with pytest.raises(SystemExit) as exit:
            cli.main([str(arg) for arg in args])
        sys.stdout.flush()
        sys.stderr.flush()
        return Result(exit.value.code, out.getvalue(), err.getvalue().decode())
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams


def png(width: int = WIDTH, height: int = HEIGHT, **options: Any) -> bytes:
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[:height, :width]
    rgb = np.stack([x * 3, y * 5, (x + y) * 2], axis=-1).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "PNG", **options)
    return file.getvalue()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "load_codec", lambda *args: Stub())


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that must be over before weights are loaded."""

    def load(*args: object) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(batch, "load_codec", load)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a picture in it, x.png."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.png").write_bytes(png())
    return tmp_path


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """x.png, encoded by the installed model."""
    folder = tmp_path_factory.mktemp("coded")
    (folder / "x.png").write_bytes(png())
    assert aic("encode", folder / "x.png", *EXACT).code == 0
    return (folder / "x.aic").read_bytes()


@contextmanager
def terminal() -> Iterator[tuple[Any, Any]]:
    """(screen, stream): a pseudo-terminal, and what writes to it; `screen()` closes the stream."""
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    stream = os.fdopen(slave, "w")

    def screen() -> list[str]:
        """The lines as they stand on the screen in the end."""
        stream.close()
        text = b""
        try:
            while part := os.read(master, 4096):
                text += part
        except OSError:  # the way Linux says that the other side is closed
            pass
        lines = []
        for raw in text.decode().replace("\r\n", "\n").split("\n"):
            line = ""
            for part in raw.split("\r"):
                erased = part.startswith("\x1b[K")
                shown = re.sub(r"\x1b\[[?0-9]*[A-Za-z]", "", part)
                line = shown + ("" if erased else line[len(shown) :])
            lines.append(line.rstrip())
        return lines

    try:
        yield screen, stream
    finally:
        os.close(master)


# --------------------------------------------------------------------------- the interface


def test_help_lists_every_exit_code() -> None:
    text = aic("--help").out.decode()
    listed = {int(code) for code in re.findall(r"^ +(\d+)  \S", text, re.MULTILINE)}
    kinds = [errors.AicError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert {kind.exit_code for kind in kinds} | {0, 2, 129, 130, 143} == listed == set(EXIT_CODES)


def test_the_version_has_two_names() -> None:
    assert aic("-V").out == aic("--version").out != b""


def test_help_and_info_import_nothing_heavy(folder: Path) -> None:
    (folder / "x.aic").write_bytes(container())
    script = """
import sys
from aiocodec.cli import main
for args in (["--help"], ["encode", "--help"], ["--version"], ["--man"], ["info", "x.aic"], ["info", "x.aic", "--json"]):
    try:
        main(args)
    except SystemExit as exit:
        assert not exit.code
heavy = {"torch", "numpy", "PIL", "constriction", "safetensors"} & set(sys.modules)
assert not heavy, heavy
"""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert time.perf_counter() - started < 5  # a busy machine; about 0.2 s on an idle one


def test_the_manual_page_is_that_of_the_commands() -> None:
    """Where it is not: aic --man > docs/aic.1"""
    page = aic("--man").out
    assert page == (Path(__file__).parent.parent / "docs/aic.1").read_bytes()
    assert page.isascii()
    for code in EXIT_CODES:
        assert f"\n.B {code}\n".encode() in page
    if shutil.which("groff"):
        command = ["groff", "-man", "-ww", "-Tutf8", "-P-cbou"]
        shown = subprocess.run(command, input=page, capture_output=True, check=True)
        assert shown.stderr == b""
        text = shown.stdout.decode()
        for name in ("encode", "decode", "info", "compare", "evaluate", "train run", "doctor"):
            assert f"\n   aic {name} [OPTIONS]" in text


def test_what_a_page_says_is_never_a_command_of_roff() -> None:
    @click.command(
        "tricky", help=".TH is no heading\n\n'nor this; C:\\new, na\u00efve\n\n\b\n.as it stands"
    )
    @click.option("-x", "--x-ray", metavar="N", help=".2 of it, say -x 3")
    def tricky() -> None: ...

    @click.group(help="Does things.")
    def things() -> None: ...

    things.add_command(tricky)
    page = manual(things, "things")
    assert "\n\\&.TH is no heading\n.PP\n\\&'nor this; C:\\enew, na\\[u00EF]ve\n" in page
    assert "\n.nf\n\\&.as it stands\n.fi\n" in page
    assert "\n.TP\n\\fB\\-x\\fR, \\fB\\-\\-x\\-ray\\fR N\n\\&.2 of it, say \\-x 3\n" in page


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("words", "last", "completions"),
    [
        ("encode", "", {"file"}),
        ("encode -q 40 -f", "ph", {"file"}),
        ("encode x.png", "", {"file"}),
        ("encode -o", "", {"file"}),
        ("encode --out-dir", "", {"dir"}),
        ("decode", "x", {"file"}),
        ("info --json", "x", {"file"}),
        ("compare x.png", "", {"file"}),
        ("evaluate", "", {"dir"}),
        ("evaluate photos --against", "", {"file"}),
        ("train run", "", {"dir"}),
        ("", "de", {"decode"}),
        ("encode", "--skip", {"--skip-existing"}),
        ("encode --device", "c", {"cpu", "cuda"}),
        ("train", "re", {"release"}),
    ],
)
def test_shells_complete_commands_options_and_files(
    words: str, last: str, completions: set[str], shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As click's scripts for these shells ask: they complete the names of files themselves."""
    count = len(["aic", *words.split()])
    monkeypatch.setenv("_AIC_COMPLETE", f"{shell}_complete")
    monkeypatch.setenv("COMP_WORDS", f"aic {words} {last}" if words else f"aic {last}")
    monkeypatch.setenv("COMP_CWORD", last if shell == "fish" else str(count))
    result = aic()
    assert (result.code, result.err) == (0, "")
    if shell == "zsh":
        kinds, values = (
            result.out.decode().split("\n")[:-1:3],
            result.out.decode().split("\n")[1::3],
        )
    else:
        rows = [re.split(r"[,\t]", line) for line in result.out.decode().splitlines()]
        kinds, values = [row[0] for row in rows], [row[1] for row in rows]
    found = {v if kind == "plain" else kind for kind, v in zip(kinds, values, strict=True)}
    assert found == completions


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_completion_in_bash(folder: Path) -> None:
    """What the README says, in a shell to which "aic" is this code."""
    (folder / "aic").write_text(f'#!/bin/sh\nexec {" ".join(AIC)} "$@"\n')
    (folder / "aic").chmod(0o755)
    script = """
PATH=$PWD:$PATH
eval "$(_AIC_COMPLETE=bash_source aic)"
complete -p aic
COMP_WORDS=(aic enc) COMP_CWORD=1
_aic_completion aic; echo "${COMPREPLY[@]}"
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    if "version" in done.stderr:
        pytest.skip("needs bash 4.4")
    assert done.stdout == "complete -o nosort -F _aic_completion aic\nencode\n", done.stderr


@pytest.mark.parametrize(
    "args",
    [
        "",
        "nonsense",
        "encode",
        "encode x.png x.aic -q 101",
        "encode x.png x.aic -q -1",
        "encode x.png x.aic -q high",
        "encode x.png x.aic --target-bpp 0",
        "encode x.png x.aic --target-bpp nan",
        "encode x.png x.aic --target-bpp inf",
        "encode x.png x.aic --max-bytes 0",
        "encode x.png x.aic --max-bytes 40XB",
        "encode x.png x.aic --max-bytes 0.0009K",
        "encode x.png -o x.aic --out-dir out",
        "encode x.png y.aic -o x.aic",
        "encode x.png y.png -o x.aic",
        "encode -o x.aic",
        "encode -r . -o y.aic",
        "decode x.aic y.png -o z.png",
        "encode x.png x.aic --max-bytes 100 --target-bpp 1",
        "encode x.png x.aic --max-bytes 100 -q 50",
        "encode x.png x.aic --threads 0",
        "encode x.png x.aic --device tpu",
        "encode x.png x.aic --model huge",
        "encode x.png x.aic --max-pixels 0",
        "encode x.png x.aic --nonsense",
        "encode x.png y.png",  # two inputs
        "encode x.png y.gif",
        "encode x.png y.png z.png",
        "encode - --out-dir coded",
        "decode x.aic y.aic",
        "decode x.aic --format nonsense",
        "encode -r .",
        "encode x.png --jobs 0",
        "encode x.png --force --skip-existing",
        "info",
        "info --model huge",
        "info x.aic --model nano",
        "train --out run",
        "train . --minutes 1",
        "train . --out run --patches 100",
        "train . --out run --patches 64,128,192,256",
        "train . --out run --patches 0",
        "train . --out run --pretrained --start .",
        "train . --out run --optimiser sgd",
        "train --preview sheet.png",
        "evaluate missing",
    ],
)
def test_wrong_usage(args: str, folder: Path, no_model: None) -> None:
    (folder / "x.aic").write_bytes(container())
    result = aic(*args.split())
    assert result.code == 2
    assert result.error.endswith("--help)")
    assert names(folder) == {"x.png", "x.aic"}


def test_no_cuda(folder: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    result = aic("encode", "x.png", "--device", "cuda")
    assert result.code == 2 and "CUDA" in result.error
    assert names(folder) == {"x.png"}


# --------------------------------------------------------------------------- with the network


def test_round_trip(folder: Path, coded: bytes) -> None:
    from PIL import Image

    result = aic("encode", "x.png", "--verify", *EXACT)
    assert (result.code, result.out) == (0, b"")
    assert re.fullmatch(
        rf"x\.png -> x\.aic: 70x50, {len(coded)} bytes, [\d.]+ bpp, quality 50, [\d.]+ s\n",
        result.err,
    )
    assert (folder / "x.aic").read_bytes() == coded
    result = aic("decode", "x.aic", "y.png", "--verbose")
    assert result.code == 0 and re.search(r", \w+ on (cpu|cuda)\n$", result.err)
    with Image.open("y.png") as image:
        assert (image.size, image.mode) == ((WIDTH, HEIGHT), "RGB")
    assert names(folder) == {"x.png", "x.aic", "y.png"}


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_a_real_pipe(folder: Path, coded: bytes) -> None:
    command = "set -o pipefail; {0} encode {1} - - | tee x.aic | {0} decode {1} --quiet - - > y.png"
    result = subprocess.run(
        ["bash", "-c", command.format(" ".join(AIC), " ".join(EXACT))],
        input=(folder / "x.png").read_bytes(),
        stderr=subprocess.PIPE,
    )
    assert result.returncode == 0, result.stderr
    assert (folder / "x.aic").read_bytes() == coded
    assert (folder / "y.png").read_bytes() == aic("decode", "-", "-", *EXACT, stdin=coded).out
    assert re.fullmatch(rb"- -> -: [^\n]+\n", result.stderr)


def test_size_limits(folder: Path) -> None:
    (folder / "s.png").write_bytes(png(20, 10))
    assert aic("encode", "s.png", "50.aic", "-q", 50).code == 0
    size = (folder / "50.aic").stat().st_size
    for name, option, limit in (
        ("bytes.aic", "--max-bytes", size),
        ("bpp.aic", "--target-bpp", f"{8 * size / (20 * 10) + 0.001:.3f}"),
    ):
        result = aic("encode", "s.png", name, option, limit, "--json")
        assert result.code == 0
        assert (folder / name).stat().st_size == result.json[0]["bytes"] <= size
    result = aic("encode", "s.png", "1.aic", "--max-bytes", 1)
    assert result.code == 6 and result.error.startswith("s.png: ")
    assert not (folder / "1.aic").exists()


def test_metadata_and_strip(folder: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    (folder / "p.png").write_bytes(png(20, 10, icc_profile=profile))
    assert aic("encode", "p.png", "kept.aic").code == 0
    assert aic("encode", "p.png", "stripped.aic", "--strip").code == 0
    kept, stripped = aic("info", "kept.aic", "stripped.aic", "--json").json
    assert kept["chunks"]["icc"] == len(profile)
    assert "icc" not in stripped["chunks"]
    assert aic("decode", "kept.aic").code == 0
    assert aic("encode", "kept.png", "again.aic", "--json").code == 0
    assert aic("info", "again.aic", "--json").json[0]["chunks"]["icc"] == len(profile)


@pytest.mark.parametrize(
    ("args", "strip"),
    [
        (("x.png", "--strip"), "all"),
        (("--strip", "x.png"), "all"),
        (("--strip", "x.png", "x.aic"), "all"),
        (("x.png", "--strip", "private"), "private"),
        (("--strip", "private", "x.png"), "private"),
        (("--strip", "all", "x.png", "x.aic"), "all"),
        (("--strip=private", "x.png"), "private"),
        (("x.png", "--strip", "--", "x.aic"), "all"),
        (("x.png",), False),
    ],
)
def test_strip_takes_the_word_after_it_only_where_that_says_how(
    args: tuple[str, ...], strip: str | bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--strip private` wrote a file "private", and stripped all."""
    stripped = []

    class Told(Stub):
        def encode(self, *args: Any, **options: Any) -> bytes:
            stripped.append(options["strip"])
            return super().encode(*args, **options)

    monkeypatch.setattr(batch, "load_codec", lambda *args: Told())
    assert aic("encode", *args).code == 0
    assert stripped == [strip]
    assert {path.name for path in folder.iterdir()} == {"x.png", "x.aic"}


def test_only_models_with_weights_are_offered(folder: Path) -> None:
    installed = pretrained.Manifest.read().models
    for command in ("encode", "decode", "info"):
        assert f"--model [{'|'.join(installed)}]" in aic(command, "--help").out.decode()
    for name in {*VARIANTS, "huge"} - set(installed):
        result = aic("encode", "x.png", "--model", name)
        assert result.code == 2 and f"no weights of '{name}'" in result.error
        assert aic("info", "--model", name).code == 2
    assert names(folder) == {"x.png"}


def test_no_weights_at_all(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "x.aic").write_bytes(container())
    empty = tmp_path_factory.mktemp("weights")
    monkeypatch.setattr(pretrained, "_folder", lambda: empty)
    monkeypatch.setattr(batch, "load_codec", batch.load_codec.__wrapped__)
    (folder / "y.png").write_bytes(png())
    for args in (("encode", "x.png", "y.png"), ("decode", "x.aic", "x.aic")):
        result = aic(*args, "--out-dir", "out")
        assert result.code == 8
        *failures, summary, last = result.err.splitlines()
        assert len(failures) == 2 and last == "aic: 2 of 2 files failed"
        assert summary.startswith("0 files done, 2 failed: ")
        assert names(folder / "out") == set()
    result = aic("decode", "x.aic", "z.png")
    assert result.code == 5 and result.error.startswith("x.aic: ")
    assert aic("info", "x.aic", "--json").json[0]["model"] is None


def forged_weights(source: Path, target: Path, program: dict[str, object]) -> None:
    """A copy of the weights in `source` whose entropy model has other entries in its program, and whose
    hashes and fingerprint are right."""
    from hashlib import sha256

    from safetensors.numpy import load, save

    from aiocodec.entropy.frozen import FrozenEntropyModel, Program

    manifest = json.loads((source / "manifest.json").read_text())
    entry = next(iter(manifest["models"].values()))
    (name,) = entry["entropy"]
    tensors = load((source / name).read_bytes())
    frozen = FrozenEntropyModel.read(tensors)
    entries = {**json.loads(frozen.program.to_json()), **program}
    tensors["program"] = np.frombuffer(json.dumps(entries).encode(), np.uint8)
    forged = FrozenEntropyModel(Program(**entries), tensors)
    data = save(tensors)
    entry["fingerprint"] = forged.fingerprint.hex()
    manifest["files"][name] = {"bytes": len(data), "sha256": sha256(data).hexdigest()}
    (target / name).write_bytes(data)
    for file in entry["transforms"]:
        (target / file).write_bytes((source / file).read_bytes())
    (target / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ({}, None),
        ({"version": 9}, "version 9"),
        ({"order": [[[0, 1], [2, 5]]]}, "pass"),
        ({"networks": {"h_s": [["fft"]]}}, "'fft'"),
        ({"latents": 1 << 40}, "latents"),
        ({"tile": 1 << 40}, "tile"),
    ],
)
def test_weights_of_an_unknown_program(
    program: dict[str, object],
    words: str | None,
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = tmp_path_factory.mktemp("weights")
    forged_weights(pretrained._folder(), weights, program)
    monkeypatch.setattr(pretrained, "_folder", lambda: weights)
    monkeypatch.setattr(batch, "load_codec", batch.load_codec.__wrapped__)
    result = aic("encode", "x.png")
    if words is None:  # the forgery itself is not at fault
        assert result.code == 0 and aic("decode", "x.aic", "y.png").code == 0
        return
    assert result.code == 5 and result.error.startswith("x.png: ") and words in result.error
    assert names(folder) == {"x.png"}


@pytest.mark.parametrize("text", ["[]", "{", '{"models": {"nano": {}}, "files": {}}', "[" * 99999])
def test_a_manifest_that_is_none(
    text: str,
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = tmp_path_factory.mktemp("weights")
    (weights / "manifest.json").write_text(text)
    (folder / "x.aic").write_bytes(container())
    monkeypatch.setattr(pretrained, "_folder", lambda: weights)
    monkeypatch.setattr(batch, "load_codec", batch.load_codec.__wrapped__)
    for args in (("encode", "x.png", "y.aic"), ("decode", "x.aic", "y.png")):
        result = aic(*args)
        assert result.code == 5 and "manifest" in result.error
        assert aic(*args, "--model", "nano").code == 5
    assert aic("info", "--model", "nano").code == 5
    assert aic("info", "x.aic", "--json").json[0]["model"] is None
    assert names(folder) == {"x.png", "x.aic"}


def test_describes_models() -> None:
    model = pretrained.Manifest.read().models[0]
    text = aic("info", "--model", model).out.decode()
    for line in (r"parameters total +[\d,]+", r"weight bytes +[\d,]+", "default +yes"):
        assert re.search(f"^{line}$", text, re.MULTILINE)
    (row,) = aic("info", "--model", model, "--json").json
    assert row["model"] == model
    for key in ("parameters", "macs_256x256"):
        total = row[key].pop("total")
        assert total == sum(row[key].values()) > 0


# --------------------------------------------------------------------------- bad .aic files


def test_damaged_files(folder: Path, coded: bytes, no_model: None) -> None:
    rng = random.Random(1)
    header = 8 * 32
    damaged = [coded[:length] for length in (0, 1, *rng.sample(range(2, len(coded)), 18))]
    bits = [*rng.sample(range(header), 20), *rng.sample(range(header, 8 * len(coded)), 20)]
    for bit in bits:
        data = bytearray(coded)
        data[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(data))
    for data in (*damaged, coded + b"\0"):
        Path("bad.aic").write_bytes(data)
        result = aic("decode", "bad.aic", "out.png")
        assert result.code in (4, 5, 6)
        assert result.error.startswith("bad.aic: ")
        assert aic("info", "bad.aic").code == result.code
    assert names(folder) == {"x.png", "bad.aic"}


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (lambda: container()[:4] + b"\x63" + container()[5:], 5, "version 99"),
        (lambda: container(b"8 bytes!"), 5, b"8 bytes!".hex()),
        (lambda: container(chunks=((ChunkType.LATENTS, b"123"),)), 4, "LATENTS"),
        (lambda: container(chunks=((1, bytes(8)),), size=(65535, 65535)), 6, "65535x65535"),
        (lambda: b"", 4, "not an .aic file"),
        (lambda: png(), 4, "not an .aic file"),
    ],
)
def test_refused_before_weights(
    data: Any, code: int, words: str, folder: Path, no_model: None
) -> None:
    Path("bad.aic").write_bytes(data())
    result = aic("decode", "bad.aic", "out.png")
    assert result.code == code
    assert result.error.startswith("bad.aic: ") and words in result.error
    assert names(folder) == {"x.png", "bad.aic"}


def test_refused_by_the_decoder(folder: Path) -> None:
    noise = random.Random(2).randbytes(400)
    Path("noise.aic").write_bytes(
        container(chunks=((ChunkType.LATENTS, pack_latents(Latents(noise, 1, 1))),))
    )
    assert aic("decode", "noise.aic").code == 4
    Path("other.aic").write_bytes(container(b"8 bytes!"))
    result = aic("decode", "other.aic", "--model", pretrained.Manifest.read().models[0])
    assert result.code == 5 and b"8 bytes!".hex() in result.error
    assert names(folder) == {"x.png", "noise.aic", "other.aic"}


# --------------------------------------------------------------------------- bad images


@pytest.mark.parametrize(
    "data", [b"", b"no picture", png()[:100], png()[:-20], container()], ids=range(5)
)
def test_unreadable_images(data: bytes, folder: Path, no_model: None) -> None:
    Path("bad.png").write_bytes(data)
    result = aic("encode", "bad.png")
    assert result.code == 3 and result.error.startswith("bad.png: ")
    assert aic("encode", "-", "out.aic", stdin=data).code == 3
    assert names(folder) == {"x.png", "bad.png"}


@pytest.mark.parametrize("path", ["missing", "", "x.png/y.png"])
def test_inputs_that_are_no_files(path: str, folder: Path, no_model: None) -> None:
    (folder / "sub").mkdir()
    for command, code in (("encode", 3), ("decode", 4)):
        for out in (["out.aic"] if command == "encode" else ["out.png"]), ["--out-dir", "sub"]:
            result = aic(command, path, *out)
            assert result.code == code and result.error.startswith(f"{path}: cannot be read: ")
    assert names(folder) == {"x.png", "sub"}
    assert names(folder / "sub") == set()
    assert aic("encode", path).code == 3


@pytest.mark.parametrize("path", [".", "..", "/", "sub/"])
def test_folders_need_an_option(path: str, folder: Path, no_model: None) -> None:
    (folder / "sub").mkdir()
    for command in ("encode", "decode"):
        for args in ((path,), (path, "out"), (path, "--out-dir", "sub")):
            result = aic(command, *args)
            assert result.code == 2 and "--recursive" in result.error
        assert aic(command, path, "-r").code == 2  # and a folder for the outputs
    assert aic("info", path).code == 4
    assert names(folder) == {"x.png", "sub"}
    assert names(folder / "sub") == set()


def test_pixel_limit(folder: Path, no_model: None) -> None:
    (folder / "x.aic").write_bytes(container())
    for args in (("encode", "x.png", "y.aic"), ("decode", "x.aic", "y.png")):
        result = aic(*args, "--max-pixels", WIDTH * HEIGHT - 1)
        assert result.code == 6 and "70x50" in result.error
    assert names(folder) == {"x.png", "x.aic"}


# --------------------------------------------------------------------------- outputs


def test_existing_outputs(folder: Path, stub: None) -> None:
    (folder / "x.aic").write_bytes(b"before")
    (folder / "x.aic").chmod(0o640)
    result = aic("encode", "x.png")
    assert result.code == 7 and "--force" in result.error
    assert (folder / "x.aic").read_bytes() == b"before"
    assert aic("encode", "x.png", "--force").code == 0
    assert (folder / "x.aic").read_bytes() == container()
    if sys.platform != "win32":
        assert (folder / "x.aic").stat().st_mode & 0o777 == 0o640
    assert names(folder) == {"x.png", "x.aic"}


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("sub", "is a folder"),
        ("sub/", "is a folder"),
        ("missing/x.aic", "missing does not exist"),
        ("missing/", "missing does not exist"),
        ("x.png/y.aic", "x.png does not exist"),
        ("n" * 300 + ".aic", "cannot be written"),
    ],
)
def test_bad_outputs(out: str, words: str, folder: Path, stub: None) -> None:
    (folder / "sub").mkdir()
    result = aic("encode", "x.png", out, "--force")
    assert result.code == 7 and words in result.error
    assert names(folder) == {"x.png", "sub"}


@pytest.mark.skipif(sys.platform == "win32", reason="needs symlinks and devices")
def test_special_outputs(folder: Path, stub: None) -> None:
    assert aic("encode", "x.png", "/dev/null").code == 0  # nothing to overwrite
    assert Path("/dev/null").is_char_device()
    if Path("/dev/full").exists():
        result = aic("encode", "x.png", "/dev/full")
        assert result.code == 7 and "No space left" in result.error
    if Path("/proc").is_dir():  # not even root makes a file there
        assert aic("encode", "x.png", "/proc/x.aic").code == 7

    (folder / "sub").mkdir()
    Path("link.aic").symlink_to("sub/target.aic")  # nowhere yet
    assert aic("encode", "x.png", "link.aic").code == 7
    assert aic("encode", "x.png", "link.aic", "--force").code == 0
    assert Path("link.aic").is_symlink() and Path("sub/target.aic").read_bytes() == container()
    Path("loop.aic").symlink_to("loop.aic")
    assert aic("encode", "x.png", "loop.aic").code == 7
    assert names(folder) == {"x.png", "sub", "link.aic", "loop.aic"}
    assert names(folder / "sub") == {"target.aic"}


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(folder: Path, no_model: None) -> None:
    (folder / "sub").mkdir(0o555)
    result = aic("encode", "x.png", "sub/x.aic")
    assert result.code == 7 and "cannot be written" in result.error


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_input_as_output(force: tuple[str, ...], folder: Path, stub: None) -> None:
    before = (folder / "x.png").read_bytes()
    (folder / "x.png").rename("picture")
    Path("link").symlink_to("picture")
    for out in ("picture", "./picture", "link"):
        result = aic("encode", "picture", out, *force)
        assert result.code == 7 and "the output is the input" in result.error
    assert Path("picture").read_bytes() == before


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_an_input_that_only_its_own_name_makes_the_output_is_told_what_it_is(
    force: tuple[str, ...], folder: Path, no_model: None
) -> None:
    """Nobody who writes `aic decode x.png` has named an output."""
    Path("x.aic").write_bytes(container())
    Path("coded.png").write_bytes(container())
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for command, name, code, words in (
        ("decode", "x.png", 4, "not an .aic file"),
        ("decode", "missing.png", 4, "No such file"),
        ("decode", "coded.png", 7, "the output is the input"),
        ("encode", "x.aic", 3, "is an .aic file already"),
        ("encode", "missing.aic", 3, "No such file"),
    ):
        result = aic(command, name, *force)
        assert result.code == code and words in result.error, (command, name)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("fault", "words"), [(OSError(28, "No space left on device"), "No space left"), (None, "")]
)
def test_full_disk_and_internal_errors(
    fault: OSError | None,
    words: str,
    folder: Path,
    stub: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fsync(handle: int) -> None:
        assert any(name.startswith(".aic-") for name in names(folder))
        raise fault or ZeroDivisionError("never expected\nof course")

    (folder / "x.aic").write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", fsync)
    result = aic("encode", "x.png", "--force")
    assert result.code == (7 if fault else 1)
    assert result.error.startswith("x.png: ") and words in result.error
    assert names(folder) == {"x.png", "x.aic"}
    assert (folder / "x.aic").read_bytes() == b"before"
    if not fault:
        assert "internal error: ZeroDivisionError: never expected of course" in result.error
        monkeypatch.setenv("AIC_DEBUG", "1")
        with pytest.raises(ZeroDivisionError):
            cli.main(["encode", "x.png", "--force"])


def test_formats(folder: Path, stub: None) -> None:
    from PIL import Image

    Path("x.aic").write_bytes(container())
    for suffix, format in (("jpg", "JPEG"), ("WebP", "WEBP"), ("ppm", "PPM"), ("tiff", "TIFF")):
        assert aic("decode", "x.aic", f"y.{suffix}").code == 0
        assert aic("decode", "x.aic", "--format", suffix).code == 0
        piped = aic("decode", "-", "-", "--format", suffix, stdin=container())
        for file in (f"y.{suffix}", f"x.{suffix.lower()}", io.BytesIO(piped.out)):
            with Image.open(file) as image:
                assert (image.format, image.size) == (format, (WIDTH, HEIGHT))
    assert aic("decode", "x.aic", "plain", "--format", "png").code == 0
    with Image.open("plain") as image:
        assert image.format == "PNG"


@pytest.mark.parametrize("out", ["y.xyz", "y", "y.gif"])
def test_unknown_suffix(out: str, folder: Path, no_model: None) -> None:
    (folder / "x.aic").write_bytes(container())
    result = aic("decode", "x.aic", out)
    assert result.code == 7 and "suffix" in result.error
    assert aic("decode", "x.aic", "-o", out).error == result.error
    assert names(folder) == {"x.png", "x.aic"}


@pytest.mark.parametrize("out", ["x.png", "y.xyz", "sub", "missing/y.png"])
def test_of_input_and_output_the_input_is_named_first(
    out: str, folder: Path, no_model: None
) -> None:
    """Who is told of the output would try again with another, to hear that the input is not there."""
    (folder / "sub").mkdir()
    for command, code in (("encode", 3), ("decode", 4)):
        for path in ("missing", "sub/missing"):
            result = aic(command, path, "-o", out)
            assert result.code == code and result.error.startswith(f"{path}: cannot be read: ")
    assert names(folder) == {"x.png", "sub"}


# --------------------------------------------------------------------------- streams


def test_pipes_carry_nothing_else(folder: Path, stub: None) -> None:
    coded = aic("encode", "-", "-", "--json", stdin=png())
    assert (coded.code, coded.out) == (0, container())
    assert json.loads(coded.err)["output"] == "-"
    assert aic("encode", "-", stdin=png()).out == container()
    decoded = aic("decode", "-", "-", "--verbose", stdin=coded.out)
    assert decoded.out.startswith(b"\x89PNG") and decoded.err.startswith("- -> -: ")
    assert aic("decode", "-", "-", "--quiet", stdin=coded.out).err == ""

    failed = aic("encode", "-", "-", "--json", stdin=b"no picture")
    assert (failed.code, failed.out) == (3, b"")
    assert json.loads(failed.err)["exit_code"] == 3


@pytest.mark.parametrize("args", ["encode - y.aic", "decode - y.png", "encode x.png -"])
def test_closed_streams(
    args: str, folder: Path, no_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stdin", "stdout"):
        monkeypatch.setattr(sys, name, None)
    with pytest.raises(SystemExit) as exit:
        cli.main(args.split())
    assert exit.value.code == {"x.png": 7, "encode": 3, "decode": 4}[max(args.split()[:2])]
    assert names(folder) == {"x.png"}


def test_terminals_are_no_files(
    folder: Path, stub: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*args: str) -> int:
        with terminal() as (screen, stream):
            monkeypatch.setattr(sys, "stdin", stream)
            monkeypatch.setattr(sys, "stdout", stream)
            with pytest.raises(SystemExit) as exit:
                cli.main(args)
            assert screen() == [""]
        return exit.value.code

    assert run("encode", "x.png", "-") == 7
    assert run("encode", "-", "x.aic") == 3
    assert run("decode", "-", "x.png") == 4  # though it exists, too
    assert run("decode", "-", "y.png") == 4
    assert all(line.startswith("aic: ") for line in capsys.readouterr().err.splitlines())


STUBBED = """
import sys
sys.path.insert(0, {tests!r})
from test_cli import Stub, cli, batch
batch.load_codec = lambda *args: Stub()
cli.main()
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_broken_streams_of_real_processes(folder: Path) -> None:
    """No traceback and nothing of "Exception ignored" when the interpreter ends."""
    Path("stubbed.py").write_text(STUBBED.format(tests=str(Path(__file__).parent)))
    Path("x.aic").write_bytes(container())
    aic = f"{sys.executable} stubbed.py"
    for command, code, line in (
        (f"{aic} encode x.png - > /dev/full", 7, "aic: x.png: stdout cannot be written: No space"),
        (f"{aic} info x.aic > /dev/full", 7, "aic: stdout cannot be written: No space"),
        (f"{aic} --help > /dev/full", 7, "aic: stdout: No space"),
        (f"{aic} encode x.png - >&-", 7, "aic: x.png: stdout is closed"),
        (f"{aic} encode x.png /dev/stdout >&-", 7, "aic: x.png: /dev/stdout cannot be written: "),
        (f"{aic} encode x.png -f --json >&-", 7, "aic: stdout is closed"),
        (f"{aic} info x.aic >&-", 7, "aic: stdout is closed"),
        (f"{aic} info >&-", 2, "aic: give either files or --model NAME"),
        (f"{aic} --help >&-", 7, "aic: stdout is closed"),
        (f"{aic} --version >&-", 7, "aic: stdout is closed"),
        (f"{aic} info missing 2> /dev/full", 4, None),
        (f"{aic} info missing 2>&-", 4, None),
    ):
        result = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True)
        assert result.returncode == code, command
        if line is not None:
            assert re.fullmatch(re.escape(line) + r"[^\n]*\n", result.stderr.decode()), command


@pytest.mark.skipif(not Path("/dev/fd/1").exists(), reason="needs /dev/fd")
def test_a_broken_pipe_is_silent(folder: Path) -> None:
    """The code is that of a process which SIGPIPE ended, and nothing is said."""
    Path("stubbed.py").write_text(STUBBED.format(tests=str(Path(__file__).parent)))
    Path("x.aic").write_bytes(container())
    stubbed = [sys.executable, "stubbed.py"]
    for command in (
        "encode x.png -",
        "encode x.png --force --json",
        "encode x.png /dev/stdout",
        "decode x.aic -",
        "info x.aic x.aic x.aic",
        "info --json x.aic",
        "--help",
        "encode --help",
        "--version",
    ):
        # the reader is gone when anything is written, as it may be with head
        read, write = os.pipe()
        os.close(read)
        program = stubbed if command.startswith(("encode x", "decode x")) else AIC
        done = subprocess.run([*program, *command.split()], stdout=write, stderr=subprocess.PIPE)
        os.close(write)
        assert (done.returncode, done.stderr) == (141, b""), command
    assert names(folder) == {"x.png", "x.aic", "stubbed.py"}


@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes and limits of POSIX")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_is_written_in_part_is_a_failure(unbuffered: str, folder: Path) -> None:
    """Also where Python does not buffer: a disk that is full after the first half, a reader that leaves."""
    import resource

    Path("stubbed.py").write_text(STUBBED.format(tests=str(Path(__file__).parent)))
    Path("x.aic").write_bytes(container(size=(300, 300)))
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    decode = [sys.executable, "stubbed.py", "decode", "x.aic", "-", "--format", "bmp"]
    info = [sys.executable, "stubbed.py", "info", "--json", *["x.aic"] * 1000]
    half = 1 << 17
    for command in (decode, info):
        with open("out", "wb") as out:
            done = subprocess.run(
                command,
                stdout=out,
                stderr=subprocess.PIPE,
                env=environment,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (half, half)),
            )
        assert done.returncode == 7 and b"stdout cannot be written: File too large" in done.stderr
        assert Path("out").stat().st_size == half
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        assert process.stdout is not None and len(process.stdout.read(10)) == 10
        process.stdout.close()
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait()) == (b"", 141)
        process.stderr.close()


@pytest.mark.skipif(not Path("/dev/fd/1").exists(), reason="needs /dev/fd")
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("{aic} encode x.png >(cat > y); wait $!", 0),
        ("{aic} encode x.png /dev/stdout | cat > y", 0),
        ("{aic} encode x.png /dev/fd/3 3> y", 0),
        ("{aic} encode x.png /proc/self/fd/3 3> y", 0),
        ("{aic} encode <(cat x.png) y", 0),
        ("{aic} encode <(cat x.png) > y", 0),
        ("cat x.png | {aic} encode /dev/stdin > y", 0),
        ("{{ {aic} encode x.png /dev/stdout; echo more; }} > y; head -c -5 y > z; mv z y", 0),
        ("{aic} encode <(cat x.png) --out-dir out", 2),
        ("{aic} encode x.png /dev/fd/9", 7),
        ("{aic} encode x.png /dev/fd/3 3< x.png", 7),
    ],
)
def test_what_shells_make_of_streams(command: str, code: int, folder: Path) -> None:
    Path("stubbed.py").write_text(STUBBED.format(tests=str(Path(__file__).parent)))
    picture = (folder / "x.png").read_bytes()
    command = command.format(aic=f"{sys.executable} stubbed.py")
    done = subprocess.run(
        ["bash", "-c", command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (folder / "x.png").read_bytes() == picture
    if code:
        assert names(folder) == {"x.png", "stubbed.py"}
    else:
        assert names(folder) == {"x.png", "stubbed.py", "y"}
        assert (folder / "y").read_bytes() == container()


# --------------------------------------------------------------------------- signals


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_while_writing(
    number: int, folder: Path, stub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: os.kill(os.getpid(), number))
    result = aic("encode", "x.png", "x.png", "--out-dir", "out")
    assert result.code == 128 + number
    assert result.error in ("interrupted", "terminated")
    assert names(folder / "out") == set()


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_a_real_process(number: int, folder: Path) -> None:
    os.mkfifo("pipe.png")
    process = subprocess.Popen([*AIC, "encode", "pipe.png"], stderr=subprocess.PIPE)
    with open("pipe.png", "wb"):  # returns when the other side has opened it
        process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == 128 + number
    assert err in (b"aic: interrupted\n", b"aic: terminated\n")
    assert names(folder) == {"x.png", "pipe.png"}


# --------------------------------------------------------------------------- batches


def test_batch_goes_on(folder: Path, stub: None) -> None:
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "sub").mkdir()
    (folder / "sub" / "x.png").write_bytes(png(3, 2))
    (folder / "y.png").write_bytes(png(1, 1))
    paths = ("x.png", "bad.png", "missing.png", "sub/x.png", "y.png")
    result = aic("encode", *paths, "--out-dir", "out", "--force", "-q", 7)
    assert (result.code, result.out) == (8, b"")
    first, bad, missing, twice, last, total, summary = result.err.splitlines()
    assert first.startswith("x.png -> out/x.aic: 70x50, ") and "quality 7" in first
    assert bad.startswith("aic: bad.png: ")
    assert missing.startswith("aic: missing.png: cannot be read: ")
    assert twice.startswith("aic: sub/x.png: ") and "another input" in twice
    assert last.startswith("y.png -> out/y.aic: 1x1, ")
    coded = sum(path.stat().st_size for path in (folder / "out").iterdir())
    assert re.fullmatch(rf"2 files done, 3 failed: \S+ \S+ -> {coded} bytes, [\d.]+ s", total)
    assert summary == "aic: 3 of 5 files failed"
    assert names(folder / "out") == {"x.aic", "y.aic"}
    assert (folder / "out" / "x.aic").read_bytes() == container(quality=7)

    result = aic("decode", "out/x.aic", "bad.png", "out/y.aic", "--out-dir", "back", "--json")
    assert result.code == 8
    *rows, last = result.json
    assert [row.get("exit_code", 0) for row in rows] == [0, 4, 0]
    assert rows[0]["input_bytes"] == rows[0]["bytes"] == len(container())
    total = last.pop("summary")
    assert not last and (total["done"], total["skipped"], total["failed"]) == (2, 0, 1)
    assert total["input_bytes"] == 2 * len(container())
    assert total["output_bytes"] == sum(row.get("output_bytes", 0) for row in rows)
    assert len(result.err.splitlines()) == 2
    assert names(folder / "back") == {"x.png", "y.png"}

    result = aic("encode", "x.png", "y.png", "--out-dir", "new", "--quiet")
    assert (result.code, result.out, result.err) == (0, b"", "")


def test_folders(folder: Path, stub: None) -> None:
    (folder / "in/sub").mkdir(parents=True)
    for name in ("in/b.png", "in/a.jpg", "in/sub/c.png", "in/sub/.hidden.png"):
        (folder / name).write_bytes(png(3, 2))
    (folder / "in/notes.txt").write_text("no picture")
    result = aic("encode", "-r", "in", "--out-dir", "coded", "--json")
    assert result.code == 0
    *rows, last = result.json
    assert [row["output"] for row in rows] == ["coded/a.aic", "coded/b.aic", "coded/sub/c.aic"]
    assert last["summary"]["done"] == 3
    result = aic("decode", "-r", "coded", "--out-dir", "back", "--format", "jpg")
    assert result.code == 0 and result.err.splitlines()[-1].startswith("3 files done: ")
    assert names(folder / "back") == {"a.jpg", "b.jpg", "sub"}
    assert names(folder / "back/sub") == {"c.jpg"}
    result = aic("decode", "-r", "in", "--out-dir", "back")
    assert result.code == 4 and result.error.startswith("in: ")


def test_an_interrupted_batch_goes_on(folder: Path, stub: None) -> None:
    (folder / "y.png").write_bytes(png(3, 2))
    (folder / "out").mkdir()
    (folder / "out/x.aic").write_bytes(b"from before")
    args = ("encode", "x.png", "y.png", "--out-dir", "out")
    result = aic(*args, "--skip-existing")
    assert result.code == 0
    skipped, done, summary = result.err.splitlines()
    assert skipped == "x.png -> out/x.aic: skipped, exists already"
    assert done.startswith("y.png -> out/y.aic: 3x2, ")
    assert summary.startswith("1 file done, 1 skipped: ")
    assert (folder / "out/x.aic").read_bytes() == b"from before"
    *rows, last = aic(*args, "--skip-existing", "--json").json
    assert [row["skipped"] for row in rows] == [True, True]
    assert (last["summary"]["done"], last["summary"]["skipped"]) == (0, 2)
    assert aic(*args, "--skip-existing", "--force").code == 2
    assert aic(*args).code == 8


def test_no_order_of_arguments_loses_an_input(folder: Path, stub: None) -> None:
    from PIL import Image

    for name in ("a.gif", "b.gif"):
        Image.new("P", (5, 4)).save(name)
    (folder / "picture").write_bytes(png())
    (folder / "picture.aic").write_bytes(png())
    (folder / "x.aic").write_bytes(container())
    (folder / "coded").write_bytes(container())
    (folder / "old.png").write_bytes(png(1, 1))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for args, code in (
        ("encode -f a.gif b.gif", 2),
        ("encode -f x.png picture", 2),
        ("encode -f x.png picture.aic", 2),
        ("encode -f x.png a.gif", 2),
        ("decode -f x.aic coded", 2),
        ("decode -f --format png x.aic coded", 2),
        ("encode -f --out-dir . x.png x.aic", 8),
        ("encode -f --out-dir . x.aic x.png", 8),
        ("encode -f --out-dir . picture picture.aic", 8),
        ("decode -f --out-dir . x.aic x.png", 8),
        ("encode -f x.png x.png", 7),
        ("decode -f x.aic ./x.aic", 7),
    ):
        result = aic(*args.split())
        assert result.code == code, args
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, args
    assert aic("encode", "-f", "x.png", "x.aic").code == 0
    assert aic("decode", "-f", "x.aic", "old.png").code == 0


def test_a_stream_of_any_name(folder: Path, stub: None) -> None:
    """A file written to /dev/stdout is not mixed with JSON either."""
    if not Path("/dev/stdout").exists():
        pytest.skip("needs /dev/stdout")
    Path("stubbed.py").write_text(STUBBED.format(tests=str(Path(__file__).parent)))
    with open("out", "wb") as out:
        command = [sys.executable, "stubbed.py", "encode", "x.png", "/dev/stdout", "--json"]
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, check=True)
    assert Path("out").read_bytes() == container()
    assert json.loads(done.stderr)["output"] == "/dev/stdout"


def test_warnings_are_said_once(folder: Path, stub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from aiocodec import image

    read = image.read
    monkeypatch.setattr(image, "read", lambda *a, **k: replace(read(*a, **k), warnings=("odd",)))
    warning, line = aic("encode", "x.png", "1.aic").err.splitlines()
    assert warning == "aic: x.png: warning: odd" and line.startswith("x.png -> 1.aic: ")
    assert aic("encode", "x.png", "2.aic", "--quiet").err == ""
    result = aic("encode", "x.png", "3.aic", "--json")
    assert result.json[0]["warnings"] == ["odd"] and result.err == ""


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("{aic} info /dev/zero", 4),
        ("{aic} decode /dev/zero y.png", 4),
        ("{aic} encode /dev/zero y.aic", 3),
        ("yes | {aic} info -", 4),
        ("yes | {aic} encode - -", 3),
        ("cat x.aic /dev/zero | {aic} decode - -", 4),
    ],
)
def test_endless_inputs_end(command: str, code: int, folder: Path) -> None:
    (folder / "x.aic").write_bytes(container())
    started = time.perf_counter()
    done = subprocess.run(["bash", "-c", command.format(aic=" ".join(AIC))], capture_output=True)
    assert (done.returncode, done.stdout) == (code, b"")
    assert re.fullmatch(rb"aic: [^\n]+\n", done.stderr)
    assert time.perf_counter() - started < 10  # a busy machine
    assert names(folder) == {"x.png", "x.aic"}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs limits of address space")
@pytest.mark.parametrize("megabytes", [140, 250, 500, 650])
def test_too_little_memory_has_an_exit_code(megabytes: int, folder: Path) -> None:
    import resource

    limits = megabytes << 20, megabytes << 20
    done = subprocess.run(
        [*AIC, "encode", "x.png"],
        capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limits),
    )
    assert done.returncode == 6
    assert re.fullmatch(rb"aic: [^\n]*not enough memory[^\n]*\n", done.stderr)
    assert names(folder) == {"x.png"}


@pytest.mark.parametrize(
    "fault",
    ["ImportError('No module named torch')", "OSError('libgomp.so.1: cannot open shared object')"],
)
def test_a_library_that_cannot_be_loaded(fault: str, folder: Path) -> None:
    (folder / "broken").mkdir()
    (folder / "broken/torch.py").write_text(f"raise {fault}")
    path = os.pathsep.join(["broken", *sys.path])
    for args in ("encode x.png", "info --model nano", "train release . weights"):
        done = subprocess.run(
            [*AIC, *args.split()], capture_output=True, env={**os.environ, "PYTHONPATH": path}
        )
        assert done.returncode == 5, done.stderr
        assert re.fullmatch(rb"aic: [^\n]*cannot be loaded: [^\n]*\n", done.stderr)
    assert names(folder) == {"x.png", "broken"}


def test_bad_out_dir(folder: Path, no_model: None) -> None:
    for out, words in (("missing/sub", "No such file"), ("x.png", "File exists")):
        result = aic("encode", "x.png", "--out-dir", out)
        assert result.code == 7 and words in result.error
    assert names(folder) == {"x.png"}


def test_an_output_may_be_an_option(folder: Path, stub: None) -> None:
    from PIL import Image

    assert aic("encode", "-o", "a.aic", "x.png").code == 0
    assert aic("encode", "x.png", "--output", "b.aic").code == 0
    assert aic("encode", "x.png", "-o", "-").out == container()
    assert aic("encode", "-", "-o", "-", stdin=png()).out == container()
    assert aic("decode", "a.aic", "-o", "a.jpg").code == 0
    with Image.open("a.jpg") as image:
        assert image.format == "JPEG"
    assert names(folder) == {"x.png", "a.aic", "b.aic", "a.jpg"}
    assert aic("encode", "x.png", "-o", "a.aic").code == 7
    assert aic("encode", "x.png", "-o", "x.png", "-f").code == 7


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("40000", 40000),
        ("40B", 40),
        ("40kB", 40000),
        ("40KB", 40000),
        ("40KiB", 40 << 10),
        ("40K", 40 << 10),
        ("40k", 40 << 10),
        ("1.5MB", 1_500_000),
        ("1.5M", 3 << 19),
        ("0.3GiB", (3 << 30) // 10),
        ("2g", 2 << 30),
        ("1.", 1),
        ("1.9", 1),
        ("0.001kB", 1),
    ],
)
def test_sizes_have_the_units_of_coreutils(text: str, size: int) -> None:
    assert SIZE.convert(text, None, None) == size


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "+1", "1e3", "kB", "1 kB", "1b", "1kb", "1KIB", "1iB", "1TB", ".", "1,5MB"]
    + ["0.9", "0.0009kB", "nan", "inf", "1_000", "\u0661", "1\n", "9" * 5000],
)
def test_anything_else_is_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter):
        SIZE.convert(text, None, None)


def test_strange_names(folder: Path, stub: None) -> None:
    x = (folder / "x.png").read_bytes()
    Path("-x.png").write_bytes(x)
    assert aic("encode", "--", "-x.png").code == 0
    assert aic("info", "--", "-x.aic").code == 0
    assert Path("-x.aic").read_bytes() == container()

    Path("two\nlines \x1b[31m.png").write_bytes(x)
    result = aic("encode", "two\nlines \x1b[31m.png")
    assert result.code == 0 and result.err.startswith("two?lines ?[31m.png -> ")
    assert aic("encode", "two\nlines.gif", "y.aic").error.startswith("two?lines.gif: ")

    raw = os.fsdecode(b"\xff.png")
    try:
        Path(raw).write_bytes(x)
    except OSError:
        pytest.skip("the file system wants UTF-8")
    assert aic("encode", raw).code == 0
    out = os.fsdecode(b"\xff.aic")
    assert Path(out).exists()
    assert aic("info", out).out.startswith(b"input ")
    assert aic("info", out, "--json").json[0]["input"] == out


def test_names_that_the_encoding_lacks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("\u65e5.aic").write_bytes(container())
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "latin-1"))
    with pytest.raises(SystemExit) as exit:
        cli.main(["info", "\u65e5.aic"])
    assert not exit.value.code and b"\\u65e5.aic" in out.getvalue()


def test_progress_on_a_terminal(folder: Path, stub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "y.png").write_bytes(png(1, 1))

    def shown(*args: str) -> list[str]:
        with terminal() as (screen, stream):
            monkeypatch.setattr(sys, "stderr", stream)
            with pytest.raises(SystemExit):
                cli.main(["encode", *args, "--force"])
            return screen()

    lines = shown("x.png", "bad.png", "y.png", "--out-dir", "out")
    assert len(lines) == 7 and lines[6] == ""
    assert re.fullmatch(r"x\.png -> \S+: 70x50, .* s", lines[0])
    assert re.fullmatch(r"aic: bad\.png: not an image[^\]]*", lines[1])
    assert re.fullmatch(r"y\.png -> \S+: 1x1, .* s", lines[2])
    assert re.fullmatch(r" +\[#+\] +3/3", lines[3])
    assert lines[4].startswith("2 files done, 1 failed: ")
    assert lines[5] == "aic: 1 of 3 files failed"

    assert "[#" not in "".join(shown("x.png"))  # one file

    class Large(Stub):
        def encode(self, picture: Any, quality: int, **options: Any) -> bytes:
            options.pop("progress", lambda fraction: None)(0.5)
            drawn.append(True)
            return super().encode(picture, quality, **options)

    drawn: list[bool] = []
    monkeypatch.setattr(batch, "load_codec", lambda *args: Large())
    (folder / "large.png").write_bytes(png(2000, 1000))
    (line, rest) = shown("large.png")  # the bar has gone
    assert line.startswith("large.png -> ") and rest == "" and drawn
    assert shown("x.png", "y.png", "--out-dir", "out", "--quiet") == [""]
    assert "[#" not in aic("encode", "x.png", "y.png", "--out-dir", "o2").err  # no terminal


# --------------------------------------------------------------------------- info


def test_info(folder: Path, coded: bytes) -> None:
    Path("x.aic").write_bytes(coded)
    result = aic("info", "x.aic")
    assert (result.code, result.err) == (0, "")
    lines = dict(re.split(r" {2,}", line) for line in result.out.decode().splitlines())
    model = pretrained.Manifest.read().models[0]
    assert lines["input"] == "x.aic" and lines["width"] == "70" and lines["height"] == "50"
    assert lines["fingerprint"] == installed_fingerprint().hex() and lines["model"] == model
    assert lines["encoder"].startswith(f"{model} aiocodec/")

    (row,) = aic("info", "-", "--json", stdin=coded).json
    assert row["input"] == "-" and row["bytes"] == len(coded) and row["quality"] == 50
    assert row["bpp"] == pytest.approx(8 * len(coded) / (WIDTH * HEIGHT), abs=1e-5)


def test_info_of_many_files(folder: Path) -> None:
    latents = (ChunkType.LATENTS, pack_latents(Latents(b"", 0, 0)))
    odd = (latents, (0xC3, b"abc"), (0xC3, b"d"), (ChunkType.PROVENANCE, b"\x1b[31m\xff\n"))
    Path("odd.aic").write_bytes(container(b"8 bytes!", odd, size=(65535, 65535)))
    Path("bad.aic").write_bytes(container()[:-1])
    Path("good.aic").write_bytes(container())
    result = aic("info", "odd.aic", "bad.aic", "good.aic")
    assert result.code == 8
    assert result.err.splitlines()[-1] == "aic: 1 of 3 files failed"
    text = result.out.decode()
    assert "\x1b" not in text and text.count("input ") == 2 and "\n\n" in text
    first, second, third = aic("info", "odd.aic", "bad.aic", "good.aic", "--json").json
    assert first["chunks"] == {"latents": 8, "0xc3": 4, "provenance": 7}
    assert first["model"] is None
    assert second["exit_code"] == 4 and second["input"] == "bad.aic"
    assert third["model"] == pretrained.Manifest.read().models[0]


# --------------------------------------------------------------------------- compare


def test_comparisons(folder: Path, coded: bytes) -> None:
    """With the figures that the functions for them have, whatever the pictures are stored as."""
    from aiocodec import decode, image, metrics

    (folder / "x.aic").write_bytes(coded)
    a, b = image.read((folder / "x.png").read_bytes()).rgb, decode(coded, device="cpu")
    (row,) = aic("compare", "x.png", "x.aic", "--json", *EXACT).json
    assert row["psnr"] == pytest.approx(metrics.psnr(a, b), abs=0.01)
    assert row["ms_ssim"] is None  # 50 pixels are too short a side
    assert row["a"]["blockiness"] == metrics.blockiness(a)
    assert row["b"]["blockiness"] == pytest.approx(metrics.blockiness(b), rel=0.01)
    assert row["b"]["bpp"] == aic("info", "x.aic", "--json").json[0]["bpp"]
    assert row["b"]["bytes"] == len(coded) and not row["identical"]
    (other,) = aic("compare", "-", "x.png", "--json", *EXACT, stdin=coded).json
    assert other["psnr"] == row["psnr"] and other["a"]["bpp"] == row["b"]["bpp"]

    result = aic("compare", "x.png", "x.aic", *EXACT)
    assert (result.code, result.err) == (0, "")
    first, second, psnr, ms_ssim = result.out.decode().splitlines()
    assert first.startswith("A        x.png: 70x50, ") and "blocks" in first
    assert second.startswith(f"B        x.aic: 70x50, {len(coded)} bytes, ")
    assert psnr == f"PSNR     {row['psnr']:.2f} dB"
    assert ms_ssim == "MS-SSIM  none, a side is too short"


def test_comparisons_of_images_alone(folder: Path, no_model: None) -> None:
    from PIL import Image

    with Image.open("x.png") as image:
        large = image.resize((300, 200))
    large.save("large.png")
    large.save("large.jpg", quality=30)
    (row,) = aic("compare", "large.png", "large.jpg", "--json").json
    assert 20 < row["psnr"] < 50 and 0.5 < row["ms_ssim"] < 1
    (row,) = aic("compare", "large.png", "large.png", "--json").json
    assert (row["psnr"], row["identical"]) == (None, True)
    assert row["ms_ssim"] == pytest.approx(1)
    result = aic("compare", "large.png", "large.png")
    assert "PSNR     infinite" in result.out.decode()


def test_comparisons_say_what_they_leave_out(folder: Path, no_model: None) -> None:
    from PIL import Image

    with Image.open("x.png") as image:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.save("alpha.png", icc_profile=b"")
        frames = [image.convert("RGB"), Image.new("RGB", image.size)]
        frames[0].save("frames.png", save_all=True, append_images=frames[1:])
    result = aic("compare", "alpha.png", "frames.png")
    assert result.code == 0
    frame, transparency = result.err.splitlines()
    assert frame.startswith("aic: frames.png: warning: ") and "frame" in frame
    assert transparency.startswith("aic: alpha.png, frames.png: warning: the transparency ")
    (row,) = aic("compare", "alpha.png", "frames.png", "--json").json
    assert row["b"]["warnings"] and row["warnings"] and not row["a"]["warnings"]


def test_what_cannot_be_compared(folder: Path, no_model: None) -> None:
    (folder / "y.png").write_bytes(png(60, 50))
    (folder / "bad.aic").write_bytes(container()[:-1])
    for args, code, words in (
        ("x.png y.png", 3, "x.png, y.png: pictures of different sizes, 70x50 and 60x50"),
        ("x.png missing.png", 3, "missing.png: cannot be read: "),
        ("missing.aic x.png", 3, "missing.aic: cannot be read: "),
        ("x.png .", 3, ".: cannot be read: "),
        ("bad.aic x.png", 4, "bad.aic: "),
        ("x.png bad.aic", 4, "bad.aic: "),
        ("x.png x.png --max-pixels 3499", 6, "x.png: "),
        ("- -", 2, "stdin can be one"),
        ("x.png", 2, "Missing argument"),
        ("x.png x.png x.png", 2, "unexpected"),
    ):
        result = aic("compare", *args.split())
        assert result.code == code, args
        assert words in result.error and result.out == b""
    (row,) = aic("compare", "x.png", "y.png", "--json").json
    assert row["exit_code"] == 3 and row["input"] == "x.png, y.png"
    assert names(folder) == {"x.png", "y.png", "bad.aic"}


def test_preview_of_the_degradations(folder: Path) -> None:
    for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        result = aic("train", "preview", ".", name, "--seed", str(seed))
        assert result.code == 0, result.error
        (folder / name).rename(folder.parent / name)
    a, b, c = ((folder.parent / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c
    from PIL import Image

    with Image.open(io.BytesIO(a)) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width >= 5 * 320
    (folder / "empty").mkdir()
    result = aic("train", "preview", "empty", "d.png")
    assert result.code == 3 and "no images" in result.error


def test_training_refuses_what_it_cannot_use(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run/checkpoint.pt").write_bytes(b"nonsense")
    for args in (
        ("run", ".", "--out", "run"),
        ("anneal", "run", ".", "--out", "branch"),
        ("release", "run", "weights"),
    ):
        result = aic("train", *args)
        assert result.code == 9 and "damaged" in result.error
    assert [path.name for path in (folder / "run").iterdir()] == ["checkpoint.pt"]
    (folder / "nothing").mkdir()
    result = aic("train", "release", "nothing", "weights")
    assert result.code == 9 and "no weights" in result.error
    result = aic("train", "release", "nothing", "weights", "--fit", "nothing")
    assert result.code == 3 and "no images" in result.error
    result = aic("train", "run", ".", "--out", "other", "--patches", "100")
    assert result.code == 2 and "multiple of 64" in result.error
    result = aic("train", "run", "nothing", "--out", "other")
    assert result.code == 3 and "no images" in result.error
    result = aic("train", "run", ".", "--out", "other", "--pairs", "nothing")
    assert result.code == 3 and "no pairs" in result.error
    assert not {"weights", "branch", "other"} & {path.name for path in folder.iterdir()}
