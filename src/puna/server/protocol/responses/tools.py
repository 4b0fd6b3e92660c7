"""The tools and the format of a request of the Responses API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puna.errors import show
from puna.options import Options
from puna.server.errors import unsupported
from puna.server.protocol.fields import Values
from puna.server.protocol.tagged import Skipped
from puna.server.protocol.tool_sets import make_tool_set
from puna.server.tools.toolset import Function, ToolSet


def read_tools(values: Values) -> ToolSet | None:
    """Returns the functions that the answer may call; None if there are none.

    Raises:
        ApiError: 400, if `tool_choice` requires a call of a function that the request does not have.
    """
    functions = [_function(tool) for tool in values["tools"] or () if not isinstance(tool, Skipped)]
    return make_tool_set(functions, *_choice(values["tool_choice"] or "auto"), values["parallel_tool_calls"])


def _function(tool: Mapping[str, Any]) -> Function:
    return Function(tool["name"], tool["parameters"], bool(tool["strict"]), tool["description"] or "")


def _choice(choice: Any) -> tuple[Any, list[str] | None]:
    """Returns the mode, and the names of the allowed functions; None for all."""
    if isinstance(choice, str):
        return choice, None
    if choice["type"] == "function":
        return "required", [choice["name"]]
    return choice["mode"], [_allowed(tool) for tool in choice["tools"]]


def _allowed(tool: Mapping[str, Any]) -> str:
    if tool.get("type") != "function" or not isinstance(tool.get("name"), str):
        raise unsupported("tool_choice.tools", f"tool_choice.tools has {show(tool)}; only functions can be called")
    return str(tool["name"])


def read_format(text_format: Mapping[str, Any] | None) -> Options:
    """Returns the options of `LLM` for the format of the answer."""
    kind = (text_format or {}).get("type", "text")
    if kind == "json_object":
        return {"json_schema": True}
    return {} if text_format is None or kind == "text" else {"json_schema": text_format["schema"]}
