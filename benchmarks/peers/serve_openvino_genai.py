"""Serves OpenVINO GenAI's continuous batching over HTTP for load.py, with the part of OpenAI's interface that it uses.

    .peers/openvino/bin/pip install openvino-genai
    .peers/openvino/bin/python benchmarks/peers/serve_openvino_genai.py MODEL_FOLDER --port 8001 [--threads 2]

`POST /v1/chat/completions` streams `max_tokens` tokens, chosen greedily, and ignores end tokens; other paths give 200.
The folder has an exported model (export_openvino.py), the tokenizer and the chat template of the Hugging Face folder,
and any tokenizer of OpenVINO (`convert_tokenizer`), which the pipeline requires but does not use.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import queue
import threading
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from transformers import AutoTokenizer


class Engine:
    """A pipeline that steps in a thread of its own, and the requests that it works on."""

    def __init__(self, folder: str, threads: int, loop: asyncio.AbstractEventLoop) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.cache_size = 2  # GB
        scheduler.max_num_batched_tokens = 2048
        self._pipeline = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads})
        self._loop = loop
        self._inbox: queue.SimpleQueue[tuple[list[int], int, asyncio.Queue[list[int] | None]]] = queue.SimpleQueue()
        self._running: list[tuple[Any, asyncio.Queue[list[int] | None]]] = []
        self._count = 0
        threading.Thread(target=self._work, daemon=True).start()

    def submit(self, ids: list[int], tokens: int) -> asyncio.Queue[list[int] | None]:
        """Starts a request; its new token ids arrive in the queue, and None at the end."""
        results: asyncio.Queue[list[int] | None] = asyncio.Queue()
        self._inbox.put((ids, tokens, results))
        return results

    def _work(self) -> None:
        while True:
            while not self._running or not self._inbox.empty():
                self._start(*self._inbox.get())
            self._pipeline.step()
            self._loop.call_soon_threadsafe(self._deliver, self._read())

    def _start(self, ids: list[int], tokens: int, results: asyncio.Queue[list[int] | None]) -> None:
        self._count += 1
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
        handle = self._pipeline.add_request(self._count, ov.Tensor(np.array([ids], np.int64)), config)
        self._running.append((handle, results))

    def _read(self) -> list[tuple[asyncio.Queue[list[int] | None], list[int] | None]]:
        """Returns the new tokens of each request, and removes those that have ended."""
        parts: list[tuple[asyncio.Queue[list[int] | None], list[int] | None]] = []
        for handle, results in list(self._running):
            while handle.can_read():
                parts += [(results, list(output.generated_ids)) for output in handle.read().values()]
            if handle.get_status() != genai.GenerationStatus.RUNNING:
                self._running.remove((handle, results))
                parts.append((results, None))
        return parts

    @staticmethod
    def _deliver(parts: list[tuple[asyncio.Queue[list[int] | None], list[int] | None]]) -> None:
        for results, ids in parts:
            results.put_nowait(ids)


async def serve(folder: str, port: int, threads: int) -> None:
    """Listens on the loopback address until the process ends."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    engine = Engine(folder, threads, asyncio.get_running_loop())

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        if head.startswith("POST"):
            length = next(int(line[15:]) for line in head.splitlines() if line.lower().startswith("content-length:"))
            request = json.loads(await reader.readexactly(length))
            text = tokenizer.apply_chat_template(request["messages"], tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            results, count = engine.submit(ids, request["max_tokens"]), 0
            while (part := await results.get()) is not None:
                count += len(part)
                _send(writer, {"choices": [{"index": 0, "delta": {"content": tokenizer.decode(part)}}]})
            usage = {"prompt_tokens": len(ids), "completion_tokens": count}
            _send(writer, {"choices": [], "usage": usage})
            writer.write(b"data: [DONE]\n\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port)
    await server.serve_forever()


def _send(writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
    writer.write(b"data: " + json.dumps(event).encode() + b"\n\n")


def main() -> None:
    """Reads the arguments and serves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.folder, arguments.port, arguments.threads))


if __name__ == "__main__":
    main()
