"""The command line; the only module that prints or exits.

Exit codes: 0 done, 1 internal error, 2 usage, 3 unreadable image, 4 corrupt or truncated .aic,
5 unsupported version or other model, 6 limit exceeded, 7 output exists or cannot be written, 8 some
files of a batch failed, 130 interrupted. torch, numpy and Pillow are imported only by what needs them.
"""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aiocodec import __version__
from aiocodec.container import DEFAULT_MAX_PIXELS, ChunkType, Container, unpack, unpack_latents
from aiocodec.errors import (
    AicError,
    BatchError,
    BitstreamError,
    ImageError,
    OutputError,
)

if TYPE_CHECKING:
    from aiocodec.codec import Codec

EPILOG = (
    "Exit codes: 0 done, 1 internal error, 2 usage, 3 unreadable image, 4 corrupt or truncated .aic, "
    "5 unsupported version or other model, 6 limit exceeded, 7 output exists or cannot be written, "
    "8 some files of a batch failed, 130 interrupted."
)


# --------------------------------------------------------------------------- files


def read_input(path: str, error: type[AicError]) -> bytes:
    """The bytes of a file, or of stdin for "-"; `error` where they cannot be read."""
    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as fault:
        raise error(f"cannot be read: {fault.strerror}") from None


def check_output(path: str, force: bool) -> None:
    """OutputError where `path` is not a place that may be written."""
    if path == "-":
        return
    if Path(path).is_dir():
        raise OutputError(f"{path} is a folder")
    if not Path(path).absolute().parent.is_dir():
        raise OutputError(f"the folder {Path(path).parent} does not exist")
    if not force and os.path.lexists(path):
        raise OutputError(f"{path} exists already; --force overwrites it")


def write_output(path: str, data: bytes, force: bool) -> None:
    """Write a whole file or none: into a temporary file beside it, synced, then renamed."""
    if path == "-":
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except OSError as fault:
            # the interpreter would try to flush once more at exit, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise OutputError(f"stdout cannot be written: {fault.strerror}") from None
        return
    check_output(path, force)
    if os.path.exists(path) and not os.path.isfile(path):  # a device or a pipe: nothing to rename
        try:
            Path(path).write_bytes(data)
        except OSError as fault:
            raise OutputError(f"{path} cannot be written: {fault.strerror}") from None
        return
    temporary = None
    try:
        target = os.path.realpath(path)
        handle, temporary = tempfile.mkstemp(prefix=".aic-", dir=os.path.dirname(target))
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
        temporary = None
    except OSError as fault:
        raise OutputError(f"{path} cannot be written: {fault.strerror}") from None
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def pair_outputs(paths: Sequence[str], out_dir: str | None, suffix: str) -> list[tuple[str, str]]:
    """(input, output) for the paths of a command: IN [OUT] without --out-dir, inputs with it."""
    if out_dir is None:
        if len(paths) > 2:
            raise click.UsageError("more than one input needs --out-dir")
        source = paths[0]
        if len(paths) == 2:
            return [(source, paths[1])]
        return [(source, "-" if source == "-" else str(Path(source).with_suffix(suffix)))]
    if "-" in paths:
        raise click.UsageError("stdin cannot be combined with --out-dir")
    try:
        Path(out_dir).mkdir(exist_ok=True)
    except OSError as fault:
        raise OutputError(f"the folder {out_dir} cannot be made: {fault.strerror}") from None
    return [(path, str(Path(out_dir) / (Path(path).stem + suffix))) for path in paths]


# --------------------------------------------------------------------------- reporting


@dataclass(frozen=True)
class Reporter:
    """What a command says while it works: lines for people on stderr, JSON on stdout.

    Where stdout carries a file, JSON goes to stderr too.
    """

    quiet: bool
    verbose: bool
    as_json: bool
    stdout_is_data: bool

    def done(self, row: dict[str, Any]) -> None:
        """One file is finished."""
        if self.as_json:
            click.echo(json.dumps(row), err=self.stdout_is_data)
        elif not self.quiet:
            line = (
                f"{row['input']} -> {row['output']}: {row['width']}x{row['height']}, {row['bytes']} bytes, "
                f"{row['bpp']:.3f} bpp, quality {row['quality']}, {row['seconds']:.2f} s"
            )
            click.echo(
                line + (f", {row['model']} on {row['device']}" if self.verbose else ""), err=True
            )

    def failed(self, path: str, error: AicError) -> None:
        """One file could not be done."""
        if self.as_json:
            row = {"input": path, "error": str(error), "exit_code": error.exit_code}
            click.echo(json.dumps(row), err=self.stdout_is_data)
        click.echo(f"aic: {path}: {error}", err=True)


