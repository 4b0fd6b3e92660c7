"""The options --max-NAME of `puna serve`, one for each field of the server's `Limits`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from puna.cli.options import number
from puna.cli.parameters import with_parameters
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


def _flag(name: str) -> str:
    return f"--max-{name.replace('_', '-')}"


def read_limits(values: Mapping[str, Any]) -> Limits:
    """Returns the limits; a value that is None has its default."""
    return Limits(**{name: values[f"max_{name}"] for name in _FIELDS if values[f"max_{name}"] is not None})
