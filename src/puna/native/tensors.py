"""Weights on their way into the native library: which tensor is which, and what `quantize` makes of it."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from puna.errors import BackendError
from puna.formats.blocks import FORMATS, BlockFormat
from puna.native.library import NativeTensor, load_library

QUANTIZED = ("q8_0", "q4_0", "q4_K")
"""Formats that float matrices can be rounded to while they are packed."""

_WHOLE = {"model.embed_tokens.weight": 0, "model.norm.weight": 1, "lm_head.weight": 2}
_IN_LAYER = {
    "input_layernorm.weight": 3,
    "post_attention_layernorm.weight": 4,
    "self_attn.q_proj.weight": 5,
    "self_attn.k_proj.weight": 6,
    "self_attn.v_proj.weight": 7,
    "self_attn.o_proj.weight": 8,
    "mlp.gate_proj.weight": 9,
    "mlp.up_proj.weight": 10,
    "mlp.down_proj.weight": 11,
    "self_attn.q_proj.bias": 12,
    "self_attn.k_proj.bias": 13,
    "self_attn.v_proj.bias": 14,
    "self_attn.o_proj.bias": 15,
    "mlp.gate_proj.bias": 16,
    "mlp.up_proj.bias": 17,
    "mlp.down_proj.bias": 18,
}
"""The library's number of each kind of tensor, by its name in Hugging Face's layout."""

_FLOATS = ("f32", "f16", "bf16")


class Tensor(Protocol):
    """What the backend asks of a weight; `puna.checkpoint.Weight` is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Outermost axis first: (rows, columns) of a matrix, (size,) of a vector."""
        ...

    @property
    def format(self) -> BlockFormat:
        """How the values are packed."""
        ...

    @property
    def data(self) -> NDArray[np.uint8]:
        """The packed bytes, flat, rows in stored order."""
        ...

    @property
    def order(self) -> NDArray[np.intp] | None:
        """The stored row of each row; None where they are the same."""
        ...

    def to_float32(self) -> NDArray[np.float32]:
        """The values."""
        ...

    def release(self) -> None:
        """Says that `data` is not needed soon."""
        ...


def quantized_format(name: str | None, tensors: Mapping[str, Tensor]) -> BlockFormat | None:
    """The format called `name`, in any case of letters.

    Raises:
        BackendError: when float matrices cannot be rounded to it, or the model has none.
    """
    if name is None:
        return None
    chosen = next((one for one in QUANTIZED if isinstance(name, str) and one.lower() == name.lower()), None)
    if chosen is None:
        raise BackendError(f"quantize is {name!r}; it must be one of {', '.join(QUANTIZED)}")
    stored = sorted({tensor.format.name for tensor in tensors.values() if len(tensor.shape) == 2})
    if not any(format_name in _FLOATS for format_name in stored):
        raise BackendError(
            f"quantize is {chosen!r}, but the model's weights are quantised already ({', '.join(stored)}); leave it out"
        )
    return FORMATS[chosen]


def packed_bytes(tensors: Mapping[str, Tensor], rounded: BlockFormat | None) -> int:
    """Bytes that the matrices take once packed."""
    library = load_library()
    total = 0
    for name, tensor in tensors.items():
        if len(tensor.shape) == 2:
            target = _target(name, tensor, rounded) or tensor.format
            total += max(0, library.puna_packed_bytes(target.ggml_id, *tensor.shape))
    return total


def load_tensor(model: int, name: str, tensor: Tensor, rounded: BlockFormat | None) -> None:
    """Packs one tensor into `model` and releases it.

    Raises:
        BackendError: when the library refuses it.
    """
    layer, kind = _place(name)
    library = load_library()
    if len(tensor.shape) == 2:
        data, order = tensor.data, tensor.order
        target = _target(name, tensor, rounded)
        rows, columns = tensor.shape
        number, quantize = tensor.format.ggml_id, target.ggml_id if target else -1
    else:
        data, order = tensor.to_float32().view(np.uint8), None
        rows, columns = 1, tensor.shape[0]
        number, quantize = FORMATS["f32"].ggml_id, -1
    order64 = None if order is None else np.ascontiguousarray(order, np.int64)
    native = NativeTensor(
        data.ctypes.data, None if order64 is None else order64.ctypes.data, rows, columns, number, quantize
    )
    if library.puna_model_load(model, kind, layer, ctypes.byref(native)):
        reason = library.puna_error().decode()
        raise BackendError(f"the native runtime refuses {name} ({tensor.format.name}, shape {tensor.shape}): {reason}")
    tensor.release()


def _place(name: str) -> tuple[int, int]:
    """(layer, kind); layer -1 for tensors outside the layers."""
    kind = _WHOLE.get(name)
    if kind is not None:
        return -1, kind
    number, _, rest = name.removeprefix("model.layers.").partition(".")
    return int(number), _IN_LAYER[rest]


def _target(name: str, tensor: Tensor, rounded: BlockFormat | None) -> BlockFormat | None:
    """What a matrix is rounded to while it is packed; None: it keeps its values.

    The embedding and the head lose most from four bits, and matter least for speed.

    Raises:
        BackendError: when its rows are no whole blocks of the format.
    """
    if rounded is None or tensor.format.name not in _FLOATS:
        return None
    target = FORMATS["q8_0"] if name in _WHOLE else rounded
    if tensor.shape[-1] % target.values:
        raise BackendError(
            f"{name} has rows of {tensor.shape[-1]} values, which {target.name} cannot pack: its blocks have "
            f"{target.values}; quantize to a format of smaller blocks, or leave quantize out"
        )
    return target
