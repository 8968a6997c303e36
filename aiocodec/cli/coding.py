"""`aic encode` and `aic decode`."""

import functools
import math
import os
from collections.abc import Callable
from contextlib import closing
from typing import Any

import click

from aiocodec.batch import RUNTIMES, Decode, Encode, Job, Row, Tally, Work, guard, run, spread
from aiocodec.cli.options import EPILOG, FILE_NAME, SIZE, STRIPS, Optional, coding_options
from aiocodec.cli.report import Reporter
from aiocodec.config import DEFAULT_EFFORT, DEFAULT_QUALITY, MAX_EFFORT
from aiocodec.errors import AicError, OutputError
from aiocodec.files import identity, is_stdout, is_stream
from aiocodec.loading import loading


@click.command(epilog=EPILOG, cls=Optional)
@click.argument("paths", metavar="IN [OUT]", type=FILE_NAME, nargs=-1)
@click.option(
    "-q",
    "--quality",
    type=click.IntRange(0, 100),
    help=f"0 smallest, 100 best; by default {DEFAULT_QUALITY}.",
)
@click.option(
    "--target-bpp",
    type=click.FloatRange(0, min_open=True),
    help="Best quality within bits per pixel.",
)
@click.option(
    "--max-bytes",
    type=SIZE,
    metavar="SIZE",
    help="Best quality within a file size: 40000, 40kB (1000 bytes each), 40KiB or 40K (1024).",
)
@click.option(
    "--target-psnr",
    type=click.FloatRange(0, min_open=True),
    metavar="DB",
    help="Lowest quality that decodes to so many dB of IN, or, where IN is spoiled, of what is restored "
    "of it at quality 100.",
)
@click.option(
    "--target-ssim",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SSIM",
    help="The same for MS-SSIM, 0.97 for example.",
)
@click.option(
    "-e",
    "--effort",
    type=click.IntRange(0, MAX_EFFORT),
    default=DEFAULT_EFFORT,
    show_default=True,
    help="How long to search for a better file: 0 not at all, 9 for a minute per megapixel.",
)
@click.option(
    "--strip",
    type=click.Choice(STRIPS),
    help="Leave metadata out: all of it, which is what --strip alone does, or what is private, so that "
    "ICC profile and dots per inch stay.",
)
@click.option("--verify", is_flag=True, help="Decode the symbols before the file is written.")
@click.option("--strict", is_flag=True, help="Refuse damaged images, be they readable in part.")
@click.option(
    "--formats",
    metavar="NAME,...",
    help="Read images of these formats only, png,jpeg for example.",
)
@coding_options
def encode(
    paths: tuple[str, ...],
    quality: int | None,
    target_bpp: float | None,
    max_bytes: int | None,
    target_psnr: float | None,
    target_ssim: float | None,
    effort: int,
    strip: str | None,
    verify: bool,
    strict: bool,
    formats: str | None,
    **options: Any,
) -> None:
    """Encode photographs to .aic files.

    IN and OUT may be "-" for stdin and stdout. OUT is by default IN with the suffix .aic, or stdout where
    IN is a stream. Several inputs, and folders with -r or --ray, need --out-dir.
    """
    goals = (quality, target_bpp, max_bytes, target_psnr, target_ssim)
    if sum(goal is not None for goal in goals) > 1:
        raise click.UsageError("give one of --quality, --max-bytes and the targets, not several")
    for name, target in (("bpp", target_bpp), ("psnr", target_psnr), ("ssim", target_ssim)):
        if target is not None and not math.isfinite(target):
            raise click.BadParameter(f"{target} is not finite", param_hint=f"--target-{name}")
    work = functools.partial(
        Encode,
        quality=quality,
        target_bpp=target_bpp,
        max_bytes=max_bytes,
        target_psnr=target_psnr,
        target_ssim=target_ssim,
        effort=effort,
        strip=strip or False,
        verify=verify,
        strict=strict,
        formats=_formats(formats),
    )
    _code(paths, work, **options)


