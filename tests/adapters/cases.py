"""Small adapters of every kind, and the small models that they change.

`recorded.json` holds what PEFT 0.21.2 saved for each case: its adapter_config.json, and the names and shapes of its
tensors. `recorded.npz` holds the logits that PEFT computed. `python -m tests.adapters.record` writes both files. The
values of the weights are not stored: they follow from the names.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from puna.config import LlamaConfig
from tests.helpers.tiny_checkpoints import tiny_config, tiny_tensors, write_folder

FOLDER = Path(__file__).parent
RECORDED, LOGITS = FOLDER / "recorded.json", FOLDER / "recorded.npz"
IDS = np.array([[3, 17, 41, 8, 8, 29]])

BASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "classes": {"num_labels": 3, "pad_token_id": 0, "architectures": ["LlamaForSequenceClassification"]},
}

_QV = ["q_proj", "v_proj"]
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lora": ("plain", "LoraConfig", {"target_modules": "all-linear", "r": 4, "lora_alpha": 6}),
    "rslora": ("plain", "LoraConfig", {"target_modules": _QV, "r": 4, "lora_alpha": 2, "use_rslora": True}),
    "patterns": (
        "plain", "LoraConfig",
        {"target_modules": r".*layers\.[0-9]+\.(self_attn|mlp)\.(q|k|up)_proj", "r": 4, "lora_alpha": 8,
         "rank_pattern": {"q_proj": 2, r"^model\.layers\.0\.mlp.*": 6}, "alpha_pattern": {"1.self_attn.q_proj": 1}},
    ),
    "layers": (
        "plain", "LoraConfig",
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    ),
    "excluded": (
        "plain", "LoraConfig",
        {"target_modules": ["o_proj", "gate_proj"], "exclude_modules": ["layers.0.mlp.gate_proj"]},
    ),
    "parameters": ("plain", "LoraConfig", {"target_parameters": ["v_proj.weight"], "target_modules": []}),
    "dora": ("plain", "LoraConfig", {"target_modules": ["q_proj", "down_proj", "lm_head"], "use_dora": True}),
    "dora_biased": ("biased", "LoraConfig", {"target_modules": ["q_proj", "up_proj"], "use_dora": True}),
    "dora_embedding": ("plain", "LoraConfig", {"target_modules": ["embed_tokens", "k_proj"], "use_dora": True}),
    "lora_bias": ("plain", "LoraConfig", {"target_modules": ["q_proj", "down_proj"], "lora_bias": True}),
    "biases": ("biased", "LoraConfig", {"target_modules": _QV, "bias": "all"}),
    "biases_of_targets": ("biased", "LoraConfig", {"target_modules": _QV, "bias": "lora_only"}),
    "embeddings": ("plain", "LoraConfig", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "embedding_tied": ("tied", "LoraConfig", {"target_modules": ["embed_tokens", "q_proj"]}),
    "embeddings_kept_tied": (
        "tied", "LoraConfig", {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}
    ),
    "saved": ("plain", "LoraConfig", {"target_modules": _QV, "modules_to_save": ["embed_tokens", "lm_head", "norm"]}),
    "saved_network": ("plain", "LoraConfig", {"target_modules": _QV, "modules_to_save": ["mlp"]}),
    "saved_embedding_tied": ("tied", "LoraConfig", {"target_modules": _QV, "modules_to_save": ["embed_tokens"]}),
    "tokens": ("plain", "LoraConfig", {"target_modules": _QV, "trainable_token_indices": [3, 8]}),
    "tokens_tied": ("tied", "LoraConfig", {"target_modules": _QV, "trainable_token_indices": [3, 8]}),
    "tokens_of_both": (
        "plain", "LoraConfig",
        {"target_modules": _QV, "trainable_token_indices": {"embed_tokens": [3, 8], "lm_head": [5]}},
    ),
    "only_tokens": ("plain", "TrainableTokensConfig", {"token_indices": [3, 41]}),
    "only_tokens_tied": ("tied", "TrainableTokensConfig", {"token_indices": [3, 41]}),
    "classes": ("classes", "LoraConfig", {"task_type": "SEQ_CLS", "target_modules": _QV}),
    "ia3": ("plain", "IA3Config", {"task_type": "CAUSAL_LM"}),
    "ia3_biased": (
        "biased", "IA3Config",
        {"target_modules": ["k_proj", "v_proj", "o_proj", "down_proj"], "feedforward_modules": ["down_proj", "o_proj"],
         "modules_to_save": ["norm"]},
    ),
    "prompt": ("plain", "PromptTuningConfig", {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}),
    "prompt_classes": ("classes", "PromptTuningConfig", {"task_type": "SEQ_CLS", "num_virtual_tokens": 3}),
    "p_tuning": (
        "plain", "PromptEncoderConfig", {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3, "encoder_hidden_size": 8}
    ),
    "prefix": ("plain", "PrefixTuningConfig", {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}),
    "prefix_projected": (
        "plain", "PrefixTuningConfig",
        {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 8},
    ),
}  # fmt: skip
"""For each case: the base model, PEFT's class of settings, and its arguments."""


def base_config(base: str) -> LlamaConfig:
    sizes = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 40, "head_dim": 8}
    return tiny_config(**(sizes | BASES[base]))


def base_tensors(base: str) -> dict[str, np.ndarray]:
    config = base_config(base)
    tensors = tiny_tensors(config, "classification" if base == "classes" else "lm")
    return {
        name: 1 + 0.1 * values if name.endswith("norm.weight") else np.float32(0.2) * values
        for name, values in tensors.items()
    }


def write_base(folder: Path, base: str) -> Path:
    """Writes a base model in Hugging Face's layout."""
    return write_folder(folder, base_config(base), base_tensors(base))


def weights(case: str, shapes: dict[str, list[int]], base: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the tensors of an adapter: random values that follow from the names."""
    return {key: _values(case, key, shape, base) for key, shape in shapes.items()}


def _values(case: str, key: str, shape: list[int], base: dict[str, np.ndarray]) -> np.ndarray:
    if key.endswith(".base_layer.weight"):
        name = key.removeprefix("base_model.model.").replace(".base_layer", "")
        return base.get(name, base["model.embed_tokens.weight"])
    if case == "embeddings_kept_tied" and "lm_head.lora_" in key:  # PEFT shares the transposed factors
        other = "lora_embedding_B" if "lora_A" in key else "lora_embedding_A"
        return np.ascontiguousarray(_values(case, f"base_model.model.model.embed_tokens.{other}", shape[::-1], base).T)
    seed = zlib.crc32(f"{case} {key.replace('lm_head', 'model.embed_tokens') if 'tied' in case else key}".encode())
    values = np.random.default_rng(seed).standard_normal(shape, np.float32)
    if key.endswith("lora_magnitude_vector"):
        return 1 + np.abs(values)
    return 1 + np.float32(0.3) * values if key.endswith(("ia3_l", "norm.weight")) else np.float32(0.3) * values


def recorded() -> dict[str, Any]:
    return json.loads(RECORDED.read_text())


def write_case(folder: Path, case: str, **changes: Any) -> Path:
    """Writes the folder of an adapter as PEFT saved it; `changes` are settings that replace the recorded ones."""
    record = recorded()[case]
    return write_adapter(
        folder, record["config"] | changes, weights(case, record["shapes"], base_tensors(CASES[case][0]))
    )


def write_adapter(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder
