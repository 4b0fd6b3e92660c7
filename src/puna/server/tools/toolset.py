"""`ToolSet`: the functions that an answer may call, and how many calls it must or may have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Mode = Literal["auto", "required", "none"]


@dataclass(frozen=True)
class Function:
    """A function that an answer may call.

    Attributes:
        name: its name.
        parameters: the JSON schema of its arguments, an object. None: the function has no parameters.
        strict: whether a schema with an unsupported keyword is an error. Otherwise such keywords are ignored, and
            reported.
        description: what it does.
    """

    name: str
    parameters: Mapping[str, Any] | None = None
    strict: bool = False
    description: str = ""

    def __hash__(self) -> int:
        return hash((self.name, json.dumps(self.parameters), self.strict))

    @property
    def description_json(self) -> dict[str, Any]:
        """The function as chat templates expect it, in OpenAI's form."""
        function: dict[str, Any] = {"name": self.name}
        if self.description:
            function["description"] = self.description
        parameters = {"type": "object", "properties": {}} if self.parameters is None else dict(self.parameters)
        return {"type": "function", "function": {**function, "parameters": parameters}}


@dataclass(frozen=True)
class ToolSet:
    """The functions of a request, and the calls that its answer may have.

    Attributes:
        functions: all functions; the prompt describes them.
        mode: "auto": the answer is text or calls. "required": it is at least one call. "none": it is text.
        allowed: names of the functions that the answer may call; None for all.
        parallel: whether the answer may have several calls.
    """

    functions: tuple[Function, ...]
    mode: Mode = "auto"
    allowed: tuple[str, ...] | None = None
    parallel: bool = True

    @property
    def callable(self) -> tuple[Function, ...]:
        """The functions that the answer may call."""
        if self.mode == "none":
            return ()
        return tuple(item for item in self.functions if self.allowed is None or item.name in self.allowed)
