"""Entry point of the command `puna` and of `python -m puna`: quiet on Ctrl-C even while it still imports."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Runs the command."""
    gc.set_threshold(
        100_000
    )  # starting makes half a million objects that stay: no use in going through them all the time
    try:
        from puna.cli import app

        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as exc:  # standard output is full or gone
        sys.exit(f"puna: {exc}")


if __name__ == "__main__":
    main()
