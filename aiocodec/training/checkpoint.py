"""Weights and checkpoints on disk: everything of training that is read and written, but its log.

A checkpoint is one file with all that a run needs to go on. Weights travel as safetensors, in parts
of at most PART_BYTES. Whoever reads sees the old file or the new one, never half of it.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aiocodec.config import ModelConfig
from aiocodec.errors import Diverged, TrainingError
from aiocodec.model import Model
from aiocodec.training.config import TrainConfig
from aiocodec.training.run import Run
from aiocodec.transforms import Transforms

PART_BYTES = 14 << 20  # of tensors in a file, so that each can travel where large files cannot
_COUNTERS = ("step", "usual_norm", "seconds", "pixels")  # of a run, in its checkpoint


def write_shards(
    folder: Path,
    stem: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write tensors of the CPU, in the order of their names, as safetensors files into a folder
    that exists, and give their paths. A part holds PART_BYTES at most, or a single tensor.

    Without metadata one part is STEM.safetensors and several are STEM-0.safetensors and so on:
    some manifest has to name them. With metadata they find together by themselves: even a single
    part has its number, and all carry the metadata, how many `parts` there are, and a random
    `set`, which tells them from those of another time.
    """
    from safetensors.torch import save

    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for key in sorted(tensors):
        size += tensors[key].nbytes
        if size > PART_BYTES and parts[-1]:
            parts.append({})
            size = tensors[key].nbytes
        parts[-1][key] = tensors[key].contiguous()
    names = [f"{stem}-{i}" for i in range(len(parts))]
    written = None
    if metadata is not None:
        written = {**metadata, "parts": str(len(parts)), "set": os.urandom(8).hex()}
    elif len(parts) == 1:
        names = [stem]
    paths = [folder / f"{name}.safetensors" for name in names]
    for path, part in zip(paths, parts, strict=True):
        path.with_suffix(".tmp").write_bytes(save(part, written))
    for path in paths:
        os.replace(path.with_suffix(".tmp"), path)
    return paths


