"""Instructions that several messages of training contain."""

from __future__ import annotations

import shlex
from pathlib import Path


def how_to_resume(folder: Path) -> str:
    """Returns the instruction to continue the run in a folder, for messages."""
    return f"continue the run with `puna train resume {shlex.quote(str(folder))}`, or resume=True in Python"
