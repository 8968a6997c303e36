"""A training run between two steps: weights, their average, optimisers and counters; and one step.

    loss = log(lmbda(quality) * d(x_hat, clean) + bpp(y) + bpp(z))

The quality is drawn per image, so one network learns the whole range of rates. Within the logarithm
is the paper's equation 4, which for a picture in heavy snow at a high rate is 150 times what it is for
a clean one at a low rate: few such pictures would rule the gradient. By the logarithm every picture
counts by the share of its loss that is gained. d is the mean squared error, but grows only as its
logarithm where that is many times what a clean image has at the same quality (HOPELESS), as what
thick haze has hidden no bits can bring back.

Matrices are trained by Muon, everything else by AdamW.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aiocodec.config import ModelConfig
from aiocodec.errors import LimitError
from aiocodec.layers import LinearAnalysis, LinearSynthesis
from aiocodec.model import Model, deepen, lmbda
from aiocodec.training.config import TrainConfig
from aiocodec.training.cores import has_bfloat16, on_each_core
from aiocodec.training.muon import Muon

# From an MSE of HOPELESS / sqrt(lmbda) on, 9 to 15 times that of clean images, an error counts by its
# logarithm. Without it clean photographs pay for the weather (weights/TRAINING.md, section 3).
HOPELESS = 0.2


def rate_distortion(
    model: Model,
    clean: Tensor,
    degraded: Tensor,
    quality: Tensor,
    noise: bool | torch.Generator = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """loss (mean over the batch), bpp and MSE on [0, 1] (per image); `noise` is that of Model."""
    with _precision(clean.device):
        out = model(degraded, quality, noise)
    mse, bpp = (out.x_hat - clean).square().flatten(1).mean(1), out.bpp()
    lam = lmbda(quality)
    most = HOPELESS / lam.sqrt()
    distortion = most * torch.log1p(mse / most)
    return (lam * distortion + bpp).log().mean(), bpp, mse


def _precision(device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if has_bfloat16(device) else nullcontext()


def optimisers(model: Model, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the weight of every convolution whose outputs each have at least 16 inputs; AdamW for all
    other parameters and for the linear paths, which start as a good transform already. What ends g_a
    and g_s has groups of its own (see `TrainConfig.rates`)."""
    g_a, g_s = model.transforms.g_a, model.transforms.g_s
    head, tail, linear = g_a.head.weight, g_s.tail.weight, g_s.linear.weight
    apart = {id(head), id(tail), id(linear)}
    matrix_ids = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
        and not isinstance(module, LinearAnalysis | LinearSynthesis)
        and module.weight.shape[1] >= 16
    }
    matrices = [p for p in model.parameters() if id(p) in matrix_ids - apart]
    others = [p for p in model.parameters() if id(p) not in matrix_ids | apart]
    return [
        Muon([{"params": some} for some in (matrices, [head], [tail])], config.lr_matrix),
        torch.optim.AdamW(
            [{"params": some} for some in (others, [linear])],
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


class Passes:
    """Both passes over batches of one shape without waiting for a device, and on CUDA as one graph, some
    two thousand kernels that are launched together.

    What a step may not have, gradients that are not finite or a spike, is decided on the device too and
    makes them zero, as to ask would be to wait for all that is queued.
    """

    def __init__(self, model: Model, clean: Tensor, clip: float) -> None:
        """For batches of the shape of `clean`; gradients are clipped to the norm `clip`."""
        self.model, self.clip = model, clip
        self.clean, self.spoiled = torch.rand_like(clean), torch.rand_like(clean)
        self.quality = torch.full((len(clean),), 50.0, device=clean.device)
        self.limit = torch.full((), math.inf, device=clean.device)  # of the norm of gradients
        self.gradients = [torch.zeros_like(p) for p in model.parameters()]
        self.values = torch.zeros(5, device=clean.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        if clean.is_cuda:
            self._record()

    def __call__(self, clean: Tensor, spoiled: Tensor, quality: Tensor, limit: float) -> Tensor:
        """Loss, bpp, MSE, the norm of the gradients, and 1 where these are kept, 0 where they are zeroed:
        [5], which the next call overwrites, as it does `gradients`."""
        self.clean.copy_(clean)
        self.spoiled.copy_(spoiled)
        self.quality.copy_(quality)
        self.limit.fill_(limit)
        if self.graph is not None:
            self.graph.replay()
        else:
            self._passes()
        return self.values

    def _passes(self) -> None:
        losses = rate_distortion(self.model, self.clean, self.spoiled, self.quality)
        with torch.no_grad():
            parameters = list(self.model.parameters())
            found = torch.autograd.grad(losses[0], parameters, materialize_grads=True)
            norm = torch.stack(torch._foreach_norm(found)).norm()  # type: ignore[attr-defined]
            values = torch.stack([*(loss.mean() for loss in losses), norm])
            good = values.isfinite().all() & (norm <= self.limit)
            share = (self.clip / (norm + 1e-6)).clamp(max=1)
            found = torch._foreach_mul(found, share)  # type: ignore[attr-defined]
            for gradient, new in zip(self.gradients, found, strict=True):
                gradient.copy_(torch.where(good, new, 0.0))
            self.values.copy_(torch.cat([values, good[None]]))

    def _record(self) -> None:
        torch.backends.cudnn.benchmark = True  # not for what is of another size at every step
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what is lazy has to happen before a recording
            for _ in range(3):
                self._passes()
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._passes()
        torch.backends.cudnn.benchmark = False


def _placed(model: Model, like: Model | None = None) -> Model:
    """A model in the memory format of training, on the device of another."""
    device = next((like or model).parameters()).device
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


@dataclass
class Run:
    """A training run: weights, their average, optimisers and how far it has come."""

    model: Model
    average: Model
    config: TrainConfig
    optimisers: list[torch.optim.Optimizer]
    rng: torch.Generator  # of the device; it and torch's own are the only chance in a run
    step: int = 0
    usual_norm: float = 0.0  # running mean of the gradient norm, before clipping
    seconds: float = 0.0  # of optimisation so far
    pixels: int = 0
    largest: int = 1 << 40  # pixels of a batch; less where memory was too little
    passes: Passes | None = None  # on CUDA, those of `model` over batches of the last shape

    @classmethod
    def create(cls, model: Model, config: TrainConfig) -> "Run":
        """A run that begins with a model, on its device; the model itself is trained."""
        model = _placed(model).requires_grad_(True).train()
        if next(model.parameters()).is_cuda:
            torch.set_float32_matmul_precision("high")
        average = Model(model.config)
        average.load_state_dict(model.state_dict())
        average = _placed(average, model).eval().requires_grad_(False)
        rng = torch.Generator(next(model.parameters()).device)
        run = cls(model, average, config, optimisers(model, config), rng)
        run.seed()
        return run

    def seed(self) -> None:
        """Begin chance anew, by the seed and how far the run has come."""
        seed = self.config.seed + 1 + self.step
        self.rng.manual_seed(seed)
        torch.manual_seed(seed)

    @property
    def megapixels(self) -> float:
        """What the run has been shown."""
        return self.pixels / 1e6

    @property
    def progress(self) -> float:
        """The share of its annealing that is done, 0..1; 0 in a run without an end."""
        return self.config.progress(self.megapixels)

    def patch(self) -> tuple[int, int]:
        """Patch side and batch of the next step."""
        side, count = self.config.phase(self.megapixels)
        return side, max(1, min(count, self.largest // side**2))

    def grow(self, config: ModelConfig) -> None:
        """Deepen the network to `config` (see `deepen`, also for the ValueError); it computes what it
        did, and what was there keeps its momenta."""
        states = {id(p): state for o in self.optimisers for p, state in o.state.items()}
        known = {n: states[id(p)] for n, p in self.model.named_parameters() if id(p) in states}
        deeper, average = deepen(self.model, config), deepen(self.average, config)
        self.model = _placed(deeper, self.model).requires_grad_(True).train()
        self.average = _placed(average, self.average).eval().requires_grad_(False)
        self.optimisers, self.passes = optimisers(self.model, self.config), None
        parameters = dict(self.model.named_parameters())
        for optimiser in self.optimisers:
            members = {id(p) for group in optimiser.param_groups for p in group["params"]}
            for name, state in known.items():
                if id(parameters[name]) in members:
                    optimiser.state[parameters[name]] = state

    def update(self, clean: Tensor, spoiled: Tensor) -> tuple[float, float, float] | None:
        """One step on a batch, clean and spoiled patches [B, 3, side, side]; mean loss, bpp and MSE, or
        None where the step was skipped: not finite, or a spike of the gradient."""
        if clean.is_cuda:
            return self.settle([self.queue(clean, spoiled)])[0]
        losses = self.backward(clean, spoiled, self._qualities(clean))
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        values = torch.stack([*losses, norm])
        good = bool(values.isfinite().all() and norm <= self._limit())
        (result,) = self.settle([torch.cat([values, norm.new_tensor([good])])])
        if result is not None:
            self._move(clean)
        return result

    def queue(self, clean: Tensor, spoiled: Tensor) -> Tensor:
        """`update`, but without waiting for what it comes to, which `settle` tells; a step that is to be
        skipped is one of no gradient."""
        if self.passes is None or self.passes.clean.shape != clean.shape:
            self.passes = None  # its memory is needed
            self.passes = Passes(self.model, clean, self.config.clip)
        values = self.passes(clean, spoiled, self._qualities(clean), self._limit()).clone()
        for parameter, gradient in zip(self.model.parameters(), self.passes.gradients, strict=True):
            parameter.grad = gradient
        self._move(clean)
        return values

    def settle(self, queued: list[Tensor]) -> list[tuple[float, float, float] | None]:
        """What steps have come to, see `update`."""
        results: list[tuple[float, float, float] | None] = []
        for loss, bpp, mse, norm, good in torch.stack(queued).tolist():
            if good:
                weight = 0.01 if self.step > self.config.warmup else 0.1
                weight = weight if self.usual_norm else 1.0
                self.usual_norm += weight * (norm - self.usual_norm)
            results.append((loss, bpp, mse) if good else None)
        return results

    def _qualities(self, clean: Tensor) -> Tensor:
        return torch.rand(len(clean), generator=self.rng, device=clean.device) * 100

    def _limit(self) -> float:
        """The norm beyond which a gradient is a spike."""
        # What the first steps of a queue came to is not known before it is settled.
        calm = self.step > self.config.warmup and self.usual_norm > 0
        return self.config.spike * self.usual_norm if calm else math.inf

    def _move(self, clean: Tensor) -> None:
        """Step along the gradients of a batch."""
        config = self.config
        factor = config.lr_factor(self.step, self.megapixels)
        for optimiser, rates in zip(self.optimisers, config.rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimiser.step()
        self.step += 1
        self.pixels += clean.shape[0] * clean.shape[2] * clean.shape[3]
        decay = min(config.ema, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(  # type: ignore[attr-defined]
                list(self.average.parameters()), list(self.model.parameters()), 1 - decay
            )

    def backward(self, clean: Tensor, spoiled: Tensor, quality: Tensor) -> tuple[Tensor, ...]:
        """The gradients of a batch; its mean loss, bpp and MSE. CPU cores take a part of the batch each, as
        operations are too short to be shared."""
        config = self.config
        parameters = list(self.model.parameters())
        parts = 1 if config.compile else min(torch.get_num_threads(), len(clean))
        seeds = torch.randint(1 << 62, (parts,), generator=self.rng, device=clean.device).tolist()

        def part(i: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            x, x_hat, q = (t.tensor_split(parts)[i] for t in (spoiled, clean, quality))
            noise: bool | torch.Generator = True
            if not config.compile:  # which knows no generators
                noise = torch.Generator(clean.device).manual_seed(seeds[i])
            losses = rate_distortion(self.model, x_hat, x, q, noise)
            share = len(q) / len(quality)
            values = tuple(share * loss.mean() for loss in losses)
            grads = torch.autograd.grad(values[0], parameters, materialize_grads=True)
            return grads, tuple(v.detach() for v in values)

        done = [part(0)] if parts == 1 else on_each_core(part, range(parts))
        grads, values = done[0]
        for more, others in done[1:]:
            torch._foreach_add_(grads, more)  # type: ignore[attr-defined]
            values = tuple(a + b for a, b in zip(values, others, strict=True))
        for parameter, gradient in zip(parameters, grads, strict=True):
            parameter.grad = gradient
        return values

    def shrink(self, count: int, side: int) -> None:
        """Halve the batch, of `count` patches, which was too large for the memory; LimitError where it
        was one patch."""
        if count == 1:
            raise LimitError(f"one patch of {side}x{side} exceeds the memory")
        self.largest = count // 2 * side**2
        self.passes = None
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
