"""The chat in a terminal: reads messages, prints answers with word wrap, and shows the speed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from puna.cli.chat.conversation import Conversation, Reply
from puna.cli.chat.keyboard import history_file, message_reader
from puna.cli.chat.slash import COMMANDS, LEAVE, Session, describe, is_command, run_command
from puna.cli.loading import Loader
from puna.cli.terminal import is_quiet, stderr_console, write
from puna.cli.wrap import wrapped_output
from puna.errors import PunaError, printable

if TYPE_CHECKING:
    from puna.llm import Options


_FALLBACK: Options = {"temperature": 0.7, "top_p": 0.95}
"""Without sampling, small models repeat their most likely sentence until the context is full."""


def chat_in_terminal(conversation: Conversation, loader: Loader, state: Path | None) -> None:
    """Answers messages until the user leaves. Errors are shown, and the chat continues."""
    session = Session(conversation, loader)
    conversation.fallback = _FALLBACK
    read = message_reader([*COMMANDS, "/bye"], history_file(state))
    _print_note(f"{describe(conversation)}")
    _print_note("Enter sends, Alt+Enter starts a new line, /help lists commands, Ctrl-D or /bye leaves.")
    while True:
        try:
            text = read()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if text.strip() in LEAVE:
            return
        try:
            _respond(session, text)
        except KeyboardInterrupt:
            _print_note("Stopped before an answer; the message is not part of the conversation.")


def _respond(session: Session, text: str) -> None:
    console = stderr_console()
    try:
        if is_command(text):
            console.print(printable(run_command(session, text)), markup=False, style="dim")
        elif text.strip():
            _answer(session.conversation, text.strip())
    except PunaError as exc:
        console.print(printable(str(exc)), markup=False, style="red")


def _answer(conversation: Conversation, text: str) -> None:
    with _hidden_keys():
        try:
            with wrapped_output() as show:
                reply = conversation.say(text, show, stoppable=True)
        finally:
            write("\n")
    if reply.dropped_messages:
        _print_note(conversation.dropped_note(reply))
    _print_note(_summary(conversation, reply))


def _summary(conversation: Conversation, reply: Reply) -> str:
    speed = reply.decode_tokens_per_second
    used = reply.prompt_tokens + reply.tokens
    limit = ", context full" if used >= conversation.context else ", maximum length"
    stopped = {"interrupted": ", stopped", "length": limit}.get(reply.finish_reason, "")
    return (
        f"[{conversation.name}: {reply.tokens} tokens{stopped}{f', {speed:.1f} tok/s' if speed else ''}; context "
        f"{used:,} of {conversation.context:,}]"
    )


def _print_note(text: str) -> None:
    if not is_quiet():
        stderr_console().print(text, markup=False, style="dim")


@contextmanager
def _hidden_keys() -> Iterator[None]:
    """Context manager: hides keys that are pressed while an answer is printed; the next prompt reads them."""
    import termios

    try:
        settings = termios.tcgetattr(sys.stdin)
    except (termios.error, ValueError):
        yield
        return
    hidden = [*settings[:3], settings[3] & ~termios.ECHO, *settings[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSANOW, hidden)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, settings)
