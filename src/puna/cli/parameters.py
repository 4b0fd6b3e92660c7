"""`with_parameters`: options of a command that follow from a table."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any


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
