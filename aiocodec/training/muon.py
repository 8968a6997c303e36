"""Muon, the optimiser of the network's matrices.

A convolution's weight is taken as the matrix [outputs, inputs * kernel area].
"""

import math

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Momentum whose step is orthogonalised by five Newton-Schulz iterations (Jordan et al. 2024).

    Only every `every`-th of the matrices moves in a step, in turns and `every` times as far: the
    momentum of 20 steps hardly turns in between, and orthogonalising costs per matrix, not per pixel.
    Matrices of equal shape are orthogonalised together.
    """

    def __init__(
        self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, every: int = 2
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
            beta = group["momentum"]
            torch._foreach_lerp_(momenta, grads, 1 - beta)
            updates = torch._foreach_lerp(grads, momenta, beta)
            shapes = [(p.shape[0], p[0].numel()) for p in params]
            by_shape: dict[tuple[int, int], list[int]] = {}
            for place, i in enumerate(sorted(range(len(params)), key=lambda i: shapes[i])):
                if place % group["every"] == group["turn"]:
                    by_shape.setdefault(shapes[i], []).append(i)
            group["turn"] = (group["turn"] + 1) % group["every"]
            for (rows, columns), members in by_shape.items():
                steps = orthogonalise(torch.stack([updates[i].flatten(1) for i in members]))
                scale = -group["lr"] * group["every"] * math.sqrt(max(1.0, rows / columns))
                torch._foreach_add_(
                    [params[i] for i in members],
                    [s.view(params[i].shape) for i, s in zip(members, steps, strict=True)],
                    alpha=scale,
                )


def orthogonalise(g: Tensor) -> Tensor:
    """Matrices [K, m, n] with all singular values moved to about 1 (0.7 to 1.2)."""
    x = g.bfloat16() if g.is_cuda else g.float()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a = x @ x.mT
    if 2 * x.shape[-2] > x.shape[-1]:
        for _ in range(5):
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            a = x @ x.mT
    else:  # the iteration on the small Gram matrix alone: all its polynomials commute
        identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        q = identity
        for _ in range(5):
            b = 3.4445 * identity - 4.7750 * a + 2.0315 * a @ a
            q, a = b @ q, b @ a @ b
        x = q @ x
    return (x.mT if tall else x).to(g.dtype)
