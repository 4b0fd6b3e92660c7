"""`Metrics`: the Prometheus metrics of the server. Their names have vLLM's suffixes, which its dashboards use.

The values of labels are the names of models and adapters, or come from fixed lists, so that their number is bounded. No
text of a request becomes a label.
"""

from __future__ import annotations

import collections
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric

PREFIX = "puna:"

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
_TOKEN_GAP = (
    0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
)  # fmt: skip
_REQUEST = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
_CHOICES = (1, 2, 5, 10, 20)
"""Buckets of vLLM's histograms. Those of 2 and 5 ms between tokens are additional, for small models."""

Kind = Literal["gauge", "counter", "histogram"]


@dataclass(frozen=True)
class _Row:
    """A metric: kind, help, labels in addition to model_name, and buckets of a histogram."""

    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


ROWS: Mapping[str, _Row] = {
    "num_requests_running": _Row("gauge", "Requests that the model is answering."),
    "num_requests_waiting": _Row("gauge", "Requests that wait in the queue."),
    "kv_cache_usage_perc": _Row("gauge", "Fraction of the key-value cache in use, from 0 to 1."),
    "prefix_cache_queries": _Row("counter", "Prompt tokens that were looked up in the prefix cache."),
    "prefix_cache_hits": _Row("counter", "Prompt tokens that were found in the prefix cache."),
    "prompt_tokens": _Row("counter", "Tokens of prompts."),
    "generation_tokens": _Row("counter", "Generated tokens."),
    "num_preemptions": _Row("counter", "Requests that lost their cache pages to older ones and computed them again."),
    "request_success": _Row("counter", "Finished answers.", ("finished_reason",)),
    "request_prompt_tokens": _Row("histogram", "Tokens of the prompt of a request.", (), _COUNTS),
    "request_generation_tokens": _Row("histogram", "Generated tokens of a request.", (), _COUNTS),
    "request_params_n": _Row("histogram", "The parameter n of a request: number of answers.", (), _CHOICES),
    "request_params_max_tokens": _Row("histogram", "The parameter max_tokens of a request.", (), _COUNTS),
    "iteration_tokens_total": _Row("histogram", "Tokens of a step of the engine.", (), _COUNTS),
    "time_to_first_token_seconds": _Row(
        "histogram", "From the arrival of a request to its first token.", (), _FIRST_TOKEN
    ),
    "inter_token_latency_seconds": _Row("histogram", "Time between two tokens of an answer.", (), _TOKEN_GAP),
    "e2e_request_latency_seconds": _Row("histogram", "From the arrival of a request to its end.", (), _REQUEST),
    "request_queue_time_seconds": _Row("histogram", "Time in the queue.", (), _REQUEST),
    "request_prefill_time_seconds": _Row("histogram", "Time to read the prompt.", (), _REQUEST),
    "request_decode_time_seconds": _Row("histogram", "From the first token to the last.", (), _REQUEST),
    "spec_decode_num_drafts": _Row("counter", "Steps with guessed tokens."),
    "spec_decode_num_draft_tokens": _Row("counter", "Guessed tokens."),
    "spec_decode_num_accepted_tokens": _Row("counter", "Correctly guessed tokens."),
    "spec_decode_num_accepted_tokens_per_pos": _Row(
        "counter", "Correctly guessed tokens by their position in the guess.", ("position",)
    ),
    "lora_requests_info": _Row(
        "gauge", "Adapters in use; the value is a time.", ("running_lora_adapters", "waiting_lora_adapters", "max_lora")
    ),
    "cache_config_info": _Row(
        "gauge", "Sizes of the key-value cache; the value is 1.", ("block_size", "num_gpu_blocks")
    ),
    "disk_cache_hits": _Row("counter", "Pages that were read from the disk cache."),
    "disk_cache_bytes": _Row("counter", "Bytes that were written to the disk cache."),
    "disk_cache_evictions": _Row("counter", "Pages that were removed from the disk cache."),
    "disk_cache_rejects": _Row("counter", "Files of the disk cache that were damaged or did not match."),
    "client_disconnects": _Row("counter", "Requests whose client disconnected before the response was complete."),
    "structured_mask_seconds": _Row("counter", "Seconds spent on computing the tokens that grammars allow."),
    "schema_rejects": _Row("counter", "Refused schemas, by the unsupported keyword.", ("keyword",)),
    "http_requests": _Row("counter", "Responses by route and status.", ("route", "status")),
}
"""Every metric, by its name without the prefix. Counters end with _total in the text that Prometheus reads."""

