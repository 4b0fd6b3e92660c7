"""Charts as inline SVG for the HTML report, and sparklines for terminals. Colours are classes of the page's style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Literal

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 38
"""Margins for the labels of the axes."""

_MOST_POINTS = 400
"""Points of a line in the page; a chart is about 600 pixels wide."""

_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        name: its name in the legend; "" for a line without an entry.
        points: (x, y), ascending in x; points whose y is not finite interrupt nothing and are left out.
        style: a thick line, a thin pale line for values that another line smooths, a thick line with dots, or the
            dashed line that a curve is compared with.
        colour: index of its colour in the page, from 0.
    """

    name: str
    points: Points
    style: Literal["line", "pale", "dots", "dashed"] = "line"
    colour: int = 0


def line_chart(series: Sequence[Series], title: str, x_title: str = "step") -> str:
    """Returns an SVG element with lines, both axes, and a legend if there are several named lines."""
    lines = [replace(item, points=_finite(item.points)) for item in series]
    lines = [item for item in lines if item.points]
    if not lines:
        return ""
    xs = [x for item in lines for x, _ in item.points]
    ys = [y for item in lines for _, y in item.points]
    scale = _Scale(_padded(min(xs), max(xs), 0.0), _padded(min(ys), max(ys), 0.06))
    parts = [*_grid(scale), *(part for item in lines for part in _line(item, scale))]
    parts.append(
        f'<text class="axis" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">{escape(x_title)}</text>'
    )
    named = [item for item in lines if item.name]
    legend = "".join(
        f'<span class="key"><i class="swatch {item.style} s{item.colour}"></i>{escape(item.name)}</span>'
        for item in named
    )
    return (
        f"<figure><figcaption>{escape(title)}{legend if len(named) > 1 else ''}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


@dataclass(frozen=True)
class _Scale:
    """Converts values to positions in the SVG."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns the position of a point."""
        return self.left(x), self.top(y)

    def left(self, x: float) -> float:
        """Returns the horizontal position of a value."""
        return _LEFT + (x - self.x[0]) / (self.x[1] - self.x[0]) * (_WIDTH - _LEFT - _RIGHT)

    def top(self, y: float) -> float:
        """Returns the vertical position of a value."""
        return _TOP + (self.y[1] - y) / (self.y[1] - self.y[0]) * (_HEIGHT - _TOP - _BOTTOM)


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    """Returns a range with space on both sides; a range around the value if there is only one."""
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        margin = abs(low) * 0.1 or 0.5
        return low - margin, high + margin
    return low - (high - low) * share, high + (high - low) * share


def _grid(scale: _Scale) -> list[str]:
    parts = []
    for value in ticks(*scale.y):
        top = scale.top(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{top:.1f}" y2="{top:.1f}"/>')
        parts.append(f'<text class="axis" x="{_LEFT - 8}" y="{top + 4:.1f}" text-anchor="end">{short(value)}</text>')
    for value in ticks(*scale.x, 6):
        left = scale.left(value)
        parts.append(f'<text class="axis" x="{left:.1f}" y="{_HEIGHT - 20}" text-anchor="middle">{short(value)}</text>')
    return parts


def _line(item: Series, scale: _Scale) -> list[str]:
    positions = [scale.at(x, y) for x, y in thinned(item.points, _MOST_POINTS)]
    path = " ".join(f"{left:.1f},{top:.1f}" for left, top in positions)
    parts = [f'<polyline class="{item.style} s{item.colour}" points="{path}"/>']
    if item.style == "dots" or len(positions) == 1:
        for (x, y), (left, top) in zip(thinned(item.points, _MOST_POINTS), positions, strict=True):
            title = f"<title>{short(x)}: {short(y)}</title>"
            parts.append(f'<circle class="s{item.colour}" cx="{left:.1f}" cy="{top:.1f}" r="3.5">{title}</circle>')
    return parts


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if y is not None and math.isfinite(y)]


def thinned(points: Points, most: int) -> Points:
    """Returns at most about `most` points: of each group of neighbours, those with the lowest and the highest y."""
    if len(points) <= most:
        return points
    size = math.ceil(2 * len(points) / most)
    result: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        group = points[start : start + size]
        ends = {min(group, key=lambda point: point[1]), max(group, key=lambda point: point[1])}
        result += sorted(ends)
    return result


def smoothed(points: Points, share: float = 0.05) -> list[tuple[float, float]]:
    """Returns the exponential moving mean of y over `share` of the points, without the bias of its first value."""
    decay = 1 - 1 / max(1.0, share * len(points))
    mean = weight = 0.0
    result = []
    for x, y in _finite(points):
        mean, weight = decay * mean + (1 - decay) * y, decay * weight + 1 - decay
        result.append((x, mean / weight))
    return result


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round numbers between two values: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12 - math.floor(math.log10(step))) for index in range(first, last + 1)]


def short(value: float) -> str:
    """Returns a number with four significant digits, such as 1,200 or 3e-05."""
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:.4g}"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Returns the course of some numbers in at most `width` characters, each the mean of consecutive numbers."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return ""
    count = min(width, len(finite))
    groups = [finite[index * len(finite) // count : (index + 1) * len(finite) // count] for index in range(count)]
    means = [sum(group) / len(group) for group in groups]
    low, high = min(means), max(means)
    span = high - low or 1.0
    return "".join(_BARS[min(7, int((mean - low) / span * 8))] for mean in means)
