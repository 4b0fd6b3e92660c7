"""Names of transformers that puna does not implement: they are transformers' own, if it is installed."""

from __future__ import annotations

from typing import Any

from puna.errors import MissingNameError
from puna.names import OF_TRANSFORMERS, WITHOUT_COUNTERPART


def transformers_name(name: str) -> Any:
    """Returns an object of transformers that works with puna's classes, such as `Trainer`.

    Raises:
        MissingNameError: transformers is not installed or has no such name, or the name has no counterpart for LLaMA;
            the message names the remedy.
    """
    if reason := missing_reason(name):
        raise MissingNameError(reason)
    import transformers

    return getattr(transformers, name)


def missing_reason(name: str) -> str | None:
    """Returns the reason why a name of transformers cannot be imported; None if it can."""
    if name in WITHOUT_COUNTERPART:
        return f"puna.{name}: {WITHOUT_COUNTERPART[name]}"
    try:
        import transformers
    except ModuleNotFoundError as exc:
        if exc.name != "transformers":
            raise
        return f"puna.{name} is {OF_TRANSFORMERS[name]} of transformers; install it with: pip install transformers"
    if not hasattr(transformers, name):
        return f"puna.{name} is {OF_TRANSFORMERS[name]} of transformers; the installed release has no such name"
    return None
