"""The whole network, in floating point, as it is trained: transforms around an entropy model.

    y, z = g_a(x, quality), h_a(y)
    x_hat = g_s(entropy(y, z, quality), quality)

(paper, figure 2a). One `ModelConfig` fixes all shapes.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aiocodec.config import LATENT_STRIDE, LMBDA_MAX, LMBDA_MIN, STRIDE, ModelConfig
from aiocodec.entropy.model import EntropyModel
from aiocodec.layers import BASIS_SCALE, ResidualBranches, frequencies, frequency_basis, in_float32
from aiocodec.transforms import Analysis, Synthesis, Transforms


def lmbda(quality: Tensor) -> Tensor:
    """The weight of the distortion for a quality in 0..100, log-interpolated."""
    return LMBDA_MIN * (LMBDA_MAX / LMBDA_MIN) ** (quality / 100)


class Output(NamedTuple):
    """What `Model.forward` gives. Likelihoods are in 2^-24..1; -log2 of them are bits."""

    x_hat: Tensor  # [B, 3, H, W], not clamped
    likelihoods_y: Tensor  # [B, N, H/16, W/16]
    likelihoods_z: Tensor  # [B, Z, H/64, W/64]

    def bpp(self) -> Tensor:
        """Bits per pixel of every image, [B]."""
        pixels = self.x_hat.shape[-1] * self.x_hat.shape[-2]
        parts = (self.likelihoods_y, self.likelihoods_z)
        return sum((-p.log2().flatten(1).sum(1) for p in parts), torch.tensor(0.0)) / pixels


class Model(nn.Module):
    """Transforms with the entropy model that they were trained with, in floating point."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.transforms = Transforms(config)
        self.entropy = EntropyModel(config.entropy)

    def forward(self, x: Tensor, quality: Tensor, noise: bool | torch.Generator = True) -> Output:
        """x [B, 3, H, W] in 0..1 with sides that are multiples of 64, quality [B] in 0..100; `noise`,
        of a generator perhaps, stands in for the rounding where likelihoods are computed. Under
        autocast the networks are of lower precision; latents, the parameters of densities,
        likelihoods and x_hat are not."""
        g_a, h_a, g_s = self.transforms.g_a, self.transforms.h_a, self.transforms.g_s
        y = g_a(x, quality)
        z = in_float32(h_a, y)
        y_hat, likelihoods_y, likelihoods_z = self.entropy(y, z, quality, noise)
        return Output(g_s(y_hat, quality), likelihoods_y, likelihoods_z)


def deepen(model: Model, config: ModelConfig) -> Model:
    """`model` with the blocks of `config`: where a stage has more of them, the further ones are the
    identity, so that it computes what it did before and can be trained on from there.

    Raises ValueError where `config` differs in more than blocks, or where those of `model` are not the
    first ones of every stage.
    """
    old = model.config
    transforms = ("analysis", "synthesis")
    stages = [(getattr(old, t), getattr(config, t)) for t in transforms]
    grown = [
        len(before) == len(after)
        and all(
            (a.stride, a.width) == (b.stride, b.width) and b.blocks[: len(a.blocks)] == a.blocks
            for a, b in zip(before, after, strict=True)
        )
        for before, after in stages
    ]
    if not all(grown):
        raise ValueError("a model grows by further blocks at the end of its stages alone")
    if replace(config, analysis=old.analysis, synthesis=old.synthesis, name=old.name) != old:
        raise ValueError("only the depths of a model can grow")
    deeper = Model(config)
    deeper.load_state_dict(model.state_dict(), strict=False)
    pair: tuple[Analysis | Synthesis, ...] = (deeper.transforms.g_a, deeper.transforms.g_s)
    for transform, (before, _) in zip(pair, stages, strict=True):
        for i, stage in enumerate(before):
            for j, block in enumerate(transform.stages[i].children()):
                if j >= len(stage.blocks) and isinstance(block, ResidualBranches):
                    block.silence()
    return deeper


