"""`Observer`: turns requests, answers and the engine's counters into metrics and into the facts of the log."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from starlette.types import Scope

from puna.answer import Completion
from puna.backend import PAGE
from puna.engine import Engine
from puna.server.guard.admission import Admission, Ticket
from puna.server.guard.exchange import Exchange

if TYPE_CHECKING:
    from puna.server.metrics import Metrics


class Observer:
    """Records what a server does.

    Args:
        admission: the queue before the engine.
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

    def answered(
        self,
        exchange: Exchange,
        max_tokens: int | None,
        completions: Sequence[Completion],
        first_token: float | None,
    ) -> None:
        """Records the complete answers to a prompt.

        Args:
            exchange: the request.
            max_tokens: the limit that the request sets.
            completions: its answers.
            first_token: when the first part of a streamed answer arrived, from `time.monotonic`.
        """
        now = time.monotonic()
        decode = max(item.decode_seconds for item in completions)
        first = (now - decode if first_token is None else first_token) - exchange.started
        tokens, prompt = sum(len(item.ids) for item in completions), len(completions[0].prompt_ids)
        cached = completions[0].cached_tokens
        facts = exchange.facts
        for name, count in (("prompt_tokens", prompt), ("cached_tokens", cached), ("completion_tokens", tokens)):
            facts[name] = int(facts.get(name, 0)) + count
        facts.setdefault("first_token_seconds", round(first, 4))
        metrics = self.metrics
        if metrics is None:
            return
        metrics.add("prompt_tokens", prompt)
        metrics.add("prefix_cache_queries", prompt)
        metrics.add("prefix_cache_hits", cached)
        metrics.add("generation_tokens", tokens)
        metrics.observe("request_params_n", len(completions))
        metrics.observe("request_prompt_tokens", prompt)
        if max_tokens is not None:
            metrics.observe("request_params_max_tokens", max_tokens)
        metrics.observe("time_to_first_token_seconds", first)
        metrics.observe("e2e_request_latency_seconds", now - exchange.started)
        metrics.observe("request_prefill_time_seconds", completions[0].prefill_seconds)
        metrics.observe("request_decode_time_seconds", decode)
        for item in completions:
            metrics.add("request_success", finished_reason=item.finish_reason)
            metrics.observe("request_generation_tokens", len(item.ids))
            gaps = len(item.ids) - 1
            if gaps > 0:
                metrics.observe("inter_token_latency_seconds", item.decode_seconds / gaps, gaps)

    def admitted(self, exchange: Exchange, ticket: Ticket) -> None:
        """Records that a request has left the queue."""
        exchange.facts["queue_seconds"] = round(ticket.waited, 4)
        if self.metrics is not None:
            self.metrics.observe("request_queue_time_seconds", ticket.waited)

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
        metrics.set("num_requests_running", len(admission.running))
        metrics.set("num_requests_waiting", len(admission.waiting))
        pool, scheduler = engine.pool, engine.scheduler
        metrics.set("kv_cache_usage_perc", 1 - pool.available / pool.pages)
        metrics.set("cache_config_info", 1, block_size=str(PAGE), num_gpu_blocks=str(pool.pages))
        metrics.set_total("num_preemptions", scheduler.preemptions)
        metrics.set(
            "lora_requests_info", time.time(), max_lora=str(scheduler.slots),
            running_lora_adapters=self._adapters_of(admission.running),
            waiting_lora_adapters=self._adapters_of(admission.waiting),
        )  # fmt: skip
        if pool.disk is not None:
            metrics.set_total("disk_cache_hits", pool.disk.hits)

    def _adapters_of(self, tickets: Iterable[Ticket]) -> str:
        return ",".join(sorted({ticket.model for ticket in tickets} & set(self._adapters)))