@click.command(epilog=EPILOG, cls=Optional)
@click.argument("paths", metavar="IN [OUT]", type=FILE_NAME, nargs=-1)
@click.option(
    "--format", "format_name", metavar="NAME", help="Image format; by default from OUT, or PNG."
)
@click.option(
    "-d",
    "--depth",
    type=click.Choice(["8", "16"]),
    help="Bits per sample; by default 16 in a PNG whose source had more than 8, and only there.",
)
@click.option(
    "--runtime",
    type=click.Choice(RUNTIMES),
    default="auto",
    show_default=True,
    help="What runs the network: PyTorch, or onnxruntime, on the CPU alone; auto is PyTorch where it is "
    "installed.",
)
@coding_options
def decode(
    paths: tuple[str, ...],
    format_name: str | None,
    depth: str | None,
    runtime: str,
    **options: Any,
) -> None:
    """Decode .aic files to pictures.

    IN and OUT may be "-" for stdin and stdout. OUT is by default IN with the suffix .png, or stdout where
    IN is a stream; its suffix names the format. Several inputs, and folders with -r or --ray,
    need --out-dir.
    """
    suffix: str | None = f".{format_name.lower()}" if format_name else ".png"
    with loading("numpy"):
        from aiocodec.image import format_of
    try:
        format_of(f"x{suffix}")
    except OutputError as error:
        raise click.BadParameter(str(error), param_hint="--format") from None
    if runtime == "onnx" and options["device"] == "cuda":
        raise click.UsageError("--runtime onnx computes on the CPU alone")
    named = options["output"] is not None or (options["out_dir"] is None and len(paths) == 2)
    if named and not format_name:
        suffix = None  # that of OUT
    _code(
        paths,
        functools.partial(
            Decode, suffix=suffix, depth=int(depth) if depth else None, runtime=runtime
        ),
        **options,
    )


def _code(
    paths: tuple[str, ...],
    make_work: Callable[..., Work],
    *,
    output: str | None,
    out_dir: str | None,
    recursive: bool,
    jobs: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    files_from: str | None,
    ray: str | None,
    retry: bool,
    **coding: Any,
) -> None:
    """What both commands do with their files; `coding` are fields of the work."""
    if files_from is not None:
        paths += _listed(files_from)
    if not paths:
        raise click.UsageError("Missing argument 'IN [OUT]'.")
    if coding["force"] and coding["skip_existing"]:
        raise click.UsageError("give --force or --skip-existing, not both")
    if output is not None and out_dir is not None:
        raise click.UsageError("give --output or --out-dir, not both")
    if jobs is not None or ray is not None:
        coding["threads"] = coding["threads"] or 1
    if coding["max_pixels"] is None:
        del coding["max_pixels"]
    work = make_work(**coding)
    say = functools.partial(_lines, verbose=verbose)
    if ray is not None:
        if out_dir is None:
            raise click.UsageError("--ray needs --out-dir")
        if coding["skip_existing"]:
            raise click.UsageError(
                "--ray leaves out what its manifest has; --skip-existing is not for it"
            )
        reporter = Reporter(say, as_json, quiet, summary=True)
        _distribute(paths, out_dir, work, ray, jobs, retry, reporter)
        return
    if retry:
        raise click.UsageError("--retry is for --ray")
    for path in paths[:1] if out_dir is None else paths:
        if not recursive and path != "-" and os.path.isdir(path):
            raise click.UsageError(f"{path} is a folder; -r (--recursive) takes the files in it")
    if out_dir is None:
        todo = [_single(paths, output, work)]
    elif stream := next(filter(is_stream, paths), None):
        what = "stdin" if stream == "-" else f"{stream}, which has no name,"
        raise click.UsageError(f"{what} cannot be combined with --out-dir")
    else:
        todo = spread(paths, out_dir, work, recursive=recursive)
    todo = guard(todo)
    reporter = Reporter(
        say,
        as_json,
        quiet,
        json_err=any(is_stdout(job.target) for job in todo if job.fault is None),
        summary=True,
    )
    with (
        reporter.progress() as progress,
        closing(run(todo, work, jobs or 1, progress)) as outcomes,
    ):
        reporter.report(((job.source, outcome) for job, outcome in outcomes), len(todo))


