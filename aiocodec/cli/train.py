"""`aic train`: run, anneal, release, export, preview and benchmark."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import click

from aiocodec.batch import Row
from aiocodec.cli.options import EPILOG, FOLDER, device_option, grouped
from aiocodec.cli.report import say
from aiocodec.config import STRIDE, VARIANTS
from aiocodec.loading import loading
from aiocodec.training.config import ANNEALED_SHARE, TrainConfig


@click.group(epilog=EPILOG)
def train() -> None:
    """Train models, on CPU cores or on CUDA.

    \b
    aic train run photographs/ --out runs/1
    aic train anneal runs/1 photographs/ --out runs/1-annealed
    aic train release runs/1-annealed weights/

    A run goes on until it is interrupted, and from there when it is started again. What it has come to is
    worth little before a branch of it, which leaves the run as it is, has been annealed.
    """


def multiple_of_stride(ctx: click.Context, param: click.Parameter, side: int | None) -> int | None:
    """A callback that refuses other sides of patches."""
    if side is not None and (side <= 0 or side % STRIDE):
        raise click.BadParameter(f"a multiple of {STRIDE}", ctx, param)
    return side


variant_option = click.option(
    "--variant", type=click.Choice(tuple(VARIANTS)), default="nano", show_default=True
)
batch_options = grouped(
    click.option(
        "--patches",
        type=int,
        metavar="SIDE",
        callback=multiple_of_stride,
        help="Side of the patches, a multiple of 64.  [default: grows with what was seen]",
    ),
    click.option("--batch", type=click.IntRange(1), help="Patches in a step."),
)
training_options = grouped(
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        required=True,
        help="Folder of checkpoint, weights and log.",
    ),
    variant_option,
    batch_options,
    click.option(
        "--depth-maps",
        type=FOLDER,
        help="NAME.png is the predicted depth of the photograph NAME: log of the distance, 255 farthest.",
    ),
    click.option(
        "--scenes",
        type=(FOLDER, FOLDER),
        multiple=True,
        metavar="PICTURES DEPTHS",
        help="Clean NAME_gt.* or NAME_rgb.* and their measured NAME_depth.png; may be repeated.",
    ),
    click.option(
        "--pairs",
        type=FOLDER,
        multiple=True,
        help="NAME_in.* spoiled and NAME_gt.* clean; may be repeated.",
    ),
    click.option("--validation", type=FOLDER, help="Folder of clean images."),
    click.option(
        "--clean",
        type=click.FloatRange(0, 1),
        default=TrainConfig.clean,
        show_default=True,
        help="Share of the photographs that is not degraded.",
    ),
    click.option(
        "--faded",
        type=click.FloatRange(0, 1),
        default=TrainConfig.faded,
        show_default=True,
        help="Share of what is not degraded that is in other tones, with lifted blacks.",
    ),
    click.option(
        "--lr",
        type=click.FloatRange(0, min_open=True),
        default=TrainConfig.lr_matrix,
        show_default=True,
        help="Learning rate of the matrices.",
    ),
    click.option("--compile/--no-compile", default=TrainConfig.compile, help="Use torch.compile."),
    click.option("--seed", type=int, default=TrainConfig.seed, show_default=True),
    device_option,
)


def training_device(device: str) -> str:
    """ "cpu" or "cuda", for `--device`."""
    with loading("torch"):
        import torch
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def training_arguments(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `training_options` but the first four gave: fields of TrainConfig, and what `loop.train` takes
    besides it."""
    fields = {name: options[name] for name in ("clean", "faded", "compile", "seed")}
    data = {name: options[name] for name in ("scenes", "pairs", "validation")}
    data |= {"depths": options["depth_maps"], "device": training_device(options["device"])}
    return {**fields, "lr_matrix": options["lr"]}, {**data, "report": report_training}


