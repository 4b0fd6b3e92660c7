"""`TorchBackend`: the engine's backend in PyTorch, for GPUs and for models that the native runtime does not support."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puna.backend import Batch, Chunk, LowRank, Outputs, check_batch, page_count, split_outputs
from puna.checkpoint import Checkpoint, open_checkpoint
from puna.config import LlamaConfig
from puna.errors import BackendError
from puna.model.attention import AttentionMask
from puna.model.causal_lm import LlamaForCausalLM
from puna.model.huggingface.placement import Placement, open_device
from puna.model.loading import checkpoint_loading, choose_dtype, load, memory_errors
from puna.model.paged.adapters import Adapters, segments_of
from puna.model.paged.cache import PagedCache
from puna.model.paged.decode import ROWS, DecodeGraphs, highest_tokens
from puna.model.paged.joined import join_layers
from puna.model.paged.ragged import group_chunks, ragged_rope
from puna.model.step import Step


class TorchBackend:
    """Implements `puna.backend.Backend` with a `LlamaForCausalLM` on any device and in any dtype.

    A batch is one forward pass: projections see the tokens of all chunks as rows of one matrix, and attention groups
    chunks of equal length. PyTorch's kernels round differently for other numbers of rows, so the logits of a chunk
    depend on the rest of the batch by rounding.

    On a GPU, steps in which each sequence decodes one token are CUDA graphs (see `DecodeGraphs`). There is one graph
    for 1 sequence, one for up to 16, up to 64 and up to 256. `compile` compiles them; otherwise the first step of each
    size does, and all sequences wait. Other steps, those with adapters, and models of the rope types
    dynamic and longrope run without graphs. For graphs, matrices with the same inputs are joined: the model's
    parameters become views of joined ones (see `join_layers`).

    Args:
        model: the model, which is put into evaluation mode.
        slots: number of sequences of full context that the cache has space for; fewer if memory is short.
        cache_config: the number of kv heads in the cache; by default all of the model's.
    """

    name = "torch"
    native_model: int | None = None

    def __init__(self, model: LlamaForCausalLM, slots: int = 1, *, cache_config: LlamaConfig | None = None) -> None:
        self.model = model.eval()
        self.config: LlamaConfig = model.config
        pages = slots * page_count(self.config.context_length)
        joined = join_layers(model.model.layers) if _can_capture(model) else None  # before the cache fills the memory
        self._cache = PagedCache(cache_config or self.config, pages, model.dtype, model.device)
        self.pages = self._cache.limit
        self._adapters = Adapters(model)
        self.chooses_tokens = model.device.type != "cpu"
        self._graphs = None if joined is None else DecodeGraphs(model, self._cache, joined)
        self.closed = False

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | Checkpoint,
        threads: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        slots: int = 1,
        keep_quantized: bool = False,
    ) -> TorchBackend:
        """Loads a language model.

        Args:
            model: a folder or a file on this machine, or an open checkpoint.
            threads: number of PyTorch's threads in this process; None keeps PyTorch's setting.
            device: a PyTorch device; None means the CPU.
            dtype: the type to compute in; None means float32 on the CPU, and the stored type on other devices.
            slots: number of sequences of full context that the cache has space for; fewer if memory is short.
            keep_quantized: keep quantised matrices packed in their format and dequantise each when it is used.

        Raises:
            BackendError: if PyTorch has no such device here.
            RequestError: if a matrix is in a format that cannot be kept packed.
            CheckpointError, ConfigError, ModelNotFoundError: as in `LlamaForCausalLM.from_pretrained`.
        """
        target = open_device("cpu" if device is None else device, "device")
        if target.type == "meta":
            raise BackendError("device is 'meta', whose tensors have no values; omit device")
        checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model)
        default = None if target.type == "cpu" else "auto"
        chosen = choose_dtype(default if dtype is None else dtype, checkpoint.tensors)
        if threads is not None:
            torch.set_num_threads(threads)
        with memory_errors():
            loading = checkpoint_loading(
                LlamaForCausalLM, checkpoint, checkpoint.config, chosen, Placement({"": target}),
                keep_quantized=keep_quantized,
            )  # fmt: skip
            return cls(load(loading)[0], slots)

    @property
    def page_bytes(self) -> int:
        """Bytes of a page: the keys and values of PAGE tokens in all layers."""
        return self._cache.page_bytes

    @torch.inference_mode()
    def compile(self, most: int, report: Callable[[Sequence[int]], None]) -> None:
        """Compiles the graphs that steps of up to `most` sequences need."""
        self._check_open()
        sizes = [size for size, smaller in zip(ROWS, (0, *ROWS), strict=False) if smaller < most]
        if self._graphs is not None:
            report(sizes)
            with memory_errors():
                for size in sizes:
                    self._graphs.compile(size)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Outputs:
        """Writes the batch's keys and values; returns the outputs that its chunks request.

        Raises:
            RequestError: if the batch is invalid (see `check_batch`). The cache is then unchanged.
        """
        self._check_open()
        check_batch(batch, self.config, self.pages, self._adapters.loaded)
        with memory_errors():
            if self._graphs is not None and 0 < len(batch) <= ROWS[-1] and all(map(_decodes, batch)):
                return self._graphs.run(batch)
            return split_outputs(batch, self._run(batch) if batch else [], self.config)

    @property
    def numerics(self) -> str:
        """All that determines the contents of pages except the weights, the configuration and the tokens.

        Rounding also depends on the batch, so pages of other processes are equal only up to rounding.
        """
        return f"{self.name} {torch.__version__} {self.model.device} {self.model.dtype}"

    def load_adapter(
        self, products: Mapping[str, LowRank], replaced: Mapping[str, NDArray[np.float32]] | None = None
    ) -> int:
        """Loads changes of matrix products and complete tensors, by Hugging Face's names; returns a number above 0.

        Raises:
            BackendError: if the model has no such tensor, or it has another shape.
        """
        self._check_open()
        with memory_errors():
            return self._adapters.load(products, replaced or {})

    def drop_adapter(self, number: int) -> None:
        """Frees an adapter."""
        self._adapters.loaded.pop(number, None)

    def read_pages(self, pages: Sequence[int]) -> NDArray[np.uint8]:
        """Returns the contents of pages, (n, page_bytes), in a layout that depends on the dtype."""
        self._check_open()
        return self._cache.read(pages)

    def write_pages(self, pages: Sequence[int], data: NDArray[np.uint8]) -> None:
        """Restores pages that `read_pages` has returned; `data` is (n, page_bytes)."""
        self._check_open()
        self._cache.write(pages, data)

    def fill_pages(self, pages: Sequence[int], keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Stores rotated keys and values, each (L, K, T, E), of the first T tokens of a sequence with these pages.

        Raises:
            BackendError: if the cache holds keys without rotation, as for rope types that depend on the length.
        """
        self._check_open()
        if self.model.model.rotary_emb.by_length:
            raise BackendError(
                "the rope type of this model depends on the length of the text, and its cache holds keys without "
                "rotation; a prefix has rotated keys. Use the adapter's base model, or an adapter of another kind"
            )
        self._cache.fill(pages, keys, values)

    def close(self) -> None:
        """Drops the model and the cache."""
        if not self.closed:
            self.closed = True
            del self.model, self._cache, self._adapters, self._graphs

    def _check_open(self) -> None:
        if self.closed:
            raise BackendError("the model is closed; load it again")

    def _run(self, batch: Batch) -> list[NDArray[Any]]:
        """Returns the rows of each chunk's output."""
        self._cache.reserve(1 + max(max(chunk.pages) for chunk in batch))
        decoder = self.model.model
        groups = group_chunks(batch, decoder.rotary_emb.by_length)
        order = [index for group in groups for index in group]
        chunks = [batch[index] for index in order]
        rope = ragged_rope([[batch[index] for index in group] for group in groups], decoder.rotary_emb)
        with self._adapters.applied(segments_of((len(chunk.tokens), chunk.adapter) for chunk in chunks)):
            out = decoder.hidden(self._embed(chunks), Step(rope, AttentionMask()), self._cache.layers)
        states = torch.split(out.last_hidden_state[0], [len(chunk.tokens) for chunk in chunks])
        kept = {index: part[len(part) - batch[index].rows :] for index, part in zip(order, states, strict=True)}
        results = {index: part.float().cpu() for index, part in kept.items() if batch[index].output == "hidden"}
        # The chunks with logits first, then those with tokens: one product, and one transfer each.
        scored = sorted((index for index in order if index not in results), key=lambda index: batch[index].output)
        if scored:
            with self._adapters.applied(segments_of((batch[index].rows, batch[index].adapter) for index in scored)):
                logits = self.model.logits(torch.cat([kept[index] for index in scored]))
            count = sum(batch[index].rows for index in scored if batch[index].output == "logits")
            for output, values in (("logits", logits[:count].float()), ("token", highest_tokens(logits[count:]))):
                indices = [index for index in scored if batch[index].output == output]
                parts = torch.split(values.cpu(), [batch[index].rows for index in indices])
                results.update(zip(indices, parts, strict=True))
        return [results[index].numpy() for index in range(len(batch))]

    def _embed(self, chunks: Sequence[Chunk]) -> Tensor:
        """Returns the inputs of the first layer, (1, N, D)."""
        tokens = np.concatenate([chunk.tokens for chunk in chunks]).astype(np.int64)
        ids = torch.from_numpy(tokens).to(self.model.device)
        x = self.model.model.embed(ids[None])
        for chunk, part in zip(chunks, torch.split(x[0], [len(chunk.tokens) for chunk in chunks]), strict=True):
            if chunk.embeddings is not None:
                part.copy_(torch.from_numpy(chunk.embeddings))
        return x


def _decodes(chunk: Chunk) -> bool:
    """Returns whether a graph of `DecodeGraphs` can compute the chunk."""
    plain = chunk.output != "hidden" and chunk.embeddings is None and not chunk.adapter
    return plain and len(chunk.tokens) == chunk.rows == 1


def _can_capture(model: LlamaForCausalLM) -> bool:
    """Returns whether `DecodeGraphs` can run the model."""
    return (
        model.device.type == "cuda"
        and model.dtype.itemsize <= 4
        and not model.model.rotary_emb.by_length
        and importlib.util.find_spec("triton") is not None
    )
