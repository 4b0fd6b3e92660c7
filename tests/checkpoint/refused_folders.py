"""Unsupported, incomplete and contradictory folders, with the reason that puna must give when it refuses them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.checkpoint.odd_folders import LORA, NO_ROPE, SHARDS
from tests.helpers.changed_folders import (
    DROP,
    EditedFolder,
    all_of,
    change,
    delete,
    golden_tensors,
    index,
    per_layer,
    plus,
    prefixed,
    replaced,
    write_weights,
)  # fmt: skip

ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "owner/base", "r": 4}
EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2}


def adapter(folder: Path) -> None:
    """Adds the configuration and the weights of a LoRA adapter to a folder."""
    change(ADAPTER, "adapter_config.json")(folder)
    write_weights(
        folder, {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": LORA}, ["adapter_model.safetensors"]
    )


REFUSED: dict[str, EditedFolder] = {
    "an adapter": EditedFolder(
        edit=all_of(adapter, delete("model.safetensors", "config.json")), error="an adapter .LORA. .*'owner/base'"
    ),
    "an adapter with the base model's configuration": EditedFolder(
        edit=all_of(adapter, delete("model.safetensors")), error="an adapter .*'owner/base'.*puna merge BASE"
    ),
    "an adapter without weights": EditedFolder(
        edit=all_of(change(ADAPTER, "adapter_config.json"), delete("model.safetensors")),
        error="an adapter .*'owner/base'",
    ),
    "an adapter next to a model": EditedFolder(edit=adapter, error="an adapter .* next to a model"),
    "an adapter of an unnamed model": EditedFolder(
        edit=all_of(
            adapter,
            delete("model.safetensors", "config.json"),
            change({"base_model_name_or_path": None}, "adapter_config.json"),
        ),
        error="an adapter .*not named",
    ),
    "adapters that were not merged": EditedFolder(
        tensors=lambda t: (
            prefixed("base_model.model.")(t)
            | {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight": LORA}
        ),
        error="not merged.*lora_A.*merge_and_unload",
    ),
    "a copy of a layer for training": EditedFolder(
        tensors=lambda t: t | {"lm_head.modules_to_save.default.weight": t["lm_head.weight"]},
        error="not merged.*modules_to_save",
    ),
    "a name with and without a wrapper": EditedFolder(
        tensors=lambda t: t | {"module.lm_head.weight": t["lm_head.weight"]},
        error="'lm_head.weight' and 'module.lm_head.weight'",
    ),
    "a mixture of experts by type": EditedFolder(
        {"model_type": "mixtral", **EXPERTS}, error="'mixtral', a mixture of 8 experts"
    ),
    "a mixture of experts": EditedFolder(EXPERTS, error=r"a mixture of 8 experts \(num_local_experts\)"),
    "a mixture of routed experts": EditedFolder(
        {"n_routed_experts": 64}, error=r"a mixture of 64 experts \(n_routed_experts\)"
    ),
    "another architecture": EditedFolder(
        {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, error="model_type is 'qwen2'"
    ),
    "another architecture without its type": EditedFolder(
        {"model_type": DROP, "architectures": ["MistralForCausalLM"]}, error="MistralForCausalLM"
    ),
    "rope on a part of each head": EditedFolder({"partial_rotary_factor": 0.5}, error="partial_rotary_factor is 0.5"),
    "an unknown rope type": EditedFolder(
        {**NO_ROPE, "rope_scaling": {"type": "mrope", "factor": 2.0}}, error="unknown rope type 'mrope'"
    ),
    "an unknown rope setting": EditedFolder(
        {**NO_ROPE, "rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 3}}, error="unknown keys alpha"
    ),
    "a factor below 1": EditedFolder(
        {**NO_ROPE, "rope_scaling": {"type": "linear", "factor": 0.5}}, error="factor is 0.5"
    ),
    "two contradictory rope settings": EditedFolder(
        {"rope_scaling": {"type": "linear", "factor": 2.0}}, error="disagree"
    ),
    "a string instead of a flag": EditedFolder(
        {"tie_word_embeddings": "false"}, error="tie_word_embeddings is 'false'"
    ),
    "an unknown dtype": EditedFolder({"dtype": "float8_e4m3fn"}, error="dtype is 'float8_e4m3fn'"),
    "no head": EditedFolder(
        tensors=lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"},
        error="missing tensors: 'lm_head.weight'",
    ),
    "a tied head that differs": EditedFolder(
        {"tie_word_embeddings": True}, error="tie_word_embeddings is true, but lm_head.weight differs"
    ),
    "biases that the configuration lacks": EditedFolder(
        tensors=plus(**per_layer("self_attn__q_proj__bias", 64)),
        error="does not have: 'model.layers.0.self_attn.q_proj.bias'",
    ),
    "biases that the files lack": EditedFolder(
        {"attention_bias": True}, error="missing tensors: 'model.layers.0.self_attn.q_proj.bias'"
    ),
    "a fused projection": EditedFolder(
        tensors=replaced("q_proj", "qkv_proj"), error="missing tensors.*there are unknown tensors instead: .*qkv_proj"
    ),
    "a vision tower": EditedFolder(
        tensors=lambda t: prefixed("language_model.")(t) | {"vision_tower.patch.weight": LORA},
        error="unknown tensors instead: .*language_model",
    ),
    "fewer rows than the vocabulary": EditedFolder(
        {"vocab_size": 576}, error=r"\(512, 64\); the configuration requires \(576, 64\)"
    ),
    "a missing shard without an index": EditedFolder(
        files=SHARDS,
        edit=delete(SHARDS[1]),
        error=r"1 of 3 shards are missing, such as model-00002-of-00003\.safetensors",
    ),
    "a missing shard": EditedFolder(
        files=SHARDS,
        edit=all_of(index(), delete(SHARDS[1])),
        error="model-00002-of-00003.safetensors.*not in the folder",
    ),
    "shards of two sets": EditedFolder(
        files=SHARDS,
        edit=lambda folder: write_weights(folder, {"x": LORA}, ["model-00001-of-00002.safetensors"]),
        error="several sets",
    ),
    "a tensor in two shards": EditedFolder(
        files=SHARDS,
        edit=lambda folder: write_weights(folder, golden_tensors(), [SHARDS[2]]),
        error="in another file too",
    ),
    "an index with a tensor that no file has": EditedFolder(
        files=SHARDS, edit=index(more={"model.norm.bias": SHARDS[0]}), error="'model.norm.bias' is not in"
    ),
    "GPTQ's settings of 8 bits": EditedFolder(
        tensors=plus(model__layers__0__mlp__up_proj__qweight=np.zeros((8, 172), np.int32)),
        edit=change({"bits": 8}, "quantize_config.json"),
        error=r"quantised to 8 bits according to quantize_config\.json",
    ),
    "weights quantised by another method": EditedFolder(
        {"quantization_config": {"quant_method": "quip"}},
        tensors=replaced("up_proj.weight", "up_proj.Qidxs"),
        error=r"quip according to quantization_config in config\.json",
    ),
    "two files without an index": EditedFolder(
        files=["a.safetensors", "b.safetensors"],
        error=r"2 safetensors files \(a\.safetensors, b\.safetensors\), which no index lists",
    ),
    "no weights": EditedFolder(edit=delete("model.safetensors"), error="no weights"),
}