@train.command("run", epilog=EPILOG)
@click.argument("photographs", type=FOLDER)
@training_options
@click.option(
    "--until",
    type=click.FloatRange(0, min_open=True),
    metavar="MEGAPIXELS",
    help="Stop when so many have been shown in all.  [default: go on until interrupted]",
)
@click.option(
    "--grow",
    type=(click.FloatRange(0), click.IntRange(1)),
    multiple=True,
    metavar="MEGAPIXELS BLOCKS",
    help="From so many on, stages have so many blocks at most: --grow 0 2 --grow 200 4.",
)
@click.option("--pretrained", is_flag=True, help="Start from the released weights of the variant.")
@click.option(
    "--start",
    type=click.Path(exists=True, path_type=Path),
    help="Start from the weights of another run, its folder or its checkpoint, and from its megapixels.",
)
def train_run(
    photographs: Path,
    out: Path,
    variant: str,
    patches: int | None,
    batch: int | None,
    until: float | None,
    grow: tuple[tuple[float, int], ...],
    pretrained: bool,
    start: Path | None,
    **options: Any,
) -> None:
    """Train a model on PHOTOGRAPHS at constant learning rates, without an end, going on from
    OUT/checkpoint.pt where there is one."""
    if pretrained and start:
        raise click.UsageError("give --pretrained or --start, not both")
    fields, data = training_arguments(options)
    if grow:
        fields["depths"] = tuple(sorted({0.0: 99, **dict(grow)}.items()))
    config = TrainConfig.for_device(data["device"], patches, batch, **fields)
    from aiocodec.pretrained import Manifest

    with loading("torch"):
        from aiocodec.training.checkpoint import load_weights, seen
        from aiocodec.training.loop import train as run

    model, megapixels = (load_weights(start), seen(start)) if start else (None, 0.0)
    if pretrained:
        model = Manifest.read().load(variant).trainable()
    until = until or math.inf
    run(photographs, out, variant, config, start=model, seen=megapixels, until=until, **data)


@train.command("anneal", epilog=EPILOG)
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.argument("photographs", type=FOLDER)
@training_options
@click.option(
    "--megapixels",
    type=click.FloatRange(0, min_open=True),
    help="Within which the learning rate falls to zero.  "
    f"[default: {ANNEALED_SHARE:.0%} of what RUN has seen]",
)
def train_anneal(
    run: Path,
    photographs: Path,
    out: Path,
    variant: str,
    patches: int | None,
    batch: int | None,
    megapixels: float | None,
    **options: Any,
) -> None:
    """Branch from RUN, running or stopped, into the folder OUT, and bring the learning rate to zero."""
    fields, data = training_arguments(options)
    config = TrainConfig.for_device(data["device"], **fields)
    with loading("torch"):
        from aiocodec.training.loop import anneal

    anneal(run, photographs, out, variant, config, megapixels, side=patches, batch=batch, **data)


@train.command("release", epilog=EPILOG)
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.argument("weights", type=click.Path(path_type=Path))
@click.option(
    "--fit",
    type=FOLDER,
    metavar="PHOTOGRAPHS",
    help="Fit the tables of y to how these are coded: a little fewer bits for some minutes.",
)
def train_release(run: Path, weights: Path, fit: Path | None) -> None:
    """Freeze an annealed RUN into the folder WEIGHTS, as its default model."""
    with loading("torch"):
        from aiocodec.training.checkpoint import load_weights
        from aiocodec.training.data import Photographs
        from aiocodec.training.release import release

    photographs = Photographs.load(fit) if fit else None
    frozen = release(load_weights(run, annealed=True), weights, photographs=photographs)
    say(f"released into {weights}, entropy model {frozen.fingerprint.hex()}", err=True)


@train.command("export", epilog=EPILOG)
@click.argument("weights", type=FOLDER)
@click.option("--model", help="The model; by default all models of the folder.")
def train_export(weights: Path, model: str | None) -> None:
    """Write g_s of the models in the folder WEIGHTS as ONNX graphs beside them, for decoders without
    PyTorch. A release does so itself."""
    with loading("torch"):
        from aiocodec.pretrained import Manifest
        from aiocodec.training.release import export

    for name in [model] if model else Manifest.read(weights).models:
        say(f"exported {export(weights, name)}", err=True)


