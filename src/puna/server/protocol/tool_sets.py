"""`make_tool_set`: the tools of a request, checked, for the endpoints that have them."""

from __future__ import annotations

from collections.abc import Sequence

from puna.errors import show
from puna.server.errors import ApiError
from puna.server.tools.toolset import Function, Mode, ToolSet


def make_tool_set(
    functions: Sequence[Function], mode: Mode, allowed: Sequence[str] | None, parallel: bool
) -> ToolSet | None:
    """Returns the functions that the answer may call; None if there are none.

    Args:
        functions: the functions of the field `tools`.
        mode: whether the answer must have calls.
        allowed: names of the functions that `tool_choice` allows; None for all.
        parallel: whether the answer may have several calls.

    Raises:
        ApiError: 400, if two functions have one name, or `tool_choice` requires a function that the request does not
            have.
    """
    names = [function.name for function in functions]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise _invalid("tools", f"tools has two functions with the name {show(repeated)}; rename one")
    unknown = next((name for name in allowed or () if name not in names), None)
    if unknown is not None:
        raise _invalid("tool_choice", f"tool_choice names {show(unknown)}, which is not a function in tools; add it")
    if not functions:
        if mode == "required":
            raise _invalid("tool_choice", "tool_choice requires a call, but tools has no function; add one")
        return None
    return ToolSet(tuple(functions), mode, None if allowed is None else tuple(allowed), parallel)


def _invalid(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_value")
