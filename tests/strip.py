"""The strip of photographs at the top of the README: spoiled, by AVIF at as many bytes, by aic.

    python tests/strip.py kodak/ docs/strip.webp

A column for every degradation; the whole photograph is coded, a window of it is shown, and sizes are those of
the whole. The photographs are of the Kodak set, which nothing is trained or chosen on; the weather is
that of aiocodec/degrade.py, as no real pair may be shipped.
"""

import io
import sys
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from aiocodec.evaluate.report import at_size
from aiocodec.evaluate.study import Study, spoil
from aiocodec.image import read

SIDE, EDGE, LINE = 256, 6, 20  # of a window, of the space around it, of a line of text, in pixels


class Column(NamedTuple):
    """What is shown, and which part of it."""

    title: str
    photograph: int
    degradation: str
    left: int
    top: int


COLUMNS = (
    Column("noise", 19, "noise:50", 200, 60),
    Column("rain", 3, "rain:0.6", 130, 100),
    Column("snow", 22, "snow:0.6", 300, 100),
)
QUALITY = 40


def strip(kodak: Path) -> Image.Image:
    """The picture."""
    with Study(kodak, codecs=[f"aic@{QUALITY}", "avif@8,20,32"]) as study:
        aic, avif = study.specs
        cells = []
        for column in COLUMNS:
            path = kodak / f"kodim{column.photograph:02}.png"
            spoiled = spoil(read(path.read_bytes()), column.degradation, column.photograph).rgb
            lossless = io.BytesIO()
            Image.fromarray(spoiled).save(lossless, "PNG", optimize=True)
            ours = study.workers[aic.name].code(spoiled, QUALITY)
            quality, theirs = at_size(study, avif, spoiled, 0, len(ours.data))
            while len(theirs.data) < len(ours.data):
                quality += 1
                theirs = study.workers[avif.name].code(spoiled, quality)
            cells.append(
                (
                    (column.title, spoiled, len(lossless.getvalue()), "as PNG"),
                    (column.title, theirs.decoded, len(theirs.data), "AVIF"),
                    (column.title, ours.decoded, len(ours.data), "aic"),
                )
            )
    step = SIDE + EDGE
    sheet = Image.new("RGB", (len(COLUMNS) * step - EDGE, 3 * (step + LINE) - EDGE), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, (column, rows) in enumerate(zip(COLUMNS, cells, strict=True)):
        for j, (title, pixels, size, name) in enumerate(rows):
            window = pixels[column.top : column.top + SIDE, column.left : column.left + SIDE]
            corner = i * step, j * (step + LINE)
            what = f"{title}, {name}" if j == 0 else name
            draw.text(corner, f"{what}: {size / 1000:.1f} kB", fill="black", font=font)
            sheet.paste(Image.fromarray(window), (corner[0], corner[1] + LINE))
    return sheet


if __name__ == "__main__":
    strip(Path(sys.argv[1])).save(sys.argv[2], quality=88, method=6)
