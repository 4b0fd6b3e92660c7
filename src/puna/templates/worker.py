"""The program of the process that renders chat templates: sandboxed Jinja with the extensions of Hugging Face.

A template comes from the files of a model, and one expression of it can need unlimited time or memory. The system
therefore limits this process: a timer ends it, and allocations beyond the limit fail. `process.py` starts it.
"""

from __future__ import annotations

import datetime
import functools
import json
import marshal
import os
from typing import Any

import jinja2
from jinja2 import ext, nodes, parser, sandbox

from puna.processes.serving import serve_requests
from puna.templates.limits import GENERATION_END, GENERATION_START, MEMORY, SECONDS, WALL_SECONDS

_MAX_REASON = 1000
"""Maximum length of an error message, in characters: a template chooses its text."""


def serve() -> None:
    """Answers requests on standard input until it is closed."""
    serve_requests(_answer, SECONDS, WALL_SECONDS, MEMORY)


def _answer(request: bytes) -> bytes:
    """Returns "T" and the rendered text; "C" (not compiled), "R" (refused) or "F" (failed) and why."""
    try:
        source, values = marshal.loads(request)
        try:
            template = _compile(source)
        except MemoryError:
            raise
        except Exception as exc:  # Jinja's errors, and those of Python's compiler
            return b"C" + _reason(exc)
        try:
            return b"T" + "".join(template.generate(values)).encode("utf-8", "surrogatepass")
        except MemoryError:
            raise
        except jinja2.TemplateError as exc:
            return b"R" + _reason(exc)
        except Exception as exc:  # a template can call every method of its values
            return b"F" + type(exc).__name__.encode() + b": " + _reason(exc)
    except MemoryError:
        os.abort()  # a new process may have more memory left


def _reason(exc: Exception) -> bytes:
    return str(exc)[:_MAX_REASON].encode("utf-8", "surrogatepass")


@functools.lru_cache(maxsize=64)
def _compile(source: str) -> jinja2.Template:
    """Compiles a template. Cached, because every turn of a chat renders the same template."""
    return _environment().from_string(source)


class _Generation(ext.Extension):
    """`{% generation %}` marks the text of the assistant; rendering shows its body between two variables."""

    tags = {"generation"}  # noqa: RUF012  # the form that Jinja requires

    def parse(self, parser: parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        start, end = (nodes.Output([nodes.Name(name, "load")]) for name in (GENERATION_START, GENERATION_END))
        return [start, *body, end]


@functools.lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    """Returns transformers' environment: trim_blocks, lstrip_blocks, loop controls, {% generation %}, three helpers."""
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:  # templates may pass `format` by name
    return datetime.datetime.now().astimezone().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Returns JSON without Jinja's HTML escapes, which models were not trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
