"""Joins the parts of matrices that compressed-tensors quantised to integers or floats of 4 or 8 bits.

The parts of a matrix and their shapes determine its codes, groups and zero points. The settings are read only to refuse
features that the tensors do not show.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from puna.checkpoint.quantization import Settings
from puna.checkpoint.weight import RowSource
from puna.config import LlamaConfig
from puna.errors import CheckpointError, show
from puna.formats.blocks import F8, FORMATS, I8, I32, I64, StoredTensor
from puna.formats.scaled import CODES, Codes, Grid, Index, Numbers, PackedGrid, ScaledMatrix

_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense")
_PARTS = ("weight_packed", "weight", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape")
_ACTIVATIONS = (
    "input_scale", "input_zero_point", "output_scale", "output_zero_point", "q_scale", "k_scale", "v_scale",
    "k_zero_point", "v_zero_point",
)  # fmt: skip
"""Scales of activations and of the cache, which puna does not quantise."""

_REMEDY = "use the unquantised model or a GGUF file"

_BITS = (4, 8)

Parts = Mapping[str, StoredTensor | None]


def join_compressed(
    tensors: Mapping[str, StoredTensor], settings: Settings, config: LlamaConfig
) -> tuple[dict[str, RowSource], list[str]]:
    """Replaces the parts of each matrix by one `ScaledMatrix`.

    Returns:
        The tensors, and notes for the user.

    Raises:
        CheckpointError: a format or a feature is not supported, or parts are missing or do not fit.
    """
    schemes = list(_schemes(settings.fields))
    _refuse_features(settings.fields, schemes)
    joined: dict[str, RowSource] = dict(tensors)
    names = [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]
    names += [name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")]
    for name in dict.fromkeys(names):
        parts = {part: joined.pop(f"{name}.{part}", None) for part in _PARTS}
        stored = {part: tensors.get(f"{name}.{part}") for part in parts}
        joined[f"{name}.weight"] = _matrix(name, stored, schemes)
    activations = [name for name in tensors if name.rpartition(".")[2] in _ACTIVATIONS]
    for name in activations:
        del joined[name]
    ignored = [key for key in ("input_activations", "output_activations") if any(item.get(key) for item in schemes)]
    ignored += ["kv_cache_scheme"] if settings.fields.get("kv_cache_scheme") else []
    if not activations and not ignored:
        return joined, []
    kinds = ", ".join(ignored) or f"{len(activations)} tensors such as {activations[0]}"
    return joined, [f"puna quantises neither activations nor the cache as compressed-tensors does ({kinds})"]


def _schemes(settings: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields the entries of `config_groups`: the settings of some of the matrices."""
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        if isinstance(group, dict):
            yield group


def _refuse_features(settings: Mapping[str, Any], schemes: list[Mapping[str, Any]]) -> None:
    for form in (settings.get("format"), *(scheme.get("format") for scheme in schemes)):
        if form is not None and form not in _FORMATS:
            raise CheckpointError(
                f"quantised with compressed-tensors in the format {show(form)}; puna reads "
                f"{', '.join(_FORMATS[:4])}. Otherwise {_REMEDY}"
            )
    sparsity = settings.get("sparsity_config") or {}
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        raise CheckpointError(
            f"the weights are sparse (compressed-tensors, sparsity_config {str(sparsity)[:80]}), which puna does not "
            f"read; {_REMEDY}"
        )
    transforms = settings.get("transform_config") or {}
    if not isinstance(transforms, dict) or transforms.get("config_groups"):
        raise CheckpointError(
            "the inputs of the matrices are transformed (compressed-tensors, transform_config), which puna does not "
            f"do; {_REMEDY}"
        )
    for scheme in schemes:
        weights = scheme.get("weights")
        bits = weights.get("num_bits", 8) if isinstance(weights, dict) else 8
        if bits not in _BITS:
            raise CheckpointError(
                f"the weights are quantised to {str(bits)[:40]} bits with compressed-tensors; puna reads 4 and 8 bits. "
                f"Otherwise {_REMEDY}"
            )


