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
    parts = [piece for piece in pattern.split(text) if piece]
    for index, piece in enumerate(parts):
        token = token_of(piece) if pattern.fullmatch(piece) else None
        if token is not None:
            _apply_flags(parts, index, token)
    return [(piece, pattern.fullmatch(piece) is not None) for piece in parts if piece]


def _apply_flags(parts: list[str], index: int, token: AddedToken) -> None:
    """Applies the flags of the token in part `index`: strips the parts next to the token, or joins it to one of them.

    As in transformers, a neighbouring token counts as a word, and becomes text if the token is joined to it. A token
    that is joined to a part of which nothing is left remains a token.
    """
    left = parts[index - 1] if index > 0 else ""
    right = parts[index + 1] if index + 1 < len(parts) else ""
    if token.rstrip and right:
        parts[index + 1] = right.lstrip()
    if token.lstrip and left:
        parts[index - 1] = left.rstrip()
    if token.single_word and left and left[-1] != " ":
        parts[index - 1] += token.content
        parts[index] = ""
    elif token.single_word and right and right[0] != " ":
        parts[index + 1] = token.content + parts[index + 1]
        parts[index] = ""
