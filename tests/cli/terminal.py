"""A pseudo-terminal in which a test runs a command, with time limits."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time

PROMPT = b"\x1b[?2004h"
"""Enables bracketed paste; the chat writes these bytes when it starts to wait for a message."""

_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Terminal:
    """A running command; `output` holds the bytes that it has written since the last `wait`."""

    def __init__(self, command: list[str], environment: dict[str, str], columns: int = 80) -> None:
        self._controller, terminal = pty.openpty()
        self.resize(columns)
        self.process = subprocess.Popen(
            command,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", **environment},
        )
        os.close(terminal)
        self.output = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._controller)

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self._controller, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))

    def send(self, text: bytes) -> None:
        os.write(self._controller, text)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def wait(self, word: bytes, seconds: float = 60) -> str:
        """Reads until `word` was written; returns the text up to it, without escape sequences."""
        end = time.monotonic() + seconds
        while word not in self.output:
            ready, _, _ = select.select([self._controller], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{word!r} was not written: {self.output[-2000:]!r}"
            self.output += os.read(self._controller, 65536)
        before, _, self.output = self.output.partition(word)
        return _ESCAPES.sub(b"", before + word).decode()

    def rest(self, seconds: float = 60) -> bytes:
        """Reads until the command ends; returns its remaining output with all escape sequences."""
        end = time.monotonic() + seconds
        while self.process.poll() is None or select.select([self._controller], [], [], 0)[0]:
            assert time.monotonic() < end, f"the command did not end: {self.output[-2000:]!r}"
            if select.select([self._controller], [], [], 0.01)[0]:
                try:
                    self.output += os.read(self._controller, 65536)
                except OSError:  # Linux, when the command has closed the terminal
                    self.process.wait(seconds)
                    break
        return self.output
