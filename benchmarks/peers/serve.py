"""A worker's side of the talk with compare.py: one JSON question a line in, one JSON answer a line out.

Knows no engine. A worker's class has `settings` and these methods; `sequences` of them run at once, each with its own
cache, and each decoding step ends with the likeliest token of every sequence chosen.
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

MOST = 4096
"""Random token ids at hand."""

_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2): a stopped worker must not outlive compare.py."""


class Engine(Protocol):
    """What a worker wraps. Positions are counted by `serve`, which never asks for more than was announced."""

    settings: dict[str, Any]
    vocab_size: int

    def read(self, ids: Sequence[int], sequences: int) -> None:
        """Empties the caches and reads the same prompt into each of `sequences`, up to the choice of a next token."""
        ...

    def step(self, token: int, position: int, sequences: int) -> None:
        """Reads one more token in each sequence and chooses the next ones."""
        ...


def serve(open_engine: Callable[[dict[str, Any]], Engine]) -> None:
    """Answers questions until "quit" or the end of input. The first must be "load"."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever an engine prints goes to standard error
    timer: _Timer | None = None
    for line in sys.stdin:
        question = json.loads(line)
        if question["do"] == "quit":
            return
        if question["do"] == "load":
            started = time.perf_counter()
            engine = open_engine(question)
            timer = _Timer(engine)
            answer: Any = {"settings": engine.settings, "load_seconds": time.perf_counter() - started}
        elif question["do"] == "memory":
            answer = peak_memory()
        else:
            assert timer is not None, "nothing is loaded"
            answer = timer.run(question["do"], question["tokens"], question["context"], question["sequences"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def peak_memory() -> int:
    """Most memory this process has held at once, in bytes (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


class _Timer:
    """Times an engine, and remembers what its caches hold: a prompt that was just read need not be read again."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        source = random.Random(0)
        self._ids = [source.randrange(3, engine.vocab_size) for _ in range(MOST)]
        self._holds = (0, 0)

    def run(self, work: str, tokens: int, context: int, sequences: int) -> dict[str, float]:
        """Seconds of the clock, and of all threads of this process together."""
        timed = {"prefill": self._prefill, "decode": self._decode}[work]
        if work == "decode" and self._holds != (context, sequences):
            self._engine.read(self._ids[:context], sequences)
        if work == "decode":  # the first step of a process that was stopped is slow in any engine
            self._engine.step(self._ids[context], context, sequences)
        cpu, started = time.process_time(), time.perf_counter()
        timed(tokens, context, sequences)
        return {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}

    def _prefill(self, tokens: int, _context: int, sequences: int) -> None:
        self._engine.read(self._ids[:tokens], sequences)
        self._holds = (tokens, sequences)

    def _decode(self, tokens: int, context: int, sequences: int) -> None:
        self._holds = (0, 0)
        for position in range(context + 1, context + 1 + tokens):
            self._engine.step(self._ids[position], position, sequences)
