"""`NativeBackend`: the forward pass of a batch in one native call, without PyTorch.

Weights are float32 so far, whatever the file stores. A request's logits have the same bits whatever else is in the
batch, however its prompt was cut, on any number of threads, in any pages of the cache.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from puna.backend import Batch, Chunk, check_batch
from puna.config import LlamaConfig
from puna.errors import BackendError, RequestError
from puna.native.library import NativeChunk, Shape, chosen_kernels, load_library, machine
from puna.native.rope import fixed_frequencies

PAGE = 64
"""PUNA_PAGE in csrc/include/puna.h: tokens in a page of the cache."""

_WHOLE = {"model.embed_tokens.weight": 0, "model.norm.weight": 1, "lm_head.weight": 2}
_IN_LAYER = {
    "input_layernorm.weight": 3,
    "post_attention_layernorm.weight": 4,
    "self_attn.q_proj.weight": 5,
    "self_attn.k_proj.weight": 6,
    "self_attn.v_proj.weight": 7,
    "self_attn.o_proj.weight": 8,
    "mlp.gate_proj.weight": 9,
    "mlp.up_proj.weight": 10,
    "mlp.down_proj.weight": 11,
    "self_attn.q_proj.bias": 12,
    "self_attn.k_proj.bias": 13,
    "self_attn.v_proj.bias": 14,
    "self_attn.o_proj.bias": 15,
    "mlp.gate_proj.bias": 16,
    "mlp.up_proj.bias": 17,
    "mlp.down_proj.bias": 18,
}
"""The library's number of each kind of tensor, by its name in Hugging Face's layout."""


class Tensor(Protocol):
    """What the backend asks of a weight."""

    def to_float32(self) -> NDArray[np.float32]:
        """The values."""
        ...


class NativeBackend:
    """Implements `puna.backend.Backend` in C++.

    Args:
        config: of the model.
        tensors: its weights under Hugging Face's names; read one at a time.
        threads: None means one per physical core.
        slots: sequences whose caches fit at once.

    Raises:
        BackendError: when the model needs something the native runtime lacks, or memory is short.
    """

    name = "native"

    def __init__(
        self, config: LlamaConfig, tensors: Mapping[str, Tensor], threads: int | None = None, slots: int = 1
    ) -> None:
        check_supported(config)
        self.config = config
        self._library = load_library()
        self._free_pages = list(range(slots * -(-config.context_length // PAGE)))[::-1]
        self._pages: dict[int, list[int]] = {}
        self._lengths: dict[int, int] = {}
        self._model = self._new_model(threads or machine().physical_cores)
        for name, tensor in tensors.items():
            self._load(name, np.ascontiguousarray(tensor.to_float32()))
        self._check(self._library.puna_model_ready(self._model, len(self._free_pages)))

    def __del__(self) -> None:
        if self.__dict__.get("_model"):
            self._library.puna_model_free(self._model)

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """Extends the caches by the batch's tokens; returns logits, (sum of `logits` over chunks, vocab_size).

        Raises:
            RequestError: when a chunk starts beyond its cache or holds an impossible id; no cache has then changed.
        """
        check_batch(batch, self.config.vocab_size, self._lengths)
        kept = [(np.ascontiguousarray(chunk.tokens, np.int64), self._pages_for(chunk)) for chunk in batch]
        chunks = (NativeChunk * len(batch))(
            *(
                NativeChunk(tokens.ctypes.data, pages.ctypes.data, len(tokens), len(pages), chunk.start, chunk.logits)
                for chunk, (tokens, pages) in zip(batch, kept, strict=True)
            )
        )
        logits = np.empty((sum(chunk.logits for chunk in batch), self.config.vocab_size), np.float32)
        self._check(self._library.puna_forward(self._model, chunks, len(batch), logits.ctypes.data))
        for chunk in batch:
            self._lengths[chunk.slot] = chunk.start + len(chunk.tokens)
        return logits

    def free(self, slot: int) -> None:
        """Forgets the cache of `slot`; a slot that has none is free already."""
        self._free_pages += self._pages.pop(slot, [])[::-1]
        self._lengths.pop(slot, None)

    def _new_model(self, threads: int) -> int:
        config = self.config
        inv_freq, scale = fixed_frequencies(config)
        shape = Shape(
            config.vocab_size,
            config.hidden_size,
            config.intermediate_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.rms_norm_eps,
            scale,
        )
        numbers = np.ascontiguousarray(inv_freq)
        kernels = chosen_kernels().encode()
        model = self._library.puna_model_new(ctypes.byref(shape), numbers.ctypes.data, threads, kernels)
        if not model:
            raise BackendError(f"the native runtime refuses the model: {self._error()}")
        return int(model)

    def _load(self, name: str, values: NDArray[np.float32]) -> None:
        layer, kind = -1, _WHOLE.get(name)
        if kind is None:
            number, _, rest = name.removeprefix("model.layers.").partition(".")
            layer, kind = int(number), _IN_LAYER[rest]
        rows, columns = values.shape if values.ndim == 2 else (1, values.shape[0])
        status = self._library.puna_model_load(self._model, kind, layer, values.ctypes.data, rows, columns)
        if status:
            raise BackendError(f"the native runtime refuses {name} of shape {values.shape}: {self._error()}")

    def _pages_for(self, chunk: Chunk) -> NDArray[np.int32]:
        """The slot's pages, with new ones where the chunk goes beyond them."""
        pages = self._pages.setdefault(chunk.slot, [])
        needed = -(-(chunk.start + len(chunk.tokens)) // PAGE)
        while len(pages) < needed:
            if not self._free_pages:
                raise RequestError(f"slot {chunk.slot}: no page of the cache is free for {len(chunk.tokens)} tokens")
            pages.append(self._free_pages.pop())
        return np.array(pages, np.int32)

    def _check(self, status: int) -> None:
        if status:
            raise BackendError(f"the native runtime failed: {self._error()}")

    def _error(self) -> str:
        message: bytes = self._library.puna_error()
        return message.decode()


def check_supported(config: LlamaConfig) -> None:
    """Raises BackendError naming the first thing of the model that the native runtime lacks."""
    for reason in _lacks(config):
        raise BackendError(f"the native backend does not run {reason} yet; use backend='torch'")


def _lacks(config: LlamaConfig) -> Iterator[str]:
    if config.hidden_act not in ("silu", "swish"):
        yield f"hidden_act {config.hidden_act!r}"
    if config.rope_parameters["rope_type"] in ("dynamic", "longrope"):
        yield f"rope type {config.rope_parameters['rope_type']!r}"
