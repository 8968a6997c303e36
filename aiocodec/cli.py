"""The command line; the only module that prints or exits.

An error is one line on stderr and one of EXIT_CODES, never a traceback (unless AIC_DEBUG is set).
torch, numpy and Pillow are imported only by the commands that need them, so that `--help` and `info`
start at once.
"""

import functools
import io
import json
import math
import os
import shlex
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

import click

from aiocodec import __version__
from aiocodec.config import DEFAULT_MAX_PIXELS, DEFAULT_QUALITY, STRIDE, VARIANTS
from aiocodec.container import ChunkType, Container, unpack, unpack_latents
from aiocodec.errors import (
    AicError,
    BatchError,
    BitstreamError,
    ImageError,
    LimitError,
    ModelError,
    OutputError,
    out_of_memory,
)
from aiocodec.training.config import ANNEALED_SHARE, TrainConfig

if TYPE_CHECKING:
    from aiocodec.codec import Codec

EXIT_CODES = {
    0: "done",
    1: "internal error",
    2: "wrong usage",
    3: "an image that cannot be read",
    4: "an .aic file that is corrupt, truncated or cannot be read",
    5: "an .aic file of an unsupported version or another model, or no weights",
    6: "a limit is exceeded: pixels, memory or file size",
    7: "the output exists or cannot be written",
    8: "some files of a batch failed, the others are done",
    9: "training cannot go on, its last checkpoint is good",
    130: "interrupted",
    143: "terminated",
}
EPILOG = "\b\nExit codes:\n" + "\n".join(f"{code:5}  {text}" for code, text in EXIT_CODES.items())

MODELS = tuple(VARIANTS)

Row = dict[str, Any]  # what is reported of a file; keys as in the JSON


# --------------------------------------------------------------------------- files


def read_input(path: str, error: type[AicError]) -> bytes:
    """The bytes of a file, or of stdin for "-"; `error` where they cannot be read."""
    try:
        if path != "-":
            return Path(path).read_bytes()
        if sys.stdin is None:
            raise error("stdin is closed")
        if sys.stdin.isatty():
            raise error("stdin is a terminal, give a file or a pipe")
        return sys.stdin.buffer.read()
    except OSError as fault:
        raise error(f"cannot be read: {fault.strerror}") from None


def check_output(path: str, force: bool) -> None:
    """OutputError where `path`, or stdout for "-", is not a place that may be written."""
    if path == "-":
        if sys.stdout is None:
            raise OutputError("stdout is closed")
        if sys.stdout.isatty() and not force:
            raise OutputError("stdout is a terminal; --force writes there all the same")
        return
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise OutputError(f"{path} is a folder; --out-dir writes into it")
    if not os.path.isdir(folder):
        raise OutputError(f"the folder {folder} does not exist")
    if is_special(path):
        return
    if not force and os.path.lexists(path):
        raise OutputError(f"{path} exists already; --force overwrites it")
    if not os.access(os.path.dirname(os.path.realpath(path)), os.W_OK):
        raise OutputError(f"the folder of {path} cannot be written")


def is_special(path: str) -> bool:
    """Whether `path` is a device or a pipe, which is written in place and never overwritten."""
    return os.path.exists(path) and not os.path.isfile(path)


def write_output(path: str, data: bytes, force: bool) -> None:
    """Write a whole file or none: into a temporary file beside it, synced, then renamed."""
    check_output(path, force)
    if path == "-":
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except OSError as fault:
            abandon(sys.stdout)
            raise OutputError(f"stdout cannot be written: {fault.strerror}") from None
        return
    target = os.path.realpath(path)
    temporary = os.path.join(os.path.dirname(target), f".aic-{os.urandom(8).hex()}")
    try:
        if is_special(target):
            Path(target).write_bytes(data)
            return
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(target):
            os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))
        os.replace(temporary, target)
    except OSError as fault:
        raise OutputError(f"{path} cannot be written: {fault.strerror}") from None
    finally:  # signals come through here too
        with suppress(OSError):
            os.unlink(temporary)


