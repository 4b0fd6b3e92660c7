"""Several replicas of a server: behind routers, with a shared disk cache, and killed at any moment.

The tests start real processes. Those with HAProxy and sglang-router are skipped where these programs are missing.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.server.live import tool_checkpoint

pytestmark = [pytest.mark.soak, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
CONVERSATIONS, TURNS = 30, 6
WORDS = (
    "the", "llama", "lives", "in", "high", "grassland", "and", "sleeps", "under", "stars", "while", "rivers", "sing",
    "of", "stones", "grass", "wind", "snow",
)  # fmt: skip


@dataclass
class Replica:
    """A process of `puna serve`."""

    name: str
    process: subprocess.Popen
    url: str = ""

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    def ready(self) -> None:
        line = self.process.stdout.readline()
        assert line, f"{self.name} did not start"
        self.url = json.loads(line)["url"]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def start_replica(model: Path, name: str, *options: str) -> Replica:
    command = [
        sys.executable,
        "-m",
        "puna",
        "serve",
        str(model),
        "--port",
        "0",
        "--json",
        "--threads",
        "1",
        "--log",
        "off",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        [*command, "--name", "m", "--replica", name, *options], stdout=subprocess.PIPE, env=environment, text=True
    )
    return Replica(name, process)


@contextlib.contextmanager
def replicas_of(model: Path, *options: str, count: int = 3) -> Iterator[list[Replica]]:
    replicas = [start_replica(model, f"r{index}", *options) for index in range(count)]
    try:
        for replica in replicas:
            replica.ready()
        yield replicas
    finally:
        for replica in replicas:
            replica.kill()
            replica.process.stdout.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tool_checkpoint(tmp_path_factory.mktemp("replicas"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


Reply = tuple[http.client.HTTPConnection, http.client.HTTPResponse]


def post(url: str, document: dict, headers: dict | None = None, timeout: float = 60) -> Reply:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout)
    all_headers = {"Content-Type": "application/json", **(headers or {})}
    connection.request("POST", "/v1/chat/completions", json.dumps(document), all_headers)
    return connection, connection.getresponse()


def ask(url: str, messages: list[dict], headers: dict | None = None, tokens: int = 8) -> tuple[dict, str | None]:
    document = {"model": "m", "messages": messages, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    connection, response = post(url, document, headers)
    with contextlib.closing(connection):
        body = response.read()
        assert response.status == 200, body
        return json.loads(body), response.headers["x-puna-replica"]


@dataclass
class Conversation:
    """A conversation of several turns, each of which adds a text of its own."""

    number: int
    messages: list[dict] = field(default_factory=list)
    prompt: int = 0
    cached: int = 0
    ideal: int = 0
    last: int = 0
    replicas: list[str | None] = field(default_factory=list)

    def turn(self, url: str) -> None:
        choose = random.Random(f"{self.number} {len(self.messages)}")
        text = f"{self.number}: " + " ".join(choose.choice(WORDS) for _ in range(60))
        self.messages.append({"role": "user", "content": text})
        document, replica = ask(url, self.messages, {"X-Session-Id": f"conversation-{self.number}"})
        usage = document["usage"]
        self.messages.append({"role": "assistant", "content": document["choices"][0]["message"]["content"]})
        self.prompt += usage["prompt_tokens"]
        self.cached += usage["prompt_tokens_details"]["cached_tokens"]
        self.ideal += self.last
        self.last = usage["prompt_tokens"]
        self.replicas.append(replica)


def converse(url: str) -> tuple[float, float]:
    """Returns the shares of the prompt tokens that were cached, and that one ideal server would have cached.

    The order of the conversations differs from turn to turn, and fifteen take place at a time.
    """
    conversations = [Conversation(number) for number in range(CONVERSATIONS)]
    order = random.Random(5)
    with ThreadPoolExecutor(15) as pool:
        for _ in range(TURNS):
            order.shuffle(conversations)
            list(pool.map(lambda item: item.turn(url), conversations))
    total = sum(item.prompt for item in conversations)
    return sum(item.cached for item in conversations) / total, sum(item.ideal for item in conversations) / total


@contextlib.contextmanager
def haproxy(replicas: list[Replica], folder: Path, **changes: str) -> Iterator[str]:
    """Starts HAProxy with deploy/haproxy.cfg and other addresses; `changes` replaces parts of the text."""
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None:
        pytest.skip("haproxy is not installed")
    port = free_port()
    text = (ROOT / "deploy" / "haproxy.cfg").read_text().replace("bind :8000", f"bind 127.0.0.1:{port}")
    for number, replica in enumerate(replicas, 1):
        text = re.sub(rf"server r{number} r{number}:8000", f"server r{number} {replica.address}", text)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "haproxy.cfg"
    path.write_text(text)
    process = subprocess.Popen(
        [program, "-db", "-q", "-f", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def wait_for(url: str, process: subprocess.Popen, path: str = "/v1/models") -> None:
    """Waits until a router answers with success."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the router has ended"
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)
            with contextlib.closing(connection):
                connection.request("GET", path)
                if connection.getresponse().status == 200:
                    return
        time.sleep(0.1)
    raise AssertionError("the router does not answer")


