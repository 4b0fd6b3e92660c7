"""Cutting added tokens out of a text before SentencePiece sees it, by the rules of transformers 4.34.1."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from puna.tokenizer.added_token import AddedToken


def matcher(words: Iterable[str]) -> re.Pattern[str] | None:
    """Finds the first of `words` in a text, the longest where several begin there; None without any word."""
    longest_first = sorted(set(words) - {""}, key=lambda word: (-len(word), word))
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None


def cut(
    text: str, pattern: re.Pattern[str] | None, token_of: Callable[[str], AddedToken | None]
) -> list[tuple[str, bool]]:
    """The pieces of a text in order, none empty, each with whether it is a token.

    Args:
        token_of: the added token of a word, for its flags; None where the word has none.
    """
    if pattern is None:
        return [(text, False)] if text else []
    split = pattern.split(text)  # text, token, text, token, ..., text
    found = [(piece, at % 2 == 1) for at, piece in enumerate(split) if piece]
    for at, (piece, is_token) in enumerate(found):
        token = token_of(piece) if is_token else None
        if token is not None:
            _apply_flags(found, at, token)
    return [(piece, is_token) for piece, is_token in found if piece]


def _apply_flags(found: list[tuple[str, bool]], at: int, token: AddedToken) -> None:
    """Lets the token at `at` strip its neighbours, or join one as text, as its flags say.

    As in transformers, a neighbouring token counts as a word, and becomes text with it.
    """
    left, left_is_token = found[at - 1] if at > 0 else ("", False)
    right, right_is_token = found[at + 1] if at + 1 < len(found) else ("", False)
    if token.rstrip and right:
        found[at + 1] = right.lstrip(), right_is_token
    if token.lstrip and left:
        found[at - 1] = left.rstrip(), left_is_token
    if token.single_word and left and left[-1] != " ":
        found[at - 1] = found[at - 1][0] + token.content, False
        found[at] = "", False
    elif token.single_word and right and right[0] != " ":
        found[at + 1] = token.content + found[at + 1][0], False
        found[at] = "", False