def _distribute(
    paths: tuple[str, ...],
    out_dir: str,
    work: Work,
    address: str,
    workers: int | None,
    retry: bool,
    reporter: Reporter,
) -> None:
    """What both commands do with their files on a cluster."""
    if stream := next(filter(is_stream, paths), None):
        raise click.UsageError(f"{stream} has no name, and cannot be distributed")
    from aiocodec import ray

    quiet, tally = not os.environ.get("AIC_DEBUG"), Tally()
    fleet = ray.Fleet(address=address or None, workers=workers, retry=retry, quiet=quiet)
    with closing(ray.run(paths, out_dir, work, fleet, tally=tally)) as outcomes:
        reporter.report(outcomes, None, tally)


def _listed(path: str) -> tuple[str, ...]:
    """The lines of a file that have something in them; UsageError where it cannot be read."""
    try:
        with click.open_file(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError as fault:
        raise click.UsageError(f"{path} cannot be read: {fault.strerror}") from None
    return tuple(line for line in lines if line)


def _formats(names: str | None) -> tuple[str, ...] | None:
    """The names of formats in a list of them; BadParameter for one that is not read."""
    if names is None:
        return None
    with loading("numpy"):
        from aiocodec.image import FORMATS
    alias = {"JPG": "JPEG", "TIF": "TIFF", "JP2": "JPEG2000", "HEIC": "HEIF", "DNG": "RAW"}
    found = [name.strip().upper() for name in names.split(",")]
    found = [alias.get(name, name) for name in found]
    for name in found:
        if name not in FORMATS:
            known = " ".join(FORMATS)
            raise click.BadParameter(f"{name!r} is none of {known}", param_hint="--formats")
    return tuple(found)


def _single(paths: tuple[str, ...], output: str | None, work: Work) -> Job:
    """The job of IN [OUT], or of IN and --output. OUT must not be another input: `aic encode -f *.gif`
    would overwrite the second of two pictures."""
    source = paths[0]
    if output is None and len(paths) == 2:
        if identity(source) == identity(paths[1]) or not work.takes(paths[1]):
            output, paths = paths[1], paths[:1]
    elif output is not None and len(paths) == 2 and not work.takes(paths[1]):
        raise click.UsageError(f"give the output once, as {paths[1]} or with --output")
    if len(paths) > 1:
        raise click.UsageError(f"more than one input ({paths[1]}) needs --out-dir")
    if os.path.isdir(source):
        raise click.UsageError(f"a folder ({source}) needs --out-dir")
    if output is not None:
        return Job(source, output)
    if is_stream(source):
        return Job(source, "-")
    target = os.path.splitext(source)[0] + work.output_suffix()
    if identity(source) == identity(target):  # mostly of the other command; nobody named an output
        try:
            work.read(source)
        except AicError as fault:
            return Job(source, target, fault)
    return Job(source, target)


def _lines(row: Row, verbose: bool) -> list[str]:
    """A row for people."""
    files = f"{row['input']} -> {row['output']}"
    if "skipped" in row:
        return [f"{files}: skipped, exists already"]
    line = (
        f"{files}: {row['width']}x{row['height']}, {row['bytes']} bytes, "
        f"{row['bpp']:.3f} bpp, quality {row['quality']}, {row['seconds']:.2f} s"
    )
    if "psnr" in row or "ssim" in row:
        what = f"{row['psnr']:.2f} dB" if "psnr" in row else f"MS-SSIM {row['ssim']:.4f}"
        line += f", {what} of the {row['against']} picture"
    if "encodes" in row:
        line += f", {row['encodes']} encodes"
    return [line + (f", {row['model']} on {row['device']}" if verbose else "")]
