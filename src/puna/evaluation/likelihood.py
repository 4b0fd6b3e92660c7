"""Log-likelihoods of continuations and of texts, with the tokens and windows of lm-eval's `TemplateLM`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from puna.errors import RequestError
from puna.llm import LLM

Pair = tuple[Sequence[int], Sequence[int]]
"""(ids of a context, ids of its continuation)."""

Progress = Callable[[int], None]
"""Called with the number of items that have been computed since the last call."""

_GROUP = 64
"""Number of sequences that are submitted together: more would only take memory."""


class Likelihood(NamedTuple):
    """The log-likelihood in nats of a continuation, and whether all of its tokens are the most likely ones."""

    value: float
    greedy: bool


def score_pairs(
    llm: LLM, pairs: Iterable[Pair], adapter: str | None = None, progress: Progress | None = None
) -> list[Likelihood]:
    """Returns the log-likelihood of each continuation; one without tokens has 0.

    The values are the sums of the log-probabilities that a server returns, in the order in which lm-eval adds them.
    Of a context that exceeds the model's context together with its continuation, the first tokens are left out.

    Raises:
        RequestError: a continuation alone exceeds the model's context.
    """
    likelihoods: list[Likelihood] = []
    remaining = iter(pairs)
    limit = llm.longest_text(adapter)
    while group := list(islice(remaining, _GROUP)):
        results = [
            llm._continuation_losses(context[max(0, len(context) + len(ids) - limit) :], [ids], adapter, False)[0]
            if ids
            else None
            for context, ids in group
        ]
        llm._runner.submit([result for result in results if result is not None]).wait()
        likelihoods += [
            Likelihood(0.0, True) if result is None else Likelihood(-sum(result.values.tolist()), result.greedy)
            for result in results
        ]
        if progress is not None:
            progress(len(group))
    return likelihoods


def prefix_token(llm: LLM) -> int:
    """Returns the token that precedes a text without a context: BOS, else EOS.

    Raises:
        RequestError: the tokenizer has neither.
    """
    token = llm.tokenizer.bos_token_id
    token = llm.tokenizer.eos_token_id if token is None else token
    if token is None:
        raise RequestError("the tokenizer has neither a BOS nor an EOS token, one of which must precede a text")
    return int(token)


def encode_pair(llm: LLM, context: str, continuation: str) -> Pair:
    """Returns the ids of a context and of its continuation, which are encoded together.

    Spaces at the end of the context belong to the continuation. An empty context is the prefix token.
    """
    if not context:
        ids = llm.tokenizer.encode(continuation, add_special_tokens=False)
        prefix = prefix_token(llm)
        return ([prefix], ids) if ids[:1] != [prefix] else (ids[:1], ids[1:])
    whole, first = encode(llm, context + continuation), encode(llm, context.rstrip())
    return first or [prefix_token(llm)], whole[len(first) :]


def encode(llm: LLM, text: str) -> list[int]:
    """Returns the ids of a text, with the tokenizer's special tokens unless it begins with BOS already."""
    bos = llm.tokenizer.bos_token
    return list(llm.tokenizer.encode(text, add_special_tokens=not (bos and text.startswith(bos))))


def rolling_windows(ids: Sequence[int], prefix: int, limit: int) -> Iterator[Pair]:
    """Yields windows of at most `limit` tokens in which each token of a text is predicted once.

    The first window begins with the prefix token. Later ones are full, so that the last one repeats tokens as context.
    """
    size = limit - 1
    for start in range(0, len(ids), size):
        end = min(start + size, len(ids))
        context = ids[max(0, end - limit) : start] if start else [prefix]
        yield context, ids[start:end]
