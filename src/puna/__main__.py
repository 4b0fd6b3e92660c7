"""Entry point of the command `puna` and of `python -m puna`: exits quietly on Ctrl-C, even during imports."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Runs the command."""
    # Start-up creates half a million objects that are never freed; the collector would scan them repeatedly.
    gc.set_threshold(100_000)
    try:
        from puna.cli import app

        app(prog_name="puna")  # also for python -m puna: the name is part of the completion scripts
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as exc:  # standard output cannot be written: the disk is full or the pipe is closed
        sys.exit(f"puna: {exc}")


if __name__ == "__main__":
    main()
