"""The weights that ship with the package: find, verify, load.

`weights/manifest.json` names the models, the default first:

    {"models": {"nano": {"config": {...}, "fingerprint": "<16 hex digits>",
                         "transforms": ["nano.safetensors"], "entropy": ["entropy-<fingerprint>.safetensors"]}},
     "files": {"<name>": {"bytes": ..., "sha256": "..."}}}

Transforms (g_a, h_a, g_s, and the densities in floating point, which only training needs) are
float16; an entropy model is the integers of `entropy.FrozenEntropyModel`. Large sets are split into
parts. Reading the manifest needs neither torch nor numpy.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiocodec.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from aiocodec.entropy import FrozenEntropyModel
    from aiocodec.model import Model


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
        """The manifest of `folder`, by default of the weights in the package."""
        folder = folder or _folder()
        try:
            entries = json.loads((folder / "manifest.json").read_text("utf-8"))
            entries["models"], entries["files"]
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"the manifest of the weights cannot be read: {error}") from None
        return cls(folder, entries)

    @property
    def models(self) -> list[str]:
        """The names of the models, the default first."""
        return list(self.entries["models"])

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

    def weight_bytes(self, name: str) -> int:
        """Bytes of all weight files of a model."""
        entry = self._entry(name)
        return sum(
            self.entries["files"][file]["bytes"] for file in entry["transforms"] + entry["entropy"]
        )

    def digest(self, name: str) -> str:
        """A digest of all weights of a model, in hexadecimal."""
        from hashlib import sha256

        entry = self._entry(name)
        hashes = [
            self.entries["files"][f]["sha256"] for f in entry["transforms"] + entry["entropy"]
        ]
        return sha256("".join(hashes).encode()).hexdigest()

    def _entry(self, name: str) -> dict[str, Any]:
        try:
            entry: dict[str, Any] = self.entries["models"][name]
            return entry
        except KeyError:
            known = ", ".join(self.models)
            raise ModelError(f"there are no weights for model {name!r}, only for {known}") from None

    def _tensors(self, files: list[str]) -> "dict[str, Tensor]":
        from hashlib import sha256

        from safetensors.torch import load

        tensors: dict[str, Tensor] = {}
        for file in files:
            try:
                data = (self.folder / file).read_bytes()
            except OSError as error:
                raise ModelError(f"the weights {file} cannot be read: {error.strerror}") from None
            if sha256(data).hexdigest() != self.entries["files"][file]["sha256"]:
                raise ModelError(f"the weights {file} are damaged (wrong SHA-256)")
            tensors.update(load(data))
        return tensors

    def load(self, name: str) -> "Pretrained":
        """Load and verify a model; ModelError where weights are missing or damaged."""
        from aiocodec.entropy import FrozenEntropyModel
        from aiocodec.model import ModelConfig

        entry = self._entry(name)
        config = ModelConfig.from_dict(entry["config"])
        frozen = FrozenEntropyModel(
            config.latents, config.hyper, config.prior_width, self._tensors(entry["entropy"])
        )
        if frozen.fingerprint != self.fingerprint(name):
            raise ModelError(f"the entropy model of {name!r} has another fingerprint than its name")
        return Pretrained(config, self._tensors(entry["transforms"]), frozen)


@dataclass(frozen=True)
class Pretrained:
    """A released model: transforms in floating point, an entropy model in integers."""

    config: Any  # model.ModelConfig
    transforms: "dict[str, Tensor]"
    frozen: "FrozenEntropyModel"

    def transforms_only(self) -> "Model":
        """g_a, h_a and g_s in evaluation mode; what lies in `entropy` holds no numbers."""
        import torch

        from aiocodec.model import Model

        with torch.device("meta"):
            model = Model(self.config)
        tensors = {name: tensor.float() for name, tensor in self.transforms.items()}
        missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
        if unexpected or any(not name.startswith("entropy.") for name in missing):
            raise ModelError(f"the weights of {self.config.name!r} do not fit this version")
        return model.eval().requires_grad_(False)

    def trainable(self) -> "Model":
        """The whole float model, to be trained on or to be compared with: the transforms as they
        are, the entropy model made of floats again (see FrozenEntropyModel.thaw)."""
        model = self.transforms_only()
        entropy = self.frozen.thaw()
        densities = {
            name.removeprefix("entropy."): tensor
            for name, tensor in self.transforms.items()
            if name.startswith("entropy.")
        }
        entropy.load_state_dict(densities, strict=False)
        model.entropy = entropy
        return model.requires_grad_(True)
