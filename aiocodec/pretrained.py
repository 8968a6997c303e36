"""The weights that ship with the package: find, verify, load.

`weights/manifest.json` names the models, the default first:

    {"models": {"nano": {"config": {...}, "fingerprint": "<16 hex digits>",
                         "transforms": ["nano.safetensors"], "entropy": ["entropy-<fingerprint>.safetensors"]}},
     "files": {"<name>": {"bytes": ..., "sha256": "..."}}}

A config is that of `config.ModelConfig`. Transforms are float16, `g_a.*`, `h_a.*` and `g_s.*`; beside
them lie in float32, as `entropy.*`, the densities that only training needs. An entropy model is the
integers of `entropy.frozen.FrozenEntropyModel`. Large sets are split into parts. Reading the manifest
needs neither torch nor numpy.
"""

import json
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
    from aiocodec.model import Model
    from aiocodec.transforms import Transforms

DENSITIES = "entropy."  # what the names of the densities begin with, beside those of the transforms


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
            entries = json.loads((folder / "manifest.json").read_text("utf-8"))
            models, files = entries["models"], entries["files"]
            for entry in models.values():
                if len(bytes.fromhex(entry["fingerprint"])) != 8:
                    raise ValueError("a fingerprint is not of 8 bytes")
                for file in (*entry["transforms"], *entry["entropy"]):
                    if Path(file).name != file:
                        raise ValueError(f"{file!r} is no name of a file in the folder")
                    int(files[file]["bytes"]), str(files[file]["sha256"])
            if not models:
                raise ValueError("it names no model")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
            what = f"lacks {fault}" if isinstance(fault, KeyError) else str(fault)
            raise ModelError(f"the manifest of the weights cannot be read: {what}") from None
        return cls(folder, entries)

    @property
    def models(self) -> list[str]:
        """The names of the models, the default first."""
        return list(self.entries["models"])

    def config(self, name: str) -> ModelConfig:
        """The shape of a model; ModelError for one that this version does not know."""
        try:
            return ModelConfig.from_dict(self._entry(name)["config"])
        except (ValueError, TypeError, KeyError, AttributeError) as fault:
            raise ModelError(f"model {name!r} is not of a shape known here: {fault}") from None

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
        return [*entry["transforms"], *entry["entropy"]]

    def weight_bytes(self, name: str) -> int:
        """Bytes of all weight files of a model."""
        return sum(self.entries["files"][file]["bytes"] for file in self.files(name))

    def digest(self, name: str) -> str:
        """A digest of all weights of a model, in hexadecimal."""
        hashes = [self.entries["files"][file]["sha256"] for file in self.files(name)]
        return sha256("".join(hashes).encode()).hexdigest()

    def _entry(self, name: str) -> dict[str, Any]:
        try:
            entry: dict[str, Any] = self.entries["models"][name]
            return entry
        except KeyError:
            known = ", ".join(self.models)
            raise ModelError(f"there are no weights for model {name!r}, only for {known}") from None

    def load(self, name: str) -> "Pretrained":
        """Load and verify a model; ModelError where weights are missing or damaged, or are those of a
        network or a program that this version does not know."""
        from safetensors.torch import load

        entry, config = self._entry(name), self.config(name)
        frozen = self.load_frozen(name)
        if (frozen.program.latents, frozen.program.hyper) != (
            config.entropy.latents,
            config.entropy.hyper,
        ):
            raise ModelError(f"transforms and entropy model of {name!r} do not fit together")
        return Pretrained(config, self._tensors(entry["transforms"], load), frozen)

    def load_frozen(self, name: str) -> "FrozenEntropyModel":
        """The entropy model of a model alone, which needs no torch; errors as of `load`."""
        from safetensors.numpy import load

        from aiocodec.entropy.frozen import FrozenEntropyModel

        frozen = FrozenEntropyModel.read(self._tensors(self._entry(name)["entropy"], load))
        if frozen.fingerprint != self.fingerprint(name):
            raise ModelError(f"the entropy model of {name!r} has another fingerprint than its name")
        return frozen

    def _tensors(self, files: list[str], load: Callable[[bytes], dict[str, Any]]) -> dict[str, Any]:
        """All tensors of files, their bytes verified; `load` is that of safetensors."""
        from safetensors import SafetensorError

        tensors: dict[str, Any] = {}
        for file in files:
            try:
                data = (self.folder / file).read_bytes()
            except OSError as error:
                raise ModelError(f"the weights {file} cannot be read: {error.strerror}") from None
            if sha256(data).hexdigest() != self.entries["files"][file]["sha256"]:
                raise ModelError(f"the weights {file} are damaged (wrong SHA-256)")
            try:
                tensors.update(load(data))
            except (SafetensorError, ValueError, KeyError, TypeError) as fault:
                raise ModelError(f"the weights {file} are no safetensors: {fault}") from None
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

        with torch.device("meta"):
            transforms = Transforms(self.config)
        tensors = {k: v.float() for k, v in self.tensors.items() if not k.startswith(DENSITIES)}
        try:
            transforms.load_state_dict(tensors, assign=True)
        except RuntimeError:
            raise ModelError(
                f"the weights of {self.config.name!r} are of another network"
            ) from None
        return transforms.eval().requires_grad_(False)

    def trainable(self) -> "Model":
        """The whole float model, to be trained on or to be compared with: the transforms as they
        are, the entropy model made of floats again (see `thaw`)."""
        from aiocodec.entropy.frozen import thaw
        from aiocodec.model import Model

        model = Model(self.config)
        model.transforms = self.transforms()
        model.entropy = thaw(self.frozen, self.config.entropy)
        densities = {k.removeprefix(DENSITIES): v for k, v in self.tensors.items()}
        model.entropy.load_state_dict(densities, strict=False)
        return model.requires_grad_(True)
