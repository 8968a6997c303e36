"""How to train: every default of training is stated here, for the command line too.

This needs nothing but the standard library, so that `aic train --help` starts at once.
"""

import math
from dataclasses import dataclass
from typing import Any

from aiocodec.config import STRIDE

BEGINNINGS = {1: (0.0,), 2: (0.0, 0.7), 3: (0.0, 0.6, 0.85)}
# by the number of sides: the shares of the budget at which each side begins
CPU_PATCHES, CPU_BATCH = (128, 192, 256), 8  # for two cores
CUDA_PATCHES, CUDA_BATCH = (256, 320, 384), 32

Phases = tuple[tuple[float, int, int], ...]


def phases(sides: tuple[int, ...], batch: int) -> Phases:
    """(share of the budget at which it begins, patch side in pixels, batch) for one to three
    growing sides; `batch` is that of the first, and later ones have about as many pixels in
    theirs."""
    return tuple(
        (beginning, side, max(1, batch * sides[0] ** 2 // side**2))
        for beginning, side in zip(BEGINNINGS[len(sides)], sides, strict=True)
    )


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults are for two CPU cores. ValueError for sides of patches that are
    not multiples of 64."""

    minutes: float = 30.0  # wall-clock budget of the optimisation, validation not counted
    phases: Phases = phases(CPU_PATCHES, CPU_BATCH)
    lr_matrix: float = 3e-3  # of Muon, for the matrices
    warmup: int = 100  # steps
    clip: float = 1.0  # gradient norm
    spike: float = 8.0  # a gradient norm this many times the usual one skips the step
    ema: float = 0.999  # decay of the averaged weights, which are validated and released
    balance: float = 0.1  # weights the loss by lmbda ** -balance, so that high rates rule less
    clean: float = 0.45  # probability of a photograph without degradation
    pairs: float = 0.15  # share of the patches that come from pairs, where there are any
    compile: bool = False  # the transforms and the entropy model, by torch.compile
    seed: int = 0
    report_seconds: float = 20.0
    checkpoint_seconds: float = 60.0
    validate_minutes: float = 20.0

    def __post_init__(self) -> None:
        if any(side % STRIDE for _, side, _ in self.phases):
            raise ValueError(f"patch sides must be multiples of {STRIDE}")

    @classmethod
    def for_device(
        cls,
        device: str,
        sides: tuple[int, ...] | None = None,
        batch: int | None = None,
        **fields: Any,
    ) -> "TrainConfig":
        """The config for a device, "cpu" or "cuda": patches of its sides and its batch, where none
        are given (see `phases`), and other fields as given."""
        usual = (CUDA_PATCHES, CUDA_BATCH) if device == "cuda" else (CPU_PATCHES, CPU_BATCH)
        return cls(phases=phases(sides or usual[0], batch or usual[1]), **fields)

    @property
    def lr_other(self) -> float:
        """The learning rate of AdamW, for everything but the matrices."""
        return self.lr_matrix / 5

    def phase(self, progress: float) -> tuple[int, int]:
        """Patch side and batch at a share of the budget."""
        _, side, count = [phase for phase in self.phases if phase[0] <= progress][-1]
        return side, count

    def lr_factor(self, step: int, progress: float) -> float:
        """Linear warm-up, constant to half of the budget, then a cosine to zero."""
        factor = min(1.0, (step + 1) / self.warmup)
        if progress > 0.5:
            factor *= 0.5 + 0.5 * math.cos(math.pi * (2 * progress - 1))
        return factor
