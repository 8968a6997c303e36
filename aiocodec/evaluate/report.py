"""What a study leaves behind: results.json, results.csv, RD plots, and report.html, one file with
plots, tables and pictures at nearly equal rates, side by side and, where JavaScript runs, any two of
them over each other."""

import base64
import csv
import io
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray
from PIL import Image, ImageDraw, features

from aiocodec import __version__
from aiocodec.errors import AicError
from aiocodec.evaluate.codecs import CodecSpec, Coded
from aiocodec.evaluate.restorers import Pixels
from aiocodec.evaluate.study import NO_EXTRA, Curve, Delta, Measures, Results, Sample, Study
from aiocodec.metrics import bd_psnr, bpp, psnr

CROP = (320, 216)  # width and height of the pictures side by side, in pixels
WHOLE = 1 << 20  # pixels of a picture that is shown whole; of a larger one so many are
SHOWN = 16 << 20  # pixels of all pictures that can be laid over each other, at about 1 byte each
SLIDER = Path(__file__).with_name("slider.js")
# Colours that people with any colour vision tell apart (Okabe and Ito 2008); the first is ours.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")


# --------------------------------------------------------------------------- text


def points_table(curves: Sequence[Curve]) -> list[list[str]]:
    """Rows of text, a head first: a row per degradation, codec and quality."""
    head = (
        "degradation codec q images bpp PSNR MS-SSIM edges blocks"
        " enc_s dec_s enc_CPU_s dec_CPU_s peak_MiB"
    )
    rows = [[title.replace("_", " ") for title in head.split()]]

    def text(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    def seconds(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}" if value >= 0.01 else f"{value:.5f}"

    for curve in curves:
        for quality, m in curve.points:
            rows.append(
                [
                    curve.degradation,
                    curve.codec,
                    str(quality),
                    str(curve.images),
                    text(m.bpp, 4),
                    text(m.psnr, 3),
                    text(m.ms_ssim, 4),
                    text(m.edges, 3),
                    text(m.blocks, 3),
                    seconds(m.encode_seconds),
                    seconds(m.decode_seconds),
                    seconds(m.encode_cpu_seconds),
                    seconds(m.decode_cpu_seconds),
                    text(m.peak_mib, 0),
                ]
            )
    return rows


def deltas_table(deltas: Sequence[Delta]) -> list[list[str]]:
    """Rows of text, a head first: a row per degradation and codec that the reference is compared
    with."""
    rows = [
        ["degradation", "codec", "against", "BD-rate", "BD-PSNR", "BD-rate MS-SSIM", "over PSNR"]
    ]

    def text(value: float | None, form: str, unit: str) -> str:
        return "-" if value is None else f"{value:{form}} {unit}"

    for d in deltas:
        rows.append(
            [
                d.degradation,
                d.codec,
                d.anchor,
                text(d.bd_rate, "+.1f", "%"),
                text(d.bd_psnr, "+.2f", "dB"),
                text(d.bd_rate_ms_ssim, "+.1f", "%"),
                "{:.1f} to {:.1f} dB".format(*d.overlap) if d.overlap else d.reason or "",
            ]
        )
    return rows


def aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Rows of text as lines: the first `left` columns flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:<{width}}" if i < left else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def as_csv(results: Results) -> str:
    """A line per image, codec and quality, with a head."""
    text = io.StringIO()
    names = [*Sample._fields[:-1], *Measures.__dataclass_fields__]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(results.rows())
    return text.getvalue()


# --------------------------------------------------------------------------- plots