def save_checkpoint(run: Run, path: Path) -> None:
    """Write a checkpoint. Diverged, and nothing written, where a weight is not finite."""
    weights = [*run.model.parameters(), *run.average.parameters()]
    if not bool(torch.stack([w.detach().isfinite().all() for w in weights]).all()):
        raise Diverged(f"weights are not finite at step {run.step}, nothing was saved")
    state = {
        "model_config": run.model.config.to_dict(),
        "train_config": asdict(run.config),
        "model": run.model.state_dict(),
        "average": run.average.state_dict(),
        "optimisers": [optimiser.state_dict() for optimiser in run.optimisers],
        "counters": {key: getattr(run, key) for key in _COUNTERS},
        "random": (run.rng.device.type, run.rng.get_state(), _torch_random(run.rng.device)),
    }
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_run(
    path: Path, variant: ModelConfig, config: TrainConfig, device: str, branch: bool = False
) -> Run:
    """A run that goes on from a checkpoint, by its own config, and on the same kind of device as if it had
    not stopped; with `branch` it leaves the run of the checkpoint, so that it may be annealed where that
    was not.

    Raises TrainingError for a damaged checkpoint, for one of another network than `variant` or a
    shallower form of it, and for one of a branch that is to go on as a run without an end, or the
    other way round.
    """
    state = _read_checkpoint(path, device)
    shape = ModelConfig.from_dict(state["model_config"])
    if shape != variant.shallow(shape.depth):
        raise TrainingError(f"{path} is a checkpoint of another model")
    annealed = state["train_config"].get("anneal") is not None
    if annealed and branch:
        raise TrainingError(f"{path} is that of a branch, which is annealed already")
    if not branch and annealed != (config.anneal is not None):
        kinds = ("a run without an end", "an annealed branch")
        raise TrainingError(f"{path} is that of {kinds[annealed]}, not of {kinds[not annealed]}")
    run = Run.create(Model(shape).to(device), config)
    try:
        run.model.load_state_dict(state["model"])
        run.average.load_state_dict(state["average"])
        for optimiser, saved in zip(run.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
            for group in optimiser.param_groups:
                if "fused" in group:  # as this device has it, not that of the checkpoint
                    group["fused"] = group["params"][0].is_cuda
    except (RuntimeError, ValueError):
        raise TrainingError(f"the weights in {path} are those of another network") from None
    for key in _COUNTERS:
        setattr(run, key, state["counters"][key])
    run.seed()
    kind, generator, of_torch = state.get("random", (None, None, None))
    if kind == run.rng.device.type and not branch:
        run.rng.set_state(generator.cpu())
        _torch_random(run.rng.device, of_torch.cpu())
    return run


def _torch_random(device: torch.device, state: Tensor | None = None) -> Tensor:
    """The state of torch's own generator for a device, after it was set to `state` where one is given."""
    cuda = device.type == "cuda"
    if state is not None:
        torch.cuda.set_rng_state(state, device) if cuda else torch.set_rng_state(state)
    return torch.cuda.get_rng_state(device) if cuda else torch.get_rng_state()


def history(path: Path) -> tuple[float, tuple[float, float] | None]:
    """The megapixels that the run of a checkpoint has been shown, and where it is annealed, if it is
    (see `TrainConfig.anneal`). TrainingError for a checkpoint that is damaged or not there."""
    state = _read_checkpoint(path)
    anneal = state["train_config"].get("anneal")
    return state["counters"]["pixels"] / 1e6, anneal and tuple(anneal)


def seen(source: Path) -> float:
    """The megapixels that the weights of `load_weights`, also for the errors, have been shown; 0 where the
    weights in a folder do not say."""
    checkpoint = source / "checkpoint.pt" if source.is_dir() else source
    return history(checkpoint)[0] if checkpoint.exists() else _read_parts(source)[3]


def save_weights(
    model: Model, folder: Path, progress: float = 1.0, megapixels: float = 0.0
) -> list[Path]:
    """Write all weights of a model as `weights-N.safetensors`, the transforms in float16, the
    entropy model, which is yet to be frozen, in float32. `progress` is that of the annealing, in
    0..1, `megapixels` what the model has been shown."""
    tensors = {f"transforms.{k}": v for k, v in stored(model.transforms).items()}
    tensors |= {f"entropy.{k}": v.detach().cpu() for k, v in model.entropy.state_dict().items()}
    metadata = {
        "config": json.dumps(model.config.to_dict()),
        "progress": str(progress),
        "megapixels": str(round(megapixels, 4)),
    }
    return write_shards(folder, "weights", tensors, metadata)


def stored(transforms: Transforms) -> dict[str, Tensor]:
    """The transforms as they are stored, by name, on the CPU: trained weights in float16, constants in
    float32."""
    weights = {
        key: value.detach().to("cpu", torch.float16) for key, value in transforms.named_parameters()
    }
    return weights | {key: value.detach().cpu() for key, value in transforms.named_buffers()}


def load_weights(source: Path, annealed: bool = False) -> Model:
    """The averaged weights of a run as a float model: from its checkpoint.pt, from its folder, or,
    where the folder has no checkpoint, from the weights-N.safetensors in it.

    Raises TrainingError where there are none, or not all, where they are damaged or those of a
    network that this version does not build, and with `annealed` where they are not those of a branch
    that has come to its end.
    """
    checkpoint = source / "checkpoint.pt" if source.is_dir() else source
    if checkpoint.exists():
        state = _read_checkpoint(checkpoint)
        config, tensors = state["model_config"], state["average"]
        shown, span = history(checkpoint)
        progress = (shown - span[0]) / (span[1] - span[0]) if span else 0.0
    else:
        config, tensors, progress, _ = _read_parts(source)
    if annealed and progress < 1:
        raise TrainingError(
            f"the annealing of {source} is at {progress:.0%}: first `aic train anneal` a branch of it"
        )
    model = Model(ModelConfig.from_dict(config))
    try:
        model.load_state_dict(tensors)
    except RuntimeError:
        raise TrainingError(f"the weights in {source} are those of another network") from None
    return model.eval().requires_grad_(False)


def _read_parts(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], float, float]:
    """Config, tensors, progress and megapixels of the weights in a folder."""
    from safetensors import SafetensorError, safe_open

    paths = sorted(folder.glob("weights-*.safetensors"))
    if not paths:
        raise TrainingError(f"there is no checkpoint and there are no weights in {folder}")
    tensors: dict[str, Tensor] = {}
    metadata = []
    for path in paths:
        try:
            with safe_open(path, "pt") as file:
                metadata.append(file.metadata())
                tensors |= {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            raise TrainingError(f"{path} is damaged") from None
    first = metadata[0]
    if len(paths) != int(first["parts"]) or any(other != first for other in metadata):
        raise TrainingError(f"the weights in {folder} are not whole, or not of one time")
    progress, megapixels = float(first["progress"]), float(first.get("megapixels", 0))
    return json.loads(first["config"]), tensors, progress, megapixels


def _read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        ModelConfig.from_dict(state["model_config"])
        return state
    except OSError as fault:
        raise TrainingError(f"{path} cannot be read: {fault.strerror}") from None
    except Exception as fault:  # whatever unpickling a damaged file raises
        raise TrainingError(
            f"{path} is not a checkpoint, or is damaged ({type(fault).__name__})"
        ) from None
