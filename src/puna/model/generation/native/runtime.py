"""The forward passes of `generate()` on the native runtime.

Legend: R rows, T new tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puna.backend import PAGE, Chunk, page_count
from puna.config import LlamaConfig
from puna.config.frequencies import RotaryFrequencies
from puna.model.cache import KVCache
from puna.model.checks import check_ids
from puna.model.generation.native.pages import CachedRow, NativeCache, PagePool, SharedPages
from puna.model.generation.native.weights import ModuleWeight
from puna.model.outputs import CausalLMOutputWithPast
from puna.native import NativeBackend

MAX_TOKENS = 1024
"""Maximum tokens of one native call, which limits the memory for activations. It does not change any result."""

MAX_CACHED = 1 << 20
"""Limit of cached tokens; memory is only used for tokens that are cached."""


class NativeRuntime:
    """The packed weights of a module, and the cache that concurrent calls of `generate()` share.

    Args:
        config: the module's configuration.
        weights: the module's parameters.
        threads: number of threads.

    Raises:
        BackendError: if the native runtime does not support the model, or the packed weights do not fit in memory.
    """

    def __init__(self, config: LlamaConfig, weights: Mapping[str, ModuleWeight], threads: int) -> None:
        cache = "f16" if next(iter(weights.values())).format.name == "f16" else None
        slots = max(1, MAX_CACHED // PAGE // page_count(config.context_length))
        self._backend = NativeBackend(config, weights, threads, slots, cache=cache)
        self._lock = Lock()
        self.by_length = RotaryFrequencies(config).by_length
        """Whether rotary frequencies depend on the length, so that keys are cached unrotated."""
        self.pool = PagePool(self._backend.pages)

    def logits(self, chunks: list[Chunk]) -> NDArray[np.float32]:
        """Computes the logits of the chunks' last tokens, (sum of `rows`, V). Threads run one after another."""
        with self._lock:
            return np.concatenate([self._backend.forward(group).logits for group in _groups(chunks)])

    def copy_page(self, source: int, target: int) -> None:
        """Copies a page of the cache."""
        with self._lock:
            self._backend.write_pages((target,), self._backend.read_pages((source,)))

    def cached_tokens(self, sequence: CachedRow) -> tuple[Tensor, Tensor]:
        """Returns the keys and values of a sequence, each (layers, kv_heads, tokens, head_dim), float32."""
        with self._lock:
            keys, values = self._backend.cached_tokens(sequence.pages, sequence.length)
        return torch.from_numpy(keys), torch.from_numpy(values)


