"""Writes an adapter as a folder that PEFT 0.15 and later reads: adapter_config.json and adapter_model.safetensors.

Modules are listed by their complete names. Only settings that differ from PEFT's defaults are written. The adapter of a
classifier also gets the config.json of the adapted model, which has the names of the labels. Bottleneck adapters have
the same layout, but PEFT does not read them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.adapters.adapter import Adapter, LowRank
from puna.adapters.peft_config import CONFIG
from puna.adapters.peft_folder import MODEL_CONFIG, PREFIX, PROMPT, WEIGHTS
from puna.adapters.slots import model_tensors
from puna.checkpoint.names import EMBEDDING, HEAD
from puna.errors import CheckpointError
from puna.files import storage_errors, write_json
from puna.files.atomic_folder import replace_files, temporary_staging
from puna.formats.blocks import FORMATS
from puna.formats.new_tensor import NewTensor
from puna.formats.safetensors import write_safetensors

_METHODS = {
    "lora": "LORA", "ia3": "IA3", "tokens": "TRAINABLE_TOKENS", "prompt": "PROMPT_TUNING", "prefix": "PREFIX_TUNING",
    "bottleneck": "BOTTLENECK",
}  # fmt: skip
_CLASSIFIER = "LlamaForSequenceClassification"


def write_peft_folder(adapter: Adapter, folder: Path) -> None:
    """Writes an adapter into `folder`; replaces an adapter that is there.

    Raises:
        CheckpointError: PEFT cannot express the adapter.
        StorageError: the folder cannot be written.
    """
    settings = _settings(adapter)
    tensors = [*_array_tensors(adapter), *_replaced_tensors(adapter)]
    with storage_errors(folder), temporary_staging(folder) as staging:
        write_json(staging / CONFIG, settings)
        write_safetensors(staging / WEIGHTS[0], tensors, {"format": "pt"})
        names = [CONFIG, WEIGHTS[0]]
        if adapter.head == "classification":
            write_json(staging / MODEL_CONFIG, adapter.config.to_diff_dict() | {"architectures": [_CLASSIFIER]})
            names.insert(0, MODEL_CONFIG)
        replace_files(staging, folder, names, outdated=WEIGHTS[1:])


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _settings(adapter: Adapter) -> dict[str, Any]:
    config = adapter.config
    settings: dict[str, Any] = {
        "base_model_name_or_path": adapter.base, "peft_type": _METHODS[adapter.kind], "inference_mode": True,
        "task_type": "SEQ_CLS" if adapter.head == "classification" else "CAUSAL_LM",
    }  # fmt: skip
    if adapter.virtual_tokens:
        heads = config.num_attention_heads if adapter.prefix is None else config.num_key_value_heads
        width = config.hidden_size if adapter.prefix is None else heads * config.head_dim
        settings |= {
            "num_virtual_tokens": adapter.virtual_tokens, "token_dim": width, "num_attention_heads": heads,
            "num_layers": config.num_hidden_layers, "num_transformer_submodules": 1,
        }  # fmt: skip
    elif adapter.kind == "ia3":
        settings["target_modules"] = [_module(name) for name in adapter.scalings]
        inner = [_module(name) for name, scaling in adapter.scalings.items() if scaling.side == "inputs"]
        settings["feedforward_modules"] = inner
    elif adapter.kind == "bottleneck":
        settings |= _bottleneck_settings(adapter)
    elif adapter.kind == "tokens":
        settings["target_modules"] = [_module(name) for name in adapter.token_rows if not _shares_rows(adapter, name)]
        settings["token_indices"] = next(iter(adapter.token_rows.values())).ids.tolist()
    else:
        settings |= _lora_settings(adapter)
    saved = sorted({_module(name) for name in adapter.replaced if _is_saved(adapter, name)})
    return settings | ({"modules_to_save": saved} if saved else {})


def _lora_settings(adapter: Adapter) -> dict[str, Any]:
    changes = adapter.low_rank
    ranks = {name: len(change.a) for name, change in changes.items()}
    alphas = {name: change.scale * len(change.a) for name, change in changes.items()}
    rank, alpha = (Counter(table.values()).most_common(1)[0][0] for table in (ranks, alphas))
    settings: dict[str, Any] = {
        "r": rank, "lora_alpha": _number(alpha), "target_modules": [_module(name) for name in changes],
        "rank_pattern": {f"^{re.escape(_module(name))}": value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {
            f"^{re.escape(_module(name))}": _number(value) for name, value in alphas.items() if value != alpha
        },
    }  # fmt: skip
    magnitudes = [change.magnitude is not None for change in changes.values()]
    if any(magnitudes) and not all(magnitudes):
        raise CheckpointError("only some matrices of the adapter have DoRA's magnitudes, which PEFT cannot express")
    if any(magnitudes):
        settings["use_dora"] = True
    if any(change.bias is not None for change in changes.values()):
        settings["lora_bias"] = True
    if adapter.token_rows:
        settings["trainable_token_indices"] = {
            _module(name).removeprefix("model."): rows.ids.tolist()
            for name, rows in adapter.token_rows.items()
            if not _shares_rows(adapter, name)
        }
    if any(_is_bias(adapter, name) for name in adapter.replaced):
        settings["bias"] = _bias_setting(adapter)
    return {name: value for name, value in settings.items() if value != {}}


def _bottleneck_settings(adapter: Adapter) -> dict[str, Any]:
    (kind,) = {(len(item.down), item.activation) for item in adapter.bottlenecks.values()}  # equal in all layers
    return {
        "target_modules": [_module(name) for name in adapter.bottlenecks],
        "bottleneck_size": kind[0], "activation": kind[1],
    }  # fmt: skip


def _number(value: float) -> float:
    return int(value) if float(value).is_integer() else value


def _shares_rows(adapter: Adapter, name: str) -> bool:
    """Whether the rows of a tied head are those of the embedding, which PEFT stores once."""
    return name == HEAD and adapter.config.tie_word_embeddings and EMBEDDING in adapter.token_rows


def _is_bias(adapter: Adapter, name: str) -> bool:
    """Whether a replaced tensor is a trained bias of a layer whose matrix is not replaced."""
    return name.endswith(".bias") and f"{_module(name)}.weight" not in adapter.replaced


def _is_saved(adapter: Adapter, name: str) -> bool:
    """Whether a replaced tensor belongs to a module of `modules_to_save`."""
    return not _is_bias(adapter, name) and name not in adapter.low_rank


def _bias_setting(adapter: Adapter) -> str:
    trained = {name for name in adapter.replaced if _is_bias(adapter, name)}
    every = {name for name in model_tensors(adapter.config, adapter.head) if name.endswith(".bias")}
    if trained == every:
        return "all"
    if trained == {name for name in every if f"{_module(name)}.weight" in adapter.low_rank}:
        return "lora_only"
    raise CheckpointError(
        f"the adapter replaces {len(trained)} of the model's {len(every)} biases, and not those of the changed "
        "matrices, which PEFT cannot express"
    )


def _array_tensors(adapter: Adapter) -> Iterator[NewTensor]:
    """Yields the tensors that the adapter holds in memory."""
    lora_bias = any(change.bias is not None for change in adapter.low_rank.values())
    for name, change in adapter.low_rank.items():
        for key, array in _factors(name, change, lora_bias):
            yield _new(f"{PREFIX}{_module(name)}.{key}", array)
    for name, scaling in adapter.scalings.items():
        shape = (1, -1) if scaling.side == "inputs" else (-1, 1)
        yield _new(f"{PREFIX}{_module(name)}.ia3_l", scaling.factors.reshape(shape))
    for name, item in adapter.bottlenecks.items():
        yield _new(f"{PREFIX}{_module(name)}.bottleneck_down.weight", item.down)
        yield _new(f"{PREFIX}{_module(name)}.bottleneck_down.bias", item.down_bias)
        yield _new(f"{PREFIX}{_module(name)}.bottleneck_up.weight", item.up)
        yield _new(f"{PREFIX}{_module(name)}.bottleneck_up.bias", item.up_bias)
    part = "trainable_tokens_delta" if adapter.kind == "tokens" else "token_adapter.trainable_tokens_delta"
    for name, rows in adapter.token_rows.items():
        if adapter.kind == "tokens" or not _shares_rows(adapter, name):
            yield _new(f"{PREFIX}{_module(name)}.{part}", rows.values)
    if adapter.prompt is not None:
        yield _new(PROMPT, adapter.prompt)
    if adapter.prefix is not None:  # (L, 2, K, N, E) -> (N, L * 2 * K * E)
        yield _new(PROMPT, adapter.prefix.transpose(3, 0, 1, 2, 4).reshape(adapter.virtual_tokens, -1))


def _factors(name: str, change: LowRank, lora_bias: bool) -> Iterator[tuple[str, NDArray[np.float32]]]:
    if name == EMBEDDING:
        yield from (("lora_embedding_A", change.b.T), ("lora_embedding_B", change.a.T))
    else:
        yield from (("lora_A.weight", change.a), ("lora_B.weight", change.b))
        if lora_bias:  # PEFT multiplies the bias by the scale
            bias = np.zeros(len(change.b), np.float32) if change.bias is None else change.bias
            yield "lora_B.bias", bias / np.float32(change.scale)
    if change.magnitude is not None:
        yield "lora_magnitude_vector", change.magnitude


def _replaced_tensors(adapter: Adapter) -> Iterator[NewTensor]:
    """Yields the complete tensors, whose bytes are read when they are written."""
    for name, source in adapter.replaced.items():
        is_base = f"{_module(name)}.weight" in adapter.low_rank
        key = f"{_module(name)}.base_layer.{name.rpartition('.')[2]}" if is_base else name
        prefix = "base_model." if adapter.virtual_tokens else PREFIX
        yield NewTensor(prefix + key, source.format, source.shape, partial(getattr, source, "data"))


def _new(name: str, array: NDArray[np.float32]) -> NewTensor:
    array = np.ascontiguousarray(array, np.float32)
    return NewTensor(name, FORMATS["f32"], array.shape, array)
