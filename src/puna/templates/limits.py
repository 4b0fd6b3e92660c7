"""Limits on rendering a chat template, and the framing of messages to and from the process that renders."""

from __future__ import annotations

import struct

SECONDS = 1.5
"""Maximum processor time of one rendering. A conversation of 10,000 messages needs 0.1 s."""

WALL_SECONDS = 7.5
"""Maximum elapsed time of one rendering: a busy machine may delay it."""

MEMORY = 64 * 10**6
"""Memory for one rendering, in bytes, in addition to the 20 MB of Python and Jinja."""

SIZE = struct.Struct("<Q")
"""Precedes each request and each answer: the number of bytes that follow."""
