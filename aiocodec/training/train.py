"""The training loop: rate-distortion loss on degraded photographs, within a budget of minutes.

    loss = lmbda(quality) * MSE(x_hat, clean) + bpp(y) + bpp(z)              (paper, equation 4)

The quality is drawn per image, so one network learns the whole range of rates. Matrices are trained
by Muon, everything else by AdamW; both learning rates stay constant for the first half of the budget
and fall to zero over the second. An un-annealed network swings by decibels and is never released.

A run writes into its folder `checkpoint.pt` (everything needed to go on) and `log.jsonl` (one object
per report). It imports no entropy coder.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aiocodec.errors import AicError
from aiocodec.metrics import psnr_from_mse
from aiocodec.model import STRIDE, VARIANTS, Model, ModelConfig, lmbda
from aiocodec.training.data import Patches, load_folder
from aiocodec.training.degrade import degrade, gaussian_noise


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults are for two CPU cores."""

    minutes: float = 30.0  # wall-clock budget of the optimisation, validation not counted
    phases: tuple[tuple[float, int, int], ...] = ((0.0, 128, 8), (0.67, 192, 4))
    # (share of the budget at which it begins, patch side in pixels, batch); sides multiples of 64
    lr_matrix: float = 3e-3  # Muon
    lr_other: float = 6e-4  # AdamW
    warmup: int = 100  # steps
    clip: float = 1.0  # gradient norm
    spike: float = 8.0  # a gradient norm this many times the usual one skips the step
    ema: float = 0.999  # decay of the averaged weights, which are validated and released
    clean: float = 0.2  # probability of an input without degradation
    seed: int = 0
    report_seconds: float = 20.0
    checkpoint_seconds: float = 60.0
    validate_minutes: float = 20.0

    def __post_init__(self) -> None:
        if any(side % STRIDE for _, side, _ in self.phases):
            raise ValueError(f"patch sides must be multiples of {STRIDE}")


