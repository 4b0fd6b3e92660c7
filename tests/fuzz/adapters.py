"""Adapters with a mutated configuration or mutated weights."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import puna
from puna.adapters import open_adapter, save_adapter
from puna.checkpoint import open_checkpoint
from tests.adapters.cases import CASES, base_config, write_base, write_case
from tests.checkpoint.fuzz_worker import MUTATIONS
from tests.fuzz.json_mutations import mutate

KEYS = [
    "peft_type", "r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias", "use_dora", "use_rslora", "bias", "task_type",
    "trainable_token_indices", "token_indices", "feedforward_modules", "num_virtual_tokens", "init_lora_weights",
    "ensure_weight_tying", "target_parameters", "fan_in_fan_out", "base_model_name_or_path", "unknown",
]  # fmt: skip
VALUES: list[Any] = [
    "LORA", "IA3", "PREFIX_TUNING", "all-linear", ".*", "(a+)+", "[", "q_proj", ["q_proj"], [""], [0], [1, 47], 0, 1,
    2**31, 2**70, -1, 1e300, {"q_proj": 2}, {"(": 1}, {"embed_tokens": [1]}, {"lm_head": []}, "SEQ_CLS", "all", "pissa",
    ["embed_tokens", "lm_head", "norm"], "layers", None, True, [[]], {},
]  # fmt: skip


def write_adapter_seeds(folder: Path) -> None:
    """Writes the adapters that are mutated, a GGUF adapter, and their base models."""
    for case, (base, _, _) in CASES.items():
        write_case(folder / case, case)
        if not (folder.parent / f"base-{base}").exists():
            write_base(folder.parent / f"base-{base}", base)
    save_adapter(open_adapter(folder / "lora", base_config("plain")), folder.parent / "lora.gguf")


def write(rng: random.Random, seeds: Path, work: Path) -> Path:
    """Writes a mutated adapter and a copy of its base model; returns the adapter's path."""
    case = rng.choice(sorted(CASES))
    is_gguf = rng.random() < 0.2
    base = "plain" if is_gguf else CASES[case][0]
    shutil.copytree(seeds / f"base-{base}", work / "base")
    if is_gguf:
        data = (seeds / "lora.gguf").read_bytes()
        (work / "adapter.gguf").write_bytes(rng.choice(MUTATIONS["gguf"])(rng, data, [data]))
        return work / "adapter.gguf"
    shutil.copytree(seeds / "adapters" / case, work / "adapter")
    config, weights = work / "adapter" / "adapter_config.json", work / "adapter" / "adapter_model.safetensors"
    if rng.random() < 0.6:
        config.write_bytes(mutate(rng, json.loads(config.read_text()), KEYS, VALUES))
    else:
        data = weights.read_bytes()
        weights.write_bytes(rng.choice(MUTATIONS["safetensors"])(rng, data, [data]))
    return work / "adapter"


def read(rng: random.Random, path: Path) -> None:
    """Reads the adapter, and sometimes merges or saves it, or gives its folder as a model."""
    action = rng.randrange(8)
    if action == 0:
        open_checkpoint(path)
    if action == 1:
        puna.merge(path.parent / "base", path, path.parent / "merged", verify=False)
        return
    adapter = open_adapter(path, open_checkpoint(path.parent / "base").config)
    for change in adapter.low_rank.values():
        assert change.b.shape[1] == len(change.a)
    for tensor in adapter.replaced.values():
        assert tensor.format.size(tensor.shape) == tensor.data.size
    if action == 2:
        save_adapter(adapter, path.parent / rng.choice(["saved", "saved.gguf"]))
