"""Conversations: messages in OpenAI's format, and in that of ShareGPT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from puna.errors import DataError, show, show_json, suggestion
from puna.training.batch import Source
from puna.training.data.layouts.checks import (
    need_mapping,
    parse_json_text,
    read_answer,
    read_list,
    read_optional_text,
    read_text,
    read_weight,
)

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")

_SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "model": "assistant", "system": "system", "tool": "tool",
    "observation": "tool", "function_response": "tool", "function_call": "assistant",
}  # fmt: skip
"""The role of each speaker in ShareGPT's format (LLaMA-Factory's documentation, and names that collections use)."""

_EXAMPLE = '{"role": "user", "content": "Hi"}'


@dataclass(frozen=True)
class Conversation:
    """Messages for a chat template.

    Attributes:
        messages: dictionaries with "role" and "content".
        weights: of the loss of each message: 0 except for answers of the assistant.
        tools: descriptions of functions, None without any.
    """

    messages: list[dict[str, Any]]
    weights: list[float]
    tools: list[Any] | None
    source: Source


def read_messages(items: Any, tools: Any, source: Source, name: str = "messages") -> Conversation:
    """Reads messages in OpenAI's format, with "weight" and "tool_calls" (the older "function_call" too).

    Raises:
        DataError: a message is not valid, or there is no answer to learn.
    """
    messages, weights = [], []
    for index, item in enumerate(_some_messages(items, name, source)):
        message, weight = _message(item, f"{name}[{index}]", source)
        messages.append(message)
        weights.append(weight)
    return checked(Conversation(messages, weights, read_tools(tools, source), source))


def read_sharegpt(items: Any, system: Any, tools: Any, source: Source) -> Conversation:
    """Reads messages in ShareGPT's format: "from" and "value". Calls and their results become "tool_calls" and "tool".

    Raises:
        DataError: a message is not valid, or there is no answer to learn.
    """
    first = read_optional_text(system, "system", source)
    messages: list[dict[str, Any]] = [{"role": "system", "content": first}] if first else []
    weights = [0.0] * len(messages)
    for index, item in enumerate(_some_messages(items, "conversations", source)):
        name = f"conversations[{index}]"
        message = need_mapping(item, name, source, '{"from": "human", "value": "Hi"}')
        speaker = message.get("from")
        if speaker not in _SPEAKERS:
            hint = suggestion(speaker, _SPEAKERS)
            raise DataError(
                f"{source}: {name}: from is {show_json(speaker)}{hint}; it must be one of {', '.join(_SPEAKERS)}"
            )
        role = _SPEAKERS[speaker]
        if role == "system" and messages and index == 0:
            raise DataError(f"{source}: both the column system and {name} have a system message; remove one")
        messages.append(_shared_message(speaker, role, message.get("value"), f"{name}: value", source))
        weights.append(_weight(message, role, name, source))
    return checked(Conversation(messages, weights, read_tools(tools, source), source))


def checked(conversation: Conversation) -> Conversation:
    """Returns a conversation in which there is an answer to learn; raises DataError for any other."""
    if not any(conversation.weights):
        raise DataError(
            f"{conversation.source}: there is no answer to learn; add a message of the assistant, whose weight is not 0"
        )
    return conversation


def read_tools(tools: Any, source: Source) -> list[Any] | None:
    """Returns descriptions of functions, also those written as JSON text; None for an empty list; raises DataError."""
    if tools is None or tools == "":
        return None
    return [
        dict(need_mapping(tool, f"tools[{index}]", source, '{"type": "function", "function": {"name": "f"}}'))
        for index, tool in enumerate(read_list(tools, "tools", source))
    ] or None


def _some_messages(items: Any, name: str, source: Source) -> list[Any]:
    messages = read_list(items, name, source)
    if not messages:
        raise DataError(f"{source}: {name} is empty; a conversation has at least a question and an answer")
    return messages


def _message(item: Any, name: str, source: Source) -> tuple[dict[str, Any], float]:
    """Returns a message without "weight", and its weight."""
    message = need_mapping(item, name, source, _EXAMPLE)
    role = message.get("role")
    if role not in ROLES:
        hint = suggestion(role, ROLES)
        raise DataError(f"{source}: {name}: role is {show_json(role)}{hint}; it must be one of {', '.join(ROLES)}")
    weight = _weight(message, role, name, source)
    result = {
        key: value for key, value in message.items() if value is not None and key not in ("weight", "function_call")
    }
    if calls := _calls(message, name, source):
        result["tool_calls"] = calls
    if calls and message.get("content") is None:
        return result, weight
    result["content"] = _content(message.get("content"), f"{name}: content", source)
    if weight and not calls:
        read_answer(result["content"], f"{name}: content", source)
    return result, weight


def _weight(message: Mapping[str, Any], role: str, name: str, source: Source) -> float:
    value = message.get("weight")
    if value is None:
        return float(role == "assistant")
    weight = read_weight(value, f"{name}: weight", source)
    if weight and role != "assistant":
        raise DataError(
            f"{source}: {name}: weight is {weight:g}, but the role is {role}; only messages of the assistant are "
            "learned (prompt_loss_weight is the weight of all others)"
        )
    return weight


def _content(value: Any, name: str, source: Source) -> str:
    """Returns the text of a message; text parts become lines, as in `LLM.chat`."""
    if not isinstance(value, list | tuple):
        return read_text(value, name, source)
    texts = []
    for index, item in enumerate(value):
        part = need_mapping(item, f"{name}[{index}]", source, '{"type": "text", "text": "Hi"}')
        if part.get("type") != "text":
            raise DataError(
                f"{source}: {name}[{index}] has the type {show_json(part.get('type'))}; LLaMA models read parts of the "
                'type "text" only'
            )
        texts.append(read_text(part.get("text"), f"{name}[{index}]: text", source))
    return "\n".join(texts)


def _calls(message: Mapping[str, Any], name: str, source: Source) -> list[dict[str, Any]]:
    """Returns the calls of functions in a message, their arguments as objects, which chat templates expect."""
    calls = message.get("tool_calls")
    if calls is None and message.get("function_call") is not None:
        calls = [{"type": "function", "function": message["function_call"]}]
    result = []
    for index, item in enumerate([] if calls is None else read_list(calls, f"{name}: tool_calls", source)):
        call = need_mapping(
            item, f"{name}: tool_calls[{index}]", source, '{"function": {"name": "f", "arguments": {}}}'
        )
        function = call.get("function", call)
        where = f"{name}: tool_calls[{index}]"
        result.append({**call, "type": "function", "function": _function(function, where, source)})
        if "function" not in call:
            result[-1] = {key: value for key, value in result[-1].items() if key not in ("name", "arguments")}
    return result


def _function(value: Any, name: str, source: Source) -> dict[str, Any]:
    function = need_mapping(value, name, source, '{"name": "f", "arguments": {}}')
    read_answer(function.get("name"), f"{name}: the name of the function", source)
    arguments = parse_json_text(function.get("arguments", {}))
    need_mapping(arguments, f"{name}: arguments", source, '{"city": "Lima"}')
    return {"name": function["name"], "arguments": dict(arguments)}


def _shared_message(speaker: str, role: str, value: Any, name: str, source: Source) -> dict[str, Any]:
    text = read_answer(value, name, source) if role == "assistant" else read_text(value, name, source)
    if speaker != "function_call":
        return {"role": role, "content": text}
    calls = parse_json_text(text)
    items: Sequence[Any] = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(item, Mapping) for item in items):
        raise DataError(
            f"{source}: {name} of a function_call is {show(text)}; it must be JSON such as "
            '{"name": "f", "arguments": {}}'
        )
    functions = [_function(item, f"{name}[{index}]", source) for index, item in enumerate(items)]
    return {"role": role, "tool_calls": [{"type": "function", "function": function} for function in functions]}
