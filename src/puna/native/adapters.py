"""Loads adapters into the native library."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from puna.backend import LowRank
from puna.config import LlamaConfig
from puna.errors import BackendError
from puna.native.library import NativeLowRank, load_library
from puna.native.tensors import IN_LAYER, layer_and_kind


def load_adapter(model: int, config: LlamaConfig, products: Mapping[str, LowRank]) -> int:
    """Packs the changes of matrix products into `model`; returns the adapter's number.

    Raises:
        BackendError: if a change is not of a layer's projection or of the head, or its shape differs from the model's.
    """
    library = load_library()
    arrays: list[NDArray[np.float32]] = []  # kept until the library has copied them

    def address(values: NDArray[np.float32] | None) -> int | None:
        if values is None:
            return None
        arrays.append(np.ascontiguousarray(values, np.float32))
        return arrays[-1].ctypes.data

    changes = []
    for name, change in products.items():
        _check(name, change, config)
        layer, kind = layer_and_kind(name)
        changes.append(
            NativeLowRank(
                address(change.a), address(change.b), address(change.bias), address(change.row_scale), kind, layer,
                len(change.a),
            )
        )  # fmt: skip
    number = ctypes.c_int32()
    items = (NativeLowRank * len(changes))(*changes)
    if library.puna_adapter_load(model, items, len(changes), ctypes.byref(number)):
        raise BackendError(f"the native runtime rejects the adapter: {library.puna_error().decode()}")
    return number.value


def _check(name: str, change: LowRank, config: LlamaConfig) -> None:
    """Raises BackendError unless the change is of a projection or of the head, and has the matrix's shape."""
    rows, columns = _shape(name, config)
    expected = {"a": (len(change.a), columns), "b": (rows, len(change.a)), "bias": (rows,), "row_scale": (rows,)}
    for part, shape in expected.items():
        values = getattr(change, part)
        if values is not None and values.shape != shape:
            raise BackendError(
                f"the adapter's {part} for {name} has shape {values.shape}; the model needs {shape}; use the base "
                "model that the adapter was trained on"
            )


def _shape(name: str, config: LlamaConfig) -> tuple[int, int]:
    """Returns the shape of the matrix `name`.

    Raises:
        BackendError: if it is neither a projection of a layer nor the head.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    if name == "lm_head.weight":
        return config.vocab_size, hidden
    number, _, rest = name.removeprefix("model.layers.").partition(".")
    if not rest.endswith("_proj.weight") or rest not in IN_LAYER:
        raise BackendError(
            f"the adapter changes {name}, but the native backend can change only the projections of the layers and the "
            "head; use backend='torch', or merge the adapter into the model with puna merge"
        )
    if not number.isdigit() or int(number) >= config.num_hidden_layers:
        raise BackendError(f"the adapter changes {name}, but the model has {config.num_hidden_layers} layers")
    heads, kv_heads = (count * config.head_dim for count in (config.num_attention_heads, config.num_key_value_heads))
    return {
        "q": (heads, hidden), "k": (kv_heads, hidden), "v": (kv_heads, hidden), "o": (hidden, heads),
        "gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner),
    }[rest.partition(".")[2].removesuffix("_proj.weight")]  # fmt: skip
