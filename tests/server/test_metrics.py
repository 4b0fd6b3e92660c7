"""The metrics as Prometheus reads them."""

from __future__ import annotations

import pytest

pytest.importorskip("prometheus_client")
from prometheus_client.parser import text_string_to_metric_families

from puna.server.metrics import ROWS, Metrics

VLLM = {
    "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total",
    "prefix_cache_hits_total", "prompt_tokens_total", "generation_tokens_total", "num_preemptions_total",
    "request_prompt_tokens_count", "request_generation_tokens_sum", "request_params_n_bucket",
    "request_params_max_tokens_count", "iteration_tokens_total_count", "time_to_first_token_seconds_bucket",
    "inter_token_latency_seconds_bucket", "e2e_request_latency_seconds_bucket", "request_queue_time_seconds_bucket",
    "request_prefill_time_seconds_bucket", "request_decode_time_seconds_bucket", "spec_decode_num_drafts_total",
    "spec_decode_num_draft_tokens_total", "spec_decode_num_accepted_tokens_total",
}  # fmt: skip
"""Samples of vLLM's documentation that exist before the first request."""


def samples(metrics: Metrics):
    families = list(text_string_to_metric_families(metrics.text().decode()))
    names = [family.name for family in families]
    assert len(names) == len(set(names)), "a family is listed twice"
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[name, tuple(sorted({"model_name": "tiny", **labels}.items()))]


@pytest.fixture
def metrics():
    return Metrics("tiny")


def test_all_metrics_exist_before_the_first_request(metrics):
    names = {name for name, _ in samples(metrics)}
    assert {f"puna:{name}" for name in VLLM} <= names
    assert not any(name.endswith("_created") for name in names)


def test_the_alias_repeats_every_metric():
    metrics = Metrics("tiny", "vllm:")
    metrics.add("generation_tokens", 7)
    metrics.observe("time_to_first_token_seconds", 0.03)
    metrics.set("cache_config_info", 1, block_size="64", num_gpu_blocks="10")
    result = samples(metrics)
    ours = {(name[5:], labels): value for (name, labels), value in result.items() if name.startswith("puna:")}
    theirs = {(name[5:], labels): value for (name, labels), value in result.items() if name.startswith("vllm:")}
    assert ours == theirs and len(ours) == len(result) / 2
    assert value(metrics, "vllm:generation_tokens_total") == 7


def test_counters_gauges_and_histograms(metrics):
    metrics.add("request_success", finished_reason="stop")
    metrics.add("request_success", 2, finished_reason="length")
    metrics.set("num_requests_running", 3)
    metrics.set("num_requests_running", 2)
    metrics.observe("inter_token_latency_seconds", 0.02, 5)
    assert value(metrics, "puna:request_success_total", finished_reason="length") == 2
    assert value(metrics, "puna:num_requests_running") == 2
    assert value(metrics, "puna:inter_token_latency_seconds_count") == 5
    assert value(metrics, "puna:inter_token_latency_seconds_sum") == pytest.approx(0.1)
    assert value(metrics, "puna:inter_token_latency_seconds_bucket", le="0.01") == 0
    assert value(metrics, "puna:inter_token_latency_seconds_bucket", le="0.025") == 5


def test_first_token_buckets_are_vllms(metrics):
    bounds = [
        float(dict(labels)["le"])
        for name, labels in samples(metrics)
        if name == "puna:time_to_first_token_seconds_bucket"
    ]
    expected = "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1 2.5 5 7.5 10 20 40 80 160 640 2560 inf"
    assert bounds == [float(bound) for bound in expected.split()]


def test_totals_of_other_objects_never_decrease(metrics):
    for total in (5, 9, 3, 9):
        metrics.set_total("num_preemptions", total)
    assert value(metrics, "puna:num_preemptions_total") == 9


def test_information_has_one_series(metrics):
    for names in ("a", "a,b", ""):
        metrics.set("lora_requests_info", 1, running_lora_adapters=names, waiting_lora_adapters="", max_lora="2")
    assert sum(name == "puna:lora_requests_info" for name, _ in samples(metrics)) == 1


def test_keywords_of_requests_do_not_become_labels(metrics):
    for keyword in ("pattern", "x" * 1000, "made-up", None):
        metrics.reject_schema(keyword)
    assert value(metrics, "puna:schema_rejects_total", keyword="pattern") == 1
    assert value(metrics, "puna:schema_rejects_total", keyword="other") == 3


def test_other_objects_are_read_with_each_scrape():
    calls = []
    metrics = Metrics("tiny", collect=lambda target: (calls.append(1), target.set("num_requests_waiting", len(calls))))
    assert [value(metrics, "puna:num_requests_waiting") for _ in range(2)] == [1, 2]


def test_every_row_has_a_help_text_in_plain_words():
    for name, row in ROWS.items():
        assert row.text.endswith(".") and name == name.lower() and bool(row.buckets) == (row.kind == "histogram")
        assert list(row.buckets) == sorted(set(row.buckets))


def test_several_values_are_counted_like_single_ones(metrics):
    values = [0.0, 0.002, 0.0020001, 0.3, 79.9, 80, 81, 1000]
    metrics.observe_all("inter_token_latency_seconds", values)
    single = Metrics("tiny")
    for number in values:
        single.observe("inter_token_latency_seconds", number)
    assert samples(metrics) == samples(single)
