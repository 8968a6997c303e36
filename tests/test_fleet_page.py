"""The figures of docs/fleet.md follow from the measurements in docs/fleet.json. After new ones

python tests/test_fleet_page.py

writes them into the page.
"""

import json
from pathlib import Path
from statistics import mean

DOCS = Path(__file__).parent.parent / "docs"
END = "<!-- end -->"
MILLION, BILLION = 10**6, 10**9


def rate(measured, what):
    """What one picture more costs, from runs with a few pictures and with many."""
    few, many = measured["few"], measured["many"]
    return (mean(many[what]) - mean(few[what])) / (many["pictures"] - few["pictures"])


def start(measured):
    """Seconds that a run takes besides its pictures."""
    few = measured["few"]
    return mean(few["seconds"]) - few["pictures"] * rate(measured, "seconds")


def line(*cells):
    return f"| {' | '.join(cells)} |"


def overhead(figures):
    """What the engine costs, beside `aic encode -j`."""
    yield line("picture", "workers", "`-j`", "`--ray`", "more time", "more CPU", "start, s")
    yield line(*["---"] * 7)
    for measured in figures["codec"]:
        alone, fleet = measured["j"], measured["ray"]
        cells = [f"{measured['megapixels']:.1f} MP", str(measured["workers"])]
        cells += [
            f"{1 / rate(one, 'seconds'):.3g}/s, {rate(one, 'cpu_seconds'):.3g} CPU s"
            for one in (alone, fleet)
        ]
        for what in ("seconds", "cpu_seconds"):
            cells.append(f"{100 * (rate(fleet, what) / rate(alone, what) - 1):+.1f} %")
        yield line(*cells, f"{start(alone):.1f} / {start(fleet):.1f}")


def growth(figures):
    """What the engine itself costs as pictures become many."""
    yield line(
        "pictures", "seconds", "ms per picture", "CPU ms per picture", "driver, MiB", "all, MiB"
    )
    yield line(*["---"] * 6)
    for run in figures["scale"]:
        count = run["pictures"]
        cells = [f"{count:,}", f"{run['seconds']:.0f}", f"{1000 * run['seconds'] / count:.1f}"]
        cells += [f"{1000 * run['cpu_seconds'] / count:.1f}"]
        yield line(*cells, str(run["command_mib"]), str(run["all_mib"]))


def costs(figures):
    """What many pictures cost, from what one costs."""
    yield line(
        "", *(f"{count} of {size} MP" for size in figures["sizes"] for count in ("10^6", "10^9"))
    )
    yield line(*["---"] * (1 + 2 * len(figures["sizes"])))
    rows = {"core-hours": [], "hours on 1000 cores": [], "as JPEG": [], "as .aic": [], "saved": []}
    for size, bytes_ in figures["sizes"].items():
        (measured,) = (
            one["ray"]
            for one in figures["codec"]
            if (f"{one['megapixels']:.1f}", one["workers"]) == (size, figures["cores"])
        )
        for count in (MILLION, BILLION):
            hours = count * rate(measured, "cpu_seconds") / 3600
            before, after = (
                count * bytes_[what] / bytes_["pictures"] for what in ("input", "output")
            )
            rows["core-hours"].append(rounded(hours))
            rows["hours on 1000 cores"].append(rounded(hours / 1000))
            rows["as JPEG"].append(amount(before))
            rows["as .aic"].append(amount(after))
            rows["saved"].append(f"{amount(before - after)} ({100 * (1 - after / before):.0f} %)")
    for name, cells in rows.items():
        yield line(name, *cells)


def rounded(number):
    """Three digits that count, and commas."""
    return f"{float(f'{number:.3g}'):,.{2 if number < 10 else 0}f}"


def amount(count):
    """Bytes for people, in powers of 1000."""
    for unit, name in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count / 1e6:.3g} MB"


def with_figures(page, figures):
    """The page with these figures, each table in its place."""
    for table in (overhead, growth, costs):
        begin = f"<!-- {table.__name__} -->\n"
        before, _, rest = page.partition(begin)
        _, end, after = rest.partition(END)
        assert end, f"there is no place for {table.__name__}"
        page = before + begin + "\n" + "\n".join(table(figures)) + "\n\n" + END + after
    return page


def test_the_page_follows_from_the_figures():
    figures = json.loads((DOCS / "fleet.json").read_text("utf-8"))
    page = (DOCS / "fleet.md").read_text("utf-8")
    assert with_figures(page, figures) == page


if __name__ == "__main__":
    measured = json.loads((DOCS / "fleet.json").read_text("utf-8"))
    path = DOCS / "fleet.md"
    path.write_text(with_figures(path.read_text("utf-8"), measured), "utf-8")
