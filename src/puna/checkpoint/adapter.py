"""Recognises the folder of an adapter, which people give instead of the folder of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from puna.errors import CheckpointError, PunaError, show
from puna.files import has_file, read_json

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_MODEL_WEIGHTS = ("*.safetensors", "*.bin", "*.pth", "*.gguf")


def is_adapter_file(path: Path) -> bool:
    """Whether the file has a name that PEFT gives to the weights of an adapter."""
    return path.name in _WEIGHTS


def refuse_adapter(folder: Path) -> None:
    """Raises CheckpointError if a folder contains an adapter, alone or next to a model.

    An `adapter_config.json` next to a model's weights, without an adapter's weights, is not an adapter.
    """
    has_config = has_file(folder / ADAPTER_CONFIG, CheckpointError)
    has_adapter = any(has_file(folder / name, CheckpointError) for name in _WEIGHTS)
    weight_files = [path for pattern in _MODEL_WEIGHTS for path in folder.glob(pattern)]
    has_model = any(not is_adapter_file(path) for path in weight_files)
    if not has_adapter and (has_model or not has_config):
        return
    content = _content(folder) if has_config else {}
    kind = str(content.get("peft_type") or "PEFT")[:40]
    base = content.get("base_model_name_or_path")
    of_base = f" for the base model {show(base)}" if base else ", whose base model is not named"
    if has_adapter and has_model and has_file(folder / "config.json", CheckpointError):
        raise CheckpointError(
            f"{folder}: contains an adapter ({kind}{of_base}) next to a model. If the adapter is merged into the "
            f"weights already, delete adapter_model.* and {ADAPTER_CONFIG}; otherwise move these files to a folder of "
            "their own and merge them with `puna merge`"
        )
    raise CheckpointError(
        f"{folder}: an adapter ({kind}){of_base}, not a model. Load the base model with `--adapter {folder}` or "
        f"LLM(BASE, adapters=...), or merge both with `puna merge BASE {folder} OUTPUT`"
    )


def _content(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / ADAPTER_CONFIG, CheckpointError)
    except PunaError:  # the adapter is refused anyway
        return {}
