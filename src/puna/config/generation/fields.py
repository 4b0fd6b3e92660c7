"""The fields of `GenerationConfig`: names, defaults and limits, and the conversion of values that files contain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, TypedDict

from puna.config.checks import check_between, check_flag, check_whole
from puna.config.generation.watermarks import read_watermarking_config
from puna.errors import ConfigError, show

DEFAULTS: dict[str, Any] = {
    # length
    "max_length": 20, "max_new_tokens": None, "min_length": 0, "min_new_tokens": None, "early_stopping": False,
    "max_time": None, "stop_strings": None,
    # strategy
    "do_sample": False, "num_beams": 1, "num_beam_groups": 1, "penalty_alpha": None, "dola_layers": None,
    "use_mtp": None,
    # cache
    "use_cache": True, "cache_implementation": None, "cache_config": None, "max_cache_len": None,
    "return_legacy_cache": None, "prefill_chunk_size": None,
    # logits
    "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "top_h": None, "typical_p": 1.0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "diversity_penalty": 0.0, "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0, "bad_words_ids": None,
    "force_words_ids": None, "renormalize_logits": False, "constraints": None, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "remove_invalid_values": False, "exponential_decay_length_penalty": None,
    "suppress_tokens": None, "begin_suppress_tokens": None, "forced_decoder_ids": None, "sequence_bias": None,
    "token_healing": False, "guidance_scale": None, "low_memory": None, "watermarking_config": None,
    # outputs
    "num_return_sequences": 1, "output_attentions": False, "output_hidden_states": False, "output_scores": False,
    "output_logits": None, "return_dict_in_generate": False,
    # special tokens
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "encoder_no_repeat_ngram_size": 0,
    "decoder_start_token_id": None,
    # assisted generation
    "is_assistant": False, "num_assistant_tokens": 20, "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.4, "prompt_lookup_num_tokens": None, "max_matching_ngram_size": None,
    "assistant_early_exit": None, "assistant_lookbehind": 10, "target_lookbehind": 10,
    "assistant_ensemble_weight": None, "speculation_type": None,
    # compilation and other
    "compile_config": None, "disable_compile": False, "continuous_batching_config": None, "generation_kwargs": {},
}  # fmt: skip
"""The fields of transformers 4.34 to 5.23 and their defaults, which are those of 4.57 if it has the field.

5.x stores None for most fields and uses the same defaults when a text is generated.
"""

METADATA: dict[str, Any] = {"_from_model_config": False, "_commit_hash": None, "transformers_version": None}
"""Attributes that do not affect generation; comparisons ignore them."""

TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")

CALL_ARGUMENTS = (
    "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "synced_gpus", "assistant_model", "streamer",
    "negative_prompt_ids", "negative_prompt_attention_mask",
)  # fmt: skip
"""Arguments of `generate()` that are not settings."""

_LOWEST = {
    "max_length": 1, "num_beams": 1, "num_return_sequences": 1, "top_k": -(2**63), "max_new_tokens": 0,
    "min_new_tokens": 0, "min_length": 0, "num_beam_groups": 1, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "prompt_lookup_num_tokens": 1, "max_matching_ngram_size": 1,
    "num_assistant_tokens": 1, "assistant_early_exit": 1,
    "assistant_lookbehind": 1, "target_lookbehind": 1, "max_cache_len": 1, "prefill_chunk_size": 1,
    "forced_bos_token_id": 0,
}  # fmt: skip
"""Minimum of each field that is a whole number; `check_sampling` has that of `top_k`."""

_NUMBERS = frozenset({
    "temperature", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "max_time", "penalty_alpha",
    "diversity_penalty", "repetition_penalty", "encoder_repetition_penalty", "length_penalty", "guidance_scale",
    "assistant_confidence_threshold", "assistant_ensemble_weight",
})  # fmt: skip

_HIGHEST = {"temperature": math.inf, "top_p": 1.0, "min_p": 1.0}
"""Maximum of each number that only sampling uses. The minimum is 0."""

_LENGTH_PENALTY = 1000.0
"""Maximum of `length_penalty`; lengths to higher powers exceed the range of floating-point numbers."""

_LISTS = ("bad_words_ids", "force_words_ids", "constraints", "forced_decoder_ids")


def check_field(name: str, value: Any) -> None:
    """Raises ConfigError unless the field can have this value. Fields of other names can have any value.

    The ranges of numbers that only sampling uses are checked by `check_sampling`, and those of rarely used numbers by
    the processors that use them.
    """
    if value is None:
        return
    if name in _LOWEST:
        check_whole(name, value, _LOWEST[name])
    elif name in _NUMBERS:
        _check_number(name, value)
    elif name == "early_stopping":
        if not isinstance(value, bool | int | str) or value not in (True, False, "never"):
            raise ConfigError(f"early_stopping is {show(value)}; it must be True, False or 'never'")
    elif isinstance(DEFAULTS.get(name), bool) or name in ("low_memory", "use_mtp"):
        check_flag(name, value)
    elif name == "watermarking_config":
        config = read_watermarking_config(value)
        if not hasattr(config, "validate"):
            raise ConfigError(f"watermarking_config is {show(value)}; it must be a WatermarkingConfig or a dictionary")
        config.validate()
    elif name in TOKEN_IDS:
        for item in id_list(value) if name == "eos_token_id" else [value]:
            check_whole(name, item, 0)
    elif name in _LISTS or name == "sequence_bias":
        _check_list(name, value)
    elif name in ("suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id"):
        _check_ids(name, value)
    elif name == "exponential_decay_length_penalty":
        _check_decay(value)


def check_sampling(name: str, value: Any) -> None:
    """Raises ConfigError if a number that only sampling uses is out of range."""
    if value is None:
        return
    if name == "top_k":
        check_whole(name, value, -1)
    elif name in _HIGHEST:
        check_between(name, value, 0.0, _HIGHEST[name])


def _check_number(name: str, value: Any) -> None:
    valid = not isinstance(value, bool) and isinstance(value, Real) and not math.isnan(value)
    if not valid or (abs(value) > 2**63 and name != "max_time"):
        raise ConfigError(f"{name} is {show(value)}; it must be a number")
    if name == "repetition_penalty":
        check_between(name, value, 0.0, math.inf)
        if value == 0:
            raise ConfigError("repetition_penalty is 0; it must be greater than 0 (1 means no penalty)")
    if name == "length_penalty":
        check_between(name, value, -_LENGTH_PENALTY, _LENGTH_PENALTY)


def _check_list(name: str, value: Any) -> None:
    if not isinstance(value, list | tuple) and not (name == "sequence_bias" and isinstance(value, Mapping)):
        kind = "a dictionary or a list" if name == "sequence_bias" else "a list"
        raise ConfigError(f"{name} is {show(value)}; it must be {kind}")
    if name == "forced_decoder_ids":
        for item in value:
            if not isinstance(item, list | tuple) or len(item) != 2 or not isinstance(item[0], int):
                raise ConfigError(f"forced_decoder_ids has {show(item)}; each item must be [position, token id]")


def _check_ids(name: str, value: Any) -> None:
    for item in id_list(value):
        if isinstance(item, bool) or not isinstance(item, int) or abs(item) >= 2**63:
            raise ConfigError(f"{name} is {show(value)}; it must be a list of token ids")


def _check_decay(value: Any) -> None:
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or not all(isinstance(item, Real) and not isinstance(item, bool) for item in value)
    ):
        raise ConfigError(
            f"exponential_decay_length_penalty is {show(value)}; it must be (tokens, factor), such as (5, 1.1)"
        )


def id_list(value: Any) -> list[Any]:
    """Returns the ids of a token field as a list: `value` is None, an id, a sequence of ids or a tensor of ids."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple | set) else [value]