def widen(model: Model, config: ModelConfig) -> Model:
    """`model` with the latents of `config`, and its gate, which is open, to be trained on from there.
    The further latents are the frequencies that `layers.frequency_basis` has besides for so many: the
    linear paths code them and put them back, each with the gain, gate, step and scale of the nearest
    frequency that was there; no other part of the network knows them yet. With zeros for them x_hat
    is what it was.

    Raises ValueError where `config` has fewer latents, lacks a gate that `model` has, or differs in
    more.
    """
    old, latents = model.config, config.entropy.latents
    same = replace(config.entropy, latents=old.entropy.latents)
    if (
        replace(config, entropy=same, gated=old.gated, name=old.name) != old
        or old.gated > config.gated
    ):
        raise ValueError("only latents and a gate can be added")
    known, wanted = frequencies(old.entropy.latents), frequencies(latents)
    further = sorted(set(wanted) - set(known), key=lambda f: (f[1] + f[2], f))
    if set(known) - set(wanted):
        raise ValueError(f"the model has {len(known)} latents already")
    groups = len(old.entropy.order)
    before, after = len(known) // groups, latents // groups
    kept = torch.tensor([i // before * after + i % before for i in range(len(known))])
    # The lowest frequencies first, a group of `order` after the other.
    added = torch.tensor(
        [i % groups * after + before + i // groups for i in range(len(further))], dtype=torch.long
    )
    nearest = torch.tensor(
        [
            min(
                range(len(known)),
                key=lambda i: (known[i][0] != axis, abs(known[i][1] - u) + abs(known[i][2] - v)),
            )
            for axis, u, v in further
        ],
        dtype=torch.long,
    )
    rows = frequency_basis(latents)[[wanted.index(f) for f in further]][:, :, None, None]

    def grown(tensor: Tensor, fill: Tensor | None = None, dim: int = 0) -> Tensor:
        shape = list(tensor.shape)
        shape[dim] = latents
        result = tensor.new_zeros(shape).index_copy_(dim, kept, tensor)
        return result if fill is None else result.index_copy_(dim, added, fill)

    def like_nearest(tensor: Tensor) -> Tensor:
        return grown(tensor, tensor[nearest])

    def densities(tensor: Tensor) -> Tensor:
        """Rows that end a network: of steps and indexes, and last of means."""
        *others, means = tensor.split(len(known))
        return torch.cat([*map(like_nearest, others), grown(means)])

    weights = dict(model.state_dict())
    changed = {
        "transforms.g_a.head.weight": grown,
        "transforms.g_a.head.bias": grown,
        "transforms.g_a.linear.weight": lambda t: grown(t, BASIS_SCALE * rows),
        "transforms.g_s.linear.weight": lambda t: grown(t, rows.transpose(0, 1) / BASIS_SCALE, 1),
        "transforms.g_s.head.0.weight": lambda t: grown(t, dim=1),
        "transforms.h_a.0.weight": lambda t: grown(t, dim=1),
    }
    if old.gated:
        changed["transforms.g_a.gate.weight"] = like_nearest
        changed["transforms.g_a.gate.bias"] = like_nearest
    for transform in ("g_a", "g_s"):
        for gain in ("head_gain", "linear_gain"):
            for end in ("log_min", "log_max"):
                changed[f"transforms.{transform}.{gain}.{end}"] = like_nearest
    last = len(model.entropy.fusion) - 1
    for part in ("weight", "bias"):
        changed |= {f"entropy.fusion.{last}.{part}": densities, f"entropy.head.{part}": densities}
    for k in range(len(model.entropy.adaptors)):
        changed[f"entropy.adaptors.{k}.weight"] = lambda t: torch.cat(
            [grown(part, dim=1) for part in t.split(len(known), dim=1)], dim=1
        )
    for name, change in changed.items():
        weights[name] = change(weights[name])
    wider = Model(config)
    wider.load_state_dict(wider.state_dict() | weights)
    return wider


class Complexity(NamedTuple):
    """Parameters and multiply-accumulates of g_a, h_a, g_s and the entropy model."""

    parameters: dict[str, int]
    macs: dict[str, int]


def complexity(config: ModelConfig, height: int = 256, width: int = 256) -> Complexity:
    """What a model costs for one image, counted from the shapes of its convolutions and matrix
    products; nothing is computed. Element-wise work is not counted, as is usual.

    The paper (table 2) gives 37 G for Ours-S and 67 G for Ours-L at 256x256; ours count 34 G and
    72 G. Two things differ. The depths: section 11.1 speaks of four blocks in every stage, with
    which ours would count 43 G and 92 G, so we take 2-3-3-4, which is near the table for both.
    The entropy model: ours is at 1/16 resolution and a fraction of the hybrid spatial model that the
    paper adopts, because it must run in exact integers.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = Model(config)
        x, quality = torch.empty(1, 3, height, width), torch.empty(1)
        y = torch.empty(1, config.entropy.latents, height // LATENT_STRIDE, width // LATENT_STRIDE)
        z = torch.empty(1, config.entropy.hyper, height // STRIDE, width // STRIDE)
    parts = {
        "g_a": (model.transforms.g_a, (x, quality)),
        "h_a": (model.transforms.h_a, (y,)),
        "g_s": (model.transforms.g_s, (y, quality)),
        "entropy": (model.entropy, (y, z, quality)),
    }
    macs = {}
    for name, (module, inputs) in parts.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(*inputs)
        macs[name] = counter.get_total_flops() // 2
    parameters = {
        name: sum(p.numel() for p in module.parameters()) for name, (module, _) in parts.items()
    }
    return Complexity(parameters, macs)
