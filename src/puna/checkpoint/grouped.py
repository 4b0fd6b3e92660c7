"""Reads the settings of folders with GPTQ or AWQ matrices, and joins the parts of each matrix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from puna.config import LlamaConfig
from puna.errors import CheckpointError
from puna.files import read_json
from puna.formats.blocks import StoredTensor
from puna.formats.grouped import BITS, PACKINGS, GroupedMatrix, Packing

_OLD_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Settings files of older folders, whose config.json has no `quantization_config`, and the method of each."""

_DEFAULT_VERSIONS = {"gptq": "gptq", "awq": "gemm"}
"""The version to assume for each method if the settings contain none."""

_PARTS = ("qweight", "qzeros", "scales", "g_idx")

_REMEDY = "puna reads GPTQ and AWQ (version gemm) with 4 bits; use the unquantised model or a GGUF file"


def read_settings(folder: Path, in_config: Any) -> Mapping[str, Any] | None:
    """Returns the quantisation settings of a folder, with a `quant_method`; None if it has no settings.

    Args:
        in_config: `quantization_config` of config.json; None if it has none.
    """
    if in_config is not None:
        return in_config if isinstance(in_config, dict) else {"quant_method": in_config}
    for name, method in _OLD_FILES.items():
        if (folder / name).exists():
            return {"quant_method": method} | read_json(folder / name, CheckpointError)
    return None


def join_packed(
    tensors: Mapping[str, StoredTensor], settings: Mapping[str, Any] | None, config: LlamaConfig
) -> dict[str, StoredTensor | GroupedMatrix]:
    """Replaces the parts of each packed matrix by one `GroupedMatrix`; without `settings`, nothing is packed.

    AutoGPTQ writes zero biases for models that have no biases; those are dropped.

    Raises:
        CheckpointError: the method, version or number of bits is not supported, or parts are missing or do not fit.
    """
    joined: dict[str, StoredTensor | GroupedMatrix] = dict(tensors)
    if settings is None:
        return joined
    packing = _find_packing(settings)
    bits = settings.get("bits", settings.get("w_bit", BITS))
    if bits != BITS:
        raise CheckpointError(f"the weights are quantised to {str(bits)[:40]} bits; {_REMEDY}")
    size = settings.get("group_size", settings.get("q_group_size", -1))
    if type(size) is not int or not (size == -1 or size > 0):
        raise CheckpointError(f"group_size is {str(size)[:40]}; it must be an integer above 0, or -1 for entire rows")
    for name in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        for part in _PARTS:
            joined.pop(f"{name}.{part}", None)
        joined[f"{name}.weight"] = _matrix(name, packing, size, [tensors.get(f"{name}.{part}") for part in _PARTS])
        bias = tensors.get(f"{name}.bias")
        has_bias = config.attention_bias if ".self_attn." in name else config.mlp_bias
        if bias is not None and not has_bias and not bias.to_float32().any():
            del joined[f"{name}.bias"]
    return joined


def _matrix(name: str, packing: Packing, size: int, parts: list[StoredTensor | None]) -> GroupedMatrix:
    qweight, qzeros, scales, g_idx = parts
    if qweight is None or qzeros is None or scales is None:
        missing = [part for part, tensor in zip(_PARTS, parts, strict=True) if tensor is None and part != "g_idx"]
        raise CheckpointError(f"the packed matrix {name} lacks {', '.join(missing)}; download the folder again")
    if len(qweight.shape) != 2:
        raise CheckpointError(f"tensor {qweight.name!r} has the shape {qweight.shape}; a packed matrix has two axes")
    return GroupedMatrix(f"{name}.weight", packing, size, qweight, qzeros, scales, g_idx)


def _find_packing(settings: Mapping[str, Any]) -> Packing:
    method = str(settings.get("quant_method")).lower()
    version = settings.get("version") or settings.get("checkpoint_format") or _DEFAULT_VERSIONS.get(method)
    packing = PACKINGS.get((method, str(version).lower()))
    if packing is None:
        kind = f"{method[:40]} ({str(version)[:40]})" if version else method[:40]
        raise CheckpointError(f"quantised with {kind} according to quantization_config; {_REMEDY}")
    return packing
