"""The tables of docs/evaluation.md, from fresh measurements.

    python tests/figures.py measure kodak/ weather/ figures/    # the commands of the page, hours of CPU time
    python tests/figures.py write figures/ docs/evaluation.md   # what lies between <!-- name --> and <!-- end -->

`weather/` has the folders of pairs haze/ and rain/, of which those are taken that training holds back. A part
may be given, `measure ... figures/ clean`; seconds of the clock are worth something where nothing runs
beside. What was measured is kept by `aic evaluate`, so that a second call repeats only what is
missing. The plots of the page are figures/clean/rd-clean.svg and figures/noise/rd-noise-25.svg.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from aiocodec.evaluate.study import Curve, Delta, read_curves

QUALITIES = (10, 30, 50, 70, 90)
OTHERS = Path(__file__).parent.parent / "docs/kodak-others.json"
SIGMAS = (15, 25, 35, 45, 50, 55)
WEATHER = (
    *("haze", "rain", "snow", "jpeg:40", "camera"),
    *("camera:0.5+jpeg:75", "rain:0.5+noise:15", "haze:0.5+jpeg:60"),
)
EFFORTS = (3, 9)
RESTORERS = {"haze": "dcp+avif", "rain": "dgsm+avif"}
PARTS = ("clean", "noise", "bm3d", "haze", "rain", "weather", "effort")

Row = Sequence[str]


# --------------------------------------------------------------------------- measuring


def command(part: str, kodak: Path, weather: Path, out: Path) -> list[str]:
    """The arguments of `aic evaluate` for a part."""

    def each(option: str, values: Sequence[str]) -> list[str]:
        return [word for value in values for word in (option, value)]

    aic = "aic@" + ",".join(map(str, QUALITIES))
    levels = [f"noise:{sigma}" for sigma in SIGMAS]
    efforts = ["aic@10,50,90", *(f"aic/{effort}@10,50,90" for effort in EFFORTS)]
    some = [str(kodak), "--every", "3"]
    arguments = {
        "clean": [str(kodak), *each("--codec", [aic, "jpeg", "webp", "avif"])],
        "noise": [*some, *each("--degrade", levels), *each("--codec", [aic, "avif", "nlm+avif"])],
        "bm3d": [*some, *each("--degrade", ["noise:25", "noise:50"])]
        + each("--codec", [aic, "bm3d+avif"]),
        "weather": [*some, *each("--degrade", WEATHER)]
        + each("--codec", ["aic@10,50,90", "avif@14,32"]),
        "effort": [str(kodak), "--every", "12", *each("--degrade", ["clean", "noise:25"])]
        + each("--codec", efforts),
    }
    for kind, restorer in RESTORERS.items():
        if part == kind:
            clean, spoiled = held_back(weather / kind, out / f"{kind}-pairs")
            codecs = each("--codec", [aic, "avif", restorer])
            arguments[kind] = [str(clean), "--degraded", str(spoiled), *codecs]
    against = ["--against", str(OTHERS)] if part in ("clean", "noise") else []
    return [*arguments[part], *against, "--out", str(out / part), "--quiet"]


def held_back(folder: Path, out: Path) -> tuple[Path, Path]:
    """The pairs that training did not see, clean and spoiled ones in two folders under the same names."""
    from aiocodec.training.data import held_out

    clean, spoiled = out / "clean", out / "spoiled"
    for made in (clean, spoiled):
        made.mkdir(parents=True, exist_ok=True)
    for name in held_out(folder):
        for made, kind in ((clean, "gt"), (spoiled, "in")):
            (source,) = folder.glob(f"{name}_{kind}.*")
            (made / f"{name}{source.suffix}").write_bytes(source.read_bytes())
    return clean, spoiled


# --------------------------------------------------------------------------- tables


class Measured:
    """What a folder of results holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def curves(self, part: str) -> dict[tuple[str, str], Curve]:
        """By degradation and codec, without the qualities in its name."""
        found = read_curves(self.folder / part / "results.json")
        return {(curve.degradation, curve.codec.partition("@")[0]): curve for curve in found}

    def deltas(self, part: str) -> list[Delta]:
        document = json.loads((self.folder / part / "results.json").read_text("utf-8"))
        return [Delta(**delta) for delta in document["deltas"]]


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1f} %"


