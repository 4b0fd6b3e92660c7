"""`StopSearch`: finds the strings that end an answer, some of which contain special tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from puna.errors import RequestError, show
from puna.tokenizer.streams import overlap

if TYPE_CHECKING:
    from puna.tokenizer import LlamaTokenizer, LlamaTokenizerFast


def check_stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns the strings of the option `stop`: a string, several strings, or None.

    Raises:
        RequestError: a value is not a string, is empty, or is not valid Unicode.
    """
    values = () if stop is None else (stop,) if isinstance(stop, str) else stop
    stops = tuple(values) if isinstance(values, Iterable) and not isinstance(values, Mapping) else (None,)
    if not all(isinstance(text, str) and text and not any(map(_is_surrogate, text)) for text in stops):
        raise RequestError(
            f"stop is {show(stop)}; it must be None, a string or several strings, each at least one valid character"
        )
    return cast(tuple[str, ...], stops)


class StopSearch:
    """Searches the text of one answer for stop strings while the text arrives.

    Decoded text does not show special tokens. A string that contains special tokens is therefore also searched for in a
    text that shows each of them as a mark: a lone surrogate, which no text contains.

    Args:
        stops: the strings.
        tokenizer: knows the special tokens.
        included: whether the stop string is part of the answer.
        shown: whether the text shows special tokens.

    Attributes:
        stop: the string that ended the answer.
        marked: the strings that contain special tokens, with marks instead of these; (string, its marked form).
    """

    def __init__(
        self,
        stops: tuple[str, ...],
        tokenizer: LlamaTokenizer | LlamaTokenizerFast,
        *,
        included: bool = False,
        shown: bool = False,
    ) -> None:
        special = tokenizer.skipped_tokens() if stops and not shown else {}
        contents = sorted(set(special.values()) - {""}, key=len, reverse=True)
        marks: dict[str, str] = {}

        def mark(match: re.Match[str]) -> str:
            return marks.setdefault(match[0], chr(_FIRST_MARK + len(marks)))

        pattern = re.compile("|".join(map(re.escape, contents)) or "(?!)")
        self._plain = stops
        self.marked = tuple((stop, text) for stop in stops if (text := pattern.sub(mark, stop)) != stop)
        self._longest = max((len(text) for _, text in self.marked), default=1)
        self._mark_of = {i: marks.get(text, _OTHER_MARK) for i, text in special.items()} if self.marked else {}
        self._included = included
        self._characters = frozenset("".join(stops))
        self.stop: str | None = None
        self._pending = ""  # text that may be the beginning of a stop string
        self._ignored = 0  # number of its characters in which no stop string may end
        self._marks: list[tuple[int, str, bool]] = []  # of special tokens: (position in _pending, mark, ignored)

    def is_marked(self, index: int | None) -> bool:
        """Returns whether a token is a special token that stop strings may contain; False for None."""
        return index in self._mark_of

    def push(self, text: str, index: int | None, held: str, ended: bool, ignored: bool = False) -> str:
        """Adds text; returns the text before a stop string, or before the possible beginning of one.

        Args:
            text: decoded text.
            index: the token after it, if it is a special token.
            held: text that follows if the answer ends here. It is searched after a special token, since no later token
                can change a stop string that ends with the special token.
            ended: whether the answer has ended for another reason.
            ignored: whether a stop string that ends in this text, or with this token, does not end the answer.
        """
        self._pending += text
        if not self._plain:
            text, self._pending = self._pending + held, ""
            return text
        position = len(self._pending)
        if index is not None and index in self._mark_of:
            position += len(held)
            self._marks.append((position, self._mark_of[index], ignored))
        if ignored:
            self._ignored = position
        text = self._pending + held
        if not self._marks and text and text[-1] not in self._characters and not any(s in text for s in self._plain):
            self._pending = ""  # the text neither contains a stop string nor ends with the beginning of one
            self._ignored = 0
            return text
        end = self._end_of_match(text)
        if end is None:
            end = len(text) if ended else len(self._pending) - self._held()
        self._drop(end)
        return text[:end]

    def _end_of_match(self, text: str) -> int | None:
        """Returns where the first stop string ends the answer's text, and sets `stop`; None if there is none."""
        marked = self._shown(text)
        matches = [
            (start, start + len(stop), stop)
            for stop in self._plain
            if (start := text.find(stop, max(0, self._ignored + 1 - len(stop)))) >= 0
        ]
        ignored = self._ignored + sum(ignored for *_, ignored in self._marks)
        for stop, form in self.marked:
            if (start := marked.find(form, max(0, ignored + 1 - len(form)))) >= 0:
                matches.append((_visible(marked[:start]), _visible(marked[: start + len(form)]), stop))
        if not matches:
            return None
        start, end, self.stop = min(matches, key=lambda match: match[0])  # of several at one position, the first one
        return end if self._included else start

    def _held(self) -> int:
        """Returns the number of pending characters that may be the beginning of a stop string."""
        marked = self._shown(self._pending)
        lengths = [overlap(self._pending, stop) for stop in self._plain]
        lengths += [_visible(marked[len(marked) - overlap(marked, form) :]) for _, form in self.marked]
        return max(lengths, default=0)

    def _drop(self, end: int) -> None:
        """Removes pending text before a position."""
        self._pending = self._pending[end:]
        self._ignored = max(0, self._ignored - end)
        marks = [(i - end, mark, ignored) for i, mark, ignored in self._marks if i >= end]
        old, new = marks[: -self._longest], marks[-self._longest :]
        # A stop string contains at most `_longest` marks. Of older ones, one in each position still separates text.
        self._marks = [(i, _OTHER_MARK, ignored) for i, ignored in {i: ignored for i, _, ignored in old}.items()] + new

    def _shown(self, text: str) -> str:
        """Returns the text with the marks of special tokens inserted."""
        parts, start = [], 0
        for index, mark, _ in self._marks:
            if index <= len(text):
                parts += [text[start:index], mark]
                start = index
        return "".join([*parts, text[start:]])


_FIRST_MARK, _OTHER_MARK = 0xD800, "\udfff"
"""The mark of the first special token in the stop strings, and that of all special tokens in no stop string."""


def _visible(shown: str) -> int:
    """Returns the number of characters that are not marks."""
    return sum(not _is_surrogate(character) for character in shown)


def _is_surrogate(character: str) -> bool:
    return "\ud800" <= character <= "\udfff"
