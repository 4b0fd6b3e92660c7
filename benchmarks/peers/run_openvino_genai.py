"""The workloads `shared` and `one` of load.py for OpenVINO GenAI, in one process and without HTTP.

    .peers/openvino/bin/pip install openvino-genai
    .peers/openvino/bin/python benchmarks/peers/run_openvino_genai.py {shared,one} MODEL_FOLDER [--repeat 5]

The prompts are random token ids of the same lengths as the prompts of load.py. The folder has an exported model and any
tokenizer of OpenVINO (`convert_tokenizer`), which the pipeline requires but does not use.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

SYSTEM, QUESTION = 530, 30  # tokens, with those of the chat template


@dataclass
class Request:
    """A running request and the times of its tokens."""

    handle: Any
    client: int
    turn: int
    sent: float
    first: float | None = None
    last: float = 0.0
    tokens: int = 0


class Load:
    """Clients of one pipeline."""

    def __init__(self, folder: str) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.cache_size = 2  # GB
        scheduler.max_num_batched_tokens = 2048
        self._pipeline = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", {"INFERENCE_NUM_THREADS": 2})
        self._source = np.random.default_rng(0)
        self._count = 0

    def ids(self, count: int) -> list[int]:
        """Returns random token ids."""
        return list(self._source.integers(10, 49_000, count).tolist())

    def _start(self, ids: list[int], tokens: int, client: int, turn: int) -> Request:
        self._count += 1
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
        handle = self._pipeline.add_request(self._count, ov.Tensor(np.array([ids], np.int64)), config)
        return Request(handle, client, turn, time.perf_counter())

    def run(self, clients: int, tokens: int, turns: int) -> tuple[float, list[Request]]:
        """Runs `turns` requests of each client, which share a new beginning; returns the seconds and the requests."""
        system = self.ids(SYSTEM)
        prompts = [[system + self.ids(QUESTION) for _ in range(turns)] for _ in range(clients)]
        began, ended = time.perf_counter(), []
        running = [self._start(prompts[client][0], tokens, client, 0) for client in range(clients)]
        while running:
            self._pipeline.step()
            for request in list(running):
                while request.handle.can_read():
                    output = request.handle.read()
                    request.last = time.perf_counter()
                    request.first = request.first or request.last
                    request.tokens += sum(len(part.generated_ids) for part in output.values())
                if request.handle.get_status() != genai.GenerationStatus.RUNNING:
                    running.remove(request)
                    ended.append(request)
                    turn = request.turn + 1
                    if turn < turns:
                        running.append(self._start(prompts[request.client][turn], tokens, request.client, turn))
        return time.perf_counter() - began, ended


def main() -> None:
    """Prints the medians over the rounds; the first round is not counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["shared", "one"])
    parser.add_argument("folder")
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    load = Load(arguments.folder)
    speeds, firsts = [], []
    for _ in range(arguments.repeat + 1):
        if arguments.work == "shared":
            seconds, requests = load.run(16, 64, 2)
            speeds.append(sum(request.tokens for request in requests) / seconds)
        else:
            _, requests = load.run(1, 128, 1)
            (only,) = requests
            speeds.append((only.tokens - 1) / (only.last - (only.first or 0)))
        firsts.append(statistics.median((request.first or 0) - request.sent for request in requests))
    print(f"{statistics.median(speeds[1:]):.1f} tokens/s, first token {statistics.median(firsts[1:]) * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
