"""Input, output and exit statuses of commands: results on standard output, everything else on standard error."""

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
"""Exit status after Ctrl-C, as in shells: 128 + SIGINT."""


def command(run: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Decorates a command: errors print one message and exit with 1, Ctrl-C exits with 130, a closed pipe is silent."""

    @functools.wraps(run)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            _prepare_streams()
            run(*args, **kwargs)
            sys.stdout.flush()
        except PunaError as exc:
            typer.echo(f"puna: {printable(str(exc))}", err=True)
            raise typer.Exit(1) from exc
        except KeyboardInterrupt:
            typer.echo("\npuna: interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            _discard_output()
            raise typer.Exit(1) from None
        except UnicodeDecodeError as exc:
            typer.echo(f"puna: standard input is not {exc.encoding} text ({exc.reason}); convert it first", err=True)
            raise typer.Exit(1) from exc
        except OSError as exc:
            typer.echo(f"puna: {printable(str(exc))}", err=True)
            _discard_output()
            raise typer.Exit(1) from exc

    return wrapped


def _prepare_streams() -> None:
    """Replaces closed standard streams by empty ones, and escapes characters that a stream's encoding lacks."""
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open()  # noqa: SIM115  # stays open until the process ends
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Redirects standard output, to which writing has failed, to the null device: the flush at exit would fail too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stderr_console() -> Console:
    """Returns a rich console on standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def is_watched() -> bool:
    """Whether standard error is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def loading(model: str | None) -> AbstractContextManager[Any]:
    """Returns a context manager that shows a spinner while a model loads, if standard error is a terminal."""
    if not is_watched():
        return nullcontext()
    return stderr_console().status(f"Loading {model or 'the default model'} ...")


def printable(text: str) -> str:
    """Escapes characters other than line ends that a terminal would obey: names in files are chosen by strangers."""
    return "".join(item if item.isprintable() or item == "\n" else repr(item)[1:-1] for item in text)


def print_json(value: Mapping[str, Any]) -> None:
    """Writes one JSON object as one line."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def size(count: int) -> str:
    """Formats a number of bytes as bytes, MB or GB."""
    if count < 10_000:
        return f"{count} bytes"
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def write(text: str) -> None:
    """Writes text to standard output without buffering."""
    sys.stdout.write(text)
    sys.stdout.flush()


def read_text(argument: str, name: str) -> str:
    """Returns the argument, or for `-` the text of standard input; raises RequestError if it is not UTF-8."""
    if argument != "-":
        return argument
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as exc:
        raise RequestError(f"{name} from standard input is not UTF-8 ({exc}); convert it first") from exc
