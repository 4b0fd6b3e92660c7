"""Worker of transformers: eager PyTorch with scaled-dot-product attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from peers.serve import serve


class Transformers:
    """A model from a Hugging Face folder."""

    def __init__(self, load: dict[str, Any]) -> None:
        torch.set_num_threads(load["threads"])
        torch.set_grad_enabled(False)
        dtype = load["options"]["dtype"]
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            load["model"], dtype=getattr(torch, dtype), attn_implementation="sdpa"
        ).eval()
        self.vocab_size = self.model.config.vocab_size
        self._cache: Any = None
        self.settings = {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "dtype": dtype,
            "attention": "sdpa",
            "cache": "DynamicCache",
            "logits_to_keep": 1,
        }

    def _forward(self, ids: torch.Tensor) -> None:
        with torch.inference_mode():
            output = self.model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self._cache = output.past_key_values
            output.logits[:, -1].argmax(dim=-1)

    def read(self, ids: Sequence[int], sequences: int) -> None:
        """See `peers.serve.Engine`."""
        self._cache = None
        self._forward(torch.tensor([list(ids)] * sequences))

    def step(self, token: int, position: int, sequences: int) -> None:
        """See `peers.serve.Engine`."""
        self._forward(torch.full((sequences, 1), token))


if __name__ == "__main__":
    serve(Transformers)
