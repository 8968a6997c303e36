"""What is packed, and what a client sees of it: the manifest's weights, a wheel without tests, sources that
can be tested where they are unpacked, and types that hold."""

import ast
import configparser
import fnmatch
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import aiocodec
from aiocodec.cli.main import cli
from aiocodec.pretrained import Manifest

ROOT = Path(__file__).parent.parent
CLIENT = Path(__file__).parent / "client.py"
PAGE = {f"aiocodec/viewer/{name}" for name in ("index.html", "assets/index.js", "assets/style.css")}
SUFFIXES = {".safetensors", ".onnx"}  # of weights


def test_every_weight_file_is_packaged_and_small_enough():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", "utf-8")
    patterns = setup["options.package_data"]["aiocodec.weights"].split(", ")
    manifest = Manifest.read(ROOT / "weights")
    files = manifest.entries["files"]
    assert files
    for name in [*files, "manifest.json", "TRAINING.md"]:
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name
        assert (ROOT / "weights" / name).exists()
    weights = {path.name for path in (ROOT / "weights").iterdir() if path.suffix in SUFFIXES}
    assert weights == set(files)
    assert max(entry["bytes"] for entry in files.values()) < 50e6
    assert manifest.weight_bytes(manifest.models[0]) <= 45e6
    assert sum(entry["bytes"] for entry in files.values()) <= 90e6


def test_every_package_is_named():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", "utf-8")
    named = set(setup["options"]["packages"].split())
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "aiocodec").rglob("__init__.py")
    }
    assert named == found | {"aiocodec.weights"}


def test_the_installed_weights_are_those_of_the_repository():
    assert Manifest.read().entries == Manifest.read(ROOT / "weights").entries


# --------------------------------------------------------------------------- distributions