def report_training(row: Row) -> None:
    """Progress of the training loop, on stderr: one line that is written over on a terminal."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    if "validation" in row:
        if terminal:
            say(err=True)
        say(*(f"  validation {json.dumps(point)}" for point in row["validation"]), err=True)
    elif "loss" in row:
        line = (
            f"{row['megapixels']:9.1f} megapixels, step {row['step']}: loss {row['loss']:.3f}, "
            f"{row['bpp']:.3f} bpp, {row['psnr']:.2f} dB, {row['megapixels_per_second']:.3f} megapixels/s "
            f"of {row['batch']} x {row['patch']}x{row['patch']}, learning rate {row['lr']:.0%}"
        )
        if terminal:
            click.echo(f"\r{line:<118}", nl=False, err=True)
        else:
            say(line, err=True)
    elif "memory" in row:
        say(f"too little memory: batches of {row['batch']} from here on", err=True)
    elif row.get("left_out"):
        names = row["left_out"]
        say(
            f"aic: {len(names)} files or pairs cannot be used and are left out: {names[0]}",
            err=True,
        )


@train.command("preview", epilog=EPILOG)
@click.argument("photographs", type=FOLDER)
@click.argument("sheet", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--seed", type=int, default=TrainConfig.seed, show_default=True)
def train_preview(photographs: Path, sheet: Path, seed: int) -> None:
    """Write a contact SHEET of what training does to five of the first fifty PHOTOGRAPHS, as PNG."""
    write_preview(photographs, sheet, seed)


def write_preview(folder: Path, path: Path, seed: int) -> None:
    """A contact sheet of what training does to five of the first fifty photographs, made small."""
    with loading("torch"):
        import numpy as np
        import torch
        from PIL import Image, ImageOps

        from aiocodec.degrade import contact_sheet
        from aiocodec.training.data import Photographs

    images = Photographs.load(folder, limit=50)
    chosen = np.random.default_rng(seed).choice(len(images), 5, replace=len(images) < 5)
    small = [
        ImageOps.fit(Image.fromarray(images[int(i)].permute(1, 2, 0).numpy()), (320, 240))
        for i in chosen
    ]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in small]))
    sheet = contact_sheet(pixels.permute(0, 3, 1, 2), seed)
    Image.fromarray(sheet).save(path, format="PNG")


@train.command("benchmark", epilog=EPILOG)
@variant_option
@batch_options
@click.option(
    "--blocks", type=click.IntRange(1), help="Of every stage at most, as `--grow` has them."
)
@device_option
def train_benchmark(
    variant: str, patches: int | None, batch: int | None, blocks: int | None, device: str
) -> None:
    """Measure how fast this machine trains."""
    device = training_device(device)
    with loading("torch"):
        from aiocodec.training.benchmark import benchmark

    cuda = device == "cuda"
    side = TrainConfig.for_device(device, patches).phase(0)[0]
    batches = (batch,) if batch else (16, 32, 64, 128) if cuda else (4, 8, 16)
    config = VARIANTS[variant] if blocks is None else VARIANTS[variant].shallow(blocks)
    say(f"{variant} on {device}, patches of {side}x{side}")
    say("batch compile megapixels/s  ms a step  compute floor  memory floor  share of the larger")
    for row in benchmark(config, device, side, batches, (False, True) if cuda else (False,)):
        say(
            f"{row['batch']:5d} {'yes' if row['compile'] else 'no':>7}"
            f" {row['megapixels_per_second']:12.3f} {row['ms']:10.1f} {row['compute_floor_ms']:14.1f}"
            f" {row['memory_floor_ms']:13.1f} {row['share']:8.0%}"
        )
