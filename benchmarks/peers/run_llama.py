"""Worker of llama.cpp: uses the low-level interface of llama-cpp-python, built for this processor."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np

from peers.serve import serve

BATCH = 512
"""Prompt tokens per forward pass (n_batch, n_ubatch)."""


class Llama:
    """A model and a context. When llama.cpp loads weights, it repacks them into a faster layout if it has one."""

    def __init__(self, load: dict[str, Any]) -> None:
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(load["model"].encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {load['model']}")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.context = self._new_context(load)
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self.settings = {
            "llama-cpp-python": llama_cpp.__version__,
            "system": llama_cpp.llama_print_system_info().decode(),
            "flash_attention": load["options"]["flash"],
            "cache": "f16",
            "n_ubatch": BATCH,
            "threads": load["threads"],
            "repack": bool(getattr(params, "use_extra_bufts", True)),
        }

    def _new_context(self, load: dict[str, Any]) -> Any:
        params = llama_cpp.llama_context_default_params()
        longest = max(work["context"] + work["tokens"] for work in load["works"])
        params.n_ctx = -(-longest // 256) * 256 * load["sequences"]
        params.n_batch = params.n_ubatch = BATCH
        params.n_seq_max = load["sequences"]
        params.n_threads = params.n_threads_batch = load["threads"]
        params.flash_attn_type = (
            llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if load["options"]["flash"]
            else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        context = llama_cpp.llama_init_from_model(self.model, params)
        if not context:
            raise SystemExit("llama.cpp cannot create a context")
        return context

    def _decode(self, entries: Sequence[tuple[int, int, int]], outputs: int) -> None:
        """Reads (token, position, sequence) entries; chooses the most likely token after each of the last `outputs`."""
        batch = self.batch
        batch.n_tokens = len(entries)
        for index, (token, position, sequence) in enumerate(entries):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = index >= len(entries) - outputs
        if status := llama_cpp.llama_decode(self.context, batch):
            raise SystemExit(f"llama_decode returned {status}")
        for index in range(len(entries) - outputs, len(entries)):
            row = llama_cpp.llama_get_logits_ith(self.context, index)
            np.ctypeslib.as_array(row, (self.vocab_size,)).argmax()

    def read(self, ids: Sequence[int], sequences: int) -> None:
        """See `peers.serve.Engine`."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        for sequence in range(sequences):
            for start in range(0, len(ids), BATCH):
                piece = ids[start : start + BATCH]
                last = start + len(piece) == len(ids)
                self._decode([(token, start + offset, sequence) for offset, token in enumerate(piece)], int(last))

    def step(self, token: int, position: int, sequences: int) -> None:
        """See `peers.serve.Engine`."""
        self._decode([(token, position, sequence) for sequence in range(sequences)], sequences)


if __name__ == "__main__":
    serve(Llama)
