"""The weights that ship with the package: find, verify, load.

`weights/manifest.json` names the models, the default first:

    {"models": {"nano": {"config": {...}, "fingerprint": "<16 hex digits>",
                         "transforms": ["nano.safetensors"], "entropy": ["entropy-<fingerprint>.safetensors"],
                         "synthesis": {"file": "nano-g_s.onnx", "halo": 3}}},
     "files": {"<name>": {"bytes": ..., "sha256": "..."}}}

A config is that of `config.ModelConfig`. Transforms are float16, `g_a.*`, `h_a.*` and `g_s.*`; beside
them lie in float32, as `entropy.*`, the densities that only training needs. An entropy model is the
integers of `entropy.frozen.FrozenEntropyModel`. Large sets are split into parts. `synthesis`, which may
be absent, is g_s once more, as an ONNX graph for decoders without torch, and how many elements of y a
tile of it must see around it, null where g_s must see the whole picture; docs/format.md has the details.
Reading the manifest needs neither torch nor numpy.

Whatever the folder holds, what is wrong with it ends in a ModelError of one sentence, and nothing is
as large as a field claims before the files are found to be: the manifest is checked when it is read, a
config when it is asked for, weights when they are loaded, and all of them are trusted from there on.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiocodec.config import ModelConfig
from aiocodec.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from aiocodec.entropy.frozen import FrozenEntropyModel
    from aiocodec.entropy.model import EntropyModel
    from aiocodec.model import Model
    from aiocodec.transforms import Transforms

DENSITIES = "entropy."  # what the names of the densities begin with, beside those of the transforms
MAX_MANIFEST = 1 << 20  # bytes
MAX_CHANNELS = 4096  # of a latent and of a stage, as in programs
MAX_BLOCKS = 64  # in a stage
MAX_HALO = 1024  # elements of y around a tile

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")  # of a model or a file, on any system
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


def _folder() -> Path:
    try:
        from aiocodec import weights
    except ImportError:
        clone = Path(__file__).parent.parent / "weights"  # of the repository, nothing installed
        if (clone / "manifest.json").exists():
            return clone
        raise ModelError("the weights are not installed") from None
    return Path(weights.__path__[0])


@dataclass(frozen=True)
class Manifest:
    """What is in a folder of weights."""

    folder: Path
    entries: dict[str, Any]

    @classmethod
    def read(cls, folder: Path | None = None) -> "Manifest":
        """The manifest of `folder`, by default of the weights in the package; ModelError where there
        is none, or something else."""
        folder = folder or _folder()
        try:
            with open(folder / "manifest.json", "rb") as file:
                text = file.read(MAX_MANIFEST + 1)
            if len(text) > MAX_MANIFEST:
                raise ValueError(f"it is longer than {MAX_MANIFEST} bytes")
            entries = json.loads(text.decode("utf-8"))
            _check(entries)
        except (OSError, ValueError, RecursionError) as fault:
            raise ModelError(
                f"the manifest of the weights cannot be read: {_one_line(fault)}"
            ) from None
        return cls(folder, entries)

    @property
    def models(self) -> list[str]:
        """The names of the models, the default first."""
        return list(self.entries["models"])

    def config(self, name: str) -> ModelConfig:
        """The shape of a model; ModelError for one that this version does not know."""
        entry = self._entry(name)
        try:
            config = ModelConfig.from_dict(entry["config"])
            _check_config(config)
        except Exception as fault:  # JSON of any shape raises nearly everything in there
            what = _one_line(fault)
            raise ModelError(f"model {name!r} is not of a shape known here: {what}") from None
        if config.name != name:
            raise ModelError(f"the shape of model {name!r} is that of another one")
        return config

    def fingerprint(self, name: str) -> bytes:
        """The fingerprint of the entropy model that goes with a model."""
        return bytes.fromhex(self._entry(name)["fingerprint"])

    def for_fingerprint(self, fingerprint: bytes) -> str:
        """The preferred model for files with this fingerprint; ModelError where there is none."""
        for name in self.models:
            if self.fingerprint(name) == fingerprint:
                return name
        raise ModelError(
            f"made with entropy model {fingerprint.hex()}, which this installation does not have"
        )

    def files(self, name: str) -> list[str]:
        """The names of all weight files of a model."""
        entry = self._entry(name)
        graphs = [entry["synthesis"]["file"]] if "synthesis" in entry else []
        return [*entry["transforms"], *entry["entropy"], *graphs]

    def synthesis(self, name: str) -> tuple[bytes, int | None]:
        """g_s of a model as an ONNX graph, its bytes verified, and the halo of its tiles in elements of
        y (None: the whole picture); ModelError where there is none, or a damaged one."""
        entry = self._entry(name)
        if "synthesis" not in entry:
            raise ModelError(f"model {name!r} has no ONNX graph in this installation")
        return self.verified(entry["synthesis"]["file"]), entry["synthesis"]["halo"]

    def weight_bytes(self, name: str) -> int:
        """Bytes of all weight files of a model."""
        return sum(self.entries["files"][file]["bytes"] for file in self.files(name))

    def digest(self, name: str) -> str:
        """A digest of all weights of a model, in hexadecimal; the graph is made of them."""
        entry = self._entry(name)
        files = [*entry["transforms"], *entry["entropy"]]
        hashes = [self.entries["files"][file]["sha256"] for file in files]
        return sha256("".join(hashes).encode()).hexdigest()

    def _entry(self, name: str) -> dict[str, Any]:
        try:
            entry: dict[str, Any] = self.entries["models"][name]
            return entry
        except KeyError:
            known = ", ".join(self.models)
            raise ModelError(f"there are no weights for model {name!r}, only for {known}") from None

    def load(self, name: str) -> "Pretrained":
        """Load and verify a model; ModelError where weights are missing or damaged, are not finite, or
        are those of a network or a program that this version does not know."""
        import torch
        from safetensors.torch import load

        entry, config = self._entry(name), self.config(name)
        frozen = self.load_frozen(name)
        program, claimed = frozen.program, config.entropy
        if any(
            getattr(program, field) != getattr(claimed, field)
            for field in ("latents", "hyper", "order", "quality_levels")
        ):
            raise ModelError(f"transforms and entropy model of {name!r} do not fit together")
        tensors = self._tensors(entry["transforms"], load)
        for tensor in tensors.values():
            if tensor.dtype not in (torch.float16, torch.float32) or tensor.ndim > 4:
                raise ModelError(f"the transforms of {name!r} are of another type or shape")
            if not tensor.isfinite().all():
                raise ModelError(f"the transforms of {name!r} have weights that are no numbers")
        return Pretrained(config, tensors, frozen)

    def load_frozen(self, name: str) -> "FrozenEntropyModel":
        """The entropy model of a model alone, which needs no torch; errors as of `load`."""
        from safetensors.numpy import load

        from aiocodec.entropy.frozen import FrozenEntropyModel

        frozen = FrozenEntropyModel.read(self._tensors(self._entry(name)["entropy"], load))
        if frozen.fingerprint != self.fingerprint(name):
            raise ModelError(f"the entropy model of {name!r} has another fingerprint than its name")
        return frozen

    def verified(self, file: str) -> bytes:
        """The bytes of a weight file; ModelError where it cannot be read, or where its length or its
        hash is not the one in the manifest."""
        entry, path = self.entries["files"][file], self.folder / file
        try:
            if path.stat().st_size != entry["bytes"]:
                raise ModelError(f"the weights {file} are damaged (wrong length)")
            data = path.read_bytes()
        except OSError as error:
            raise ModelError(f"the weights {file} cannot be read: {error.strerror}") from None
        if sha256(data).hexdigest() != entry["sha256"]:
            raise ModelError(f"the weights {file} are damaged (wrong SHA-256)")
        return data

    def _tensors(self, files: list[str], load: Callable[[bytes], dict[str, Any]]) -> dict[str, Any]:
        """All tensors of files, their bytes verified; `load` is that of safetensors."""
        tensors: dict[str, Any] = {}
        for file in files:
            data = self.verified(file)
            try:
                found = load(data)
            except MemoryError:
                raise
            except Exception as fault:  # its own error, and whatever numpy or torch make of a type
                raise ModelError(
                    f"the weights {file} are no safetensors: {_one_line(fault)}"
                ) from None
            if not tensors.keys().isdisjoint(found):
                raise ModelError(f"the weights {file} have a tensor that another part has too")
            tensors |= found
        return tensors


@dataclass(frozen=True)
class Pretrained:
    """A released model: transforms in floating point, an entropy model in integers."""

    config: ModelConfig
    tensors: "dict[str, Tensor]"  # of the transforms, and the densities
    frozen: "FrozenEntropyModel"

    def transforms(self) -> "Transforms":
        """g_a, h_a and g_s in evaluation mode; ModelError where the weights are those of others."""
        import torch

        from aiocodec.transforms import Transforms

        tensors = {k: v.float() for k, v in self.tensors.items() if not k.startswith(DENSITIES)}
        try:
            with torch.device("meta"):
                transforms = Transforms(self.config)
            transforms.load_state_dict(tensors, assign=True)
        except (RuntimeError, ValueError):
            raise ModelError(
                f"the weights of {self.config.name!r} are of another network"
            ) from None
        return transforms.eval().requires_grad_(False)

    def entropy(self) -> "EntropyModel":
        """The entropy model made of floats again (see `thaw`), which has gradients; errors as of
        `transforms`."""
        from aiocodec.entropy.frozen import thaw

        entropy = thaw(self.frozen, self.config.entropy)
        densities = {
            k.removeprefix(DENSITIES): v for k, v in self.tensors.items() if k.startswith(DENSITIES)
        }
        try:
            entropy.load_state_dict(densities, strict=False)
        except RuntimeError:
            raise ModelError(
                f"the densities of {self.config.name!r} are of another network"
            ) from None
        return entropy.eval().requires_grad_(False)

    def trainable(self) -> "Model":
        """The whole float model, to be trained on or to be compared with; errors as of `transforms`."""
        import torch

        from aiocodec.model import Model

        transforms, entropy = self.transforms(), self.entropy()
        with torch.device("meta"):
            model = Model(self.config)
        model.transforms, model.entropy = transforms, entropy
        return model.requires_grad_(True)


# --------------------------------------------------------------------------- what a manifest may say


def _check(entries: Any) -> None:
    """ValueError unless these are the entries of a manifest, but for configs: see `_check_config`."""
    models, files = (_member(entries, key, dict) for key in ("models", "files"))
    for name in (*models, *files):
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name[:40]!r} is no name of a model or of a file in the folder")
    for file in files.values():
        if not 0 < _member(file, "bytes", int) < 1 << 63:
            raise ValueError("a file has an impossible length")
        if not _SHA256.fullmatch(_member(file, "sha256", str)):
            raise ValueError("a SHA-256 is not of 64 hexadecimal digits")
    for model in models.values():
        if not _FINGERPRINT.fullmatch(_member(model, "fingerprint", str)):
            raise ValueError("a fingerprint is not of 16 hexadecimal digits")
        parts = [_member(model, key, list) for key in ("transforms", "entropy")]
        named = [file for part in parts for file in part]
        if "synthesis" in model:
            graph = _member(model, "synthesis", dict)
            named.append(graph.get("file"))
            halo = graph.get("halo", -1)
            if halo is not None and (type(halo) is not int or not 0 <= halo <= MAX_HALO):
                raise ValueError(f"a halo is none, or not in 0..{MAX_HALO}")
        if not all(type(file) is str and file in files for file in named) or not all(parts):
            raise ValueError("a model needs files that are not listed")
    if not models:
        raise ValueError("it names no model")


def _member(entry: Any, key: str, kind: type) -> Any:
    """A member of a JSON object; ValueError where there is none, or one of another type."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if type(value) is not kind:
        raise ValueError(f"it has no member {key!r}, or one of another type than {kind.__name__}")
    return value


