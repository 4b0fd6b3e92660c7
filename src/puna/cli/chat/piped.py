"""Chats through pipes: texts separated by NUL characters, or JSON lines. Errors name the message and its line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from puna.cli.chat.conversation import Conversation, Message, Reply
from puna.cli.chat.transcript import read_messages
from puna.cli.prompt import decode, read_stdin_bytes
from puna.cli.terminal import note, print_json, write
from puna.errors import PunaError, RequestError, show


def answer_texts(conversation: Conversation) -> None:
    """Prints the answer to each message of standard input; NUL characters separate the messages."""
    line = number = 1
    for part in read_stdin_bytes().split(b"\0"):
        first = line + part[: len(part) - len(part.lstrip())].count(b"\n")
        if part.strip():
            with _errors_of_message(number, first):
                text = decode(part.removesuffix(b"\n"), "the message")
                reply = conversation.say(text, show=write)
            write("\n")
            if reply.dropped_messages:
                note(conversation.dropped_note(reply))
            number += 1
        line += part.count(b"\n")


def answer_json_lines(conversation: Conversation) -> None:
    """Reads messages from each line of standard input; prints the answer to each message of the user or a tool.

    Answers are JSON lines. A system message at the beginning replaces the one of --system. A message with the role
    assistant replaces the model's answer, if it follows one. In a list of messages, only the last is answered.
    """
    number = 0
    for line_number, line in enumerate(sys.stdin.buffer, 1):
        if not line.strip():
            continue
        number += 1
        with _errors_of_message(number, line_number):
            *earlier, last = _parse(decode(line, "the message").strip())
            for message in earlier:
                _add(conversation, message)
            if last["role"] not in ("user", "tool"):
                _add(conversation, last)
                continue
            print_json(_as_json(conversation.say(last)))
        sys.stdout.flush()


def _parse(line: str) -> list[Message]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise RequestError(f"{show(line)} is not JSON ({exc}); put a text in quotes") from exc
    return read_messages(value)


def _add(conversation: Conversation, message: Message) -> None:
    previous = conversation.messages[-1]["role"] if conversation.messages else None
    if previous == message["role"] and previous in ("system", "assistant"):
        conversation.messages.pop()
    conversation.messages.append(message)


def _as_json(reply: Reply) -> dict[str, object]:
    return {"role": "assistant", **asdict(reply)}


@contextmanager
def _errors_of_message(number: int, line: int) -> Iterator[None]:
    try:
        yield
    except PunaError as exc:
        raise RequestError(f"message {number} on line {line}: {exc}") from exc