class NativeForward:
    """`Forward`, implemented by the native runtime, for one call of `generate()`.

    Padding is dropped: each row is a sequence of its own tokens, at positions 0, 1, .... Rows with equal prompts are
    computed once.

    Args:
        runtime: the packed weights.
        config: the module's configuration.
        dtype: the type of the module's keys and values.
        embeds: (R, T, D), the inputs of the first forward pass in place of its ids; None without embeddings.
    """

    def __init__(
        self, runtime: NativeRuntime, config: LlamaConfig, dtype: torch.dtype, embeds: Tensor | None = None
    ) -> None:
        self._runtime = runtime
        self._config = config
        self._dtype = dtype
        self._embeds = embeds
        self._shared = SharedPages(runtime.pool)

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        cache: NativeCache | None,
        keep: int = 1,
        *,
        attentions: bool = False,
        hidden_states: bool = False,
    ) -> CausalLMOutputWithPast:
        """Computes the logits of the last `keep` tokens, (R, keep, V); those of padding are 0. See `Forward`."""
        assert not attentions and not hidden_states, "choose_forward uses PyTorch if they are requested"
        if cache is None:
            cache = NativeCache(self._shared, (CachedRow(),) * len(mask), mask[:, :0])
        new = mask[:, cache.get_seq_length() :].bool()  # (R, T)
        kept = new[:, -keep:] if keep else new
        rows: list[int] = kept.sum(1).tolist()
        inputs = self._inputs(ids, new, first=not cache.get_seq_length())
        chosen, copies = (
            _distinct_inputs(inputs) if not cache.get_seq_length() else (range(len(inputs)), range(len(inputs)))
        )
        new_pages: list[int] = []
        try:
            chunks = []
            for row in chosen:
                tokens, embeddings = inputs[row]
                sequence = cache.sequences[row]
                pages = self._extend(sequence, len(tokens), new_pages)
                chunks.append(Chunk(pages, tokens, sequence.length, rows[row], embeddings=embeddings))
            logits = torch.from_numpy(self._runtime.logits(chunks))
            sequences = [CachedRow(chunk.pages, chunk.start + len(chunk.tokens)) for chunk in chunks]
            extended = NativeCache(self._shared, tuple(sequences[copy] for copy in copies), mask)
        finally:
            self._shared.drop(new_pages)  # the new cache counts as another user of these pages
        return CausalLMOutputWithPast(logits=_expand_to_rows(logits, chunks, copies, kept), past_key_values=extended)  # type: ignore[arg-type]

    def reorder(self, cache: NativeCache | None, rows: Tensor) -> NativeCache | None:
        """See `Forward`."""
        return None if cache is None else cache.reorder(rows)

    def crop(self, cache: NativeCache | None, length: int) -> NativeCache | None:
        """See `Forward`."""
        return None if cache is None else cache.crop(length)

    def past_key_values(self, cache: NativeCache | None) -> KVCache | None:
        """See `Forward`. The keys and values of padding are 0."""
        if cache is None:
            return None
        mask, config = cache.mask.bool(), self._config
        shape = (config.num_hidden_layers, len(mask), config.num_key_value_heads, mask.shape[1], config.head_dim)
        keys, values = (torch.zeros(shape, dtype=self._dtype) for _ in range(2))
        for row, sequence in enumerate(cache.sequences):
            for target, source in zip((keys, values), self._runtime.cached_tokens(sequence), strict=True):
                target[:, row][:, :, mask[row]] = source.to(self._dtype)
        positions = (mask.cumsum(1) - 1).clamp(min=0) if self._runtime.by_length else None
        return KVCache(zip(keys, values, strict=True), positions)

    def _inputs(self, ids: Tensor, new: Tensor, first: bool) -> list[_Input]:
        """Returns the tokens of each row without padding; `new` is the mask, (R, T), of the new columns."""
        if first and self._embeds is not None:
            rows = [row[keep].float().numpy() for row, keep in zip(self._embeds, new, strict=True)]
            return [(np.zeros(len(row), np.int64), row) for row in rows]
        ids = ids[:, ids.shape[1] - new.shape[1] :]  # (R, T)
        check_ids(ids, self._config.vocab_size)
        return [(row[keep].long().numpy(), None) for row, keep in zip(ids, new, strict=True)]

    def _extend(self, sequence: CachedRow, count: int, new_pages: list[int]) -> tuple[int, ...]:
        """Returns pages of the sequence with space for `count` more tokens, and adds new ones to `new_pages`.

        A page is full, or only one sequence writes to it: a page that is shared and not full is copied.
        """
        pages = list(sequence.pages)
        if sequence.length % PAGE and self._shared.is_shared(pages[-1]):
            new_pages.append(self._shared.new())
            self._runtime.copy_page(pages[-1], new_pages[-1])
            pages[-1] = new_pages[-1]
        for _ in range(page_count(sequence.length + count) - len(pages)):
            new_pages.append(self._shared.new())
            pages.append(new_pages[-1])
        return tuple(pages)


_Input = tuple[NDArray[np.int64], NDArray[np.float32] | None]
"""The new tokens of a row, (t,), and embeddings that replace them, (t, D)."""


def _distinct_inputs(inputs: list[_Input]) -> tuple[list[int], list[int]]:
    """Returns the first row of each distinct input, and for each row the index of its input in this list."""
    chosen: list[int] = []
    indices: dict[tuple[bytes, bytes], int] = {}
    copies = []
    for row, (tokens, embeddings) in enumerate(inputs):
        key = tokens.tobytes(), b"" if embeddings is None else embeddings.tobytes()
        if key not in indices:
            indices[key] = len(chosen)
            chosen.append(row)
        copies.append(indices[key])
    return chosen, copies


def _groups(chunks: list[Chunk]) -> Iterator[list[Chunk]]:
    """Splits the chunks into groups of at most MAX_TOKENS tokens."""
    group: list[Chunk] = []
    space = MAX_TOKENS
    for chunk in chunks:
        first = 0
        while first < len(chunk.tokens):
            end = min(len(chunk.tokens), first + space)
            group.append(chunk if end - first == len(chunk.tokens) else chunk.part(first, end))
            space -= end - first
            first = end
            if not space:
                yield group
                group, space = [], MAX_TOKENS
    if group:
        yield group


def _expand_to_rows(logits: Tensor, chunks: list[Chunk], copies: Sequence[int], kept: Tensor) -> Tensor:
    """Returns the logits of all rows, (R, keep, V), from the chunks' logits, (sum of `rows`, V); 0 where not `kept`."""
    if len(chunks) == len(kept) and bool(kept.all()):
        return logits.view(*kept.shape, -1)
    parts = torch.split(logits, [chunk.rows for chunk in chunks])
    result = logits.new_zeros(*kept.shape, logits.shape[-1])
    for row, copy in enumerate(copies):
        result[row, kept[row]] = parts[copy]
    return result
