"""The training loop: rate-distortion loss on degraded photographs, within a budget of minutes.

    loss = lmbda(quality) * d(x_hat, clean) + bpp(y) + bpp(z)                (paper, equation 4)

The quality is drawn per image, so one network learns the whole range of rates. d is the mean squared
error, but grows only as its logarithm where that is many times what a clean image has at the same
quality: no bits can bring back what thick haze has hidden, and such images would rule the gradient.

Matrices are trained by Muon, everything else by AdamW; both learning rates stay constant for the
first half of the budget and fall to zero over the second. An un-annealed network swings by decibels
and is never released.

A run writes into its folder

    checkpoint.pt               everything needed to go on, at least every minute
    weights-0.safetensors, ...  the averaged weights, at every validation and at the end
    log.jsonl                   one object per report: loss, speed, validation
    rd.png                      the validation curves (where matplotlib is installed)

and imports no entropy coder. Killing it loses a minute at most, interrupting it nothing.
"""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aiocodec.degrade import apply, degrade
from aiocodec.errors import Diverged, ImageError, LimitError, TrainingError, out_of_memory
from aiocodec.metrics import psnr_from_mse
from aiocodec.model import LMBDA_MAX, LMBDA_MIN, STRIDE, VARIANTS, Model, ModelConfig, lmbda
from aiocodec.training.config import TrainConfig
from aiocodec.training.data import Pairs, Photographs
from aiocodec.training.muon import Muon

VALIDATION = ("clean", "noise:15", "noise:25", "noise:50", "haze", "rain", "snow", "jpeg:40")
VALIDATION_QUALITIES = (10, 50, 90)
HOPELESS = (
    0.5  # from an MSE of this / sqrt(lmbda) on, some forty times that of clean images, only its
)
# logarithm counts; 0.1 weighed haze and heavy rain away
SKIPS = 20  # skipped steps in a row after which a run has diverged
PART_BYTES = 14 << 20  # of a file of weights, so that each can travel where large files cannot


