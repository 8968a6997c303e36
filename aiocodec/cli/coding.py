"""`aic encode` and `aic decode`."""

import functools
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from aiocodec.cli.options import EPILOG, common_options
from aiocodec.cli.report import Reporter, Row, run_batch
from aiocodec.config import DEFAULT_QUALITY
from aiocodec.container import ChunkType, unpack, unpack_latents
from aiocodec.errors import BitstreamError, ImageError, OutputError
from aiocodec.files import check_output, read_input, write_output

if TYPE_CHECKING:
    from aiocodec.codec import Codec


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


@click.command(epilog=EPILOG)
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


@click.command(epilog=EPILOG)
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
