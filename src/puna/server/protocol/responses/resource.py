"""The `response` object of the Responses API."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from puna.server.protocol.extras import served_tier
from puna.server.protocol.fields import Values
from puna.server.protocol.tagged import Skipped
from puna.server.updates import Usage

_ECHOED = (
    "instructions", "max_output_tokens", "parallel_tool_calls", "user", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention",
)  # fmt: skip
"""Fields that the response repeats unchanged."""

_TOOL_KEYS = ("description", "parameters", "strict", "defer_loading", "allowed_callers", "output_schema", "async")


def new_id(kind: str) -> str:
    """Returns an identifier such as msg_0123; `kind` is the part before the underscore."""
    return f"{kind}_{secrets.token_hex(24)}"


def response_object(values: Values, *, created: int, temperature: float, top_p: float) -> dict[str, Any]:
    """Returns the response to a request before its answer begins: every field of the SDK's `Response`, and `store`.

    Args:
        values: the fields of the request.
        created: the time in seconds since 1970.
        temperature, top_p: the sampling settings that the answer uses.
    """
    text, reasoning = values["text"] or {}, values["reasoning"] or {}
    options = values["prompt_cache_options"] or {}
    has_comparison = options.get("comparison_response_id") is not None
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": created,
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "conversation": None,
        "error": None,
        "incomplete_details": None,
        "max_tool_calls": None,
        "metadata": values["metadata"] or {},
        "model": values["model"],
        "moderation": None,
        "output": [],
        "previous_response_id": None,
        "prompt": None,
        "prompt_cache_diagnostics": {"type": "comparison_response_not_found"} if has_comparison else None,
        "prompt_cache_options": _without_nulls(options) if options.get("mode") and options.get("ttl") else None,
        "reasoning": {"effort": None, "summary": None, **_without_nulls(reasoning)},
        "service_tier": served_tier(values),
        "store": False,
        "temperature": temperature,
        "text": {"format": _without_nulls(text.get("format") or {"type": "text"}), "verbosity": "medium"},
        "tool_choice": _without_nulls(values["tool_choice"] or "auto"),
        "tools": [_tool(tool) for tool in values["tools"] or ()],
        "top_logprobs": values["top_logprobs"] or 0,
        "top_p": top_p,
        "truncation": "disabled",
        "usage": None,
        **{name: values[name] for name in _ECHOED},
    }


def usage_object(usage: Usage) -> dict[str, Any]:
    """Returns the numbers of tokens of a response."""
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.prompt - usage.cached},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }


def _without_nulls(value: Any) -> Any:
    """Returns a value without the fields that are None because they were absent from the request."""
    if not isinstance(value, Mapping):
        return value
    return {key: _without_nulls(item) for key, item in value.items() if item is not None}


def _tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a tool in the form of the response, which also lists the tools that were skipped."""
    if isinstance(tool, Skipped):
        return tool
    optional = {key: tool[key] for key in _TOOL_KEYS[3:] if tool[key] is not None}
    return {"type": "function", "name": tool["name"], **{key: tool[key] for key in _TOOL_KEYS[:3]}, **optional}


def call_item(identifier: str, call_id: str, name: str, arguments: str, status: str) -> dict[str, Any]:
    """Returns the item of a function call."""
    call = {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}
    return {"id": identifier, **call, "status": status}


def text_part(text: str, logprobs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the content part of a text."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def reasoning_item(identifier: str, content: Sequence[Mapping[str, Any]], status: str) -> dict[str, Any]:
    """Returns the item of the reasoning before a message."""
    return {"id": identifier, "type": "reasoning", "status": status, "summary": [], "content": list(content)}


def message_item(identifier: str, content: Sequence[Mapping[str, Any]], status: str) -> dict[str, Any]:
    """Returns the item of a message."""
    return {"id": identifier, "type": "message", "role": "assistant", "status": status, "content": list(content)}
