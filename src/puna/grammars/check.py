"""Compiles a grammar in a separate process before this process does, whose time, memory and stack are limited."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from puna.errors import BackendError, RuleError
from puna.grammars.keywords import with_keyword

_PROGRAM = """\
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from puna.grammars.worker import main
main()
"""


def check_rule(name: str, rule: Mapping[str, Any], special: Sequence[str]) -> None:
    """Checks that a rule compiles.

    Args:
        name: name of the option that specifies the rule.
        rule: a grammar in llguidance's format.
        special: names of special tokens that the rule may contain.

    Raises:
        RuleError: the rule is invalid, no text follows it, or it is too large.
        BackendError: the process cannot be started.
    """
    try:
        process = subprocess.run(
            (sys.executable, "-I", "-S", "-c", _PROGRAM, json.dumps([str(folder) for folder in sys.path])),
            input=json.dumps({"rule": rule, "special": list(special)}).encode(),
            capture_output=True,
            start_new_session=True,  # Ctrl-C must not end the process with a message
            check=False,
        )
    except OSError as exc:
        raise BackendError(
            f"the process that checks grammars cannot be started: {sys.executable!r}: {exc.strerror}"
        ) from exc
    answer = process.stdout.decode("utf-8", "replace")
    if answer == "ok":
        return
    if answer.startswith("error "):
        error = answer.removeprefix("error ")
        if name == "json_schema":
            error = with_keyword(error, json.dumps(rule[name]))
        raise RuleError(f"{name} cannot be used: {error}")
    if process.returncode >= 0:
        reason = process.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise BackendError(f"the process that checks grammars failed: {''.join(reason) or process.returncode}")
    raise RuleError(
        f"{name} is too large: compiling it needs too much {_RESOURCES.get(-process.returncode, 'memory')}; simplify it"
    )


_RESOURCES: dict[int, str] = {
    signal.SIGPROF: "time",
    signal.SIGALRM: "time",
    signal.SIGSEGV: "depth",
    signal.SIGBUS: "depth",
}
"""By the signal that ended the process: what was exhausted."""
