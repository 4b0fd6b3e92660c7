"""The program of the process that compiles a grammar for the first time: it may crash, or need any time or memory."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

from puna.grammars.library import byte_tokenizer, error_text, make_matcher
from puna.processes.serving import serve_requests

SECONDS = 2.0
"""Maximum processor time of one grammar."""

WALL_SECONDS = 60.0
"""Maximum elapsed time of one grammar: a busy machine may delay the process."""

MEMORY = 512 * 10**6
"""Memory for compiling, in bytes."""

_STACK = 4 * 2**20
"""Stack for compiling, in bytes: half of what threads usually have. llguidance is recursive."""


def serve() -> None:
    """Answers requests on standard input until it is closed: with why a grammar cannot be used, or with nothing."""
    threading.stack_size(_STACK)
    serve_requests(_answer, SECONDS, WALL_SECONDS, MEMORY)


def _answer(request: bytes) -> bytes:
    errors: list[str] = []
    thread = threading.Thread(target=_compile, args=(json.loads(request), errors))
    thread.start()
    thread.join()
    return errors[0].encode("utf-8", "replace")


def _compile(request: dict[str, Any], errors: list[str]) -> None:
    """Appends the error, or an empty text."""
    try:
        matcher, error = make_matcher(request["rule"], byte_tokenizer(request["special"]))
        if error is None:
            matcher.compute_bitmask()
            error = f"no text follows it ({error_text(matcher)})" if matcher.is_error() else ""
        errors.append(error)
    except MemoryError:
        os.abort()  # as llguidance does
