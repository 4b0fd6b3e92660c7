"""Reads messages from the keyboard: several lines, pasted text, and the history of earlier sessions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import create_output
from prompt_toolkit.output.vt100 import Vt100_Output

from puna.cli.terminal import note


def history_file(state: Path | None) -> Path | None:
    """Returns the file of the history; None if the user has no home folder.

    Args:
        state: the folder for state in the XDG base directory specification, which ignores relative paths.
    """
    if state is None or not state.is_absolute():
        try:
            state = Path.home() / ".local" / "state"
        except RuntimeError:
            return None
    return state / "puna" / "chat_history"


def message_reader(commands: list[str], file: Path | None) -> Callable[[], str]:
    """Returns a function that reads one message; it raises EOFError on Ctrl-D and KeyboardInterrupt on Ctrl-C.

    Args:
        commands: words that the tab key completes.
        file: the file of the history; None keeps the history in memory.
    """
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    # Escape sequences in a text, such as ESC [ 31 m, look like reports of the mouse and the cursor. The bindings of
    # prompt_toolkit cannot handle them while both are off.
    @keys.add(Keys.Vt100MouseEvent)
    @keys.add(Keys.CPRResponse)
    def _(event: KeyPressEvent) -> None:
        pass

    output = create_output(always_prefer_tty=True)
    if isinstance(output, Vt100_Output):
        output.enable_cpr = False  # a terminal that does not report the cursor's position would delay the first prompt
    session: PromptSession[str] = PromptSession(
        "> ",
        multiline=True,
        prompt_continuation="  ",
        key_bindings=keys,
        history=_open_history(file),
        completer=WordCompleter(commands, sentence=True),
        complete_while_typing=False,
        output=output,
    )
    # The terminal delivers invalid UTF-8 as surrogates, which cannot be encoded.
    return lambda: session.prompt().encode("utf-8", "replace").decode()


def _open_history(file: Path | None) -> History:
    if file is None:
        return InMemoryHistory()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
        file.chmod(0o600)
    except OSError as exc:
        note(f"puna: the history of chats is not kept, because {file} cannot be written ({exc.strerror})")
        return InMemoryHistory()
    return _Utf8History(file)


class _Utf8History(FileHistory):
    """A history file that replaces characters without UTF-8, and continues in memory if the file cannot be written."""

    def load_history_strings(self) -> Iterable[str]:
        """Returns the messages of the file, the latest first; none if it cannot be read."""
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        """Adds a message to the file."""
        try:
            super().store_string(string.encode("utf-8", "replace").decode())
        except OSError as exc:
            note(f"puna: the message was not added to {self.filename!r} ({exc.strerror})")
