"""Limits on rendering a chat template, and the interface of the process that renders."""

from __future__ import annotations

import struct
from pathlib import Path

SECONDS = 1.5
"""Maximum processor time of one rendering. A conversation of 10,000 messages needs 0.1 s."""

WALL_SECONDS = 7.5
"""Maximum elapsed time of one rendering: a busy machine may delay it."""

MEMORY = 64 * 10**6
"""Memory for one rendering, in bytes, in addition to the 20 MB of Python and Jinja."""

GENERATION_START, GENERATION_END = "puna_generation_start", "puna_generation_end"
"""Variables whose values are shown at the start and the end of {% generation %} blocks; by default nothing is."""

SIZE = struct.Struct("<Q")
"""Precedes each request and each answer: the number of bytes that follow."""


def limit_memory(amount: int) -> None:
    """Limits what this process may allocate in addition to its present memory, in bytes."""
    import resource  # does not exist on Windows

    statistics = Path("/proc/self/statm")
    if statistics.exists():  # Linux; the limit has no effect on macOS
        used = int(statistics.read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = used + amount if hard == resource.RLIM_INFINITY else min(used + amount, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
