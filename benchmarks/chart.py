"""Draws the table "Serving" of RESULTS.md as docs/serving.svg: one group of bars for each row, one bar for each engine.

    python benchmarks/chart.py

The chart has no other numbers than the table. Its colours follow the reader's light or dark theme.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS, CHART = ROOT / "benchmarks" / "RESULTS.md", ROOT / "docs" / "serving.svg"
SECTION = "Serving, Zen 5"

WIDTH, MARGIN, GAP = 760, 20, 40
COLUMN = (WIDTH - 2 * MARGIN - GAP) // 2
LABEL, NUMBER = 120, 56
"""Width of the names of the engines, and of the number after the longest bar."""
LINE, BAR, BETWEEN, ROW_GAP = 17, 15, 6, 20

STYLE = """
  .card { fill: #ffffff; stroke: #e0dbcf }
  text { fill: #23211c; font: 13px system-ui, sans-serif }
  .muted { fill: #625c50 }
  .title, .own { font-weight: 600 }
  .bar { fill: #a39c8c }
  .bar.own { fill: #2a6046 }
  @media (prefers-color-scheme: dark) {
    .card { fill: #22201b; stroke: #38352d }
    text { fill: #ece8df }
    .muted { fill: #b0a998 }
    .bar { fill: #7d7768 }
    .bar.own { fill: #8fcca7 }
  }
"""
"""The colours of the chat page (server/page/static/css/theme.css)."""


@dataclass(frozen=True)
class Row:
    """A row of the table: the load, what was measured, and the value of each engine that was measured."""

    work: str
    measure: str
    values: dict[str, float]

    @property
    def is_time(self) -> bool:
        """Whether the values are milliseconds, of which fewer are better; else they are tokens per second."""
        return self.measure.endswith("ms")


def read_rows(text: str) -> list[Row]:
    """Returns the rows of the first table of the section."""
    section = text.split(f"## {SECTION}")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    names = _cells(lines[0])[1:4]
    rows = []
    for line in lines[2:]:
        title, *values, _ratio, _target = _cells(line)
        work, measure = title.split(": ")
        numbers = {name: value.replace(",", "") for name, value in zip(names, values, strict=True)}
        rows.append(Row(work, measure, {name: float(value) for name, value in numbers.items() if value != "-"}))
    return rows


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def draw(rows: list[Row]) -> str:
    """Returns the chart as SVG: speeds in the left column, times in the right one."""
    columns = [[row for row in rows if row.is_time == times] for times in (False, True)]
    heads = ("Tokens per second (longer bars are better)", "Milliseconds (shorter bars are better)")
    parts, bottom = [], 0
    for number, (head, column) in enumerate(zip(heads, columns, strict=True)):
        x, y = MARGIN + number * (COLUMN + GAP), MARGIN + 14
        parts.append(_text(x, y, head, "muted"))
        y += 12
        for row in column:
            y = _draw_row(parts, row, x, y + ROW_GAP)
        bottom = max(bottom, y)
    height = bottom + MARGIN - BETWEEN
    name = "Load on puna serve, llama-server and OpenVINO GenAI: " + "; ".join(map(_sentence, rows))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(name)}">\n<style>{STYLE}</style>\n'
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _draw_row(parts: list[str], row: Row, x: int, y: int) -> int:
    """Adds a title and the bars of a row; returns the position below them."""
    parts.append(_text(x, y, row.work, "title"))
    parts.append(_text(x, y + LINE, row.measure, "muted"))
    y += LINE + 8
    longest = max(row.values.values())
    for engine, value in row.values.items():
        own = "own" if engine == "puna" else ""
        width = max(1.0, round(value / longest * (COLUMN - LABEL - NUMBER), 1))
        parts.append(_text(x, y + BAR - 3, engine, own))
        parts.append(f'<rect class="bar {own}" x="{x + LABEL}" y="{y}" width="{width:g}" height="{BAR}" rx="2"/>')
        parts.append(_text(x + LABEL + width + 6, y + BAR - 3, f"{value:,g}", own))
        y += BAR + BETWEEN
    return y


def _text(x: float, y: int, content: str, kind: str) -> str:
    return f'<text x="{x:g}" y="{y}" class="{kind}">{escape(content)}</text>'


def _sentence(row: Row) -> str:
    return f"{row.work}, {row.measure}: " + ", ".join(f"{engine} {value:,g}" for engine, value in row.values.items())


def main() -> None:
    """Writes the chart."""
    CHART.write_text(draw(read_rows(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
