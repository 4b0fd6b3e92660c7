"""Unusual folders of LLaMA models, modelled on what public repositories and training programs write.

Each is the golden checkpoint with an edit that does not change its logits, or changes them as the ordinary settings in
`equivalent` do.
"""

from __future__ import annotations

import shutil

import numpy as np

from tests.golden.files import LAYOUTS
from tests.helpers.changed_folders import (
    DROP,
    EditedFolder,
    all_of,
    change,
    delete,
    index,
    padded_rows,
    per_layer,
    plus,
    prefixed,
    replaced,
    write_weights,
)  # fmt: skip

SHARDS = ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors")
BINS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
LORA = np.zeros((4, 64), np.float32)
LINEAR = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}
NO_ROPE = {"rope_parameters": DROP}
DECAPODA = {
    "architectures": ["LLaMAForCausalLM"], "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1,
    "max_sequence_length": 256, "max_position_embeddings": DROP, "num_key_value_heads": None,
}  # fmt: skip
OLD_DEFAULTS = {
    "add_cross_attention": False, "bad_words_ids": None, "begin_suppress_tokens": None, "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None, "diversity_penalty": 0.0, "do_sample": False, "early_stopping": False,
    "finetuning_task": None, "is_decoder": False, "is_encoder_decoder": False, "max_length": 20, "num_beams": 1,
    "prefix": None, "problem_type": None, "pruned_heads": {}, "repetition_penalty": 1.0, "return_dict": True,
    "sep_token_id": None, "temperature": 1.0, "tf_legacy_loss": False, "tie_encoder_decoder": False, "top_k": 50,
    "torchscript": False, "typical_p": 1.0, "use_bfloat16": False,
}  # fmt: skip
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


