"""`NativeBackend`: the forward pass of a batch in one native call, without PyTorch.

A request's logits have the same bits whatever else is in the batch, however its prompt was cut, on any number of
threads, in any pages of the cache.
"""

from __future__ import annotations

import ctypes
import os
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from puna.backend import PAGE, Batch, Chunk, check_batch
from puna.config import LlamaConfig
from puna.errors import BackendError, RequestError
from puna.native.library import PHASES, STOPPED, NativeChunk, Shape, chosen_kernels, default_threads, load_library
from puna.native.memory import cache_pages
from puna.native.rope import Frequencies, Rope
from puna.native.tensors import Tensor, load_tensor, packed_bytes, quantized_format

CACHE_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}
"""Types of cached keys and values, and ggml's numbers of them."""

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

_PIECES = 8
"""Most runs of tokens with frequencies of their own in one native call: each needs a table as long as its context."""


class NativeBackend:
    """Implements `puna.backend.Backend` in C++.

    Args:
        config: of the model.
        tensors: its weights under Hugging Face's names; read one at a time, and released once packed.
        threads: None means one per physical core.
        slots: sequences whose caches should fit at once; fewer do where memory is short.
        quantize: format that float matrices are rounded to: "q8_0", "q4_0" or "q4_K". The embedding and the head become
            q8_0 in any case. None keeps the file's values.
        cache: type of cached keys and values, "f16", "bf16", "f32" or "q8_0"; None means float32 for a model stored in
            float32, else bfloat16 where the processor multiplies it, else float16.

    Raises:
        BackendError: when the model needs something the native runtime lacks, or does not fit into memory.
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
    ) -> None:
        check_supported(config)
        self.config = config
        self._library = load_library()
        self._rope = Rope(config)
        rounded = quantized_format(quantize, tensors)
        shape = _shape(config, _cache_type(cache, tensors), self._rope.by_length)
        self.cache_bytes_per_token = int(self._library.puna_cache_bytes(ctypes.byref(shape)))
        pages = cache_pages(
            packed_bytes(tensors, rounded),
            slots * -(-config.context_length // PAGE),
            self.cache_bytes_per_token * PAGE,
        )
        self._process = os.getpid()
        self._free_pages = list(range(pages))[::-1]
        self._pages: dict[int, list[int]] = {}
        self._lengths: dict[int, int] = {}
        self._model = self._new_model(shape, default_threads(threads))
        for name, tensor in tensors.items():
            load_tensor(self._model, name, tensor, rounded)
        self._check(self._library.puna_model_ready(self._model, pages))
        self.cache_tokens: int | None = pages * PAGE

    def __del__(self) -> None:
        # A forked child has none of the threads that freeing waits for; its memory ends with it.
        if self.__dict__.get("_model") and self._process == os.getpid():
            self._library.puna_model_free(self._model)

    @property
    def weight_bytes(self) -> int:
        """Bytes of packed matrices that decoding one token reads: all but an embedding that is not the head."""
        return sum(self.phase_bytes.values())

    @property
    def phase_bytes(self) -> dict[str, int]:
        """`weight_bytes` by the kind of kernel that reads them."""
        found = (ctypes.c_int64 * len(PHASES))()
        self._library.puna_model_weight_bytes(self._model, found)
        return dict(zip(PHASES, found, strict=True))

    @property
    def integer_weights(self) -> bool:
        """Whether the layers' matrices are integers with scales."""
        return bool(self._library.puna_model_integers(self._model))

    def profile(self) -> dict[str, float]:
        """Seconds spent in each kind of kernel since the last call."""
        seconds = (ctypes.c_double * len(PHASES))()
        self._library.puna_model_profile(self._model, seconds)
        return dict(zip(PHASES, seconds, strict=True))

    @contextmanager
    def observing(self) -> Iterator[Callable[[], dict[str, NDArray[np.float64]]]]:
        """While it lasts, forward passes note what each matrix reads; the function given tells what they noted so far.

        That is, under Hugging Face's name of each matrix, (inputs,): the squares of each input, summed over tokens.
        The head (`lm_head.weight`, also when tied) sees only tokens that want logits.
        """
        config = self.config
        width, heads = config.hidden_size, config.num_attention_heads * config.head_dim
        sizes = (width, heads, width, config.intermediate_size)
        squares = np.zeros(config.num_hidden_layers * sum(sizes) + width)
        readers = (_QKV, ("self_attn.o_proj",), ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))

        def noted() -> dict[str, NDArray[np.float64]]:
            found: dict[str, NDArray[np.float64]] = {}
            at = 0
            for layer in range(config.num_hidden_layers):
                for names, size in zip(readers, sizes, strict=True):
                    part = squares[at : at + size].copy()
                    found |= {f"model.layers.{layer}.{name}.weight": part for name in names}
                    at += size
            return found | {"lm_head.weight": squares[at:].copy()}

        self._library.puna_model_observe(self._model, squares.ctypes.data)
        try:
            yield noted
        finally:
            self._library.puna_model_observe(self._model, None)

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """Extends the caches by the batch's tokens; returns logits, (sum of `logits` over chunks, vocab_size).

        Ctrl-C ends it between two layers; the same batch can then be run again.

        Raises:
            RequestError: when a chunk starts beyond its cache, holds an impossible id, or finds no page free; no cache
                has then changed.
        """
        check_batch(batch, self.config.vocab_size, self._lengths)
        self._take_pages(batch)
        logits = np.empty((sum(chunk.logits for chunk in batch), self.config.vocab_size), np.float32)
        pieces = [piece for chunk in batch for piece in self._pieces(chunk)]
        step = _PIECES if self._rope.by_length else max(1, len(pieces))
        row = 0
        for first in range(0, len(pieces), step):
            some = pieces[first : first + step]
            self._run(some, logits[row:])
            row += sum(chunk.logits for chunk, _ in some)
        for chunk in batch:
            self._lengths[chunk.slot] = chunk.start + len(chunk.tokens)
        return logits

    def free(self, slot: int) -> None:
        """Forgets the cache of `slot`; a slot that has none is free already."""
        self._free_pages += self._pages.pop(slot, [])[::-1]
        self._lengths.pop(slot, None)

    def _pieces(self, chunk: Chunk) -> Iterator[tuple[Chunk, Frequencies]]:
        """The chunk, cut where its tokens' frequencies change."""
        end = len(chunk.tokens)
        for first, last, inv_freq in self._rope.runs(chunk.start, end):
            logits = max(0, min(last - first, last - (end - chunk.logits)))
            yield Chunk(chunk.slot, chunk.tokens[first:last], chunk.start + first, logits), inv_freq

    def _run(self, pieces: list[tuple[Chunk, Frequencies]], logits: NDArray[np.float32]) -> None:
        chunks = (NativeChunk * len(pieces))(*(self._native(chunk, inv_freq) for chunk, inv_freq in pieces))
        in_main = threading.current_thread() is threading.main_thread()
        status = STOPPED
        while status == STOPPED:  # an interrupt raises here, from its handler; one that does not raise changes nothing
            status = self._library.puna_forward(self._model, chunks, len(pieces), in_main, logits.ctypes.data)
        self._check(status)

    def _native(self, chunk: Chunk, inv_freq: Frequencies) -> NativeChunk:
        """The chunk as the library reads it: bytes, which ctypes keeps for as long as what points to them."""
        pages = self._pages[chunk.slot]
        return NativeChunk(
            array("q", chunk.tokens.tolist()).tobytes(),
            array("i", pages).tobytes(),
            len(chunk.tokens),
            len(pages),
            chunk.start,
            chunk.logits,
            inv_freq.tobytes(),
            self._rope.scale,
        )

    def _new_model(self, shape: Shape, threads: int) -> int:
        model = self._library.puna_model_new(ctypes.byref(shape), threads, chosen_kernels().encode())
        if not model:
            raise BackendError(f"the native runtime refuses the model: {self._error()}")
        return int(model)

    def _take_pages(self, batch: Batch) -> None:
        """Gives each slot the pages it needs now: all of them, or none where they are not enough."""
        needed = {
            chunk.slot: -(-(chunk.start + len(chunk.tokens)) // PAGE) - len(self._pages.get(chunk.slot, ()))
            for chunk in batch
        }
        total = sum(count for count in needed.values() if count > 0)
        if total > len(self._free_pages):
            raise RequestError(
                f"the batch needs {total * PAGE} more tokens of cache, and {len(self._free_pages) * PAGE} are free of "
                f"{self.cache_tokens}; end other requests, shorten this one, or take a smaller type of cache"
            )
        for slot, count in needed.items():
            pages = self._pages.setdefault(slot, [])
            pages += [self._free_pages.pop() for _ in range(count)]

    def _check(self, status: int) -> None:
        if status:
            raise BackendError(f"the native runtime failed: {self._error()}")

    def _error(self) -> str:
        message: bytes = self._library.puna_error()
        return message.decode()


def check_supported(config: LlamaConfig) -> None:
    """Raises BackendError naming what of the model the native runtime lacks."""
    if config.hidden_act not in ("silu", "swish"):
        raise BackendError(
            f"the native backend does not run hidden_act {config.hidden_act!r}, only 'silu'; use backend='torch'"
        )


def _cache_type(name: str | None, tensors: Mapping[str, Tensor]) -> int:
    if name is None and all(tensor.format.name == "f32" for tensor in tensors.values()):
        name = "f32"
    elif name is None:
        name = "bf16" if chosen_kernels() == "avx512_bf16" else "f16"
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
