"""llama.cpp's side of compare.py. Runs in the environment of `make peers`; knows nothing of puna."""

from __future__ import annotations

import ctypes
import json
import random
import resource
import sys
import time

import llama_cpp

quiet = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
threads = int(sys.argv[2])
model = llama_cpp.Llama(
    sys.argv[1],
    n_ctx=1024,
    n_batch=512,
    n_ubatch=512,
    n_threads=threads,
    n_threads_batch=threads,
    flash_attn=sys.argv[3] == "1",
    verbose=False,
)
source = random.Random(0)
ids = [source.randrange(model.n_vocab()) for _ in range(2048)]
for line in sys.stdin:
    question = json.loads(line)
    if question["phase"] == "memory":
        print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024), flush=True)
        continue
    model.reset()
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(model.ctx), True)
    context, tokens = question["context"], question["tokens"]
    if context:
        model.eval(ids[:context])
    started = time.perf_counter()
    if question["phase"] == "prefill":
        model.eval(ids[:tokens])
    else:
        for at in range(tokens):
            model.eval([ids[context + at]])
    print(json.dumps(tokens / (time.perf_counter() - started)), flush=True)