def plot(curves: Sequence[Curve], title: str, order: Sequence[str]) -> Any:
    """A matplotlib figure: PSNR and MS-SSIM over bpp, up to a little beyond where the curve of the
    first codec in `order` ends. Codecs have the colour of their place there. Raises ImportError
    without matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(title, parse_math=False)
    reference = [curve for curve in curves if curve.codec == order[0]] or curves
    limit = 1.35 * max(m.bpp for _, m in reference[0].points)
    for axes, metric, label in zip(
        figure.subplots(1, 2),
        ("psnr", "ms_ssim"),
        ("PSNR (dB)", "MS-SSIM (dB: −10 log₁₀(1 − MS-SSIM))"),
        strict=True,
    ):
        shown, lines, labels = [], [], []
        for curve in curves:
            i = order.index(curve.codec)
            points = sorted(point for point in curve.of(metric) if math.isfinite(point[1]))
            if not points:
                continue
            shown += [value for rate, value in points if rate <= limit]
            lines += axes.plot(
                *zip(*points, strict=True),
                "o-" if i < len(COLOURS) else "s--",
                color=COLOURS[i % len(COLOURS)],
                linewidth=2.4 if i == 0 else 1.3,
                markersize=5 if i == 0 else 3.5,
                zorder=3 if i == 0 else 2,
            )
            labels.append(curve.codec)
        axes.set(xlabel="bits per pixel", ylabel=label, xlim=(0, limit))
        if shown:
            margin = 0.06 * (max(shown) - min(shown)) + 0.05
            axes.set_ylim(min(shown) - margin, max(shown) + margin)
        if lines:
            for text in axes.legend(lines, labels, fontsize="small", loc="lower right").get_texts():
                text.set_parse_math(False)
        axes.grid(alpha=0.3)
    return figure


def _rendered(figure: Any, format: str) -> bytes:
    import matplotlib

    file = io.BytesIO()
    metadata = {"Date": None} if format == "svg" else {}
    with matplotlib.rc_context({"svg.hashsalt": "aiocodec"}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of glyphs that its font lacks
        figure.savefig(file, format=format, dpi=130, metadata=metadata)
    return file.getvalue()  # the same plot, the same bytes


# --------------------------------------------------------------------------- pictures


class Tile(NamedTuple):
    """One picture of a row, and what it is."""

    title: str
    detail: str
    crop: Pixels  # a copy, as the next is: neither keeps the whole picture
    part: Pixels  # more of it, or all


class Comparison(NamedTuple):
    """A row of pictures of one image at nearly equal rates."""

    image: str
    why: str
    overview: Pixels  # the whole input, small, with the crop marked
    extent: str  # how much of it the parts show
    rival: str  # title of the tile that the reference is to be laid over first
    tiles: list[Tile]


def at_size(
    study: Study,
    spec: CodecSpec,
    x: Pixels,
    sigma: float,
    size: int,
    known: Iterable[tuple[int, float]] = (),
) -> tuple[int, Coded]:
    """The quality of a codec whose file comes nearest to `size` bytes, found by bisection, and what
    it gives. `known` are (quality, bytes) that need not be tried."""
    tried: dict[int, Coded] = {}
    sizes = dict(known)

    def coded(quality: int) -> Coded:
        if quality not in tried:
            tried[quality] = study.workers[spec.name].code(x, quality, sigma)
        return tried[quality]

    def length(quality: int) -> float:
        if quality not in sizes:
            sizes[quality] = len(coded(quality).data)
        return sizes[quality]

    low = max((q for q, s in sizes.items() if s <= size), default=0)
    high = min((q for q, s in sizes.items() if s > size and q > low), default=100)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if length(middle) <= size else (low, middle)
    quality = min((low, high), key=lambda q: abs(math.log(length(q) / size)))
    return quality, coded(quality)


def _by_image(results: Results, degradation: str, codec: str) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in results.samples:
        if (sample.degradation, sample.codec) == (degradation, codec):
            found.setdefault(sample.image, []).append(sample)
    return found


def choose(
    results: Results, degradation: str, first: str, rivals: Sequence[str]
) -> list[tuple[str, str]]:
    """Images worth a look, each with the reason: where the reference gains most and least in BD-PSNR
    over the strongest of the other codecs measured, or the first image where that is not known."""
    ours = _by_image(results, degradation, first)
    if not ours:
        return []
    means = {
        d.anchor: d.bd_psnr
        for d in results.deltas
        if d.degradation == degradation and d.anchor in rivals
    }
    known = {name: gain for name, gain in means.items() if gain is not None}
    if known:
        rival = min(known, key=lambda name: known[name])
        theirs = _by_image(results, degradation, rival)
        gains: dict[str, float] = {}
        for image in ours.keys() & theirs.keys():
            curves = [[(s.measures.bpp, s.measures.psnr) for s in c[image]] for c in (theirs, ours)]
            try:
                gains[image] = bd_psnr(*curves)
            except (ValueError, ImportError):
                continue
        ranked = sorted(gains, key=lambda image: (gains[image], image))
        if len(ranked) > 1:
            return [
                (image, f"{word} of {first} against {rival}: {gains[image]:+.2f} dB BD-PSNR")
                for image, word in ((ranked[-1], "best image"), (ranked[0], "worst image"))
            ]
    image = sorted(ours)[0]
    return [(image, "the first image")]


Area = tuple[slice, slice]  # rows and columns


def _window(difference: NDArray[np.float64]) -> Area:
    """The part of CROP's size where a map [H, W] has the largest absolute sum."""
    height, width = difference.shape
    h, w = min(CROP[1], height), min(CROP[0], width)
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = difference.cumsum(0).cumsum(1)
    total = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
    top, left = np.unravel_index(np.abs(total).argmax(), total.shape)
    return slice(int(top), int(top) + h), slice(int(left), int(left) + w)


