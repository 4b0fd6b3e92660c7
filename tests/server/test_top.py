"""`puna top`: the numbers, a server that is restarted, and the command with a real server."""

from __future__ import annotations

import io
import json
import math
import socket
import threading
import time

import pytest
from rich.console import Console

from puna.cli.server import top
from puna.cli.server.top import Sample, parse, percentile, summary, table
from puna.errors import ServerError
from puna.server.metrics import Metrics
from tests.cli.test_cli import run


def sample_of(metrics: Metrics, seconds: float) -> Sample:
    sample = parse(metrics.text().decode(), "http://x")
    return Sample(seconds, sample.values, sample.buckets, sample.model, sample.adapters)


def test_speeds_are_those_since_the_last_reading():
    metrics = Metrics("tiny", "vllm:")
    metrics.add("generation_tokens", 100)
    metrics.set("lora_requests_info", 1, running_lora_adapters="a,b", waiting_lora_adapters="", max_lora="4")
    first = sample_of(metrics, 10)
    metrics.add("generation_tokens", 50)
    metrics.add("request_success", 3, finished_reason="stop")
    row = summary(sample_of(metrics, 12), first)
    assert row["generated_tokens_per_second"] == 25 and row["model"] == "tiny" and row["adapters"] == ["a", "b"]
    assert summary(first, None)["generated_tokens_per_second"] is None and not row["restarted"]


def test_a_restarted_server_begins_again():
    old, new = Metrics("tiny"), Metrics("tiny")
    old.add("generation_tokens", 100)
    new.add("generation_tokens", 7)
    row = summary(sample_of(new, 20), sample_of(old, 10))
    assert row["restarted"] and row["generated_tokens_per_second"] is None


def test_percentiles_are_those_since_the_last_reading():
    metrics = Metrics("tiny")
    metrics.observe("time_to_first_token_seconds", 15, 100)
    first = sample_of(metrics, 0)
    metrics.observe("time_to_first_token_seconds", 0.03, 10)
    row = summary(sample_of(metrics, 1), first)
    assert 0.02 <= row["first_token_p50"] <= 0.04
    assert summary(first, None)["first_token_p95"] > 10


def test_percentiles_are_interpolated_as_prometheus_does():
    buckets = {1.0: 10.0, 2.0: 20.0, math.inf: 40.0}
    assert percentile(buckets, 0.25) == 1 and percentile(buckets, 0.375) == 1.5
    assert percentile(buckets, 0.95) == 2  # above the last bound: the bound
    assert percentile({}, 0.5) is None and percentile({math.inf: 0.0}, 0.5) is None


@pytest.mark.parametrize("text", ["", "<html>", "vllm:num_requests_running 1\n", "puna: {", "a{b=c} d"])
def test_texts_without_metrics_of_puna_are_errors(text):
    with pytest.raises(ServerError, match="puna server"):
        parse(text, "http://x")


def test_the_table_shows_every_number():
    metrics = Metrics("tiny")
    metrics.observe("time_to_first_token_seconds", 0.03)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(summary(sample_of(metrics, 0), None), "http://x"))
    text = console.export_text()
    for part in ("tiny at http://x", "0 running, 0 waiting", "first token", "between tokens", "adapters"):
        assert part in text
    console.print(table({"error": "the server does not answer"}, "http://x"))
    assert "does not answer" in console.export_text()


@pytest.fixture(scope="module")
def address():
    """A server that knows one key and answers with metrics, with redirects, and with errors."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    metrics = Metrics("tiny")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path, key = self.path, self.headers.get("Authorization")
            status = 302 if path.startswith("/moved") else 200 if key == "Bearer key-of-the-tests" else 401
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/metrics")
            self.end_headers()
            if status == 200:
                self.wfile.write(metrics.text())

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_command_prints_the_metrics_once(address, tmp_path, monkeypatch):
    keys = tmp_path / "keys"
    keys.write_text("# of the tests\nme key-of-the-tests\nyou other-key-of-tests\n")
    result = run("top", address, "--once", "--json", "--api-key-file", str(keys))
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)
    assert row["model"] == "tiny" and row["running"] == 0 and row["generated_tokens_per_second"] is None
    documented = {name for names in top.top.fields for name in names.split(", ")}
    assert set(row) == documented
    monkeypatch.setenv("PUNA_API_KEYS", "key-of-the-tests")
    assert "tiny" in run("top", address, "--once").stdout


@pytest.mark.parametrize(
    ("path", "words"), [("", "answers 401; give its key"), ("/moved", "answers 302"), ("/moved/x/..", "302")]
)
def test_errors_of_the_server_are_explained(address, path, words):
    """A redirect is not followed: it would send the key to another address."""
    result = run("top", address + path, "--once")
    assert result.exit_code == 1 and words in result.stderr


def test_a_server_that_does_not_answer(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = run("top", f"127.0.0.1:{port}", "--once")
    assert result.exit_code == 1 and "does not answer" in result.stderr
    result = run("top", "ftp://x", "--once")
    assert result.exit_code == 1 and "http://" in result.stderr


def test_a_server_that_comes_back_is_watched_again(monkeypatch):
    metrics = Metrics("tiny")
    replies = [sample_of(metrics, 0), ServerError("the server does not answer"), sample_of(metrics, 2)]

    def read(url, key):
        reply = replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    monkeypatch.setattr(top, "read", read)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    rows = top._rows("http://x", None, 1.0)
    assert [next(rows).get("error") for _ in range(3)] == [None, "the server does not answer", None]
