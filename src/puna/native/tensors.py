"""Loads weights into the native library: chooses each tensor's number in the library and its packed format."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from puna.errors import BackendError, show
from puna.formats.blocks import FORMATS, BlockFormat
from puna.native.library import NativeTensor, load_library

QUANTIZED = ("q8_0", "q4_0", "q4_K")
"""Formats that float matrices can be quantised to while they are packed."""

OUTSIDE_LAYERS = {"model.embed_tokens.weight": 0, "model.norm.weight": 1, "lm_head.weight": 2}
IN_LAYER = {
    "input_layernorm.weight": 3, "post_attention_layernorm.weight": 4, "self_attn.q_proj.weight": 5,
    "self_attn.k_proj.weight": 6, "self_attn.v_proj.weight": 7, "self_attn.o_proj.weight": 8, "mlp.gate_proj.weight": 9,
    "mlp.up_proj.weight": 10, "mlp.down_proj.weight": 11, "self_attn.q_proj.bias": 12, "self_attn.k_proj.bias": 13,
    "self_attn.v_proj.bias": 14, "self_attn.o_proj.bias": 15, "mlp.gate_proj.bias": 16, "mlp.up_proj.bias": 17,
    "mlp.down_proj.bias": 18,
}  # fmt: skip
"""The library's number of each kind of tensor (csrc/include/puna.h), by its Hugging Face name."""

_FLOATS = ("f32", "f16", "bf16")


class Tensor(Protocol):
    """A weight that the backend can load; `puna.checkpoint.Weight` is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape: (rows, columns) of a matrix, (size,) of a vector."""
        ...

    @property
    def format(self) -> BlockFormat:
        """The format of `data`."""
        ...

    @property
    def data(self) -> NDArray[np.uint8]:
        """The stored bytes, flat, rows in stored order."""
        ...

    @property
    def order(self) -> NDArray[np.intp] | None:
        """order[r] is the index in `data` of the tensor's row r; None if rows are stored in order."""
        ...

    def to_float32(self) -> NDArray[np.float32]:
        """Returns the decoded values."""
        ...

    def release(self) -> None:
        """Indicates that `data` will not be needed soon."""
        ...


def quantized_format(name: str | None, tensors: Mapping[str, Tensor]) -> BlockFormat | None:
    """Returns the format called `name`, ignoring case; None if `name` is None.

    Raises:
        BackendError: if float matrices cannot be quantised to this format, or the model has no float matrices.
    """
    if name is None:
        return None
    match = next((item for item in QUANTIZED if isinstance(name, str) and item.lower() == name.lower()), None)
    if match is None:
        raise BackendError(f"quantize is {show(name)}; it must be one of {', '.join(QUANTIZED)}")
    stored = sorted({tensor.format.name for tensor in tensors.values() if len(tensor.shape) == 2})
    if not any(format_name in _FLOATS for format_name in stored):
        raise BackendError(
            f"quantize is {match!r}, but the model's weights are quantised already ({', '.join(stored)}); omit quantize"
        )
    return FORMATS[match]


def packed_bytes(tensors: Mapping[str, Tensor], quantize: BlockFormat | None, float32: bool = False) -> int:
    """Returns the bytes of memory that the matrices need after `load_tensor` has packed them."""
    library = load_library()
    total = 0
    for name, tensor in tensors.items():
        if len(tensor.shape) == 2:
            unpacked = FORMATS["f32"] if _is_unpacked(tensor, float32) else tensor.format
            target = _target(name, tensor, quantize) or unpacked
            total += max(0, library.puna_packed_bytes(target.ggml_id, *tensor.shape))
    return total


def load_tensor(model: int, name: str, tensor: Tensor, quantize: BlockFormat | None, float32: bool = False) -> None:
    """Packs one tensor into `model` and releases it.

    Args:
        quantize: format that float matrices are quantised to.
        float32: load quantised matrices as float32, since integer kernels round activations to 8 bits.

    Raises:
        BackendError: if the library rejects the tensor.
    """
    layer, kind = layer_and_kind(name)
    library = load_library()
    if len(tensor.shape) == 2 and not _is_unpacked(tensor, float32):
        data, order = tensor.data, tensor.order
        target = _target(name, tensor, quantize)
        rows, columns = tensor.shape
        source_id, target_id = tensor.format.ggml_id, target.ggml_id if target else -1
    else:
        data, order = tensor.to_float32().view(np.uint8), None
        rows, columns = (1, *tensor.shape)[-2:]
        source_id, target_id = FORMATS["f32"].ggml_id, -1
    order64 = None if order is None else np.ascontiguousarray(order, np.int64)
    native = NativeTensor(
        data.ctypes.data, None if order64 is None else order64.ctypes.data, rows, columns, source_id, target_id
    )
    if library.puna_model_load(model, kind, layer, ctypes.byref(native)):
        reason = library.puna_error().decode()
        raise BackendError(f"the native runtime rejects {name} ({tensor.format.name}, shape {tensor.shape}): {reason}")
    tensor.release()


def _is_unpacked(tensor: Tensor, float32: bool) -> bool:
    return float32 and len(tensor.shape) == 2 and tensor.format.name not in _FLOATS


def layer_and_kind(name: str) -> tuple[int, int]:
    """Returns (layer, number of the kind); layer -1 for tensors outside the layers."""
    kind = OUTSIDE_LAYERS.get(name)
    if kind is not None:
        return -1, kind
    number, _, rest = name.removeprefix("model.layers.").partition(".")
    return int(number), IN_LAYER[rest]


def _target(name: str, tensor: Tensor, quantize: BlockFormat | None) -> BlockFormat | None:
    """Returns the format that a matrix is quantised to while it is packed; None if it is not quantised.

    The embedding and the head are quantised to q8_0, since four bits would lose much accuracy and save little time.

    Raises:
        BackendError: if the length of a row is not a multiple of the format's block size.
    """
    if quantize is None or tensor.format.name not in _FLOATS:
        return None
    target = FORMATS["q8_0"] if name in OUTSIDE_LAYERS else quantize
    if tensor.shape[-1] % target.values:
        raise BackendError(
            f"{name} has rows of {tensor.shape[-1]} values, which {target.name} cannot pack: its blocks have "
            f"{target.values}; quantize to a format with smaller blocks, or omit quantize"
        )
    return target
