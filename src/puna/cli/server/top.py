"""`puna top`: the metrics of a server, live in the terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from puna.cli import options
from puna.cli.server.guard import first_key
from puna.cli.terminal import command, print_json
from puna.errors import MissingExtraError, ServerError, first_line

if TYPE_CHECKING:
    from rich.table import Table

Values = Mapping[str, float]

_PREFIX = "puna:"
_HISTOGRAMS = {"first_token": "time_to_first_token_seconds", "token_gap": "inter_token_latency_seconds"}
_RATES = {
    "prompt_tokens_per_second": "prompt_tokens_total",
    "generated_tokens_per_second": "generation_tokens_total",
    "requests_per_second": "e2e_request_latency_seconds_count",
}
_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class Sample:
    """The metrics of a server at one time.

    Attributes:
        time: when they were read, from `time.monotonic`.
        values: sums over all labels, by the name without the prefix.
        buckets: of each histogram, the counts up to the upper bounds.
        model: the name of the model.
        adapters: the names of the adapters in use.
    """

    time: float
    values: dict[str, float] = field(default_factory=dict)
    buckets: dict[str, dict[float, float]] = field(default_factory=dict)
    model: str = ""
    adapters: str = ""


@command(
    {
        "puna top": "watch the server at http://127.0.0.1:8000",
        "puna top http://10.0.0.7:8000 --api-key-file keys.txt": "another server, which needs a key",
        "puna top --once --json": "print the metrics once",
    },
    {
        "model": "name of the model",
        "running, waiting": "numbers of requests",
        "cache_used": "used part of the key-value cache, from 0 to 1",
        "cache_hits": "part of the prompt tokens that were found in the prefix cache, from 0 to 1",
        "prompt_tokens_per_second, generated_tokens_per_second": "speeds since the last line; null in the first",
        "requests_per_second": "the same for finished requests",
        "first_token_p50, first_token_p95": "seconds from the arrival of a request to its first token",
        "token_gap_p50, token_gap_p95": "seconds between two tokens of an answer",
        "guesses_accepted": "part of the guessed tokens that were right; null without guesses",
        "preemptions, disconnects": "numbers of preempted requests, and of clients that went away",
        "adapters": "adapters of the running requests",
        "restarted": "whether the server was restarted since the last line",
    },
)
def top(
    url: Annotated[str, typer.Argument(metavar="[URL]", help="Address of the server.")] = "http://127.0.0.1:8000",
    interval: Annotated[float, options.number(kind=float, low=0.1, help="Seconds between two readings.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print the metrics once, and end.")] = False,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File whose first key is sent to the server.")
    ] = None,
    api_keys: Annotated[str | None, typer.Option(hidden=True, envvar="PUNA_API_KEYS")] = None,
    json: options.Json = False,
) -> None:
    """Show the speed, queue and caches of a server, live.

    A server that is restarted, or cannot be reached for a time, is watched again as soon as it answers.
    """
    from rich.console import Console
    from rich.live import Live

    key = first_key(api_key_file, api_keys)
    console = Console()
    if once:
        row = summary(read(url, key), None)
        print_json(row) if json else console.print(table(row, url))
    elif json or not console.is_terminal:
        for row in _rows(url, key, interval):
            print_json(row)
    else:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            for row in _rows(url, key, interval):
                live.update(table(row, url), refresh=True)


def _rows(url: str, key: str | None, interval: float) -> Any:
    """Yields a summary for each interval; {"error": text} while the server does not answer."""
    previous: Sample | None = None
    while True:
        try:
            sample = read(url, key)
        except ServerError as exc:
            yield {"error": str(exc)}
        else:
            yield summary(sample, previous)
            previous = sample
        time.sleep(interval)


def read(url: str, key: str | None) -> Sample:
    """Returns the metrics of a server.

    Raises:
        ServerError: the server does not answer, refuses the key, or is not puna's.
    """
    import urllib.error
    import urllib.request

    class Refused(urllib.request.HTTPRedirectHandler):
        """Follows no redirects, which would send the key to another address."""

        def redirect_request(self, *args: Any) -> None:
            """Refuses a redirect."""

    base = (url if "://" in url else f"http://{url}").rstrip("/")
    if not base.startswith(("http://", "https://")):
        raise ServerError(f"the address {url!r} must begin with http:// or https://")
    request = urllib.request.Request(f"{base}/metrics", headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        opener = urllib.request.build_opener(Refused, urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=_TIMEOUT_SECONDS) as response:
            text = response.read(16 << 20).decode("utf-8", "replace")
    except urllib.error.HTTPError as exc:
        exc.close()
        remedy = "give its key with --api-key-file" if exc.code == 401 else "it may be starting"
        raise ServerError(f"the server at {base} answers {exc.code}; {remedy}") from exc
    except (OSError, ValueError) as exc:
        cause = getattr(exc, "reason", None)
        reason = first_line(cause if isinstance(cause, OSError) else exc)
        raise ServerError(f"the server at {base} does not answer ({reason}); check the address") from exc
    return parse(text, base)


def parse(text: str, url: str) -> Sample:
    """Returns the metrics in Prometheus's text format.

    Raises:
        ServerError: the text does not contain puna's metrics.
    """
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ModuleNotFoundError as exc:
        raise MissingExtraError(
            "puna top needs prometheus_client, which is not installed; install it with: pip install 'puna[serve]'"
        ) from exc

    sample = Sample(time.monotonic())
    values, model, adapters = sample.values, "", ""
    try:
        metrics = [item for family in text_string_to_metric_families(text) for item in family.samples]
    except (ValueError, KeyError, IndexError):
        metrics = []
    for name, labels, value, *_ in metrics:
        short = name.removeprefix(_PREFIX)
        if short == name:
            continue
        model = labels.get("model_name", model)
        adapters = labels.get("running_lora_adapters", adapters)
        if "le" in labels:
            buckets = sample.buckets.setdefault(short.removesuffix("_bucket"), {})
            bound = float(labels["le"])
            buckets[bound] = buckets.get(bound, 0.0) + value
        else:
            values[short] = values.get(short, 0.0) + value
    if "num_requests_running" not in values:
        raise ServerError(f"the server at {url} has no metrics of puna; give the address of a puna server")
    return Sample(sample.time, values, sample.buckets, model, adapters)


def summary(sample: Sample, previous: Sample | None) -> dict[str, Any]:
    """Returns the fields of a line. Speeds and percentiles are those since `previous`; without it, of all time."""
    values = sample.values
    # Every counter of a restarted server begins with 0.
    counters = [name for name in values if name.endswith(("_total", "_count"))]
    restarted = previous is not None and any(values[name] < previous.values.get(name, 0.0) for name in counters)
    base = None if restarted else previous
    row: dict[str, Any] = {
        "model": sample.model,
        "running": int(values["num_requests_running"]),
        "waiting": int(values.get("num_requests_waiting", 0)),
        "cache_used": round(values.get("kv_cache_usage_perc", 0.0), 4),
        "cache_hits": _share(values, "prefix_cache_hits_total", "prefix_cache_queries_total"),
    }
    for name, counter in _RATES.items():
        row[name] = None
        if base is not None:
            difference = values.get(counter, 0.0) - base.values.get(counter, 0.0)
            row[name] = round(difference / max(1e-6, sample.time - base.time), 2)
    for name, histogram in _HISTOGRAMS.items():
        buckets = dict(sample.buckets.get(histogram, {}))
        if base is not None:
            before = base.buckets.get(histogram, {})
            recent = {bound: count - before.get(bound, 0.0) for bound, count in buckets.items()}
            buckets = recent if recent.get(math.inf, 0.0) > 0 else buckets
        for percent in (50, 95):
            row[f"{name}_p{percent}"] = percentile(buckets, percent / 100)
    row["guesses_accepted"] = _share(
        values, "spec_decode_num_accepted_tokens_total", "spec_decode_num_draft_tokens_total"
    )
    row["preemptions"] = int(values.get("num_preemptions_total", 0))
    row["disconnects"] = int(values.get("client_disconnects_total", 0))
    row["adapters"] = [name for name in sample.adapters.split(",") if name]
    row["restarted"] = restarted
    return row


def percentile(buckets: Mapping[float, float], fraction: float) -> float | None:
    """Returns a percentile of a histogram, interpolated inside a bucket as Prometheus does; None if it is empty."""
    total = buckets.get(math.inf, 0.0)
    if total <= 0:
        return None
    lower, below = 0.0, 0.0
    for bound, count in sorted(buckets.items()):
        if count >= fraction * total:
            if math.isinf(bound):
                return round(lower, 6)
            return round(lower + (bound - lower) * (fraction * total - below) / max(1e-12, count - below), 6)
        lower, below = bound, count
    return None


def table(row: Mapping[str, Any], url: str) -> Table:
    """Returns the table for the terminal."""
    from rich.table import Table

    title = f"{row.get('model') or 'puna'} at {url}"
    result = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False, padding=(0, 2))
    if "error" in row:
        result.add_row(row["error"])
        return result
    lines = {
        "requests": f"{row['running']} running, {row['waiting']} waiting, {_text(row['requests_per_second'])}/s",
        "prompt tokens": f"{_text(row['prompt_tokens_per_second'])}/s, {_percent(row['cache_hits'])} from the cache",
        "generated tokens": f"{_text(row['generated_tokens_per_second'])}/s",
        "first token": f"{_milliseconds(row['first_token_p50'])} median, {_milliseconds(row['first_token_p95'])} p95",
        "between tokens": f"{_milliseconds(row['token_gap_p50'])} median, {_milliseconds(row['token_gap_p95'])} p95",
        "cache": f"{_percent(row['cache_used'])} used, {row['preemptions']} preemptions",
        "guessed tokens": f"{_percent(row['guesses_accepted'])} right",
        "adapters": ", ".join(row["adapters"]) or "none",
        "disconnects": str(row["disconnects"]),
    }
    if row["restarted"]:
        lines["note"] = "the server was restarted"
    for name, text in lines.items():
        result.add_row(name, text)
    return result


def _share(values: Values, part: str, total: str) -> float | None:
    return round(values.get(part, 0.0) / values[total], 4) if values.get(total) else None


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{1000 * value:,.1f} ms"
