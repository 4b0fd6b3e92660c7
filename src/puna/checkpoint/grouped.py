"""Joins the parts of GPTQ and AWQ matrices."""

from __future__ import annotations

from collections.abc import Mapping

from puna.checkpoint.leftovers import dropped_note
from puna.checkpoint.quantization import REMEDY, Settings
from puna.checkpoint.weight import RowSource
from puna.config import LlamaConfig
from puna.errors import CheckpointError
from puna.formats.blocks import StoredTensor
from puna.formats.grouped import BITS, PACKINGS, GroupedMatrix, Packing

_DEFAULT_VERSIONS = {"gptq": "gptq", "awq": "gemm"}
"""The version to assume for each method if the settings contain none."""

_PARTS = ("qweight", "qzeros", "scales", "g_idx")


def join_grouped(
    tensors: Mapping[str, StoredTensor], settings: Settings, config: LlamaConfig
) -> tuple[dict[str, RowSource], list[str]]:
    """Replaces the parts of each packed matrix by one `GroupedMatrix`.

    AutoGPTQ writes zero biases for models that have no biases; these zero biases are dropped.

    Returns:
        The tensors, and notes for the user.

    Raises:
        CheckpointError: the version or number of bits is not supported, or parts are missing or do not fit.
    """
    joined: dict[str, RowSource] = dict(tensors)
    packing, size = _find_packing(settings), _group_size(settings)
    zero_biases = []
    for name in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        for part in _PARTS:
            joined.pop(f"{name}.{part}", None)
        joined[f"{name}.weight"] = _matrix(name, packing, size, [tensors.get(f"{name}.{part}") for part in _PARTS])
        bias = tensors.get(f"{name}.bias")
        has_bias = config.attention_bias if ".self_attn." in name else config.mlp_bias
        if bias is not None and not has_bias and not bias.to_float32().any():
            del joined[f"{name}.bias"]
            zero_biases.append(f"{name}.bias")
    return joined, dropped_note("biases of zero", zero_biases)


def _group_size(settings: Settings) -> int:
    """Returns the number of inputs that share a scale, -1 for entire rows; also checks the number of bits."""
    fields = settings.fields
    bits = fields.get("bits", fields.get("w_bit", BITS))
    if bits != BITS:
        raise CheckpointError(
            f"the weights are quantised to {str(bits)[:40]} bits according to {settings.source}; {REMEDY}"
        )
    size = fields.get("group_size", fields.get("q_group_size", -1))
    if type(size) is not int or not (size == -1 or size > 0):
        raise CheckpointError(
            f"{settings.source}: group_size is {str(size)[:40]}; it must be an integer above 0, or -1 for entire rows"
        )
    return size


def _matrix(name: str, packing: Packing, size: int, parts: list[StoredTensor | None]) -> GroupedMatrix:
    qweight, qzeros, scales, g_idx = parts
    if qweight is None or qzeros is None or scales is None:
        missing = [part for part, tensor in zip(_PARTS, parts, strict=True) if tensor is None and part != "g_idx"]
        raise CheckpointError(f"the packed matrix {name} lacks {', '.join(missing)}; download the folder again")
    if len(qweight.shape) != 2:
        raise CheckpointError(f"tensor {qweight.name!r} has the shape {qweight.shape}; a packed matrix has two axes")
    return GroupedMatrix(f"{name}.weight", packing, size, qweight, qzeros, scales, g_idx)


def _find_packing(settings: Settings) -> Packing:
    fields, method = settings.fields, settings.method
    version = fields.get("version") or fields.get("checkpoint_format") or _DEFAULT_VERSIONS.get(method)
    packing = PACKINGS.get((method, str(version).lower()))
    if packing is None:
        kind = f"{method} ({str(version)[:40]})" if version else method
        raise CheckpointError(f"quantised with {kind} according to {settings.source}; {REMEDY}")
    return packing
