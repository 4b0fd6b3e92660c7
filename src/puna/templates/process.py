"""Renders chat templates in separate processes. Their program is `worker.py`; requests are data of `marshal`."""

from __future__ import annotations

import marshal
import numbers
import signal
import sys
from collections.abc import Mapping
from typing import Any

from puna.errors import ChatTemplateError, show_bytes
from puna.processes.pool import WorkerError, WorkerPool
from puna.processes.serving import TIME_SIGNALS
from puna.templates.limits import MEMORY, SECONDS

_MAX_REQUEST = 12 * 10**6
"""Maximum size of a template and its values, in bytes: rendering needs several copies of the text, of up to four bytes
a character, within `MEMORY`."""

_MAX_DEPTH = 200
"""Maximum depth of nested values. `marshal` supports 2,000."""


POOL = WorkerPool("puna.templates.worker")


def render(template: str, values: Mapping[str, Any]) -> str:
    """Renders a template with plain values: None, numbers, text, lists and dictionaries.

    Raises:
        ChatTemplateError: the template does not compile, refuses the values, fails, or needs too much time or memory.
    """
    plain = {name: _plain(name, value) for name, value in values.items()}
    request = marshal.dumps((template, plain))
    if len(request) > _MAX_REQUEST:
        raise ChatTemplateError(
            f"the messages, tools and other values of the chat template have {show_bytes(len(request))}; the limit "
            f"is {show_bytes(_MAX_REQUEST)}. Shorten the conversation, or encode its text without a chat template"
        )
    answer = _answer(request)
    kind, text = answer[:1], answer[1:].decode("utf-8", "surrogatepass")
    if kind == b"T":
        return text
    if kind == b"C":
        raise ChatTemplateError(f"the chat template does not compile: {text}; fix it or pass chat_template=")
    if kind == b"R":
        raise ChatTemplateError(f"the chat template refuses this conversation: {text}")
    raise ChatTemplateError(
        f"the chat template failed on this conversation: {text}; compare the messages with what the template expects"
    )


def _answer(request: bytes) -> bytes:
    """Returns the answer of a process that renders."""
    try:
        return POOL.ask(request)
    except OSError as exc:
        raise ChatTemplateError(
            f"the process that renders chat templates cannot be started: {sys.executable!r}: {exc.strerror}"
        ) from exc
    except WorkerError as exc:
        if -exc.status in TIME_SIGNALS:
            raise ChatTemplateError(
                f"the chat template needs more than {SECONDS} s; fix it or pass chat_template="
            ) from None
        if exc.status == -signal.SIGABRT:
            raise ChatTemplateError(
                f"the chat template needs more than {show_bytes(MEMORY)} of memory; shorten the chat or pass "
                "chat_template="
            ) from None
        raise ChatTemplateError(
            f"the process that renders chat templates ended with status {exc.status}; is jinja2 installed for "
            f"{sys.executable}?"
        ) from None


def _plain(name: str, value: Any, depth: int = 0) -> Any:
    """Returns a value with Python's own types instead of their subclasses."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if depth == _MAX_DEPTH:
        raise ChatTemplateError(f"{name}: values are nested more than {_MAX_DEPTH} deep, or contain themselves")
    if isinstance(value, Mapping):
        return {_plain(name, key, depth + 1): _plain(name, item, depth + 1) for key, item in value.items()}
    for base in (list, tuple, set, frozenset):
        if isinstance(value, base):
            return base(_plain(name, item, depth + 1) for item in value)
    if isinstance(value, str):
        return str.__str__(value)  # str(value) of an enumeration is the name of the member
    if isinstance(value, numbers.Integral):  # also NumPy's numbers
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, bytes):
        return bytes(value)
    raise ChatTemplateError(
        f"{name}: a value is a {type(value).__name__}; templates take None, numbers, text, lists and dictionaries"
    )
