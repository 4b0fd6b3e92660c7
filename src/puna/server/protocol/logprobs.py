"""Log-probabilities of tokens as JSON, in the form of OpenAI's API."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from puna.engine import TokenLogprobs

if TYPE_CHECKING:
    from puna.tokenizer import LlamaTokenizer, LlamaTokenizerFast


def entries_of(tokens: Sequence[TokenLogprobs], tokenizer: LlamaTokenizer | LlamaTokenizerFast) -> list[dict[str, Any]]:
    """Returns an entry for each token: its text, its bytes, its log-probability, and the most likely tokens."""
    return [
        {
            **_entry(token.token, token.logprob, tokenizer),
            "top_logprobs": [_entry(identifier, logprob, tokenizer) for identifier, logprob in token.top],
        }
        for token in tokens
    ]


def _entry(identifier: int, logprob: float, tokenizer: LlamaTokenizer | LlamaTokenizerFast) -> dict[str, Any]:
    data = _bytes_by_id(tokenizer)[identifier]
    if data is None:
        data = str(tokenizer.convert_ids_to_tokens(identifier) or "").encode()
    return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}


@functools.lru_cache(maxsize=4)
def _bytes_by_id(tokenizer: LlamaTokenizer | LlamaTokenizerFast) -> list[bytes | None]:
    from puna.grammars.token_bytes import token_bytes

    return token_bytes(tokenizer)
