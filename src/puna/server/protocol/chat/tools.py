"""The tools of a request of the chat API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puna.errors import show
from puna.server.errors import ApiError
from puna.server.protocol.fields import Values
from puna.server.tools.toolset import Function, ToolSet


def read_tools(values: Values) -> ToolSet | None:
    """Returns the functions that the answer may call; None if there are none.

    Raises:
        ApiError: 400, if two functions have one name, or `tool_choice` names a function that the request does not have.
    """
    functions = tuple(function_of(tool["function"]) for tool in values["tools"] or ())
    names = [function.name for function in functions]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise _invalid("tools", f"tools has two functions with the name {show(repeated)}; rename one")
    choice = values["tool_choice"] or "auto"
    if not functions:
        if choice in ("auto", "none"):
            return None
        raise _invalid("tool_choice", f"tool_choice is {show(choice)}, but the request has no tools; add them")
    mode, allowed = _choice(choice)
    for name in allowed or ():
        if name not in names:
            raise _invalid("tool_choice", f"tool_choice names {show(name)}, which is not one of the tools")
    return ToolSet(functions, mode, allowed, values["parallel_tool_calls"])


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


def _invalid(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_value")
