"""Folders of adapters with random values for a given model, as PEFT would save them."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from puna.adapters.peft_config import METHODS
from puna.adapters.slots import adapter_slots
from puna.config import LlamaConfig

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": LAYERS},
    "dora": {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "ia3": {"peft_type": "IA3", "target_modules": ["k_proj", "v_proj", "down_proj"]},
    "tokens": {
        "peft_type": "TRAINABLE_TOKENS", "token_indices": list(range(3, 60)), "target_modules": "model.embed_tokens"
    },
    "prompt": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 11, "task_type": "CAUSAL_LM"},
    "long_prompt": {"peft_type": "P_TUNING", "num_virtual_tokens": 70, "task_type": "CAUSAL_LM"},
    "prefix": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 5, "task_type": "CAUSAL_LM"},
    "long_prefix": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 90, "task_type": "CAUSAL_LM"},
    "classes": {
        "peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "task_type": "SEQ_CLS", "modules_to_save": ["score"]
    },
}  # fmt: skip
"""Settings of adapters that the native backend supports."""


def write_random_adapter(
    folder: Path, config: LlamaConfig, kind: str, seed: int = 0, scale: float = 0.3, **changes: Any
) -> Path:
    """Writes an adapter of a kind in `KINDS`; `changes` are settings of adapter_config.json."""
    settings = KINDS[kind] | {"target_modules": []} | KINDS[kind] | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    tensors = {key: _values(f"{seed} {kind} {key}", shape, scale) for key, shape in _shapes(config, settings).items()}
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def _shapes(config: LlamaConfig, settings: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    method = METHODS[settings["peft_type"]]
    count = settings.get("num_virtual_tokens", 0)
    if method == "prompt":
        return {"prompt_embeddings": (count, config.hidden_size)}
    if method == "prefix":
        width = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        return {"prompt_embeddings": (count, width)}
    head = "classification" if settings.get("task_type") == "SEQ_CLS" else "lm"
    slots = adapter_slots(method, {"feedforward_modules": ["down_proj"], **settings}, config, head)
    return {f"base_model.model.{slot.key}": slot.shape for slot in slots if slot.required}


def _values(name: str, shape: tuple[int, ...], scale: float) -> np.ndarray:
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if name.endswith("lora_magnitude_vector"):
        return 1 + np.abs(values)
    return 1 + np.float32(scale) * values if name.endswith("ia3_l") else np.float32(scale) * values