def convert_value(name: str, value: Any) -> Any:
    """Returns an integer for a float such as 50.0, and a bool for 0 or 1, where the field has that type."""
    if name in _LOWEST and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(DEFAULTS.get(name), bool) and name != "early_stopping" and not isinstance(value, bool):
        return bool(value) if value in (0, 1) else value
    return value


def plain(value: Any, name: str = "") -> Any:
    """Returns a value of a field in the form that JSON files hold.

    Types of PyTorch become their names, objects with a `to_dict` their fields, keys of dictionaries text. The biases of
    `sequence_bias` become a list of [ids, bias], because JSON keys cannot be lists of ids.
    """
    if name == "sequence_bias" and isinstance(value, Mapping):
        return [[list(ids), bias] if isinstance(ids, tuple) else [ids, bias] for ids, bias in value.items()]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if type(value).__module__ == "torch" and str(value).startswith("torch."):
        return str(value).removeprefix("torch.")
    return value.tolist() if hasattr(value, "tolist") else value


class GenerationOptions(TypedDict, total=False):
    """The fields as keyword arguments, for type checkers. `GenerationConfig` describes them."""

    max_length: int | None
    max_new_tokens: int | None
    min_length: int | None
    min_new_tokens: int | None
    early_stopping: bool | str | None
    max_time: float | None
    stop_strings: str | list[str] | None
    do_sample: bool | None
    num_beams: int | None
    num_beam_groups: int | None
    penalty_alpha: float | None
    dola_layers: str | list[int] | None
    use_mtp: bool | None
    use_cache: bool | None
    cache_implementation: str | None
    cache_config: Any
    max_cache_len: int | None
    return_legacy_cache: bool | None
    prefill_chunk_size: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    top_h: float | None
    typical_p: float | None
    epsilon_cutoff: float | None
    eta_cutoff: float | None
    diversity_penalty: float | None
    repetition_penalty: float | None
    encoder_repetition_penalty: float | None
    length_penalty: float | None
    no_repeat_ngram_size: int | None
    bad_words_ids: list[list[int]] | None
    force_words_ids: list[Any] | None
    renormalize_logits: bool | None
    constraints: list[Any] | None
    forced_bos_token_id: int | None
    forced_eos_token_id: int | list[int] | None
    remove_invalid_values: bool | None
    exponential_decay_length_penalty: tuple[int, float] | None
    suppress_tokens: list[int] | None
    begin_suppress_tokens: list[int] | None
    forced_decoder_ids: list[list[int]] | None
    sequence_bias: Any
    token_healing: bool | None
    guidance_scale: float | None
    low_memory: bool | None
    watermarking_config: Any
    num_return_sequences: int | None
    output_attentions: bool | None
    output_hidden_states: bool | None
    output_scores: bool | None
    output_logits: bool | None
    return_dict_in_generate: bool | None
    pad_token_id: int | None
    bos_token_id: int | None
    eos_token_id: int | list[int] | None
    encoder_no_repeat_ngram_size: int | None
    decoder_start_token_id: int | list[int] | None
    is_assistant: bool | None
    num_assistant_tokens: int | None
    num_assistant_tokens_schedule: str | None
    assistant_confidence_threshold: float | None
    prompt_lookup_num_tokens: int | None
    max_matching_ngram_size: int | None
    assistant_early_exit: int | None
    assistant_lookbehind: int | None
    target_lookbehind: int | None
    assistant_ensemble_weight: float | None
    speculation_type: str | None
    compile_config: Any
    disable_compile: bool | None
    continuous_batching_config: Any
    generation_kwargs: dict[str, Any]
