"""The options of a request: checked, and completed by the defaults in the model's generation configuration."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from puna.config import GenerationConfig, GenerationDefaults, Sampling, SamplingOptions

_MAX_TOKENS = 256
"""Maximum number of tokens of an answer if neither the call nor the model's generation configuration sets one."""


class Options(SamplingOptions, total=False):
    """Options of the methods of `LLM` and `AsyncLLM`: those of `Sampling`, and those below.

    An option has a type, a description and, unless that is None, a default. `shows_options` adds them to signatures and
    docstrings.
    """

    max_tokens: Annotated[
        int | Literal["auto"] | None,
        'maximum number of tokens to generate. "auto": the model\'s max_new_tokens, else 256, and never more than fits '
        "in the context. None fills the context.",
        "auto",
    ]
    stop: Annotated[
        str | Sequence[str] | None,
        "a string or several strings; the answer ends before the first of them that occurs. A special token in a "
        "string matches that token, although the text of the answer does not contain it.",
    ]
    speculate: Annotated[
        bool, "guess tokens from earlier text: the same answer, faster if the text repeats itself.", False
    ]


_TYPES = get_type_hints(Options)
_DETAILS = {name: hint.__metadata__ for name, hint in get_type_hints(Options, include_extras=True).items()}
"""By option: its description and, if it is not None, its default."""

_SAMPLING = frozenset(field.name for field in fields(Sampling))

Function = TypeVar("Function", bound=Callable[..., Any])


def shows_options(function: Function) -> Function:
    """Decorator of a function with `**options: Unpack[Options]`: shows the options in its signature and docstring.

    In the docstring, the line "{options}" below "Args:" is replaced.
    """
    signature = inspect.signature(function)
    parameters = [item for item in signature.parameters.values() if item.kind is not item.VAR_KEYWORD]
    for name, (_, *default) in _DETAILS.items():
        value = default[0] if default else None
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=_TYPES[name])
        )
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    if function.__doc__ is not None:  # Python's option -OO removes docstrings
        lines = [_wrapped(f"{name}: {details[0]}") for name, details in _DETAILS.items()]
        function.__doc__ = function.__doc__.replace(" " * 12 + "{options}", "\n".join(lines))
    return function


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 112, initial_indent=" " * 12, subsequent_indent=" " * 16)


@dataclass(frozen=True)
class Settings:
    """The settings of one request; see `Options`."""

    max_tokens: int
    sampling: Sampling
    stop: str | Sequence[str]
    speculate: bool


def settings_of(
    options: Options, config: GenerationConfig, prompt: int, longest: int, default: int | None = _MAX_TOKENS
) -> Settings:
    """Returns the settings of a request.

    Args:
        config: the model's settings, used where there is no option.
        prompt: number of tokens of the prompt.
        longest: maximum number of tokens of prompt and answer together. Only a `max_tokens` in `options` may exceed it.
        default: maximum number of tokens of an answer that nothing else limits; None fills `longest`.

    Raises:
        RequestError: an option is out of range.
        TypeError: there is no such option.
    """
    for name in options:
        if name not in _DETAILS:
            raise TypeError(f"{name!r} is not an option; the options are {', '.join(_DETAILS)}")
    defaults = GenerationDefaults.of(config)
    stop = options.get("stop")
    values: dict[str, Any] = {name: getattr(defaults, name) for name in _SAMPLING if hasattr(defaults, name)}
    values |= {name: value for name, value in options.items() if name in _SAMPLING and value is not None}
    max_tokens = _max_tokens(options.get("max_tokens", "auto"), defaults, prompt, max(0, longest - prompt), default)
    if options.get("min_tokens") is None and isinstance(
        max_tokens, Integral
    ):  # only an explicit min_tokens can be refused
        values["min_tokens"] = max(0, min(defaults.min_tokens, max_tokens))
    return Settings(
        max_tokens,
        Sampling(**values),
        defaults.stop if stop is None else stop,
        options.get("speculate", False),
    )


def _max_tokens(requested: Any, defaults: GenerationDefaults, prompt: int, free: int, default: int | None) -> Any:
    if requested is None:
        return free
    if not isinstance(requested, str) or requested != "auto":
        return requested
    if defaults.max_tokens is not None:
        return min(defaults.max_tokens, free)
    if defaults.max_length is not None and defaults.max_length > prompt:
        free = min(free, defaults.max_length - prompt)
    return free if default is None else min(default, free)
