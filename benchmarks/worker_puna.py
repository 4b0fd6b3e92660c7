"""puna's side of compare.py: questions on standard input, speeds on standard output."""

from __future__ import annotations

import json
import sys

import numpy as np

from puna import benchmark
from puna.checkpoint import locate_model, open_checkpoint
from puna.cli.bench import _peak_memory
from puna.native import NativeBackend

checkpoint = open_checkpoint(locate_model(sys.argv[1]))
backend = NativeBackend(checkpoint.config, checkpoint.tensors, int(sys.argv[2]))
ids = np.random.default_rng(0).integers(0, checkpoint.config.vocab_size, 4096)
for line in sys.stdin:
    question = json.loads(line)
    if question["phase"] == "memory":
        answer: float = _peak_memory()
    else:
        work = benchmark.Work(question["phase"], question["tokens"], question["context"], 1)
        answer = benchmark.time_work(backend, ids, work)
    print(json.dumps(answer), flush=True)
