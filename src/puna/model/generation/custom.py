"""`generate(custom_generate=function)`: the caller's decoding loop with puna's prompt, processors and criteria."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

from puna.errors import RequestError, show
from puna.model.generation.loop import Decoding


def check_custom(function: Any) -> None:
    """Raises RequestError unless the argument `custom_generate` is None or a function."""
    if function is None:
        return
    if not callable(function):
        raise RequestError(
            f"custom_generate is {show(function)}; it must be a function (model, input_ids, ...) -> texts. Code of "
            "other repositories is not run: download it, and pass its function"
        )
    try:
        inspect.signature(function)
    except ValueError as exc:  # some functions in C
        raise RequestError("custom_generate has no signature; pass a function that is defined in Python") from exc


def custom_arguments(function: Any, options: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Removes the arguments that only the function has from the options of a call, and returns them.

    Args:
        function: the argument `custom_generate`, or None.
        options: the keywords of the call.
        names: the arguments that `generate()` uses itself.
    """
    if function is None:
        return {}
    own = inspect.signature(function).parameters
    return {name: options.pop(name) for name in [*options] if name in own and name not in names}


def run_custom(function: Any, decoding: Decoding, max_length: int, arguments: dict[str, Any]) -> Any:
    """Calls the function as transformers does, and returns its result.

    Args:
        function: the argument `custom_generate`.
        decoding: the call.
        max_length: maximum tokens of prompt and answer.
        arguments: those that only the function has; `streamer`, `synced_gpus` and the other objects of the call are
            also passed if the function has an argument of this name.
    """
    parameters, prompt, settings = inspect.signature(function).parameters, decoding.prompt, decoding.settings
    settings.max_length = max_length
    objects = {
        "streamer": decoding.streamer, "synced_gpus": decoding.synced, "assistant_model": decoding.assistant,
        "tokenizer": decoding.tokenizers[0], "assistant_tokenizer": decoding.tokenizers[1],
    }  # fmt: skip
    inputs = {"inputs_embeds": prompt.embeds, "past_key_values": prompt.cache, "position_ids": prompt.positions}
    return function(
        decoding.model,
        prompt.ids,
        logits_processor=decoding.processors,
        stopping_criteria=decoding.criteria,
        generation_config=settings,
        attention_mask=prompt.mask,
        use_cache=settings.use_cache,
        logits_to_keep=1,
        **{name: value for name, value in inputs.items() if value is not None},
        **{name: value for name, value in objects.items() if name in parameters},
        **prompt.extra,
        **arguments,
    )
