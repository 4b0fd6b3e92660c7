"""Compares `puna serve` with llama.cpp's `llama-server` under load, over HTTP, with the same model file.

    python benchmarks/load.py {shared,one,adapters,arrival} --llama-server PATH [--model PATH] [--repeat 5]
    python benchmarks/load.py overhead [--model PATH] [--repeat 5]

shared    16 clients with the same system prompt of about 512 tokens, which is new in each round
one       one client whose prompt of about 512 tokens is new in each round
adapters  16 clients that use four LoRA adapters of rank 16 (4 clients each)
arrival   time between the tokens of 8 streams while a prompt of about 4,000 tokens arrives
overhead  64 streams over HTTP, compared with the same streams of `AsyncLLM` in one process

All servers run for the whole benchmark and take turns in each round; those that do not work are stopped by SIGSTOP. The
client and the server share the machine's cores. Results are medians of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np

from puna import AsyncLLM
from puna.adapters.adapter import Adapter, LowRank
from puna.adapters.saving import save_adapter
from puna.checkpoint import open_checkpoint

CONTEXT, SLOTS = 16384, 16
TOKENS = 64
WORDS = [
    "river",
    "stone",
    "market",
    "garden",
    "letter",
    "bread",
    "mountain",
    "village",
    "lantern",
    "forest",
    "music",
    "paper",
]


@dataclass
class Answer:
    """A streamed answer: when it was requested, when each piece of text arrived, and its number of tokens."""

    sent: float
    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0
    cached: int = 0

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.arrivals[0] - self.sent


@dataclass
class Server:
    """A running server; `adapters` are the fields that select each adapter in a request."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    adapters: list[dict[str, Any]]

    def resume(self) -> None:
        """Lets the server run."""
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stops the server's process until `resume`."""
        self.process.send_signal(signal.SIGSTOP)


def text(words: int, seed: int) -> str:
    """Returns random words, about one token each."""
    source = random.Random(seed)
    return " ".join(source.choice(WORDS) for _ in range(words))


async def ask(port: int, messages: Sequence[dict[str, str]], tokens: int, fields: dict[str, Any]) -> Answer:
    """Requests a streamed chat completion; returns when it has ended."""
    body = json.dumps(
        {
            "model": "base", "messages": messages, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True}, **fields,
        }
    ).encode()  # fmt: skip
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    answer = Answer(time.perf_counter())
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"{status!r} {await reader.read(2000)!r}")
    async for line in reader:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if event.get("usage"):
                answer.tokens = event["usage"]["completion_tokens"]
                answer.cached = (event["usage"].get("prompt_tokens_details") or {}).get("cached_tokens", 0)
            if event["choices"] and event["choices"][0]["delta"].get("content"):
                answer.arrivals.append(time.perf_counter())
    writer.close()
    assert answer.tokens == tokens, answer
    return answer


def chat(system: str, user: str) -> list[dict[str, str]]:
    """Returns a conversation with a system prompt and a question."""
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


async def together(server: Server, clients: int, system: str, seed: int) -> tuple[float, float]:
    """Runs two requests of each client; returns tokens per second and the median time to the first token."""

    async def client(index: int) -> list[Answer]:
        fields = server.adapters[index % len(server.adapters)]
        questions = [f"Question {seed}-{index}-{turn}: {text(12, seed * 1000 + index * 10 + turn)}?" for turn in (0, 1)]
        return [await ask(server.port, chat(system, question), TOKENS, fields) for question in questions]

    started = time.perf_counter()
    answers = [answer for group in await asyncio.gather(*map(client, range(clients))) for answer in group]
    seconds = time.perf_counter() - started
    return sum(a.tokens for a in answers) / seconds, statistics.median(a.first for a in answers)


async def one(server: Server, seed: int) -> tuple[float, float]:
    """Returns the decoding speed of one stream, and the time to the first token of a new prompt."""
    answer = await ask(server.port, chat(text(512, seed), "Tell a story about these words."), 128, server.adapters[0])
    return (len(answer.arrivals) - 1) / (answer.arrivals[-1] - answer.arrivals[0]), answer.first


