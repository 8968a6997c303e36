"""What is installed: every weight file that the manifest names."""

import configparser
import fnmatch
from pathlib import Path

from aiocodec.pretrained import Manifest

ROOT = Path(__file__).parent.parent


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
    assert {path.name for path in (ROOT / "weights").glob("*.safetensors")} == set(files)
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
