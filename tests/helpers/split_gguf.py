"""GGUF files in parts, written by the package gguf."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf

from tests.golden.files import LAYOUTS


def split(folder: Path, **options: Any) -> list[Path]:
    """Writes the golden model in parts; returns their paths."""
    folder.mkdir(exist_ok=True)
    reader = gguf.GGUFReader(LAYOUTS["gguf"])
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama", **options)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.name"):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    write(writer)
    return sorted(folder.glob("*.gguf"))


def write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
