"""The options of a request: checked, and completed by the defaults in the model's generation configuration."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from puna.config import MAX_LOGPROBS, GenerationConfig, GenerationDefaults, Sampling, SamplingOptions
from puna.errors import RequestError, show, suggestion

_MAX_TOKENS = 256
"""Maximum number of tokens of an answer if neither the call nor the model's generation configuration sets one."""

MAX_ANSWERS = 1024
"""Maximum of `n` and `best_of`."""


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
    bad_words: Annotated[
        Sequence[str] | None,
        "texts that the answer must not contain: a token that would complete the ids of one of them, with or without a "
        "space before it, is not chosen, as in vLLM. Other ids may have the same text.",
    ]
    include_stop_str_in_output: Annotated[
        bool, "the answer ends after the stop string instead of before it, as in vLLM.", False
    ]
    skip_special_tokens: Annotated[bool, "leave special tokens out of the text of the answer; False shows them.", True]
    json_schema: Annotated[
        Mapping[str, Any] | str | bool | None,
        "the answer is JSON that is valid under this schema, a dictionary or its JSON text; True allows any object. "
        "Keywords of JSON Schema that are not supported are errors; unknown keywords are ignored, as JSON Schema "
        "prescribes, so check their spelling. This option and the next three need puna[grammar]; a call may have one "
        "of them.",
    ]
    regex: Annotated[
        str | None,
        "the answer is a text that this regular expression matches completely. The syntax is that of Rust's regex, but "
        "\\d means 0 to 9.",
    ]
    grammar: Annotated[str | None, "the answer follows this context-free grammar, in llguidance's variant of Lark."]
    choice: Annotated[Sequence[str] | None, "the answer is one of these texts."]
    speculate: Annotated[
        bool | None,
        "while the request runs alone, guess tokens from earlier text (and from `prediction`, also while several "
        "requests run): the same answer, faster if the text repeats "
        "itself. None: do so with the native backend; with PyTorch, answers may then change by rounding.",
        None,
    ]
    adapter: Annotated[
        str | None, "name of an adapter of `LLM(adapters=...)`, which changes the model for this request."
    ]
    salt: Annotated[
        str, "requests share cached prefixes only with requests of the same salt, for example of the same user.", ""
    ]
    priority: Annotated[
        int, "of the waiting requests, those with the lowest number run first; in order of arrival if equal.", 0
    ]
    prediction: Annotated[
        str | Sequence[int] | None,
        "a text, or token ids, that the answer is expected to resemble, such as a file before an edit. Its tokens are "
        "guesses for `speculate`; the answer does not change.",
    ]
    explain_prefix: Annotated[
        bool,
        "return the reason why the prefix cache did not have all of the prompt, in `Completion.prefix_miss`.",
        False,
    ]
    n: Annotated[
        int,
        "number of answers to the prompt, at most 1024; `Completion.alternatives` has all but the first. The prompt is "
        "read once. Answer i draws its random numbers from (seed, i), and the first answer is that of n=1. At "
        "temperature 0, all answers are equal. `stream` and `start` return one answer.",
        1,
    ]
    best_of: Annotated[
        int | None,
        "generate this number of answers, at least n, and return the n answers with the highest mean log-probability "
        "per token (`Completion.mean_logprob`), the best first. Not for streams.",
    ]
    prompt_logprobs: Annotated[
        int | None,
        "return the log-probability of each token of the prompt after the first, and this number of most likely tokens "
        "with theirs, at most 20, in `Completion.prompt_logprobs`. The complete prompt is then read.",
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
    """The settings of the answers to one prompt; see `Options`."""

    max_tokens: int
    sampling: Sampling
    stop: str | Sequence[str]
    speculate: bool | None
    n: int = 1
    best_of: int | None = None
    prompt_logprobs: int | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    salt: str = ""
    priority: int = 0
    explain_prefix: bool = False

    def __post_init__(self) -> None:
        _check_between("n", self.n, 1, MAX_ANSWERS)
        if self.best_of is not None:
            _check_between("best_of", self.best_of, 1, MAX_ANSWERS)
            if self.best_of < self.n:
                raise RequestError(
                    f"best_of is {self.best_of}, but n is {self.n}, the number of answers to return; raise best_of or "
                    "lower n"
                )
        for name in ("include_stop_str_in_output", "skip_special_tokens", "explain_prefix"):
            if not isinstance(value := getattr(self, name), bool):
                raise RequestError(f"{name} is {show(value)}; it must be True or False")
        if self.prompt_logprobs is not None:
            _check_between("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)


def _check_between(name: str, value: Any, low: int, high: int) -> None:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        raise RequestError(f"{name} is {show(value)}; it must be a whole number from {low} to {high}")


def settings_of(
    options: Options, config: GenerationConfig, prompt: int, longest: int, default: int | None = _MAX_TOKENS
) -> Settings:
    """Returns the settings of the answers to a prompt.

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
            raise TypeError(
                f"{name!r} is not an option; the options are {', '.join(_DETAILS)}{suggestion(name, _DETAILS)}"
            )
    defaults = GenerationDefaults.of(config)
    stop = options.get("stop")
    values: dict[str, Any] = {name: getattr(defaults, name) for name in _SAMPLING if hasattr(defaults, name)}
    values |= {name: value for name, value in options.items() if name in _SAMPLING and value is not None}
    max_tokens = _max_tokens(options.get("max_tokens", "auto"), defaults, prompt, max(0, longest - prompt), default)
    if options.get("min_tokens") is None and isinstance(
        max_tokens, Integral
    ):  # only an explicit min_tokens can be refused
        values["min_tokens"] = max(0, min(defaults.min_tokens, max_tokens))
    others = {field.name for field in fields(Settings)} - {"max_tokens", "sampling", "stop", "speculate"}
    given = {name: value for name, value in options.items() if name in others}
    return Settings(
        max_tokens,
        Sampling(**values),
        defaults.stop if stop is None else stop,
        options.get("speculate"),
        **given,  # type: ignore[arg-type]
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
