"""The tools and the format of a request of the Responses API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puna.errors import show
from puna.options import Options
from puna.server.errors import ApiError, unsupported
from puna.server.protocol.fields import Values
from puna.server.protocol.tagged import Skipped
from puna.server.tools.toolset import Function, ToolSet


def read_tools(values: Values) -> ToolSet | None:
    """Returns the functions that the answer may call; None if there are none.

    Raises:
        ApiError: 400, if `tool_choice` requires a call of a function that the request does not have.
    """
    functions = tuple(_function(tool) for tool in values["tools"] or () if not isinstance(tool, Skipped))
    choice = values["tool_choice"] or "auto"
    names = [function.name for function in functions]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ApiError(400, f"tools has two functions with the name {show(repeated)}", param="tools")
    if not functions:
        if choice in ("auto", "none"):
            return None
        raise ApiError(400, "tool_choice requires a call, but tools has no function", param="tool_choice")
    mode, allowed = _choice(choice, names)
    return ToolSet(functions, mode, allowed, values["parallel_tool_calls"])


def _function(tool: Mapping[str, Any]) -> Function:
    return Function(tool["name"], tool["parameters"], bool(tool["strict"]), tool["description"] or "")


def _choice(choice: Any, names: list[str]) -> tuple[Any, tuple[str, ...] | None]:
    """Returns the mode, and the names of the allowed functions; None for all."""
    if isinstance(choice, str):
        return choice, None
    if choice["type"] == "function":
        mode, allowed = "required", [choice["name"]]
    else:
        mode, allowed = choice["mode"], [_allowed(tool) for tool in choice["tools"]]
    for name in allowed:
        if name not in names:
            raise ApiError(
                400, f"tool_choice names {show(name)}, which is not a function of tools", param="tool_choice"
            )
    return mode, tuple(allowed)


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