def decibels(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f} dB"


def both(curve: Curve, quality: int, ms_ssim: bool = False) -> str:
    m = dict(curve.points)[quality]
    more = f" / {m.ms_ssim:.3f}" if ms_ssim and m.ms_ssim is not None else ""
    return f"{m.bpp:.3f} / {m.psnr:.2f}{more}"


def clean(measured: Measured) -> Iterator[Row]:
    yield "quality", "bpp", "PSNR", "MS-SSIM", "edges", "blocks", "encode", "decode"
    for quality, m in measured.curves("clean")["clean", "aic"].points:
        yield (
            f"{quality}",
            f"{m.bpp:.3f}",
            f"{m.psnr:.2f} dB",
            f"{m.ms_ssim:.4f}",
            f"{m.edges:.3f}",
            f"{m.blocks:.3f}",
            f"{m.encode_seconds:.2f} s",
            f"{m.decode_seconds:.2f} s",
        )


def clean_against(measured: Measured) -> Iterator[Row]:
    yield "aic against", "BD-rate", "BD-PSNR", "BD-rate, MS-SSIM", "over PSNR"
    for d in measured.deltas("clean"):
        over = "{:.1f} to {:.1f} dB".format(*d.overlap) if d.overlap else "–"
        anchor = d.anchor.partition("@")[0]
        yield (
            anchor,
            percent(d.bd_rate),
            decibels(d.bd_psnr),
            percent(d.bd_rate_ms_ssim),
            over,
        )


def noise(measured: Measured) -> Iterator[Row]:
    anchors = ("avif", "nlm+avif", "bm3d+avif", "FFDNet+avif")
    yield "sigma", "aic: q 10", "q 50", "q 90", *anchors
    deltas = {
        (d.degradation, d.anchor.partition("@")[0]): d
        for part in ("noise", "bm3d")
        for d in measured.deltas(part)
    }
    for sigma in SIGMAS:
        kind = f"noise:{sigma}"
        curve = measured.curves("noise")[kind, "aic"]
        row = [f"{sigma}", *(both(curve, quality) for quality in (10, 50, 90))]
        for anchor in anchors:
            d = deltas.get((kind, anchor))
            row.append(f"{percent(d.bd_rate)} / {decibels(d.bd_psnr)}" if d else "")
        yield row


def noise_25(measured: Measured) -> Iterator[Row]:
    yield "codec", "quality", "bpp", "PSNR", "MS-SSIM", "edges"
    for part, codec in (
        ("noise", "aic"),
        ("bm3d", "bm3d+avif"),
        ("noise", "nlm+avif"),
        ("noise", "avif"),
    ):
        for quality, m in measured.curves(part)["noise:25", codec].points:
            values = f"{m.bpp:.3f}", f"{m.psnr:.2f} dB", f"{m.ms_ssim:.4f}", f"{m.edges:.3f}"
            yield codec, f"{quality}", *values


def pairs(measured: Measured) -> Iterator[Row]:
    yield "", "", "lowest", "", "", "", "highest"
    for kind, restorer in RESTORERS.items():
        curves = {codec: curve for (_, codec), curve in measured.curves(kind).items()}
        for codec in ("aic", "avif", restorer):
            curve = curves[codec]
            yield kind, codec, *(both(curve, quality, ms_ssim=True) for quality, _ in curve.points)


def weather(measured: Measured) -> Iterator[Row]:
    yield "", "aic: q 10", "q 50", "q 90", "avif 14", "avif 32", "aic against avif"
    curves = measured.curves("weather")
    deltas = {d.degradation: d for d in measured.deltas("weather")}
    for kind in WEATHER:
        ours = (both(curves[kind, "aic"], quality) for quality in (10, 50, 90))
        theirs = (both(curves[kind, "avif"], quality) for quality in (14, 32))
        d = deltas[kind]
        yield kind, *ours, *theirs, f"{percent(d.bd_rate)} / {decibels(d.bd_psnr)}"


