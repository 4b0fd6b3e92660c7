"""Entry point of the command `puna` and of `python -m puna`: exits quietly on Ctrl-C, also while it starts or ends."""

from __future__ import annotations

import gc
import signal
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
    finally:
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # ignored with nohup
            # A further Ctrl-C ends the process at once; Python would print a traceback of its own exit.
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