def pair_outputs(
    paths: Sequence[str], out_dir: str | None, suffix: str, is_input: Callable[[str], bool]
) -> list[tuple[str, str]]:
    """(input, output) for the paths of a command: IN [OUT] without --out-dir, inputs with it.

    `is_input` tells from a name whether it is that of another input: `aic encode -f *.png` must not
    overwrite the second of two pictures with the first.
    """
    if out_dir is None:
        if len(paths) > 2 or (len(paths) == 2 and is_input(paths[1])):
            raise click.UsageError(f"more than one input ({paths[1]}) needs --out-dir")
        source = paths[0]
        if len(paths) == 2:
            return [(source, paths[1])]
        return [(source, "-" if source == "-" else os.path.splitext(source)[0] + suffix)]
    if "-" in paths:
        raise click.UsageError("stdin cannot be combined with --out-dir")
    if not os.path.isdir(out_dir):
        try:
            os.mkdir(out_dir)
        except OSError as fault:
            raise OutputError(f"the folder {out_dir} cannot be made: {fault.strerror}") from None
    stems = (os.path.splitext(os.path.basename(path))[0] for path in paths)
    return [
        (path, os.path.join(out_dir, stem + suffix))
        for path, stem in zip(paths, stems, strict=True)
    ]


def is_same_file(source: str, target: str) -> bool:
    """Whether two paths lead to the same ordinary file."""
    return os.path.isfile(source) and os.path.isfile(target) and os.path.samefile(source, target)


# --------------------------------------------------------------------------- reporting


def say(*lines: str, err: bool = False) -> None:
    """Print lines. What would garble the terminal is shown as "?", in names of files for example."""
    text = "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)
    try:
        click.echo(text, err=err)
    except OSError as fault:
        abandon(sys.stderr if err else sys.stdout)
        if not err:
            raise OutputError(f"stdout cannot be written: {fault.strerror}") from None


def emit(text: str) -> None:
    """Write data to stdout as it is."""
    if sys.stdout is None:
        raise OutputError("stdout is closed")
    try:
        click.echo(text, nl=False)
    except OSError as fault:
        abandon(sys.stdout)
        raise OutputError(f"stdout cannot be written: {fault.strerror}") from None


def abandon(stream: IO[str] | None) -> None:
    """Let what a broken stream still buffers go nowhere: the interpreter would try to write it once
    more at its end, and complain."""
    if stream is not None:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@dataclass
class Reporter:
    """What a command says of its files while it works, and of those that fail."""

    lines: Callable[[Row], list[str]]  # the report for people
    as_json: bool
    quiet: bool = False  # errors only
    lines_err: bool = True  # lines go to stderr
    json_err: bool = False  # JSON goes to stderr, because stdout carries a file
    bar_shown: bool = False

    def done(self, row: Row) -> None:
        """One file is finished."""
        if self.as_json:
            self._say(json.dumps(row), err=self.json_err)
        elif not self.quiet:
            self._say(*self.lines(row), err=self.lines_err)

    def failed(self, path: str, error: AicError) -> None:
        """One file could not be done."""
        if self.as_json:
            row = {"input": path, "error": str(error), "exit_code": error.exit_code}
            self._say(json.dumps(row), err=self.json_err)
        if not (self.as_json and self.json_err):
            self._say(f"aic: {path}: {error}", err=True)

    @contextmanager
    def progress(self, count: int) -> Iterator[Callable[[], None]]:
        """A bar on stderr for more than one file, where lines go there and it is a terminal; gives
        the function that advances it."""
        lines = self.lines_err and not self.quiet and not self.as_json
        if count < 2 or not lines or sys.stderr is None or not sys.stderr.isatty():
            yield lambda: None
            return
        with click.progressbar(length=count, file=sys.stderr, show_pos=True) as bar:
            self.bar_shown = True
            try:
                yield lambda: bar.update(1)
            finally:
                self.bar_shown = False

    def _say(self, *lines: str, err: bool) -> None:
        if self.bar_shown:  # its next step draws it again, below
            click.echo("\r\x1b[K", nl=False, err=True)
        say(*lines, err=err)


