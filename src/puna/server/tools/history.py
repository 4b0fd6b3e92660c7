"""Conversations with tools, as the model's chat template expects them: earlier calls, results, and descriptions."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from puna.server.tools.formats import ToolFormat
from puna.server.tools.toolset import ToolSet
from puna.server.tools.values import read_arguments

_INSTRUCTIONS = """\
You may call functions to answer the user. The functions, one per line, are described by JSON schemas:
<tools>
{tools}
</tools>
To call a function, write its name and its arguments as JSON between these tags, once for each call:
<tool_call>
{{"name": "the name", "arguments": {{the arguments}}}}
</tool_call>
The results follow in <tool_response></tool_response>."""
"""The description of functions for a chat template without one."""

_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")


def needs_tools(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Returns whether a conversation has calls of functions or their results."""
    return any(item.get("tool_calls") or item.get("role") in ("tool", "function") for item in messages)


def with_tools(
    messages: Sequence[Mapping[str, Any]], form: ToolFormat, tools: ToolSet | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Returns the messages for the chat template, and the descriptions of the functions for its variable `tools`.

    Args:
        messages: messages in OpenAI's form; the content is a text or absent, and arguments of calls are JSON objects.
        form: the model's format of calls.
        tools: the functions that the prompt describes; None if there are none.
    """
    names: dict[str, str] = {}
    result: list[dict[str, Any]] = []
    for message in messages:
        if message.get("tool_calls"):
            calls = [_call(call) for call in message["tool_calls"]]
            names |= {identifier: name for identifier, name, _ in calls}
            result.append(_with_calls(message, calls, form))
        elif message.get("role") in ("tool", "function"):
            _add_result(result, message, names, form)
        else:
            _add(result, message, form)
    descriptions = None if tools is None else [item.description_json for item in tools.functions]
    if descriptions and not form.renders_tools:
        lines = "\n".join(json.dumps(item["function"], ensure_ascii=False) for item in descriptions)
        result = _with_system(result, _INSTRUCTIONS.format(tools=lines))
        descriptions = None
    return result, descriptions


def _call(call: Mapping[str, Any]) -> tuple[str, str, str]:
    """Returns the identifier, the name and the arguments, as JSON text, of an earlier call."""
    function = call["function"]
    return str(call.get("id") or ""), function["name"], function["arguments"] or "{}"


def _with_calls(message: Mapping[str, Any], calls: Sequence[tuple[str, str, str]], form: ToolFormat) -> dict[str, Any]:
    """Returns a message of the assistant with its calls."""
    content = message.get("content")
    if not form.renders_calls:
        written = form.write([(name, arguments) for _, name, arguments in calls])
        others = {key: value for key, value in message.items() if key != "tool_calls"}
        return {**others, "content": f"{content}\n{written}" if content else written}
    rendered = [
        {
            "id": _identifier(identifier, form),
            "type": "function",
            "function": {"name": name, "arguments": read_arguments(text) if form.arguments == "object" else text},
        }
        for identifier, name, text in calls
    ]
    return {**message, "content": content or form.content, "tool_calls": rendered}


def _add_result(
    result: list[dict[str, Any]], message: Mapping[str, Any], names: Mapping[str, str], form: ToolFormat
) -> None:
    """Adds the result of a call; with a template without the role "tool", it is part of the user's turn."""
    content = message.get("content")
    identifier = str(message.get("tool_call_id") or "")
    if not form.renders_results:
        text = f"<tool_response>\n{content or ''}\n</tool_response>"
        _add(result, {"role": "user", "content": text}, form)
        return
    name = message.get("name") or names.get(identifier)
    rendered = {**message, "role": "tool", "content": content or "", "name": name}
    result.append({**rendered, "tool_call_id": _identifier(identifier, form)} if identifier else rendered)


def _add(result: list[dict[str, Any]], message: Mapping[str, Any], form: ToolFormat) -> None:
    """Adds a message. A user's text joins results before it, because many templates need alternating roles."""
    last = result[-1] if result else None
    joins = last is not None and last["role"] == message.get("role") == "user" and not form.renders_results
    if joins and last is not None and str(last.get("content")).endswith("</tool_response>"):
        result[-1] = {**last, "content": f"{last['content']}\n{message.get('content') or ''}"}
    else:
        result.append(dict(message))


def _with_system(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """Returns the messages with a text at the end of the system message."""
    first = messages[0] if messages else None
    if first is not None and first.get("role") == "system":
        content = first.get("content")
        return [{**first, "content": f"{content}\n\n{text}" if content else text}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _identifier(identifier: str, form: ToolFormat) -> str:
    """Returns the identifier of a call as the template accepts it."""
    if not form.short_ids or _SHORT_ID.fullmatch(identifier):
        return identifier
    return hashlib.sha256(identifier.encode()).hexdigest()[:9]
