"""The options of `puna serve` for security and queues, as settings of the server."""

from __future__ import annotations

import os

import pytest

from puna.cli.server import serve as serve_module
from tests.cli.test_cli import run
from tests.golden.files import LAYOUTS

MODEL = str(LAYOUTS["hf"])
KEY = "first-key-of-the-tests"


@pytest.fixture
def settings(monkeypatch):
    """Runs `puna serve` with arguments, and returns the settings instead of serving."""
    from puna.server.guard.protect import make_policy

    results = []
    monkeypatch.setattr(
        serve_module, "_service", lambda path, chosen: make_policy(chosen) and (results.append(chosen) or chosen)
    )
    monkeypatch.setattr(serve_module, "_run", lambda service, on_ready: None)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: results.append(cpus))

    def call(*arguments, status=0):
        results.clear()
        result = run("serve", MODEL, *arguments)
        assert result.exit_code == status, result.output
        return results if status == 0 else result.stderr

    return call


def test_the_defaults_are_safe(settings):
    (chosen,) = settings()
    assert chosen.host == "127.0.0.1" and not chosen.keys and not chosen.insecure and chosen.access_log == "lines"
    assert not chosen.allowed_hosts and not chosen.allowed_origins


def test_every_option_reaches_the_settings(settings, tmp_path, monkeypatch):
    keys = tmp_path / "keys"
    keys.write_text(f"alice {KEY}\n")
    monkeypatch.setenv("PUNA_API_KEYS", "second-key-of-the-tests")
    (chosen,) = settings(
        "--host", "0.0.0.0", "--api-key-file", str(keys), "--allowed-host", "Llama.example", "--allow-origin",
        "https://a.example", "--allow-origin", "https://b.example", "--max-queue", "5", "--queue-seconds", "7",
        "--max-streams", "3", "--fair-by", "user", "--request-seconds", "9", "--body-seconds", "8",
        "--slow-reader-seconds", "6", "--log", "json", "--metrics-alias", "vllm", "--replica", "r1", "--lazy-compile",
    )  # fmt: skip
    assert chosen.keys == (("alice", KEY), ("key-2", "second-key-of-the-tests"))
    assert chosen.allowed_hosts == {"Llama.example"}
    assert chosen.allowed_origins == {"https://a.example", "https://b.example"}
    admission = chosen.admission
    assert (admission.queue, admission.queue_seconds, admission.per_caller, admission.fair_by) == (5, 7, 3, "user")
    assert (chosen.request_seconds, chosen.body_seconds, chosen.slow_reader_seconds) == (9, 8, 6)
    assert (chosen.access_log, chosen.metrics_alias, chosen.replica) == ("json", "vllm", "r1")
    assert chosen.lazy_compile
    assert KEY not in repr(chosen)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "--insecure"),
        (["--host", "::"], "--insecure"),
        (["--api-key-file", "/nowhere"], "/nowhere"),
        (["--allowed-host", "http://x"], "--allowed-host"),
        (["--allow-origin", "x.example"], "--allow-origin"),
    ],
)
def test_unsafe_settings_are_errors(settings, arguments, words):
    assert words in settings(*arguments, status=1)


def test_keys_are_not_accepted_on_the_command_line(settings):
    error = settings("--api-keys", KEY, status=2)
    assert "--api-key-file" in error and KEY not in error


def test_cpus(settings, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    cpus, _ = settings("--cpus", "0-2,5")
    assert cpus == {0, 1, 2, 5}
    for text in ("", "a", "1-", "-1", "3-1", "8", "0-9999999999"):
        assert "--cpus" in settings("--cpus", text, status=2)
