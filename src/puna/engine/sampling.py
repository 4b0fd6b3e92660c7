"""`Sampler`: the state of one request's token choice. `choose` chooses the tokens of several requests in one call."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from puna.config import Sampling
from puna.engine.grammar import Grammar, GrammarState, token_bits
from puna.errors import RequestError
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
        grammar: the grammar of the answer.

    Attributes:
        takes_highest: whether every choice is the token of the highest logit, and nothing else is requested.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt_ids: Sequence[int],
        vocab_size: int,
        end_ids: Iterable[int] = (),
        candidate: int = 0,
        grammar: Grammar | None = None,
    ) -> None:
        self.sampling = sampling
        self.grammar = None if grammar is None else GrammarState(grammar, token_bits(vocab_size, end_ids))
        self.row = SampleRow(sampling)
        if sampling.counts_tokens:
            self.row.count(prompt_ids, generated=0)
        self._generated = 0
        descent = (candidate,) if candidate else ()
        self._generator = np.random.default_rng(np.random.SeedSequence(sampling.seed, spawn_key=descent))
        self._uniform: float | None = None  # the random number of the next choice
        allowed = sampling.allowed_token_ids
        self._allowed = None if allowed is None else token_bits(vocab_size, allowed)
        self._bad_words = BadWords(sampling.bad_words_ids, vocab_size) if sampling.bad_words_ids else None
        self._before_end = ~token_bits(vocab_size, end_ids) if sampling.min_tokens > 0 else None
        changes = sampling.counts_tokens or sampling.logit_bias or sampling.min_tokens > 0
        restricts = grammar is not None or allowed is not None or self._bad_words is not None
        self.takes_highest = sampling.temperature == 0 and sampling.logprobs is None and not changes and not restricts

    @property
    def complete(self) -> bool:
        """Whether the grammar requires the answer to end here."""
        return self.grammar is not None and self.grammar.complete and self._generated >= self.sampling.min_tokens

    def prepare(self) -> SampleRow:
        """Returns the native arguments of the next choice."""
        if self._uniform is None:
            self._uniform = 0.0 if self.sampling.temperature == 0 else float(self._generator.random())
        masks = [] if self._allowed is None else [self._allowed]
        if self.grammar is not None:
            masks.append(self.grammar.allowed)
        if self._before_end is not None and self._generated < self.sampling.min_tokens:
            masks.append(self._before_end)
        if self._bad_words is not None:
            masks.append(self._bad_words.allowed)
        self.row.prepare(self._uniform, np.bitwise_and.reduce(masks) if masks else None)
        return self.row

    def commit(self, token: int) -> None:
        """Records a chosen token. The next choice uses a new random number."""
        if self.sampling.counts_tokens:
            self.row.count((token,), generated=1)
        if self.grammar is not None:
            self.grammar.commit(token)
        if self._bad_words is not None:
            self._bad_words.commit(token)
        self._generated += 1
        self._uniform = None


class BadWords:
    """The sequences of ids that an answer must not contain, and its last tokens.

    As in vLLM, only tokens of the answer count: the tokens of the prompt may be the beginning of a sequence.

    Attributes:
        allowed: a bit per token, lowest bit first: 0 for tokens that would complete a sequence.
    """

    def __init__(self, sequences: Sequence[tuple[int, ...]], vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._always = ~token_bits(vocab_size, [tokens[0] for tokens in sequences if len(tokens) == 1])
        self._last: dict[tuple[int, ...], list[int]] = {}  # the last ids of sequences, by the ids before them
        for tokens in sequences:
            if len(tokens) > 1:
                self._last.setdefault(tokens[:-1], []).append(tokens[-1])
        self._lengths = sorted({len(begin) for begin in self._last})
        self._recent: deque[int] = deque(maxlen=max(map(len, sequences)) - 1)
        self.allowed = self._always

    def commit(self, token: int) -> None:
        """Records a chosen token."""
        self._recent.append(token)
        recent = tuple(self._recent)
        last = [token for length in self._lengths for token in self._last.get(recent[-length:], ())]
        self.allowed = self._always & ~token_bits(self._vocab_size, last) if last else self._always


def choose(
    samplers: Sequence[Sampler], logits: NDArray[np.float32], rows: Sequence[int], model: int | None = None
) -> list[Choice]:
    """Returns the choice of each sampler from its row of logits, which have shape (T, vocab_size).

    The masks of grammars must have been computed before: see `Masks`. `model`: see `choose_tokens`.
    """
    prepared = [(row, sampler.prepare()) for sampler, row in zip(samplers, rows, strict=True)]
    choices = choose_tokens(logits, prepared, model)
    return [_explained(sampler, choice) for sampler, choice in zip(samplers, choices, strict=True)]


def _explained(sampler: Sampler, choice: Choice) -> Choice:
    """Returns the choice; the error that no token is allowed names the part of the grammar in it."""
    grammar = sampler.grammar
    if grammar is None or not isinstance(choice.error, RequestError):
        return choice
    if grammar.error is not None:
        text = f"the answer cannot continue in its grammar: {grammar.error}"
    elif grammar.accepts:
        text = (
            f"the grammar requires the answer to end before it has min_tokens ({sampler.sampling.min_tokens}) tokens; "
            "lower min_tokens"
        )
    else:
        text = (
            "no token can continue the answer in its grammar; the tokens of allowed_token_ids may be too few, or the "
            "grammar contains a token that ends the answer"
        )
    return choice._replace(error=RequestError(text))
