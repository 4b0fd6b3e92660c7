"""Compares `puna serve` with other servers under load, over HTTP.

    python benchmarks/load.py {shared,one,adapters,arrival} ... --model FILE [--repeat 5] [--llama-server PATH]
        [--vllm PATH --vllm-models FOLDER ...] [--openvino PATH --openvino-models FOLDER ...]
    python benchmarks/load.py overhead --model FILE [--repeat 5]

shared    16 clients with the same system prompt of about 512 tokens, which is new in each round
one       one client whose prompt of about 512 tokens is new in each round
adapters  16 clients that use four LoRA adapters of rank 16 (4 clients each)
arrival   time between the tokens of 8 streams while a prompt of about 4,000 tokens arrives
overhead  64 streams over HTTP, compared with the same streams of `AsyncLLM` in one process

All servers run for the whole benchmark and take turns in each round; those that do not work are stopped by SIGSTOP. The
client and the server share the machine's cores. Results are medians of the rounds; a server that needed more than 15 s
in the first round, which is not counted, takes part in at most 3 rounds. `peers/servers.py` has the commands of the
servers: llama.cpp reads the same file as puna, vLLM a Hugging Face folder that `puna convert` wrote, and OpenVINO an
exported folder. Only puna and llama.cpp are started with adapters, so only these take part in `adapters`; the other
workloads use no adapter. No prompt of a workload occurs in another one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import numpy as np
from peers.client import Answer, ask, chat, text
from peers.servers import Server, start_puna, start_servers

from puna import AsyncLLM

TOKENS = 64
SLOW, SLOW_REPEAT = 15, 3
SEEDS = 10_000  # the distance of the seeds of two workloads, so that no text is in a cache


async def together(
    server: Server, clients: int, system: str, seed: int, choices: Sequence[dict[str, Any]]
) -> tuple[float, float]:
    """Runs two requests of each client, which take turns with the models that `choices` selects.

    Returns:
        tokens per second and the median time to the first token.
    """

    async def client(index: int) -> list[Answer]:
        fields = choices[index % len(choices)]
        questions = [f"Question {seed}-{index}-{turn}: {text(12, seed * 1000 + index * 10 + turn)}?" for turn in (0, 1)]
        return [await ask(server.port, chat(system, question), TOKENS, fields) for question in questions]

    started = time.perf_counter()
    answers = [answer for group in await asyncio.gather(*map(client, range(clients))) for answer in group]
    seconds = time.perf_counter() - started
    return sum(a.tokens for a in answers) / seconds, statistics.median(a.first for a in answers)


async def one(server: Server, seed: int) -> tuple[float, float]:
    """Returns the decoding speed of one stream, and the time to the first token of a new prompt."""
    answer = await ask(server.port, chat(text(512, seed), "Tell a story about these words."), 128, server.base)
    return (len(answer.arrivals) - 1) / (answer.arrivals[-1] - answer.arrivals[0]), answer.first


async def arrival(server: Server, seed: int) -> tuple[float, float]:
    """Returns the 99th percentile of the time between tokens of 8 streams, and the prompt's time to the first token."""
    streams = [
        asyncio.create_task(ask(server.port, chat(text(20, seed * 10 + i), "Tell a story."), 500, server.base))
        for i in range(8)
    ]
    await asyncio.sleep(0.6)
    long = await ask(server.port, chat(text(4000, seed), "What is this?"), 8, server.base)
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
        return asyncio.run(together(server, 16, text(512, seed), seed, [server.base]))
    if work == "adapters":
        return asyncio.run(together(server, 16, text(64, seed), seed, server.adapters))
    return asyncio.run(one(server, seed) if work == "one" else arrival(server, seed))


def take_turn(server: Server, work: str, seed: int) -> tuple[float, float]:
    """Runs one round of a workload while only this server runs."""
    server.resume()
    result = run(work, server, seed)
    server.stop()
    return result


def compare(arguments: argparse.Namespace) -> None:
    """Prints the medians of all servers for each workload."""
    with ExitStack() as stack:
        servers = start_servers(stack, arguments)
        for place, work in enumerate(arguments.work, 1):
            able = [server for server in servers if server.adapters or work != "adapters"]
            report(work, measure(able, work, place * SEEDS, arguments))


