"""Entry point of the command `puna` and of `python -m puna`: quiet on Ctrl-C even while it still imports."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command."""
    try:
        from puna.cli import app

        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as exc:  # standard output is full or gone
        sys.exit(f"puna: {exc}")


if __name__ == "__main__":
    main()
