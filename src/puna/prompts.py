"""Prompts and conversations: the arguments of `LLM` as token ids, and as messages for a chat template."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from puna.errors import RequestError, show

Message = Mapping[str, Any]

_MESSAGE = (
    "it must be a message, a dictionary with 'role' and 'content'. Give a text, a list of messages such as "
    "[{'role': 'user', 'content': 'Hi'}], or for several conversations a list of such lists"
)


@dataclass(frozen=True)
class ChatArguments:
    """The arguments of a call that only conversations have; see `LLM.chat` and `LLM.start_deltas`.

    Attributes:
        template: the chat template, instead of the model's.
    """

    tools: Any = None
    continue_final_message: bool = False
    add_generation_prompt: bool = True
    template_kwargs: Mapping[str, Any] | None = None
    template: str | None = None

    def check_unused(self) -> None:
        """Raises RequestError for the first argument that is given, because the prompt is not a conversation."""
        for name, default in vars(ChatArguments()).items():
            if getattr(self, name) != default:
                raise RequestError(f"{name} is given, but the prompt is not a conversation; give a list of messages")


def read_ids(tokens: Sequence[int], name: str = "the prompt") -> tuple[int, ...]:
    """Converts token ids in a list, a tuple, a 1-D array or tensor to a tuple; floats and bools are errors."""
    try:
        if isinstance(tokens, str | bytes | bytearray | Mapping | Set):
            raise TypeError
        ids = tuple(tokens)
        if any(isinstance(token, bool) for token in ids):
            raise TypeError
        return tuple(operator.index(token) for token in ids)
    except TypeError as exc:
        hint = "; messages are for chat or stream" if is_messages(tokens) else ""
        if isinstance(tokens, list | tuple) and tokens and all(isinstance(item, str) for item in tokens):
            hint = "; only generate accepts a list of texts"
        raise RequestError(f"{name} must be text or token ids (whole numbers), got {show(tokens)}{hint}") from exc


def split_inputs(inputs: Any) -> list[Any]:
    """Returns the texts and lists of token ids in the argument of `LLM.embed` and `LLM.classify`.

    Raises:
        RequestError: there are none.
    """
    if isinstance(inputs, str):
        return [inputs]
    if isinstance(inputs, bytes | bytearray | Mapping | Set) or not isinstance(inputs, Iterable):
        raise RequestError(f"inputs is {show(inputs)}; it must be a text, a list of texts, or token ids")
    items = list(inputs)
    if not items:
        raise RequestError("inputs is empty; give at least one text or list of token ids")
    several = isinstance(items[0], Sequence) or getattr(items[0], "ndim", 0) > 0
    return items if several else [items]


def join_ids(
    context: tuple[int, ...], joined: tuple[int, ...], separate: tuple[int, ...]
) -> tuple[tuple[int, ...], int]:
    """Returns the ids of a context and its continuation, and the number of ids of the context.

    The continuation begins where the ids of both texts joined differ from the context's: a token may contain the end of
    the context and the beginning of the continuation. If they have no id in common, the separate ids are used.

    Args:
        context, joined, separate: the ids of the context, of both texts joined, and of the continuation alone.
    """
    pairs = enumerate(zip(context, joined, strict=False))
    shared = next((index for index, (a, b) in pairs if a != b), min(len(context), len(joined)))
    return (joined, shared) if shared else (context + separate, len(context))


def is_messages(prompt: object) -> bool:
    """Returns whether a prompt of `LLM.stream` is a conversation."""
    return isinstance(prompt, list | tuple) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def read_conversations(messages: object) -> tuple[list[list[dict[str, Any]]], bool]:
    """Returns the conversations in the argument of `LLM.chat`, and whether it is a list of conversations.

    A text is a conversation of one user message. Content in text parts becomes one text; the parts are separate lines,
    as in vLLM and llama.cpp.

    Raises:
        RequestError: the argument is not a conversation; the message names the position.
    """
    if isinstance(messages, str):
        return [[{"role": "user", "content": messages}]], False
    if not isinstance(messages, list | tuple):
        raise RequestError(f"messages is {show(messages)}; it must be a text, or a list of messages or conversations")
    if any(isinstance(item, list | tuple) for item in messages):
        return [_conversation(f"messages[{index}]", item) for index, item in enumerate(messages)], True
    return [_conversation("messages", messages)], False


def read_tools(tools: object) -> list[dict[str, Any]] | None:
    """Returns the tools of a conversation; None if there are none.

    Raises:
        RequestError: a tool is not described by a dictionary.
    """
    if tools is None:
        return None
    if not isinstance(tools, list | tuple):
        raise RequestError(f"tools is {show(tools)}; it must be a list of JSON schemas")
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise RequestError(f"tools[{index}] is {show(tool)}; describe the tool by a JSON schema, a dictionary")
    return [dict(tool) for tool in tools] or None


def _conversation(name: str, messages: object) -> list[dict[str, Any]]:
    if not isinstance(messages, list | tuple):
        raise RequestError(f"{name} is {show(messages)}; it must be a list of messages, like the other conversations")
    if not messages:
        raise RequestError(f"{name} is empty; a conversation has at least one message")
    return [_message(f"{name}[{index}]", message) for index, message in enumerate(messages)]


def _message(name: str, message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"{name} is {show(message)}; {_MESSAGE}")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise RequestError(f"{name}['role'] is {show(role)}; it must be a text such as 'user'")
    if content is None and message.get("tool_calls"):
        return dict(message)
    if isinstance(content, list | tuple) and content:
        parts = [_text(f"{name}['content'][{index}]", part) for index, part in enumerate(content)]
        return {**message, "content": "\n".join(parts)}
    if not isinstance(content, str):
        raise RequestError(f"{name}['content'] is {show(content)}; it must be a text or a list of text parts")
    return dict(message)


def _text(name: str, part: object) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(text, str):
        return text
    if isinstance(kind, str) and kind != "text":
        raise RequestError(f"{name} is of type {show(kind)}; the model reads only parts of type 'text'")
    raise RequestError(f"{name} is {show(part)}; it must be {{'type': 'text', 'text': a text}}")