def optimisers(model: Model, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the weight of every convolution whose outputs each have at least 16 inputs, AdamW for
    all other parameters and for the linear shortcuts, which start as a good transform already."""
    shortcuts = (model.g_a.linear, model.g_s.linear)
    matrix_ids = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Conv2d) and module.weight.shape[1] >= 16
    } - {id(p) for shortcut in shortcuts for p in shortcut.parameters()}
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
    for part in (model.g_a, model.g_s, model.h_a, model.entropy):
        part.forward = torch.compile(part.forward, dynamic=False)  # type: ignore[method-assign]


def rate_distortion(
    model: Model, clean: Tensor, degraded: Tensor, quality: Tensor, balance: float = 0.0
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
    lam = lmbda(quality)
    hopeless = HOPELESS / lam.sqrt()
    distortion = hopeless * torch.log1p(mse / hopeless)
    weight = (lam / math.sqrt(LMBDA_MIN * LMBDA_MAX)) ** -balance
    return (weight * (lam * distortion + bpp)).mean(), bpp, mse


@torch.no_grad()
def validate(
    model: Model,
    images: Photographs,
    degradations: tuple[str, ...] = VALIDATION,
    qualities: tuple[int, ...] = VALIDATION_QUALITIES,
    every: int = 1,
) -> list[dict[str, Any]]:
    """Mean bpp (from likelihoods of rounded symbols) and mean PSNR of 8-bit pixels against the clean
    images, cropped to multiples of 64, for every degradation (as `degrade.apply` names them; that
    of image i has seed i) and quality. Of the images, every `every`-th."""

    def spoiled(degradation: str, seed: int, clean: Tensor) -> Tensor:
        # drawn on the CPU, so that every machine validates on the same pixels
        rng = torch.Generator().manual_seed(seed)
        return apply(clean.cpu(), degradation, rng).to(clean.device)

    chosen = range(0, len(images), every)
    rows = []
    for degradation in degradations:
        samples = ((c, spoiled(degradation, i, c)) for i in chosen for c in [_cropped(images[i])])
        rows += _curve(model, degradation, samples, qualities)
    return rows


@torch.no_grad()
def validate_pairs(
    model: Model,
    pairs: Pairs,
    name: str,
    qualities: tuple[int, ...] = VALIDATION_QUALITIES,
    every: int = 1,
) -> list[dict[str, Any]]:
    """As `validate`, for pictures that are spoiled already; rows are named `name`."""
    chosen = range(0, len(pairs), every)
    samples = ((_cropped(pairs.clean[i]), _cropped(pairs.spoiled[i])) for i in chosen)
    return _curve(model, name, samples, qualities)


def _cropped(image: Tensor) -> Tensor:
    """uint8 [3, H, W] as float [1, 3, h, w] in 0..1, sides cut to multiples of 64."""
    height, width = (side // STRIDE * STRIDE for side in image.shape[1:])
    return image[None, :, :height, :width].float() / 255


def _curve(
    model: Model, name: str, samples: Iterable[tuple[Tensor, Tensor]], qualities: tuple[int, ...]
) -> list[dict[str, Any]]:
    """A row per quality for (clean, spoiled) images."""
    results: dict[int, list[tuple[float, float]]] = {quality: [] for quality in qualities}
    for clean, x in samples:
        x = x.contiguous(memory_format=torch.channels_last)
        for quality in qualities:
            out = model(x, torch.tensor([float(quality)], device=x.device), noise=False)
            x_hat = (out.x_hat.clamp(0, 1) * 255).round() / 255
            mse = (x_hat - clean).square().mean().item()
            results[quality].append((out.bpp().item(), psnr_from_mse(mse)))
    rows = []
    for quality, points in results.items():
        bpp, psnr = (sum(column) / len(column) for column in zip(*points, strict=True))
        rows.append(
            {"degradation": name, "quality": quality, "bpp": round(bpp, 4), "psnr": round(psnr, 3)}
        )
    return rows


def plot(log: Path, image: Path) -> bool:
    """Draw the validations of a log as RD curves, the newest boldly; False without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    validations = [row["validation"] for row in rows if "validation" in row]
    names = list(dict.fromkeys(p["degradation"] for points in validations for p in points))
    columns = min(4, max(1, len(names)))
    lines = -(-max(1, len(names)) // columns)
    figure = Figure(figsize=(3.4 * columns, 3 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for name, axes in zip(names, panels, strict=False):
        for age, points in enumerate(reversed(validations)):
            curve = [(p["bpp"], p["psnr"]) for p in points if p["degradation"] == name]
            style = {"color": "C0", "marker": "o"} if age == 0 else {"color": "0.75", "zorder": 1}
            axes.plot(*zip(*curve, strict=True), **style)
        axes.set(title=name, xlabel="bits per pixel", ylabel="PSNR (dB)")
        axes.grid(alpha=0.3)
    figure.savefig(image, dpi=110)
    return True


def save_weights(model: Model, folder: Path, progress: float = 1.0) -> list[Path]:
    """Write all weights of a model as `weights-N.safetensors` of at most 14 MiB, the transforms in
    float16, the entropy model, which is yet to be frozen, in float32."""
    from safetensors.torch import save_file

    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in model.state_dict().items():
        entropy = key.startswith("entropy.")
        tensor = value.detach().to("cpu", torch.float32 if entropy else torch.float16).contiguous()
        size += tensor.nbytes
        if size > PART_BYTES and parts[-1]:
            parts.append({})
            size = tensor.nbytes
        parts[-1][key] = tensor
    metadata = {
        "config": json.dumps(model.config.to_dict()),
        "parts": str(len(parts)),
        "progress": str(progress),
        "set": os.urandom(8).hex(),  # tells its parts from those of another time
    }
    paths = [folder / f"weights-{i}.safetensors" for i in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        save_file(part, path.with_suffix(".tmp"), metadata)
    for path in paths:
        os.replace(path.with_suffix(".tmp"), path)
    return paths


def load_weights(source: Path, annealed: bool = False) -> Model:
    """The averaged weights of a run as a float model: from its checkpoint.pt, from its folder, or,
    where the folder has no checkpoint, from the weights-N.safetensors in it.

    Raises TrainingError where there are none, or not all, where they are damaged or those of a network
    that this version does not build, and with `annealed` where the run has not come to its end.
    """
    checkpoint = source / "checkpoint.pt" if source.is_dir() else source
    if checkpoint.exists():
        state = _read_checkpoint(checkpoint)
        config, tensors = state["model_config"], state["average"]
        progress = state["counters"]["seconds"] / (60 * state["train_config"]["minutes"])
    else:
        config, tensors, progress = _read_parts(source)
    if annealed and progress < 1:
        raise TrainingError(
            f"the run in {source} is at {progress:.0%}, its learning rate not yet zero"
        )
    model = Model(ModelConfig.from_dict(config))
    try:
        model.load_state_dict(tensors)
    except RuntimeError:
        raise TrainingError(f"the weights in {source} are those of another network") from None
    return model.eval().requires_grad_(False)


def _read_parts(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], float]:
    from safetensors import SafetensorError, safe_open

    paths = sorted(folder.glob("weights-*.safetensors"))
    if not paths:
        raise TrainingError(f"there is no checkpoint and there are no weights in {folder}")
    tensors: dict[str, Tensor] = {}
    metadata = []
    for path in paths:
        try:
            with safe_open(path, "pt") as file:
                metadata.append(file.metadata())
                tensors |= {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            raise TrainingError(f"{path} is damaged") from None
    first = metadata[0]
    if len(paths) != int(first["parts"]) or any(other != first for other in metadata):
        raise TrainingError(f"the weights in {folder} are not whole, or not of one time")
    return json.loads(first["config"]), tensors, float(first["progress"])


def _read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        ModelConfig.from_dict(state["model_config"])
        return state
    except OSError as fault:
        raise TrainingError(f"{path} cannot be read: {fault.strerror}") from None
    except Exception as fault:  # whatever unpickling a damaged file raises
        raise TrainingError(
            f"{path} is not a checkpoint, or is damaged ({type(fault).__name__})"
        ) from None


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
        """Halve the batch, which was too large for the memory; LimitError where it was one patch."""
        if len(clean) == 1:
            raise LimitError(f"one patch of {clean.shape[-1]}x{clean.shape[-1]} exceeds the memory")
        self.largest = len(clean) // 2 * clean.shape[-1] ** 2
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)

    def save(self, path: Path) -> None:
        """Write a checkpoint; a reader sees the old one or the new one, never a part. Diverged, and
        nothing written, where a weight is not finite."""
        weights = [*self.model.parameters(), *self.average.parameters()]
        if not bool(torch.stack([w.detach().isfinite().all() for w in weights]).all()):
            raise Diverged(f"weights are not finite at step {self.step}, nothing was saved")
        state = {
            "model_config": self.model.config.to_dict(),
            "train_config": asdict(self.config),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "counters": {
                key: getattr(self, key)
                for key in ("step", "usual_norm", "seconds", "patches", "pixels")
            },
        }
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint; TrainingError for one of another model, or damaged."""
        state = _read_checkpoint(path, next(self.model.parameters()).device)
        if ModelConfig.from_dict(state["model_config"]) != self.model.config:
            raise TrainingError(f"{path} is a checkpoint of another model")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
            for group in optimiser.param_groups:
                if "fused" in group:  # as this device has it, not that of the checkpoint
                    group["fused"] = group["params"][0].is_cuda
        for key, value in state["counters"].items():
            setattr(self, key, value)


class _Signals:
    """SIGINT and SIGTERM held back while a block runs, raised again at its end."""

    def __init__(self) -> None:
        self.caught: list[int] = []
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self.previous[number] = signal.signal(
                        number, lambda number, frame: self.caught.append(number)
                    )
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if self.caught:
            signal.raise_signal(self.caught[0])


def _draw(
    images: Photographs,
    weather: Sequence[Pairs],
    count: int,
    side: int,
    rng: torch.Generator,
    share: float,
) -> tuple[Tensor, Tensor | None]:
    """A batch of clean patches, and the spoiled ones of its last, which come from pairs; the first
    is always from `images`."""
    parts, spoiled, left = [], [], count - 1
    for pairs in weather:
        chance = torch.rand((), generator=rng, device=rng.device).item()
        given = min(left, int(share * count / len(weather) + chance))
        left -= given
        if given:
            patches, targets = pairs.batch(given, side, rng)
            parts.append(targets)
            spoiled.append(patches)
    parts.insert(0, images.batch(left + 1, side, rng))
    clean = torch.cat(parts).contiguous(memory_format=torch.channels_last)
    return clean, torch.cat(spoiled) if spoiled else None


def train(
    folder: Path,
    output: Path,
    variant: str = "nano",
    config: TrainConfig | None = None,
    *,
    pairs: Sequence[Path] = (),
    validation: Path | None = None,
    start: Model | None = None,
    device: str = "cpu",
    stop_minutes: float = math.inf,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Run:
    """Train on the photographs of `folder` until the budget is spent, going on from
    `output/checkpoint.pt` where there is one, else from `start`, else from scratch.

    With `stop_minutes` this call ends after so many minutes of optimisation, whatever is left of the
    budget, by which the learning rate goes. Of the folders `pairs` (see `data.Pairs`) a share of the
    patches is drawn, the same number from each; what they hold back is validated. `report` gets every row of the log.

    Raises ImageError for a folder without images of the size of the patches, LimitError where not
    even one patch fits into memory, Diverged after twenty skipped steps in a row, TrainingError for a
    checkpoint of another model; the last checkpoint stays good. SIGINT and SIGTERM during a step take
    effect after it, with a checkpoint.
    """
    config = config or TrainConfig()
    output.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    torch.manual_seed(config.seed)
    model = start if start is not None else Model(VARIANTS[variant])
    model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = Run.create(model.requires_grad_(True).train(), config)
    checkpoint = output / "checkpoint.pt"
    if checkpoint.exists():
        run.load(checkpoint)
    images = Photographs.load(folder, device)
    held_out = Photographs.load(validation, device) if validation else None
    weather = [Pairs.load(folder, device) for folder in pairs]
    held_pairs = {folder.name: Pairs.load(folder, device, held_out=True) for folder in pairs}
    largest = max(side for _, side, _ in config.phases)
    if largest > images.largest:
        raise ImageError(f"no training image is {largest} pixels wide and high")
    if held_out is not None and bool((held_out.sides < STRIDE).any()):
        raise ImageError(f"an image of {validation} is less than {STRIDE} pixels wide or high")
    if config.compile:
        compile_parts(model)
    rng = torch.Generator(device).manual_seed(config.seed + 1 + run.step)

    def log(row: dict[str, Any]) -> None:
        row = {"step": run.step, "minutes": round(run.seconds / 60, 2), **row}
        with (output / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        report(row)

    def examine(every: int) -> None:
        """Write the averaged weights, and validate them."""
        save_weights(run.average, output, run.progress)
        if held_out is not None:
            rows = validate(run.average, held_out, every=every)
            for name, pairs in held_pairs.items():
                rows += validate_pairs(run.average, pairs, f"{name} pairs", every=every)
            log({"validation": rows})
            plot(output / "log.jsonl", output / "rd.png")

    log(
        {
            "images": len(images),
            "megapixels": round(images.megapixels, 1),
            "pairs": sum(map(len, weather)),
            "unreadable": [*images.unreadable, *(why for p in weather for why in p.left_out)],
            "device": device,
            "model": model.config.to_dict(),
            "config": asdict(config),
        }
    )
    skipped, recent, seen = 0, [], run.patches
    end = run.seconds + 60 * stop_minutes
    validated = run.seconds
    reported = saved = clock = time.monotonic()
    while run.progress < 1 and run.seconds < end:
        side, count = run.patch()
        with _Signals() as signals:
            clean, spoiled = _draw(images, weather, count, side, rng, config.pairs)
            fits, result = True, None
            try:
                result = run.update(clean, rng, spoiled)
            except (RuntimeError, MemoryError) as fault:
                if not out_of_memory(fault):
                    raise
                fits = False
            if not fits:  # out of the handler, which holds on to what the step had taken
                run.shrink(clean)
                log({"memory": "too little", "batch": run.patch()[1]})
                continue
            now = time.monotonic()
            run.seconds, clock = run.seconds + now - clock, now
            if now - saved >= config.checkpoint_seconds or signals.caught:
                run.save(checkpoint)
                saved = now
        if result is None:
            skipped += 1
            if skipped == SKIPS:
                raise Diverged(f"the loss is not finite, or exploded, at step {run.step}")
            continue
        skipped = 0
        recent.append(result)
        if now - reported >= config.report_seconds:
            loss, bpp, mse = (sum(column) / len(recent) for column in zip(*recent, strict=True))
            log(
                {
                    "loss": round(loss, 4),
                    "bpp": round(bpp, 4),
                    "psnr": round(psnr_from_mse(mse), 2),
                    "lr": round(config.lr_factor(run.step, run.progress), 3),
                    "patch": side,
                    "batch": count,
                    "patches_per_second": round((run.patches - seen) / (now - reported), 2),
                }
            )
            recent, reported, seen = [], now, run.patches
        if run.seconds - validated >= 60 * config.validate_minutes and run.progress < 1:
            run.save(checkpoint)
            examine(every=max(1, len(held_out or ()) // 8))
            validated = run.seconds
            reported = saved = clock = time.monotonic()
            seen = run.patches
    run.save(checkpoint)
    examine(every=1)
    return run