def run_batch(
    pairs: Sequence[tuple[str, str]],
    work: Callable[[str, str], dict[str, Any]],
    reporter: Reporter,
) -> None:
    """Do every file. One alone fails with its own error; of several, the others are still done and
    a BatchError follows."""
    failures: list[AicError] = []
    seen: set[str] = set()
    with progress(len(pairs), hidden=reporter.quiet or reporter.as_json) as advance:
        for source, target in pairs:
            try:
                if target != "-" and target in seen:
                    raise OutputError(f"another input of this call was written to {target}")
                seen.add(target)
                row = work(source, target)
            except AicError as error:
                reporter.failed(source, error)
                failures.append(error)
            else:
                reporter.done(row)
            advance()
    if failures and len(pairs) == 1:
        raise click.exceptions.Exit(failures[0].exit_code)
    if failures:
        raise BatchError(f"{len(failures)} of {len(pairs)} files failed")


@contextmanager
def progress(count: int, hidden: bool) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr for more than one file, where stderr is a terminal."""
    if hidden or count < 2 or not sys.stderr.isatty():
        yield lambda: None
        return
    with click.progressbar(length=count, file=sys.stderr, show_pos=True) as bar:
        yield lambda: bar.update(1)


@contextmanager
def named(path: str) -> Iterator[None]:
    """Turn what should never happen while a file is done into a line that names the exception."""
    try:
        yield
    except (AicError, click.ClickException, click.exceptions.Exit):
        raise
    except Exception as fault:
        if os.environ.get("AIC_DEBUG"):
            raise
        text = str(fault).splitlines()
        raise AicError(
            f"internal error: {type(fault).__name__}: {text[0] if text else ''} (AIC_DEBUG=1 shows more)"
        ) from None


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
            click.option(
                "--model", metavar="NAME", help="Transforms to use; by default the best that fits."
            ),
            click.option(
                "--device",
                type=click.Choice(["auto", "cpu", "cuda"]),
                default="auto",
                show_default=True,
            ),
            click.option(
                "--threads", type=click.IntRange(1), help="CPU threads; by default all cores."
            ),
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


def load_codec(model: str | None, device: str, threads: int | None) -> "Codec":
    """Import torch and load a model; UsageError for a device that is not there."""
    import torch

    from aiocodec.codec import Codec

    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("no CUDA device is available")
    if threads is not None:
        torch.set_num_threads(threads)
    return Codec(model, device)


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="aic")
def cli() -> None:
    """Compress photographs, and restore them on the way: noise goes in, a clean picture comes out."""


@cli.command(epilog=EPILOG)
@click.argument("paths", metavar="IN [OUT]", nargs=-1, required=True)
@click.option(
    "-q",
    "--quality",
    type=click.IntRange(0, 100),
    default=50,
    show_default=True,
    help="0 smallest, 100 best.",
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
    quality: int,
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
    if target_bpp is not None and max_bytes is not None:
        raise click.UsageError("--target-bpp and --max-bytes exclude each other")
    pairs = pair_outputs(paths, out_dir, ".aic")
    reporter = Reporter(quiet, verbose, as_json, any(target == "-" for _, target in pairs))
    codec: Codec | None = None

    def work(source: str, target: str) -> dict[str, Any]:
        nonlocal codec
        from aiocodec.image import read

        started = time.perf_counter()
        with named(source):
            check_output(target, force)
            picture = read(read_input(source, ImageError), max_pixels=max_pixels)
            codec = codec or load_codec(model, device, threads)
            height, width, _ = picture.rgb.shape
            limit = max_bytes if target_bpp is None else int(target_bpp * width * height / 8)
            used = quality
            if limit is None:
                data = codec.encode(picture, quality, strip=strip, verify=verify)
            else:
                data, used = codec.encode_to_size(picture, limit, strip=strip, verify=verify)
            write_output(target, data, force)
        return {
            "input": source,
            "output": target,
            "width": width,
            "height": height,
            "bytes": len(data),
            "bpp": round(8 * len(data) / (width * height), 5),
            "quality": used,
            "model": codec.name,
            "device": codec.device.type,
            "seconds": round(time.perf_counter() - started, 3),
        }

    run_batch(pairs, work, reporter)


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
    from aiocodec.image import format_of

    chosen = format_of(f"x.{format_name}") if format_name else None
    pairs = pair_outputs(paths, out_dir, f".{format_name.lower()}" if format_name else ".png")
    reporter = Reporter(quiet, verbose, as_json, any(target == "-" for _, target in pairs))
    codecs: dict[str, Codec] = {}

    def work(source: str, target: str) -> dict[str, Any]:
        from aiocodec.image import write
        from aiocodec.pretrained import Manifest

        started = time.perf_counter()
        with named(source):
            check_output(target, force)
            format = chosen or ("PNG" if target == "-" else format_of(target))
            data = read_input(source, BitstreamError)
            container = unpack(data, max_pixels=max_pixels)
            unpack_latents(container.get(ChunkType.LATENTS) or b"")
            name = model or Manifest.read().for_fingerprint(container.header.fingerprint)
            if name not in codecs:
                codecs[name] = load_codec(name, device, threads)
            picture = codecs[name].decode(container)
            write_output(target, write(picture, format), force)
        header = container.header
        return {
            "input": source,
            "output": target,
            "width": header.width,
            "height": header.height,
            "bytes": len(data),
            "bpp": round(8 * len(data) / (header.width * header.height), 5),
            "quality": header.quality,
            "model": name,
            "device": codecs[name].device.type,
            "seconds": round(time.perf_counter() - started, 3),
        }

    run_batch(pairs, work, reporter)


@cli.command(epilog=EPILOG)
@click.argument("paths", metavar="[IN]...", nargs=-1)
@click.option("--model", "model_name", metavar="NAME", help="Describe a model instead of files.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per file.")
def info(paths: tuple[str, ...], model_name: str | None, as_json: bool) -> None:
    """Say what .aic files hold, or with --model what a model costs."""
    if (model_name is None) == (not paths):
        raise click.UsageError("give either files or --model NAME")
    if model_name is not None:
        row = describe_model(model_name)
        click.echo(
            json.dumps(row) if as_json else "\n".join(f"{k:<22} {v}" for k, v in row.items())
        )
        return

    reporter = Reporter(quiet=True, verbose=False, as_json=as_json, stdout_is_data=False)

    def work(source: str, target: str) -> dict[str, Any]:
        with named(source):
            data = read_input(source, BitstreamError)
            row = describe(source, data, unpack(data, max_pixels=1 << 32))
        if not as_json:
            click.echo("\n".join(f"{k:<12} {v}" for k, v in row.items()))
        return row

    run_batch([(path, "-") for path in paths], work, reporter)


def describe(path: str, data: bytes, container: Container) -> dict[str, Any]:
    """What `aic info` says of a file."""
    from aiocodec.pretrained import Manifest

    header = container.header
    words, _ = unpack_latents(container.get(ChunkType.LATENTS) or b"")
    decodes_with: str | None = None
    with suppress(AicError):
        decodes_with = Manifest.read().for_fingerprint(header.fingerprint)
    provenance = container.get(ChunkType.PROVENANCE)
    return {
        "file": path,
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
        "model": decodes_with,
        "encoder": provenance.decode("utf-8", "replace") if provenance else None,
        "latents": len(words),
        "chunks": {
            ChunkType(kind).name.lower() if kind in set(ChunkType) else f"0x{kind:02x}": len(
                payload
            )
            for kind, payload in container.chunks
        },
    }


def describe_model(name: str) -> dict[str, Any]:
    """What `aic info --model` says; the only part of `info` that imports torch."""
    from aiocodec.model import VARIANTS, complexity
    from aiocodec.pretrained import Manifest

    if name not in VARIANTS:
        raise click.UsageError(f"there is no model {name!r}; there are {', '.join(VARIANTS)}")
    manifest = Manifest.read()
    cost = complexity(VARIANTS[name])
    trained = name in manifest.models
    return {
        "model": name,
        "default": manifest.models[:1] == [name],
        "parameters": sum(cost.parameters.values()),
        **{f"parameters {part}": count for part, count in cost.parameters.items()},
        "MACs at 256x256": sum(cost.macs.values()),
        **{f"MACs {part}": count for part, count in cost.macs.items()},
        "weight bytes": manifest.weight_bytes(name) if trained else None,
        "fingerprint": manifest.fingerprint(name).hex() if trained else None,
    }


@cli.command(epilog=EPILOG)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-q",
    "--quality",
    "qualities",
    type=click.IntRange(0, 100),
    multiple=True,
    default=(10, 30, 50, 70, 90),
)
@click.option(
    "--sigma",
    "sigmas",
    type=click.FloatRange(0, 255),
    multiple=True,
    default=(0.0,),
    help="Gaussian noise, of 255.",
)
@click.option("--model", metavar="NAME")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option("--threads", type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="One JSON object per row.")
def evaluate(
    folder: Path,
    qualities: tuple[int, ...],
    sigmas: tuple[float, ...],
    model: str | None,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Rate and PSNR of real files over a folder of clean images, coded as they are or with noise."""
    with named(str(folder)):
        codec = load_codec(model, device, threads)
        from aiocodec.evaluate import rd_table

        if not as_json:
            click.echo("sigma  quality      bpp     PSNR   encode   decode")
        for sigma in sigmas:
            for row in rd_table(codec, folder, qualities, sigma):
                click.echo(
                    json.dumps(row)
                    if as_json
                    else f"{sigma:5g} {row['quality']:8d} {row['bpp']:8.4f} {row['psnr']:8.3f}"
                    f" {row['encode_seconds']:6.2f} s {row['decode_seconds']:6.2f} s"
                )


