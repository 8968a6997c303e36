"""`aic evaluate`."""

import functools
import json
import shlex
import sys
from pathlib import Path

import click

from aiocodec.cli.options import EPILOG, FOLDER, device_option, threads_option
from aiocodec.cli.report import emit, say
from aiocodec.errors import BatchError
from aiocodec.loading import loading


@click.command(epilog=EPILOG)
@click.argument("folder", type=FOLDER)
@click.option(
    "--degraded",
    type=FOLDER,
    multiple=True,
    help="Folder of degraded versions of the images, of the same names; may be repeated.",
)
@click.option(
    "--degrade",
    "degradations",
    metavar="NAME[:AMOUNT]",
    multiple=True,
    help="Spoil the clean images: noise:25 (of 255), camera, haze, rain, snow (0 to 1, or random),"
    " jpeg:40, blur:1.5 (pixels); rain+noise:10 for both, clean for nothing. May be repeated."
    "  [default: clean, without --degraded]",
)
@click.option(
    "--codec",
    "codecs",
    metavar="[RESTORER+]NAME[:MODEL][/EFFORT][@Q,Q]",
    multiple=True,
    help="aic, aic:nano@30,60, aic/3, jpeg, webp, avif, nlm+avif (denoised first, told the noise;"
    " bm3d too), dcp+avif (haze removed first), dgsm+avif (rain); the first is compared with the others."
    " May be repeated."
    "  [default: aic, jpeg, webp, avif, nlm+avif]",
)
@click.option(
    "--every",
    type=click.IntRange(1),
    default=1,
    metavar="N",
    help="Only every N-th image, from the first.",
)
@click.option(
    "--against",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Results as JSON, of an earlier evaluation for example, to compare with as well.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for report.html, RD plots, results.json and results.csv.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all results as one JSON object.")
@click.option("--csv", is_flag=True, help="Print a line per image, codec and quality.")
@click.option(
    "--cache",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where measurements are kept for the next run.  [default: in the user's cache folder]",
)
@click.option("--no-cache", is_flag=True, help="Measure everything now, and keep nothing.")
@device_option
@threads_option
@click.option("--quiet", is_flag=True, help="No progress bar and no notes.")
def evaluate(
    folder: Path,
    degraded: tuple[Path, ...],
    degradations: tuple[str, ...],
    codecs: tuple[str, ...],
    every: int,
    against: tuple[Path, ...],
    out: Path | None,
    as_json: bool,
    csv: bool,
    cache: Path | None,
    no_cache: bool,
    device: str,
    threads: int | None,
    quiet: bool,
) -> None:
    """Compare codecs on the clean images of FOLDER, coded as they are or degraded.

    Every codec writes real files, reads them back and is measured against the clean images: bits per
    pixel, PSNR, MS-SSIM, seconds, memory, and Bjøntegaard's differences between curves. Interrupted,
    it goes on where it was.
    """
    if as_json and csv:
        raise click.UsageError("give --json or --csv, not both")
    if cache and no_cache:
        raise click.UsageError("give --cache or --no-cache, not both")
    with loading("torch"):
        from aiocodec.evaluate.report import (
            aligned,
            as_csv,
            deltas_table,
            points_table,
            write_report,
        )
        from aiocodec.evaluate.study import Study, default_cache, read_curves

    try:
        study = Study(
            folder,
            degraded=degraded,
            degradations=degradations,
            codecs=codecs or None,
            every=every,
            against=[curve for path in against for curve in read_curves(path)],
            device=device,
            threads=threads,
            cache=None if no_cache else cache or default_cache(),
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    with study:
        if not study.specs:
            raise BatchError("; ".join(": ".join(failure) for failure in study.results.failures))
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)  # an error now, not after hours
        hidden = quiet or sys.stderr is None or not sys.stderr.isatty()
        bar = functools.partial(
            click.progressbar, file=sys.stderr, show_pos=True, hidden=hidden, width=24
        )
        with bar(length=len(study), label="coding") as files:
            results = study.run(files.update)
        if as_json:
            emit(json.dumps(results.to_dict()) + "\n")
        elif csv:
            emit(as_csv(results))
        else:
            say(*aligned(points_table(results.curves), left=2))
            if results.deltas:
                say("", *aligned(deltas_table(results.deltas), left=3))
        if out is not None:
            with bar(length=len(study.degradations), label="report") as parts:
                study.notes += write_report(study, out, command_line(), lambda: parts.update(1))
    if not quiet:
        for note in dict.fromkeys(study.notes):
            say(f"aic: {note}", err=True)
    for what, why in results.failures:
        say(f"aic: {what}: {why}", err=True)
    if results.failures:
        rest = "the rest is done" if results.curves else "nothing could be compared"
        raise BatchError(f"{len(results.failures)} left out, {rest}")


def command_line() -> str:
    """This command, as it could be typed again."""
    return shlex.join(["aic", *sys.argv[1:]])
