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
    found = pattern.split(text)  # text, token, text, token, ..., text
    for at in range(1, len(found), 2):
        token = token_of(found[at])
        if token is not None:
            _apply_flags(found, at, token)
    return [(piece, at % 2 == 1) for at, piece in enumerate(found) if piece]


def _apply_flags(found: list[str], at: int, token: AddedToken) -> None:
    """Lets the token at `at` strip its neighbours, or turn back into text, as its flags say."""
    if token.rstrip:
        found[at + 1] = found[at + 1].lstrip()
    if token.lstrip:
        found[at - 1] = found[at - 1].rstrip()
    if token.single_word and found[at - 1][-1:] not in ("", " "):
        found[at - 1] += found[at]
        found[at] = ""
    elif token.single_word and found[at + 1][:1] not in ("", " "):
        found[at + 1] = found[at] + found[at + 1]
        found[at] = ""
