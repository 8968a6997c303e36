"""`aic compare`."""

import math
from typing import TYPE_CHECKING, Any

import click

from aiocodec.batch import Decode, Row
from aiocodec.cli.options import EPILOG, FILE_NAME, device_option, model_option, threads_option
from aiocodec.cli.report import Reporter, say
from aiocodec.config import DECODED_MAX_PIXELS, DEFAULT_MAX_PIXELS
from aiocodec.container import MAGIC, unpack
from aiocodec.errors import AicError, ImageError, as_aic_error
from aiocodec.files import read_either
from aiocodec.loading import loading

if TYPE_CHECKING:
    from aiocodec.image import Picture


@click.command(epilog=EPILOG)
@click.argument("a", metavar="A", type=FILE_NAME)
@click.argument("b", metavar="B", type=FILE_NAME)
@model_option
@device_option
@threads_option
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    help="Refuse larger pictures."
    f"  [default: {DECODED_MAX_PIXELS} in .aic files, {DEFAULT_MAX_PIXELS} in images]",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def compare(a: str, b: str, max_pixels: int | None, as_json: bool, **options: Any) -> None:
    """Measure how far two pictures of one size are apart.

    A and B are .aic files, which are decoded, or images of any format that aic encodes; one of them may
    be "-" for stdin. PSNR and MS-SSIM are of the colours as the files have them. Blocks is how much
    larger steps of luma are at the edges of blocks of 16x16 pixels than elsewhere: about 1 in
    photographs, 1.4 and more where one sees them.
    """
    paths = (a, b)
    if paths == ("-", "-"):
        raise click.UsageError("stdin can be one of the two pictures only")
    outcome: Row | AicError
    path = a
    try:
        contents = []
        for path in paths:  # that one is missing is known before the other is decoded
            contents.append(read_either(path))
        pictures = []
        for path, data in zip(paths, contents, strict=True):
            pictures.append(_picture(data, max_pixels, options))
            if not as_json:
                for warning in pictures[-1].warnings:
                    say(f"aic: {path}: warning: {warning}", err=True)
        path = ", ".join(paths)
        sizes = tuple(map(len, contents))
        outcome = distance(paths, sizes, (pictures[0], pictures[1]))
    except Exception as fault:
        outcome = as_aic_error(fault)
    Reporter(_lines, as_json, lines_err=False).report([(path, outcome)], 1)


def _picture(data: bytes, max_pixels: int | None, options: dict[str, Any]) -> "Picture":
    """The picture in an .aic file or an image."""
    if data.startswith(MAGIC):
        container = unpack(data, max_pixels=max_pixels or DECODED_MAX_PIXELS)
        return Decode(**options).restore(container)[0]
    with loading("numpy"):
        from aiocodec.image import read
    return read(data, max_pixels=max_pixels or DEFAULT_MAX_PIXELS)


def distance(
    paths: tuple[str, str], sizes: tuple[int, ...], pictures: "tuple[Picture, Picture]"
) -> Row:
    """What `aic compare` says of two pictures in files of these sizes, in bytes; ImageError where
    their sides are not the same. The PSNR of pictures that are equal is None, as JSON has no infinity."""
    with loading("numpy"):
        from aiocodec.metrics import blockiness, bpp, ms_ssim, psnr

    a, b = pictures
    sides = [f"{picture.rgb.shape[1]}x{picture.rgb.shape[0]}" for picture in pictures]
    if sides[0] != sides[1]:
        raise ImageError(f"pictures of different sizes, {sides[0]} and {sides[1]}")
    height, width, _ = a.rgb.shape
    row: Row = {"width": width, "height": height}
    for key, path, size, picture in zip("ab", paths, sizes, pictures, strict=True):
        row[key] = {
            "input": path,
            "bytes": size,
            "bpp": round(bpp(size, width, height), 5),
            "blockiness": blockiness(picture.rgb),
            "warnings": list(picture.warnings),
        }
    decibels = psnr(a.rgb, b.rgb)
    row["psnr"] = decibels if math.isfinite(decibels) else None
    row["ms_ssim"] = ms_ssim(a.rgb, b.rgb)
    row["identical"] = not math.isfinite(decibels)
    row["warnings"] = []
    if a.alpha is not None or b.alpha is not None:
        row["warnings"].append("the transparency is not compared")
    if a.icc != b.icc:
        row["warnings"].append("the ICC profiles differ, and code values are compared as they are")
    return row


def _lines(row: Row) -> list[str]:
    """A row for people."""
    lines = []
    for name in "ab":
        side = row[name]
        line = f"{name.upper()}        {side['input']}: {row['width']}x{row['height']}, "
        line += f"{side['bytes']} bytes, {side['bpp']:.3f} bpp"
        if side["blockiness"] is not None:
            line += f", blocks {side['blockiness']:.2f}"
        lines.append(line)
    psnr = "infinite, the colours are the same" if row["identical"] else f"{row['psnr']:.2f} dB"
    lines.append(f"PSNR     {psnr}")
    similarity = row["ms_ssim"]
    lines.append(
        "MS-SSIM  none, a side is too short" if similarity is None else f"MS-SSIM  {similarity:.4f}"
    )
    return lines
