"""Replicas behind Ray Serve: conversations return to their replica, and a killed replica ends only its own streams."""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from puna.errors import ConfigError
from tests.server.live import tool_checkpoint
from tests.server.test_replicas import ROOT, ask, converse, free_port, post

pytest.importorskip("ray.serve")
psutil = pytest.importorskip("psutil")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tool_checkpoint(tmp_path_factory.mktemp("replicas"))


@contextlib.contextmanager
def ray_serve(model: Path, router: str = "") -> Iterator[str]:
    """Yields the address of three replicas."""
    port = free_port()
    environment = {
        **os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", "RAY_raylet_start_wait_time_s": "120",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.server.ray_application", str(model), str(port), router]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert any(line == "ready\n" for line in process.stdout), "Ray Serve has not started"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.communicate("")


def replica_processes() -> list[psutil.Process]:
    return [
        item for item in psutil.process_iter(["cmdline"]) if "ServeReplica:default:puna" in str(item.info["cmdline"])
    ]


def test_an_application_without_keys_is_refused():
    from puna.server.ray_serve import application
    from puna.server.settings import ServerSettings

    with pytest.raises(ConfigError, match="insecure=True"):
        application("model.gguf", ServerSettings())


@pytest.mark.soak
def test_conversations_return_to_the_replica_that_knows_them(model):
    with ray_serve(model) as url:
        cached, ideal = converse(url)
    assert cached >= 0.9 * ideal, (cached, ideal)


@pytest.mark.soak
def test_round_robin_forgets_conversations(model):
    """The counterpart: it shows that the test above measures the routing."""
    with ray_serve(model, "round_robin_router.RoundRobinRouter") as url:
        cached, ideal = converse(url)
    assert cached <= 0.5 < ideal, (cached, ideal)


@pytest.mark.soak
def test_a_killed_replica_costs_only_its_own_streams(model):
    document = {
        "model": "m", "messages": [{"role": "user", "content": "the llama"}], "max_tokens": 800, "ignore_eos": True,
        "stream": True,
    }  # fmt: skip
    with ray_serve(model) as url:
        streams = [post(url, document, {"X-Session-Id": f"s{index}"}, timeout=300) for index in range(12)]
        owners = [response.headers["x-puna-replica"] for _, response in streams]
        assert all(response.status == 200 and response.read(10) for _, response in streams) and len(set(owners)) == 3
        replica_processes()[0].kill()
        ends = {True: set(), False: set()}
        for (connection, response), owner in zip(streams, owners, strict=True):
            with contextlib.closing(connection):
                try:
                    is_complete = response.read().rstrip().endswith(b"[DONE]")
                except (http.client.HTTPException, OSError):
                    is_complete = False
            ends[is_complete].add(owner)
        assert len(ends[False]) == 1 and len(ends[True]) == 2, (owners, ends)
        deadline = time.monotonic() + 120
        (dead,) = ends[False]
        while (seen := ask(url, document["messages"], {"X-Session-Id": f"s{owners.index(dead)}"})[1]) == dead:
            assert time.monotonic() < deadline
        assert seen is not None
