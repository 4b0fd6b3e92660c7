"""Why puna lacks some public names of transformers' classes, or has another default."""

from __future__ import annotations

from fnmatch import fnmatchcase

_CODE = "internal of transformers; code that uses LLaMA models does not read it"
_PARALLEL = "shard models with PyTorch's own `fully_shard` or `parallelize_module`"
_PER_LAYER = "LLaMA models have the same settings in every layer"
_PEFT = "use `peft.get_peft_model(model, ...)`, which accepts puna's models, or `puna.LLM.load_adapter`"
_SERVING = "use `puna.LLM` or `puna serve`, which batch requests continuously"
_CHECKS = "`validate` checks all fields"
_NO_HEAD = "only a model with a language-model head generates; in transformers the method fails"
_RESPONSE = "parses answers with templates of transformers 5; `puna serve` parses tool calls"

REASONS: dict[str, str] = {
    # Configurations
    "LlamaConfig.*per_layer_a*": _PER_LAYER,
    "LlamaConfig.serialize_explicit_per_layer_config": _PER_LAYER,
    "LlamaConfig.is_heterogeneous": _PER_LAYER,
    "LlamaConfig.base_model_ep_plan": "LLaMA models have no experts",
    "LlamaConfig.base_model_fsdp_plan": _PARALLEL,
    "LlamaConfig.get_mtp_config": "LLaMA models do not predict several tokens",
    "LlamaConfig.validate_*": _CHECKS,
    "LlamaConfig.ignore_keys_at_rope_validation": _CHECKS,
    "LlamaConfig.convert_rope_params_to_dict": "every spelling of rope settings is read when it is assigned",
    "LlamaConfig.standardize_rope_params": "every spelling of rope settings is read when it is assigned",
    "LlamaConfig.nested_rope_parameter_keys": "LLaMA models have one set of rope settings",
    "LlamaConfig.default_rope_type": _CODE,
    "LlamaConfig.default_theta": _CODE,
    "LlamaConfig.default_config_fields": _CODE,
    "LlamaConfig.extra_*files": _CODE,
    "LlamaConfig.is_*_code": "code of the hub is never run",
    "LlamaConfig.sub_configs_defaults": _CODE,
    "LlamaConfig.push_to_hub(max_shard_size)": "a configuration has no shards",
    "LlamaConfig.push_to_hub(safe_serialization)": "a configuration has no weights",
    "LlamaConfig.push_to_hub(tags)": "tags belong to models; `model.push_to_hub(tags=...)` writes them",
    "GenerationConfig.extra_output_flags": _CODE,
    "GenerationConfig.push_to_hub": "`model.push_to_hub` uploads it with the model",
    "GenerationConfig.dict_*dtype_to_str": "settings of generation hold no types",
    # Generation
    "LlamaModel.generate*": _NO_HEAD,
    "LlamaForSequenceClassification.generate*": _NO_HEAD,
    "LlamaModel.prepare_inputs_for_generation": _NO_HEAD,
    "LlamaForSequenceClassification.prepare_inputs_for_generation": _NO_HEAD,
    **{f"{cls}.{name}": _NO_HEAD for cls in ("LlamaModel", "LlamaForSequenceClassification") for name in (
        "greedy_search", "sample", "beam_search", "beam_sample", "group_beam_search", "constrained_beam_search",
        "contrastive_search", "assisted_decoding", "compute_transition_scores")},
    "LlamaForCausalLM.*continuous_batching*": _SERVING,
    "LlamaForCausalLM.generate_batch": _SERVING,
    "LlamaForCausalLM.adjust_generation_fn": _CODE,
    "LlamaForCausalLM.load_custom_generate": "code of the hub is never run",
    "LlamaForCausalLM.prepare_inputs_for_generation(next_sequence_length)": _CODE,
    "LlamaForCausalLM.prepare_inputs_for_generation(is_first_iteration)": _CODE,
    # Models
    **{f"Llama*.{name}": _PEFT for name in (
        "active_adapter", "active_adapters", "add_adapter", "delete_adapter", "disable_adapters", "enable_adapters",
        "enable_peft_hotswap", "get_adapter_state_dict", "load_adapter", "set_adapter")},
    **{f"Llama*.{name}": _PARALLEL for name in (
        "barrier_after_gathered_checkpoint_save", "gather_sharded_state_dict_for_save", "init_parallel_plans",
        "is_distributed_loading_by_transformers", "maybe_distribute_model", "prepare_distribute_model",
        "save_distributed_checkpoint", "should_save_on_this_rank", "tp_plan", "pp_plan", "ep_plan", "fsdp_plan",
        "supports_tp_plan", "supports_pp_plan", "supports_context_parallel")},
    **{f"Llama*.{name}": "LLaMA models have no experts" for name in (
        "get_correct_experts_implementation", "get_experts_implementation", "set_experts_implementation")},
    **{f"Llama*.{name}": _CODE for name in (
        "get_init_context", "kernel_config", "set_use_kernels", "mark_tied_weights_as_initialized",
        "get_expanded_tied_weights_keys", "all_tied_weights_keys", "smart_apply")},
    "Llama*Model.loss_function": "a model without a head has no loss",
    "LlamaForSequenceClassification.loss_function": "the loss follows from `config.problem_type`",
    "Llama*.from_pretrained(fusion_config)": "the PyTorch model has no fused modules; the native runtime fuses its own",
    "Llama*.from_pretrained(disable_mmap)": "weights are copied from the file once, which mapping would not change",
    "Llama*.save_pretrained(save_original_format)": "tensors always have the names of the file format",
    "Llama*.save_pretrained(distributed_checkpoint)": "use `torch.distributed.checkpoint`",
    "Llama*.set_attn_implementation(allow_all_kernels)": "code of the hub is never run",
    "Llama*.set_encoder(modality)": "LLaMA models have no encoder",
    "LlamaForCausalLM.output_modalities": "a text, as `input_modalities` is",
    # Tokenizers
    "LlamaTokenizer*.*response*": _RESPONSE,
    "LlamaTokenizer*.apply_chat_template(return_dict)": "the default of 4.34 is kept: ids, not a dictionary",
    **{f"LlamaTokenizer*.{name}": _CODE for name in (
        "add_prefix_space", "backend", "convert_to_native_format", "files_loaded", "model", "save_chat_templates",
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", "chat_control_tokens")},
    **{f"LlamaTokenizer.{name}": "only a fast tokenizer has it, as in 4.34" for name in (
        "backend_tokenizer", "can_save_slow_tokenizer", "decoder", "set_truncation_and_padding",
        "train_new_from_iterator", "update_post_processor")},
    "LlamaTokenizer*.clean_up_tokenization(text)": "5.x renamed the argument; its name is `out_string`, as in 4.34",
    "LlamaTokenizer*.__call__(tokenizer_kwargs)": _CODE,
    "LlamaTokenizer*.push_to_hub(max_shard_size)": "a tokenizer has no shards",
    "LlamaTokenizer*.push_to_hub(safe_serialization)": "a tokenizer has no weights",
    "LlamaTokenizer*.push_to_hub(tags)": "tags belong to models; `model.push_to_hub(tags=...)` writes them",
    "LlamaTokenizer.prepare_for_tokenization": "a hook for subclasses; it changes nothing for LLaMA",
    "LlamaTokenizerFast.legacy": "an argument of the slow tokenizer, as in 4.34",
    "LlamaTokenizer.tokens_trie": "added tokens are found by a regular expression",
    "LlamaTokenizer*.save_pretrained(save_format)": "puna writes the files of its kind of tokenizer",
    **{f"LlamaTokenizer*.{name}": "the value of the tokenizer's own files" for name in (
        "name_or_path", "pad_token", "pad_token_id", "vocab_file", "vocab_size", "default_chat_template",
        "unk_token_length")},
}  # fmt: skip

_EFFECTIVE = "in 5.x None stands for this default"
REASONS |= {f"GenerationConfig.{name}": _EFFECTIVE for name in (
    "assistant_confidence_threshold", "assistant_lookbehind", "disable_compile", "is_assistant",
    "num_assistant_tokens", "num_assistant_tokens_schedule", "target_lookbehind", "token_healing")}  # fmt: skip


def reason(cls: str, name: str) -> str | None:
    """Returns the reason for a name, `method` or `method(argument)`, of a class; None if there is none."""
    full = f"{cls}.{name}"
    return next((text for pattern, text in REASONS.items() if fnmatchcase(full, pattern)), None)
