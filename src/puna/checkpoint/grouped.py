"""Reads the settings of folders with GPTQ or AWQ matrices, and joins the parts of each matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.checkpoint.leftovers import dropped_note
from puna.checkpoint.names import is_known
from puna.config import LlamaConfig
from puna.errors import CheckpointError
from puna.files import has_file, read_json
from puna.formats.blocks import FORMATS, StoredTensor
from puna.formats.grouped import BITS, PACKINGS, GroupedMatrix, Packing

_OLD_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Settings files of older folders, whose config.json has no `quantization_config`, and the method of each."""

_DEFAULT_VERSIONS = {"gptq": "gptq", "awq": "gemm"}
"""The version to assume for each method if the settings contain none."""

_PARTS = ("qweight", "qzeros", "scales", "g_idx")

_REMEDY = "puna reads GPTQ and AWQ (version gemm) with 4 bits; use the unquantised model or a GGUF file"


@dataclass(frozen=True)
class Settings:
    """The quantisation settings of a folder, with a `quant_method`, and the file or key that they were read from."""

    fields: Mapping[str, Any]
    source: str


def read_settings(folder: Path, in_config: Any) -> Settings | None:
    """Returns the quantisation settings of a folder; None if it has none.

    Args:
        in_config: `quantization_config` of config.json; None if it has none.
    """
    if in_config is not None:
        fields = in_config if isinstance(in_config, dict) else {"quant_method": in_config}
        return Settings(fields, "quantization_config in config.json")
    for name, method in _OLD_FILES.items():
        if has_file(folder / name, CheckpointError):
            return Settings({"quant_method": method} | read_json(folder / name, CheckpointError), name)
    return None


def join_packed(
    tensors: Mapping[str, StoredTensor], settings: Settings | None, config: LlamaConfig
) -> tuple[dict[str, StoredTensor | GroupedMatrix], list[str]]:
    """Replaces the parts of each packed matrix by one `GroupedMatrix`; without `settings`, nothing is packed.

    AutoGPTQ writes zero biases for models that have no biases; those are dropped. If all tensors are the float tensors
    of a LLaMA model, the settings are stale: a program merged or dequantised the weights and kept them.

    Returns:
        The tensors, and notes for the user.

    Raises:
        CheckpointError: the method, version or number of bits is not supported, or parts are missing or do not fit.
    """
    joined: dict[str, StoredTensor | GroupedMatrix] = dict(tensors)
    if settings is None:
        return joined, []
    if all(is_known(name) and tensor.format.name in FORMATS for name, tensor in tensors.items()):
        return joined, [f"{settings.source} ignored, since the weights are not quantised"]
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
    """Returns the number of inputs that share a scale, -1 for all; checks the number of bits too."""
    fields = settings.fields
    bits = fields.get("bits", fields.get("w_bit", BITS))
    if bits != BITS:
        raise CheckpointError(
            f"the weights are quantised to {str(bits)[:40]} bits according to {settings.source}; {_REMEDY}"
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
    fields = settings.fields
    method = str(fields.get("quant_method")).lower()
    version = fields.get("version") or fields.get("checkpoint_format") or _DEFAULT_VERSIONS.get(method)
    packing = PACKINGS.get((method, str(version).lower()))
    if packing is None:
        kind = f"{method[:40]} ({str(version)[:40]})" if version else method[:40]
        raise CheckpointError(f"quantised with {kind} according to {settings.source}; {_REMEDY}")
    return packing
