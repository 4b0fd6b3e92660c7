"""Turns documents into token ids with a weight per token. Each text is tokenised once.

A token belongs to an answer if its last character does, so that a token with the end of a prompt and the beginning of
an answer is learned. Where tokens have no offsets (SentencePiece), an answer begins where the tokens of the text before
it differ from those of the complete text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from puna.errors import DataError
from puna.tokenizer import PreTrainedTokenizerBase
from puna.training.data.layouts.document import Document

Truncation = Literal["end", "start", "split", "error"]
"""The part of a document over the maximum length that is removed; "split" makes several examples of it."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of a document, or of a part of it.

    Attributes:
        ids: (n,) token ids.
        weights: (n,) weights of the loss of answers; 0 elsewhere.
        is_answer: (n,) whether a token belongs to an answer, whatever its weight.
        is_aligned: whether each answer begins with a token.
    """

    ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    is_answer: NDArray[np.bool_]
    is_aligned: bool = True

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, stop: int) -> Tokens:
        """Returns consecutive tokens; the first predicts nothing, so its weight is 0."""
        weights = self.weights[start:stop].copy()
        weights[:1] = 0
        return Tokens(self.ids[start:stop], weights, self.is_answer[start:stop], self.is_aligned)

    def loss_weights(self, prompt_weight: float) -> NDArray[np.float32]:
        """Returns the weights with those of prompts, (n,)."""
        weights = np.where(self.is_answer, self.weights, np.float32(prompt_weight))
        weights[:1] = 0
        return weights


def tokenize(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
    """Returns the tokens of documents, with BOS and EOS."""
    if tokenizer.is_fast:
        encoded = tokenizer(
            [document.text for document in documents], return_offsets_mapping=True, **_options(add_special_tokens=False)
        )
        ends = [np.array(offsets, np.int64).reshape(-1, 2)[:, 1] for offsets in encoded["offset_mapping"]]
        boundaries = [_by_offsets(document, end) for document, end in zip(documents, ends, strict=True)]
        ids = encoded["input_ids"]
    else:
        ids = [_encode(document.text, tokenizer) for document in documents]
        boundaries = [_by_prefixes(document, i, tokenizer) for document, i in zip(documents, ids, strict=True)]
    parts = zip(documents, ids, boundaries, strict=True)
    return [_with_ends(document, _weigh(document, i, found), tokenizer) for document, i, found in parts]


def fit(tokens: Tokens, document: Document, max_length: int, truncation: Truncation) -> list[Tokens]:
    """Returns a document with at most `max_length` tokens, or several; parts without tokens to learn are left out.

    Raises:
        DataError: no token is left to learn, or the document is too long and `truncation` is "error".
    """
    count = len(tokens)
    if count <= max_length:
        parts = [tokens.part(0, count)]
    elif truncation == "split" or document.is_continuous:
        parts = [tokens.part(start, start + max_length) for start in range(0, count, max_length)]
    elif truncation == "error":
        raise DataError(
            f"{document.source}: the document has {count} tokens; the limit is {max_length}. Raise max_length, shorten "
            'the row, or set truncate to "end" or "start"'
        )
    else:
        parts = [tokens.part(0, max_length) if truncation == "end" else tokens.part(count - max_length, count)]
    if kept := [part for part in parts if part.weights.any()]:
        return kept
    if not tokens.part(0, count).weights.any():
        if document.is_continuous:  # a part of a text that is one token
            return []
        raise DataError(f"{document.source}: no token of this row is learned; give it an answer of one token or more")
    raise DataError(
        f"{document.source}: no token is learned, because the answer is in the part of the {count} tokens that is "
        f'removed (max_length is {max_length}); raise max_length, set truncate to "start", or remove the row'
    )


def _options(add_special_tokens: bool) -> dict[str, Any]:
    return {
        "add_special_tokens": add_special_tokens, "split_special_tokens": False, "return_attention_mask": False,
        "verbose": False,
    }  # fmt: skip


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer(text, **_options(add_special_tokens=False))["input_ids"]
    return ids


def _by_offsets(document: Document, ends: NDArray[np.int64]) -> tuple[list[tuple[int, int]], bool]:
    """Returns the first token of each answer and the one after its last; and whether all answers begin with a token."""
    ranges = [
        (int(np.searchsorted(ends, span.start, "right")), int(np.searchsorted(ends, span.stop, "right")))
        for span in document.spans
    ]
    starts = zip(ranges, document.spans, strict=True)
    aligned = all(first == 0 or first == len(ends) or ends[first - 1] == span.start for (first, _), span in starts)
    return ranges, aligned


def _by_prefixes(
    document: Document, ids: list[int], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[tuple[int, int]], bool]:
    """Does the same as `_by_offsets` by tokenising the text before each position."""
    aligned = True

    def position(character: int) -> int:
        nonlocal aligned
        if character in (0, len(document.text)):
            return len(ids) * (character > 0)
        before = _encode(document.text[:character], tokenizer)
        pairs = enumerate(zip(before, ids, strict=False))
        shared = next((index for index, (a, b) in pairs if a != b), min(len(before), len(ids)))
        aligned = aligned and shared == len(before)
        return shared

    return [(position(span.start), position(span.stop)) for span in document.spans], aligned


def _weigh(document: Document, ids: list[int], found: tuple[list[tuple[int, int]], bool]) -> Tokens:
    ranges, aligned = found
    weights, is_answer = np.zeros(len(ids), np.float32), np.zeros(len(ids), bool)
    for (first, stop), span in zip(ranges, document.spans, strict=True):
        weights[first:stop], is_answer[first:stop] = span.weight, True
    return Tokens(np.array(ids, np.int32), weights, is_answer, aligned)


def _with_ends(document: Document, tokens: Tokens, tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """Adds BOS as the tokenizer does, and EOS once, which is learned."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    first = [bos] if document.begins and tokenizer.add_bos_token and bos is not None else []
    ends_already = len(tokens) > 0 and tokens.ids[-1] == eos
    last = [eos] if document.ends and eos is not None and not ends_already else []
    if not first and not last:
        return tokens
    weight = document.spans[-1].weight if document.spans else 0.0
    return Tokens(
        np.concatenate([first, tokens.ids, last]).astype(np.int32),
        np.concatenate([np.zeros(len(first)), tokens.weights, np.full(len(last), weight)]).astype(np.float32),
        np.concatenate([np.zeros(len(first), bool), tokens.is_answer, np.ones(len(last), bool)]),
        tokens.is_aligned,
    )
