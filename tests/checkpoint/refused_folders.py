"""Folders that no program may load as they are, or that lack something, with the reason that puna must give."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.checkpoint.odd_folders import LORA, NO_ROPE, SHARDS
from tests.helpers.changed_folders import (
    DROP,
    Odd,
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
    """Adds an adapter."""
    change(ADAPTER, "adapter_config.json")(folder)
    write_weights(
        folder, {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": LORA}, ["adapter_model.safetensors"]
    )


REFUSED: dict[str, Odd] = {
    "an adapter": Odd(
        edit=all_of(adapter, delete("model.safetensors", "config.json")), error="an adapter .LORA. .*'owner/base'"
    ),
    "an adapter with the base model's configuration": Odd(
        edit=all_of(adapter, delete("model.safetensors")), error="an adapter .*'owner/base'.*merge_and_unload"
    ),
    "an adapter without weights": Odd(
        edit=all_of(change(ADAPTER, "adapter_config.json"), delete("model.safetensors")),
        error="an adapter .*'owner/base'",
    ),
    "an adapter next to a model": Odd(edit=adapter, error="an adapter .* next to a model"),
    "an adapter of an unnamed model": Odd(
        edit=all_of(
            adapter,
            delete("model.safetensors", "config.json"),
            change({"base_model_name_or_path": None}, "adapter_config.json"),
        ),
        error="an adapter .*not named",
    ),
    "adapters that were not merged": Odd(
        tensors=lambda t: (
            prefixed("base_model.model.")(t)
            | {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight": LORA}
        ),
        error="not merged.*lora_A.*merge_and_unload",
    ),
    "a copy of a layer for training": Odd(
        tensors=lambda t: t | {"lm_head.modules_to_save.default.weight": t["lm_head.weight"]},
        error="not merged.*modules_to_save",
    ),
    "a name with and without a wrapper": Odd(
        tensors=lambda t: t | {"module.lm_head.weight": t["lm_head.weight"]},
        error="'lm_head.weight' and 'module.lm_head.weight'",
    ),
    "a mixture of experts by type": Odd(
        {"model_type": "mixtral", **EXPERTS}, error="'mixtral', a mixture of 8 experts"
    ),
    "a mixture of experts": Odd(EXPERTS, error=r"a mixture of 8 experts \(num_local_experts\)"),
    "a mixture of routed experts": Odd({"n_routed_experts": 64}, error=r"a mixture of 64 experts \(n_routed_experts\)"),
    "another architecture": Odd(
        {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, error="model_type is 'qwen2'"
    ),
    "another architecture without its type": Odd(
        {"model_type": DROP, "architectures": ["MistralForCausalLM"]}, error="MistralForCausalLM"
    ),
    "a part of each head rotates": Odd({"partial_rotary_factor": 0.5}, error="partial_rotary_factor is 0.5"),
    "an unknown rope type": Odd(
        {**NO_ROPE, "rope_scaling": {"type": "mrope", "factor": 2.0}}, error="unknown rope type 'mrope'"
    ),
    "an unknown rope setting": Odd(
        {**NO_ROPE, "rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 3}}, error="unknown keys alpha"
    ),
    "a factor below 1": Odd({**NO_ROPE, "rope_scaling": {"type": "linear", "factor": 0.5}}, error="factor is 0.5"),
    "two rope settings": Odd({"rope_scaling": {"type": "linear", "factor": 2.0}}, error="disagree"),
    "a text for a flag": Odd({"tie_word_embeddings": "false"}, error="tie_word_embeddings is 'false'"),
    "an unknown dtype": Odd({"dtype": "float8_e4m3fn"}, error="dtype is 'float8_e4m3fn'"),
    "no head": Odd(
        tensors=lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"},
        error="missing tensors: 'lm_head.weight'",
    ),
    "a tied head that differs": Odd(
        {"tie_word_embeddings": True}, error="tie_word_embeddings is true, but lm_head.weight differs"
    ),
    "biases that the configuration lacks": Odd(
        tensors=plus(**per_layer("self_attn__q_proj__bias", 64)),
        error="does not have: 'model.layers.0.self_attn.q_proj.bias'",
    ),
    "biases that the files lack": Odd(
        {"attention_bias": True}, error="missing tensors: 'model.layers.0.self_attn.q_proj.bias'"
    ),
    "a fused projection": Odd(
        tensors=replaced("q_proj", "qkv_proj"), error="missing tensors.*there are others instead: .*qkv_proj"
    ),
    "a vision tower": Odd(
        tensors=lambda t: prefixed("language_model.")(t) | {"vision_tower.patch.weight": LORA},
        error="others instead: .*language_model",
    ),
    "fewer rows than the vocabulary": Odd(
        {"vocab_size": 576}, error=r"\(512, 64\); the configuration requires \(576, 64\)"
    ),
    "a missing shard without an index": Odd(
        files=SHARDS,
        edit=delete(SHARDS[1]),
        error=r"1 of 3 shards are missing, such as model-00002-of-00003\.safetensors",
    ),
    "a missing shard": Odd(
        files=SHARDS,
        edit=all_of(index(), delete(SHARDS[1])),
        error="model-00002-of-00003.safetensors.*not in the folder",
    ),
    "shards of two sets": Odd(
        files=SHARDS,
        edit=lambda folder: write_weights(folder, {"x": LORA}, ["model-00001-of-00002.safetensors"]),
        error="several sets",
    ),
    "a tensor in two shards": Odd(
        files=SHARDS,
        edit=lambda folder: write_weights(folder, golden_tensors(), [SHARDS[2]]),
        error="in another file too",
    ),
    "an index of other files": Odd(
        files=SHARDS, edit=index(more={"model.norm.bias": SHARDS[0]}), error="'model.norm.bias' is not in"
    ),
    "GPTQ's settings of 8 bits": Odd(
        tensors=plus(model__layers__0__mlp__up_proj__qweight=np.zeros((8, 172), np.int32)),
        edit=change({"bits": 8}, "quantize_config.json"),
        error=r"quantised to 8 bits according to quantize_config\.json",
    ),
    "weights quantised by another method": Odd(
        {"quantization_config": {"quant_method": "quip"}},
        tensors=replaced("up_proj.weight", "up_proj.Qidxs"),
        error=r"quip according to quantization_config in config\.json",
    ),
    "two files without an index": Odd(
        files=["a.safetensors", "b.safetensors"],
        error=r"2 safetensors files \(a\.safetensors, b\.safetensors\) without an index",
    ),
    "no weights": Odd(edit=delete("model.safetensors"), error="no weights"),
}
