"""The prompt of a command: its argument, the files of --file and standard input, in this order."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from puna.cli.models import similar_file
from puna.cli.terminal import note
from puna.errors import RequestError

_PATIENCE = 2.0
"""Seconds without standard input after which a note says what the command waits for."""


def read_prompt(argument: str | None, files: Sequence[Path]) -> str | None:
    """Returns the parts of the prompt, joined by line ends; None if there is no part.

    Standard input is a part if it is a pipe or a file. The line end at the end of a file or of standard input is not
    part of the prompt. The argument "-" reads standard input unchanged.
    """
    parts = [] if argument is None or argument == "-" else [argument]
    parts += [_without_line_end(read_file(file)) for file in files]
    if argument == "-":
        parts.append(read_stdin("the prompt"))
    elif is_piped():
        text = _without_line_end(read_stdin("the prompt"))
        parts += [text] if text else []
    return "\n".join(parts) if parts else None


def is_piped() -> bool:
    """Whether standard input is a pipe, a socket or a file: neither a terminal nor a device such as /dev/null."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):  # closed, or a stream in memory
        return sys.stdin is not None and not sys.stdin.closed and not sys.stdin.isatty()
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def read_stdin(name: str) -> str:
    """Returns the text of standard input; raises RequestError if it is not UTF-8."""
    return decode(read_stdin_bytes(), f"{name} from standard input")


def read_stdin_bytes() -> bytes:
    """Returns the bytes of standard input; a note says so if they do not arrive."""
    _announce_waiting()
    return sys.stdin.buffer.read()


def read_file(path: Path) -> str:
    """Returns the text of a file, with its line ends unchanged.

    Raises:
        RequestError: the file cannot be read or is not UTF-8.
    """
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as exc:
        question = similar_file(path) if isinstance(exc, FileNotFoundError) else ""
        raise RequestError(f"{path} cannot be read: {exc.strerror}.{question}") from exc


def decode(data: bytes, name: str) -> str:
    """Decodes UTF-8; raises RequestError with the line of the first invalid byte."""
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise RequestError(
            f"{name} is not UTF-8 (line {line}, byte {exc.start}: 0x{data[exc.start]:02x}); convert it first"
        ) from exc


def _without_line_end(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


def _announce_waiting() -> None:
    try:
        ready = select.select([sys.stdin.fileno()], [], [], _PATIENCE)[0]
    except (OSError, ValueError):  # a stream in memory
        return
    if not ready:
        note("puna: waiting for standard input; Ctrl-D ends it")