def test_haproxy_sends_conversations_to_the_replica_that_knows_them(model, tmp_path):
    with replicas_of(model) as replicas, haproxy(replicas, tmp_path) as url:
        cached, ideal = converse(url)
    assert cached >= 0.9 * ideal, (cached, ideal)


def test_round_robin_forgets_conversations(model, tmp_path):
    """The counterpart: it shows that the test above measures the routing."""
    changes = {"balance hdr(x-session-id)": "balance roundrobin"}
    with replicas_of(model) as replicas, haproxy(replicas, tmp_path, **changes) as url:
        cached, ideal = converse(url)
    assert cached <= 0.5 < ideal, (cached, ideal)


@contextlib.contextmanager
def sglang_router(replicas: list[Replica]) -> Iterator[str]:
    if importlib.util.find_spec("sglang_router") is None:
        pytest.skip("sglang_router is not installed")
    port, metrics = free_port(), free_port()
    command = [sys.executable, "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--policy", "cache_aware", "--prometheus-port", str(metrics), "--worker-urls"]
    process = subprocess.Popen(
        [*command, *(replica.url for replica in replicas)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def test_sglang_router_sends_conversations_to_the_replica_that_knows_them(model):
    """The router adds fields to requests, which the replicas must accept."""
    with replicas_of(model, "--unknown-fields", "warn") as replicas, sglang_router(replicas) as url:
        cached, ideal = converse(url)
    assert cached >= 0.9 * ideal, (cached, ideal)


def test_a_killed_replica_costs_only_its_own_streams(model, tmp_path):
    document = {
        "model": "m", "messages": [{"role": "user", "content": "the llama"}], "max_tokens": 3000, "ignore_eos": True,
        "stream": True,
    }  # fmt: skip
    with replicas_of(model) as replicas, haproxy(replicas, tmp_path) as url:
        streams = [post(url, document, {"X-Session-Id": f"s{index}"}) for index in range(9)]
        owners = [response.headers["x-puna-replica"] for _, response in streams]
        assert all(response.status == 200 for _, response in streams) and len(set(owners)) > 1
        victim = next(replica for replica in replicas if replica.name == owners[0])
        for _, response in streams:
            assert response.read(10)
        victim.kill()
        for (connection, response), owner in zip(streams, owners, strict=True):
            with contextlib.closing(connection):
                try:
                    is_complete = response.read().rstrip().endswith(b"[DONE]")
                except http.client.HTTPException:
                    is_complete = False
                assert is_complete == (owner != victim.name)
        for index in range(9):
            _, replica = ask(url, [{"role": "user", "content": "the llama"}], {"X-Session-Id": f"s{index}"})
            assert replica != victim.name


def test_requests_without_a_session_are_routed_by_their_first_messages(model, tmp_path):
    def conversation(number):
        return [{"role": "system", "content": "be brief"}, {"role": "user", "content": f"question {number}"}]

    with replicas_of(model) as replicas, haproxy(replicas, tmp_path) as url:
        seen = {}
        for number in range(8):
            messages = conversation(number)
            first = ask(url, messages)[1]
            later = [*messages, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "more " * number}]
            assert ask(url, later)[1] == first
            seen[first] = number
        assert len(seen) > 1


def cached_tokens(url: str, text: str) -> tuple[int, str]:
    document, _ = ask(url, [{"role": "user", "content": text}])
    details = document["usage"]["prompt_tokens_details"]
    return details["cached_tokens"], document["choices"][0]["message"]["content"]


def test_replicas_share_the_prefixes_on_the_disk(model, tmp_path):
    text = " ".join(random.Random(1).choice(WORDS) for _ in range(300))
    with replicas_of(model, "--cache-dir", str(tmp_path / "cache"), count=2) as replicas:
        cold, answer = cached_tokens(replicas[0].url, text)
        assert cold == 0
        deadline = time.monotonic() + 20
        while not (cached := cached_tokens(replicas[1].url, text + f" {time.monotonic()}")[0]):
            assert time.monotonic() < deadline, "the pages were not shared"
            time.sleep(0.1)
        assert cached >= 64
        assert cached_tokens(replicas[1].url, text)[1] == answer
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_a_server_that_is_killed_under_load_starts_again_with_its_cache(model, tmp_path):
    folder = tmp_path / "cache"
    texts = [" ".join(random.Random(index).choice(WORDS) for _ in range(200)) for index in range(40)]
    with replicas_of(model, count=1) as (plain,):
        expected = [cached_tokens(plain.url, text)[1] for text in texts[:8]]
    hits = 0
    for round_number in range(4):
        replica = start_replica(model, "r0", "--cache-dir", str(folder))
        replica.ready()
        for text, answer in zip(texts[:8], expected, strict=True):
            cached, own = cached_tokens(replica.url, text)
            assert own == answer
            hits += cached > 0 and round_number > 0
        killer = threading.Timer(0.1 + 0.1 * round_number, replica.kill)
        killer.start()
        for text in texts * 10:
            with contextlib.suppress(OSError, http.client.HTTPException, AssertionError):
                cached_tokens(replica.url, f"{round_number} {text}")
            if replica.process.poll() is not None:
                break
        killer.join()
        replica.process.stdout.close()
    assert hits > 0
