"""The maximum length of the texts of a call of `generate()`, and the warnings about lengths."""

from __future__ import annotations

import warnings

from puna.config import GenerationConfig


def maximum_length(settings: GenerationConfig, tokens: int) -> int:
    """Returns the maximum number of ids in prompt and answer together; warns about lengths that are probably a mistake.

    At least one token is generated, unless `max_new_tokens` is 0.

    Args:
        settings: the settings of the call.
        tokens: the number of ids of the prompt; embeddings do not count.
    """
    if settings.max_new_tokens is not None:
        longest = tokens + int(settings.max_new_tokens)
    else:
        longest = int(settings.max_length)
        if "max_length" not in settings.assigned:
            warnings.warn(
                f"neither max_new_tokens nor max_length is set; prompt and answer together end at the default "
                f"max_length of {longest} tokens. Set max_new_tokens",
                stacklevel=4,
            )
        if tokens >= longest:
            warnings.warn(
                f"the prompt has {tokens} tokens and max_length is {longest}; only one token is generated. Set "
                "max_new_tokens, which does not count the prompt",
                stacklevel=4,
            )
    _check_minimum(settings, tokens, longest)
    return longest


def _check_minimum(settings: GenerationConfig, tokens: int, longest: int) -> None:
    """Warns about a minimum above the maximum."""
    minimum = tokens + (settings.min_new_tokens or 0)
    for name, value in (("min_length", settings.min_length or 0), ("min_new_tokens", minimum)):
        if longest < value and getattr(settings, name):
            warnings.warn(
                f"{name} is {getattr(settings, name)}, but the text ends at {longest} tokens, of which the prompt has "
                f"{tokens}; lower {name}, or raise max_new_tokens",
                stacklevel=5,
            )
