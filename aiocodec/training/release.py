"""Releasing a model: a trained one becomes files of weights that the codec loads.

The manifest and the names of the files are those that `aiocodec.pretrained` describes. Here alone
probabilities become the integer tables of the range coder.
"""

import json
import math
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from aiocodec.config import STRIDE
from aiocodec.degrade import degrade
from aiocodec.entropy.frozen import FrozenEntropyModel, Tables, freeze
from aiocodec.entropy.model import (
    SCALES,
    Z_MAX,
    EntropyModel,
    FactorisedPrior,
    quality_of_level,
    scale_values,
)
from aiocodec.errors import ModelError
from aiocodec.latents import LatentCoder
from aiocodec.model import Model
from aiocodec.pretrained import DENSITIES, Manifest
from aiocodec.rangecoder import MAX_MAGNITUDE, PRECISION
from aiocodec.training.checkpoint import stored, write_shards
from aiocodec.training.config import TrainConfig
from aiocodec.training.data import Photographs
from aiocodec.training.export import require_onnx, synthesis_halo, synthesis_onnx
from aiocodec.transforms import Transforms

_TOTAL = 1 << PRECISION


# Of `fitted`: patches that are coded, their sides at most, and for how many symbols the table before counts.
FITTED_PATCHES, FITTED_SIDE, PRIOR = 600, 512, 1000.0


def release(
    model: Model,
    folder: Path,
    frozen: FrozenEntropyModel | None = None,
    photographs: Photographs | None = None,
) -> FrozenEntropyModel:
    """Write a trained model into a folder of weights, and make it the default of the manifest.

    Its entropy model is frozen, with tables `fitted` to `photographs` where there are some, unless
    `frozen` is given: the one that it was trained against.
    Files that no model of the manifest uses any more are removed. ModelError, and nothing written,
    where a weight is not finite in float16; RuntimeMissing without the package onnx.
    """
    require_onnx()
    if frozen is None:
        frozen = frozen_of(model.entropy)
        if photographs is not None:
            frozen = fitted(frozen, model.transforms, photographs)
    transforms = stored(model.transforms) | {
        DENSITIES + key: value.detach().cpu() for key, value in densities(model.entropy).items()
    }
    if not all(bool(torch.isfinite(value).all()) for value in transforms.values()):
        raise ModelError("the trained weights are not finite in float16")

    folder.mkdir(parents=True, exist_ok=True)
    try:
        entries = json.loads((folder / "manifest.json").read_text("utf-8"))
    except OSError:
        entries = {"models": {}, "files": {}}

    def write(stem: str, tensors: Mapping[str, Tensor]) -> list[str]:
        paths = write_shards(folder, stem, tensors)
        for path in paths:
            data = path.read_bytes()
            entries["files"][path.name] = {"bytes": len(data), "sha256": sha256(data).hexdigest()}
        return [path.name for path in paths]

    name, fingerprint = model.config.name, frozen.fingerprint.hex()
    entry = {
        "config": model.config.to_dict(),
        "fingerprint": fingerprint,
        "transforms": write(name, transforms),
        "entropy": write(
            f"entropy-{fingerprint}", {k: torch.tensor(v) for k, v in frozen.tensors.items()}
        ),
    }
    entries["models"] = {name: entry, **{k: v for k, v in entries["models"].items() if k != name}}
    _write_manifest(folder, entries)
    export(folder, name)
    return frozen


def export(folder: Path, name: str) -> Path:
    """Write g_s of a model in a folder of weights beside it, as an ONNX graph; where it is.

    Raises ModelError for weights that are missing or damaged, RuntimeMissing without the package onnx.
    """
    manifest = Manifest.read(folder)
    g_s = manifest.load(name).transforms().g_s
    data = synthesis_onnx(g_s)
    path, entries = folder / f"{name}-g_s.onnx", manifest.entries
    path.write_bytes(data)
    entries["files"][path.name] = {"bytes": len(data), "sha256": sha256(data).hexdigest()}
    entries["models"][name]["synthesis"] = {"file": path.name, "halo": synthesis_halo(g_s)}
    _write_manifest(folder, entries)
    return path


def _write_manifest(folder: Path, entries: dict[str, Any]) -> None:
    """Write a manifest, and remove the files that no model of it uses."""
    manifest = Manifest(folder, entries)
    used = {file for name in manifest.models for file in manifest.files(name)}
    for file in set(entries["files"]) - used:
        (folder / file).unlink(missing_ok=True)
        del entries["files"][file]
    (folder / "manifest.json").write_text(json.dumps(entries, indent=1) + "\n", "utf-8")


def densities(entropy: EntropyModel) -> dict[str, Tensor]:
    """What a frozen model has as tables only: the densities, and what the quality says."""
    integers = (entropy.h_s, entropy.fusion, entropy.adaptors, entropy.body, entropy.head)
    frozen = {id(p) for network in integers for p in network.parameters()}
    return {key: p for key, p in entropy.named_parameters() if id(p) not in frozen}


def frozen_of(entropy: EntropyModel) -> FrozenEntropyModel:
    """A trained entropy model with the tables of its densities, as integers."""
    tables_y = gaussian_tables(scale_values(), *entropy.tail_shape)
    assert len(tables_y[1]) == SCALES
    config = entropy.config
    levels = quality_of_level(torch.arange(config.quality_levels).double(), config).tolist()
    return freeze(entropy, tables_y, _prior_tables(entropy.prior_z, levels))


