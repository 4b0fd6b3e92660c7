"""Loads adapters with PEFT, and saves adapters that `add_adapter` or `load_adapter` added to a model.

Both are methods of transformers, which a model inherits once transformers is imported. PEFT imports it.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import torch

from puna.checkpoint.adapter import ADAPTER_CONFIG, is_adapter_file
from puna.errors import ConfigError, RequestError
from puna.files import make_folder, read_json
from puna.hub import parse
from puna.model.huggingface.tensors import tensor_bytes, tensor_description
from puna.saving import new_tensor, write_shard


def base_and_adapter(path: str | Path | None, subfolder: str = "") -> tuple[str | Path | None, Path | None]:
    """Returns the path of the model that an adapter was trained for, and the adapter's folder.

    Args:
        path: the first argument of `from_pretrained`; a path that is not an adapter's folder is returned unchanged.
        subfolder: the folder inside it.
    """
    if path is None or parse(path) is not None or not (folder := Path(path) / subfolder).is_dir():
        return path, None
    files = {file.name for file in folder.iterdir()}
    if ADAPTER_CONFIG not in files or "config.json" in files or not any(is_adapter_file(folder / f) for f in files):
        return path, None
    base = read_json(folder / ADAPTER_CONFIG, ConfigError).get("base_model_name_or_path")
    usable = isinstance(base, str) and base and importlib.util.find_spec("peft") is not None
    return (base, folder) if usable else (path, None)  # the error of an adapter in place of a model names the remedy


def load_peft_adapter(model: Any, folder: Path) -> None:
    """Adds the adapter in a folder to a model, in evaluation mode, as transformers does."""
    import peft  # noqa: F401  # imports transformers, whose base class has load_adapter

    model.load_adapter(str(folder))
    model.eval()


def has_adapters(model: Any) -> bool:
    """Returns whether `add_adapter` or `load_adapter` changed the layers of a model."""
    return bool(vars(model).get("_hf_peft_config_loaded", False))


def save_active_adapter(model: Any, folder: str | Path, peft_format: bool, safe_serialization: bool) -> list[Path]:
    """Writes the active adapter as a folder of PEFT, as transformers does; returns the files.

    Args:
        model: a model with adapters.
        folder: created if needed.
        peft_format: whether "base_model.model." precedes the names of tensors, which PEFT requires.
        safe_serialization: whether the file is adapter_model.safetensors or adapter_model.bin.

    Raises:
        RequestError: several adapters are active.
    """
    active = model.active_adapters()
    if len(active) != 1:
        raise RequestError(f"the adapters {active} are active; call set_adapter and save each of them separately")
    target = make_folder(folder)
    prefix = "base_model.model." if peft_format else ""
    tensors = {f"{prefix}{name}": tensor.detach() for name, tensor in model.get_adapter_state_dict().items()}
    model.peft_config[active[0]].save_pretrained(str(target))
    path = target / ("adapter_model.safetensors" if safe_serialization else "adapter_model.bin")
    if safe_serialization:
        write_shard(
            path,
            [
                new_tensor(name, *tensor_description(each), partial(tensor_bytes, each))
                for name, each in tensors.items()
            ],
        )
    else:
        torch.save(tensors, path)
    return [target / ADAPTER_CONFIG, path]
