"""`Observer`: records requests, answers and the engine's counters in the metrics and the access log."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from starlette.types import Scope

from puna.engine import Engine
from puna.errors import RuleError
from puna.server.generation import Generation, Running
from puna.server.guard.admission import Admission, Ticket
from puna.server.guard.exchange import Exchange

if TYPE_CHECKING:
    from puna.server.metrics import Metrics


_COUNTERS = {
    "prompt_tokens": "prompt_tokens",
    "prefix_cache_queries": "prompt_tokens",
    "prefix_cache_hits": "cached_tokens",
    "generation_tokens": "generated_tokens",
    "num_preemptions": "preemptions",
    "spec_decode_num_drafts": "drafts",
    "spec_decode_num_draft_tokens": "draft_tokens",
    "spec_decode_num_accepted_tokens": "accepted_tokens",
    "structured_mask_seconds": "mask_seconds",
    "disk_cache_hits": "disk_hits",
    "disk_cache_bytes": "disk_bytes",
    "disk_cache_evictions": "disk_evictions",
    "disk_cache_rejects": "disk_rejects",
}
"""Metrics that the engine counts: the name of the metric, and the attribute of `Statistics`."""


class Observer:
    """Records what a server does.

    Args:
        admission: the queue in front of the engine.
    """

    def __init__(self, admission: Admission) -> None:
        self.metrics: Metrics | None = None
        self._admission = admission
        self._engine: Engine | None = None
        self._adapters: Collection[str] = ()

    def open(self, model_name: str, adapters: Collection[str], alias: str | None, engine: Engine) -> None:
        """Creates the metrics of a model that has been loaded."""
        from puna.server.metrics import Metrics

        self._engine, self._adapters = engine, adapters
        self.metrics = Metrics(model_name, None if alias is None else f"{alias}:", self._read_counters)

    def answered(self, exchange: Exchange, generation: Generation, running: Running) -> None:
        """Records the complete answers of a generation."""
        completions, usage, limit = running.completions, running.usage, generation.options.get("max_tokens")
        counts = {"prompt_tokens": usage.prompt, "cached_tokens": usage.cached, "completion_tokens": usage.completion}
        for name, count in counts.items():
            exchange.facts[name] = int(exchange.facts.get(name, 0)) + count
        timings = [item.timing for item in completions if item.timing is not None]
        first = min((item.first_token for item in timings if item.first_token is not None), default=None)
        if first is not None:
            exchange.facts.setdefault("first_token_seconds", round(first - exchange.started, 4))
        metrics = self.metrics
        if metrics is None:
            return
        metrics.observe("request_params_n", generation.n)
        for ids in running.prompts:
            metrics.observe("request_prompt_tokens", len(ids))
        if isinstance(limit, int):
            metrics.observe("request_params_max_tokens", limit)
        if first is not None:
            metrics.observe("time_to_first_token_seconds", first - exchange.started)
        metrics.observe("e2e_request_latency_seconds", time.perf_counter() - exchange.started)
        metrics.observe("request_prefill_time_seconds", completions[0].prefill_seconds)
        metrics.observe("request_decode_time_seconds", max(item.decode_seconds for item in completions))
        started = min((item.started for item in timings if item.started is not None), default=exchange.started)
        metrics.observe("request_queue_time_seconds", started - exchange.started)
        for item in completions:
            metrics.add("request_success", finished_reason=item.finish_reason)
            metrics.observe("request_generation_tokens", len(item.ids))
        metrics.observe_all("inter_token_latency_seconds", [gap for item in timings for gap in item.gaps])

    def admitted(self, exchange: Exchange, ticket: Ticket) -> None:
        """Records that a request has left the queue."""
        exchange.facts["queue_seconds"] = round(ticket.waited, 4)

    def refused(self, error: RuleError) -> None:
        """Records that a schema or grammar was refused, under the keyword that the error names."""
        keyword = re.search(r"the keyword '([^']+)' is not supported", str(error))
        if self.metrics is not None:
            self.metrics.reject_schema(None if keyword is None else keyword[1])

    def responded(self, exchange: Exchange, scope: Scope) -> None:
        """Records the end of an HTTP exchange."""
        if self.metrics is None:
            return
        route = getattr(scope.get("route"), "path", "other")
        self.metrics.add("http_requests", route=route, status=str(exchange.status or 499))
        if not exchange.complete:
            self.metrics.add("client_disconnects")

    def _read_counters(self, metrics: Metrics) -> None:
        """Sets the metrics that the queue and the engine count."""
        admission, engine = self._admission, self._engine
        assert engine is not None
        numbers = engine.statistics()
        metrics.set("num_requests_running", len(admission.running))
        metrics.set("num_requests_waiting", len(admission.waiting))
        metrics.set("kv_cache_usage_perc", numbers.page_use)
        metrics.set("cache_config_info", 1, block_size=str(numbers.page_tokens), num_gpu_blocks=str(numbers.pages))
        for name, attribute in _COUNTERS.items():
            metrics.set_total(name, getattr(numbers, attribute))
        for position, count in numbers.accepted_positions.items():
            metrics.set_total("spec_decode_num_accepted_tokens_per_pos", count, position=str(position))
        metrics.set_histogram("iteration_tokens_total", numbers.steps)
        metrics.set(
            "lora_requests_info", time.time(), max_lora=str(numbers.slots),
            running_lora_adapters=self._adapters_of(admission.running),
            waiting_lora_adapters=self._adapters_of(admission.waiting),
        )  # fmt: skip

    def _adapters_of(self, tickets: Iterable[Ticket]) -> str:
        return ",".join(sorted({ticket.model for ticket in tickets} & set(self._adapters)))