def _check_config(config: ModelConfig) -> None:
    """ValueError or TypeError unless every value is of the type that it should be, and small enough to
    be built. JSON's types are checked nowhere else, and `true` passes for 1 where nobody looks."""
    stages, entropy = config.analysis + config.synthesis, config.entropy
    positions = [position for group in entropy.order for row in group for position in row]
    most = {
        MAX_CHANNELS: [*(s.width for s in stages), entropy.latents, entropy.hyper, entropy.width],
        101: [entropy.quality_levels],
        16: [config.gain_stride, *(s.stride for s in stages)],
        15: positions,
        MAX_BLOCKS: [len(s.blocks) for s in stages],
    }
    for limit, numbers in most.items():
        if any(type(number) is not int or not 0 <= number <= limit for number in numbers):
            raise ValueError(f"a number is none, or not in 0..{limit}")
    if any(len(group) != 2 or {len(row) for row in group} != {2} for group in entropy.order):
        raise ValueError("the order of passes is not one for 2x2 cells")
    if any(type(s.blocks) is not tuple for s in stages) or not {
        type(config.lapped),
        type(config.gated),
    } <= {bool}:
        raise ValueError("blocks or lapped are of another type")


def _one_line(fault: BaseException) -> str:
    """What an exception says, as one short line."""
    text = "".join(c if c.isprintable() else " " for c in str(fault))
    return " ".join(text.split())[:160] or type(fault).__name__
