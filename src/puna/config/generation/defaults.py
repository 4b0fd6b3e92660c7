"""The part of a generation configuration that `puna.LLM` uses: defaults for options that a call leaves out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from puna.config.checks import check_positive
from puna.config.generation.config import GenerationConfig
from puna.config.generation.fields import DEFAULTS, METADATA
from puna.errors import ConfigError, show

_SUPPORTED = (
    "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "min_new_tokens",
    "max_new_tokens", "max_length", "stop_strings", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip
"""The settings that `LLM` uses."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": ([],), "begin_suppress_tokens": ([],), "force_words_ids": ([],), "forced_decoder_ids": ([],),
    "guidance_scale": (1.0,), "penalty_alpha": (0.0,), "sequence_bias": ({}, []), "suppress_tokens": ([],),
}  # fmt: skip
"""Values, other than the default, that disable a setting that `LLM` does not support."""

_GGUF: dict[str, tuple[Any, ...]] = {
    "general.sampling.mirostat": (0,), "general.sampling.penalty_last_n": (-1,), "general.sampling.sequence": ("",),
    "general.sampling.xtc_probability": (0.0,),
}  # fmt: skip
"""Settings of GGUF files that `LLM` does not support, with the values that disable them."""

_SAME_ANSWER = frozenset(
    {"assistant_confidence_threshold", "assistant_early_exit",
     "assistant_ensemble_weight", "assistant_lookbehind", "cache_config", "cache_implementation", "compile_config",
     "continuous_batching_config", "decoder_start_token_id", "disable_compile", "diversity_penalty", "early_stopping",
     "general.sampling.mirostat_eta", "general.sampling.mirostat_tau",
     "general.sampling.xtc_threshold", "generation_kwargs", "is_assistant", "length_penalty", "low_memory",
     "max_cache_len", "max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule",
     "num_beam_groups", "output_attentions", "output_hidden_states", "output_logits", "output_scores",
     "prefill_chunk_size", "prompt_lookup_num_tokens", "remove_invalid_values", "renormalize_logits",
     "return_dict_in_generate", "return_legacy_cache", "speculation_type", "synced_gpus", "target_lookbehind",
     "use_cache", "use_mtp"}
)  # fmt: skip
"""Settings that do not change an answer of `LLM`.

They control speed, memory, and what transformers returns; or they matter only in a beam search, in mirostat or XTC
sampling, or in models with an encoder.
"""


@dataclass(frozen=True)
class GenerationDefaults:
    """Defaults of the options of `LLM.generate`.

    Attributes:
        temperature, top_k, top_p, min_p, typical_p, repetition_penalty, min_tokens: as in `Sampling`.
        max_tokens: maximum number of tokens of an answer; None if the configuration does not limit answers.
        max_length: maximum number of tokens of prompt and answer together; None if they are not limited.
        stop: strings that end an answer.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    max_tokens: int | None = None
    max_length: int | None = None
    stop: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: GenerationConfig) -> GenerationDefaults:
        """Returns the defaults in a generation configuration.

        Without `do_sample`, the temperature is 0. The filters still have the configuration's values, for a call that
        sets a temperature; a `top_k` of 50 then means that the file has none, since 50 is the default of transformers.
        """
        stop = config.stop_strings or []
        texts = [stop] if isinstance(stop, str) else stop
        if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
            raise ConfigError(f"stop_strings is {show(stop)}; it must be a text or a list of texts, none of them empty")
        max_length, top_k = _value(config, "max_length"), _value(config, "top_k")
        return cls(
            float(_value(config, "temperature")) if config.do_sample else 0.0,
            max(0, top_k) if config.do_sample or top_k != DEFAULTS["top_k"] else 0,
            float(_value(config, "top_p")),
            float(config.min_p or 0.0),
            _typical_p(config.typical_p),
            float(_value(config, "repetition_penalty")),
            config.min_new_tokens or 0,
            config.max_new_tokens,
            None if max_length == DEFAULTS["max_length"] else max_length,
            tuple(texts),
        )


def _value(config: GenerationConfig, name: str) -> Any:
    """Returns a field; None means its default."""
    value = getattr(config, name)
    return DEFAULTS[name] if value is None else value


def _typical_p(value: Any) -> float:
    """Returns the setting as a number; 1, which changes nothing, for None and above 1, as in transformers."""
    return 1.0 if value is None else min(1.0, check_positive("typical_p", value))


def generation_notes(config: GenerationConfig) -> list[str]:
    """Returns notes on settings that `LLM` ignores, and on a repetition penalty that makes answers useless."""
    ignored = ", ".join(f"{name} ({show(value)})" for name, value in ignored_settings(config).items())
    notes = [f"LLM does not support these generation settings, and answers without them: {ignored}"] if ignored else []
    notes += [f"in the generation settings, {note}" for note in config.unusable]
    penalty = _value(config, "repetition_penalty")
    if not 0.1 <= penalty <= 10:
        notes.append(
            f"repetition_penalty is {penalty} in the generation settings; a value so far from 1 "
            "rarely gives usable answers"
        )
    return notes


def ignored_settings(config: GenerationConfig) -> dict[str, Any]:
    """Returns the settings that would change answers but that `LLM` does not support, without those that are disabled.

    A field that transformers does not have counts too, since its effect is unknown.
    """
    used = {*_SUPPORTED, *_SAME_ANSWER, *METADATA}
    changed = config.to_diff_dict()
    fields = {name: changed[name] for name in config.assigned if name in changed and name not in used}
    if _value(config, "repetition_penalty") == 1.0:
        fields.pop("general.sampling.penalty_last_n", None)
    return {
        name: value
        for name, value in fields.items()
        if value not in (None, {}, []) and value not in _NEUTRAL.get(name, ()) and value not in _GGUF.get(name, ())
    }
