"""Limits on rendering a chat template, and the variables that mark the text of the assistant."""

from __future__ import annotations

SECONDS = 1.5
"""Maximum processor time of one rendering. A conversation of 10,000 messages needs 0.1 s."""

WALL_SECONDS = 7.5
"""Maximum elapsed time of one rendering: a busy machine may delay it."""

MEMORY = 64 * 10**6
"""Memory for one rendering, in bytes, in addition to the 20 MB of Python and Jinja."""

GENERATION_START, GENERATION_END = "puna_generation_start", "puna_generation_end"
"""Variables whose values are shown at the start and the end of {% generation %} blocks; by default nothing is."""