def _matrix(name: str, parts: Parts, schemes: list[Mapping[str, Any]]) -> ScaledMatrix:
    scale, packed, shape = parts["weight_scale"], parts["weight_packed"] or parts["weight"], parts["weight_shape"]
    if scale is None or packed is None:
        flaw = "its scales" if scale is None else "its codes"
        raise CheckpointError(f"the matrix {name} lacks {flaw}; download the folder again")
    if len(packed.shape) != 2:
        raise CheckpointError(f"tensor {packed.name!r} has the shape {packed.shape}; a packed matrix has two axes")
    if scale.format not in [form for form in FORMATS.values() if form.pack is not None]:
        raise CheckpointError(f"tensor {scale.name!r} is {scale.format.name}; scales must be f32, f16 or bf16")
    if packed.format == I32:
        if shape is None or shape.format not in (I32, I64) or shape.shape != (2,):
            raise CheckpointError(f"the matrix {name} lacks weight_shape, two integers; download the folder again")
        outputs, inputs = (int(extent) for extent in shape.to_float32())
        codes = _integer_codes(name, packed, inputs)
    elif packed.format in (I8, F8):
        (outputs, inputs), codes = packed.shape, CODES[packed.format.name]
    else:
        raise CheckpointError(
            f"tensor {packed.name!r} is {packed.format.name}, but has scales: the folder was saved before it was "
            "compressed. Save it with `save_compressed=True`"
        )
    if outputs != packed.shape[0] or inputs < 1:
        raise CheckpointError(f"{name}.weight_shape is {(outputs, inputs)}, but {packed.name!r} is {packed.shape}")
    groups = _input_groups(parts["weight_g_idx"], inputs)
    scales = _grid(scale, (outputs, inputs), groups, schemes)
    zeros = _zeros(parts["weight_zero_point"], scales, codes, outputs)
    method = f"compressed-tensors {codes.name}"
    return ScaledMatrix(f"{name}.weight", method, (outputs, inputs), scale.format, codes, packed, scales, zeros)


def _integer_codes(name: str, packed: StoredTensor, inputs: int) -> Codes:
    for bits in _BITS:
        if packed.shape[1] == -(-inputs * bits // 32):
            return CODES[f"int{bits}"]
    raise CheckpointError(
        f"the matrix {name} has {packed.shape[1]} words of 32 bits for {inputs} inputs, which are not codes of 4 or 8 "
        f"bits; {_REMEDY}"
    )


def _input_groups(g_idx: StoredTensor | None, inputs: int) -> Index | None:
    """Returns the group of each input; None if groups are consecutive inputs: `g_idx` is missing or contains -1."""
    if g_idx is None:
        return None
    if g_idx.format != I32 or g_idx.shape != (inputs,):
        raise CheckpointError(f"tensor {g_idx.name!r} must be an i32 group for each of {inputs} inputs")
    groups: Index = g_idx.data.view("<i4").astype(np.intp)
    return None if groups.min() < 0 else groups


def _grid(scale: StoredTensor, shape: tuple[int, int], groups: Index | None, schemes: list[Mapping[str, Any]]) -> Grid:
    """Returns the scales: one for the matrix, one for each output, or one for each group of inputs or block."""
    outputs, inputs = shape
    rows = scale.shape[0] if scale.shape else 1
    columns = math.prod(scale.shape) // rows
    if rows == columns == 1:
        return Grid(_with_shape(scale, (1, 1)), outputs)
    if rows == outputs and len(scale.shape) <= 2:
        if groups is not None and groups.max() < columns:
            return Grid(_with_shape(scale, (rows, columns)), 1, groups)
        if groups is None and inputs % columns == 0:
            return Grid(_with_shape(scale, (rows, columns)))
    for height, width in _blocks(schemes):
        if scale.shape == (-(-outputs // height), -(-inputs // width)):
            return Grid(scale, height, None if inputs == columns * width else np.arange(inputs) // width)
    raise CheckpointError(
        f"tensor {scale.name!r} has the shape {scale.shape}, which does not divide a matrix of shape {shape} into "
        "groups. The files do not belong to this quantization_config"
    )


def _blocks(schemes: list[Mapping[str, Any]]) -> Iterator[tuple[int, int]]:
    for scheme in schemes:
        weights = scheme.get("weights")
        block = weights.get("block_structure") if isinstance(weights, dict) else None
        if isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block):
            yield block[0], block[1]


def _with_shape(tensor: StoredTensor, shape: tuple[int, int]) -> StoredTensor:
    return StoredTensor(tensor.name, shape, tensor.format, tensor.data)


def _zeros(zero: StoredTensor | None, scales: Grid, codes: Codes, outputs: int) -> Numbers | None:
    """Returns the zero points: bytes in the shape of the scales, or packed along the outputs."""
    if zero is None:
        return None
    rows, columns = scales.stored.shape
    if zero.format == I8 and math.prod(zero.shape) == rows * columns:
        return Grid(_with_shape(zero, (rows, columns)), scales.height, scales.groups)
    if zero.format == I32 and zero.shape == (-(-outputs * codes.bits // 32), columns) and scales.height == 1:
        return PackedGrid(zero, codes.bits, scales.groups)
    raise CheckpointError(
        f"tensor {zero.name!r} is {zero.format.name} of shape {zero.shape}, which does not fit scales of shape "
        f"{(rows, columns)}; download the folder again"
    )
