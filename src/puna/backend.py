"""The interface between the engine and an execution backend: `Batch` in, float32 logits and hidden states out.

A backend owns the weights and the memory of the key-value cache, which is divided into pages of 64 tokens. The engine
chooses the pages of each sequence, so a backend knows nothing about sequences.

Legend: t tokens of a chunk, D hidden_size, L layers, K kv heads, E head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from puna.config import LlamaConfig
from puna.errors import RequestError

PAGE = 64
"""Number of tokens in a page of the cache."""

_LOSS_ROWS = 16
"""Number of logit rows converted to float64 at a time. It limits memory, since a row is as long as the vocabulary."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of one sequence: part of a prompt, or a generated token and guesses of the tokens after it.

    Attributes:
        pages: numbers of the pages of the sequence, in order; page i holds the positions from i * PAGE on. They must
            hold the keys and values of all positions before `start`, and have space for the chunk's tokens.
        tokens: ids, int64, shape (t,), t >= 1.
        start: position of the first token. The pages may hold later positions from an interrupted step or from wrong
            guesses: the chunk replaces them.
        rows: number of final tokens whose output is returned, 0 to t.
        output: the output of these tokens: the logits, the hidden states after the final norm, or "token", the id of
            the highest logit (see `Backend.chooses_tokens`).
        embeddings: inputs of the first layer, (t, D), instead of the embeddings of `tokens`; the ids in `tokens` then
            only need to be in the vocabulary.
        adapter: a number returned by `Backend.load_adapter`; 0 means no adapter.
    """

    pages: tuple[int, ...]
    tokens: NDArray[np.int64]
    start: int
    rows: int = 1
    output: Literal["logits", "hidden", "token"] = "logits"
    embeddings: NDArray[np.float32] | None = None
    adapter: int = 0

    def part(self, first: int, end: int) -> Chunk:
        """Returns the chunk of the tokens from `first` to `end`; its outputs are those of the same tokens."""
        return replace(
            self,
            tokens=self.tokens[first:end],
            start=self.start + first,
            rows=max(0, min(end - first, end - (len(self.tokens) - self.rows))),
            embeddings=None if self.embeddings is None else self.embeddings[first:end],
        )


Batch = Sequence[Chunk]
"""A ragged batch: chunks of any lengths. No two chunks may write to the same page."""


@dataclass(frozen=True)
class Outputs:
    """Results of a batch: rows in the order of the chunks, and of the tokens in each chunk.

    Attributes:
        logits: (rows of chunks whose output is "logits", vocab_size).
        hidden: (rows of chunks whose output is "hidden", D).
        tokens: (rows of chunks whose output is "token"): the id of the highest logit, the lowest of equal ones; -1 if
            the logits of the row are not finite.
    """

    logits: NDArray[np.float32]
    hidden: NDArray[np.float32]
    tokens: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass(frozen=True)
class LowRank:
    """An adapter's change of one matrix product: y = row_scale * (W x + b a x) + the model's bias + bias.

    Attributes:
        a: (rank, inputs); the rank may be 0.
        b: (outputs, rank), multiplied by the adapter's scale.
        bias: (outputs,), or None.
        row_scale: (outputs,), for DoRA and IA3; None means 1.
    """

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    bias: NDArray[np.float32] | None = None
    row_scale: NDArray[np.float32] | None = None


class Backend(Protocol):
    """Runs the forward pass of a batch."""

    name: str
    config: LlamaConfig

    @property
    def numerics(self) -> str:
        """All that determines the contents of pages except the weights, the configuration and the tokens."""
        ...

    pages: int
    """Number of pages of the cache; they are numbered from 0. Memory is allocated when a page is first used."""

    @property
    def page_bytes(self) -> int:
        """Bytes of a page: the keys and values of PAGE tokens in all layers."""
        ...

    @property
    def native_model(self) -> int | None:
        """The native model whose threads may choose tokens between two passes; None if there is none."""
        ...

    @property
    def chooses_tokens(self) -> bool:
        """Whether chunks may have the output "token", which transfers less from a GPU than logits."""
        ...

    def compile(self, most: int, report: Callable[[Sequence[int]], None]) -> None:
        """Compiles before the first step what the first steps of up to `most` sequences would otherwise compile.

        Args:
            report: called before anything is compiled, with the numbers of sequences for which code is compiled.
        """
        ...

    def forward(self, batch: Batch) -> Outputs:
        """Writes the batch's keys and values; returns the outputs that its chunks request."""
        ...

    def load_adapter(
        self, products: Mapping[str, LowRank], replaced: Mapping[str, NDArray[np.float32]] | None = None
    ) -> int:
        """Loads the changes of an adapter, by Hugging Face's names of the tensors; returns a number above 0.

        Args:
            products: changes of matrix products.
            replaced: complete matrices and norms. `products` of a replaced matrix have only a bias.

        Raises:
            BackendError: if the backend cannot apply one of them.
        """
        ...

    def drop_adapter(self, number: int) -> None:
        """Frees an adapter."""
        ...

    def read_pages(self, pages: Sequence[int]) -> NDArray[np.uint8]:
        """Returns the contents of pages, (n, page_bytes). Their layout depends on the backend and the cache's type."""
        ...

    def write_pages(self, pages: Sequence[int], data: NDArray[np.uint8]) -> None:
        """Restores pages that `read_pages` has returned; `data` is (n, page_bytes)."""
        ...

    def fill_pages(self, pages: Sequence[int], keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Stores the keys and values of the first T tokens of a sequence with these pages.

        Args:
            keys: (L, K, T, E), with the rotation of their positions.
            values: (L, K, T, E).

        Raises:
            BackendError: if the cache holds keys without rotation, as for rope types that depend on the length.
        """
        ...

    def close(self) -> None:
        """Frees the weights and the cache; `forward` is then an error. A second call does nothing."""
        ...


def page_count(tokens: int) -> int:
    """Returns the number of pages that `tokens` tokens need."""
    return -(-tokens // PAGE)


def consecutive_pages(tokens: int, sequence: int = 0) -> tuple[int, ...]:
    """Returns pages for `tokens` tokens; sequences 0, 1, ... of equal length get different pages."""
    count = page_count(tokens)
    return tuple(range(sequence * count, (sequence + 1) * count))


def check_batch(batch: Batch, config: LlamaConfig, pages: int, adapters: Container[int] = ()) -> None:
    """Checks a batch before it runs, on a cache of `pages` pages and with these numbers of loaded adapters.

    Raises:
        RequestError: if a chunk has an id outside the vocabulary, embeddings of a wrong shape, too few pages or an
            unknown adapter, a page does not exist, or two chunks write to the same page.
    """
    writers: dict[int, int] = {}
    for index, chunk in enumerate(batch):
        _check_chunk(index, chunk, config, pages)
        if chunk.adapter != 0 and chunk.adapter not in adapters:
            raise RequestError(f"chunk {index}: there is no adapter {chunk.adapter}; load it with load_adapter")
        for page in chunk.pages[chunk.start // PAGE : page_count(chunk.start + len(chunk.tokens))]:
            if writers.setdefault(page, index) != index:
                raise RequestError(f"chunks {writers[page]} and {index} write to page {page}; a page has one writer")


def _check_chunk(index: int, chunk: Chunk, config: LlamaConfig, pages: int) -> None:
    tokens, start, end = chunk.tokens, chunk.start, chunk.start + len(chunk.tokens)
    if tokens.ndim != 1 or not len(tokens):
        raise RequestError(f"chunk {index}: tokens have shape {tokens.shape}; it must be (t,) with t >= 1")
    ids = tokens.tolist()  # faster than NumPy's min and max for one token, as in most steps
    lowest, highest = min(ids), max(ids)
    if lowest < 0 or highest >= config.vocab_size:
        token = lowest if lowest < 0 else highest
        raise RequestError(f"chunk {index}: token id {token} is outside the vocabulary, 0 to {config.vocab_size - 1}")
    if start < 0 or end > len(chunk.pages) * PAGE:
        raise RequestError(
            f"chunk {index}: positions {start} to {end - 1} are outside its {len(chunk.pages)} pages of {PAGE} tokens"
        )
    if not 0 <= min(chunk.pages) <= max(chunk.pages) < pages:
        raise RequestError(f"chunk {index}: pages are {chunk.pages}; the cache has pages 0 to {pages - 1}")
    if not 0 <= chunk.rows <= len(tokens):
        raise RequestError(f"chunk {index}: rows is {chunk.rows}; it must be 0 to {len(tokens)}")
    embeddings, shape = chunk.embeddings, (len(tokens), config.hidden_size)
    if embeddings is not None and (embeddings.shape != shape or embeddings.dtype != np.float32):
        raise RequestError(
            f"chunk {index}: embeddings are {embeddings.dtype} of shape {embeddings.shape}; they must be float32 of "
            f"shape {shape}"
        )


def split_outputs(batch: Batch, rows: Sequence[NDArray[Any]], config: LlamaConfig) -> Outputs:
    """Returns the outputs of a batch from the rows of each of its chunks."""
    parts: dict[str, list[NDArray[Any]]] = {
        "logits": [np.empty((0, config.vocab_size), np.float32)],
        "hidden": [np.empty((0, config.hidden_size), np.float32)],
        "token": [np.empty(0, np.int64)],
    }
    for chunk, part in zip(batch, rows, strict=True):
        parts[chunk.output].append(part)
    return Outputs(*map(np.concatenate, parts.values()))


def token_losses(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> tuple[NDArray[np.float64], bool]:
    """Returns -log softmax(logits)[target] for each row, in float64, and whether no target has a more likely token."""
    result, greedy = np.empty(len(targets)), True
    for start in range(0, len(targets), _LOSS_ROWS):
        rows = logits[start : start + _LOSS_ROWS].astype(np.float64)
        rows -= rows.max(axis=-1, keepdims=True)
        target_logits = rows[np.arange(len(rows)), targets[start : start + _LOSS_ROWS]]
        greedy = greedy and not target_logits.any()
        result[start : start + _LOSS_ROWS] = np.log(np.exp(rows, out=rows).sum(axis=-1)) - target_logits
    return result, greedy
