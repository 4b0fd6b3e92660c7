"""The amount of reasoning, as variables of the model's chat template."""

from __future__ import annotations

import re
from typing import Any

from puna.errors import show
from puna.server.errors import unsupported
from puna.server.service import Service

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

_SWITCHES = ("enable_thinking", "reasoning_effort")
"""Variables of chat templates that switch reasoning on, or set its amount."""


def switches(service: Service) -> tuple[str, ...]:
    """Returns the names of the variables for reasoning that the model's chat template uses."""
    words = set(re.findall(r"\w+", service.llm.tokenizer.get_chat_template()))
    return tuple(name for name in _SWITCHES if name in words)


def read_effort(effort: str | None, param: str, service: Service) -> dict[str, Any]:
    """Returns the variables of the chat template for an amount of reasoning; "none" switches reasoning off.

    Raises:
        ApiError: 400, if the template has no variable for reasoning and the amount is not "none".
    """
    if effort is None:
        return {}
    names = switches(service)
    if not names and effort != "none":
        raise unsupported(
            param, f"{param} is {show(effort)}, but the model's chat template cannot switch reasoning; omit the field"
        )
    return {name: effort if name == "reasoning_effort" else effort != "none" for name in names}
