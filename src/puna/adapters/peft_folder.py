"""Reads an adapter from a PEFT folder: adapter_config.json and adapter_model.safetensors or .bin."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from puna.adapters.adapter import Adapter, Bottleneck, Floats, Kind, LowRank, Scaling, TokenRows
from puna.adapters.patterns import pattern_value
from puna.adapters.peft_config import CONFIG, read_peft_config
from puna.adapters.slots import HeadKind, Slot, adapter_slots, model_tensors, saved_slots, token_ids
from puna.checkpoint.huggingface import open_tensor_file
from puna.checkpoint.names import EMBEDDING, HEAD, SCORE
from puna.checkpoint.weight import RowSource
from puna.config import LlamaConfig
from puna.errors import CheckpointError
from puna.files import has_file, read_json
from puna.formats.blocks import StoredTensor

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
PROMPT = "prompt_embeddings"
MODEL_CONFIG = "config.json"
"""The configuration of the adapted model: next to the adapter of a classifier, it has the names of the labels."""
_SHOWN = 5
"""Maximum number of names in an error."""


def open_peft_folder(folder: Path, config: LlamaConfig) -> Adapter:
    """Reads an adapter of a model with the given configuration.

    Raises:
        CheckpointError: a tensor is missing, unexpected or has the wrong shape; or puna does not apply a setting.
    """
    kind, settings, notes = read_peft_config(folder)
    file = next((folder / name for name in WEIGHTS if has_file(folder / name, CheckpointError)), None)
    if file is None:
        raise CheckpointError(f"{folder}: contains neither {WEIGHTS[0]} nor {WEIGHTS[1]}; download the adapter again")
    with _naming_file(file):
        tensors = _relative_names(open_tensor_file(file))
        head: HeadKind = "classification" if settings.get("task_type") == "SEQ_CLS" or SCORE in tensors else "lm"
        config = _adapted_config(config, tensors)
        if head == "classification":
            config = _named_labels(folder / MODEL_CONFIG, config)
        if kind in ("prompt", "prefix"):
            adapter = _read_prompt(folder, kind, settings, config, head, tensors)
        else:
            adapter = _read_changes(folder, kind, settings, config, head, tensors)
    base = settings.get("base_model_name_or_path")
    return replace(adapter, base=base or None, notes=tuple(notes))


@contextmanager
def _naming_file(path: Path) -> Iterator[None]:
    """Adds the path of the file at fault to a CheckpointError whose message does not begin with a path."""
    try:
        yield
    except CheckpointError as exc:
        if str(exc).startswith((f"{path}: ", f"{path.with_name(CONFIG)}: ")):
            raise
        raise CheckpointError(f"{path}: {exc}") from exc


def _relative_names(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Returns the tensors by their names in the model; those of a bare `LlamaModel` get the prefix "model."."""
    names = {name: name.removeprefix(PREFIX).removeprefix("base_model.") for name in tensors}
    is_bare = any(name.startswith("layers.") for name in names.values())
    result: dict[str, StoredTensor] = {}
    for stored, name in names.items():
        if name.endswith(".lora_magnitude_vector.weight"):  # PEFT 0.9
            name = name.removesuffix(".weight")
        full = f"model.{name}" if is_bare else name
        if full in result:
            raise CheckpointError(
                f"tensors {result[full].name!r} and {stored!r} belong to the same tensor of the model"
            )
        result[full] = tensors[stored]
    return result


def _adapted_config(config: LlamaConfig, tensors: Mapping[str, StoredTensor]) -> LlamaConfig:
    """Returns the configuration with the adapter's number of labels and with its vocabulary, if that is larger."""
    changes: dict[str, Any] = {}
    if SCORE in tensors and tensors[SCORE].shape[0] != config.num_labels:
        changes["num_labels"] = tensors[SCORE].shape[0]
    keys = [name.removesuffix("weight") + end for name in (EMBEDDING, HEAD) for end in ("weight", "base_layer.weight")]
    rows = {tensors[key].shape[0] for key in keys if key in tensors}
    if len(rows) == 1 and (size := rows.pop()) > config.vocab_size:
        changes["vocab_size"] = size
        missing = [name for name in keys[:1] + ([] if config.tie_word_embeddings else keys[2:3]) if not (
            name in tensors or name.removesuffix("weight") + "base_layer.weight" in tensors
        )]  # fmt: skip
        if missing:
            raise CheckpointError(
                f"the vocabulary was resized from {config.vocab_size} to {size} tokens, but {missing[0]} is missing; "
                "save the adapter with save_embedding_layers=True"
            )
    return LlamaConfig.from_dict(config.to_dict(), **changes) if changes else config


def _named_labels(path: Path, config: LlamaConfig) -> LlamaConfig:
    """Returns the configuration with the labels and the problem of the adapted model's configuration, if it exists.

    PEFT stores neither; without the file, the labels have the base model's names or numbers.
    """
    if not has_file(path, CheckpointError):
        return config
    content = read_json(path, CheckpointError)
    names = ("id2label", "label2id", "problem_type")
    changes = {name: content[name] for name in names if content.get(name) is not None}
    if not changes:
        return config
    adapted: LlamaConfig = LlamaConfig.from_dict(config.to_dict(), **changes)
    if adapted.num_labels != config.num_labels:
        raise CheckpointError(
            f"{path}: id2label has {adapted.num_labels} labels, but the head of the adapter has {config.num_labels}; "
            f"use the {path.name} that was saved with the adapter, or delete it"
        )
    return adapted


