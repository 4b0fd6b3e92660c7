"""`save_adapter`: writes an adapter as a PEFT folder or as a GGUF file."""

from __future__ import annotations

from pathlib import Path

from puna.adapters.adapter import Adapter
from puna.adapters.gguf_writer import write_gguf_adapter
from puna.adapters.peft_writer import write_peft_folder
from puna.files import folder_path


def save_adapter(adapter: Adapter, path: str | Path) -> list[str]:
    """Writes an adapter; returns notes for the user.

    Args:
        path: a GGUF file, if it ends with .gguf, else a PEFT folder. An adapter that exists there is replaced.

    Raises:
        CheckpointError: the format cannot express the adapter.
        StorageError: the files cannot be written.
    """
    target = folder_path(path)
    if target.suffix == ".gguf":
        return write_gguf_adapter(adapter, target)
    write_peft_folder(adapter, target)
    return []
