"""Defaults of the attributes that all configurations of Hugging Face have, whatever the model.

Code written against Hugging Face's classes reads these attributes without checking that they are present. The table
contains those of `PretrainedConfig` in transformers 4.34; 5.x has some of them, with the same defaults.
"""

from __future__ import annotations

from typing import Any

GENERATION: dict[str, Any] = {
    "max_length": 20, "min_length": 0, "do_sample": False, "early_stopping": False, "num_beams": 1,
    "num_beam_groups": 1, "diversity_penalty": 0.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0,
    "repetition_penalty": 1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None, "num_return_sequences": 1, "output_scores": False, "return_dict_in_generate": False,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "remove_invalid_values": False,
    "exponential_decay_length_penalty": None, "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip
"""Settings of generation, which older files keep in `config.json`; `GenerationConfig.from_model_config` reads them."""

FORWARD: dict[str, Any] = {
    "return_dict": True, "output_hidden_states": False, "output_attentions": False, "torchscript": False,
}  # fmt: skip
"""Defaults of the arguments of `forward` that select its outputs, and the type of its output."""

UNUSED: dict[str, Any] = {
    "use_bfloat16": False, "tf_legacy_loss": False, "is_encoder_decoder": False, "is_decoder": False,
    "cross_attention_hidden_size": None, "add_cross_attention": False, "tie_encoder_decoder": False,
    "chunk_size_feed_forward": 0, "finetuning_task": None, "tokenizer_class": None, "prefix": None,
    "sep_token_id": None, "decoder_start_token_id": None, "task_specific_params": None,
}  # fmt: skip
"""Attributes without effect on a LLaMA model."""

DEFAULTS: dict[str, Any] = {
    **FORWARD, **UNUSED, **GENERATION,
    "tie_word_embeddings": True, "pruned_heads": {}, "architectures": None, "problem_type": None,
    "bos_token_id": None, "pad_token_id": None, "eos_token_id": None,
}  # fmt: skip
"""All attributes that a `PretrainedConfig` has and that are plain values."""

LLAMA_TENSOR_PLAN: dict[str, str] = {
    **{f"layers.*.{name}": "colwise" for name in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")},
    **{f"layers.*.{name}": "rowwise" for name in ("self_attn.o_proj", "mlp.down_proj")},
}  # fmt: skip
"""How other libraries split the matrices of a LLaMA model among devices; puna does not use it."""

LLAMA_PIPELINE_PLAN: dict[str, tuple[list[str], list[str]]] = {
    "embed_tokens": (["input_ids"], ["inputs_embeds"]),
    "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
    "norm": (["hidden_states"], ["hidden_states"]),
}
"""Inputs and outputs of the modules, for libraries that divide a model into stages; puna does not use it."""
