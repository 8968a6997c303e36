"""Optimisers for a network whose parameters are mostly matrices: Muon and SOAP.

A convolution's weight is taken as the matrix [outputs, inputs * kernel area]. `weights/TRAINING.md`
compares them.
"""

import math

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Momentum whose step is orthogonalised by five Newton-Schulz iterations (Jordan et al. 2024).

    Matrices of equal shape are orthogonalised together.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

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
            by_shape: dict[tuple[int, int], list[int]] = {}
            for i, p in enumerate(params):
                by_shape.setdefault((p.shape[0], p[0].numel()), []).append(i)
            for (rows, columns), members in by_shape.items():
                steps = orthogonalise(torch.stack([updates[i].flatten(1) for i in members]))
                scale = -group["lr"] * math.sqrt(max(1.0, rows / columns))
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


class SOAP(torch.optim.Optimizer):
    """Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024; for learned codecs arXiv
    2601.20769). The bases are renewed every `every` steps by one power iteration with QR; a side of
    a matrix longer than `longest` keeps its own basis."""

    def __init__(
        self,
        params: list[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.95, 0.95),
        every: int = 10,
        longest: int = 1024,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "every": every, "longest": longest})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")  # a rotation by TF32 is none
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, group["lr"], group["betas"], group["every"], group["longest"])
        torch.set_float32_matmul_precision(precision)

    def _step(
        self, p: nn.Parameter, lr: float, betas: tuple[float, float], every: int, longest: int
    ) -> None:
        assert p.grad is not None
        g, state = p.grad.flatten(1).float(), self.state[p]
        sides = [i for i in (0, 1) if g.shape[i] <= longest]
        if not state:
            state["step"] = 0
            state["mean"], state["square"] = torch.zeros_like(g), torch.zeros_like(g)
            for i in sides:
                state[f"covariance{i}"] = _covariance(g, i)
                state[f"basis{i}"] = torch.linalg.eigh(state[f"covariance{i}"])[1].flip(1)
            return  # the first gradient only fixes the bases
        state["step"] += 1
        bases = [state.get("basis0"), state.get("basis1")]
        state["mean"].lerp_(g, 1 - betas[0])
        state["square"].lerp_(_rotated(g, bases).square(), 1 - betas[1])
        correction = math.sqrt(1 - betas[1] ** state["step"]) / (1 - betas[0] ** state["step"])
        update = _rotated(state["mean"], bases) / (state["square"].sqrt() + 1e-8)
        update = _rotated(update, [b.T if b is not None else None for b in bases])
        p.add_(update.view(p.shape), alpha=-lr * correction)
        for i in sides:
            state[f"covariance{i}"].lerp_(_covariance(g, i), 1 - betas[1])
            if state["step"] % every == 0:
                power = state[f"covariance{i}"] @ state[f"basis{i}"]
                state[f"basis{i}"] = torch.linalg.qr(power)[0]


def _covariance(g: Tensor, side: int) -> Tensor:
    return g @ g.T if side == 0 else g.T @ g


def _rotated(g: Tensor, bases: list[Tensor | None]) -> Tensor:
    """Q_0' g Q_1."""
    left, right = bases
    if left is not None:
        g = left.T @ g
    return g @ right if right is not None else g