def run_batch(
    pairs: Sequence[tuple[str, str]], work: Callable[[str, str], Row], reporter: Reporter
) -> None:
    """Do every (input, output). One alone fails with its own error; of several, the others are still
    done and a BatchError follows."""
    failures: list[AicError] = []
    written: set[str] = set()
    with reporter.progress(len(pairs)) as advance:
        for source, target in pairs:
            try:
                if target in written:
                    raise OutputError(f"{target} has just been written, from another input")
                if target != "-" and is_same_file(source, target):
                    raise OutputError("the output is the input")
                row = work(source, target)
            except click.UsageError:
                raise
            except Exception as fault:
                error = as_aic_error(fault)
                reporter.failed(source, error)
                failures.append(error)
            else:
                if target != "-":
                    written.add(target)
                reporter.done(row)
            advance()
    if failures and len(pairs) == 1:
        raise click.exceptions.Exit(failures[0].exit_code)
    if failures:
        raise BatchError(f"{len(failures)} of {len(pairs)} files failed")


def as_aic_error(fault: Exception) -> AicError:
    """The error to report for an exception: itself, or what should never happen by its name."""
    if isinstance(fault, AicError):
        return fault
    if os.environ.get("AIC_DEBUG"):
        raise fault
    if out_of_memory(fault):
        return LimitError("not enough memory")
    text = " ".join(str(fault).split())[:200]
    return AicError(
        f"internal error: {type(fault).__name__}: {text} (AIC_DEBUG=1 shows the traceback)"
    )


# --------------------------------------------------------------------------- commands


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that encode and decode share."""
    for option in reversed(
        (
            click.option(
                "--out-dir",
                metavar="DIR",
                help="Write every output into this folder; allows several inputs.",
            ),
            model_option,
            device_option,
            threads_option,
            click.option(
                "--max-pixels",
                type=click.IntRange(1),
                default=DEFAULT_MAX_PIXELS,
                show_default=True,
                help="Refuse larger pictures.",
            ),
            click.option("-f", "--force", is_flag=True, help="Overwrite existing outputs."),
            click.option(
                "--json", "as_json", is_flag=True, help="Report one JSON object per file."
            ),
            click.option("--quiet", is_flag=True, help="Report errors only."),
            click.option("--verbose", is_flag=True, help="Report model and device too."),
        )
    ):
        command = option(command)
    return command


model_option = click.option(
    "--model", type=click.Choice(MODELS), help="Transforms to use; by default the best that fits."
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute; auto is cuda where there is one.",
)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
threads_option = click.option(
    "--threads", type=click.IntRange(1), help="CPU threads; by default all cores."
)


@functools.cache
def load_codec(model: str | None, device: str, threads: int | None) -> "Codec":
    """Import torch and load a model; UsageError for a device that is not there."""
    import torch

    from aiocodec.codec import Codec

    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("no CUDA device is available")
    if threads is not None:
        torch.set_num_threads(threads)
    return Codec(model, device)


@click.group(
    epilog=EPILOG, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="aic")
def cli() -> None:
    """Compress photographs, and restore them on the way: noise goes in, a clean picture comes out."""


@cli.command(epilog=EPILOG)
@click.argument("paths", metavar="IN [OUT]", nargs=-1, required=True)
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
@click.option("--max-bytes", type=click.IntRange(1), help="Best quality within a file size.")
@click.option("--strip", is_flag=True, help="Leave ICC profile, EXIF and XMP out.")
@click.option("--verify", is_flag=True, help="Decode the symbols before the file is written.")
@common_options
def encode(
    paths: tuple[str, ...],
    quality: int | None,
    target_bpp: float | None,
    max_bytes: int | None,
    strip: bool,
    verify: bool,
    out_dir: str | None,
    model: str | None,
    device: str,
    threads: int | None,
    max_pixels: int,
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Encode photographs to .aic files.

    IN and OUT may be "-" for stdin and stdout. OUT is by default IN with the suffix .aic. Several
    inputs need --out-dir.
    """
    from aiocodec.image import read

    if sum(goal is not None for goal in (quality, target_bpp, max_bytes)) > 1:
        raise click.UsageError("--quality, --target-bpp and --max-bytes exclude each other")
    if target_bpp is not None and not math.isfinite(target_bpp):
        raise click.BadParameter(f"{target_bpp} is not finite", param_hint="--target-bpp")
    pairs = pair_outputs(paths, out_dir, ".aic", is_picture_name)
    lines = functools.partial(coding_lines, verbose=verbose)
    reporter = Reporter(lines, as_json, quiet, json_err=pairs[0][1] == "-")

    def work(source: str, target: str) -> Row:
        started = time.perf_counter()
        check_output(target, force)
        picture = read(read_input(source, ImageError), max_pixels=max_pixels)
        codec = load_codec(model, device, threads)
        height, width, _ = picture.rgb.shape
        limit = max_bytes if target_bpp is None else int(target_bpp * width * height / 8)
        if limit is None:
            used = DEFAULT_QUALITY if quality is None else quality
            data = codec.encode(picture, used, strip=strip, verify=verify)
        else:
            data, used = codec.encode_to_size(picture, limit, strip=strip, verify=verify)
        write_output(target, data, force)
        return coding_row(source, target, (width, height), len(data), used, codec, started)

    run_batch(pairs, work, reporter)


