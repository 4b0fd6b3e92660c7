"""Worker of onnxruntime-genai."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime_genai as og

from peers.serve import serve


class OnnxRuntime:
    """A model, and a generator for each prompt that reads the tokens it chooses; min_length prevents an early end."""

    def __init__(self, load: dict[str, Any]) -> None:
        session = {"intra_op_num_threads": load["threads"], "inter_op_num_threads": 1}
        config = og.Config(load["model"])
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = og.Model(config)
        self.vocab_size = json.loads(_read_text(load["model"], "genai_config.json"))["model"]["vocab_size"]
        self._longest = max(work["context"] + work["tokens"] for work in load["works"]) + 8
        self._generator: Any = None
        self.settings = {"onnxruntime-genai": og.__version__, **session, "shared past and present buffers": True}

    def read(self, ids: Sequence[int], sequences: int) -> None:
        """See `peers.serve.Engine`. Choosing the first token needs no further forward pass."""
        self._generator = None
        params = og.GeneratorParams(self.model)
        params.set_search_options(
            max_length=self._longest, min_length=self._longest, batch_size=sequences, do_sample=False
        )
        self._generator = og.Generator(self.model, params)
        prompt = np.array([ids] * sequences, np.int32)
        self._generator.append_tokens(prompt if sequences > 1 else prompt[0])
        self._generator.generate_next_token()

    def step(self, token: int, position: int, sequences: int) -> None:
        """See `peers.serve.Engine`. The generator reads the tokens that it chose before; `token` is not used."""
        self._generator.generate_next_token()


def _read_text(folder: str, name: str) -> str:
    with open(f"{folder}/{name}", encoding="utf-8") as file:  # noqa: PTH123
        return file.read()


if __name__ == "__main__":
    serve(OnnxRuntime)
