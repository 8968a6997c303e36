"""The page of figures is made of measurements: every table on it has a mark, and is written anew."""

import json
import re
from pathlib import Path

import figures
import pytest

PAGE = (Path(__file__).parent.parent / "docs/evaluation.md").read_text("utf-8")


def test_every_table_is_on_the_page_once():
    assert sorted(re.findall(r"<!-- (.*) -->", PAGE.replace("<!-- end -->", ""))) == sorted(
        figures.TABLES
    )
    assert PAGE.count("<!-- end -->") == len(figures.TABLES)


def test_tables_are_replaced_and_nothing_else(tmp_path):
    """From results as `aic evaluate` writes them, more than once with the same result."""
    (tmp_path / "clean").mkdir()
    measures = dict.fromkeys(
        ("bpp", "ms_ssim", "edges", "blocks", "encode_seconds", "decode_seconds"), 0.5
    ) | dict.fromkeys(("encode_cpu_seconds", "decode_cpu_seconds", "peak_mib"), 1.25)
    curve = {
        "degradation": "clean",
        "codec": "aic@10,90",
        "images": 2,
        "points": [{"quality": q, "psnr": 30 + q / 10, **measures} for q in (10, 90)],
    }
    (tmp_path / "clean/results.json").write_text(json.dumps({"curves": [curve], "deltas": []}))
    page = "before\n\n<!-- clean -->\nold | rows\n<!-- end -->\nafter\n"
    measured = figures.Measured(tmp_path)
    once = figures.written(page, measured)
    assert once.startswith("before\n\n<!-- clean -->\n\n| quality | bpp | PSNR |")
    assert once.endswith("<!-- end -->\nafter\n")
    assert "| 90 | 0.500 | 39.00 dB | 0.5000 | 0.500 | 0.500 | 0.50 s | 0.50 s |" in once
    assert "old" not in once
    assert figures.written(once, measured) == once
    for wrong in ("<!-- cleen -->\n<!-- end -->\n", "<!-- clean -->\n| a |\n", "<!-- end -->\n"):
        with pytest.raises(ValueError, match="table"):
            figures.written(wrong, measured)


def test_cells_that_are_empty():
    assert figures.markdown(iter([("", "a"), ("b", "")])) == "| | a |\n|---|---|\n| b | |"
