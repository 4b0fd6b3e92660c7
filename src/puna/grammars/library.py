"""The objects of llguidance: tokenizers and matchers. Imports little, because `worker.py` starts quickly."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

_SPECIAL = b"\xff"
"""Precedes the names of special tokens in llguidance. The byte is never part of a text."""

_LIMITS = LLParserLimits(max_items_in_row=10_000, verbose_errors=False)
"""A large choice of objects exceeds the default of 2,000 items."""


def special_name(name: str) -> str:
    """Returns the name of a special token in grammars: its own if that is like <name>, else <|name|>."""
    return name if re.fullmatch(r"<[^<>\s\[\]]+>", name) else f"<|{name}|>"


def make_tokenizer(tokens: Iterable[bytes | str]) -> LLTokenizer:
    """Returns a tokenizer of tokens, with an end token after them. A `str` is the name of a special token."""
    return LLTokenizer(_Tokens(tokens))  # type: ignore[arg-type]


def byte_tokenizer(special: Iterable[str] = ()) -> LLTokenizer:
    """Returns a tokenizer whose tokens are the 256 bytes and special tokens."""
    return make_tokenizer([*(bytes((byte,)) for byte in range(256)), *special])


def make_matcher(
    rule: Mapping[str, Any], tokenizer: LLTokenizer, after_space: bool = False
) -> tuple[LLMatcher, str | None]:
    """Returns a matcher of a rule, and why it cannot be used; None if it can.

    A warning of llguidance is a reason too, because it reports a part of the rule that has no effect.

    Args:
        rule: a grammar in llguidance's format.
        after_space: whether a space precedes the text that follows the rule.
    """
    # Without no_forcing, only one sequence of tokens may spell a text if no other text is possible.
    start = '%llguidance {"no_forcing": true}\nstart: ' + ('" " @answer' if after_space else "@answer")
    grammars = [{"lark_grammar": start}, {**rule, "name": "answer"}]
    matcher = LLMatcher(tokenizer, json.dumps({"grammars": grammars}), limits=_LIMITS, log_level=0)
    if matcher.is_error():
        return matcher, error_text(matcher)
    return matcher, "; ".join(matcher.get_grammar_warnings()) or None


def error_text(matcher: LLMatcher) -> str:
    """Returns the error of a matcher without a backtrace."""
    return matcher.get_error().partition("<backtrace>")[0].replace("<non-verbose/>", "").strip()[:_MAX_ERROR]


_MAX_ERROR = 1000
"""Maximum length of an error, in characters: it may contain a part of the rule."""


class _Tokens:
    """The attributes from which `LLTokenizer` is made."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: Iterable[bytes | str]) -> None:
        all_tokens = [*tokens, "<|end of answer|>"]
        self.special_token_ids = [index for index, token in enumerate(all_tokens) if isinstance(token, str)]
        self.tokens = [_SPECIAL + token.encode() if isinstance(token, str) else token for token in all_tokens]
        self.eos_token_id = len(all_tokens) - 1

    def __call__(self, text: bytes) -> NoReturn:
        raise AssertionError("grammars need no encoded text")