def _read_prompt(
    folder: Path, kind: Kind, settings: Mapping[str, Any], config: LlamaConfig, head: HeadKind,
    tensors: Mapping[str, StoredTensor],
) -> Adapter:  # fmt: skip
    """Returns an adapter that is a soft prompt or a prefix, with the trained head if there is one."""
    layers, heads, width = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    count = settings.get("num_virtual_tokens")
    if count is None:
        raise CheckpointError("adapter_config.json lacks num_virtual_tokens; download the adapter again")
    shape = (count, config.hidden_size if kind == "prompt" else layers * 2 * heads * width)
    slot = Slot(PROMPT, "rows", PROMPT, shape)
    slots = [slot, *saved_slots(settings, config, model_tensors(config, head))]
    matches = _check(slots, tensors)
    values = _floats(matches.pop(slot))
    replaced = {item.weight: tensor for item, tensor in matches.items()}
    if kind == "prompt":
        return Adapter(folder, kind, config, head=head, prompt=values, replaced=replaced)
    prefix = values.reshape(count, layers, 2, heads, width).transpose(1, 2, 3, 0, 4)
    return Adapter(folder, kind, config, head=head, prefix=np.ascontiguousarray(prefix), replaced=replaced)


def _read_changes(
    folder: Path, kind: Kind, settings: Mapping[str, Any], config: LlamaConfig, head: HeadKind,
    tensors: Mapping[str, StoredTensor],
) -> Adapter:  # fmt: skip
    """Returns an adapter that changes matrices."""
    with _naming_file(folder / CONFIG):
        slots = adapter_slots(kind, settings, config, head)
    matches = _check(slots, tensors)
    parts: dict[str, dict[str, Floats]] = {}
    replaced: dict[str, RowSource] = {}
    for slot, tensor in matches.items():
        if slot.part == "replaced":
            replaced[slot.weight] = tensor
        else:
            parts.setdefault(slot.weight, {})[slot.part] = _floats(tensor)
    if config.tie_word_embeddings and head == "lm":
        for slot, tensor in matches.items():  # the matrix of the base model, which both layers use
            if slot.key.endswith(".base_layer.weight"):
                replaced = {EMBEDDING: tensor, HEAD: tensor} | replaced
    ids = token_ids(kind, settings, config)
    rows = {
        name: TokenRows(np.array(ids[name.removesuffix(".weight")], np.intp), part["rows"])
        for name, part in parts.items()
        if "rows" in part
    }
    if config.tie_word_embeddings and EMBEDDING in rows and head == "lm":
        rows.setdefault(HEAD, rows[EMBEDDING])
    return Adapter(
        folder, kind, config, head=head, token_rows=rows, replaced=replaced,
        low_rank={name: _low_rank(name, part, settings) for name, part in parts.items() if "a" in part},
        bottlenecks={
            name: Bottleneck(
                part["down"], part["down_bias"], part["up"], part["up_bias"], settings.get("activation", "relu")
            )
            for name, part in parts.items()
            if "down" in part
        },
        scalings={
            name: Scaling(part["factors"].reshape(-1), "inputs" if part["factors"].shape[0] == 1 else "outputs")
            for name, part in parts.items()
            if "factors" in part
        },
    )  # fmt: skip


def _low_rank(name: str, parts: Mapping[str, Floats], settings: Mapping[str, Any]) -> LowRank:
    a, b = parts["a"], parts["b"]
    if name == EMBEDDING:
        a, b = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
    module = name.removesuffix(".weight")
    alpha = pattern_value(settings, "alpha_pattern", module, settings.get("lora_alpha", 8))
    scale = alpha / (math.sqrt(len(a)) if settings.get("use_rslora") else len(a))
    bias = parts.get("bias")
    return LowRank(a, b, scale, parts.get("magnitude"), None if bias is None else bias * np.float32(scale))


def _check(slots: list[Slot], tensors: Mapping[str, StoredTensor]) -> dict[Slot, StoredTensor]:
    """Returns the tensor of each slot; raises CheckpointError if one is missing, unknown or unsuitable."""
    matches = {slot: tensors[slot.key] for slot in slots if slot.key in tensors}
    for slot, tensor in matches.items():
        if tensor.shape != slot.shape:
            sharded = ". The file holds shards of a distributed run; gather the parameters before saving"
            raise CheckpointError(
                f"tensor {tensor.name!r} has the shape {tensor.shape}; the model and adapter_config.json require "
                f"{slot.shape}" + (sharded if len(tensor.shape) < len(slot.shape) else ". Use the adapter's base model")
            )
        if tensor.format.name not in ("f32", "f16", "bf16"):
            raise CheckpointError(f"tensor {tensor.name!r} is {tensor.format.name}; it must be f32, f16 or bf16")
    missing = [slot.key for slot in slots if slot.required and slot.key not in tensors]
    unknown = sorted(tensors.keys() - {slot.key for slot in slots})
    if missing:
        others = f"; there are unknown tensors instead: {_list_names(unknown)}" if unknown else ""
        raise CheckpointError(
            f"the adapter is incomplete: {len(missing)} of {sum(slot.required for slot in slots)} tensors that "
            f"adapter_config.json requires are missing: {_list_names(missing)}{others}. Save the adapter again, or use "
            "the configuration of the adapter's base model"
        )
    if unknown:
        raise CheckpointError(
            f"tensors that this adapter of a LLaMA does not have: {_list_names(unknown)}. The adapter belongs to "
            "another model, or adapter_config.json to another adapter"
        )
    return matches


def _floats(tensor: StoredTensor) -> Floats:
    values = tensor.to_float32()
    if not np.isfinite(values).all():
        raise CheckpointError(f"tensor {tensor.name!r} holds values that are not finite; the training diverged")
    return values


def _list_names(names: list[str]) -> str:
    shown = ", ".join(repr(name[:100]) for name in names[:_SHOWN])
    return f"{shown}, ..." if len(names) > _SHOWN else shown
