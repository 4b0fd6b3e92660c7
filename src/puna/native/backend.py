"""`NativeBackend`: the forward pass of a batch in one native call, without PyTorch.

Every bit of a request's logits is independent of the other requests in the batch, the division of its prompt into
chunks, the number of threads, and the pages of the cache.
"""

from __future__ import annotations

import ctypes
import os
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from puna.backend import PAGE, Batch, Chunk, LowRank, Outputs, check_batch, page_count
from puna.config import LlamaConfig
from puna.config.frequencies import Frequencies, RotaryFrequencies
from puna.errors import BackendError
from puna.native.library import (
    BF16_KERNELS,
    PHASES,
    STOPPED,
    NativeChunk,
    Shape,
    chosen_kernels,
    default_threads,
    float32_kernels,
    load_library,
)
from puna.native.memory import cache_pages
from puna.native.tensors import Tensor, load_tensor, packed_bytes, quantized_format

CACHE_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}
"""Types of cached keys and values, with ggml's type numbers."""

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

_MAX_PIECES = 8
"""Maximum parts of chunks per native call if frequencies depend on the length: each part needs a table of angles."""


class NativeBackend:
    """Implements `puna.backend.Backend` in C++.

    Args:
        config: the model's configuration.
        tensors: the model's weights under Hugging Face's names; read one at a time, and released after packing.
        threads: number of threads; None means one per physical core.
        slots: number of sequences of full context that the cache has space for; fewer if memory is short.
        quantize: format that float matrices are quantised to: "q8_0", "q4_0" or "q4_K" (the embedding and the head
            always to q8_0). None keeps the file's values.
        cache: type of cached keys and values, "f16", "bf16", "f32" or "q8_0"; None means float32 for a model stored in
            float32, else bfloat16 if the processor has bfloat16 products, else float16.
        float32: round nothing to fewer bits than float32: quantised matrices take 4 bytes per weight, activations stay
            in float32, and so does the cache unless `cache` is given.

    Raises:
        BackendError: if the native runtime does not support the model, the model does not fit in memory, or `float32`
            contradicts `quantize`.
    """

    name = "native"

    def __init__(
        self,
        config: LlamaConfig,
        tensors: Mapping[str, Tensor],
        threads: int | None = None,
        slots: int = 1,
        *,
        quantize: str | None = None,
        cache: str | None = None,
        float32: bool = False,
    ) -> None:
        check_supported(config)
        if float32 and quantize is not None:
            raise BackendError(
                f"quantize is {quantize!r}, but float32 is requested, which rounds nothing; leave one out"
            )
        self.config = config
        self._library = load_library()
        self._rope = RotaryFrequencies(config)
        target = quantized_format(quantize, tensors)
        cache_type = _cache_type("f32" if float32 and cache is None else cache, tensors)
        shape = _shape(config, cache_type, self._rope.by_length)
        self.cache_bytes_per_token = int(self._library.puna_cache_bytes(ctypes.byref(shape)))
        self.pages = cache_pages(
            packed_bytes(tensors, target, float32),
            slots * page_count(config.context_length),
            self.cache_bytes_per_token * PAGE,
        )
        self._process = os.getpid()
        kernels = float32_kernels() if float32 else chosen_kernels()
        self._pointer = self._new_model(shape, default_threads(threads), kernels)
        # A tensor is in memory twice while it is packed, so the largest are packed first, while little memory is used.
        for name in sorted(tensors, key=lambda name: -tensors[name].format.size(tensors[name].shape)):
            load_tensor(self._model, name, tensors[name], target, float32)
        self._check(self._library.puna_model_ready(self._model, self.pages))

    def __del__(self) -> None:
        if "_pointer" in self.__dict__:
            self.close()

    def close(self) -> None:
        """Frees the weights and the cache."""
        # Freeing waits for the model's threads, which a forked child does not have; its exit frees the memory.
        if self._pointer and self._process == os.getpid():
            self._library.puna_model_free(self._pointer)
        self._pointer = 0

    @property
    def _model(self) -> int:
        if not self._pointer:
            raise BackendError("the model is closed; load it again")
        return self._pointer

    @property
    def weight_bytes(self) -> int:
        """Bytes of packed matrices that decoding one token reads: all except an untied embedding."""
        return sum(self.phase_bytes.values())

    @property
    def phase_bytes(self) -> dict[str, int]:
        """`weight_bytes` by phase of the forward pass."""
        counts = (ctypes.c_int64 * len(PHASES))()
        self._library.puna_model_weight_bytes(self._model, counts)
        return dict(zip(PHASES, counts, strict=True))

    @property
    def integer_weights(self) -> bool:
        """Whether the layers' matrices are packed as integers with scales."""
        return bool(self._library.puna_model_integers(self._model))

    def profile(self) -> dict[str, float]:
        """Returns the seconds spent in each phase of the forward pass since the last call."""
        seconds = (ctypes.c_double * len(PHASES))()
        self._library.puna_model_profile(self._model, seconds)
        return dict(zip(PHASES, seconds, strict=True))

    @contextmanager
    def observing(self) -> Iterator[Callable[[], dict[str, NDArray[np.float64]]]]:
        """Context manager: records, for each matrix, the sum of squares of its inputs. Yields a function.

        The function returns the sums over all tokens so far, (columns,), under Hugging Face's names of the matrices.
        Sums of the head (`lm_head.weight`, also if tied) include only tokens whose logits are returned.
        """
        config = self.config
        width, heads = config.hidden_size, config.num_attention_heads * config.head_dim
        sizes = (width, heads, width, config.intermediate_size)
        squares = np.zeros(config.num_hidden_layers * sum(sizes) + width)
        matrices = (_QKV, ("self_attn.o_proj",), ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))

        def sums() -> dict[str, NDArray[np.float64]]:
            result: dict[str, NDArray[np.float64]] = {}
            start = 0
            for layer in range(config.num_hidden_layers):
                for names, size in zip(matrices, sizes, strict=True):
                    part = squares[start : start + size].copy()
                    result |= {f"model.layers.{layer}.{name}.weight": part for name in names}
                    start += size
            return result | {"lm_head.weight": squares[start:].copy()}

        self._library.puna_model_observe(self._model, squares.ctypes.data)
        try:
            yield sums
        finally:
            self._library.puna_model_observe(self._model, None)

    def forward(self, batch: Batch) -> Outputs:
        """Writes the batch's keys and values; returns the outputs that its chunks request.

        Ctrl-C interrupts the pass between two layers; the same batch can then be run again.

        Raises:
            RequestError: if the batch is invalid (see `check_batch`). The cache is then unchanged.
        """
        check_batch(batch, self.config, self.pages)
        for chunk in batch:
            if chunk.output != "logits" or chunk.embeddings is not None:
                raise BackendError("the native backend supports neither hidden states nor embeddings yet")
        logits = np.empty((sum(chunk.rows for chunk in batch), self.config.vocab_size), np.float32)
        pieces = [piece for chunk in batch for piece in self._pieces(chunk)]
        step = _MAX_PIECES if self._rope.by_length else max(1, len(pieces))
        row = 0
        for first in range(0, len(pieces), step):
            group = pieces[first : first + step]
            self._run(group, logits[row:])
            row += sum(chunk.rows for chunk, _ in group)
        return Outputs(logits, np.empty((0, self.config.hidden_size), np.float32))

    @property
    def page_bytes(self) -> int:
        """Bytes of a page of the cache."""
        return self.cache_bytes_per_token * PAGE

    def load_adapter(self, products: Mapping[str, LowRank]) -> int:
        """Not supported yet."""
        raise BackendError("the native backend does not support adapters yet")

    def drop_adapter(self, number: int) -> None:
        """Not supported yet."""
        raise BackendError("the native backend does not support adapters yet")

    def read_pages(self, pages: Sequence[int]) -> NDArray[np.uint8]:
        """Not supported yet."""
        raise BackendError("the native backend does not support reading pages of the cache yet")

    def write_pages(self, pages: Sequence[int], data: NDArray[np.uint8]) -> None:
        """Not supported yet."""
        raise BackendError("the native backend does not support writing pages of the cache yet")

    def fill_pages(self, pages: Sequence[int], keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Not supported yet."""
        raise BackendError("the native backend does not support prefixes yet")

    def _pieces(self, chunk: Chunk) -> Iterator[tuple[Chunk, Frequencies]]:
        """Splits the chunk where the rotary frequencies of its tokens change."""
        end = len(chunk.tokens)
        for first, last, inv_freq in self._rope.runs(chunk.start, end):
            rows = max(0, min(last - first, last - (end - chunk.rows)))
            yield Chunk(chunk.pages, chunk.tokens[first:last], chunk.start + first, rows), inv_freq

    def _run(self, pieces: list[tuple[Chunk, Frequencies]], logits: NDArray[np.float32]) -> None:
        chunks = (NativeChunk * len(pieces))(*(self._native_chunk(chunk, inv_freq) for chunk, inv_freq in pieces))
        in_main = threading.get_ident() == threading.main_thread().ident
        status = STOPPED
        while status == STOPPED:  # a signal interrupted the call: repeat it, unless the handler raises
            status = self._library.puna_forward(self._model, chunks, len(pieces), in_main, logits.ctypes.data)
        self._check(status)

    def _native_chunk(self, chunk: Chunk, inv_freq: Frequencies) -> NativeChunk:
        """Converts the chunk to its C struct; ctypes keeps the bytes alive as long as the struct."""
        return NativeChunk(
            array("q", chunk.tokens.tolist()).tobytes(),
            array("i", chunk.pages).tobytes(),
            len(chunk.tokens),
            len(chunk.pages),
            chunk.start,
            chunk.rows,
            inv_freq.tobytes(),
            self._rope.scale,
        )

    def _new_model(self, shape: Shape, threads: int, kernels: str) -> int:
        model = self._library.puna_model_new(ctypes.byref(shape), threads, kernels.encode())
        if not model:
            raise BackendError(f"the native runtime rejects the model: {self._error()}")
        return int(model)

    def _check(self, status: int) -> None:
        if status:
            raise BackendError(f"the native runtime failed: {self._error()}")

    def _error(self) -> str:
        message: bytes = self._library.puna_error()
        return message.decode()


def check_supported(config: LlamaConfig) -> None:
    """Raises BackendError if the native runtime does not support the model; the message says why."""
    if config.hidden_act not in ("silu", "swish"):
        raise BackendError(
            f"the native backend does not support hidden_act {config.hidden_act!r}, only 'silu'; use backend='torch'"
        )


def _cache_type(name: str | None, tensors: Mapping[str, Tensor]) -> int:
    if name is None and all(tensor.format.name == "f32" for tensor in tensors.values()):
        name = "f32"
    elif name is None:
        name = "bf16" if chosen_kernels() == BF16_KERNELS else "f16"
    if not isinstance(name, str) or name.lower() not in CACHE_TYPES:
        raise BackendError(f"cache is {name!r}; it must be one of {', '.join(CACHE_TYPES)}")
    return CACHE_TYPES[name.lower()]


def _shape(config: LlamaConfig, cache: int, unrotated_keys: bool) -> Shape:
    return Shape(
        config.vocab_size,
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.rms_norm_eps,
        cache,
        unrotated_keys,
    )
