"""The chart of docs/ is the one that benchmarks/chart.py draws from the figures of RESULTS.md."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from benchmarks.chart import CHART, RESULTS, WIDTH, Row, draw, read_rows


def test_the_chart_shows_the_recorded_figures():
    rows = read_rows(RESULTS.read_text(encoding="utf-8"))
    assert len(rows) >= 6 and {row.is_time for row in rows} == {False, True}
    assert all({"puna", "llama-server"} <= row.values.keys() for row in rows)
    assert CHART.read_text(encoding="utf-8") == draw(rows), "run: python benchmarks/chart.py"


def test_the_length_of_a_bar_is_proportional_to_its_value():
    chart = ElementTree.fromstring(draw([Row("one client", "tokens/s", {"puna": 300, "slow": 100, "slowest": 1})]))
    widths = [float(bar.get("width")) for bar in chart.findall(".//{*}rect") if "bar" in bar.get("class")]
    assert abs(widths[0] - 3 * widths[1]) < 0.2 and widths[2] == 1  # rounded to 0.1


def test_text_stays_inside_the_chart():
    """Characters of 13 pixels have an average width of at most 7.5 pixels in system fonts."""
    chart = ElementTree.fromstring(CHART.read_text(encoding="utf-8"))
    texts = chart.findall(".//{*}text")
    assert len(texts) > 20
    for text in texts:
        column = WIDTH / 2 if float(text.get("x")) < WIDTH / 2 else WIDTH
        assert float(text.get("x")) + 7.5 * len(text.text) <= column, text.text


def test_colours_exist_for_both_themes():
    style = CHART.read_text(encoding="utf-8")
    light, dark = style.split("prefers-color-scheme: dark")
    names = [set(re.findall(r"^ *([.\w]+) {", part, re.M)) for part in (light, dark)]
    assert names[1] == names[0] - {".title"} and {".card", ".bar", ".bar.own", "text"} <= names[1]