@torch.no_grad()
def fitted(
    frozen: FrozenEntropyModel,
    transforms: Transforms,
    photographs: Photographs,
    patches: int = FITTED_PATCHES,
) -> FrozenEntropyModel:
    """The same with tables of y by what was coded with each: symbols of patches of photographs, spoiled
    as in training, at all qualities, counted as if those of both signs were one. (What training learns
    is a density of latents with uniform noise, and one shape of it for all scales.) A table that was
    hardly used stays about as it was. ImageError where all photographs are smaller than 64x64.
    """
    coder = LatentCoder(frozen)
    frequencies, lengths, _ = frozen.tables("y")
    used = np.zeros(len(frequencies))
    rng = torch.Generator(photographs.pixels.device).manual_seed(0)
    side = max(STRIDE, min(FITTED_SIDE, photographs.largest // STRIDE * STRIDE))
    device = next(transforms.parameters()).device
    for _ in range(patches):
        clean, depth = photographs.batch(1, side, rng)
        x = degrade(clean, rng, TrainConfig.clean, depth).to(device)
        quality = int(torch.randint(101, (1,), generator=rng, device=rng.device))
        y = transforms.g_a(x, torch.tensor([float(quality)], device=device))
        z = transforms.h_a(y)
        for symbols, indexes in coder.symbols(y[0].cpu(), z[0].cpu(), quality):
            used += coder.tables_y.used(symbols, indexes)
    ends = np.cumsum(lengths)[:-1]
    tables = []
    for table, counts in zip(np.split(frequencies, ends), np.split(used, ends), strict=True):
        counts[:-1] = (counts[:-1] + counts[-2::-1]) / 2
        tables.append(quantise(counts + PRIOR * table / _TOTAL) if counts.any() else table)
    return FrozenEntropyModel.read(
        {**frozen.tensors, "tables_y.frequencies": np.concatenate(tables)}
    )


def _prior_tables(prior: FactorisedPrior, qualities: list[float]) -> Tables:
    """The arguments of `Tables` for z, by quality and then channel: each reaches from the first symbol
    that is likelier than 2^-20 to the last, and its escape gets the rest of the mass."""
    tables, lows = [], []
    for row in np.concatenate([prior.pmf(quality) for quality in qualities]):
        likely = np.flatnonzero(row > min(2.0**-20, row.max() / 2))
        mass = row[likely[0] : likely[-1] + 1]
        tables.append(quantise(np.append(mass, max(0.0, 1 - mass.sum()))))
        lows.append(likely[0] - Z_MAX)
    lengths = np.array([len(table) for table in tables], dtype=np.int32)
    return np.concatenate(tables), lengths, np.array(lows, dtype=np.int32)


def quantise(probabilities: ArrayLike) -> NDArray[np.int32]:
    """Integer frequencies for a table, from probabilities that need not be normalised.

    Equal probabilities get equal frequencies, but for the (first) most probable entry, which takes
    the remainder of the rounding. Tables are shipped as the integers that this gives.

    Args:
        probabilities: float [n], 2 <= n <= 2 * MAX_MAGNITUDE + 2, finite, >= 0, not all 0.

    Returns:
        int32 [n], each >= 1, with sum exactly 1 << PRECISION.

    Raises:
        ValueError: the probabilities are not as described.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 1 or not 2 <= len(p) <= 2 * MAX_MAGNITUDE + 2:
        raise ValueError(f"probabilities have the shape {p.shape}")
    total = p.sum()
    if not (np.isfinite(total) and p.min() >= 0 and total > 0):
        raise ValueError("probabilities must be finite and >= 0, with a sum > 0")
    frequencies: NDArray[np.int32] = 1 + np.floor(p / total * (_TOTAL - len(p))).astype(np.int32)
    frequencies[np.argmax(p)] += _TOTAL - frequencies.sum(dtype=np.int64)
    return frequencies


def gaussian_tables(
    scales: ArrayLike, tail_weight: float = 0.0, tail_ratio: float = 1.0
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Tables of zero-mean Gaussians, each symbol k standing for the interval k - 1/2 .. k + 1/2.

    With a `tail_weight` each is mixed with a Gaussian `tail_ratio` times as wide, for the outliers.
    A table reaches to 5 standard deviations (of the wider one) on both sides; the rest of the mass,
    less than 6e-7, is its escape's, which gets 2^-18 besides. Tables are shipped as integers
    because math.erfc may differ between machines.

    Args:
        scales: float [T], standard deviations, > 0 and, times tail_ratio, at most
            MAX_MAGNITUDE / 5.
        tail_weight: 0..1.
        tail_ratio: at least 1.

    Returns:
        The arguments of `Tables`: frequencies [sum(lengths)], lengths [T], lows [T].

    Raises:
        ValueError: a number is not as described.
    """
    if not (0 <= tail_weight <= 1 <= tail_ratio):
        raise ValueError(f"a tail of weight {tail_weight} and ratio {tail_ratio} is impossible")
    tables = []
    for scale in np.asarray(scales, dtype=np.float64).tolist():
        if not 0 < scale * tail_ratio <= MAX_MAGNITUDE / 5:
            raise ValueError(f"scale {scale} is not in 0..{MAX_MAGNITUDE / 5}")

        def beyond(x: float, scale: float = scale) -> float:
            """The mass above x, accurate far into the tail."""
            narrow = math.erfc(x / (scale * math.sqrt(2))) / 2
            wide = math.erfc(x / (scale * tail_ratio * math.sqrt(2))) / 2
            return (1 - tail_weight) * narrow + tail_weight * wide

        reach = math.ceil(5 * scale * tail_ratio)
        above = [beyond(k + 0.5) for k in range(reach + 1)]
        positive = -np.diff(above)  # of the symbols 1..reach
        mode, tails = 1 - 2 * above[0], 2 * above[reach] + 2.0**-18
        tables.append(quantise(np.concatenate([positive[::-1], [mode], positive, [tails]])))
    lengths = np.array([len(table) for table in tables], dtype=np.int32)
    return np.concatenate(tables), lengths, 1 - lengths // 2
