"""Reads the quantisation settings of a folder and joins the parts of its packed matrices, for every method.

To add a method, write a function with the signature of `join_packed`, and add one line to `_METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from puna.checkpoint.bitsandbytes import join_bitsandbytes
from puna.checkpoint.compressed import join_compressed
from puna.checkpoint.grouped import join_grouped
from puna.checkpoint.names import is_known
from puna.checkpoint.quantization import REMEDY, Settings
from puna.checkpoint.weight import RowSource
from puna.config import LlamaConfig
from puna.errors import CheckpointError
from puna.files import has_file, read_json
from puna.formats.blocks import FORMATS, StoredTensor

_Join = Callable[[Mapping[str, StoredTensor], Settings, LlamaConfig], tuple[dict[str, RowSource], list[str]]]

_METHODS: dict[str, _Join] = {
    "gptq": join_grouped,
    "awq": join_grouped,
    "compressed-tensors": join_compressed,
    "bitsandbytes": join_bitsandbytes,
}
"""The functions that join the parts of matrices, by `quant_method`."""

_OLD_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
"""Settings files of folders whose config.json has no `quantization_config`, and the method of each."""

_KEYS = ("quantization_config", "compression_config", "quantization")
"""Keys of config.json with the settings: the usual one, that of older compressed-tensors, and that of MLX."""


def read_settings(folder: Path, config: dict[str, Any]) -> Settings | None:
    """Returns the quantisation settings of a folder; None if it has none.

    Args:
        config: the keys of config.json; the settings are removed from it.
    """
    values = {key: config.pop(key, None) for key in _KEYS}
    for key, value in values.items():
        if value is not None:
            fields = value if isinstance(value, dict) else {"quant_method": value}
            default = {} if values["quantization"] is None else {"quant_method": "mlx"}
            return Settings(default | fields, f"{key} in config.json")
    for name, method in _OLD_FILES.items():
        if has_file(folder / name, CheckpointError):
            return Settings({"quant_method": method} | read_json(folder / name, CheckpointError), name)
    return None


def join_packed(
    tensors: Mapping[str, StoredTensor], settings: Settings | None, config: LlamaConfig
) -> tuple[dict[str, RowSource], list[str]]:
    """Replaces the parts of each packed matrix by one tensor; without `settings`, nothing is packed.

    If all tensors are the float tensors of a LLaMA model, the settings are stale: a program merged or dequantised the
    weights and did not remove the settings.

    Returns:
        The tensors, and notes for the user.

    Raises:
        CheckpointError: the method or a setting is not supported, or parts are missing or do not fit.
    """
    if settings is None:
        return dict(tensors), []
    if all(is_known(name) and tensor.format.name in FORMATS for name, tensor in tensors.items()):
        return dict(tensors), [f"{settings.source} ignored, since the weights are not quantised"]
    join = _METHODS.get(settings.method)
    if join is None:
        raise CheckpointError(f"quantised with {settings.method} according to {settings.source}; {REMEDY}")
    joined, notes = join(tensors, settings, config)
    if joined.keys() == tensors.keys():
        raise CheckpointError(
            f"quantised with {settings.method} according to {settings.source}, but the files contain no matrix of "
            "this method. The files do not belong together"
        )
    return joined, notes
