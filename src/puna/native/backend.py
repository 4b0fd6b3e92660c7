"""`NativeBackend`: the forward pass of a batch in one native call, without PyTorch.

Every bit of a request's logits is independent of the other requests in the batch, the division of its prompt into
chunks, the number of threads, and the pages of the cache.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from puna.backend import PAGE, Batch, Chunk, LowRank, Outputs, check_batch, page_count
from puna.config import LlamaConfig
from puna.config.frequencies import Frequencies, RotaryFrequencies
from puna.errors import BackendError, RequestError
from puna.native.adapters import load_adapter
from puna.native.cached_tokens import CACHE_TYPES, decode_pages
from puna.native.library import (
    BF16_KERNELS,
    OUTPUTS,
    PHASES,
    STOPPED,
    NativeChunk,
    Shape,
    chosen_kernels,
    default_threads,
    float32_kernels,
    library_digest,
    load_library,
    machine,
)
from puna.native.memory import cache_pages
from puna.native.tensors import Tensor, load_tensor, packed_bytes, quantized_format

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
    chooses_tokens = False

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
        self._cache_type = cache_type = _cache_type("f32" if float32 and cache is None else cache, tensors)
        shape = _shape(config, cache_type, self._rope.by_length)
        self.cache_bytes_per_token = int(self._library.puna_cache_bytes(ctypes.byref(shape)))
        self.pages = cache_pages(
            packed_bytes(tensors, target, float32),
            slots * page_count(config.context_length),
            self.cache_bytes_per_token * PAGE,
        )
        kernels = float32_kernels() if float32 else chosen_kernels()
        self._options = f"{kernels} cache={cache_type} quantize={target and target.name} float32={float32}"
        self._pointer = self._new_model(shape, default_threads(threads), kernels)
        self._free = weakref.finalize(self, _free_model, self._library, self._pointer, os.getpid())
        self._free.atexit = False  # the process frees its memory, and other threads may still compute
        # A tensor is in memory twice while it is packed, so the largest are packed first, while little memory is used.
        for name in sorted(tensors, key=lambda name: -tensors[name].format.size(tensors[name].shape)):
            load_tensor(self._model, name, tensors[name], target, float32)
        self._check(self._library.puna_model_ready(self._model, self.pages))
        self._adapters: set[int] = set()

    def close(self) -> None:
        """Frees the weights and the cache."""
        self._pointer = 0
        self._free()

    @property
    def _model(self) -> int:
        if not self._pointer:
            raise BackendError("the model is closed; load it again")
        return self._pointer

    @property
    def native_model(self) -> int | None:
        """The native model, whose threads may choose tokens between two passes."""
        return self._pointer

    @property
    def numerics(self) -> str:
        """All that determines the contents of pages except the weights, the configuration and the tokens.

        NumPy computes the rotary frequencies.
        """
        features = ",".join(machine().features)
        return f"{self.name} {self._options} {library_digest()} {features} numpy={np.__version__}"

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

    def compile(self, most: int, report: Callable[[Sequence[int]], None]) -> None:
        """Does nothing: the library is compiled."""

    def forward(self, batch: Batch) -> Outputs:
        """Writes the batch's keys and values; returns the outputs that its chunks request.

        Ctrl-C interrupts the pass between two layers; the same batch can then be run again.

        Raises:
            RequestError: if the batch is invalid (see `check_batch`). The cache is then unchanged.
        """
        check_batch(batch, self.config, self.pages, self._adapters)
        if any(chunk.output not in OUTPUTS for chunk in batch):
            raise RequestError("the native backend returns logits and hidden states; request one of these outputs")
        counts = {output: sum(chunk.rows for chunk in batch if chunk.output == output) for output in OUTPUTS}
        logits = np.empty((counts["logits"], self.config.vocab_size), np.float32)
        hidden = np.empty((counts["hidden"], self.config.hidden_size), np.float32)
        pieces = [piece for chunk in batch for piece in self._pieces(chunk)]
        step = _MAX_PIECES if self._rope.by_length else max(1, len(pieces))
        rows = dict.fromkeys(OUTPUTS, 0)
        for first in range(0, len(pieces), step):
            group = pieces[first : first + step]
            self._run(group, logits[rows["logits"] :], hidden[rows["hidden"] :])
            for chunk, _ in group:
                rows[chunk.output] += chunk.rows
        return Outputs(logits, hidden)

    def load_adapter(
        self, products: Mapping[str, LowRank], replaced: Mapping[str, NDArray[np.float32]] | None = None
    ) -> int:
        """Loads changes of the layers' projections, by Hugging Face's names of the matrices; returns their number.

        The factors are rounded where the matrix's kernel rounds its inputs: `a` to 8 bits (q8_0) and `b` to bfloat16 if
        the matrix is in an integer format, both to bfloat16 if the matrix is in bfloat16 and the processor has bfloat16
        products. Do not call this while `forward` runs.

        Raises:
            BackendError: if a name is not that of a projection, the shape of a factor differs from the model's, or the
                adapter replaces tensors.
        """
        if replaced:
            raise BackendError(f"the native backend cannot replace {next(iter(replaced))!r}; use backend='torch'")
        number = load_adapter(self._model, self.config, products)
        self._adapters.add(number)
        return number

    def drop_adapter(self, number: int) -> None:
        """Frees an adapter. Do not call this while `forward` runs."""
        self._check(self._library.puna_adapter_drop(self._model, number))
        self._adapters.discard(number)

    @property
    def page_bytes(self) -> int:
        """Bytes of a page of the cache."""
        return self.cache_bytes_per_token * PAGE

    def read_pages(self, pages: Sequence[int]) -> NDArray[np.uint8]:
        """Returns the contents of pages, (n, page_bytes): the keys of all layers, then the values of all layers."""
        data = np.empty((len(pages), self.page_bytes), np.uint8)
        numbers = self._page_numbers(pages)
        self._check(self._library.puna_pages_read(self._model, numbers, len(pages), data.ctypes.data))
        return data

    def write_pages(self, pages: Sequence[int], data: NDArray[np.uint8]) -> None:
        """Restores pages that `read_pages` has returned, also in another process with the same model and cache type."""
        _check_array("data", data, np.uint8, (len(pages), self.page_bytes))
        data, numbers = np.ascontiguousarray(data), self._page_numbers(pages)
        self._check(self._library.puna_pages_write(self._model, numbers, len(pages), data.ctypes.data))

    def fill_pages(self, pages: Sequence[int], keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Stores the keys and values of the first T tokens of a sequence; see `puna.backend.Backend.fill_pages`."""
        if self._rope.by_length:
            raise BackendError(
                "the keys of this model's rope type depend on the length of the text, so that given keys (a prefix) "
                "cannot be used; use an adapter of another kind"
            )
        config, tokens = self.config, keys.shape[2] if keys.ndim == 4 else 0
        shape = (config.num_hidden_layers, config.num_key_value_heads, tokens, config.head_dim)
        _check_array("keys", keys, np.float32, shape)
        _check_array("values", values, np.float32, shape)
        if tokens > len(pages) * PAGE:
            raise RequestError(f"{tokens} tokens do not fit in {len(pages)} pages of {PAGE} tokens")
        keys, values, numbers = np.ascontiguousarray(keys), np.ascontiguousarray(values), self._page_numbers(pages)
        self._check(
            self._library.puna_pages_fill(
                self._model, numbers, len(pages), tokens, keys.ctypes.data, values.ctypes.data
            )
        )

    def cached_tokens(self, pages: Sequence[int], tokens: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns the keys and values of the first tokens of a sequence: the inverse of `fill_pages`."""
        config = self.config
        shape = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim)
        keys, values = decode_pages(self.read_pages(pages), shape, self._cache_type)
        return keys[:, :, :tokens], values[:, :, :tokens]

    def _page_numbers(self, pages: Sequence[int]) -> bytes:
        for page in pages:
            if not 0 <= page < self.pages:
                raise RequestError(f"page is {page}; the cache has pages 0 to {self.pages - 1}")
        return array("i", pages).tobytes()

    def _pieces(self, chunk: Chunk) -> Iterator[tuple[Chunk, Frequencies]]:
        """Splits the chunk where the rotary frequencies of its tokens change."""
        count = len(chunk.tokens)
        for first, end, inv_freq in self._rope.runs(chunk.start, count):
            yield (chunk if end - first == count else chunk.part(first, end)), inv_freq

    def _run(
        self, pieces: list[tuple[Chunk, Frequencies]], logits: NDArray[np.float32], hidden: NDArray[np.float32]
    ) -> None:
        chunks = (NativeChunk * len(pieces))(*(self._native_chunk(chunk, inv_freq) for chunk, inv_freq in pieces))
        in_main = threading.get_ident() == threading.main_thread().ident
        outputs = logits.ctypes.data, hidden.ctypes.data
        status = STOPPED
        while status == STOPPED:  # a signal interrupted the call: repeat it, unless the handler raises
            status = self._library.puna_forward(self._model, chunks, len(pieces), in_main, *outputs)
        self._check(status)

    def _native_chunk(self, chunk: Chunk, inv_freq: Frequencies) -> NativeChunk:
        """Converts the chunk to its C struct; ctypes keeps the bytes alive as long as the struct."""
        return NativeChunk(
            array("i", chunk.tokens.tolist()).tobytes(),
            None if chunk.embeddings is None else chunk.embeddings.tobytes(),
            array("i", chunk.pages).tobytes(),
            inv_freq.tobytes(),
            self._rope.scale,
            len(chunk.tokens),
            len(chunk.pages),
            chunk.start,
            chunk.rows,
            OUTPUTS[chunk.output],
            chunk.adapter,
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


def _free_model(library: ctypes.CDLL, pointer: int, process: int) -> None:
    # Freeing waits for the model's threads, which a forked child does not have; its exit frees the memory.
    if process == os.getpid():
        library.puna_model_free(pointer)


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


def _check_array(name: str, data: NDArray[np.generic], dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    if data.shape != shape or data.dtype != dtype:
        raise RequestError(
            f"{name} is {data.dtype} of shape {data.shape}; it must be {dtype.__name__} of shape {shape}"
        )