def sources():
    """The files of the project, relative to its folder: what git knows or would, or all that was unpacked."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
        names = {os.fsdecode(name) for name in listed.split(b"\0") if name}
    else:
        ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()}
        names = {
            path.relative_to(ROOT).as_posix()
            for path in ROOT.rglob("*")
            if path.is_file()
            and not any(
                fnmatch.fnmatch(part, pattern)
                for part in path.relative_to(ROOT).parts
                for pattern in ignored
            )
        } - {"PKG-INFO"}
    return {
        name for name in names if (ROOT / name).is_file()
    }  # neither links to folders nor deleted


def build(kind, folder, out):
    """The path of what setuptools builds of the project in a folder: a "sdist" or a "wheel"."""
    script = f"from setuptools import build_meta\nbuild_meta.build_{kind}({str(out)!r})"
    before = set(out.glob("*"))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (path,) = set(out.glob("*")) - before
    return path


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """(folder of the unpacked sources, wheel): the wheel was built there."""
    pytest.importorskip("setuptools", minversion="77.0.3")
    clone, out = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("out")
    for name in sources():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    for name in PAGE:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text("as the viewer's build writes it")
    with tarfile.open(build("sdist", clone, out)) as archive:
        archive.extractall(out, filter="data")
    (unpacked,) = (path for path in out.iterdir() if path.is_dir())
    return unpacked, build("wheel", unpacked, out)


def test_sources_are_all_there(distributions):
    unpacked, _ = distributions
    packed = {p.relative_to(unpacked).as_posix() for p in unpacked.rglob("*") if p.is_file()}
    packed = {name for name in packed if not re.match(r"build/|[^/]+\.egg-info/", name)}
    assert packed == sources() | PAGE | {"PKG-INFO"}
    assert {name.split("/")[0] for name in packed} >= {"tests", "docs", "weights", "LICENSE"}
    for name in packed - PAGE - {"PKG-INFO", "setup.cfg"}:  # which setuptools adds to
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes(), name


def test_sources_are_tested_where_they_are_unpacked(distributions, tmp_path):
    """By tests of the code, the weights and the golden files that came along."""
    unpacked, _ = distributions
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    own = [sys.executable, "-c", "import aiocodec; print(aiocodec.__file__)"]
    place = subprocess.run(own, cwd=unpacked, env=environment, capture_output=True, text=True)
    assert Path(place.stdout.strip()).parent == unpacked / "aiocodec"
    tests = ["tests/test_imports.py", "tests/test_golden.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=unpacked,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_wheels_have_code_weights_page_and_manual_and_nothing_else(distributions):
    _, wheel = distributions
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    code = {name for name in sources() if re.fullmatch(r"aiocodec/.+\.(py|js)", name)}
    weights = {*Manifest.read(ROOT / "weights").entries["files"], "manifest.json", "TRAINING.md"}
    weights = {f"aiocodec/weights/{name}" for name in weights | {"__init__.py"}}
    manual = f"aiocodec-{aiocodec.__version__}.data/data/share/man/man1/aic.1"
    assert packed == code | weights | PAGE | {"aiocodec/py.typed", manual}


WHEEL = """
import sys
sys.path.insert(0, sys.argv[1])
import aiocodec
from aiocodec.pretrained import Manifest
manifest = Manifest.read()
manifest.load_frozen(manifest.models[0])
print(aiocodec.__path__[0], manifest.folder, manifest.models[0])
"""


def test_wheels_work(distributions, tmp_path, python):
    _, wheel = distributions
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    place, folder, model = python(WHEEL, tmp_path).split()
    assert Path(place) == tmp_path / "aiocodec" and Path(folder) == tmp_path / "aiocodec/weights"
    assert model == Manifest.read().models[0]


def test_metadata(distributions):
    _, wheel = distributions
    with zipfile.ZipFile(wheel) as archive:
        (info,) = (name[:-8] for name in archive.namelist() if name.endswith("METADATA"))
        metadata = Parser().parsestr(archive.read(f"{info}METADATA").decode())
        scripts = configparser.ConfigParser()
        scripts.read_string(archive.read(f"{info}entry_points.txt").decode())
        licence = archive.read(f"{info}licenses/LICENSE")
    assert (metadata["Name"], metadata["Version"]) == ("aiocodec", aiocodec.__version__)
    assert metadata["License-Expression"] == "MIT" and licence == (ROOT / "LICENSE").read_bytes()
    assert metadata["Requires-Python"] == ">=3.10"
    extras = {"light", "torch", "train", "evaluate", "heif", "jxl", "raw", "ray", "dev", "fuzz"}
    assert set(metadata.get_all("Provides-Extra")) == extras
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert not [line for line in needed if line.startswith("torch")]
    assert metadata["Summary"] and metadata.get_payload() == (ROOT / "README.md").read_text("utf-8")
    (module, function) = scripts["console_scripts"]["aic"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_what_readme_and_documents_point_to_is_there():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
            assert ":" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_readme_knows_every_command():
    text = (ROOT / "README.md").read_text("utf-8")
    for name in cli.commands:
        assert f"aic {name}" in text, name


# --------------------------------------------------------------------------- types


def test_every_public_name_is_there():
    assert len(set(aiocodec.__all__)) == len(aiocodec.__all__)
    for name in aiocodec.__all__:
        assert getattr(aiocodec, name) is not None, name
    with pytest.raises(AttributeError, match="nonsense"):
        aiocodec.nonsense  # noqa: B018


def test_the_client_uses_every_public_name():
    used = {
        node.attr
        for node in ast.walk(ast.parse(CLIENT.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "aiocodec"
    }
    assert used >= set(aiocodec.__all__)


def test_a_strict_type_checker_accepts_the_client(distributions, tmp_path):
    """All that it asserts of the types in the wheel holds, and what it does wrong on purpose is found."""
    if not importlib.util.find_spec("mypy"):
        pytest.skip("needs mypy")
    _, wheel = distributions
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    options = ["--strict", "--config-file=", "--cache-dir", str(ROOT / ".mypy_cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(CLIENT)],
        cwd=CLIENT.parent,  # in the folder of the project, mypy would look at that
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_the_client_runs(photo):
    import client

    rgb = photo.rgb[:40, :60].copy()
    client.errors()
    assert client.functions(rgb).shape == rgb.shape
    picture = client.a_codec(rgb)
    assert picture.rgb.shape == rgb.shape and (picture.alpha == rgb[..., 0]).all()
