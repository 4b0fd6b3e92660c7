"""`ToolParser`: turns the text of an answer into text, calls of functions and parts of their arguments."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from puna.grammars.rules import unique_keys
from puna.server.tools.formats import ID, ToolFormat
from puna.server.tools.toolset import ToolSet
from puna.tokenizer.streams import overlap


@dataclass(frozen=True)
class Text:
    """A part of the answer's text."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """The beginning of call number `index`, whose function is known."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A part of the JSON text of the arguments of call number `index`."""

    index: int
    text: str


Piece = Text | CallStart | CallArguments

_State = Literal["text", "before", "name", "arguments", "after"]


def new_id(form: ToolFormat) -> str:
    """Returns the identifier of a call."""
    return secrets.token_hex(5)[:9] if form.short_ids else f"call_{secrets.token_hex(12)}"


class ToolParser:
    """Parses an answer that follows the grammar of `tool_grammar`, as its text arrives.

    Args:
        make_id: returns the identifier of a call, given its index; None for random ones.
        free_text: whether any text may precede calls; False if the text follows another rule.
    """

    def __init__(
        self,
        tools: ToolSet,
        form: ToolFormat,
        make_id: Callable[[int], str] | None = None,
        *,
        free_text: bool = True,
    ) -> None:
        self._form = form
        self._make_id = make_id or (lambda index: new_id(form))
        self._state: _State = "before" if tools.mode == "required" else "text"
        self._calls_allowed = bool(tools.callable)
        self._only_start = form.marker is None or not free_text
        self._optional = form.optional or ""
        self._beginnings = [item.name + form.between for item in tools.callable]
        self._before, self._between, self._after = map(self._pattern, (form.before, form.between, form.after))
        parallel = tools.parallel and form.separator is not None
        self._separator = self._pattern(form.separator) if parallel and form.separator is not None else None
        self._buffer = ""
        self._decided = False  # whether the beginning of the answer is text
        self._calls = 0
        self._arguments = ""  # JSON text of the current call
        self._scanner = _Scanner()
        self._keywords = _Keywords()
        self._repeated = False

    def feed(self, text: str) -> list[Piece]:
        """Adds a part of the answer's text, in which special tokens are shown; returns the pieces that are known."""
        self._buffer += text
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return pieces

    def finish(self, reason: str) -> tuple[list[Piece], str]:
        """Ends the answer. Returns the last pieces, and why the answer ended.

        Args:
            reason: why the generation ended: "stop", "length" or "invalid".
        """
        pieces: list[Piece] = []
        complete = self._state == "after" and bool(self._after.fullmatch(self._buffer.rstrip()))
        if self._state == "text" or (self._state == "before" and not self._calls):
            if self._buffer:
                pieces.append(Text(self._buffer))
            return pieces, reason if self._state == "text" else "invalid" if reason == "stop" else reason
        if reason != "stop":
            return pieces, reason
        return pieces, "tool_calls" if complete and not self._repeated else "invalid"

    def _step(self, pieces: list[Piece]) -> bool:
        """Reads a part of the buffer; returns whether more may be read."""
        step = {
            "text": self._read_text, "before": self._read_before, "name": self._read_name,
            "arguments": self._read_arguments, "after": self._read_after,
        }[self._state]  # fmt: skip
        return step(pieces)

    def _read_text(self, pieces: list[Piece]) -> bool:
        if not self._calls_allowed or (self._only_start and self._decided):
            return self._emit(pieces, len(self._buffer))
        if self._only_start:
            return self._read_start(pieces)
        marker = self._form.marker or ""
        index = self._buffer.find(marker)
        if index >= 0:
            kept = self._buffer[:index].rstrip()
            self._emit(pieces, len(kept))
            self._buffer = self._buffer.lstrip()
            self._state = "before"
            return True
        kept = self._buffer[: len(self._buffer) - overlap(self._buffer, marker)].rstrip()
        return self._emit(pieces, len(kept))

    def _read_start(self, pieces: list[Piece]) -> bool:
        """Decides whether the answer begins with calls."""
        start = self._buffer.lstrip()
        match = self._before.match(start)
        if match is not None:
            rest = start[match.end() :]
            if any(rest.startswith(beginning) for beginning in self._beginnings):
                self._buffer, self._state = start, "before"
                return True
        compact = start.replace(" ", "")  # a space may be shown next to special tokens
        before = (self._form.before, self._optional + self._form.before)
        if any((text + end).replace(" ", "").startswith(compact) for text in before for end in self._beginnings):
            return False
        self._decided = True
        return True

    def _emit(self, pieces: list[Piece], count: int) -> bool:
        if count:
            pieces.append(Text(self._buffer[:count]))
            self._buffer = self._buffer[count:]
        return False

    def _read_before(self, pieces: list[Piece]) -> bool:
        match = self._before.match(self._buffer)
        if match is None:
            return False
        self._buffer, self._state = self._buffer[match.end() :], "name"
        return True

    def _read_name(self, pieces: list[Piece]) -> bool:
        match = self._between.search(self._buffer)
        if match is None:
            return False
        name = self._buffer[: match.start()]
        self._buffer, self._state = self._buffer[match.end() :], "arguments"
        pieces.append(CallStart(self._calls, self._make_id(self._calls), name))
        self._arguments, self._scanner, self._keywords = "", _Scanner(), _Keywords()
        return True

    def _read_arguments(self, pieces: list[Piece]) -> bool:
        if self._form.style == "python":
            text, used, ended = self._keywords.read(self._buffer)
        else:
            used, ended = self._scanner.read(self._buffer)
            text = self._buffer[:used]
        self._buffer = self._buffer[used:]
        self._arguments += text
        if text:
            pieces.append(CallArguments(self._calls, text))
        if ended:
            self._check_keys()
            self._calls += 1
            self._state = "after"
        return ended

    def _read_after(self, pieces: list[Piece]) -> bool:
        match = None if self._separator is None else self._separator.match(self._buffer)
        if match is None:
            return False
        self._buffer, self._state = self._buffer[match.end() :], "name"
        return True

    def _check_keys(self) -> None:
        try:
            json.loads(self._arguments, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError):
            self._repeated = True

    def _pattern(self, text: str) -> re.Pattern[str]:
        """Returns an expression for a text of the format. Spaces next to special tokens may be missing or added."""
        special = self._form.special
        parts = re.split("(" + "|".join([re.escape(ID), *map(re.escape, special)]) + ")", text)
        expressions = []
        for index, part in enumerate(parts):
            if part == ID:
                expressions.append("[a-zA-Z0-9]{9}")
            elif part in special:
                expressions.append(f" *{re.escape(part)} *")
            else:
                left = part.lstrip(" ") if index and parts[index - 1] in special else part
                right = left.rstrip(" ") if index + 1 < len(parts) and parts[index + 1] in special else left
                expressions.append(re.escape(right))
        optional = rf"(?: *{re.escape(self._optional)} *)?" if self._optional and text == self._form.before else ""
        return re.compile(optional + "".join(expressions))


