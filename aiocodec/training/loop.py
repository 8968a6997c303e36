"""The training loop: a run without an end, and the branches that end it.

The learning rates of a run stay as they are, so it can go on for ever, over many sittings; a network of
such rates swings by decibels. A branch leaves the run, which does not notice, and brings the rates to
zero: `anneal`. What it ends with is what is validated and released. Progress counts in megapixels shown,
whatever the machine is worth.

A run writes into its folder

    checkpoint.pt               everything needed to go on, at least every half minute
    weights-0.safetensors, ...  the averaged weights, at every validation and at the end
    log.jsonl                   one object per report: loss, speed, validation
    rd.png, progress.png        the validation curves, and PSNR over megapixels (with matplotlib)

and imports no entropy coder. Killing it loses half a minute, interrupting it nothing.
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
from aiocodec.errors import Diverged, ImageError, TrainingError, out_of_memory
from aiocodec.metrics import psnr_from_mse
from aiocodec.model import Model, widen
from aiocodec.training.checkpoint import history, load_run, save_checkpoint, save_weights
from aiocodec.training.config import AHEAD, ANNEALED_SHARE, TrainConfig
from aiocodec.training.cores import prepare
from aiocodec.training.data import Mixture, Pairs, Photographs, held_out
from aiocodec.training.run import Run, compile_parts
from aiocodec.training.validate import deep_share, plot, validate, validate_pairs

BRIEFLY = 8  # of the validation, every so many pictures are looked at while a run goes on
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


def train(
    photographs: Path,
    output: Path,
    variant: str = "nano",
    config: TrainConfig | None = None,
    *,
    depths: Path | None = None,
    scenes: Sequence[tuple[Path, Path]] = (),
    pairs: Sequence[Path] = (),
    validation: Path | None = None,
    start: Model | None = None,
    seen: float = 0.0,
    branch_of: Path | None = None,
    device: str = "cpu",
    until: float = math.inf,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Run:
    """Train until a branch is annealed, or `until` so many megapixels have been shown, going on from
    `output/checkpoint.pt` where there is one, else from the checkpoint `branch_of`, else from `start`,
    a shallower form of the variant perhaps, or one of fewer latents and no gate, whose megapixels so far
    are `seen`, else from scratch.

    `photographs`, `depths`, `scenes` and `pairs` are those of `data.Mixture`; the images of the folder
    `validation`, where there is one, are validated, and with them the pairs that are held out. `report`
    gets every row of the log.

    Raises ImageError for a folder without images of the size of the patches, LimitError where not
    even one patch fits into memory, Diverged after twenty skipped steps in a row, TrainingError
    for a checkpoint that does not fit (see `load_run`), before anything is written; the last
    checkpoint stays good. SIGINT and SIGTERM during a step take effect after it, with a checkpoint.
    """
    config = config or TrainConfig()
    shape = VARIANTS[variant]
    prepare()
    checkpoint = output / "checkpoint.pt"
    if checkpoint.exists():
        run = load_run(checkpoint, shape, config, device)
    elif branch_of is not None:
        run = load_run(branch_of, shape, config, device, branch=True)
    else:
        torch.manual_seed(config.seed)
        model = start if start is not None else Model(shape.shallow(config.depth(0)))
        try:
            model = widen(model, shape.shallow(model.config.depth))
        except ValueError:
            raise TrainingError(f"the weights to start from are not those of a {variant}") from None
        run = Run.create(model.to(device), config)
        run.pixels = round(seen * 1e6)
    mixture = Mixture.load(photographs, device, depths, scenes, pairs)
    held = Photographs.load(validation, device) if validation else None
    names = [folder.name for folder in pairs]
    unseen = {
        folder.name if names.count(folder.name) == 1 else str(folder): Pairs.load(
            folder, device, unseen=True
        )
        for folder in pairs
        if held is not None and held_out(folder)
    }
    sources: list[Mixture | Photographs | Pairs] = [mixture]
    if held is not None:
        sources += [held, *unseen.values()]
    largest = max(side for _, side, _ in config.phases)
    if largest > mixture.photographs.largest:
        raise ImageError(f"no training image is {largest} pixels wide and high")
    if held is not None and bool((held.sides < STRIDE).any()):
        raise ImageError(f"an image of {validation} is less than {STRIDE} pixels wide or high")
    output.mkdir(parents=True, exist_ok=True)

    def log(row: dict[str, Any]) -> None:
        row = {
            "step": run.step,
            "megapixels": round(run.megapixels, 1),
            "minutes": round(run.seconds / 60, 2),
            **row,
        }
        with (output / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        report(row)

    def examine(every: int) -> None:
        """Write the averaged weights, and validate them."""
        save_weights(run.average, output, run.progress, run.megapixels)
        if held is not None:
            rows = validate(run.average, held, every=every)
            for name, some in unseen.items():
                rows += validate_pairs(run.average, some, f"{name} pairs", every=every)
            log({"validation": rows, "deep_share": round(deep_share(run.average, held, every), 3)})
            plot(output / "log.jsonl", output)

    def deepen_if_due() -> None:
        goal = shape.shallow(max(run.model.config.depth, config.depth(run.megapixels)))
        if goal != run.model.config:
            run.grow(goal)
            log({"deepened": goal.to_dict()})
            if config.compile:
                compile_parts(run.model)

    log(
        {
            "images": len(mixture.photographs),
            "image_megapixels": round(mixture.photographs.megapixels, 1),
            "scenes": sum(map(len, mixture.scenes)),
            "pairs": sum(map(len, mixture.pairs)),
            "left_out": [why for source in sources for why in source.left_out],
            "device": device,
            "model": run.model.config.to_dict(),
            "config": asdict(config),
        }
    )
    if config.compile:
        compile_parts(run.model)
    ahead = AHEAD[device]
    drawn: list[tuple[Tensor, Tensor]] = []  # batches that are yet to be shown
    queued: list[Tensor] = []  # what steps have come to, that is yet to be asked for
    skipped, skips, recent, shown = 0, 0, [], run.pixels
    validated = run.megapixels
    reported = saved = clock = time.monotonic()
    while run.progress < 1 and run.megapixels < until:
        deepen_if_due()
        side, count = run.patch()
        with _Signals() as signals:
            fits, results = True, []
            try:
                if not drawn or drawn[0][0].shape[::2] != (count, side):
                    drawn = mixture.batches(count, side, run.rng, config, ahead)
                if ahead > 1:
                    queued.append(run.queue(*drawn.pop()))
                    if len(queued) >= ahead:
                        results, queued = run.settle(queued), []
                else:
                    results = [run.update(*drawn.pop())]
            except (RuntimeError, MemoryError) as fault:
                if not out_of_memory(fault):
                    raise
                fits = False
            if not fits:  # out of the handler, which holds on to what the step had taken
                drawn, queued = [], []
                run.shrink(count, side)
                log({"memory": "too little", "batch": run.patch()[1]})
                continue
            now = time.monotonic()
            run.seconds, clock = run.seconds + now - clock, now
            if now - saved >= config.checkpoint_seconds or signals.caught:
                save_checkpoint(run, checkpoint)
                saved = now
        for result in results:
            skipped = 0 if result is not None else skipped + 1
            skips += result is None
            if skipped == SKIPS:
                raise Diverged(f"the loss is not finite, or exploded, at step {run.step}")
        recent += [result for result in results if result is not None]
        if not results or results[-1] is None:
            continue
        if now - reported >= config.report_seconds:
            loss, bpp, mse = (sum(column) / len(recent) for column in zip(*recent, strict=True))
            log(
                {
                    "loss": round(loss, 4),
                    "bpp": round(bpp, 4),
                    "psnr": round(psnr_from_mse(mse), 2),
                    "lr": round(config.lr_factor(run.step, run.megapixels), 3),
                    "patch": side,
                    "batch": count,
                    "skipped": skips,
                    "megapixels_per_second": round(
                        (run.pixels - shown) / 1e6 / (now - reported), 4
                    ),
                }
            )
            recent, skips, reported, shown = [], 0, now, run.pixels
        if run.megapixels - validated >= config.validate_megapixels and run.progress < 1:
            save_checkpoint(run, checkpoint)
            examine(every=BRIEFLY)
            validated = run.megapixels
            reported = saved = clock = time.monotonic()
            shown = run.pixels
    save_checkpoint(run, checkpoint)
    examine(every=BRIEFLY if config.anneal is None else 1)
    return run


def anneal(
    run: Path,
    photographs: Path,
    output: Path,
    variant: str = "nano",
    config: TrainConfig | None = None,
    megapixels: float | None = None,
    *,
    side: int | None = None,
    batch: int | None = None,
    device: str = "cpu",
    **data: Any,
) -> Run:
    """Branch from a run, in its folder `run` and running or stopped, into the folder `output`, and bring
    the rates to zero within so many megapixels, ANNEALED_SHARE of what the run has seen unless given.
    A branch that was interrupted goes on, to the end that it had. Other arguments and errors are those
    of `train`; TrainingError too where there is no run, or its own folder is given for the output."""
    config = config or TrainConfig.for_device(device)
    source = run / "checkpoint.pt" if run.is_dir() else run
    if output.resolve() == source.parent.resolve():
        raise TrainingError(f"a branch of {run} needs a folder of its own")
    own = output / "checkpoint.pt"
    seen, begun = history(own if own.exists() else source)
    if own.exists() and begun is not None:
        seen, megapixels = begun[0], begun[1] - begun[0]
    config = config.annealed(device, seen, megapixels or ANNEALED_SHARE * seen, side, batch)
    return train(photographs, output, variant, config, branch_of=source, device=device, **data)
