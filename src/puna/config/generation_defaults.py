"""The part of a generation configuration that `puna.LLM` uses: defaults for options that a call leaves out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from puna.config.checks import check_positive
from puna.config.generation import GenerationConfig
from puna.errors import ConfigError, show

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "assistant_model": (None,), "bad_words_ids": (None, []), "begin_suppress_tokens": (None, []),
    "cache_implementation": (None, "dynamic"), "constraints": (None,), "custom_generate": (None,),
    "diversity_penalty": (None, 0.0), "dola_layers": (None,), "early_stopping": (None, False),
    "encoder_no_repeat_ngram_size": (None, 0), "encoder_repetition_penalty": (None, 1.0), "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0), "exponential_decay_length_penalty": (None,), "force_words_ids": (None, []),
    "forced_bos_token_id": (None,), "forced_decoder_ids": (None, []), "forced_eos_token_id": (None,),
    "guidance_scale": (None, 1.0), "length_penalty": (None, 1.0), "low_memory": (None, False), "max_time": (None,),
    "min_length": (None, 0), "negative_prompt_attention_mask": (None,), "negative_prompt_ids": (None,),
    "no_repeat_ngram_size": (None, 0), "num_beam_groups": (None, 1), "output_attentions": (None, False),
    "output_hidden_states": (None, False), "output_logits": (None, False), "penalty_alpha": (None, 0.0),
    "position_ids": (None,), "prefix_allowed_tokens_fn": (None,), "prompt_lookup_num_tokens": (None,),
    "remove_invalid_values": (None, False), "renormalize_logits": (None, False), "sequence_bias": (None, {}, []),
    "stop_strings": (None, []), "suppress_tokens": (None, []), "synced_gpus": (None, False),
    "token_healing": (None, False), "tokenizer": (None,), "top_h": (None,), "typical_p": (None, 1.0),
    "watermarking_config": (None,),
}  # fmt: skip
"""Settings and arguments of transformers that `generate()` does not support, with the values that disable them."""

_GGUF: dict[str, tuple[Any, ...]] = {
    "general.sampling.mirostat": (0,), "general.sampling.penalty_last_n": (-1,), "general.sampling.sequence": ("",),
    "general.sampling.xtc_probability": (0.0,),
}  # fmt: skip
"""Settings of GGUF files that `LLM` does not support, with the values that disable them."""

_SAME_ANSWER = frozenset(
    {"_commit_hash", "_from_model_config", "assistant_confidence_threshold", "assistant_early_exit",
     "assistant_ensemble_weight", "assistant_lookbehind", "cache_config", "cache_implementation", "compile_config",
     "continuous_batching_config", "decoder_start_token_id", "disable_compile", "diversity_penalty", "early_stopping",
     "general.sampling.mirostat_eta", "general.sampling.mirostat_tau",
     "general.sampling.xtc_threshold", "is_assistant", "length_penalty", "low_memory",
     "max_cache_len", "max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule",
     "num_beam_groups", "output_attentions", "output_hidden_states", "output_logits", "prefill_chunk_size",
     "prompt_lookup_num_tokens", "remove_invalid_values", "renormalize_logits", "speculation_type", "stop_strings",
     "synced_gpus", "target_lookbehind", "transformers_version", "typical_p", "use_mtp"}
)  # fmt: skip
"""Fields in `GenerationConfig.extra` that do not change an answer of `LLM`, or that `LLM` supports.

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
        unset = GenerationConfig()
        stop = config.extra.get("stop_strings") or []
        texts = [stop] if isinstance(stop, str) else stop
        if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
            raise ConfigError(f"stop_strings is {show(stop)}; it must be a text or a list of texts, none of them empty")
        return cls(
            float(config.temperature) if config.do_sample else 0.0,
            max(0, config.top_k) if config.do_sample or config.top_k != unset.top_k else 0,
            float(config.top_p),
            float(config.min_p or 0.0),
            _typical_p(config.extra.get("typical_p")),
            float(config.repetition_penalty),
            config.min_new_tokens or 0,
            config.max_new_tokens,
            None if config.max_length == unset.max_length else config.max_length,
            tuple(texts),
        )


def _typical_p(value: Any) -> float:
    """Returns the setting as a number; 1, which changes nothing, for None and above 1, as in transformers."""
    return 1.0 if value is None else min(1.0, check_positive("typical_p", value))


def generation_notes(config: GenerationConfig) -> list[str]:
    """Returns notes on settings that `LLM` ignores, and on a repetition penalty that makes answers useless."""
    ignored = ", ".join(f"{name} ({show(value)})" for name, value in ignored_settings(config).items())
    notes = [f"LLM does not support these generation settings, and answers without them: {ignored}"] if ignored else []
    notes += [f"in the generation settings, {note}" for note in config.unusable]
    if not 0.1 <= config.repetition_penalty <= 10:
        notes.append(
            f"repetition_penalty is {config.repetition_penalty} in the generation settings; a value so far from 1 "
            "rarely gives usable answers"
        )
    return notes


def ignored_settings(config: GenerationConfig) -> dict[str, Any]:
    """Returns the settings that would change answers but that `LLM` does not support, without those that are disabled.

    A field that transformers does not have counts too, since its effect is unknown.
    """
    fields = {name: value for name, value in config.extra.items() if name not in _SAME_ANSWER}
    if config.repetition_penalty == 1.0:
        fields.pop("general.sampling.penalty_last_n", None)
    ignored = {
        name: value
        for name, value in fields.items()
        if value not in (None, {}, []) and value not in UNSUPPORTED.get(name, ()) and value not in _GGUF.get(name, ())
    }
    neutral = {"num_beams": (1,), "num_return_sequences": (1,)}
    return ignored | {name: getattr(config, name) for name, off in neutral.items() if getattr(config, name) not in off}
