"""`shows_settings`: shows all options in the signature and docstring of a function with `**options`."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from puna.training.settings.all import TrainingSettings
from puna.training.settings.option import option_types

Function = TypeVar("Function", bound=Callable[..., Any])


def shows_settings(function: Function) -> Function:
    """Decorator: adds the options to the signature; in the docstring, the line "{options}" is replaced by them."""
    signature = inspect.signature(function)
    parameters = [item for item in signature.parameters.values() if item.kind is not item.VAR_KEYWORD]
    names = {item.name for item in parameters}
    types = option_types(TrainingSettings)
    items = [
        item for group in reversed(TrainingSettings.__mro__) for item in _own_fields(group) if item.name not in names
    ]
    parameters += [
        inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=types[item.name])
        for item in items
    ]
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    if function.__doc__ is not None:  # Python's option -OO removes docstrings
        lines = [_wrapped(f"{item.name}: {item.metadata['text']}.") for item in items]
        function.__doc__ = function.__doc__.replace(" " * 12 + "{options}", "\n".join(lines))
    return function


def _own_fields(group: type) -> list[Any]:
    own = inspect.get_annotations(group)
    return [item for item in fields(TrainingSettings) if item.name in own]


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 112, initial_indent=" " * 12, subsequent_indent=" " * 16)
