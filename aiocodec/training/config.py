"""How to train: every default of training is stated here, for the command line too.

This needs nothing but the standard library, so that `aic train run --help` starts at once.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from aiocodec.config import STRIDE

Phases = tuple[tuple[float, int, int], ...]
"""(megapixels seen from which on it holds, side of the patches in pixels, patches in a batch)."""

# Small batches come first, where steps are worth more than their precision; larger ones and larger
# patches later, where the cost of the optimiser, which is per step, is spread over more pixels.
PHASES: dict[str, Phases] = {
    "cpu": ((0.0, 128, 8), (400.0, 192, 6), (2000.0, 256, 6)),
    "cuda": ((0.0, 256, 64),),
}
# Side and batch; larger patches would leave out most of the pairs, which are 256 pixels high or wide.
ANNEALING: dict[str, tuple[int, int]] = {"cpu": (256, 4), "cuda": (256, 64)}
PACE: dict[str, tuple[tuple[float, float], ...]] = {
    "cpu": ((0.0, 1.0), (2000.0, 0.5), (12000.0, 0.25)),
    "cuda": ((0.0, 1.0),),  # batches ten times as large are less noisy
}
AHEAD = {"cpu": 1, "cuda": 8}  # batches that are drawn, and steps that are queued, at once
VALIDATE = {"cpu": 300.0, "cuda": 30000.0}  # megapixels
# Steps of the last matrices beside those of all others. What the deep path of g_s adds to x_hat is small
# beside its features, and so is its last matrix: at the full rate the noise of its steps was such that
# g_s turned its deep path off, for good. The linear path of g_s is its analysis divided by 64.
HEAD_RATE, TAIL_RATE, LINEAR_RATE = 1 / 4, 1 / 32, 1 / 64
ANNEALED_SHARE = 0.2  # of what a run has seen, for the branch that ends it


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults are for CPU cores. ValueError for sides of patches that are not
    multiples of 64, for schedules that do not begin at 0, and for a branch that ends before it begins."""

    phases: Phases = PHASES["cpu"]
    depths: tuple[tuple[float, int], ...] = ((0.0, 99),)
    """(megapixels from which on it holds, blocks that a stage has at most): a run may begin shallow
    and deepen, each new block beginning as the identity."""
    anneal: tuple[float, float] | None = None
    """The megapixels at which the rates begin to fall and at which they are zero; without it they stay
    as they are and the run has no end."""
    lr_matrix: float = 3e-3  # of Muon, for the matrices, where `pace` is 1
    pace: tuple[tuple[float, float], ...] = PACE["cpu"]
    """(megapixels from which on it holds, factor of all rates): a run without an end slows down by steps,
    as the noise of long strides hides ever more of what there is to learn."""
    warmup: int = 100  # steps
    clip: float = 1.0  # gradient norm
    spike: float = 8.0  # a gradient norm this many times the usual one skips the step
    ema: float = 0.999  # decay of the averaged weights, which are validated and released
    clean: float = 0.5  # probability of a photograph without degradation
    faded: float = 0.2  # probability of other tones for what stays clean, see `degrade.faded`
    pairs: float = 0.15  # share of the patches that come from pairs, where there are any
    scenes: float = 0.05  # share that is made hazy by measured depth, where there is any
    compile: bool = False  # the transforms and the entropy model, by torch.compile
    seed: int = 0
    report_seconds: float = 20.0
    checkpoint_seconds: float = 30.0
    validate_megapixels: float = VALIDATE["cpu"]

    def __post_init__(self) -> None:
        if any(side % STRIDE for _, side, _ in self.phases):
            raise ValueError(f"patch sides must be multiples of {STRIDE}")
        if any(schedule[0][0] != 0 for schedule in (self.phases, self.depths, self.pace)):
            raise ValueError("a schedule begins at 0 megapixels")
        if self.anneal is not None and not self.anneal[0] < self.anneal[1]:
            raise ValueError("a branch must end after its beginning")

    @classmethod
    def for_device(
        cls, device: str, side: int | None = None, batch: int | None = None, **fields: Any
    ) -> "TrainConfig":
        """The config for a device, "cpu" or "cuda": its phases, or a single one where a side or a
        batch is given, and other fields as given."""
        phases = PHASES[device]
        if side or batch:
            phases = ((0.0, side or phases[0][1], batch or phases[0][2]),)
        usual = {"pace": PACE[device], "validate_megapixels": VALIDATE[device]}
        return cls(phases=phases, **{**usual, **fields})

    def annealed(
        self, device: str, seen: float, megapixels: float, side: int | None, batch: int | None
    ) -> "TrainConfig":
        """This config for a branch that leaves a run after `seen` megapixels and brings the rates to
        zero within so many more, at the depth that it has come to; on the larger patches of ANNEALING
        unless others are given."""
        usual = ANNEALING[device]
        phase = (0.0, side or usual[0], batch or usual[1])
        return replace(self, phases=(phase,), depths=((0.0, 1),), anneal=(seen, seen + megapixels))

    @property
    def lr_other(self) -> float:
        """The learning rate of AdamW, for everything but the matrices."""
        return self.lr_matrix / 5

    @property
    def rates(self) -> tuple[tuple[float, ...], ...]:
        """The learning rates of `run.optimisers`, by optimiser and group."""
        matrix, other = self.lr_matrix, self.lr_other
        return (matrix, matrix * HEAD_RATE, matrix * TAIL_RATE), (other, other * LINEAR_RATE)

    def phase(self, megapixels: float) -> tuple[int, int]:
        """Patch side and batch after so many megapixels."""
        _, side, count = [phase for phase in self.phases if phase[0] <= megapixels][-1]
        return side, count

    def depth(self, megapixels: float) -> int:
        """Blocks that a stage has at most after so many megapixels."""
        return [depth for start, depth in self.depths if start <= megapixels][-1]

    def lr_factor(self, step: int, megapixels: float) -> float:
        """Linear warm-up, then the pace; in a branch 1 - sqrt to zero besides (Hägele et al., "Scaling laws
        and compute-optimal training beyond fixed training durations", 2024)."""
        pace = [factor for start, factor in self.pace if start <= megapixels][-1]
        return (
            min(1.0, (step + 1) / self.warmup) * pace * (1 - math.sqrt(self.progress(megapixels)))
        )

    def progress(self, megapixels: float) -> float:
        """The share of a branch that is done, 0..1; 0 for a run without an end."""
        if self.anneal is None:
            return 0.0
        begin, end = self.anneal
        return min(1.0, max(0.0, (megapixels - begin) / (end - begin)))
