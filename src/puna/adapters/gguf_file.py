"""Reads an adapter from a GGUF file (convert_lora_to_gguf.py of llama.cpp): a LoRA, and norms that replace the model's.

Each tensor's name is the matrix's GGUF name and ".lora_a" (R, I) or ".lora_b" (O, R); those of the embedding hold the
transposed factors (V, R) and (D, R). The scale is alpha / R, or 1 if alpha is 0 (llama-adapter.h).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from puna.adapters.adapter import Adapter, LowRank
from puna.adapters.slots import model_tensors
from puna.checkpoint.names import EMBEDDING, HEAD, interleaved_rows, to_hf
from puna.checkpoint.weight import RowSource
from puna.config import LlamaConfig
from puna.errors import CheckpointError, show
from puna.formats.blocks import StoredTensor
from puna.formats.gguf import GgufFile

TYPE, KIND, ALPHA = "general.type", "adapter.type", "adapter.lora.alpha"
BASE = "general.base_model.0.name"
INVOCATION, PROMPT = "adapter.alora.invocation_tokens", "adapter.lora.prompt_prefix"
_SUFFIXES = (".lora_a", ".lora_b")


def open_gguf_adapter(file: GgufFile, config: LlamaConfig) -> Adapter:
    """Reads an adapter of a model with the given configuration from an open file.

    Raises:
        CheckpointError: the file is not a LoRA of a LLaMA, or a tensor is missing, unknown or has the wrong shape.
    """
    try:
        alpha = _check_metadata(file)
        return _read(file, config, alpha)
    except CheckpointError as exc:
        raise CheckpointError(f"{file.path}: {exc}") from exc


def _check_metadata(file: GgufFile) -> float:
    """Returns alpha; raises CheckpointError if the file is not a LoRA of a LLaMA that puna applies."""
    for key, expected in ((TYPE, "adapter"), ("general.architecture", "llama"), (KIND, "lora")):
        if file.metadata.get(key) != expected:
            raise CheckpointError(f"{key} is {show(file.metadata.get(key))}; puna applies adapters with {expected!r}")
    alpha = file.metadata.get(ALPHA)
    if type(alpha) is not float or not np.isfinite(alpha):
        raise CheckpointError(f"{ALPHA} is {show(alpha)}; it must be a float. Convert the adapter again")
    tokens = file.metadata.get(INVOCATION)
    if tokens is not None and np.size(tokens):
        raise CheckpointError(
            f"{INVOCATION} is {show(tokens)}: the adapter applies only to the text after these tokens, which puna does "
            "not support"
        )
    return alpha


def _read(file: GgufFile, config: LlamaConfig, alpha: float) -> Adapter:
    shapes = model_tensors(config, "lm")
    pairs: dict[str, dict[str, StoredTensor]] = {}
    replaced: dict[str, RowSource] = {}
    for stored, tensor in file.tensors.items():
        suffix = next((end for end in _SUFFIXES if stored.endswith(end)), "")
        name = to_hf(stored.removesuffix(suffix), "gguf")
        is_norm = not suffix and name is not None and name.endswith("norm.weight")
        if name is None or name not in shapes or len(shapes[name]) != (1 if is_norm else 2):
            raise CheckpointError(
                f"tensor {show(stored)} does not belong to any matrix or norm of a LLaMA of this size"
            )
        if is_norm:
            _check_shape(tensor, shapes[name])
            replaced[name] = tensor
        elif not suffix:
            raise CheckpointError(f"tensor {show(stored)} is neither .lora_a, .lora_b nor a norm; export it again")
        else:
            pairs.setdefault(name, {})[suffix] = tensor
    if not pairs:
        raise CheckpointError("the file holds no tensor of a LoRA; download it again")
    if config.tie_word_embeddings and HEAD in pairs:
        raise CheckpointError("changes the head, which this model shares with the embedding; use the base model")
    notes = [f"{len(replaced)} norms replace those of the model; llama.cpp ignores them"] if replaced else []
    if prompt := file.metadata.get(PROMPT):
        notes.append(f"the adapter was trained with prompts that begin with {show(prompt)}, which puna does not add")
    low_rank = {name: _low_rank(name, pair, shapes[name], alpha, config) for name, pair in pairs.items()}
    base = file.metadata.get(BASE)
    base_model = base if isinstance(base, str) else None
    return Adapter(file.path, "lora", config, base_model, low_rank=low_rank, replaced=replaced, notes=tuple(notes))


def _low_rank(
    name: str, pair: Mapping[str, StoredTensor], shape: tuple[int, ...], alpha: float, config: LlamaConfig
) -> LowRank:
    missing = [end for end in _SUFFIXES if end not in pair]
    if missing:
        other = next(iter(pair.values())).name
        raise CheckpointError(f"the adapter is incomplete: {other!r} has no {missing[0]}; download the file again")
    stored_a, stored_b = (pair[end] for end in _SUFFIXES)
    is_embedding = name == EMBEDDING
    rank = stored_b.shape[-1]
    outputs, inputs = shape
    _check_shape(stored_a, (outputs, rank) if is_embedding else (rank, inputs))
    _check_shape(stored_b, (inputs if is_embedding else outputs, rank))
    a, b = stored_a.to_float32(), stored_b.to_float32()
    for tensor, values in ((stored_a, a), (stored_b, b)):
        if not np.isfinite(values).all():
            raise CheckpointError(f"tensor {tensor.name!r} holds values that are not finite; the training diverged")
    scale = alpha / rank if alpha else 1.0
    if is_embedding:
        return LowRank(np.ascontiguousarray(b.T), a, scale)
    order = interleaved_rows(name, config)
    return LowRank(a, b if order is None else b[order], scale)


def _check_shape(tensor: StoredTensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise CheckpointError(
            f"tensor {tensor.name!r} has the shape {tensor.shape}; the model requires {shape}. Use the adapter's base "
            "model"
        )
