"""The settings of a call of `generate()`: a generation configuration overridden by the call's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from puna.config import GenerationConfig
from puna.errors import RequestError
from puna.model.sampling import is_random

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "assistant_model": (None,), "bad_words_ids": (None,), "begin_suppress_tokens": (None,),
    "cache_implementation": (None, "dynamic"), "constraints": (None,), "custom_generate": (None,),
    "diversity_penalty": (None, 0.0), "dola_layers": (None,), "early_stopping": (None, False),
    "encoder_no_repeat_ngram_size": (None, 0), "encoder_repetition_penalty": (None, 1.0), "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0), "exponential_decay_length_penalty": (None,), "force_words_ids": (None,),
    "forced_bos_token_id": (None,), "forced_decoder_ids": (None,), "forced_eos_token_id": (None,),
    "guidance_scale": (None, 1.0), "length_penalty": (None, 1.0), "low_memory": (None, False), "max_time": (None,),
    "min_length": (None, 0), "negative_prompt_attention_mask": (None,), "negative_prompt_ids": (None,),
    "no_repeat_ngram_size": (None, 0), "num_beam_groups": (None, 1), "output_attentions": (None, False),
    "output_hidden_states": (None, False), "output_logits": (None, False), "penalty_alpha": (None, 0.0),
    "position_ids": (None,), "prefix_allowed_tokens_fn": (None,), "prompt_lookup_num_tokens": (None,),
    "remove_invalid_values": (None, False), "renormalize_logits": (None, False), "sequence_bias": (None,),
    "stop_strings": (None,), "suppress_tokens": (None, []), "synced_gpus": (None, False),
    "token_healing": (None, False), "tokenizer": (None,), "top_h": (None,), "typical_p": (None, 1.0),
    "watermarking_config": (None,),
}  # fmt: skip
"""Settings and arguments of transformers that are not supported, with the values that disable them."""


def merge_settings(base: GenerationConfig, arguments: Mapping[str, Any], others: Mapping[str, Any]) -> GenerationConfig:
    """Returns the configuration overridden by the call's arguments.

    Args:
        base: the defaults.
        arguments: the arguments in the signature of `generate()`; None keeps the default.
        others: the arguments that are not in the signature.

    Raises:
        RequestError: if an argument is unknown, or a setting is not supported.
        ConfigError: if a setting is out of range.
    """
    for name in others:
        if name not in _NEUTRAL:
            raise RequestError(f"generate() has no argument {name!r}; remove it")
    overrides = {name: value for name, value in {**arguments, **others}.items() if value is not None}
    fields = base.to_dict()
    if "max_length" in overrides and "max_new_tokens" not in overrides:
        fields.pop("max_new_tokens", None)
    settings = GenerationConfig.from_dict({**fields, **overrides})
    if settings.num_beams > 1:
        raise RequestError(f"num_beams is {settings.num_beams}; it must be 1, since beam search is not supported")
    if settings.num_return_sequences > 1 and not is_random(settings):
        raise RequestError(
            f"num_return_sequences is {settings.num_return_sequences}, but without sampling all texts would be equal; "
            "set do_sample=True and a temperature above 0"
        )
    for name, neutral in _NEUTRAL.items():
        if (value := settings.extra.get(name)) not in neutral:
            shown = " ".join(repr(value).split())
            raise RequestError(
                f"{name} is {shown[:100]}, which is not supported; remove it from the call or its generation_config "
                f"({neutral[-1]!r} disables it)"
            )
    return settings


def choose_generator(
    seed: int | None, generator: torch.Generator | None, device: torch.device
) -> torch.Generator | None:
    """Returns the random generator: `generator`, a new one seeded with `seed`, or None for PyTorch's global one.

    Raises:
        RequestError: if both are given, or the seed is not in PyTorch's range, -2^63 to 2^64 - 1.
    """
    if seed is None:
        return generator
    if generator is not None:
        raise RequestError(f"seed {seed} and a generator were both given; keep one of them")
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise RequestError(f"seed is {seed!r}; it must be a whole number from -2^63 to 2^64 - 1")
    return torch.Generator(device).manual_seed(seed)