def blocks(measured: Measured) -> Iterator[Row]:
    yield "", *(f"{'q ' if quality == QUALITIES[0] else ''}{quality}" for quality in QUALITIES)
    rows = {"clean": measured.curves("clean")["clean", "aic"]}
    for sigma in (15, 25, 50):
        rows[f"sigma {sigma}"] = measured.curves("noise")[f"noise:{sigma}", "aic"]
    for name, curve in rows.items():
        yield name, *(f"{m.blocks:.3f}" for _, m in curve.points)


def cost(measured: Measured) -> Iterator[Row]:
    yield "", "encode s", "CPU s", "decode s", "CPU s", "peak MiB"
    for codec, quality in (("aic", 50), ("jpeg", 40), ("webp", 40), ("avif", 32)):
        points = dict(measured.curves("clean")["clean", codec].points)
        m = points.get(quality) or points[min(points, key=lambda q: abs(q - quality))]
        seconds = (
            m.encode_seconds,
            m.encode_cpu_seconds,
            m.decode_seconds,
            m.decode_cpu_seconds,
        )
        yield f"{codec}@{quality}", *(f"{s:.3f}" for s in seconds), f"{m.peak_mib:.0f}"


def effort(measured: Measured) -> Iterator[Row]:
    """How many bits an effort saves, so the other way round than `aic evaluate` has it."""
    yield (
        *("effort", "clean: BD-rate", "BD-PSNR", "encode, CPU s"),
        *("sigma 25: BD-rate", "BD-PSNR", "encode, CPU s"),
    )
    curves = measured.curves("effort")
    for level in (0, *EFFORTS):
        row = [f"{level}"]
        for kind in ("clean", "noise:25"):
            curve = curves[kind, f"aic/{level}" if level else "aic"]
            d = Delta.between(curves[kind, "aic"], curve)
            seconds = sum(m.encode_cpu_seconds for _, m in curve.points) / len(curve.points)
            figures = (percent(d.bd_rate), decibels(d.bd_psnr)) if level else ("", "")
            row += [*figures, f"{seconds:.1f}"]
        yield row


TABLES: dict[str, Callable[[Measured], Iterator[Row]]] = {
    "clean": clean,
    "clean against": clean_against,
    "noise": noise,
    "noise 25": noise_25,
    "pairs": pairs,
    "weather": weather,
    "blocks": blocks,
    "cost": cost,
    "effort": effort,
}
"""By their marks on the page."""


def markdown(rows: Iterator[Row]) -> str:
    """A table, whose first row is its head."""
    head, *body = (list(row) for row in rows)
    lines = (" ".join(f"| {cell}".rstrip() for cell in row) + " |" for row in body)
    title = " ".join(f"| {cell}".rstrip() for cell in head) + " |"
    return "\n".join([title, "|" + "---|" * len(head), *lines])


def written(page: str, measured: Measured) -> str:
    """The page with all tables that are marked on it anew. ValueError for a mark that has no table or no
    end, KeyError and OSError where a measurement is missing."""
    head, *sections = page.split("<!-- ")
    result = head
    while sections:
        name, arrow, rest = sections.pop(0).partition(" -->\n")
        if name not in TABLES or not arrow:
            raise ValueError(f"there is no table named {name!r}")
        if not sections or not sections[0].startswith("end -->"):
            raise ValueError(f"the table {name!r} has no end")
        result += f"<!-- {name} -->\n\n{markdown(TABLES[name](measured))}\n\n"
        result += "<!-- " + sections.pop(0)
    return result


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["measure"] and len(arguments) >= 4:
        kodak, weather, out = map(Path, arguments[1:4])
        for part in arguments[4:] or PARTS:
            words = [sys.executable, "-m", "aiocodec", "evaluate"]
            subprocess.run([*words, *command(part, kodak, weather, out)], check=True)
    elif arguments[:1] == ["write"] and len(arguments) == 3:
        page = Path(arguments[2])
        page.write_text(written(page.read_text("utf-8"), Measured(Path(arguments[1]))), "utf-8")
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
