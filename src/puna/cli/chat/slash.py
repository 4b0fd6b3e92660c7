"""The commands of a chat, such as /set and /save."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.cli.chat.conversation import Conversation, Message, check_context
from puna.cli.chat.transcript import load, save
from puna.cli.loading import Loader
from puna.cli.terminal import did_you_mean
from puna.cli.wrap import terminal_width
from puna.errors import RequestError, show

if TYPE_CHECKING:
    from puna.checkpoint import Checkpoint

LEAVE = ("exit", "quit", "/exit", "/quit", "/bye")

_HELP = {
    "/help": "show this help",
    "/system TEXT": "set the system message (no TEXT: remove it) and restart",
    "/set OPTION VALUE": 'set an option such as temperature; "default" as VALUE: the model\'s; /set alone lists all',
    "/model NAME": "continue with another model, which replaces the present one in memory; /model alone shows the name",
    "/save FILE": "save the conversation as JSON",
    "/load FILE": "replace the conversation by a saved one",
    "/reset": "restart the conversation (also /clear)",
    "/undo": "remove your last message and its answer",
    "/history": "show the conversation",
    "/bye": "exit (also exit, /exit or Ctrl-D); Ctrl-C stops an answer or clears the line",
}
_KEYS = (
    "Enter sends the message, Alt+Enter starts a new line, and pasted text is one message. Put a space before a "
    "message that begins with / to send it to the model."
)
_INDENT = 20
"""Columns of the first column of the help."""

_TYPES: dict[str, Callable[[str], Any]] = {
    "temperature": float, "top_k": int, "top_p": float, "min_p": float, "typical_p": float,
    "repetition_penalty": float, "presence_penalty": float, "frequency_penalty": float, "seed": int,
    "max_tokens": int, "speculate": lambda text: {"on": True, "off": False}[text], "context": int,
}  # fmt: skip


@dataclass(frozen=True)
class Session:
    """The conversation on which the commands act, and the options with which models are loaded."""

    conversation: Conversation
    loader: Loader


def is_command(text: str) -> bool:
    """Whether a message is a command: one word after a slash, and one line unless the word is a known command."""
    match = re.match(r"(/[A-Za-z]+)(\s|$)", text)
    return match is not None and (match[1] in COMMANDS or "\n" not in text.strip())


def run_command(session: Session, text: str) -> str:
    """Runs a command; returns the message for the user.

    Raises:
        PunaError: the command failed; the conversation is unchanged.
    """
    name, _, argument = text.strip().partition(" ")
    if name not in COMMANDS:
        return f"{name} is not a command.{did_you_mean(name, list(COMMANDS))} /help lists the commands."
    return COMMANDS[name](session, argument.strip())


def help_text(width: int) -> str:
    """Returns the help for a terminal of this width, wrapped at words; the second column keeps its indentation."""
    lines = []
    for command, purpose in _HELP.items():
        rows = textwrap.wrap(purpose, max(10, width - 1 - _INDENT))
        lines += [f"{command if row == rows[0] else '':<{_INDENT}}{row}" for row in rows]
    return "\n".join([*lines, "", *textwrap.wrap(_KEYS, width - 1)])


def _help(session: Session, argument: str) -> str:
    return help_text(terminal_width(sys.stderr.fileno()))


def _reset(session: Session, argument: str) -> str:
    session.conversation.reset(session.conversation.system)
    return "Conversation restarted."


def _system(session: Session, argument: str) -> str:
    session.conversation.reset(argument or None)
    return f"System message {'set' if argument else 'removed'}; conversation restarted."


def _undo(session: Session, argument: str) -> str:
    session.conversation.undo()
    return f"Messages left: {len(session.conversation.messages)}."


def _history(session: Session, argument: str) -> str:
    messages = session.conversation.messages
    return "\n".join(f"{message['role']}: {_shown(message)}" for message in messages) or "Empty."


def _shown(message: Message) -> object:
    return message.get("tool_calls") if message.get("content") is None else message["content"]


def _save(session: Session, argument: str) -> str:
    path = _file("/save", argument)
    replaced = ", in place of an earlier conversation" if path.exists() else ""
    save(path, session.conversation.messages)
    return f"{len(session.conversation.messages)} messages saved to {path}{replaced}."


def _load(session: Session, argument: str) -> str:
    path = _file("/load", argument)
    session.conversation.messages = load(path)
    return f"{len(session.conversation.messages)} messages loaded from {path}; /history shows them."


def _file(command: str, argument: str) -> Path:
    if not argument:
        raise RequestError(f"{command} needs the name of a file, such as {command} chat.json")
    return Path(argument).expanduser()


def _set(session: Session, argument: str) -> str:
    conversation = session.conversation
    name, _, text = argument.partition(" ")
    name, text = name.replace("-", "_"), text.strip()
    if not name:
        return "\n".join(f"{option:<20} {_value(conversation, option)}" for option in _TYPES)
    if name not in _TYPES:
        raise RequestError(f"{name} is not an option.{did_you_mean(name, list(_TYPES))} /set alone lists all")
    if not text:
        return f"{name} is {_value(conversation, name)}."
    value = None
    if text != "default":
        try:
            value = _TYPES[name](text)
        except (ValueError, KeyError) as exc:
            expected = {float: "a number", int: "a whole number"}.get(_TYPES[name], "on or off")  # type: ignore[call-overload]
            raise RequestError(f"{name} must be {expected}, got {show(text)}") from exc
    if name == "context":
        conversation.use_model(conversation.name, conversation.llm, value)
    else:
        conversation.settings = _check_settings({**conversation.settings, name: value})
    return f"{name} is now {_value(conversation, name)}."


def _check_settings(settings: dict[str, Any]) -> Any:
    """Returns the settings without those that are None; raises RequestError if a value is out of range."""
    from puna.engine import Sampling

    if settings.get("max_tokens") is not None and settings["max_tokens"] < 1:
        raise RequestError(f"max_tokens is {settings['max_tokens']}; it must be 1 or more")
    values = {name: value for name, value in settings.items() if value is not None}
    Sampling(**{name: value for name, value in values.items() if name in Sampling.__dataclass_fields__})
    return values


def _value(conversation: Conversation, name: str) -> object:
    if name == "context":
        return conversation.context
    value = dict(conversation.options).get(name, "the model's default")
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


def _model(session: Session, argument: str) -> str:
    conversation = session.conversation
    if not argument:
        return f"The model is {conversation.name} ({conversation.llm.path})."
    name, checkpoint = session.loader.open(argument)
    check_context(name, checkpoint.config, conversation.requested_context)
    _replace_model(session, name, checkpoint)
    return f"The conversation continues with {describe(conversation)}."


def _replace_model(session: Session, name: str, checkpoint: Checkpoint) -> None:
    """Loads a model in place of the present one, so that only one is in memory; if this fails, restores the present."""
    conversation, loader = session.conversation, session.loader
    previous_name, previous = loader.open(str(conversation.llm.path))
    conversation.llm.close()
    try:
        llm = loader.load_checkpoint(name, checkpoint)
    except BaseException:
        llm = loader.load_checkpoint(previous_name, previous)
        conversation.use_model(conversation.name, llm, conversation.requested_context)
        raise
    conversation.use_model(name, llm, conversation.requested_context)


def describe(conversation: Conversation) -> str:
    """Returns the model's name, backend and context."""
    return f"{conversation.name} ({conversation.llm.backend} backend, context of {conversation.context:,} tokens)"


COMMANDS: dict[str, Callable[[Session, str], str]] = {
    "/help": _help, "/system": _system, "/set": _set, "/model": _model, "/save": _save,
    "/load": _load, "/reset": _reset, "/clear": _reset, "/undo": _undo, "/history": _history,
}  # fmt: skip
