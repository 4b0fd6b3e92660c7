"""The worker's side of the protocol with compare.py: one JSON request per input line, one JSON reply per output line.

This module works for any engine that implements `Engine`. An engine runs `sequences` sequences at once, each with its
own cache, and each step ends by choosing the most likely next token of every sequence.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

MAX_TOKENS = 4096
"""Number of random token ids, which prompts and decoding steps share."""

_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2), so that a stopped worker ends together with compare.py."""


class Engine(Protocol):
    """The interface of an engine. No workload is longer than those listed in the request "load"."""

    settings: dict[str, Any]
    vocab_size: int

    def read(self, ids: Sequence[int], sequences: int) -> None:
        """Clears the caches, reads the same prompt into each sequence and chooses the next tokens."""
        ...

    def step(self, token: int, position: int, sequences: int) -> None:
        """Reads one more token in each sequence and chooses the next tokens."""
        ...


def answer(handle: Callable[[dict[str, Any]], Any]) -> None:
    """Replies to each request with the result of `handle`, until "quit" or the end of input."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # redirect output of the engine to standard error
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "quit":
            return
        replies.write(json.dumps(handle(request)) + "\n")
        replies.flush()


def serve(open_engine: Callable[[dict[str, Any]], Engine]) -> None:
    """Answers requests for an engine. The first request must be "load"."""
    timer: _Timer | None = None

    def handle(request: dict[str, Any]) -> Any:
        nonlocal timer
        if request["do"] == "load":
            started = time.perf_counter()
            engine = open_engine(request)
            timer = _Timer(engine)
            return {"settings": engine.settings, "load_seconds": time.perf_counter() - started}
        if request["do"] == "memory":
            return peak_memory()
        assert timer is not None, "the first request must be load"
        return timer.run(request["do"], request["tokens"], request["context"], request["sequences"])

    answer(handle)


def peak_memory() -> int:
    """Returns the peak memory of this process in bytes (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


class _Timer:
    """Times an engine. Remembers which prompt is in the caches, to avoid reading it again."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        source = random.Random(0)
        self._ids = [source.randrange(3, engine.vocab_size) for _ in range(MAX_TOKENS)]
        self._cached = (0, 0)  # tokens per sequence, sequences

    def run(self, work: str, tokens: int, context: int, sequences: int) -> dict[str, float]:
        """Returns the wall-clock seconds and the CPU seconds of all threads of this process."""
        run_work = {"prefill": self._prefill, "decode": self._decode}[work]
        if work == "decode" and self._cached != (context, sequences):
            self._engine.read(self._ids[:context], sequences)
        if work == "decode":  # warm up: the first step after SIGCONT is slow in every engine
            self._engine.step(self._ids[context], context, sequences)
        cpu, started = time.process_time(), time.perf_counter()
        run_work(tokens, context, sequences)
        return {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}

    def _prefill(self, tokens: int, _context: int, sequences: int) -> None:
        self._engine.read(self._ids[:tokens], sequences)
        self._cached = (tokens, sequences)

    def _decode(self, tokens: int, context: int, sequences: int) -> None:
        self._cached = (0, 0)
        for position in range(context + 1, context + 1 + tokens):
            self._engine.step(self._ids[position], position, sequences)
