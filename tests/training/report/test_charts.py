"""Charts and sparklines."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from puna.training.report.charts import Series, line_chart, short, smoothed, sparkline, thinned, ticks
from puna.training.report.durations import show_seconds


def points(chart):
    """Returns the positions of the points of each line of a chart."""
    lines = [item.get("points") for item in ElementTree.fromstring(chart).iter("polyline")]
    return [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in lines]


def test_positions_are_linear_in_the_values():
    (line,) = points(line_chart([Series("", [(0, 0.0), (5, 10.0), (10, 20.0)])], "a"))
    (x0, y0), (x1, y1), (x2, y2) = line
    assert x0 < x1 < x2
    assert y0 > y1 > y2, "larger values are higher"
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)


def test_labels_of_the_axis_are_at_their_values():
    chart = ElementTree.fromstring(line_chart([Series("", [(0, 0.0), (10, 20.0)])], "a"))
    labels = {item.text: float(item.get("y")) for item in chart.iter("text") if item.get("text-anchor") == "end"}
    heights = [labels[text] for text in ("0", "5", "10", "15", "20")]
    assert np.diff(heights) == pytest.approx(np.diff(heights)[0], abs=0.11)


@pytest.mark.parametrize("values", [[], [(1, math.nan)], [(1, None)]])
def test_no_values_are_no_chart(values):
    assert line_chart([Series("a", values)], "a") == ""


@pytest.mark.parametrize("values", [[(1, 2.0)], [(1, 0.0), (2, 0.0)], [(1, 1e-300), (2, 1e300)], [(1, -5), (1, -5)]])
def test_extreme_values_are_drawn(values):
    for line in points(line_chart([Series("a", values)], "a")):
        assert all(math.isfinite(value) for point in line for value in point)


def test_titles_are_escaped():
    ElementTree.fromstring(line_chart([Series('<"&', [(1, 2.0)]), Series("b", [(1, 2.0)])], '<"&>'))


def test_a_long_line_keeps_its_extremes():
    values = [(index, math.sin(index)) for index in range(10_000)]
    values[5_000] = (5_000, 40.0)
    kept = thinned(values, 400)
    assert len(kept) <= 402
    assert kept == sorted(kept)
    assert (5_000, 40.0) in kept
    assert set(kept) <= set(values)


def test_smoothing_is_a_weighted_mean_of_the_values_so_far():
    values = [(index, float(value)) for index, value in enumerate(np.random.default_rng(0).normal(size=200))]
    decay = 1 - 1 / 10
    for index, (_, mean) in enumerate(smoothed(values, 0.05)):
        weights = decay ** np.arange(index, -1, -1.0)
        assert mean == pytest.approx(np.average([y for _, y in values[: index + 1]], weights=weights))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.3, 9.2, [2, 4, 6, 8]),
        (1.01, 1.04, [1.01, 1.02, 1.03, 1.04]),
        (-3e-5, 7e-5, [-2e-5, 0, 2e-5, 4e-5, 6e-5]),
        (0, 12_000, [0, 5_000, 10_000]),
    ],
)
def test_ticks_are_round_numbers_in_the_range(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_numbers_are_short():
    assert [short(value) for value in (1200, 3e-5, 0.123456, 2.0)] == ["1,200", "3e-05", "0.1235", "2"]


def test_sparklines_show_the_course():
    assert sparkline(range(8)) == "▁▂▃▄▅▆▇█"
    assert sparkline([3, 2, 1], 24) == "█▅▁"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert len(sparkline(list(range(1000)), 24)) == 24
    assert sparkline([]) == sparkline([math.nan]) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.251, "0.25 s"), (42.4, "42 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3900, "1 h 05 min"),
     (3599.9, "1 h 00 min"), (90_000, "1 d 01 h")],
)  # fmt: skip
def test_durations_have_two_units(seconds, text):
    assert show_seconds(seconds) == text
