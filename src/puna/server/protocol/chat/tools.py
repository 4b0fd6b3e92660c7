"""The tools of a request of the chat API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puna.server.protocol.fields import Values
from puna.server.protocol.tool_sets import make_tool_set
from puna.server.tools.toolset import Function, ToolSet


def read_tools(values: Values) -> ToolSet | None:
    """Returns the functions that the answer may call; None if there are none.

    Raises:
        ApiError: 400, if two functions have one name, or `tool_choice` names a function that the request does not have.
    """
    functions = [function_of(tool["function"]) for tool in values["tools"] or ()]
    return make_tool_set(functions, *_choice(values["tool_choice"] or "auto"), values["parallel_tool_calls"])


def function_of(values: Mapping[str, Any]) -> Function:
    """Returns a function of the field `tools`."""
    return Function(values["name"], values["parameters"], values["strict"], values["description"] or "")


def _choice(choice: Any) -> tuple[Any, tuple[str, ...] | None]:
    """Returns the mode, and the names of the allowed functions; None for all."""
    if isinstance(choice, str):
        return choice, None
    if choice["type"] == "function":
        return "required", (choice["function"]["name"],)
    allowed = choice["allowed_tools"]
    return allowed["mode"], tuple(tool["function"]["name"] for tool in allowed["tools"])
