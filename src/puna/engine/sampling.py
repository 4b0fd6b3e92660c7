"""`Sampler`: the state of one request's token choice. `choose` chooses the tokens of several requests in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from puna.config import Sampling
from puna.native.sampling import Choice, SampleRow, choose_tokens


class Sampler:
    """The random generator, token counts and allowed tokens of one request.

    A choice changes nothing here: `commit` records its token. A step that is interrupted and repeated therefore uses
    the same random numbers.

    Args:
        sampling: the request's options.
        prompt_ids: ids that the repetition penalty counts.
        vocab_size: number of logits.
        end_ids: ids that end the answer, which `min_tokens` forbids at first.
        candidate: see `Request`. Number 0 draws the numbers of the seed itself, the others those of its descendants,
            which no other seed has.

    Attributes:
        grammar: a bit per token, lowest bit first, 1 if the grammar allows the token next; None without a grammar.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt_ids: Sequence[int],
        vocab_size: int,
        end_ids: Iterable[int] = (),
        candidate: int = 0,
    ) -> None:
        self.sampling = sampling
        self.grammar: NDArray[np.uint32] | None = None
        self.row = SampleRow(sampling)
        if sampling.counts_tokens:
            self.row.count(prompt_ids, generated=0)
        self._generated = 0
        descent = (candidate,) if candidate else ()
        self._generator = np.random.default_rng(np.random.SeedSequence(sampling.seed, spawn_key=descent))
        self._uniform: float | None = None  # the random number of the next choice
        every = np.ones(vocab_size, bool)
        allowed = sampling.allowed_token_ids
        self._allowed = None if allowed is None else _bits(~_without(every, allowed))
        self._before_end = _bits(_without(every, end_ids)) if sampling.min_tokens > 0 else None

    def prepare(self) -> SampleRow:
        """Returns the native arguments of the next choice."""
        if self._uniform is None:
            self._uniform = 0.0 if self.sampling.temperature == 0 else float(self._generator.random())
        masks = [mask for mask in (self._allowed, self.grammar) if mask is not None]
        if self._before_end is not None and self._generated < self.sampling.min_tokens:
            masks.append(self._before_end)
        self.row.prepare(self._uniform, np.bitwise_and.reduce(masks) if masks else None)
        return self.row

    def commit(self, token: int) -> None:
        """Records a chosen token. The next choice uses a new random number."""
        if self.sampling.counts_tokens:
            self.row.count((token,), generated=1)
        self._generated += 1
        self._uniform = None


def choose(samplers: Sequence[Sampler], logits: NDArray[np.float32], rows: Sequence[int]) -> list[Choice]:
    """Returns the choice of each sampler from its row of logits, which have shape (T, vocab_size)."""
    return choose_tokens(logits, [(row, sampler.prepare()) for sampler, row in zip(samplers, rows, strict=True)])


def _without(tokens: NDArray[np.bool_], ids: Iterable[int]) -> NDArray[np.bool_]:
    """Returns a copy that is False for `ids`."""
    copy: NDArray[np.bool_] = tokens.copy()
    copy[[token for token in ids if token < len(copy)]] = False
    return copy


def _bits(tokens: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Returns a bit per token, lowest bit first; the last word is filled with zeros."""
    padded = np.zeros(-(-len(tokens) // 32) * 32, bool)
    padded[: len(tokens)] = tokens
    return np.packbits(padded, bitorder="little").view("<u4").astype(np.uint32)
