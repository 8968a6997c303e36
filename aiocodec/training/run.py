"""A training run between two steps: weights, their average, optimisers and counters; and one step.

    loss = lmbda(quality) * d(x_hat, clean) + bpp(y) + bpp(z)                (paper, equation 4)

The quality is drawn per image, so one network learns the whole range of rates. d is the mean
squared error, but grows only as its logarithm where that is many times what a clean image has at
the same quality: no bits can bring back what thick haze has hidden, and such images would rule the
gradient.

Matrices are trained by Muon, everything else by AdamW.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aiocodec.config import LMBDA_MAX, LMBDA_MIN
from aiocodec.degrade import degrade
from aiocodec.errors import LimitError
from aiocodec.layers import LinearAnalysis, LinearSynthesis
from aiocodec.model import Model, lmbda
from aiocodec.training.config import TrainConfig
from aiocodec.training.muon import Muon

HOPELESS = 0.1
"""From an MSE of HOPELESS / sqrt(lmbda) on, about eight times that of clean images, only its
logarithm counts. At 0.5 haze and heavy rain ruled the gradient: clean photographs lost 1 dB within
20 minutes, and had it back when it was 0.1 again, while rain went on to improve (weights/TRAINING.md,
section 5)."""


def rate_distortion(
    model: Model, clean: Tensor, degraded: Tensor, quality: Tensor, balance: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """loss (mean over the batch), bpp and MSE on [0, 1] (per image)."""
    bf16 = torch.autocast("cuda", torch.bfloat16) if clean.is_cuda else nullcontext()
    with bf16:
        out = model(degraded, quality)
    mse, bpp = (out.x_hat - clean).square().flatten(1).mean(1), out.bpp()
    lam = lmbda(quality)
    hopeless = HOPELESS / lam.sqrt()
    distortion = hopeless * torch.log1p(mse / hopeless)
    weight = (lam / math.sqrt(LMBDA_MIN * LMBDA_MAX)) ** -balance
    return (weight * (lam * distortion + bpp)).mean(), bpp, mse


def optimisers(model: Model, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the weight of every convolution whose outputs each have at least 16 inputs, AdamW
    for all other parameters and for the linear paths, which start as a good transform already."""
    matrix_ids = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
        and not isinstance(module, LinearAnalysis | LinearSynthesis)
        and module.weight.shape[1] >= 16
    }
    matrices = [p for p in model.parameters() if id(p) in matrix_ids]
    others = [p for p in model.parameters() if id(p) not in matrix_ids]
    return [
        Muon(matrices, config.lr_matrix),
        torch.optim.AdamW(
            others,
            config.lr_other,
            betas=(0.9, 0.99),
            weight_decay=0.0,
            fused=others[0].is_cuda,
        ),
    ]


def compile_parts(model: Model) -> None:
    """Have torch.compile fuse the transforms and the entropy model, each for the sizes it meets."""
    transforms = model.transforms
    for part in (transforms.g_a, transforms.g_s, transforms.h_a, model.entropy):
        part.forward = torch.compile(part.forward, dynamic=False)  # type: ignore[method-assign]


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
    largest: int = 1 << 40  # pixels of a batch; less where memory was too little

    @classmethod
    def create(cls, model: Model, config: TrainConfig) -> "Run":
        device = next(model.parameters()).device
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True
        average = Model(model.config).to(device)
        average.load_state_dict(model.state_dict())
        average = average.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        average = average.requires_grad_(False)
        return cls(model, average, config, optimisers(model, config))

    @property
    def progress(self) -> float:
        return min(1.0, self.seconds / (60 * self.config.minutes))

    def patch(self) -> tuple[int, int]:
        """Patch side and batch of the next step."""
        side, count = self.config.phase(self.progress)
        return side, max(1, min(count, self.largest // side**2))

    def update(
        self, clean: Tensor, rng: torch.Generator, spoiled: Tensor | None = None
    ) -> tuple[float, float, float] | None:
        """One step on a batch; mean loss, bpp and MSE, or None where the step was skipped: not
        finite, or a spike of the gradient. The last of the batch are those of `spoiled`, clean; the
        others are degraded here."""
        config = self.config
        given = 0 if spoiled is None else len(spoiled)
        degraded = degrade(clean[: len(clean) - given], rng, config.clean)
        if spoiled is not None:
            degraded = torch.cat([degraded, spoiled])
        degraded = degraded.contiguous(memory_format=torch.channels_last)
        quality = torch.rand(len(clean), generator=rng, device=clean.device) * 100
        losses = rate_distortion(self.model, clean, degraded, quality, config.balance)
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        losses[0].backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        loss, bpp, mse, norm = torch.stack([v.detach().mean() for v in (*losses, norm)]).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return None
        if self.step > config.warmup and norm > config.spike * self.usual_norm:
            return None
        weight = 0.01 if self.step > config.warmup else 0.1
        self.usual_norm += weight * (norm - self.usual_norm)
        factor = config.lr_factor(self.step, self.progress)
        for optimiser, lr in zip(self.optimisers, (config.lr_matrix, config.lr_other), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = lr * factor
            optimiser.step()
        self.step += 1
        self.patches += len(clean)
        self.pixels += clean.shape[0] * clean.shape[2] * clean.shape[3]
        decay = min(config.ema, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(  # type: ignore[attr-defined]
                list(self.average.parameters()), list(self.model.parameters()), 1 - decay
            )
        return loss, bpp, mse

    def shrink(self, clean: Tensor) -> None:
        """Halve the batch, which was too large for the memory; LimitError where it was one
        patch."""
        if len(clean) == 1:
            raise LimitError(f"one patch of {clean.shape[-1]}x{clean.shape[-1]} exceeds the memory")
        self.largest = len(clean) // 2 * clean.shape[-1] ** 2
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
