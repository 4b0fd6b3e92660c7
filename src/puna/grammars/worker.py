"""The program of the process that compiles a grammar for the first time: it may crash, or need any time or memory."""

from __future__ import annotations

import json
import signal
import sys
import threading

from puna.grammars.library import byte_tokenizer, error_text, make_matcher
from puna.templates.limits import limit_memory

SECONDS = 2.0
"""Maximum processor time of the process, of which 0.05 s are used to start it."""

WALL_SECONDS = 60.0
"""Maximum elapsed time: a busy machine may delay the process."""

MEMORY = 512 * 10**6
"""Memory for compiling, in bytes."""

_STACK = 4 * 2**20
"""Stack for compiling, in bytes: half of what threads usually have. llguidance is recursive."""


def main() -> None:
    """Reads a grammar from standard input, and writes why it cannot be used, or nothing."""
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGALRM, signal.SIGPROF))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    request = json.load(sys.stdin)
    limit_memory(MEMORY)
    threading.stack_size(_STACK)
    thread = threading.Thread(target=_compile, args=(request["rule"], request["special"]))
    thread.start()
    thread.join()


def _compile(rule: dict[str, object], special: list[str]) -> None:
    matcher, error = make_matcher(rule, byte_tokenizer(special))
    if error is None:
        matcher.compute_bitmask()
        error = f"no text follows it ({error_text(matcher)})" if matcher.is_error() else None
    sys.stdout.write("ok" if error is None else f"error {error}")
    sys.stdout.flush()
