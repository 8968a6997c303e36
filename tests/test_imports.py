"""The import rule of the layout: imports point down, and every module has a place."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "aiocodec"

# Higher layers may import lower ones; modules of one layer do not know each other.
LAYERS = [
    {"__main__"},
    {"cli.main"},
    {
        "cli.coding",
        "cli.compare",
        "cli.doctor",
        "cli.evaluate",
        "cli.info",
        "cli.man",
        "cli.train",
        "cli.view",
    },
    {"api", "cli.options", "cli.report", "pillow", "ray"},
    {"batch", "manifest"},
    {"places"},
    {"files"},
    {"doctor", "training.benchmark", "training.loop", "training.release"},
    {"evaluate.report", "training.checkpoint", "training.validate"},
    {"evaluate.study", "training.export", "training.run"},
    {"evaluate.codecs", "training.data", "training.muon"},
    {"codec", "light", "evaluate.restorers"},
    {"latents", "pretrained", "search"},
    {"envelope", "hyper", "tiling", "model", "entropy.exact", "entropy.portable"},
    {"transforms", "entropy.frozen"},
    {"entropy.model"},
    {"layers", "entropy.passes", "training.config", "training.cores"},
    {"container", "loading", "rangecoder", "image", "metrics", "degrade"},
    {"decoders", "png", "serving"},
    {"tiff"},
    {"config", "errors", "memory", "signals", "tiles"},
]
LEVEL = {module: len(LAYERS) - i for i, names in enumerate(LAYERS) for module in names}
FREE = {
    f"{package}__init__" for package in ("", "cli.", "training.", "evaluate.", "entropy.")
}  # names, no code
# what a module may not know, though it lies below
ENTROPY = ("model", "exact", "portable", "frozen", "passes")
FORBIDDEN = {(f"entropy.{module}", "rangecoder") for module in ENTROPY} | {
    (f"training.{module}", name)
    for module in ("loop", "benchmark", "checkpoint", "validate", "run", "data", "muon")
    for name in ("rangecoder", "codec", "latents", "pretrained", "training.release")
}
PACKAGES = {"aiocodec"} | {
    f"aiocodec.{name}" for name in ("cli", "entropy", "evaluate", "training")
}
STDLIB_ONLY = {
    "config",
    "container",
    "errors",
    "loading",
    "memory",
    "serving",
    "signals",
    "tiff",
    "tiles",
    "training.config",
}
HEAVY = {"torch", "numpy", "PIL", "constriction", "safetensors", "click"}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts), path


def imports(path):
    """Absolute names of all modules that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (
                f"{node.module}.{alias.name}" if node.module in PACKAGES else node.module
                for alias in node.names
            )


@pytest.mark.parametrize(("name", "path"), list(modules()))
def test_imports_point_down(name, path):
    if name in FREE:
        return
    assert name in LEVEL, f"{name} has no place in the layout"
    for imported in imports(path):
        if not imported.startswith("aiocodec."):
            continue
        target = imported.removeprefix("aiocodec.")
        if target in {"__version__", "weights"}:
            continue
        assert target in LEVEL, f"{name} imports {target}, which has no place in the layout"
        assert LEVEL[target] < LEVEL[name], f"{name} imports {target}, which is not below it"
        assert (name, target) not in FORBIDDEN, f"{name} must not know {target}"


@pytest.mark.parametrize("name", sorted(STDLIB_ONLY))
def test_stdlib_only(name):
    found = {
        imported.split(".")[0] for imported in imports(PACKAGE / f"{name.replace('.', '/')}.py")
    }
    assert not found & HEAVY


def test_every_place_is_taken():
    assert set(LEVEL) | FREE == {name for name, _ in modules()}


@pytest.mark.parametrize(
    ("told", "waiting"), [({}, "passive 0"), ({"OMP_WAIT_POLICY": "active"}, "active -")]
)
def test_threads_wait_asleep_unless_they_are_told_otherwise(python, told, waiting, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    script = """
import os
from aiocodec.loading import loading
with loading("torch"):
    pass
print(os.environ["OMP_WAIT_POLICY"], os.environ.get("GOMP_SPINCOUNT", "-"))
"""
    assert python(script, **told) == f"{waiting}\n"