class Muon(torch.optim.Optimizer):
    """Momentum whose step is orthogonalised by five Newton-Schulz iterations (Jordan et al. 2024).

    For convolutions, which are taken as matrices [outputs, inputs * kernel area]. Matrices of equal
    shape are orthogonalised together.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                by_shape.setdefault((update.shape[0], update.shape[1]), []).append((p, update))
            for (rows, columns), items in by_shape.items():
                updates = orthogonalise(torch.stack([update for _, update in items]))
                scale = math.sqrt(max(1.0, rows / columns))
                for (p, _), update in zip(items, updates, strict=True):
                    p.add_(update.view(p.shape), alpha=-group["lr"] * scale)


def orthogonalise(g: Tensor) -> Tensor:
    """Matrices [K, m, n] with all singular values moved to about 1 (0.7 to 1.2)."""
    x = g.bfloat16() if g.is_cuda else g.float()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).to(g.dtype)


def optimisers(model: Model, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for every convolution with at least 16 inputs, AdamW for the rest and for the linear
    shortcuts, which start as a good transform already."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        is_matrix = p.ndim == 4 and p.shape[1] >= 16 and ".linear." not in name
        (matrices if is_matrix else others).append(p)
    adamw = torch.optim.AdamW(others, config.lr_other, betas=(0.9, 0.99), weight_decay=0.0)
    return [Muon(matrices, config.lr_matrix), adamw]


def rate_distortion(
    model: Model, clean: Tensor, degraded: Tensor, quality: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """loss (mean over the batch), bpp and MSE on [0, 1] (per image)."""
    bf16 = torch.autocast("cuda", torch.bfloat16) if clean.is_cuda else nullcontext()
    with bf16:
        y = model.g_a(degraded, quality)
    y = y.float()
    y_hat, likelihoods_y, likelihoods_z = model.entropy(y, model.h_a(y))
    with bf16:
        x_hat = model.g_s(y_hat, quality)
    mse = (x_hat.float() - clean).square().flatten(1).mean(1)
    bits = sum(-p.log2().flatten(1).sum(1) for p in (likelihoods_y, likelihoods_z))
    bpp = bits / (clean.shape[-1] * clean.shape[-2])
    return (lmbda(quality) * mse + bpp).mean(), bpp, mse


@torch.no_grad()
def validate(
    model: Model,
    images: list[Tensor],
    qualities: tuple[int, ...] = (10, 50, 90),
    sigmas: tuple[int, ...] = (0, 25),
) -> list[dict[str, float]]:
    """Mean bpp (from likelihoods of rounded symbols) and mean PSNR of 8-bit pixels for clean images
    uint8 [3, H, W], cropped to multiples of 64, and for the same with seeded noise."""
    rows = []
    for sigma in sigmas:
        for quality in qualities:
            results = []
            for seed, image in enumerate(images):
                height, width = (side // STRIDE * STRIDE for side in image.shape[1:])
                clean = image[None, :, :height, :width].float() / 255
                rng = torch.Generator(clean.device).manual_seed(seed)
                x = gaussian_noise(clean, sigma, rng) if sigma else clean
                x = x.contiguous(memory_format=torch.channels_last)
                out = model(x, torch.tensor([float(quality)], device=clean.device), noise=False)
                x_hat = (out.x_hat.clamp(0, 1) * 255).round() / 255
                mse = (x_hat - clean).square().mean().item()
                results.append((out.bpp().item(), psnr_from_mse(mse)))
            bpp, psnr = (sum(column) / len(column) for column in zip(*results, strict=True))
            rows.append(
                {"sigma": sigma, "quality": quality, "bpp": round(bpp, 4), "psnr": round(psnr, 3)}
            )
    return rows


class Diverged(AicError):
    """The loss exploded or stopped being a number; the last checkpoint is good."""


@dataclass
class Run:
    """A training run: weights, their average, optimisers and how far it has come."""

    model: Model
    average: Model
    config: TrainConfig
    optimisers: list[torch.optim.Optimizer]
    step: int = 0
    usual_norm: float = 0.0  # running mean of the gradient norm, before clipping
    seconds: float = 0.0  # of optimisation so far
    patches: int = 0
    pixels: int = 0

    @classmethod
    def create(cls, model: Model, config: TrainConfig) -> "Run":
        average = Model(model.config).to(next(model.parameters()).device)
        average.load_state_dict(model.state_dict())
        average = average.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        average = average.requires_grad_(False)
        return cls(model, average, config, optimisers(model, config))

    @property
    def progress(self) -> float:
        return min(1.0, self.seconds / (60 * self.config.minutes))

    def update(self, clean: Tensor, rng: torch.Generator) -> tuple[float, float, float] | None:
        """One step on a batch; mean loss, bpp and MSE, or None where the step was skipped: not
        finite, or a spike of the gradient."""
        config = self.config
        degraded = degrade(clean, rng, config.clean)
        quality = torch.rand(len(clean), generator=rng, device=clean.device) * 100
        loss, bpp, mse = rate_distortion(self.model, clean, degraded, quality)
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        if not (loss.isfinite() and norm.isfinite()):
            return None
        if self.step > config.warmup and norm > config.spike * self.usual_norm:
            return None
        weight = 0.01 if self.step > config.warmup else 0.1
        self.usual_norm += weight * (norm.item() - self.usual_norm)
        factor = min(1.0, (self.step + 1) / config.warmup)
        if self.progress > 0.5:
            factor *= 0.5 + 0.5 * math.cos(math.pi * (2 * self.progress - 1))
        for optimiser, lr in zip(self.optimisers, (config.lr_matrix, config.lr_other), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = lr * factor
            optimiser.step()
        self.step += 1
        decay = min(config.ema, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(  # type: ignore[attr-defined]
                list(self.average.parameters()), list(self.model.parameters()), 1 - decay
            )
        return loss.item(), bpp.mean().item(), mse.mean().item()

    def save(self, path: Path) -> None:
        """Write a checkpoint; a reader sees the old one or the new one, never a part."""
        state = {
            "model_config": self.model.config.to_dict(),
            "train_config": asdict(self.config),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "counters": {
                k: getattr(self, k) for k in ("step", "usual_norm", "seconds", "patches", "pixels")
            },
        }
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of the same model; AicError for one of another."""
        state = torch.load(
            path, map_location=next(self.model.parameters()).device, weights_only=True
        )
        if ModelConfig.from_dict(state["model_config"]) != self.model.config:
            raise AicError(f"{path} is a checkpoint of another model")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        for key, value in state["counters"].items():
            setattr(self, key, value)


