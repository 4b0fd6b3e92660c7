"""Runs the command `puna` in the process of the tests.

A new process imports puna and its libraries for every command, which takes longer than most commands themselves.
Each command has other tests that start it as a user does.
"""

from __future__ import annotations

from subprocess import CompletedProcess

from typer.testing import CliRunner

from puna.cli import app


def run_puna(*arguments: object) -> CompletedProcess[str]:
    """Runs `puna` with these arguments; an exception that it does not handle is raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)
