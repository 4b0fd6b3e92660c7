"""The sections of a classification in the report: results of each class, confusion matrix and ROC curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from puna.training.report.charts import Series, line_chart

_MOST_CLASSES = 30
"""Classes in the tables of the page; further classes are only in metrics.jsonl."""

_MOST_CURVES = 5
"""Curves in one chart: as many as the page has colours."""


def classification_sections(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the titles and bodies of the sections; none if the run is not a classification.

    Args:
        metrics: of an evaluation; see `training.metrics.evaluate_labels`.
    """
    names = [str(name) for name in metrics.get("labels") or []]
    classes = metrics.get("classes")
    if isinstance(classes, Mapping) and classes:
        yield "Classes", _class_table(classes)
    matrix = metrics.get("confusion_matrix")
    if names and matrix:
        is_one = not isinstance(matrix[0][0], Sequence)
        if is_one and len(names) <= _MOST_CLASSES:
            yield "Confusion matrix", _matrix(matrix, names)
        elif not is_one:
            tables = (
                f"<div><h3>{escape(name)}</h3>{_matrix(item, ['no', 'yes'])}</div>"
                for name, item in zip(names[:_MOST_CLASSES], matrix, strict=False)
            )
            yield "Confusion matrices", f'<div class="charts">{"".join(tables)}</div>'
    roc = metrics.get("roc")
    if isinstance(roc, Mapping) and roc:
        yield "ROC", f'<div class="charts">{_roc_chart(roc)}</div>'


def _class_table(classes: Mapping[str, Mapping[str, Any]]) -> str:
    columns = list(next(iter(classes.values())))
    head = "".join(f"<th>{escape(name)}</th>" for name in ["class", *columns])
    rows = [
        f"<tr><td class=text>{escape(str(name))}</td>{''.join(_number(values.get(column)) for column in columns)}</tr>"
        for name, values in list(classes.items())[:_MOST_CLASSES]
    ]
    return f"<div class=wide><table><tr>{head}</tr>{''.join(rows)}</table></div>{_rest(len(classes))}"


def _number(value: Any) -> str:
    text = "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
    return f"<td class=number>{text}</td>"


def _rest(count: int) -> str:
    return f"<p class=status>{count - _MOST_CLASSES} further classes are in metrics.jsonl.</p>" * (
        count > _MOST_CLASSES
    )


def _matrix(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Returns a table; a cell's colour is its share of its row, the texts of one class."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = []
    for name, counts in zip(names, matrix, strict=False):
        total = sum(counts) or 1
        cells = "".join(_cell(count, count / total) for count in counts)
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    return f"<div class=wide><table><tr><th>actual \\ predicted</th>{head}</tr>{''.join(rows)}</table></div>"


def _cell(count: int, share: float) -> str:
    ink = "color:#fff;" if share > 0.5 else ""
    return f'<td class=number title="{share:.1%}" style="background:rgba(37,99,235,{share:.2f});{ink}">{count:,}</td>'


def _roc_chart(roc: Mapping[str, Sequence[Sequence[float]]]) -> str:
    curves = [
        Series(str(name), list(zip(false, true, strict=False)), colour=index)
        for index, (name, (false, true)) in enumerate(list(roc.items())[:_MOST_CURVES])
    ]
    chance = Series("chance", [(0.0, 0.0), (1.0, 1.0)], "dashed")
    return line_chart([*curves, chance], "True positive rate by false positive rate", "false positive rate")