def is_picture_name(path: str) -> bool:
    """Whether the suffix of `path` is that of an image format."""
    from aiocodec.image import format_of

    try:
        format_of(path)
    except OutputError:
        return False
    return True


@cli.command(epilog=EPILOG)
@click.argument("paths", metavar="IN [OUT]", nargs=-1, required=True)
@click.option(
    "--format", "format_name", metavar="NAME", help="Image format; by default from OUT, or PNG."
)
@common_options
def decode(
    paths: tuple[str, ...],
    format_name: str | None,
    out_dir: str | None,
    model: str | None,
    device: str,
    threads: int | None,
    max_pixels: int,
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Decode .aic files to pictures.

    IN and OUT may be "-" for stdin and stdout. OUT is by default IN with the suffix .png; its suffix
    names the format. Several inputs need --out-dir.
    """
    from aiocodec.image import format_of, write
    from aiocodec.pretrained import Manifest

    suffix = f".{format_name.lower()}" if format_name else ".png"
    try:
        default_format = format_of(f"x{suffix}")
    except OutputError as error:
        raise click.BadParameter(str(error), param_hint="--format") from None
    pairs = pair_outputs(paths, out_dir, suffix, is_aic_name)
    out_is_given = out_dir is None and len(paths) == 2 and paths[1] != "-"
    lines = functools.partial(coding_lines, verbose=verbose)
    reporter = Reporter(lines, as_json, quiet, json_err=pairs[0][1] == "-")

    def work(source: str, target: str) -> Row:
        started = time.perf_counter()
        format = format_of(target) if out_is_given and not format_name else default_format
        check_output(target, force)
        data = read_input(source, BitstreamError)
        container = unpack(data, max_pixels=max_pixels)
        header = container.header
        unpack_latents(container.get(ChunkType.LATENTS) or b"", header.version)
        name = model or Manifest.read().for_fingerprint(header.fingerprint)
        codec = load_codec(name, device, threads)
        write_output(target, write(codec.decode(container), format), force)
        size = header.width, header.height
        return coding_row(source, target, size, len(data), header.quality, codec, started)

    run_batch(pairs, work, reporter)


def is_aic_name(path: str) -> bool:
    """Whether `path` has the suffix .aic."""
    return path.lower().endswith(".aic")


def coding_row(
    source: str,
    target: str,
    size: tuple[int, int],
    length: int,
    quality: int,
    codec: "Codec",
    started: float,
) -> Row:
    """What encode and decode report of a picture of `size` and its .aic file of `length` bytes."""
    width, height = size
    return {
        "input": source,
        "output": target,
        "width": width,
        "height": height,
        "bytes": length,
        "bpp": round(8 * length / (width * height), 5),
        "quality": quality,
        "model": codec.name,
        "device": codec.device.type,
        "seconds": round(time.perf_counter() - started, 3),
    }


def coding_lines(row: Row, verbose: bool) -> list[str]:
    """The same for people."""
    line = (
        f"{row['input']} -> {row['output']}: {row['width']}x{row['height']}, {row['bytes']} bytes, "
        f"{row['bpp']:.3f} bpp, quality {row['quality']}, {row['seconds']:.2f} s"
    )
    return [line + (f", {row['model']} on {row['device']}" if verbose else "")]


@cli.command(epilog=EPILOG)
@click.argument("paths", metavar="[IN]...", nargs=-1)
@click.option("--model", type=click.Choice(MODELS), help="Describe a model instead of files.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per file.")
def info(paths: tuple[str, ...], model: str | None, as_json: bool) -> None:
    """Say what .aic files hold, or with --model what a model costs."""
    if (model is None) == (not paths):
        raise click.UsageError("give either files or --model NAME")
    if model is not None:
        row = describe_model(model)
        say(*([json.dumps(row)] if as_json else table(row)))
        return

    def work(source: str, target: str) -> Row:
        data = read_input(source, BitstreamError)
        return describe(source, data, unpack(data, max_pixels=1 << 32))

    def lines(row: Row) -> list[str]:
        return table(row) + ([""] if len(paths) > 1 else [])

    run_batch([(path, "-") for path in paths], work, Reporter(lines, as_json, lines_err=False))


def describe(path: str, data: bytes, container: Container) -> Row:
    """What `aic info` says of a file."""
    from aiocodec.pretrained import Manifest

    header = container.header
    unpack_latents(container.get(ChunkType.LATENTS) or b"", header.version)
    model: str | None = None
    with suppress(ModelError):
        model = Manifest.read().for_fingerprint(header.fingerprint)
    provenance = container.get(ChunkType.PROVENANCE)
    chunks: dict[str, int] = {}
    for kind, payload in container.chunks:
        name = ChunkType(kind).name.lower() if kind in list(ChunkType) else f"0x{kind:02x}"
        chunks[name] = chunks.get(name, 0) + len(payload)
    return {
        "input": path,
        "bytes": len(data),
        "version": header.version,
        "width": header.width,
        "height": header.height,
        "bpp": round(8 * len(data) / (header.width * header.height), 5),
        "quality": header.quality,
        "flags": [
            flag.name.lower() for flag in type(header.flags) if flag in header.flags and flag.name
        ],
        "fingerprint": header.fingerprint.hex(),
        "model": model,  # the one that decodes it here
        "encoder": provenance.decode("utf-8", "replace") if provenance else None,
        "chunks": chunks,  # bytes
    }


def describe_model(name: str) -> Row:
    """What `aic info --model` says; the only part of `info` that imports torch."""
    from aiocodec.model import complexity
    from aiocodec.pretrained import Manifest

    config, installed = VARIANTS[name], False
    with suppress(ModelError):
        manifest = Manifest.read()
        config, installed = manifest.config(name), True
    cost = complexity(config)
    return {
        "model": name,
        "parameters": {"total": sum(cost.parameters.values()), **cost.parameters},
        "macs_256x256": {"total": sum(cost.macs.values()), **cost.macs},
        # none where no weights of this model are installed
        "weight_bytes": manifest.weight_bytes(name) if installed else None,
        "fingerprint": manifest.fingerprint(name).hex() if installed else None,
        "default": installed and manifest.models[0] == name,
    }


def table(row: Row) -> list[str]:
    """A row for people: a line for every value, numbers in groups of three digits."""

    def text(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, int):
            return f"{value:,}"
        if isinstance(value, list):
            return ", ".join(value) or "none"
        return "none" if value is None else str(value)

    flat: Row = {}
    for key, value in row.items():
        key = key.replace("_", " ")
        if isinstance(value, dict):
            flat |= {f"{key} {part}": amount for part, amount in value.items()}
        else:
            flat[key] = value
    width = max(map(len, flat))
    return [f"{key:<{width}}  {text(value)}" for key, value in flat.items()]


@cli.command(epilog=EPILOG)
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
    metavar="[RESTORER+]NAME[:MODEL][@Q,Q]",
    multiple=True,
    help="aic, aic:fast@30,60, jpeg, webp, avif, nlm+avif (denoised first, told the noise);"
    " the first is compared with the others. May be repeated."
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
    from aiocodec.evaluate.report import aligned, as_csv, deltas_table, points_table, write_report
    from aiocodec.evaluate.study import Study, default_cache, read_curves

    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise click.UsageError("no CUDA device is available")
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


@cli.group(epilog=EPILOG)
def train() -> None:
    """Train models, on CPU cores or on CUDA.

    \b
    aic train run photographs/ --out runs/1
    aic train anneal runs/1 photographs/ --out runs/1-annealed
    aic train release runs/1-annealed weights/

    A run goes on until it is interrupted, and from there when it is started again. What it has come to is
    worth little before a branch of it, which leaves the run as it is, has been annealed.
    """


FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


def grouped(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in their order."""
    return lambda command: functools.reduce(lambda f, option: option(f), reversed(options), command)


def multiple_of_stride(ctx: click.Context, param: click.Parameter, side: int | None) -> int | None:
    """A callback that refuses other sides of patches."""
    if side is not None and (side <= 0 or side % STRIDE):
        raise click.BadParameter(f"a multiple of {STRIDE}", ctx, param)
    return side


variant_option = click.option(
    "--variant", type=click.Choice(MODELS), default="nano", show_default=True
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
        "--balance",
        type=click.FloatRange(0, 1),
        default=TrainConfig.balance,
        show_default=True,
        help="Weigh the loss by lambda to the power of -BALANCE.",
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
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise click.BadParameter("there is no CUDA device", param_hint="--device")
    return device


def training_arguments(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `training_options` but the first four gave: fields of TrainConfig, and what `loop.train` takes
    besides it."""
    fields = {name: options[name] for name in ("balance", "clean", "compile", "seed")}
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
    help="Start from the weights of another run: its folder or its checkpoint.",
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
    from aiocodec.training.checkpoint import load_weights
    from aiocodec.training.loop import train as run

    model = load_weights(start) if start else None
    if pretrained:
        model = Manifest.read().load(variant).trainable()
    run(photographs, out, variant, config, start=model, until=until or math.inf, **data)


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
    from aiocodec.training.loop import anneal

    anneal(run, photographs, out, variant, config, megapixels, side=patches, batch=batch, **data)


@train.command("release", epilog=EPILOG)
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.argument("weights", type=click.Path(path_type=Path))
def train_release(run: Path, weights: Path) -> None:
    """Freeze an annealed RUN into the folder WEIGHTS, as its default model."""
    from aiocodec.training.checkpoint import load_weights
    from aiocodec.training.release import release

    frozen = release(load_weights(run, annealed=True), weights)
    say(f"released into {weights}, entropy model {frozen.fingerprint.hex()}", err=True)


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


# --------------------------------------------------------------------------- entry


class Stopped(SystemExit):
    """SIGINT or SIGTERM came; its code is the exit code. No `except Exception` on the way holds it
    up, temporary files are removed, and wherever it ends up there is no traceback."""

    code: int


def stop(number: int, frame: object) -> None:
    """The signal handler."""
    raise Stopped(128 + number)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run `aic` and exit; every error becomes one line on stderr and one of EXIT_CODES."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names that its encoding lacks, as on stderr
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(args, standalone_mode=False) or 0
    except Stopped as stopped:
        code = stopped.code
        say(f"aic: {EXIT_CODES[code]}", err=True)
    except click.UsageError as error:
        code = error.exit_code
        command = error.ctx.command_path if error.ctx else "aic"
        say(f"aic: {error.format_message()} (see {command} --help)", err=True)
    except OSError as fault:  # click printing help, or training writing its files
        code = OutputError.exit_code
        if not fault.filename:
            abandon(sys.stdout)
        say(f"aic: {fault.filename or 'stdout'}: {fault.strerror}", err=True)
    except Exception as fault:
        reason = as_aic_error(fault)
        code = reason.exit_code
        say(f"aic: {reason}", err=True)
    sys.exit(code)