def _around(window: Area, sides: tuple[int, int], pixels: int) -> Area:
    """The part of a picture [H, W] of these sides, in their proportion, that has about so many pixels
    and a window in the middle, or near it at an edge; all where there are no more, and never less
    than the window."""
    share = min(1.0, math.sqrt(pixels / (sides[0] * sides[1])))
    spans = []
    for inner, side in zip(window, sides, strict=True):
        length = max(round(side * share), inner.stop - inner.start)
        start = (inner.start + inner.stop - length) // 2
        start = min(max(start, 0), side - length)
        spans.append(slice(start, start + length))
    return spans[0], spans[1]


def compare(study: Study, degradation: str, pixels: int = WHOLE) -> Iterator[Comparison]:
    """Rows of pictures for a degradation: the input, every codec near the rate of the reference's
    middle quality, and the clean image, cropped where the reference and its best rival differ
    most, and besides with about so many pixels."""
    results = study.results
    specs = {spec.name: spec for spec in study.applicable(degradation)}
    reference = specs.pop(study.reference, None)
    if reference is None:
        return
    sources = {source.path.name: source for source in study.sources}
    for image, why in choose(results, degradation, reference.name, list(specs)):
        pair = study.pixels(sources[image], degradation)
        assert pair is not None  # it was measured
        clean, x = pair
        height, width, _ = clean.shape

        def told(spec: CodecSpec) -> float:
            return spec.told(study.noise(degradation)) or 0

        middle = reference.qualities[(len(reference.qualities) - 1) // 2]
        ours = study.workers[reference.name].code(x, middle, told(reference))
        shown: dict[str, tuple[int, Coded]] = {}
        for name, spec in specs.items():
            samples = _by_image(results, degradation, name).get(image, [])
            known = [(s.quality, s.measures.bpp * width * height / 8) for s in samples]
            shown[name] = at_size(study, spec, x, told(spec), len(ours.data), known)
        errors = {
            name: ((coded.decoded.astype(np.float32) - clean) ** 2).sum(2)
            for name, (_, coded) in (*shown.items(), (reference.name, (middle, ours)))
        }
        difference = errors.pop(reference.name)
        best = min(errors, key=lambda name: errors[name].sum()) if errors else None
        if best is not None:
            difference = difference - errors[best]
        window = _window(difference)
        area = _around(window, (height, width), pixels)
        overview = Image.fromarray(x)
        (top, bottom), (left, right) = ((span.start, span.stop) for span in window)
        box = (left, top, right - 1, bottom - 1)
        ImageDraw.Draw(overview).rectangle(box, outline=COLOURS[0], width=max(2, width // 150))
        overview.thumbnail(CROP)

        def tile(title: str, detail: str, picture: Pixels, window: Area, area: Area) -> Tile:
            return Tile(title, detail, picture[window].copy(), picture[area].copy())

        spoiled = not study.is_clean(degradation)
        tiles = []
        if spoiled:
            detail = f"{degradation} · {psnr(clean, x):.2f} dB"
            tiles.append(tile("input", detail, x, window, area))
        shown[reference.name] = middle, ours  # last, beside the clean image
        for name, (quality, coded) in shown.items():
            rate, distortion = bpp(len(coded.data), width, height), psnr(clean, coded.decoded)
            detail = f"q {quality} · {len(coded.data)} bytes · {rate:.3f} bpp · {distortion:.2f} dB"
            tiles.append(tile(name, detail, coded.decoded, window, area))
        tiles.append(tile("clean", "the original", clean, window, area))
        rows, columns = (span.stop - span.start for span in area)
        extent = f"{width}x{height} pixels"
        if (rows, columns) != (height, width):
            extent = f"{columns}x{rows} of {extent}"
        rival = "input" if spoiled else best or "clean"
        yield Comparison(image, why, np.asarray(overview), extent, rival, tiles)


# --------------------------------------------------------------------------- the page

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>aic evaluate</title>
<style>
:root { --ink: #1c1d1f; --soft: #63666c; --line: #dcdee2; --paper: #fff; --wash: #f5f6f8;
  --good: #d9efdd; --bad: #fbe0da; --ours: #d55e00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e9eb; --soft: #a0a4ab; --line: #3a3d43;
  --paper: #17181a; --wash: #212327; --good: #1f4029; --bad: #51271d; --ours: #ff8a3d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 5rem; max-width: 86rem; color: var(--ink);
  background: var(--paper); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0; }  h2 { margin: 3rem 0 .5rem; font-size: 1.35rem; }
p, li { max-width: 60rem; }  .soft, figcaption, summary { color: var(--soft); }
code, pre { font: .87em ui-monospace, monospace; }
pre { background: var(--wash); padding: .7rem 1rem; border-radius: .4rem; overflow-x: auto; }
nav a { margin-right: 1rem; }  a { color: inherit; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th { font-weight: 600; }  th:first-child, td:first-child { text-align: left; }
td.good { background: var(--good); }  td.bad { background: var(--bad); }
.plot { width: 100%; max-width: 62rem; background: #fff; border-radius: .4rem; }
.row { display: grid; grid-template-columns: repeat(var(--columns), 1fr); gap: .9rem;
  margin: .5rem 0 2rem; }
@media (max-width: 50rem) { .row { grid-template-columns: repeat(2, 1fr); } }
figure { margin: 0; position: relative; }
figure .crop { position: relative; background: var(--wash); border-radius: .3rem; overflow: hidden; }
figure img { display: block; width: 100%; image-rendering: auto; }
figure .clean { position: absolute; inset: 0; opacity: 0; }
figure:hover .clean { opacity: 1; }
figure.overview img { aspect-ratio: 320 / 216; object-fit: contain; }
figcaption { font-size: .85rem; line-height: 1.35; padding-top: .3rem; }
figcaption b { color: var(--ink); }  figure.ours .crop { outline: 3px solid var(--ours); }
picture-slider { margin: 0 0 3rem; }
picture-slider:not(:defined) { display: grid; grid-auto-flow: column; overflow-x: auto;
  grid-template-rows: auto auto; gap: .3rem .9rem; justify-content: start; }
picture-slider:not(:defined) img { width: 24rem; height: auto; border-radius: .3rem; }
picture-slider b { color: var(--ink); }
</style></head><body>
{% macro table(rows) %}
<div class="scroll"><table>
{% for row in rows %}
{% set tag = "th" if loop.first else "td" %}
<tr>
{%- for cell in row %}
{%- set text, kind = (cell, "") if cell is string else cell %}
<{{ tag }}{% if kind %} class="{{ kind }}"{% endif %}>{{ text }}</{{ tag }}>
{%- endfor %}
</tr>
{% endfor %}
</table></div>
{% endmacro %}
<h1>Codecs side by side</h1>
<p class="soft">aiocodec {{ version }}, {{ images }} images</p>
<pre>{{ command }}</pre>
<nav>{% for section in sections %}<a href="#{{ section.id }}">{{ section.degradation }}</a>{% endfor %}</nav>
<h2>{{ first }} against every other codec</h2>
<p>BD-rate: how many more bits {{ first }} needs for equal PSNR, in percent; negative is better. BD-PSNR: how
many dB it gains at equal bits; positive is better. A dash where nothing can be said, mostly because the
curves share too few qualities or rates. PSNR is always against the clean image.</p>
{% if summary %}{{ table(summary) }}{% else %}<p>Nothing to compare with.</p>{% endif %}

{% if notes %}
<h2>Notes</h2><ul>
{% for what, why in notes %}
<li>{% if what %}<b>{{ what }}</b> is left out: {% endif %}{{ why }}</li>
{% endfor %}
</ul>
{% endif %}
{% for section in sections %}
<h2 id="{{ section.id }}">{{ section.degradation }}</h2>
{% if section.plot %}
<img class="plot" src="{{ section.plot | uri("svg+xml") }}" alt="PSNR and MS-SSIM over bits per pixel, {{ section.degradation }}">
{% endif %}
<details><summary>All figures</summary>{{ table(section.points) }}</details>
{% for row in section.comparisons %}
{% set clean = row.tiles[-1].crop | uri %}
<div class="row" style="--columns: {{ 4 if row.tiles | length > 5 else 3 }}">
<figure class="overview"><div class="crop"><img src="{{ row.overview | uri }}" alt=""></div>
<figcaption><b>{{ row.image }}</b><br>{{ row.why }}</figcaption></figure>
{% for tile in row.tiles %}
<figure{% if tile.title == first %} class="ours"{% endif %}><div class="crop"><img src="{{ tile.crop | uri }}" alt="{{ tile.title }}">
<img class="clean" src="{{ clean }}" alt=""></div>
<figcaption><b>{{ tile.title }}</b><br>{{ tile.detail }}</figcaption></figure>
{% endfor %}
</div>
<p class="soft">Any two of these over each other, {{ row.extent }}:</p>
<picture-slider left="{{ row.rival }}" right="{{ first }}">
{% for tile in row.tiles %}
<img data-name="{{ tile.title }}" data-note="{{ tile.detail }}" src="{{ tile.part | uri }}" width="{{ tile.part.shape[1] }}" height="{{ tile.part.shape[0] }}" alt="{{ tile.title }}">
<span class="soft"><b>{{ tile.title }}</b><br>{{ tile.detail }}</span>
{% endfor %}
</picture-slider>
{% endfor %}
{% endfor %}
<h2>How this was measured</h2>
<p>Rates are those of whole files, distortions those of decoded pixels in 8 bits; means over the same
images for every codec. Seconds are for coding alone, with programs loaded and pixels in memory, on
{{ system.processor }} ({{ system.cores }} cores, {{ system.threads or "any" }} threads; aic on {{ system.device }}),
{{ system.platform }}, Python {{ system.python }}, PyTorch {{ system.torch }}, Pillow {{ system.pillow }}; a denoiser's count as encoding. Memory is the largest resident size of the codec's own process, Python included. Edges is how
well the edges that a Canny detector finds in the decoded picture agree with those of the clean one
(F-measure, 0 to 1). Blocks is how much larger steps of luma are at multiples of 16 pixels of the decoded
picture than elsewhere: photographs have about 1, blocks that one sees 1.4 and more. Of pictures side by
side, each codec has the quality whose file comes nearest in size to that of {{ first }}; they are cropped where {{ first }} and its best rival differ most. Hold the pointer
over a picture to see the clean one.</p>
<ul>{% for codec in codecs %}<li><code>{{ codec }}</code></li>{% endfor %}</ul>
<script>
{{ slider | safe }}</script>
</body></html>
"""


class Section(NamedTuple):
    """What the page has of a degradation."""

    id: str  # in the page and in names of files
    degradation: str
    plot: bytes | None  # SVG; None without matplotlib
    points: list[list[str]]  # a table, its head first
    comparisons: list[Comparison]


def _data_uri(x: Pixels | bytes, kind: str = "webp") -> str:
    if not isinstance(x, bytes):
        file = io.BytesIO()
        kind = "webp" if features.check("webp") else "png"
        Image.fromarray(np.ascontiguousarray(x)).save(file, kind, lossless=True, quality=60)
        x = file.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(x).decode()}"


def _summary(deltas: Sequence[Delta]) -> list[list[str | tuple[str, str]]]:
    """A table, the other codecs down, degradations across, of texts and pairs (text, "good", "bad" or
    neither); empty where there is nothing to compare with."""
    degradations = list(dict.fromkeys(delta.degradation for delta in deltas))
    found = {(delta.anchor, delta.degradation): delta for delta in deltas}
    rows: list[list[str | tuple[str, str]]] = [["against", *degradations]] if deltas else []
    for anchor in dict.fromkeys(delta.anchor for delta in deltas):
        row: list[str | tuple[str, str]] = [anchor]
        for degradation in degradations:
            delta = found.get((anchor, degradation))
            rate, gain = (delta.bd_rate, delta.bd_psnr) if delta else (None, None)
            parts = [
                "–" if rate is None else f"{rate:+.1f} %",
                "–" if gain is None else f"{gain:+.2f} dB",
            ]
            better = -rate if gain is None and rate is not None else gain
            kind = "" if better is None else "good" if better > 0 else "bad"
            row.append((" / ".join(parts) if delta else "", kind))
        rows.append(row)
    return rows


def write_report(
    study: Study, folder: Path, command: str, advance: Callable[[], None] = lambda: None
) -> list[str]:
    """Write results.json, results.csv, report.html and, where matplotlib is installed, rd-NAME.png and
    rd-NAME.svg of every degradation into a folder, which is made. For the pictures, some images are
    coded once more; `advance` is called after those of every degradation. Gives notes on what could
    not be shown. OSError where it cannot be written."""
    results, reference = study.results, study.reference
    folder.mkdir(parents=True, exist_ok=True)

    def write(name: str, text: str) -> None:
        (folder / name).write_text(text, "utf-8", errors="backslashreplace", newline="\n")

    write("results.json", json.dumps({"command": command, **results.to_dict()}, indent=1) + "\n")
    write("results.csv", as_csv(results))
    notes: list[str] = []
    sections: list[Section] = []
    order = list(dict.fromkeys((reference, *(curve.codec for curve in results.curves))))
    titles = [len(study.applicable(name)) + 2 for name in study.degradations]
    pixels = min(WHOLE, SHOWN // (2 * sum(titles)))  # of two images each
    for i, degradation in enumerate(study.degradations):
        curves = [curve for curve in results.curves if curve.degradation == degradation]
        if not curves:
            continue
        name = "".join(c if c.isascii() and c.isalnum() or c in "-.+" else "-" for c in degradation)
        if any(section.id == name for section in sections):
            name = f"{name}-{i}"
        svg, comparisons = None, []
        try:
            figure = plot(curves, f"{degradation}, means over {curves[0].images} images", order)
            (folder / f"rd-{name}.png").write_bytes(_rendered(figure, "png"))
            svg = _rendered(figure, "svg")
            (folder / f"rd-{name}.svg").write_bytes(svg)
        except ImportError:
            notes.append(NO_EXTRA)
        try:
            comparisons = list(compare(study, degradation, pixels))
        except AicError as error:
            notes.append(f"the pictures of {degradation} are missing: {error}")
        points = [row[1:] for row in points_table(curves)]
        sections.append(Section(name, degradation, svg, points, comparisons))
        advance()
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["uri"] = _data_uri
    page = environment.from_string(PAGE).render(
        version=__version__,
        images=len(study.sources),
        command=command,
        first=reference,
        summary=_summary(results.deltas),
        notes=[*results.failures, *((None, note) for note in study.notes)],
        sections=sections,
        system=results.system,
        codecs=results.codecs.values(),
        slider=SLIDER.read_text("utf-8"),
    )
    write("report.html", page)
    return list(dict.fromkeys(notes))