async def arrival(server: Server, seed: int) -> tuple[float, float]:
    """Returns the 99th percentile of the time between tokens of 8 streams, and the prompt's time to the first token."""
    streams = [
        asyncio.create_task(ask(server.port, chat(text(20, seed * 10 + i), "Tell a story."), 500, server.adapters[0]))
        for i in range(8)
    ]
    await asyncio.sleep(0.6)
    long = await ask(server.port, chat(text(4000, seed), "What is this?"), 8, server.adapters[0])
    answers = await asyncio.gather(*streams)
    gaps = [
        after - before
        for answer in answers
        for before, after in pairwise(answer.arrivals)
        if after > long.sent and before < long.arrivals[0]
    ]
    return float(np.percentile(gaps, 99)), long.first


def run(work: str, server: Server, seed: int) -> tuple[float, float]:
    """Runs one round of a workload."""
    if work == "shared":
        return asyncio.run(together(server, 16, text(512, seed), seed))
    if work == "adapters":
        return asyncio.run(together(server, 16, text(64, seed), seed))
    return asyncio.run(one(server, seed) if work == "one" else arrival(server, seed))


def free_port() -> int:
    """Returns a port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def started(name: str, command: list[str], port: int, adapters: list[dict[str, Any]]) -> Iterator[Server]:
    """Starts a server and waits until it is ready; ends it afterwards."""
    health = "health/ready" if name == "puna" else "health"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{health}", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, f"{command} has ended"
                time.sleep(0.1)
        yield Server(name, port, process, adapters or [{}])
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def make_adapters(model: str, folder: Path, count: int) -> list[Path]:
    """Writes LoRA adapters with random values, rank 16, for all matrices of the layers, as GGUF files."""
    checkpoint = open_checkpoint(model)
    paths = []
    for number in range(count):
        source = np.random.default_rng(number)
        changes = {
            name: LowRank(
                source.normal(0, 0.02, (16, weight.shape[1])).astype(np.float32),
                source.normal(0, 0.002, (weight.shape[0], 16)).astype(np.float32),
                2.0,
            )
            for name, weight in checkpoint.tensors.items()
            if name.startswith("model.layers.") and len(weight.shape) == 2
        }
        paths.append(folder / f"adapter{number}.gguf")
        save_adapter(Adapter(paths[-1], "lora", checkpoint.config, low_rank=changes), paths[-1])
    return paths


def servers(stack: ExitStack, arguments: argparse.Namespace) -> list[Server]:
    """Starts the servers, with adapters if the workload needs them."""
    work, model, llama_server, threads = arguments.work, arguments.model, arguments.llama_server, arguments.threads
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    paths = make_adapters(model, folder, 4) if work == "adapters" else []
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "puna",
        "serve",
        model,
        "--name",
        "base",
        "--port",
        str(port),
        "--threads",
        str(threads),
    ]
    command += [part for path in paths for part in ("--adapter", f"{path.stem}={path}")]
    ours = stack.enter_context(started("puna", command, port, [{"model": path.stem} for path in paths]))
    result = [ours]
    for flash, cache in product(arguments.flash, arguments.cache):
        port = free_port()
        command = [
            llama_server, "-m", model, "--port", str(port), "-t", str(threads), "-np", str(SLOTS), "-fa", flash,
            "-c", str(CONTEXT if cache == "unified" else CONTEXT * SLOTS // 2), "--no-webui",
            "--kv-unified" if cache == "unified" else "--no-kv-unified",
        ]  # fmt: skip
        command += [part for path in paths for part in ("--lora", str(path))]
        choices = [
            {"lora": [{"id": other, "scale": float(other == number)} for other in range(len(paths))]}
            for number in range(len(paths))
        ]
        result.append(
            stack.enter_context(started(f"llama-server, flash {flash}, {cache} cache", command, port, choices))
        )
        result[-1].stop()
    ours.stop()
    return result


def compare(arguments: argparse.Namespace) -> None:
    """Prints the medians of both servers and their ratios."""
    results: dict[str, list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        every = servers(stack, arguments)
        for seed in range(arguments.repeat + 1):  # the first round is not counted
            for server in every:
                server.resume()
                result = run(arguments.work, server, seed)
                server.stop()
                if arguments.verbose:
                    print(seed, server.name, *result, flush=True)
                if seed:
                    results.setdefault(server.name, []).append(result)
    first, second = ("p99 between tokens, ms", 1e3) if arguments.work == "arrival" else ("tokens/s", 1.0)
    for name, rounds in results.items():
        values, firsts = zip(*rounds, strict=True)
        print(
            f"{name:42} {first} {statistics.median(values) * second:8.1f}  first token, ms "
            f"{statistics.median(firsts) * 1e3:8.1f}   {[round(value * second, 1) for value in values]}"
        )


async def stream_in_process(llm: AsyncLLM, prompts: Sequence[str]) -> float:
    """Returns the tokens per second of concurrent streams in this process."""

    async def read(prompt: str) -> None:
        messages = [{"role": "user", "content": prompt}]
        async for _ in llm.stream(messages, max_tokens=TOKENS, ignore_eos=True, temperature=0):
            pass

    began = time.perf_counter()
    await asyncio.gather(*map(read, prompts))
    return len(prompts) * TOKENS / (time.perf_counter() - began)


async def stream_over_http(port: int, prompts: Sequence[str]) -> float:
    """Returns the tokens per second of concurrent streams of a server."""
    began = time.perf_counter()
    await asyncio.gather(*(ask(port, [{"role": "user", "content": prompt}], TOKENS, {}) for prompt in prompts))
    return len(prompts) * TOKENS / (time.perf_counter() - began)


def overhead(arguments: argparse.Namespace) -> None:
    """Prints the speed of 64 streams over HTTP and in one process, in turns."""

    async def measure(server: Server) -> tuple[list[float], list[float]]:
        inside, over = [], []
        async with AsyncLLM(arguments.model, threads=arguments.threads) as llm:
            for seed in range(arguments.repeat + 1):
                prompts = [f"Number {seed}-{index}: tell a story of {index} stones." for index in range(64)]
                inside.append(await stream_in_process(llm, prompts))
                server.resume()
                over.append(await stream_over_http(server.port, prompts))
                server.stop()
        return inside[1:], over[1:]

    port = free_port()
    command = [
        sys.executable,
        "-m",
        "puna",
        "serve",
        arguments.model,
        "--name",
        "base",
        "--port",
        str(port),
        "--log",
        "off",
    ]
    with started("puna", [*command, "--threads", str(arguments.threads)], port, []) as server:
        server.stop()
        inside, over = asyncio.run(measure(server))
    ratios = [b / a for a, b in zip(inside, over, strict=True)]
    print(f"in process {statistics.median(inside):.0f} tokens/s, over HTTP {statistics.median(over):.0f} tokens/s")
    print(
        f"ratio {statistics.median(ratios):.3f}   {[(round(a), round(b)) for a, b in zip(inside, over, strict=True)]}"
    )


def main() -> None:
    """Reads the arguments and runs a workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["shared", "one", "adapters", "arrival", "overhead"])
    parser.add_argument("--llama-server", default="llama-server")
    parser.add_argument("--flash", nargs="+", default=["off", "on"], help="settings of llama-server's --flash-attn")
    parser.add_argument("--cache", nargs="+", default=["unified", "separate"], help="llama-server's cache of slots")
    parser.add_argument("--model", required=True)
    parser.add_argument("--verbose", action="store_true", help="print every round")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    (overhead if arguments.work == "overhead" else compare)(arguments)


if __name__ == "__main__":
    main()
