"""The options --max-NAME of `puna serve`, one for each field of the server's `Limits`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from puna.cli.options import number
from puna.server.settings import Limits

_FIELDS = {item.name: item for item in dataclasses.fields(Limits)}


def with_limits(function: Callable[..., None]) -> Callable[..., None]:
    """Decorator: replaces the parameter `**limits` of a command by one option for each limit."""
    signature = inspect.signature(function, eval_str=True)
    parameters = [item for item in signature.parameters.values() if item.kind is not item.VAR_KEYWORD]
    meanings = dict(re.findall(r"^ +(\w+): (.*?)(?:\.|;|$)", Limits.__doc__ or "", re.M))
    for name, item in _FIELDS.items():
        default = "unlimited" if item.default is None else f"{item.default:,}"
        text = f"Maximum {meanings[name]}. [default: {default}]"
        option = number(_flag(name), low=0, help=text)
        parameters.append(
            inspect.Parameter(
                f"max_{name}", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[int | None, option]
            )
        )

    @functools.wraps(function)
    def wrapped(**values: Any) -> None:
        function(**values)

    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {item.name: item.annotation for item in parameters}
    del wrapped.__wrapped__
    return wrapped


def _flag(name: str) -> str:
    return f"--max-{name.replace('_', '-')}"


def read_limits(values: Mapping[str, int | None]) -> Limits:
    """Returns the limits; a value that is None has its default."""
    changed = {name.removeprefix("max_"): value for name, value in values.items() if value is not None}
    return Limits(**changed)
