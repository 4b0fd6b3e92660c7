"""Compiles a grammar in a separate process before this process does, whose time, memory and stack are limited."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from puna.errors import BackendError, RuleError
from puna.grammars.keywords import with_keyword
from puna.processes.pool import WorkerError, WorkerPool

POOL = WorkerPool("puna.grammars.worker")


def check_rule(name: str, rule: Mapping[str, Any], special: Sequence[str]) -> None:
    """Checks that a rule compiles.

    Args:
        name: name of the option that specifies the rule.
        rule: a grammar in llguidance's format.
        special: names of special tokens that the rule may contain.

    Raises:
        RuleError: the rule is invalid, no text follows it, or it is too large.
        BackendError: the process cannot be started, or it fails.
    """
    try:
        answer = POOL.ask(json.dumps({"rule": rule, "special": list(special)}).encode()).decode()
    except OSError as exc:
        raise BackendError(
            f"the process that checks grammars cannot be started: {sys.executable!r}: {exc.strerror}"
        ) from exc
    except WorkerError as exc:
        if exc.status >= 0:
            raise BackendError(
                f"the process that checks grammars ended with status {exc.status}; is llguidance installed for "
                f"{sys.executable}?"
            ) from None
        raise RuleError(
            f"{name} is too large: compiling it needs too much {_RESOURCES.get(-exc.status, 'memory')}; simplify it"
        ) from None
    error = answer[1:]
    if answer.startswith("F"):
        raise BackendError(f"the process that checks grammars failed: {error}")
    if error:
        if name == "json_schema":
            error = with_keyword(error, json.dumps(rule[name]))
        raise RuleError(f"{name} cannot be used: {error}")


_RESOURCES: dict[int, str] = {
    signal.SIGPROF: "time",
    signal.SIGALRM: "time",
    signal.SIGSEGV: "depth",
    signal.SIGBUS: "depth",
}
"""By the signal that ended the process: what was exhausted."""
