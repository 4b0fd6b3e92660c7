"""The tools of a request of Anthropic's API."""

from __future__ import annotations

from collections.abc import Mapping, MutableSequence, Sequence
from typing import Any

from puna.errors import show
from puna.server.errors import unsupported
from puna.server.protocol.fields import Values
from puna.server.protocol.messages.fields import SERVER_TOOLS
from puna.server.protocol.tagged import Skipped, skipped
from puna.server.protocol.tool_sets import make_tool_set
from puna.server.tools.toolset import Function, Mode, ToolSet

_MODES: dict[str, Mode] = {"auto": "auto", "any": "required", "tool": "required", "none": "none"}


def read_tools(values: Values, ignored: MutableSequence[str]) -> ToolSet | None:
    """Returns the tools that the answer may call; None if there are none.

    Tools with `defer_loading` are skipped. Tools of unknown types are skipped if the request also has tools of the
    client. Coding agents send such tools to every server.

    Args:
        ignored: the list to which skipped tools with `defer_loading` are appended.

    Raises:
        ApiError: 400, if a request has only tools that a server would have to run, or if `tool_choice` requires a call
            of a tool that the request does not have.
    """
    tools: Sequence[Mapping[str, Any]] = values["tools"] or ()
    functions = []
    for index, tool in enumerate(tools):
        if isinstance(tool, Skipped):
            continue
        if tool["defer_loading"]:
            ignored.append(skipped(f"tools[{index}]", tool["name"]))
        else:
            functions.append(
                Function(tool["name"], tool["input_schema"], bool(tool["strict"]), tool["description"] or "")
            )
    if not functions:
        _check_server_tools(tools)
    choice = values["tool_choice"] or {"type": "auto"}
    allowed = [choice["name"]] if choice["type"] == "tool" else None
    return make_tool_set(functions, _MODES[choice["type"]], allowed, not choice.get("disable_parallel_tool_use"))


def _check_server_tools(tools: Sequence[Mapping[str, Any]]) -> None:
    for index, tool in enumerate(tools):
        if isinstance(tool, Skipped) and str(tool["type"]).startswith(SERVER_TOOLS):
            message = f"tools[{index}].type is {show(tool['type'])}; this server runs no tools, use tools of the client"
            raise unsupported(f"tools[{index}].type", message)
