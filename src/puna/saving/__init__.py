"""Writes models as Hugging Face folders."""

from puna.saving.folder import save_checkpoint
from puna.saving.shards import new_tensor, parse_size, split_into_shards, weight_index, write_shard
from puna.saving.weight_files import PYTORCH, SAFETENSORS, WeightFiles

INDEX = SAFETENSORS.index
"""The name of the index of several safetensors files."""

__all__ = [
    "INDEX", "PYTORCH", "SAFETENSORS", "WeightFiles", "new_tensor", "parse_size", "save_checkpoint",
    "split_into_shards", "weight_index", "write_shard",
]  # fmt: skip
