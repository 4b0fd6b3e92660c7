"""The program of the process that compiles a grammar for the first time: it may crash, or need any time or memory."""

from __future__ import annotations

import functools
import json
import os
import threading
from typing import Any

from llguidance import LLTokenizer

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
    """Answers requests on standard input until it is closed."""
    threading.stack_size(_STACK)
    serve_requests(_answer, SECONDS, WALL_SECONDS, MEMORY)


def _answer(request: bytes) -> bytes:
    """Returns nothing if a grammar compiles; "R" (refused) or "F" (failed), and why, if it does not."""
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(_compile(**json.loads(request))))
    thread.start()
    thread.join()
    return answers[0].encode("utf-8", "replace")


def _compile(rule: dict[str, Any], special: list[str]) -> str:
    try:
        matcher, error = make_matcher(rule, _tokenizer(tuple(special)))
        if error is None:
            matcher.compute_bitmask()
            error = f"no text follows it ({error_text(matcher)})" if matcher.is_error() else None
    except MemoryError:
        os.abort()  # as llguidance does
    except Exception as exc:
        return f"F{type(exc).__name__}: {exc}"
    return "" if error is None else f"R{error}"


@functools.lru_cache(maxsize=4)
def _tokenizer(special: tuple[str, ...]) -> LLTokenizer:
    """Returns the tokenizer of bytes. Cached, because making it takes longer than compiling a small grammar."""
    return byte_tokenizer(special)
