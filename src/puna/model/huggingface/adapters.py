"""Saves adapters that `add_adapter` or `load_adapter` added to a model.

Both are methods of transformers, which a model inherits once transformers is imported. PEFT imports it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from puna.errors import RequestError
from puna.files import make_folder
from puna.model.huggingface.tensors import tensor_bytes, tensor_description
from puna.saving import new_tensor, write_shard


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
    return [target / "adapter_config.json", path]