KEYWORDS = {
    "$ref", "additionalProperties", "allOf", "anyOf", "const", "contains", "dependentRequired", "dependentSchemas",
    "enum", "format", "if", "items", "maxContains", "maxItems", "maxLength", "maxProperties", "maximum",
    "minContains", "minItems", "minLength", "minProperties", "minimum", "multipleOf", "not", "oneOf", "pattern",
    "patternProperties", "prefixItems", "properties", "propertyNames", "required", "type", "unevaluatedItems",
    "unevaluatedProperties", "uniqueItems",
}  # fmt: skip
"""Values of the label `keyword`; all others are counted as "other"."""


class Metrics:
    """The metrics of one server.

    Args:
        model_name: value of the label model_name.
        alias: a second prefix under which all metrics are repeated, such as "vllm:".
        collect: called before the metrics are read; sets the metrics that other objects count.
    """

    def __init__(
        self, model_name: str, alias: str | None = None, collect: Callable[[Metrics], None] = lambda metrics: None
    ) -> None:
        self._model_name = model_name
        self._alias = alias
        self._collect = collect
        self._registry = CollectorRegistry()
        self._metrics = {name: _create(name, row, self._registry) for name, row in ROWS.items()}
        for name, row in ROWS.items():
            if not row.labels:  # so that the metric has the value 0 before the first event
                self._metrics[name].labels(model_name)

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Increases a counter."""
        if amount:
            self._child(name, labels).inc(amount)

    def observe(self, name: str, value: float, count: int = 1, **labels: str) -> None:
        """Adds a value to a histogram, `count` times."""
        child = self._child(name, labels)
        for _ in range(count):
            child.observe(value)

    def observe_all(self, name: str, values: Sequence[float]) -> None:
        """Adds values to a histogram."""
        child, bounds = self._child(name, {}), ROWS[name].buckets
        for index, count in collections.Counter(bisect_left(bounds, value) for value in values).items():
            child._buckets[index].inc(count)
        child._sum.inc(sum(values))

    def set(self, name: str, value: float, **labels: str) -> None:
        """Sets a gauge. A gauge with labels keeps only the labels of the last call."""
        if labels:
            self._metrics[name].clear()
        self._child(name, labels).set(value)

    def set_total(self, name: str, value: float, **labels: str) -> None:
        """Sets a counter to a total that another object counts; a smaller value than before has no effect."""
        child = self._child(name, labels)
        child.inc(max(0, value - child._value.get()))

    def set_histogram(self, name: str, counts: Mapping[int, int]) -> None:
        """Sets a histogram from `counts`: the number of occurrences of each value, which another object counts."""
        child = self._child(name, {})
        bounds = [*ROWS[name].buckets, float("inf")]
        numbers = dict(counts)
        for index, bound in enumerate(bounds):
            low = bounds[index - 1] if index else float("-inf")
            total = sum(count for value, count in numbers.items() if low < value <= bound)
            child._buckets[index].set(total)
        child._sum.set(sum(value * count for value, count in numbers.items()))

    def reject_schema(self, keyword: str | None) -> None:
        """Counts a schema that was refused because of a keyword."""
        self.add("schema_rejects", keyword=keyword if keyword in KEYWORDS else "other")

    def text(self) -> bytes:
        """Returns all metrics in Prometheus's text format."""
        self._collect(self)
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics with their values; called by prometheus_client."""
        for prefix in (PREFIX, self._alias):
            if prefix is not None:
                yield from _renamed(self._registry.collect(), prefix)

    def _child(self, name: str, labels: Mapping[str, str]) -> Any:
        return self._metrics[name].labels(self._model_name, *(labels[label] for label in ROWS[name].labels))


def _create(name: str, row: _Row, registry: CollectorRegistry) -> Any:
    options: dict[str, Any] = {"labelnames": ("model_name", *row.labels), "registry": registry}
    if row.kind == "histogram":
        return Histogram(PREFIX + name, row.text, buckets=row.buckets, **options)
    return (Counter if row.kind == "counter" else Gauge)(PREFIX + name, row.text, **options)


def _renamed(metrics: Iterable[Metric], prefix: str) -> Iterator[Metric]:
    """Yields metrics under another prefix, without the times of creation, which vLLM's dashboards do not expect."""
    for metric in metrics:
        result = Metric(prefix + metric.name.removeprefix(PREFIX), metric.documentation, metric.type)
        result.samples = [
            sample._replace(name=prefix + sample.name.removeprefix(PREFIX))
            for sample in metric.samples
            if not sample.name.endswith("_created")
        ]
        yield result
