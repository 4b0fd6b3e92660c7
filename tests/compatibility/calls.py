"""A call of each method with optional arguments, for the tests that pass the documented default of every argument."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import puna
from tests.compatibility.objects import CHECKPOINT, new_object
from tests.compatibility.record import MODELS

Arguments = dict[str, Any]

_IDS = torch.tensor([[5, 6, 7]])
_TURNS = [{"role": "user", "content": "a"}]
_TEMPLATE = "{{ messages[0]['content'] }}"
_FOLDER = "<a new folder>"

_SHORT = {"stopping_criteria": puna.StoppingCriteriaList([puna.MaxLengthCriteria(5)])}


def _scorer(cls: type = puna.BeamSearchScorer, **more: Any) -> Any:
    return cls(batch_size=1, num_beams=2, device=torch.device("cpu"), **more)


_TOKENIZERS: dict[str, Arguments] = {
    "__call__": {"text": "a b"},
    "add_special_tokens": {"special_tokens_dict": {}},
    "add_tokens": {"new_tokens": []},
    "apply_chat_template": {"conversation": _TURNS, "chat_template": _TEMPLATE},
    "batch_decode": {"sequences": [[5, 6]]},
    "batch_encode_plus": {"batch_text_or_text_pairs": ["a b", "c"]},
    "build_inputs_with_special_tokens": {"token_ids_0": [5]},
    "convert_added_tokens": {"obj": "a"},
    "convert_ids_to_tokens": {"ids": [5, 6]},
    "create_token_type_ids_from_sequences": {"token_ids_0": [5]},
    "decode": {"token_ids": [5, 6]},
    "encode": {"text": "a b"},
    "encode_message_with_chat_template": {"message": _TURNS[0], "chat_template": _TEMPLATE},
    "encode_plus": {"text": "a b"},
    "from_pretrained": {"pretrained_model_name_or_path": CHECKPOINT},
    "get_chat_template": {"chat_template": _TEMPLATE},
    "get_special_tokens_mask": {"token_ids_0": [5]},
    "num_special_tokens_to_add": {},
    "pad": {"encoded_inputs": {"input_ids": [[5, 6]]}},
    "prepare_for_model": {"ids": [5, 6]},
    "prepare_seq2seq_batch": {"src_texts": ["a b"]},
    "register_for_auto_class": {},
    "save_pretrained": {"save_directory": _FOLDER},
    "save_vocabulary": {"save_directory": _FOLDER},
    "tokenize": {"text": "a b"},
    "truncate_sequences": {"ids": [5, 6, 7], "num_tokens_to_remove": 1},
}
_MODELS: dict[str, Arguments] = {
    "activation_checkpointing_enable": {},
    "add_model_tags": {"tags": "a"},
    "create_extended_attention_mask_for_decoder": {"input_shape": (1, 3), "attention_mask": torch.ones(1, 3)},
    "floating_point_ops": {"input_dict": {"input_ids": _IDS}},
    "forward": {"input_ids": _IDS},
    "from_pretrained": {"pretrained_model_name_or_path": CHECKPOINT},
    "generate": {"inputs": _IDS, "max_new_tokens": 2},
    "get_correct_attn_implementation": {"requested_attention": "eager"},
    "get_decoder": {},
    "get_encoder": {},
    "get_extended_attention_mask": {"attention_mask": torch.ones(1, 3), "input_shape": (1, 3)},
    "get_head_mask": {"head_mask": None, "num_hidden_layers": 1},
    "get_memory_footprint": {},
    "gradient_checkpointing_enable": {},
    "named_non_persistent_buffers": {},
    "num_parameters": {},
    "prepare_inputs_for_generation": {"input_ids": _IDS},
    "register_for_auto_class": {},
    "resize_token_embeddings": {"new_num_tokens": 44},
    "retrieve_modules_from_names": {"names": ["model.norm.weight"]},
    "save_pretrained": {"save_directory": _FOLDER},
    "set_attn_implementation": {"attn_implementation": "eager"},
    "tie_weights": {},
    # The strategies of `generate()`, which were public methods in 4.34:
    "assisted_decoding": {"input_ids": _IDS, **_SHORT, "assistant_model": new_object("LlamaForCausalLM")},
    "beam_sample": {"input_ids": _IDS.repeat(2, 1), **_SHORT, "beam_scorer": _scorer()},
    "beam_search": {"input_ids": _IDS.repeat(2, 1), **_SHORT, "beam_scorer": _scorer()},
    "constrained_beam_search": {
        "input_ids": _IDS.repeat(2, 1), **_SHORT,
        "constrained_beam_scorer": _scorer(puna.ConstrainedBeamSearchScorer, constraints=[puna.PhrasalConstraint([5])]),
    },
    "contrastive_search": {"input_ids": _IDS, **_SHORT, "top_k": 2, "penalty_alpha": 0.5},
    "greedy_search": {"input_ids": _IDS, **_SHORT},
    "group_beam_search": {
        "input_ids": _IDS.repeat(2, 1), **_SHORT, "beam_scorer": _scorer(num_beam_groups=2)
    },
    "sample": {"input_ids": _IDS, **_SHORT},
}  # fmt: skip
_CONFIGS: dict[str, Arguments] = {
    "__init__": {},
    "from_dict": {"config_dict": {}},
    "from_pretrained": {"pretrained_model_name_or_path": CHECKPOINT},
    "get_text_config": {},
    "register_for_auto_class": {},
    "save_pretrained": {"save_directory": _FOLDER},
    "to_json_file": {"json_file_path": _FOLDER},
    "to_json_string": {},
    "validate": {},
}
_GENERATION = {**_CONFIGS, "from_pretrained": {"pretrained_model_name": CHECKPOINT}}

CALLS: dict[str, dict[str, Arguments]] = {
    **dict.fromkeys(MODELS, _MODELS), "LlamaTokenizer": _TOKENIZERS, "LlamaTokenizerFast": _TOKENIZERS,
    "LlamaConfig": _CONFIGS, "GenerationConfig": _GENERATION,
}  # fmt: skip


def has_call(cls: str, method: str, argument: str) -> bool:
    """Whether the table has a call of the method, and the call does not give the argument already."""
    return method in CALLS[cls] and argument not in CALLS[cls][method]


def call(cls: str, method: str, folder: Path, **more: Any) -> Any:
    """Calls a method of a new object with the arguments of the table and more arguments; returns its result."""
    instance = new_object(cls)
    function: Callable[..., Any] = type(instance) if method == "__init__" else getattr(instance, method)
    arguments = {name: str(folder / "a") if value is _FOLDER else value for name, value in CALLS[cls][method].items()}
    if method == "save_vocabulary":
        (folder / "a").mkdir(exist_ok=True)
    return function(**arguments, **more)
