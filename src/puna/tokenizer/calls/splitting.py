"""Splits a text at its added tokens, by the rules of transformers 4.34.1."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from puna.tokenizer.special import AddedToken


def split_pattern(words: Iterable[str]) -> re.Pattern[str] | None:
    """Returns a pattern that matches any of `words`, the longest first; None without words."""
    longest_first = sorted(set(words) - {""}, key=lambda word: (-len(word), word))
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None


def split_at_tokens(
    text: str, pattern: re.Pattern[str] | None, token_of: Callable[[str], AddedToken | None]
) -> list[tuple[str, bool]]:
    """Splits a text at the matches of `pattern`, by the rules of transformers 4.34.1.

    Args:
        token_of: returns the added token of a word, for its flags, or None.

    Returns:
        The non-empty parts in order, each with a flag: whether it is a token.
    """
    if pattern is None:
        return [(text, False)] if text else []
    pieces = pattern.split(text)  # text, token, text, token, ..., text
    parts = [(piece, index % 2 == 1) for index, piece in enumerate(pieces) if piece]
    for index, (piece, is_token) in enumerate(parts):
        token = token_of(piece) if is_token else None
        if token is not None:
            _apply_flags(parts, index, token)
    return [(piece, is_token) for piece, is_token in parts if piece]


def _apply_flags(parts: list[tuple[str, bool]], index: int, token: AddedToken) -> None:
    """Applies the flags of the token in part `index`: strips the parts next to the token, or joins it to one as text.

    As in transformers, a neighbouring token counts as a word, and becomes text if the token is joined to it.
    """
    left, left_is_token = parts[index - 1] if index > 0 else ("", False)
    right, right_is_token = parts[index + 1] if index + 1 < len(parts) else ("", False)
    if token.rstrip and right:
        parts[index + 1] = right.lstrip(), right_is_token
    if token.lstrip and left:
        parts[index - 1] = left.rstrip(), left_is_token
    if token.single_word and left and left[-1] != " ":
        parts[index - 1] = parts[index - 1][0] + token.content, False
        parts[index] = "", False
    elif token.single_word and right and right[0] != " ":
        parts[index + 1] = token.content + parts[index + 1][0], False
        parts[index] = "", False
