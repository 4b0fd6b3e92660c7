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
    """Decorator: adds an option for each limit to a command, which receives their values as `**values`."""
    meanings = dict(re.findall(r"^ +(\w+): (.*?)(?:\.|;|$)", Limits.__doc__ or "", re.M))
    options = {}
    for name, item in _FIELDS.items():
        default = "unlimited" if item.default is None else f"{item.default:,}"
        option = number(_flag(name), low=0, help=f"Maximum {meanings[name]}. [default: {default}]")
        options[f"max_{name}"] = (Annotated[int | None, option], None)
    return with_parameters(function, options)


def with_parameters(function: Callable[..., None], options: Mapping[str, tuple[Any, Any]]) -> Callable[..., None]:
    """Returns a command with further options, given by their types and defaults; it receives them as `**values`."""
    signature = inspect.signature(function, eval_str=True)
    parameters = [item for item in signature.parameters.values() if item.kind is not item.VAR_KEYWORD]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in options.items()
    ]

    @functools.wraps(function)
    def wrapped(**values: Any) -> None:
        function(**values)

    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {item.name: item.annotation for item in parameters}
    del wrapped.__wrapped__
    return wrapped


def _flag(name: str) -> str:
    return f"--max-{name.replace('_', '-')}"


def read_limits(values: Mapping[str, Any]) -> Limits:
    """Returns the limits; a value that is None has its default."""
    return Limits(**{name: values[f"max_{name}"] for name in _FIELDS if values[f"max_{name}"] is not None})
