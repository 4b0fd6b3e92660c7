"""`Reading`: how a model class reads the files of a checkpoint. Other programs use the defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from puna.checkpoint.names import Head
from puna.config import LlamaConfig
from puna.errors import CheckpointError, show

Tensor = TypeVar("Tensor")


@dataclass(frozen=True)
class Reading:
    """Options of a reader of Hugging Face folders.

    Attributes:
        head: the head of the class that reads. If the files have no language-model head and the class needs none, none
            is missed. None: the configuration or the files decide.
        heads: names of the class's own tensors, which no other model has.
        config: used if the folder has no config.json.
        variant: part of the names of the weight files, as in model.fp16.safetensors.
        use_safetensors: True reads only safetensors files, False only PyTorch files; None prefers safetensors.
        key_mapping: regular expressions and the texts that replace their matches in the stored names.
        pruned_heads: whether the reader supports a model from which attention heads were removed.
    """

    head: Head | None = None
    heads: frozenset[str] = frozenset()
    config: LlamaConfig | None = None
    variant: str | None = None
    use_safetensors: bool | None = None
    key_mapping: Mapping[str, str] = field(default_factory=dict)
    pruned_heads: bool = False

    def rename(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the tensors with the names that `key_mapping` makes of theirs.

        Raises:
            CheckpointError: a pattern is invalid, or two tensors get the same name.
        """
        renamed: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            new = name
            for pattern, replacement in self.key_mapping.items():
                new = _replace(pattern, replacement, new)
            if new in renamed:
                raise CheckpointError(f"key_mapping gives several tensors the name {show(new)}; correct it")
            renamed[new] = tensor
        return renamed


def _replace(pattern: str, replacement: str, name: str) -> str:
    try:
        return re.sub(pattern, replacement, name)
    except (re.error, IndexError) as exc:
        text = f"key_mapping has the pattern {show(pattern)} for {show(replacement)}: {exc}; correct it"
        raise CheckpointError(text) from exc


DEFAULT = Reading()