@cli.command(epilog=EPILOG)
@click.argument(
    "folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of checkpoint and log."
)
@click.option("--variant", default="nano", show_default=True, help="nano, fast, s or l.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=30.0, show_default=True)
@click.option(
    "--patch", type=click.IntRange(64), default=128, show_default=True, help="Side at the start."
)
@click.option(
    "--batch", type=click.IntRange(1), default=8, show_default=True, help="Patches at the start."
)
@click.option(
    "--clean",
    type=click.FloatRange(0, 1),
    default=0.2,
    show_default=True,
    help="Share not degraded.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--validation",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of clean images.",
)
@click.option("--pretrained", is_flag=True, help="Start from the released weights of the variant.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option(
    "--release",
    type=click.Path(path_type=Path),
    help="Freeze the result into this folder of weights, as its default.",
)
def train(
    folder: Path | None,
    out: Path,
    variant: str,
    minutes: float,
    patch: int,
    batch: int,
    clean: float,
    seed: int,
    validation: Path | None,
    pretrained: bool,
    device: str,
    release: Path | None,
) -> None:
    """Train a model on the photographs of FOLDER, going on from OUT/checkpoint.pt where there is one.

    Without FOLDER, only --release the checkpoint that OUT has. Patches grow to 1.5 and 2 times their
    side after 65 and 88 % of the time, the batch shrinks with their area.
    """
    with named(str(folder or out)):
        if folder is not None:
            run_training(
                folder,
                out,
                variant,
                minutes,
                patch,
                batch,
                clean,
                seed,
                validation,
                pretrained,
                device,
            )
        elif release is None:
            raise click.UsageError("give a FOLDER to train on, or --release")
        if release is not None:
            from aiocodec.pretrained import release as write_release
            from aiocodec.training.train import load_average

            frozen = write_release(load_average(out / "checkpoint.pt")[0], release)
            click.echo(
                f"released into {release}, entropy model {frozen.fingerprint.hex()}", err=True
            )


def run_training(
    folder: Path,
    out: Path,
    variant: str,
    minutes: float,
    patch: int,
    batch: int,
    clean: float,
    seed: int,
    validation: Path | None,
    pretrained: bool,
    device: str,
) -> None:
    """Set up and run the training loop, with a progress line per report."""
    import torch

    from aiocodec.model import VARIANTS
    from aiocodec.training.train import TrainConfig
    from aiocodec.training.train import train as run

    if variant not in VARIANTS:
        raise click.UsageError(f"there is no model {variant!r}; there are {', '.join(VARIANTS)}")
    if patch % 128:
        raise click.UsageError("--patch must be a multiple of 128")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    start = None
    if pretrained:
        from aiocodec.pretrained import Manifest

        start = Manifest.read().load(variant).model
    phases = (
        (0.0, patch, batch),
        (0.65, patch * 3 // 2, -(-batch * 4 // 9)),
        (0.88, patch * 2, -(-batch // 4)),
    )
    config = TrainConfig(minutes=minutes, phases=phases, clean=clean, seed=seed)

    def report(row: dict[str, Any]) -> None:
        if "validation" in row:
            for point in row["validation"]:
                click.echo(f"  validation {json.dumps(point)}", err=True)
        elif "loss" in row:
            click.echo(
                f"{row['minutes']:7.1f} of {minutes:g} min, step {row['step']}: loss {row['loss']:.3f}, "
                f"{row['bpp']:.3f} bpp, {row['psnr']:.2f} dB",
                err=True,
            )

    run(
        folder,
        out,
        variant,
        config,
        validation=validation,
        start=start,
        device=device,
        report=report,
    )


# --------------------------------------------------------------------------- entry


def main() -> None:
    """Run `aic`; every error becomes one line on stderr and the exit code of the table above."""

    def terminate(number: int, frame: object) -> None:
        raise SystemExit(128 + number)  # so that temporary files are removed

    signal.signal(signal.SIGTERM, terminate)
    try:
        code = cli.main(standalone_mode=False)
    except click.UsageError as error:
        hint = error.ctx.command_path if error.ctx else "aic"
        click.echo(f"aic: {error.format_message()} (see {hint} --help)", err=True)
        code = 2
    except click.ClickException as error:
        click.echo(f"aic: {error.format_message()}", err=True)
        code = error.exit_code
    except AicError as error:
        click.echo(f"aic: {error}", err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("aic: interrupted", err=True)
        code = 130
    sys.exit(code if isinstance(code, int) else 0)
