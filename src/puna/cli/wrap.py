"""Word wrap of text that arrives in pieces, for a terminal whose width may change."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from puna.cli.terminal import write


@contextmanager
def wrapped_output() -> Iterator[Callable[[str], None]]:
    """Context manager: yields a function that writes text to standard output.

    On a terminal, lines break between words, and the last word is written when the context ends. To any other output,
    the text is written unchanged.
    """
    if not sys.stdout.isatty():
        yield write
        return
    wrap = WordWrap(write, lambda: terminal_width(sys.stdout.fileno()))
    try:
        yield wrap.feed
    finally:
        wrap.finish()


def terminal_width(descriptor: int) -> int:
    """Returns the number of columns of the terminal of a file descriptor; 80 if the terminal does not report them."""
    try:
        return os.get_terminal_size(descriptor).columns or 80
    except OSError:
        return 80


class WordWrap:
    """Writes text with a line break before each word that does not fit in the line.

    Spaces at such a break are not written. Control characters other than line ends and tabs are escaped, because a
    terminal would obey them.

    Args:
        write: receives the text.
        width: returns the number of columns of the terminal.
    """

    def __init__(self, write: Callable[[str], None], width: Callable[[], int]) -> None:
        self._write = write
        self._width = width
        self._column = 0
        self._spaces = ""
        self._word = ""

    def feed(self, text: str) -> None:
        """Writes the complete words of `text` and of earlier pieces; keeps the last word, which may continue."""
        for character in text:
            if character == "\n":
                self.finish()
                self._write("\n")
                self._column, self._spaces = 0, ""
            elif character in " \t":
                self._end_word()
                self._spaces += " " if character == " " else "    "
            elif character != "\r":
                self._add(character)

    def finish(self) -> None:
        """Writes the last word."""
        self._end_word()

    def _add(self, character: str) -> None:
        if unicodedata.category(character) == "Cc":
            character = f"\\x{ord(character):02x}"
        wide = columns(character) == 2  # text in wide characters has no spaces: a line may break before each of them
        if wide:
            self._end_word()
        self._word += character
        if wide or columns(self._word) >= self._width() - 1:
            self._end_word()

    def _end_word(self) -> None:
        if not self._word:
            return
        needed = columns(self._word)
        if self._column and self._column + len(self._spaces) + needed > self._width() - 1:
            self._write("\n")
            self._column, self._spaces = 0, ""
        self._write(self._spaces + self._word)
        self._column += len(self._spaces) + needed
        self._spaces = self._word = ""


def columns(text: str) -> int:
    """Returns the number of columns that a text takes in a terminal."""
    from rich.cells import cell_len

    return cell_len(text)
