"""Writes an adapter as a GGUF file for llama.cpp: a LoRA without variants. `gguf_file.py` describes the layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from puna.adapters.adapter import Adapter
from puna.adapters.gguf_file import ALPHA, BASE, KIND, TYPE
from puna.checkpoint.names import EMBEDDING, HEAD, from_hf, interleaved_rows
from puna.errors import CheckpointError
from puna.formats.blocks import FORMATS
from puna.formats.gguf_writer import Value, write_gguf
from puna.formats.new_tensor import NewTensor


def write_gguf_adapter(adapter: Adapter, path: Path) -> list[str]:
    """Writes a LoRA into a GGUF file; returns notes for the user.

    The file has one alpha for all matrices. If their scales differ otherwise than by the rank, the rest of the scale is
    multiplied into the matrix b.

    Raises:
        CheckpointError: GGUF cannot express the adapter.
    """
    notes = _check(adapter)
    alphas = {name: change.scale * len(change.a) for name, change in adapter.low_rank.items()}
    alpha = next((float(value) for value in alphas.values() if value), 1.0)
    tensors = []
    for name, change in adapter.low_rank.items():
        factor = alphas[name] / alpha
        b = change.b if factor == 1 else (change.b * factor).astype(np.float32)
        order = interleaved_rows(name, adapter.config)
        pair = (b, change.a.T) if name == EMBEDDING else (change.a, b if order is None else b[np.argsort(order)])
        tensors += list(_pair(f"{from_hf(name, 'gguf')}", *pair))
    metadata: dict[str, Value] = {TYPE: "adapter", "general.architecture": "llama", KIND: "lora", ALPHA: alpha}
    write_gguf(path, metadata | ({} if adapter.base is None else {BASE: adapter.base}), tensors)
    return notes


def _pair(name: str, a: NDArray[np.float32], b: NDArray[np.float32]) -> Iterator[NewTensor]:
    for suffix, array in (("lora_a", a), ("lora_b", b)):
        yield NewTensor(f"{name}.{suffix}", FORMATS["f32"], array.shape, np.ascontiguousarray(array, np.float32))


def _check(adapter: Adapter) -> list[str]:
    """Returns a note on matrices of the base model, which are left out; raises CheckpointError for other changes."""
    changes = adapter.low_rank.values()
    copies = [name for name in adapter.replaced if name in adapter.low_rank]
    resized = any(adapter.replaced[name].shape[0] != adapter.config.vocab_size for name in copies)
    others = {
        f"the kind {adapter.kind}": adapter.kind != "lora",
        "DoRA": any(change.magnitude is not None for change in changes),
        "lora_bias": any(change.bias is not None for change in changes),
        "complete tensors": len(copies) != len(adapter.replaced) or resized,
        "trained tokens": bool(adapter.token_rows),
        "a classification head": adapter.head == "classification",
        "a change of a tied head": adapter.config.tie_word_embeddings and HEAD in adapter.low_rank,
    }
    unsupported = [text for text, present in others.items() if present]
    if unsupported:
        raise CheckpointError(
            f"a GGUF adapter cannot hold {', '.join(unsupported)}; merge the adapter into the model with `puna merge`, "
            "or save it as a PEFT folder"
        )
    return [f"{len(copies)} matrices of the base model, stored with the adapter, are left out"] if copies else []
