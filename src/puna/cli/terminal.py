"""How commands speak: answers on standard output, everything else on standard error, and how they end."""

from __future__ import annotations

import functools
import io
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import typer

from puna.errors import PunaError, RequestError

if TYPE_CHECKING:
    from rich.console import Console

Parameters = ParamSpec("Parameters")

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 + SIGINT, as shells have it."""


def command(run: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Ends a command well: our errors are one message and status 1, Ctrl-C is status 130, a closed pipe is quiet."""

    @functools.wraps(run)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            _open_streams()
            run(*args, **kwargs)
            sys.stdout.flush()
        except PunaError as exc:
            typer.echo(f"puna: {exc}", err=True)
            raise typer.Exit(1) from exc
        except KeyboardInterrupt:
            typer.echo("\npuna: interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            _abandon_output()
            raise typer.Exit(1) from None
        except UnicodeDecodeError as exc:
            typer.echo(f"puna: standard input is not {exc.encoding} text ({exc.reason}); convert it first", err=True)
            raise typer.Exit(1) from exc
        except OSError as exc:
            typer.echo(f"puna: {exc}", err=True)
            _abandon_output()
            raise typer.Exit(1) from exc

    return wrapped


def _open_streams() -> None:
    """Standard streams a command can use: closed ones become empty, and no character is too rare to be shown."""
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open()  # noqa: SIM115  # for the rest of the process
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _abandon_output() -> None:
    """Points standard output elsewhere: it cannot be written, and the interpreter would complain when it flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stderr_console() -> Console:
    """A console on standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def is_watched() -> bool:
    """Whether standard error is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def loading(model: str | None) -> AbstractContextManager[Any]:
    """A spinner while a model loads; nothing, not even rich, where nobody watches."""
    if not is_watched():
        return nullcontext()
    return stderr_console().status(f"Loading {model or 'the default model'} ...")


def print_json(value: Mapping[str, Any]) -> None:
    """Writes one JSON object as one line."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def size(count: int) -> str:
    """Bytes for people."""
    if count < 10_000:
        return f"{count} bytes"
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def write(text: str) -> None:
    """Writes a piece of an answer and shows it at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def read_text(argument: str, name: str) -> str:
    """The argument itself, or standard input where it is `-`; raises RequestError on input that is not UTF-8."""
    if argument != "-":
        return argument
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as exc:
        raise RequestError(f"{name} from standard input is not UTF-8 ({exc}); convert it first") from exc
