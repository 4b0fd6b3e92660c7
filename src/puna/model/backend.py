"""`TorchBackend`: the engine's execution backend on PyTorch, for GPUs and where the native runtime does not go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from puna.backend import Batch, Chunk
from puna.checkpoint import open_checkpoint
from puna.config import GenerationConfig, LlamaConfig
from puna.errors import BackendError, RequestError
from puna.model.cache import KVCache
from puna.model.causal_lm import LlamaForCausalLM
from puna.model.outputs import BaseModelOutputWithPast


class TorchBackend:
    """Implements `puna.backend.Backend` over a `LlamaForCausalLM`, wherever and in whatever dtype its weights are.

    Chunks run one after the other, so a chunk's logits do not depend on the rest of the batch; how a prompt was cut
    changes them by rounding only.

    Args:
        model: is put into evaluation mode.
    """

    name = "torch"

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model.eval()
        self.config: LlamaConfig = model.config
        self._caches: dict[int, KVCache] = {}

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        threads: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> TorchBackend:
        """Loads the language model at `path`.

        Args:
            path: a folder or a file on this machine.
            threads: of PyTorch in this whole process; None leaves its own choice, one per physical core.
            device: a PyTorch device; None means the processor.
            dtype: the type to compute in; None means float32 on the processor, else the type the file stores.

        Raises:
            BackendError: PyTorch has no such device here, or the checkpoint has no language-model head.
            CheckpointError, ConfigError, ModelNotFoundError: as `LlamaForCausalLM.from_pretrained`.
        """
        place = _device(device)
        if (head := open_checkpoint(path).head) != "lm":
            raise BackendError(f"{path} has no language-model head (its head: {head}); it cannot generate text")
        if threads is not None:
            torch.set_num_threads(threads)
        on_cpu = place.type == "cpu"
        return cls(LlamaForCausalLM.from_pretrained(path, dtype=dtype or (None if on_cpu else "auto"), device=place))

    @property
    def generation_config(self) -> GenerationConfig:
        """The model's defaults for generating, among them the ids that end a text."""
        return self.model.generation_config

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """Extends the caches by the batch's tokens; returns logits, (sum of `logits` over chunks, vocab_size).

        Raises:
            RequestError: when a chunk starts beyond its cache or holds an impossible id; no cache has then changed.
        """
        slots = [chunk.slot for chunk in batch]
        if len(set(slots)) < len(slots):
            raise RequestError(f"the batch names slots {slots}; each may appear once")
        for chunk in batch:
            self._check(chunk)
        rows = [self._run(chunk) for chunk in batch]
        return np.concatenate([np.empty((0, self.config.vocab_size), np.float32), *rows])

    def free(self, slot: int) -> None:
        """Forgets the cache of `slot`; a slot that has none is free already."""
        self._caches.pop(slot, None)

    def _check(self, chunk: Chunk) -> None:
        tokens, rows = chunk.tokens, self.config.vocab_size
        cached = self._caches.get(chunk.slot, KVCache()).length
        if tokens.ndim != 1 or not len(tokens):
            raise RequestError(f"slot {chunk.slot}: tokens have shape {tokens.shape}; (t,) with 1 or more is needed")
        if tokens.min() < 0 or tokens.max() >= rows:
            bad = tokens.min() if tokens.min() < 0 else tokens.max()
            raise RequestError(f"slot {chunk.slot}: token id {bad} is outside the vocabulary, 0 to {rows - 1}")
        if not 0 <= chunk.start <= cached:
            raise RequestError(f"slot {chunk.slot}: tokens start at {chunk.start}, but the cache holds {cached}")
        if not 0 <= chunk.logits <= len(tokens):
            raise RequestError(f"slot {chunk.slot}: logits of {chunk.logits} tokens were asked, of {len(tokens)}")

    @torch.inference_mode()
    def _run(self, chunk: Chunk) -> NDArray[np.float32]:
        ids = torch.from_numpy(chunk.tokens.astype(np.int64))[None].to(self.model.device)  # (1, t)
        past = self._caches.get(chunk.slot)
        if past is not None and past.length > chunk.start:
            past = past.crop(chunk.start)
        base: BaseModelOutputWithPast = self.model.model(ids, past_key_values=past, use_cache=True, return_dict=True)
        assert base.past_key_values is not None
        self._caches[chunk.slot] = base.past_key_values
        wanted = base.last_hidden_state[0, len(chunk.tokens) - chunk.logits :]  # (logits, D)
        if not chunk.logits:
            return np.empty((0, self.config.vocab_size), np.float32)
        logits: NDArray[np.float32] = self.model.lm_head(wanted).float().cpu().numpy()
        return logits


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or "cpu")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as exc:
        reason = str(exc).splitlines()[0]
        raise BackendError(f"device is {name!r}, which PyTorch cannot use here ({reason}); leave it out") from exc
    return device
