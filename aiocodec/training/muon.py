"""Muon, the optimiser of the network's matrices.

A convolution's weight is taken as the matrix [outputs, inputs * kernel area].
"""

import math

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from aiocodec.training.cores import has_bfloat16, on_each_core

ITERATIONS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315  # of X <- A X + B X X^T X + C (X X^T)^2 X


class Muon(torch.optim.Optimizer):
    """Momentum whose step is orthogonalised by five Newton-Schulz iterations (Jordan et al. 2024).

    Only every `every`-th of the matrices moves in a step, in turns and `every` times as far: the
    momentum of 20 steps hardly turns in between, and orthogonalising costs per matrix, not per pixel.
    Matrices of equal shape are orthogonalised together.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.95,
        every: int = 2,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "every": every, "turn": 0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            grads = [p.grad for p in params]
            momenta = [self.state[p]["momentum"] for p in params]
            beta, every = group["momentum"], group["every"]
            torch._foreach_lerp_(momenta, grads, 1 - beta)
            shapes = [(p.shape[0], p[0].numel()) for p in params]
            by_shape: dict[tuple[int, int], list[int]] = {}
            for place, i in enumerate(sorted(range(len(params)), key=lambda i: shapes[i])):
                if place % every == group["turn"]:
                    by_shape.setdefault(shapes[i], []).append(i)
            group["turn"] = (group["turn"] + 1) % every

            costs = {s: len(members) * min(s) * math.prod(s) for s, members in by_shape.items()}
            groups = [by_shape[s] for s in sorted(costs, key=costs.__getitem__, reverse=True)]
            ahead = torch._foreach_lerp(grads, momenta, beta)  # type: ignore[attr-defined]
            updates = [torch.stack([ahead[i].flatten(1) for i in g]) for g in groups]
            alone = bool(params) and params[0].is_cuda
            steps = (
                [*map(orthogonalise, updates)] if alone else on_each_core(orthogonalise, updates)
            )
            for members, step in zip(groups, steps, strict=True):
                rows, columns = shapes[members[0]]
                torch._foreach_add_(
                    [params[i] for i in members],
                    [s.view(params[i].shape) for i, s in zip(members, step, strict=True)],
                    alpha=-group["lr"] * every * math.sqrt(max(1.0, rows / columns)),
                )


def orthogonalise(g: Tensor) -> Tensor:
    """Matrices [K, m, n] with all singular values moved to about 1 (0.7 to 1.2)."""
    tall = g.shape[-2] > g.shape[-1]
    x = (g.mT if tall else g).float()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    half = has_bfloat16(g.device)
    if half:
        x = x.bfloat16()
    # Else iterate on the Gram matrix alone, as its polynomials commute. In bfloat16 they do not: some
    # singular values would end at nine times what they should be.
    small = 2 * x.shape[-2] <= x.shape[-1] and not half
    q: Tensor | None = None
    for i in range(ITERATIONS):
        if i == 0 or not small:
            a = x @ x.mT
        b = torch.baddbmm(a, a, a, beta=_B, alpha=_C)
        if not small:
            x = torch.baddbmm(x, b, x, beta=_A)
            continue
        b.diagonal(dim1=-2, dim2=-1).add_(_A)
        q = b if q is None else b @ q
        if i + 1 < ITERATIONS:
            a = b @ a @ b
    if q is not None:
        x = q @ x
    return (x.mT if tall else x).to(g.dtype)
