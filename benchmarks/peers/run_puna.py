"""The worker process that measures puna."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from peers.serve import serve
from puna import benchmark
from puna.backend import Chunk, consecutive_pages
from puna.checkpoint import locate_model, open_checkpoint
from puna.native import NativeBackend
from puna.native.library import chosen_kernels


class Puna:
    """puna's native backend, called as `puna.engine` calls it: prompts are read in chunks of 512 tokens."""

    def __init__(self, load: dict[str, Any]) -> None:
        checkpoint = open_checkpoint(locate_model(load["model"]))
        cache = load["options"].get("cache")
        self.backend = NativeBackend(
            checkpoint.config, checkpoint.tensors, load["threads"], load["sequences"], cache=cache
        )
        self.vocab_size = checkpoint.config.vocab_size
        longest = max(work["context"] + work["tokens"] + 1 for work in load["works"])  # 1: the warm-up step
        self._sequences = [consecutive_pages(longest, number) for number in range(load["sequences"])]
        self.settings = {
            "backend": "native",
            "kernels": chosen_kernels(),
            "cache": cache or "default",
            "weight_bytes": self.backend.weight_bytes,
            "integer_weights": self.backend.integer_weights,
            # Bytes and operations per token, from which measure.py computes the limit of each workload.
            "demands": [
                demand and asdict(demand)
                for work in load["works"]
                for demand in [
                    benchmark.demand(
                        self.backend, benchmark.Work(work["do"], work["tokens"], work["context"], work["sequences"])
                    )
                ]
            ],
        }

    def read(self, ids: Sequence[int], sequences: int) -> None:
        """See `peers.serve.Engine`."""
        for pages in self._sequences[:sequences]:
            benchmark.read(self.backend, np.array(ids, np.int64), pages)

    def step(self, token: int, position: int, sequences: int) -> None:
        """See `peers.serve.Engine`."""
        chunks = [Chunk(pages, np.array([token], np.int64), position) for pages in self._sequences[:sequences]]
        self.backend.forward(chunks).logits.argmax(axis=-1)


if __name__ == "__main__":
    serve(Puna)
