"""`TorchBackend`: the engine's backend in PyTorch, for GPUs and for models that the native runtime does not support."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from puna.backend import PAGE, Batch, Chunk, LowRank, Outputs, check_batch, page_count, split_outputs
from puna.checkpoint import Checkpoint, open_checkpoint
from puna.config import LlamaConfig
from puna.errors import BackendError
from puna.model.causal_lm import LlamaForCausalLM
from puna.model.device import choose_device
from puna.model.loading import choose_dtype, load
from puna.model.outputs import BaseModelOutputWithPast
from puna.model.pages import PagedCache


class TorchBackend:
    """Implements `puna.backend.Backend` with a `LlamaForCausalLM` on any device and in any dtype.

    Chunks run one at a time, so a chunk's logits do not depend on the rest of the batch. Splitting a prompt
    differently changes its logits only by rounding.

    Args:
        model: the model, which is put into evaluation mode.
        slots: number of sequences of full context that the cache has space for; fewer if memory is short.
    """

    name = "torch"

    def __init__(self, model: LlamaForCausalLM, slots: int = 1) -> None:
        self.model = model.eval()
        self.config: LlamaConfig = model.config
        self._cache = PagedCache(self.config, slots * page_count(self.config.context_length), model.dtype, model.device)
        self.pages = self._cache.limit
        self._closed = False

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | Checkpoint,
        threads: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        slots: int = 1,
    ) -> TorchBackend:
        """Loads a language model.

        Args:
            model: a folder or a file on this machine, or an open checkpoint.
            threads: number of PyTorch's threads in this process; None keeps PyTorch's setting.
            device: a PyTorch device; None means the CPU.
            dtype: the type to compute in; None means float32 on the CPU, and the stored type on other devices.
            slots: number of sequences of full context that the cache has space for; fewer if memory is short.

        Raises:
            BackendError: if PyTorch has no such device here.
            CheckpointError, ConfigError, ModelNotFoundError: as in `LlamaForCausalLM.from_pretrained`.
        """
        target = choose_device(device, None)
        if target.type == "meta":
            raise BackendError("device is 'meta', whose tensors have no values; omit device")
        checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model)
        default = None if target.type == "cpu" else "auto"
        chosen = choose_dtype(default if dtype is None else str(dtype).removeprefix("torch."), checkpoint)
        if threads is not None:
            torch.set_num_threads(threads)
        with _memory_errors():
            return cls(load(LlamaForCausalLM, checkpoint, checkpoint.config, chosen, target), slots)

    def forward(self, batch: Batch) -> Outputs:
        """Writes the batch's keys and values; returns the outputs that its chunks request.

        Raises:
            RequestError: if the batch is invalid (see `check_batch`). The cache is then unchanged.
        """
        if self._closed:
            raise BackendError("the model is closed; load it again")
        check_batch(batch, self.config, self.pages)
        with _memory_errors():
            return split_outputs(batch, [self._run(chunk) for chunk in batch], self.config)

    @property
    def page_bytes(self) -> int:
        """Bytes of a page of the cache."""
        config = self.config
        heads = config.num_hidden_layers * config.num_key_value_heads
        return 2 * heads * PAGE * config.head_dim * self.model.dtype.itemsize

    def load_adapter(self, products: Mapping[str, LowRank]) -> int:
        """Not supported yet."""
        raise BackendError("the torch backend does not support adapters yet; use backend='native'")

    def drop_adapter(self, number: int) -> None:
        """Not supported yet."""
        raise BackendError("the torch backend does not support adapters yet; use backend='native'")

    def read_pages(self, pages: Sequence[int]) -> NDArray[np.uint8]:
        """Not supported yet."""
        raise BackendError("the torch backend does not support reading pages of the cache; use backend='native'")

    def write_pages(self, pages: Sequence[int], data: NDArray[np.uint8]) -> None:
        """Not supported yet."""
        raise BackendError("the torch backend does not support writing pages of the cache; use backend='native'")

    def fill_pages(self, pages: Sequence[int], keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Not supported yet."""
        raise BackendError("the torch backend does not support prefixes yet; use backend='native'")

    def close(self) -> None:
        """Drops the model and the cache."""
        if not self._closed:
            self._closed = True
            del self.model, self._cache

    @torch.inference_mode()
    def _run(self, chunk: Chunk) -> NDArray[np.float32]:
        device = self.model.device
        inputs: dict[str, torch.Tensor] = {}
        if chunk.embeddings is None:
            inputs["input_ids"] = torch.from_numpy(chunk.tokens.astype(np.int64))[None].to(device)  # (1, t)
        else:
            inputs["inputs_embeds"] = torch.from_numpy(chunk.embeddings)[None].to(device, self.model.dtype)  # (1, t, D)
        past = self._cache.read(chunk)
        base: BaseModelOutputWithPast = self.model.model(
            **inputs, past_key_values=past, use_cache=True, return_dict=True
        )
        assert base.past_key_values is not None
        self._cache.write(chunk, base.past_key_values)
        states = base.last_hidden_state[0, len(chunk.tokens) - chunk.rows :]  # (rows, D)
        rows = self.model.lm_head(states) if chunk.output == "logits" else states
        result: NDArray[np.float32] = rows.float().cpu().numpy()
        return result


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Turns PyTorch's errors for exhausted memory into a BackendError. On the CPU, they are plain RuntimeErrors."""
    try:
        yield
    except RuntimeError as exc:
        if not isinstance(exc, torch.OutOfMemoryError) and "allocate memory" not in str(exc):
            raise
        raise BackendError(
            f"memory is exhausted ({str(exc).splitlines()[0]}); free memory, raise the limit of this process (ulimit "
            "-v), or use a smaller model, a shorter text or a smaller dtype"
        ) from exc
