"""Input, output and exit statuses of commands: results on standard output, everything else on standard error."""

from __future__ import annotations

import functools
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import typer

from puna.errors import PunaError, printable

if TYPE_CHECKING:
    from rich.console import Console

Parameters = ParamSpec("Parameters")

INTERRUPTED = 130
"""Exit status after Ctrl-C, as in shells: 128 + SIGINT."""

from_environment: set[str] = set()
"""Values of the running command's options that come from environment variables."""

from_command_line: set[str] = set()
"""Names of the running command's parameters that are in the command line."""

_verbosity = {"quiet": False, "verbose": False}


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """Sets whether notes are hidden (`quiet`) and whether details are shown (`verbose`)."""
    _verbosity.update(quiet=quiet, verbose=verbose)


def is_quiet() -> bool:
    """Whether only results and errors are printed."""
    return _verbosity["quiet"]


def command(
    examples: Mapping[str, str], fields: Mapping[str, str] | None = None
) -> Callable[[Callable[Parameters, None]], Callable[Parameters, None]]:
    """Decorates a command: errors print one message and exit with 1, Ctrl-C exits with 130, a closed pipe prints none.

    Args:
        examples: command lines and what each does, for the help.
        fields: names and meanings of the fields that --json prints, for the help.
    """

    def decorate(run: Callable[Parameters, None]) -> Callable[Parameters, None]:
        @functools.wraps(run)
        def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
            with _exit_statuses(), _plain_warnings():
                _prepare_streams()
                run(*args, **kwargs)
                sys.stdout.flush()

        wrapped.examples, wrapped.fields = examples, fields or {}  # type: ignore[attr-defined]
        return wrapped

    return decorate


@contextmanager
def _exit_statuses() -> Iterator[None]:
    try:
        yield
    except PunaError as exc:
        print_error(str(exc))
        if _verbosity["verbose"]:
            import traceback

            typer.echo("".join(traceback.format_exception(exc)).rstrip(), err=True)
        raise typer.Exit(1) from exc
    except KeyboardInterrupt:
        typer.echo("\npuna: interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        _discard_output()
        raise typer.Exit(1) from None
    except UnicodeDecodeError as exc:
        print_error(f"standard input is not {exc.encoding} text ({exc.reason}); convert it first")
        raise typer.Exit(1) from exc
    except OSError as exc:
        print_error(str(exc))
        _discard_output()
        raise typer.Exit(1) from exc


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Prints warnings as notes, without the position in the source."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: note(f"puna: {message}")
        yield


@contextmanager
def usage_errors(option: str | None = None) -> Iterator[None]:
    """Context manager for checks of option values: turns a PunaError into an error of the command line (status 2)."""
    try:
        yield
    except PunaError as exc:
        raise typer.BadParameter(str(exc), param_hint=option) from exc


def print_error(message: str) -> None:
    """Prints an error to standard error."""
    typer.echo(f"puna: {printable(message)}", err=True)


def note(text: str) -> None:
    """Prints a note to standard error, unless --quiet was given."""
    if not is_quiet():
        typer.echo(printable(text), err=True)


def detail(text: str) -> None:
    """Prints a detail to standard error, if --verbose was given."""
    if _verbosity["verbose"]:
        typer.echo(printable(text), err=True)


def did_you_mean(word: str, names: list[str]) -> str:
    """Returns " Did you mean ...?" with the names most similar to `word`; "" if none is similar."""
    import difflib

    lower = {name.lower(): name for name in names if name != word}
    matches = [lower[match] for match in difflib.get_close_matches(word.lower(), list(lower), 3, 0.6)]
    return f" Did you mean {' or '.join(matches)}?" if matches else ""


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
    """Whether progress is shown: standard error is a terminal, and --quiet was not given."""
    return not is_quiet() and sys.stderr is not None and sys.stderr.isatty()


def status(text: str) -> AbstractContextManager[Any]:
    """Returns a context manager that shows a spinner and a text, if standard error is a terminal."""
    return stderr_console().status(text) if is_watched() else nullcontext()


def print_json(value: Mapping[str, Any]) -> None:
    """Writes one JSON object as one line."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def write(text: str) -> None:
    """Writes text to standard output without buffering."""
    sys.stdout.write(text)
    sys.stdout.flush()
