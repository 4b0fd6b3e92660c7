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
    data = _token_bytes(identifier, tokenizer)
    return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}


def token_text(identifier: int, tokenizer: LlamaTokenizer | LlamaTokenizerFast) -> str:
    """Returns the text of a token; U+FFFD represents bytes of an incomplete character."""
    return _token_bytes(identifier, tokenizer).decode(errors="replace")


def _token_bytes(identifier: int, tokenizer: LlamaTokenizer | LlamaTokenizerFast) -> bytes:
    """Returns the bytes that a token adds to a text; for a special token, the bytes of its name."""
    table = _bytes_by_id(tokenizer)
    data = table[identifier] if identifier < len(table) else None  # a model may have more ids than its tokenizer
    if data is None and identifier < len(tokenizer):
        data = str(tokenizer.convert_ids_to_tokens(identifier) or "").encode()
    return data or b""


@functools.lru_cache(maxsize=4)
def _bytes_by_id(tokenizer: LlamaTokenizer | LlamaTokenizerFast) -> list[bytes | None]:
    from puna.grammars.token_bytes import token_bytes

    return token_bytes(tokenizer)