UNUSUAL: dict[str, EditedFolder] = {
    # config.json: spellings of early and late releases
    "early spelling of the class": EditedFolder({"architectures": ["LLaMAForCausalLM"]}),
    "early conversions": EditedFolder(
        {**DECAPODA, "num_key_value_heads": 4} | {"max_position_embeddings": 256}, note="pad_token_id -1"
    ),
    "defaults of old releases": EditedFolder(OLD_DEFAULTS),
    "no architectures": EditedFolder({"architectures": DROP}),
    "null architectures": EditedFolder({"architectures": None}),
    "FSDP wrapper": EditedFolder({"architectures": ["FSDPLlamaForCausalLM"]}, note="FSDPLlamaForCausalLM"),
    "PEFT wrapper": EditedFolder({"architectures": ["PeftModelForCausalLM"]}, note="PeftModelForCausalLM"),
    "custom code": EditedFolder({"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}, reference=False),
    "torch_dtype auto": EditedFolder({"torch_dtype": "auto", "dtype": DROP}, note="'auto'", reference=False),
    "dtype auto": EditedFolder({"dtype": "auto"}, note="'auto'", reference=False),
    "dtype with prefix": EditedFolder({"dtype": "torch.float32"}, reference=False),
    "dtype float": EditedFolder({"dtype": "float"}),
    "both dtypes": EditedFolder({"torch_dtype": "float16"}),
    "no dtype": EditedFolder({"dtype": DROP}),
    "padding id of unsigned -1": EditedFolder({"pad_token_id": 2**32 - 1}, note="4294967295", reference=False),
    "null ids": EditedFolder({"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}),
    "several eos ids": EditedFolder({"eos_token_id": [2, 7]}),
    "eos ids with -1": EditedFolder({"eos_token_id": [2, -1]}, note="eos_token_id", reference=False),
    "null heads and widths": EditedFolder(
        {"num_key_value_heads": None, "head_dim": None, "num_attention_heads": 8},
        tensors=lambda t: (
            t
            | {
                k: np.repeat(v.reshape(4, 8, 64), 2, 0).reshape(64, 64)
                for k, v in t.items()
                if "k_proj" in k or "v_proj" in k
            }
        ),
    ),
    "several tensor-parallel slices": EditedFolder({"pretraining_tp": 2}),
    "no cache": EditedFolder({"use_cache": False}),
    "name of the source model": EditedFolder({"_name_or_path": "owner/name", "transformers_version": "4.28.0.dev0"}),
    "integer theta": EditedFolder({**NO_ROPE, "rope_theta": 10000, "rope_scaling": None}),
    "no rope settings": EditedFolder(NO_ROPE),
    "empty rope settings": EditedFolder({**NO_ROPE, "rope_scaling": {}}),
    "rope settings of nulls": EditedFolder(
        {**NO_ROPE, "rope_scaling": {"type": None, "factor": None}}, reference=False
    ),
    "nulls in rope_parameters": EditedFolder(
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": None,
                "factor": None,
            }
        },
        reference=False,
    ),
    "default rope with a factor": EditedFolder(
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "factor": 4.0}}, note="does not use factor"
    ),
    "linear rope with factor 1": EditedFolder(
        {**NO_ROPE, "rope_scaling": {"type": "linear", "factor": 1.0}}, note="scales nothing"
    ),
    "dynamic rope with factor 1": EditedFolder({**NO_ROPE, "rope_scaling": {"type": "dynamic", "factor": 1}}),
    "yarn with factor 1": EditedFolder(
        {**NO_ROPE, "rope_scaling": {"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 256}},
        note="scales nothing",
    ),
    "llama3 rope with factor 1": EditedFolder(
        {
            **NO_ROPE,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 1.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        note="scales nothing",
    ),
    "llama3 rope with factor 1 only": EditedFolder(
        {**NO_ROPE, "rope_scaling": {"type": "llama3", "factor": 1}}, note="scales nothing", reference=False
    ),
    "linear rope with keys of yarn": EditedFolder(
        {
            **NO_ROPE,
            "rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 32, "original_max_position_embeddings": 64},
        },
        equivalent=LINEAR,
        note="does not use beta_fast",
    ),
    "linear rope under two names": EditedFolder(
        {**NO_ROPE, "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2}}, equivalent=LINEAR
    ),
    "dynamic rope": EditedFolder({**NO_ROPE, "rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "yarn with nulls": EditedFolder(
        {
            **NO_ROPE,
            "rope_scaling": {
                "type": "yarn",
                "factor": 4.0,
                "attention_factor": None,
                "original_max_position_embeddings": 64,
                "finetuned": True,
            },
        },
        equivalent={
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 10000.0,
            }
        },
    ),
    # Tensors
    "rotary frequencies": EditedFolder(tensors=plus(**per_layer("self_attn__rotary_emb__inv_freq", 4)), note="rotary"),
    "rotary cosines and sines": EditedFolder(
        tensors=plus(
            **per_layer("self_attn__rotary_emb__cos_cached", 1, 1, 8, 8),
            **per_layer("self_attn__rotary_emb__sin_cached", 1, 1, 8, 8),
        ),
        note="4 tensors with cached rotary values",
    ),
    "value head": EditedFolder(
        tensors=plus(
            v_head__summary__weight=np.ones((1, 64), np.float32), v_head__summary__bias=np.ones(1, np.float32)
        ),
        note="value head",
    ),
    "DDP": EditedFolder(tensors=prefixed("module."), note="module.", reference=False),
    "torch.compile": EditedFolder(tensors=prefixed("_orig_mod."), note="_orig_mod.", reference=False),
    "torch.compile in DDP": EditedFolder(tensors=prefixed("module._orig_mod."), note="module", reference=False),
    "compiled layers": EditedFolder(
        tensors=replaced("self_attn.", "_orig_mod.self_attn."), note="_orig_mod.", reference=False
    ),
    "activation checkpoints": EditedFolder(
        tensors=replaced(".mlp.", "._checkpoint_wrapped_module.mlp."),
        note="_checkpoint_wrapped_module.",
        reference=False,
    ),
    "PEFT": EditedFolder(tensors=prefixed("base_model.model."), note="base_model.model.", reference=False),
    "PEFT in DDP": EditedFolder(
        tensors=prefixed("module.base_model.model."), note="base_model.model.", reference=False
    ),
    "base layers of PEFT": EditedFolder(
        tensors=replaced("q_proj.", "q_proj.base_layer."), note="base_layer.", reference=False
    ),
    "Lightning": EditedFolder(tensors=prefixed("model."), note="model.", reference=False),
    "trl in accelerate": EditedFolder(
        tensors=lambda t: prefixed("pretrained_model.")(t) | {"v_head.summary.weight": np.ones((1, 64), np.float32)},
        note="pretrained_model.",
        reference=False,
    ),
    "more rows than tokens": EditedFolder({"vocab_size": 576}, tensors=padded_rows),
    # Files
    "metadata-free safetensors": EditedFolder(),
    "torch file": EditedFolder(files=["pytorch_model.bin"]),
    "shards with an index": EditedFolder(files=SHARDS, edit=index()),
    "shards without an index": EditedFolder(files=SHARDS, note="no index", reference=False),
    "torch shards without an index": EditedFolder(files=BINS, note="no index", reference=False),
    "an index that lacks a tensor": EditedFolder(
        files=SHARDS, edit=index(drop="model.norm"), note="does not list 1 of the tensors"
    ),
    "an index that lacks a shard": EditedFolder(
        files=SHARDS, edit=index(drop=SHARDS[1]), note=f"no tensor of {SHARDS[1]}", reference=False
    ),
    "a single file with an index": EditedFolder(edit=index(), note="index.json ignored"),
    "a single file with another name": EditedFolder(files=["llama-merged.safetensors"], reference=False),
    "safetensors and torch files": EditedFolder(
        edit=lambda folder: write_weights(folder, {"x": LORA}, ["pytorch_model.bin"])
    ),
    "Meta's files in the same folder": EditedFolder(
        edit=lambda folder: [shutil.copy(path, folder / path.name) for path in LAYOUTS["meta"].glob("*.pth")] and None
    ),
    "Meta's files in a subfolder": EditedFolder(
        edit=lambda folder: shutil.copytree(LAYOUTS["meta"], folder / "original") and None
    ),
    "settings of a quantisation that was undone": EditedFolder(
        {"quantization_config": BNB}, note="quantization_config in config.json ignored", reference=False
    ),
    "GPTQ's settings file": EditedFolder(
        edit=change({"bits": 4}, "quantize_config.json"), note="quantize_config.json ignored"
    ),
    "configuration of an adapter that was merged": EditedFolder(
        edit=change({"peft_type": "LORA", "base_model_name_or_path": "owner/name"}, "adapter_config.json"),
        note="adapter_config.json ignored",
        reference=False,
    ),
    "generation ids of -1": EditedFolder(
        edit=change({"pad_token_id": -1}, "generation_config.json"), note="generation_config.json: pad_token_id -1"
    ),
    "no generation_config.json": EditedFolder(edit=delete("generation_config.json")),
    # Tokenizers
    # transformers 5.23 builds a pipeline that adds no BOS and gives other ids than SentencePiece
    "tokenizer.model only": EditedFolder(
        edit=delete("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"), reference=False
    ),
    "tokenizer.model and its configuration": EditedFolder(edit=delete("tokenizer.json", "special_tokens_map.json")),
    "tokenizer.json only": EditedFolder(
        edit=delete("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
    ),
    "early name of the tokenizer's class": EditedFolder(
        edit=all_of(delete("tokenizer.json"), change({"tokenizer_class": "LLaMATokenizer"}, "tokenizer_config.json")),
        reference=False,
    ),
    "early tokenizer files": EditedFolder(
        edit=all_of(
            delete("tokenizer.json", "tokenizer_config.json"),
            change(
                {
                    "bos_token": "",
                    "eos_token": "",
                    "unk_token": "",
                    "model_max_length": 10**30,
                    "tokenizer_class": "LlamaTokenizer",
                },
                "tokenizer_config.json",
            ),
            lambda folder: (folder / "special_tokens_map.json").write_text("{}") and None,
        ),
        reference=False,
    ),
    "legacy fields of a tokenizer": EditedFolder(
        edit=change(
            {
                "sp_model_kwargs": {},
                "model_max_length": 10**30,
                "name_or_path": "x",
                "special_tokens_map_file": "x.json",
                "tokenizer_file": None,
                "use_fast": True,
                "padding_side": "right",
                "model_input_names": ["input_ids", "attention_mask"],
                "additional_special_tokens": [],
                "chat_template": None,
            },
            "tokenizer_config.json",
        )
    ),
    "tokenizer.json with padding and truncation": EditedFolder(
        edit=change(
            {
                "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
                "padding": {
                    "strategy": {"Fixed": 32},
                    "direction": "Right",
                    "pad_to_multiple_of": None,
                    "pad_id": 0,
                    "pad_type_id": 0,
                    "pad_token": "<unk>",
                },
            },
            "tokenizer.json",
        )
    ),
}
