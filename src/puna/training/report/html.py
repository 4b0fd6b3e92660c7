"""report.html: one self-contained page about a run, built from the files in the folder of its result.

The page loads nothing: styles and charts are inline, there are no scripts, and a content security policy forbids
everything else. It can therefore be sent to others and opened from a disk.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from puna.errors import PunaError, show_bytes
from puna.files import atomic_write, read_json
from puna.training.report.charts import Series, line_chart, short, smoothed
from puna.training.report.classification import classification_sections
from puna.training.report.durations import show_seconds
from puna.training.report.metrics import Metrics, Record, read_metrics

REPORT_FILE = "report.html"
SETTINGS_FILE = "training.toml"
RUN_FILE = "run.json"

_LONGEST_SAMPLE = 4000
"""Characters of a sample in the page."""


def write_report(folder: Path, command: str = "") -> Path:
    """Writes report.html from the files of a result, and returns its path.

    Args:
        command: the command line that repeats the run.
    """
    path = folder / REPORT_FILE
    page = report_page(read_metrics(folder), command, _text(folder / SETTINGS_FILE), _run_file(folder))
    with atomic_write(path) as file:
        file.write(page.encode("utf-8", "replace"))
    return path


def report_page(metrics: Metrics, command: str, settings: str, run: Mapping[str, Any]) -> str:
    """Returns the page.

    Args:
        command: the command line that repeats the run.
        settings: the text of the file of settings.
        run: the content of run.json: environment, versions, data.
    """
    options = metrics.start.get("settings", {})
    names = [Path(str(options.get("model") or "the default model")).name, options.get("task", "sft")]
    title = " · ".join([*names, options.get("method", "lora")])
    sections = [
        _section("Curves", f'<div class="charts">{"".join(_charts(metrics))}</div>'),
        *(_section(name, body) for name, body in classification_sections(_last_metrics(metrics))),
        _section("Samples before and after the training", _samples(metrics.samples)),
        _section("Command", f"<pre>{escape(command)}</pre>" if command else ""),
        _section("Notes", _list(metrics.start.get("notes", []))),
        _section("Estimate", _estimate(metrics)),
        _section("Settings", f"<pre>{escape(settings)}</pre>" if settings else "", is_folded=True),
        _section("Environment and data", _table(_flat(run)), is_folded=True),
    ]
    template = Template(resources.files("puna.training.report").joinpath("page.html").read_text("utf-8"))
    return template.substitute(
        title=escape(title), status=escape(_status(metrics)), tiles=_tiles(metrics), sections="".join(sections)
    )


def _text(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.is_file() else ""


def _run_file(folder: Path) -> dict[str, Any]:
    path = folder / RUN_FILE
    return read_json(path, PunaError) if path.is_file() else {}


def _section(name: str, body: str, *, is_folded: bool = False) -> str:
    if not body or body == '<div class="charts"></div>':
        return ""
    if is_folded:
        return f"<section><details><summary><h2>{escape(name)}</h2></summary>{body}</details></section>"
    return f"<section><h2>{escape(name)}</h2>{body}</section>"


def _status(metrics: Metrics) -> str:
    begin = metrics.start.get("time")
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime(begin)) if begin else ""
    message = (metrics.end or {}).get("message", "")
    return " · ".join(part for part in (metrics.status, message, date) if part)


def _tiles(metrics: Metrics) -> str:
    steps, total = metrics.steps, metrics.start.get("steps", 0)
    tiles = [("steps", f"{len(steps):,} of {total:,}")]
    if metrics.losses:
        tiles.append(("training loss", f"{metrics.losses[0]:.4f} → {_final_loss(metrics):.4f}"))
    for name, value in _last_metrics(metrics).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            tiles.append((f"held-out {_words(name)}", f"{value:.4f}"))
    if steps:
        seconds = sum(item["seconds"] for item in steps)
        tokens = sum(item["tokens"] for item in steps)
        tiles += [
            ("tokens", f"{tokens:,}"),
            ("tokens per second", f"{tokens / seconds:,.0f}" if seconds else ""),
            ("time of all steps", show_seconds(seconds)),
            ("peak memory", show_bytes(max(item.get("peak_memory") or 0 for item in steps))),
        ]
    trained, frozen = metrics.start.get("trained", 0), metrics.start.get("frozen", 0)
    if trained:
        tiles.append(("trained parameters", f"{trained:,} ({trained / (trained + frozen):.2%})"))
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in tiles if text)


def _final_loss(metrics: Metrics) -> float:
    """Returns the mean of the last twentieth of the losses, at least one."""
    last = metrics.losses[-max(1, len(metrics.losses) // 20) :]
    return sum(last) / len(last)


def _last_metrics(metrics: Metrics) -> Record:
    """Returns the metrics of the run: those of its end, else of its last evaluation."""
    last: Record = metrics.evaluations[-1].get("metrics", {}) if metrics.evaluations else {}
    return (metrics.end or {}).get("metrics") or last


def _charts(metrics: Metrics) -> list[str]:
    loss = _points(metrics.steps, "loss")
    held_out = [(item["step"], item["metrics"].get("loss")) for item in metrics.evaluations]
    charts = [
        line_chart(
            [
                Series("each step", loss, "pale"),
                Series("training", smoothed(loss)),
                Series("held-out", held_out, "dots", colour=1),
            ],
            "Loss",
        )
    ]
    if len(metrics.evaluations) > 1:
        numbers = {name for item in metrics.evaluations for name, value in item["metrics"].items() if _is_number(value)}
        for name in sorted(numbers - {"loss"}):
            points = [(item["step"], item["metrics"].get(name)) for item in metrics.evaluations]
            charts.append(line_chart([Series("", points, "dots")], f"Held-out {_words(name)}"))
    for name, title in (
        ("learning_rate", "Learning rate"),
        ("gradient_norm", "Gradient norm"),
        ("tokens_per_second", "Tokens per second"),
    ):
        charts.append(line_chart([Series("", _points(metrics.steps, name))], title))
    return charts


def _words(name: str) -> str:
    """Returns the name of a metric for people."""
    return name.replace("_", " ").replace("f1", "F1").replace("auc", "AUC")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _points(steps: Sequence[Record], name: str) -> list[tuple[float, float]]:
    return [(item["step"], item[name]) for item in steps if item.get(name) is not None]


def _samples(samples: Sequence[Record]) -> str:
    """Returns a table of prompts with the texts of the first and of the last samples."""
    if not samples:
        return ""
    first, last = samples[0], samples[-1]
    columns = [first] if last is first else [first, last]
    titles = ["before" if item["step"] == 0 else f"after step {item['step']:,}" for item in columns]
    head = "".join(f"<th>{title}</th>" for title in titles)
    rows = []
    for index, prompt in enumerate(first["prompts"]):
        texts = [item["texts"][index] if index < len(item["texts"]) else "" for item in columns]
        cells = "".join(f'<td class="text">{escape(str(text)[:_LONGEST_SAMPLE])}</td>' for text in texts)
        rows.append(f'<tr><td class="text prompt">{escape(str(prompt)[:_LONGEST_SAMPLE])}</td>{cells}</tr>')
    return f"<div class=wide><table><tr><th>prompt</th>{head}</tr>{''.join(rows)}</table></div>"


def _estimate(metrics: Metrics) -> str:
    """Returns the estimated and the measured time and memory."""
    expected, memory = metrics.start.get("estimated_seconds"), metrics.start.get("estimated_memory")
    if not expected or not memory or not metrics.steps:
        return ""
    seconds = sum(item["seconds"] for item in metrics.steps)
    expected *= len(metrics.steps) / max(1, metrics.start.get("steps", 1))
    peak = max(item.get("peak_memory") or 0 for item in metrics.steps)
    rows = {
        "time of the steps": (show_seconds(expected), show_seconds(seconds), seconds / expected),
        "peak memory": (show_bytes(memory), show_bytes(peak), peak / memory),
    }
    body = "".join(
        f"<tr><td>{name}</td><td>{before}</td><td>{after}</td><td>{ratio:.2f}</td></tr>"
        for name, (before, after, ratio) in rows.items()
    )
    return f"<table><tr><th></th><th>estimated</th><th>measured</th><th>ratio</th></tr>{body}</table>"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Returns nested values by names such as "versions.torch"."""
    rows: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows.update(_flat(value, f"{prefix}{name}."))
        else:
            rows[f"{prefix}{name}"] = short(value) if isinstance(value, float) else str(value)
    return rows


def _table(rows: Mapping[str, str]) -> str:
    if not rows:
        return ""
    body = "".join(f"<tr><td>{escape(name)}</td><td class=text>{escape(text)}</td></tr>" for name, text in rows.items())
    return f"<div class=wide><table>{body}</table></div>"


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""
