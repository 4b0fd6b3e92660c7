"""Joins the parts of matrices that bitsandbytes quantised to int8 or to nf4 or fp4."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from puna.checkpoint.quantization import Settings
from puna.checkpoint.weight import RowSource
from puna.config import LlamaConfig
from puna.errors import CheckpointError, show
from puna.formats.blocks import FORMATS, I8, U8, BlockFormat, StoredTensor
from puna.formats.scaled import CODES, Blocks, Codes, Grid, Nested, ScaledMatrix

_STATE = ".weight.quant_state.bitsandbytes__"
_FOUR_BIT_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_KINDS = ("nf4", "fp4")

_ROW_STATS_FACTOR = 7.874015718698502e-3
"""About 1 / 127: the constant of `int8_vectorwise_dequant`, which multiplies the product of code and row maximum."""

_PLAIN = {form.torch: form for form in FORMATS.values() if form.pack is not None}


def join_bitsandbytes(
    tensors: Mapping[str, StoredTensor], settings: Settings, config: LlamaConfig
) -> tuple[dict[str, RowSource], list[str]]:
    """Replaces the parts of each matrix by one `ScaledMatrix`, using only the tensors: they contain all parameters.

    Returns:
        The tensors, and notes for the user.

    Raises:
        CheckpointError: parts are missing or do not fit.
    """
    joined: dict[str, RowSource] = dict(tensors)
    for key in tensors:
        name, _, kind = key.partition(_STATE)
        if kind:
            for part in (f"quant_state.bitsandbytes__{kind}", *_FOUR_BIT_PARTS):
                joined.pop(f"{name}.weight.{part}", None)
            joined[f"{name}.weight"] = _four_bit(name, kind, tensors)
    eight_bit = [key.removesuffix(".SCB") for key in tensors if key.endswith(".SCB")]
    for name in eight_bit:
        del joined[f"{name}.SCB"]
        joined.pop(f"{name}.weight_format", None)
        joined[f"{name}.weight"] = _eight_bit(name, tensors)
    notes = ["puna does not quantise activations as bitsandbytes does (LLM.int8())"] if eight_bit else []
    return joined, notes


def _eight_bit(name: str, tensors: Mapping[str, StoredTensor]) -> ScaledMatrix:
    weight, stats = _part(tensors, f"{name}.weight", (I8,)), _part(tensors, f"{name}.SCB", (FORMATS["f32"],))
    order = tensors.get(f"{name}.weight_format")
    if order is not None and order.data.any():
        raise CheckpointError(
            f"tensor {order.name!r} is not 0: the matrix is stored in the order of a GPU's kernels. Save the model "
            "again with a current bitsandbytes"
        )
    if len(weight.shape) != 2 or math.prod(stats.shape) != weight.shape[0]:
        raise CheckpointError(
            f"tensors {weight.name!r} of shape {weight.shape} and {stats.name!r} of shape {stats.shape} do not fit: "
            "each row needs one maximum. Download the folder again"
        )
    scales = Grid(StoredTensor(stats.name, (weight.shape[0], 1), stats.format, stats.data))
    shape = (weight.shape[0], weight.shape[1])
    return ScaledMatrix(
        weight.name, "bitsandbytes int8", shape, stats.format, CODES["i8"], weight, scales, factor=_ROW_STATS_FACTOR
    )


def _four_bit(name: str, kind: str, tensors: Mapping[str, StoredTensor]) -> ScaledMatrix:
    weight = tensors.get(f"{name}.weight")
    if kind not in _KINDS:
        raise CheckpointError(f"{name}{_STATE}{kind[:40]}: the codes must be nf4 or fp4")
    if weight is None:
        raise CheckpointError(f"missing tensor '{name}.weight'; download the folder again")
    state = _State(tensors[f"{name}{_STATE}{kind}"])
    shape, block = state.shape(), state.integer("blocksize")
    count = -(-shape[0] * shape[1] // block)
    values = _part(tensors, f"{name}.weight.quant_map", (FORMATS["f32"],), 16)
    nested = _nested(name, tensors, state, count) if f"{name}.weight.nested_absmax" in tensors else None
    absmax = _part(tensors, f"{name}.weight.absmax", (FORMATS["f32"] if nested is None else U8,), count)
    scales = Blocks(absmax, block, shape[1], nested)
    codes = Codes(kind, 4, values.to_float32(), high_first=True)
    return ScaledMatrix(weight.name, f"bitsandbytes {kind}", shape, state.format(), codes, weight, scales)


def _nested(name: str, tensors: Mapping[str, StoredTensor], state: _State, count: int) -> Nested:
    block = state.integer("nested_blocksize")
    scales = _part(tensors, f"{name}.weight.nested_absmax", (FORMATS["f32"],), -(-count // block))
    values = _part(tensors, f"{name}.weight.nested_quant_map", (FORMATS["f32"],), 256)
    return Nested(scales, values, block, state.number("nested_offset"))


def _part(
    tensors: Mapping[str, StoredTensor], name: str, forms: tuple[BlockFormat, ...], size: int | None = None
) -> StoredTensor:
    """Returns a tensor; raises CheckpointError if it is missing, or has another format or number of elements."""
    tensor = tensors.get(name)
    if tensor is None:
        raise CheckpointError(f"missing tensor {name!r}; download the folder again")
    if tensor.format not in forms or (size is not None and math.prod(tensor.shape) != size):
        count = "" if size is None else f"{size} elements in "
        raise CheckpointError(
            f"tensor {name!r} is {tensor.format.name} of shape {tensor.shape}; bitsandbytes needs {count}"
            f"{' or '.join(form.name for form in forms)} here"
        )
    return tensor


class _State:
    """The settings of a 4-bit matrix, stored as JSON in a tensor of bytes."""

    def __init__(self, tensor: StoredTensor) -> None:
        self.name = tensor.name
        try:
            self.fields = json.loads(tensor.data.tobytes())
        except (ValueError, RecursionError) as exc:
            raise CheckpointError(f"tensor {tensor.name!r} is not JSON ({exc}); download the folder again") from exc
        if not isinstance(self.fields, dict):
            raise CheckpointError(f"tensor {tensor.name!r} must be a JSON object; download the folder again")

    def integer(self, key: str) -> int:
        """Returns an integer of at least 1."""
        value = self.fields.get(key)
        if type(value) is not int or value < 1:
            raise self._error(key, "an integer of at least 1")
        return value

    def number(self, key: str) -> float:
        """Returns a finite number."""
        value = self.fields.get(key)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self._error(key, "a finite number")
        return float(value)

    def shape(self) -> tuple[int, int]:
        """Returns the shape of the matrix."""
        value = self.fields.get("shape")
        if not isinstance(value, list) or len(value) != 2 or not all(type(n) is int and n > 0 for n in value):
            raise self._error("shape", "the two extents of a matrix")
        return value[0], value[1]

    def format(self) -> BlockFormat:
        """Returns the type of the dequantised matrix."""
        form = _PLAIN.get(str(self.fields.get("dtype")))
        if form is None:
            raise self._error("dtype", ", ".join(str(name) for name in _PLAIN))
        return form

    def _error(self, key: str, expected: str) -> CheckpointError:
        value = show(self.fields.get(key))
        return CheckpointError(f"tensor {self.name!r}: {key} is {value}; expected {expected}")
