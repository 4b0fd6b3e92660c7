"""The options of a request: checked, and completed by the defaults in the model's generation configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from puna.config import GenerationConfig, GenerationDefaults
from puna.engine import Sampling

_MAX_TOKENS = 256
"""Maximum number of tokens of an answer if neither the call nor the model's generation configuration sets one."""


class Options(TypedDict, total=False):
    """Options of `LLM.generate`, `LLM.chat`, `LLM.stream` and `LLM.start`.

    An option that is left out or None has the value of the model's generation_config.json (for GGUF files,
    general.sampling.*); without a value there, the most likely token is chosen.

    max_tokens: maximum number of tokens to generate. "auto", the default: the model's max_new_tokens, else 256, and
        never more than fits in the context. None fills the context.
    temperature, top_k, top_p, min_p, repetition_penalty: as in `puna.engine.Sampling`.
    seed: as in `puna.engine.Sampling`; None uses a random seed.
    stop: a string or several strings; the answer ends before the first of them that occurs. A special token in a string
        matches that token, although the text of the answer does not contain it.
    speculate: guess tokens from earlier text. The answer is the same, but takes less time if the text repeats itself.
    """

    max_tokens: int | Literal["auto"] | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    speculate: bool


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
    """
    defaults = GenerationDefaults.of(config)
    stop = options.get("stop")
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    values: dict[str, Any] = {name: getattr(defaults, name) for name in names}
    values |= {name: value for name in names if (value := options.get(name)) is not None}
    return Settings(
        _max_tokens(options.get("max_tokens", "auto"), defaults, prompt, max(0, longest - prompt), default),
        Sampling(**values, seed=options.get("seed")),
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