class _Scanner:
    """Finds the end of a JSON value in text that arrives in parts."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False

    def read(self, text: str) -> tuple[int, bool]:
        """Returns the number of characters that belong to the value, and whether it ends there.

        The value is an array, an object or a string.
        """
        for index, character in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
                    if not self._depth:
                        return index + 1, True
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    return index + 1, True
        return len(text), False


_CONSTANTS = {"True": "true", "False": "false", "None": "null"}

_SCALAR = re.compile(r"[^,)\s]+(?=[,)])")
"""A number or a constant, and the character that shows its end."""


class _Keywords:
    """Turns Python's keyword arguments into a JSON object, one argument at a time."""

    def __init__(self) -> None:
        self._count = 0

    def read(self, text: str) -> tuple[str, int, bool]:
        """Returns JSON text, the number of characters that were read, and whether the arguments end there."""
        if text.startswith("**{"):
            return self._read_object(text)
        written, used = "", 0
        while True:
            rest = text[used:]
            space = len(rest) - len(rest.lstrip(", "))
            rest = rest[space:]
            if rest.startswith(")"):
                return written + ("}" if self._count else "{}"), used + space, True
            key, equals, value = rest.partition("=")
            end = self._value_end(value) if equals else 0
            if not end:
                return written, used, False
            literal = value[:end]
            written += ("{" if not self._count else ", ") + json.dumps(key, ensure_ascii=False) + ": "
            written += _CONSTANTS.get(literal, literal)
            self._count += 1
            used += space + len(key) + 1 + end

    def _value_end(self, value: str) -> int:
        """Returns the length of a value; 0 if its end is not known yet."""
        if value[:1] in ('"', "[", "{"):
            end, complete = _Scanner().read(value)
            return end if complete else 0
        match = _SCALAR.match(value)
        return match.end() if match else 0

    def _read_object(self, text: str) -> tuple[str, int, bool]:
        end, complete = _Scanner().read(text[2:])
        return (text[2 : end + 2], end + 2, True) if complete else ("", 0, False)
