"""llama.cpp's worker: the low-level interface of llama-cpp-python, built for this processor."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np

from peers.serve import serve

PIECE = 512
"""Tokens of a prompt read at once (n_batch, n_ubatch)."""


class Llama:
    """A model and a context. Its weights are repacked at load where it has a faster layout (its default)."""

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
        self.batch = llama_cpp.llama_batch_init(PIECE, 0, 1)
        self.settings = {
            "llama-cpp-python": llama_cpp.__version__,
            "system": llama_cpp.llama_print_system_info().decode(),
            "flash_attention": load["options"]["flash"],
            "cache": "f16",
            "n_ubatch": PIECE,
            "threads": load["threads"],
            "repack": bool(getattr(params, "use_extra_bufts", True)),
        }

    def _new_context(self, load: dict[str, Any]) -> Any:
        params = llama_cpp.llama_context_default_params()
        longest = max(work["context"] + work["tokens"] for work in load["works"])
        params.n_ctx = -(-longest // 256) * 256 * load["sequences"]
        params.n_batch = params.n_ubatch = PIECE
        params.n_seq_max = load["sequences"]
        params.n_threads = params.n_threads_batch = load["threads"]
        params.flash_attn_type = (
            llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if load["options"]["flash"]
            else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        context = llama_cpp.llama_init_from_model(self.model, params)
        if not context:
            raise SystemExit("llama.cpp cannot make a context")
        return context

    def _decode(self, entries: Sequence[tuple[int, int, int]], wanted: int) -> None:
        """Reads (token, position, sequence); chooses the likeliest token after each of the last `wanted`."""
        batch = self.batch
        batch.n_tokens = len(entries)
        for at, (token, position, sequence) in enumerate(entries):
            batch.token[at], batch.pos[at] = token, position
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
            batch.logits[at] = at >= len(entries) - wanted
        if status := llama_cpp.llama_decode(self.context, batch):
            raise SystemExit(f"llama_decode gave {status}")
        for at in range(len(entries) - wanted, len(entries)):
            row = llama_cpp.llama_get_logits_ith(self.context, at)
            np.ctypeslib.as_array(row, (self.vocab_size,)).argmax()

    def read(self, ids: Sequence[int], sequences: int) -> None:
        """As `peers.serve.Engine`."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        for sequence in range(sequences):
            for start in range(0, len(ids), PIECE):
                piece = ids[start : start + PIECE]
                last = start + len(piece) == len(ids)
                self._decode([(token, start + at, sequence) for at, token in enumerate(piece)], int(last))

    def step(self, token: int, position: int, sequences: int) -> None:
        """As `peers.serve.Engine`."""
        self._decode([(token, position, sequence) for sequence in range(sequences)], sequences)


if __name__ == "__main__":
    serve(Llama)