def load_average(path: Path) -> tuple[Model, dict[str, Any]]:
    """The averaged weights of a checkpoint as a float model, and its counters."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = Model(ModelConfig.from_dict(state["model_config"]))
    model.load_state_dict(state["average"])
    return model.eval().requires_grad_(False), state["counters"]


def _batches(images: list[Tensor], run: Run) -> Iterator[Tensor]:
    patches = Patches(images, seed=run.config.seed + run.step)
    while run.progress < 1:
        _, side, count = [phase for phase in run.config.phases if phase[0] <= run.progress][-1]
        yield patches.batch(count, side).contiguous(memory_format=torch.channels_last)


def train(
    folder: Path,
    output: Path,
    variant: str = "nano",
    config: TrainConfig = TrainConfig(),
    *,
    validation: Path | None = None,
    start: Model | None = None,
    device: str = "cpu",
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Run:
    """Train on the photographs of `folder` until the budget is spent, going on from
    `output/checkpoint.pt` where there is one, else from `start`, else from scratch.

    `report` gets every row of the log. Raises ImageError for a folder without images, Diverged after
    twenty skipped steps in a row.
    """
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    model = start if start is not None else Model(VARIANTS[variant])
    model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = Run.create(model.requires_grad_(True).train(), config)
    checkpoint = output / "checkpoint.pt"
    if checkpoint.exists():
        run.load(checkpoint)
    images = load_folder(folder, device)
    held_out = load_folder(validation, device, limit=16) if validation else []
    rng = torch.Generator(device).manual_seed(config.seed + 1 + run.step)

    def log(row: dict[str, Any]) -> None:
        row = {"step": run.step, "minutes": round(run.seconds / 60, 2), **row}
        with (output / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        report(row)

    log({"images": len(images), "model": model.config.to_dict(), "config": asdict(config)})
    skipped, recent = 0, []
    reported = saved = clock = time.monotonic()
    validated = run.seconds
    for clean in _batches(images, run):
        result = run.update(clean, rng)
        now = time.monotonic()
        run.seconds, clock = run.seconds + now - clock, now
        if result is None:
            skipped += 1
            if skipped == 20:
                raise Diverged(f"the loss is not finite, or exploded, at step {run.step}")
            continue
        skipped = 0
        recent.append(result)
        run.patches += len(clean)
        run.pixels += clean.shape[0] * clean.shape[2] * clean.shape[3]
        if now - reported >= config.report_seconds:
            loss, bpp, mse = (sum(column) / len(recent) for column in zip(*recent, strict=True))
            log(
                {"loss": round(loss, 4), "bpp": round(bpp, 4), "psnr": round(psnr_from_mse(mse), 2)}
            )
            recent, reported = [], now
        if now - saved >= config.checkpoint_seconds:
            run.save(checkpoint)
            saved = now
        if held_out and run.seconds - validated >= 60 * config.validate_minutes:
            log({"validation": validate(run.average, held_out[:4])})
            validated = run.seconds
            clock = time.monotonic()
    run.save(checkpoint)
    if held_out:
        log({"validation": validate(run.average, held_out)})
    return run
