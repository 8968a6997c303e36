"""Limits, defaults, and the shape of every model. Standard library only: the command line starts
without torch and still knows them."""

from dataclasses import asdict, dataclass, replace
from typing import Any

DEFAULT_QUALITY = 50
DEFAULT_EFFORT, MAX_EFFORT = 0, 9  # of the encoder's search; what costs no more than twice as long
MAX_SIDE = 65535  # pixels of a picture, per side
MAX_COMMENT = 1 << 16  # bytes of a remark in an .aic file
DEFAULT_MAX_PIXELS = 1 << 28  # of a picture that is encoded
DECODED_MAX_PIXELS = 1 << 27  # of one that is decoded: its file may be a stranger's
LATENT_STRIDE = 16  # pixels of x per element of y, per side
STRIDE = 64  # pixels of x per element of z; pictures are padded to multiples of it
LMBDA_MIN, LMBDA_MAX = 40.0, 8000.0  # weight of the MSE on [0, 1] at quality 0 and 100
TILE = 48  # latent positions per side that a transform computes at once, at most
HALO = 4  # latent positions that weights say to be enough around a tile; see docs/format.md

Order = tuple[tuple[tuple[int, int], tuple[int, int]], ...]
"""The pass that codes an element of y: [channel group][row % 2][column % 2], passes from 0. The
channels of y are divided into as many equal runs as there are groups; see entropy/passes.py."""

CHECKERBOARD: Order = (((0, 1), (1, 0)), ((1, 0), (0, 1)))
"""Two passes: half of the channels on the even squares first, the other half on the odd ones."""

QUADTREE: Order = (
    ((0, 2), (3, 1)),
    ((1, 3), (2, 0)),
    ((2, 0), (1, 3)),
    ((3, 1), (0, 2)),
)
"""Four passes over every 2x2 cell: each codes one channel group at each of the four positions, so
a quarter of the elements, and the second pass of a group lies diagonal to its first (after DCVC-DC,
Li et al., CVPR 2023)."""


@dataclass(frozen=True)
class EntropyConfig:
    """The shape of an entropy model: all that files depend on."""

    latents: int = 192  # N, channels of y; a multiple of the groups of `order`
    hyper: int = 128  # Z, channels of z
    width: int = 384  # channels inside its networks
    order: Order = QUADTREE
    quality_levels: int = (
        11  # qualities 0..100 that z is coded by, evenly spread; 1: not by quality
    )

    def __post_init__(self) -> None:
        if min(self.latents, self.hyper, self.width, self.quality_levels) < 1:
            raise ValueError("latents, hyper, width and quality_levels must be positive")
        if self.latents % len(self.order):
            raise ValueError("latents must be a multiple of the channel groups of the order")


@dataclass(frozen=True)
class Stage:
    """Blocks of a transform at one resolution."""

    stride: int  # pixels of x per position, per side: 1, 2, 4, 8 or 16
    width: int  # channels; a multiple of 8
    blocks: tuple[str, ...]  # "dcb" or "hatb", in the order of their execution (see layers.py)

    def __post_init__(self) -> None:
        if self.stride not in (1, 2, 4, 8, 16) or self.width < 8 or self.width % 8:
            raise ValueError("a stage must have a stride of 1 to 16 and a multiple of 8 channels")
        if not set(self.blocks) <= {"dcb", "hatb"}:
            raise ValueError("a block must be dcb or hatb")


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the shape of a model; it travels with its weights."""

    name: str
    analysis: tuple[
        Stage, ...
    ]  # of g_a, finest first; each stride twice the one before, 8 or 16 last
    synthesis: tuple[Stage, ...]  # of g_s, finest first too, though it runs from the coarsest
    entropy: EntropyConfig = EntropyConfig()
    gain_stride: int = 8  # of the stage before whose blocks the quality enters
    lapped: bool = True  # the linear path overlaps its blocks, else it begins as a plain DCT
    gated: bool = False  # the deep path of g_a gates the linear one

    def __post_init__(self) -> None:
        for stages in (self.analysis, self.synthesis):
            strides = [stage.stride for stage in stages]
            if any(fine * 2 != coarse for fine, coarse in zip(strides, strides[1:], strict=False)):
                raise ValueError("strides of stages must double from each to the next")
            if not strides or strides[-1] not in (8, 16) or self.gain_stride not in strides:
                raise ValueError("stages must end at stride 8 or 16 and include gain_stride")

    @property
    def depth(self) -> int:
        """Blocks of the deepest stage."""
        return max(len(stage.blocks) for stage in self.analysis + self.synthesis)

    def shallow(self, depth: int) -> "ModelConfig":
        """The same with at most `depth` blocks in a stage, its first ones: what this grows from."""

        def cut(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
            return tuple(replace(stage, blocks=stage.blocks[:depth]) for stage in stages)

        return replace(self, analysis=cut(self.analysis), synthesis=cut(self.synthesis))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ModelConfig":
        """The inverse of `to_dict`, from JSON too; TypeError or ValueError on other fields."""
        values = {key: _tuples(value) for key, value in fields.items()}
        for name in ("analysis", "synthesis"):
            values[name] = tuple(Stage(**stage) for stage in values.get(name, ()))
        values["entropy"] = EntropyConfig(**values.get("entropy", {}))
        return cls(**values)


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples, at every depth."""
    if isinstance(value, list | tuple):
        return tuple(map(_tuples, value))
    return {k: _tuples(v) for k, v in value.items()} if isinstance(value, dict) else value


def _analysis(count: int) -> tuple[str, ...]:
    """Plain blocks, but the second, which sees the whole picture: haze is a matter of all of it. In g_s
    the paper's block costs more time than it is worth (weights/TRAINING.md, section 3)."""
    return ("dcb", "hatb", *("dcb",) * (count - 2))


def _paper(name: str, widths: tuple[int, int, int, int]) -> ModelConfig:
    """Ours-S and Ours-L: four stages of the paper's blocks, from full to 1/8 resolution."""
    depths = (2, 3, 3, 4)
    stages = tuple(
        Stage(2**i, width, ("hatb",) * depth)
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True))
    )
    return ModelConfig(name, stages, stages, gain_stride=4)


VARIANTS = {
    config.name: config
    for config in (
        ModelConfig(
            "nano",
            analysis=(Stage(8, 128, _analysis(6)),),
            synthesis=(Stage(4, 32, ("dcb",) * 2), Stage(8, 128, ("dcb",) * 6)),
            entropy=EntropyConfig(latents=320, hyper=96, width=192),
            gated=True,
        ),
        ModelConfig(
            "fast",
            analysis=(Stage(8, 256, _analysis(8)),),
            synthesis=(Stage(4, 48, ("dcb",) * 2), Stage(8, 256, ("dcb",) * 10)),
        ),
        _paper("s", (32, 64, 128, 256)),
        _paper("l", (48, 96, 192, 384)),
    )
}
"""`nano` is trained on CPU cores and the default; `fast` is the same, wider and deeper, for an
accelerator; `s` and `l` are the paper's Ours-S and Ours-L."""