def measure(
    servers: Sequence[Server], work: str, seed: int, arguments: argparse.Namespace
) -> dict[str, list[tuple[float, float]]]:
    """Returns the results of the rounds of each server; round 0, which is not counted, has the seed `seed`."""
    repeats = {}
    for server in servers:
        began = time.perf_counter()
        take_turn(server, work, seed)
        slow = time.perf_counter() - began > SLOW
        repeats[server.name] = min(SLOW_REPEAT, arguments.repeat) if slow else arguments.repeat
    results: dict[str, list[tuple[float, float]]] = {server.name: [] for server in servers}
    for number in range(1, arguments.repeat + 1):
        if arguments.wait:
            input(f"{work}: press Enter for round {number}\n")
        for server in servers:
            if number <= repeats[server.name]:
                results[server.name].append(take_turn(server, work, seed + number))
                if arguments.verbose:
                    print(number, server.name, *results[server.name][-1], flush=True)
    return results


def report(work: str, results: dict[str, list[tuple[float, float]]]) -> None:
    """Prints the medians and the rounds of each server."""
    first, second = ("p99 between tokens, ms", 1e3) if work == "arrival" else ("tokens/s", 1.0)
    for name, rounds in results.items():
        values, firsts = zip(*rounds, strict=True)
        print(
            f"{work:8} {name:42} {first} {statistics.median(values) * second:8.1f}  first token, ms "
            f"{statistics.median(firsts) * 1e3:8.1f}   {[round(value * second, 1) for value in values]}",
            flush=True,
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

    async def alternate(server: Server) -> tuple[list[float], list[float]]:
        inside, over = [], []
        async with AsyncLLM(arguments.model, threads=arguments.threads) as llm:
            for seed in range(arguments.repeat + 1):
                prompts = [f"Number {seed}-{index}: tell a story of {index} stones." for index in range(64)]
                inside.append(await stream_in_process(llm, prompts))
                server.resume()
                over.append(await stream_over_http(server.port, prompts))
                server.stop()
        return inside[1:], over[1:]

    with start_puna(arguments, [], "--log", "off") as server:
        inside, over = asyncio.run(alternate(server))
    ratios = [b / a for a, b in zip(inside, over, strict=True)]
    print(f"in process {statistics.median(inside):.0f} tokens/s, over HTTP {statistics.median(over):.0f} tokens/s")
    print(
        f"ratio {statistics.median(ratios):.3f}   {[(round(a), round(b)) for a, b in zip(inside, over, strict=True)]}"
    )


def main() -> None:
    """Reads the arguments and runs a workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="+", choices=["shared", "one", "adapters", "arrival", "overhead"])
    parser.add_argument("--llama-server", help="path of llama-server")
    parser.add_argument("--flash", nargs="+", default=["off", "on"], help="settings of llama-server's --flash-attn")
    parser.add_argument("--cache", nargs="+", default=["unified", "separate"], help="llama-server's cache of slots")
    parser.add_argument("--vllm", help="path of the command vllm in its environment")
    parser.add_argument("--vllm-models", nargs="+", default=[], help="Hugging Face folders; each gets a server")
    parser.add_argument("--vllm-options", nargs="+", default=[], help="more options of `vllm serve`, without --: eager")
    parser.add_argument("--openvino", help="path of Python in OpenVINO's environment")
    parser.add_argument("--openvino-models", nargs="+", default=[], help="exported folders; each gets a server")
    parser.add_argument("--model", required=True)
    parser.add_argument("--wait", action="store_true", help="wait for a line of input before each round")
    parser.add_argument("--verbose", action="store_true", help="print every round")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that all servers are ended
    if "overhead" in arguments.work and len(arguments.work) > 1:
        parser.error(f"overhead runs alone, but the workloads are {' '.join(arguments.work)}; run overhead by itself")
    (overhead if arguments.work == ["overhead"] else compare)(arguments)


if __name__ == "__main__":
    main()
