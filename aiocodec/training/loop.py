"""The training loop, within a budget of minutes.

Both learning rates stay constant for the first half of the budget and fall to zero over the second.
An un-annealed network swings by decibels and is never released.

A run writes into its folder

    checkpoint.pt               everything needed to go on, at least every minute
    weights-0.safetensors, ...  the averaged weights, at every validation and at the end
    log.jsonl                   one object per report: loss, speed, validation
    rd.png                      the validation curves (where matplotlib is installed)

and imports no entropy coder. Killing it loses a minute at most, interrupting it nothing.
"""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aiocodec.config import STRIDE, VARIANTS
from aiocodec.errors import Diverged, ImageError, out_of_memory
from aiocodec.metrics import psnr_from_mse
from aiocodec.model import Model
from aiocodec.training.checkpoint import load_checkpoint, save_checkpoint, save_weights
from aiocodec.training.config import TrainConfig
from aiocodec.training.data import Pairs, Photographs
from aiocodec.training.run import Run, compile_parts
from aiocodec.training.validate import plot, validate, validate_pairs

SKIPS = 20  # skipped steps in a row after which a run has diverged


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

    With `stop_minutes` this call ends after so many minutes of optimisation, whatever is left of
    the budget, by which the learning rate goes. Of the folders `pairs` (see `data.Pairs`) a share
    of the patches is drawn, the same number from each; what they hold back is validated besides
    the images of the folder `validation`, where there is one. `report` gets every row of the log.

    Raises ImageError for a folder without images of the size of the patches, LimitError where not
    even one patch fits into memory, Diverged after twenty skipped steps in a row, TrainingError
    for a checkpoint of another model; the last checkpoint stays good. SIGINT and SIGTERM during a
    step take effect after it, with a checkpoint.
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
        load_checkpoint(run, checkpoint)
    images = Photographs.load(folder, device)
    held_out = Photographs.load(validation, device) if validation else None
    weather = [Pairs.load(folder, device) for folder in pairs]
    held_pairs = {folder.name: Pairs.load(folder, device, held_out=True) for folder in pairs}
    left_out = [why for some in (*weather, *held_pairs.values()) for why in some.left_out]
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
            for name, held in held_pairs.items():
                rows += validate_pairs(run.average, held, f"{name} pairs", every=every)
            log({"validation": rows})
            plot(output / "log.jsonl", output / "rd.png")

    log(
        {
            "images": len(images),
            "megapixels": round(images.megapixels, 1),
            "pairs": sum(map(len, weather)),
            "unreadable": [*images.unreadable, *left_out],
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
                save_checkpoint(run, checkpoint)
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
            save_checkpoint(run, checkpoint)
            examine(every=max(1, len(held_out or ()) // 8))
            validated = run.seconds
            reported = saved = clock = time.monotonic()
            seen = run.patches
    save_checkpoint(run, checkpoint)
    examine(every=1)
    return run
